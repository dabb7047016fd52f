//! bbolt files: the format of etcd's `member/snap/db` and of its snapshots.
//!
//! Owns: the bytes of such a file. [`Planner`] and [`Writer`] make one as a stream, in two passes
//! over the same rows, since the meta pages come first and say where the rest ends. [`Database`]
//! reads one, whoever wrote it, trusts nothing in it and can check the whole of it.
//!
//! Must never know: what a bucket or a row means to etcd, the store, async runtimes, clocks.
//!
//! Start reading in `format.rs` (the bytes), then `tree.rs` (how rows become pages) and `write.rs`,
//! or `node.rs` (one page, checked) and `read.rs`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod check;
mod error;
mod format;
mod node;
mod read;
#[cfg(test)]
mod tests;
mod tree;
mod write;

pub use error::Error;
pub use format::{
    MAX_BUCKETS, MAX_FILE_BYTES, MAX_KEY_BYTES, MAX_ROW_BYTES, MAX_VALUE_BYTES, PAGE_BYTES,
};
pub use read::{Database, ReadAt, Rows};
pub use write::{Plan, Planner, Writer};
