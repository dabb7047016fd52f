//! The replicated state machine's vocabulary: etcd's errors and etcd's identifiers.
//!
//! Owns: the one error enum that carries etcd's code and text ([`Error`]), and how member,
//! cluster and request IDs are derived ([`ids`]).
//!
//! Must never know: tokio, tonic, RocksDB, sockets, a clock or a source of randomness. Time
//! arrives as an argument.
//!
//! Not here yet: applying committed entries, leases, alarms and membership. ARCHITECTURE.md
//! says which interface they will have.
//!
//! Start reading in `ids.rs`, then `error.rs`.

mod error;
pub mod ids;

pub use error::{Code, Error};
