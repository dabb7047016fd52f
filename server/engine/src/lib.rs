//! RocksDB behind [`mvcc::Engine`]. The only crate of the tree that links C++.
//!
//! Owns: how rows lie on disk, and everything that is tuned in RocksDB. On disk it is a folder
//! (`member/engine` of a data directory):
//!
//! ```text
//! CAIRN_OWNER         whose state it is: a member of a cluster
//! CURRENT             the name of the database folder in use, 16 hex digits
//! 0000000000000000/   a RocksDB database, one column family for each mvcc::Family
//! 0000000000000000/CAIRN_FORMAT   the version of the layout of families and rows
//! ```
//!
//! The pointer lets a database be built beside the one that serves and take its place by one
//! rename ([`RocksEngine::build`], [`RocksEngine::switch`]). A database that the pointer does not
//! name is removed when its last reader goes, or by the next start.
//!
//! RocksDB runs without its own write-ahead log and with atomic flush: what a crash takes, it
//! takes from the end and in whole batches, and the raft log brings it back. Nobody else may flush
//! it, and a flush is always of all families: one of a single family would not be atomic with the
//! rest.
//!
//! Must never know: what a row means, raft, sockets, flags.
//!
//! Start reading in `rocks.rs`; `layout.rs` is the folder, `manifest.rs` what a power cut tears.

mod layout;
mod manifest;
mod rocks;

pub use layout::{FORMAT_VERSION, OpenError, check, claim, exists, owner};
pub use rocks::{Options, RocksEngine, RocksSnapshot};
