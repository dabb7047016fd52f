//! The replicated state machine: what committed entries do.
//!
//! Owns: applying entries to the store ([`Machine`]), leases ([`Lessor`]), members, alarms,
//! versions, the quota, the check before a proposal ([`validate`]); etcd's one table of errors
//! ([`Error`]) and its identifiers ([`ids`]).
//!
//! Must never know: tokio, tonic, RocksDB, sockets, a clock or a source of randomness. Time
//! arrives as an argument, and feeds deadlines in memory, never the data.
//!
//! Users and roles are not here yet; a committed entry that needs them ends the process.
//!
//! Start reading in `machine.rs`, then `apply.rs`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod alarms;
mod apply;
pub mod cost;
mod counts;
mod error;
mod fatal;
pub mod ids;
mod lessor;
mod machine;
pub mod members;
#[cfg(test)]
mod tests;
pub mod validate;
pub mod version;

pub use alarms::Alarms;
pub use counts::{Counts, ranges_of};
pub use error::{Code, Error};
pub use fatal::Fatal;
pub use lessor::{Lessor, MAX_TTL, REVOKES_PER_SCAN, TimeToLive};
pub use machine::{
    AllowAll, Applied, Authorizer, ConfChangeOutcome, Machine, Options, Outcome, Published, Reply,
};
pub use members::{Member, MemberChange, Members};
pub use version::Version;
