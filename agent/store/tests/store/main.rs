//! The store's promises, checked from outside. One program, so that RocksDB is linked once.

mod concurrency;
mod contents;
mod crash;
mod damage;
mod disk_full;
mod limits;
mod model;
mod opening;
mod support;
