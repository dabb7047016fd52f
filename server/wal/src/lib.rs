//! The write-ahead log, in etcd's format, on a [`Vfs`].
//!
//! Owns: the bytes of `member/wal`: segment names, frames, the CRC chain, the order of writes and
//! syncs, what counts as a torn tail and what as corruption, and which segments may go.
//!
//! Must never know: what an entry means, raft's rules, the store, snapshot files, clocks, async
//! runtimes.
//!
//! Start reading in `log.rs` (appending), then `recover.rs` (opening), then `frame.rs` (the bytes).
//! `vfs.rs` and `mem.rs` are the file systems below, the second with power cuts.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod error;
mod frame;
mod index;
mod log;
mod mem;
mod reader;
mod recover;
mod segment;
mod vfs;

#[cfg(test)]
mod tests;

pub use error::Error;
pub use log::{
    Metadata, Options, RELEASE_AT_ONCE, Released, SEGMENT_BYTES, SnapshotMark, Start, Wal,
};
pub use mem::{MemFile, MemVfs};
pub use reader::Reader;
pub use recover::{Recovered, Repair, TAIL_BYTES, Verified};
pub use vfs::{OsFile, OsVfs, Vfs, VfsFile};
