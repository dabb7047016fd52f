//! Raft, as a plain struct: inputs go in, [`Output`]s come out, and nothing here blocks.
//!
//! Owns: the raft-rs node in its asynchronous form, the translation between etcd's messages and
//! raft-rs's, the entries in memory, the clock of elections, what is refused at the boundary, the
//! steps of a snapshot on its way in and out, and the rule that a member with a hung disk falls
//! silent.
//!
//! Must never know: sockets, files, threads, clocks, async runtimes, what an entry's bytes or a
//! snapshot's data mean.
//!
//! Start reading in `types.rs` (what goes in and out), then `driver.rs` (the inputs) and `outputs.rs`
//! (`poll` is the heart), then `store.rs` (the log as raft sees it), `snapshots.rs` (what replaces
//! it) and `boundary.rs` (what never reaches raft).

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod boundary;
mod clock;
mod codec;
mod driver;
mod error;
mod fetch;
mod inflight;
mod logger;
mod membership;
mod outputs;
mod reads;
mod snapshots;
mod store;
mod terms;
mod types;

#[cfg(test)]
mod tests;

pub use driver::Driver;
pub use error::Error;
pub use terms::{TermRun, term_runs};
pub use types::{
    Append, Boot, Config, FetchRequest, Output, PeerStatus, ReadReady, Role, SoftState, Status,
};
