//! The client edge: gRPC services and HTTP endpoints.
//!
//! Owns: what clients see of the server, and the [`Backend`] that it asks for everything else.
//!
//! Must never know: raft, the engine, how the store keeps its rows, or sockets.
//!
//! Not here yet: the gRPC services, the request checks, and the HTTP endpoints.
//!
//! Start reading in `backend.rs`.

pub mod backend;

pub use backend::Backend;
