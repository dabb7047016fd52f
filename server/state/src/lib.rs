//! The replicated state machine: what committed entries do.
//!
//! Owns: applying entries to the store ([`Machine`]), leases ([`Lessor`]), users and roles with
//! their tokens ([`Auth`], [`Tokens`]), members, alarms, versions, the quota, the check before a proposal ([`validate`]); etcd's one table of errors
//! ([`Error`]) and its identifiers ([`ids`]); the whole state as etcd's buckets, out and in
//! ([`export`], [`import`]).
//!
//! Must never know: tokio, tonic, RocksDB, sockets, a clock or a source of randomness. Time
//! arrives as an argument, and feeds deadlines in memory, never the data.
//!
//! Start reading in `machine.rs`, then `apply.rs`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod alarms;
mod apply;
pub mod auth;
mod buckets;
pub mod cost;
mod counts;
mod error;
mod fatal;
pub mod ids;
mod lessor;
mod machine;
pub mod members;
mod persisted;
#[cfg(test)]
mod tests;
mod v2store;
pub mod validate;
pub mod version;

pub use alarms::Alarms;
pub use auth::{Auth, AuthInfo, AuthReply, Tokens};
pub use buckets::{BucketRow, BucketSink, BucketSource, CopyError, export, import};
pub use counts::{Counts, ranges_of};
pub use error::{Code, Error};
pub use fatal::Fatal;
pub use lessor::{CHECKPOINTS_PER_ENTRY, Lessor, MAX_TTL, REVOKES_PER_SCAN, TimeToLive};
pub use machine::{
    Applied, ConfChangeOutcome, Machine, Options, Outcome, Published, Replaced, Reply,
};
pub use members::{Member, MemberChange, Members};
pub use mvcc::is_read_only;
pub use persisted::{Persisted, applied_of, persisted};
pub use v2store::{raft_snapshot, v2_store};
pub use version::Version;
