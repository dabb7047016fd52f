//! A world of some members in one thread, made of one seed.
//!
//! Owns: a clock that moves from event to event, a network that loses, doubles, delays, reorders
//! and clogs, disks whose unsynced writes a crash takes, and which fail, fill, hang and decay,
//! clocks that go wrong, members that come and go, clients and watchers, and what must hold at each
//! step. It drives the very code that serves: the raft driver, the write-ahead log, the state
//! machine, the store and the watch hub, on the file system and the engine in memory. Only the
//! server's threads are not in it: here each of their steps is an event, and a crash may come
//! between any two. What clients and watchers saw is judged by crate `history`.
//!
//! Nothing depends on it. Start reading in `world.rs`: `World::happen` is one event, `World::heal`
//! the happy end. Then `node.rs` (a member), `faults.rs` (what breaks) and `checks.rs` (what must
//! hold).

// Support for tests: a failed step is a failed test.
#![allow(clippy::unwrap_used)]

mod checks;
mod clients;
mod convert;
mod disk;
mod faults;
mod network;
mod node;
mod report;
#[cfg(test)]
mod tests;
mod watchers;
mod world;

pub use report::Report;
pub use world::{SECOND, Settings, Time, World};
