//! The revision store of Cairn.
//!
//! Owns: revisions, ranges now and in the past, transactions, compaction, HashKV, the history
//! that watchers read, the count of keys, the keys of each lease, and the [`Engine`] trait that
//! all of it stands on, with an engine in memory and the suite that every engine passes. One
//! thread writes ([`Store::begin`], [`Writer::commit`]); any thread reads a [`View`]. [`Import`]
//! fills an empty engine with what another member or an etcd has.
//!
//! Must never know: RocksDB, files, sockets, clocks, threads or random numbers; nor what a lease,
//! a member or an alarm means: it keeps their rows for crate `state`.
//!
//! Start reading in `engine.rs`, then `rows.rs` for the layout, `write.rs` for changes and
//! `reader.rs` for ranges.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod check;
mod compaction;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod counts;
mod engine;
mod error;
mod event;
mod hash;
mod history;
mod import;
mod mem;
mod overlay;
mod reader;
mod revision;
mod rows;
mod store;
#[cfg(test)]
mod tests;
mod txn;
mod write;

pub use check::Checked;
pub use compaction::{CompactionHash, CompactionProgress};
pub use engine::{Cursor, Direction, Engine, EngineError, Family, Op, Read, WriteBatch};
pub use error::Error;
pub use event::{Event, EventKind, RevisionEvents};
pub use hash::KeyValueHash;
pub use import::{Import, is_own};
pub use mem::{MemEngine, MemSnapshot};
pub use store::{Store, View};
pub use txn::{is_read_only, is_serializable};
pub use write::{Committed, Writer};
