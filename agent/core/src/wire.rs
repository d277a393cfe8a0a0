//! The messages of the exchange protocol `branchline/1`; see `docs/exchange.md`.
