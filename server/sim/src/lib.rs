//! A world of three members in one thread, made of one seed.
//!
//! Owns: a network that loses, doubles, delays and reorders, disks whose unsynced writes a crash
//! takes, clients, and what must hold at each step. It drives the very code that serves: the raft
//! driver, the write-ahead log, the state machine and the store, on the file system and the engine
//! in memory. Only the server's threads are not in it: here each of their steps is an event, and a
//! crash may come between any two.
//!
//! Nothing depends on it. Start reading in `world.rs`: [`World::event`] is one step of the world,
//! [`World::heal`] its happy end.

// Support for tests: a failed step is a failed test.
#![allow(clippy::unwrap_used)]

mod node;
#[cfg(test)]
mod tests;
mod world;

pub use world::{Report, World};
