//! The revision store of Cairn.
//!
//! Owns: the [`Engine`] trait that the store stands on, the engine in memory, and the suite that
//! every engine passes. The store itself (revisions, ranges, transactions, compaction, hashes) is
//! not written yet.
//!
//! Must never know: RocksDB, files, sockets, clocks, threads or random numbers.
//!
//! Start reading in `engine.rs`.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod engine;
mod mem;

pub use engine::{Cursor, Direction, Engine, EngineError, Family, Op, Read, WriteBatch};
pub use mem::{MemEngine, MemSnapshot};
