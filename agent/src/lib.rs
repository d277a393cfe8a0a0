//! The tokio shell around branchline-core: configuration, engine, control API.

pub mod api;
pub mod config;
pub mod control;
pub mod service;

mod engine;
mod folder;
mod jobs;
mod owner;
mod secret_file;
