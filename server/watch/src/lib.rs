//! The watch hub: who wants which events, and who has them already.
//!
//! Owns: watchers and their streams, matching of events, the bounded queue of each stream,
//! catch-up from history, progress notifications, fragments. It does no I/O and has no clock: the
//! server calls [`Hub::publish`] after each applied batch, [`Hub::catch_up`] when
//! [`Hub::is_behind`] says so, and [`Hub::progress_tick`] once per interval.
//!
//! Must never know: tokio, tonic, sockets, RocksDB, threads or clocks.
//!
//! Start reading in `hub.rs`; `index.rs` finds the watchers of a key.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod hub;
mod index;
#[cfg(test)]
mod tests;
mod watcher;

pub use hub::{Gauges, History, Hub, StreamId};
