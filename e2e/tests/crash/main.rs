//! Crashes of real processes: kill -9, stops and failpoints under load, on one member and on three.
//! Nothing that was acknowledged is lost, nothing is invented, no read is stale, no watcher misses
//! or repeats anything.
//!
//! `CAIRN_ROUNDS` sets how many rounds `rounds` makes, `CAIRN_SEED` which ones.

#![allow(clippy::unwrap_used)]

mod points;
mod rounds;
mod single;
