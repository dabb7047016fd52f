//! What clients and watchers saw of a store, and whether an etcd may have shown it to them.
//!
//! Owns: the form in which a run is recorded ([`History`]), a small model of etcd's keys with all
//! of its past, and the checks. The main one, [`check`], is guided by revisions: etcd numbers its
//! writes and puts a revision into each answer, so the order that would have to be searched for is
//! known, and each answer needs only be compared. Histories of which nobody recorded the events are
//! searched key by key ([`check_keys`]). Both say in a [`Violation`] what is wrong first.
//!
//! Must never know: who recorded, whether the members were processes or simulated, clocks, sockets,
//! threads. Times are nanoseconds of one clock of the recorder's.
//!
//! Only tests depend on it. Start reading in `record.rs`, then `check.rs`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod check;
mod explain;
mod keys;
mod log;
mod model;
mod record;
mod sightings;
#[cfg(test)]
mod tests;
mod violation;
mod watches;
pub mod wire;

pub use check::{Summary, check};
pub use keys::check_keys;
pub use log::log_of;
pub use record::{
    Base, Compare, Comparison, Event, EventKind, History, KeyRange, KeyValue, Operation, Outcome,
    Refusal, Request, Response, ResponseKind, Target, Txn, TxnOp, TxnResult, WatchRecord,
    WatchReport, WatchResponse,
};
pub use violation::Violation;
