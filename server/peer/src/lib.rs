//! etcd's peer protocol, rafthttp.
//!
//! Owns: the streams and the pipeline by which raft's messages travel, who may speak with whom,
//! and the calls between members: membership, promotion, leases, versions. Each member opens two
//! streams at every other and reads from them: appends, and everything else, so that heartbeats
//! never wait behind large messages.
//!
//! Must never know: what a message means to raft, the engine, the log, or sockets that accept:
//! [`router`] is served by the server. Nor certificates: `tls` has them.
//!
//! Start reading in `transport.rs`; `snapshot.rs` is how a whole state travels, `hashkv.rs` how two
//! are compared.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod client;
mod codec;
mod connect;
mod hashkv;
mod outbound;
mod server;
mod snapshot;
#[cfg(test)]
mod tests;
mod transport;

use std::{future::Future, io, pin::Pin, sync::Arc};

use bytes::Bytes;

use proto::{
    etcdserverpb::{LeaseTimeToLiveRequest, LeaseTimeToLiveResponse},
    raftpb::Message,
};
use state::{Error, Member, Version};

pub use client::{Client, Probe};
pub use hashkv::{HashError, MemberHash};
pub use snapshot::{MAX_MESSAGE_BYTES, snapshot_index};
pub use transport::{Traffic, Transport};

/// Who this member is.
#[derive(Clone, Debug)]
pub struct Config {
    /// This member's ID.
    pub member_id: u64,
    /// The cluster's ID.
    pub cluster_id: u64,
    /// Where other members reach this one.
    pub peer_urls: Vec<String>,
    /// The server's version.
    pub version: Version,
    /// The oldest version that it can talk with.
    pub min_version: Version,
}

/// An answer that takes a while.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The database of a snapshot, piece by piece. An error ends it, and whoever reads it must not take
/// what came before for the whole.
pub type SnapshotBody = Pin<Box<dyn tokio_stream::Stream<Item = io::Result<Bytes>> + Send>>;

/// What the transport asks of the node.
pub trait Handler: Send + Sync + 'static {
    /// Takes a message; waits while the node has too many.
    fn step(&self, message: Message) -> Answer<'_, ()>;
    /// A message could not be sent to a member.
    fn report_unreachable(&self, id: u64);
    /// A snapshot was received by a member, or was not.
    fn report_snapshot(&self, id: u64, ok: bool);
    /// The database that belongs to a snapshot message, made so far that its first bytes come at
    /// once: the other side waits for a few seconds only.
    fn open_snapshot<'a>(
        &'a self,
        message: &'a Message,
    ) -> Answer<'a, Result<SnapshotBody, String>>;
    /// Takes a snapshot: returns when it is durable and raft has it, or why it was not taken.
    fn receive_snapshot(
        &self,
        message: Message,
        body: SnapshotBody,
    ) -> Answer<'_, Result<(), String>>;
    /// Another member says that this one was removed.
    fn removed(&self);
    /// Whether a member was removed.
    fn is_removed(&self, id: u64) -> bool;
    /// All members.
    fn members(&self) -> Vec<Member>;
    /// Promotes a learner, on the leader, for who has this token.
    fn promote(&self, id: u64, token: Option<String>) -> Answer<'_, Result<Vec<Member>, Error>>;
    /// Renews a lease, on the leader.
    fn renew_lease(&self, id: i64) -> Answer<'_, Result<i64, Error>>;
    /// What is left of a lease, on the leader.
    fn lease_time_to_live(
        &self,
        request: LeaseTimeToLiveRequest,
    ) -> Answer<'_, Result<LeaseTimeToLiveResponse, Error>>;
    /// The hash of the keys at a revision; 0 is the current one.
    fn hash_kv(&self, revision: i64) -> Answer<'_, Result<MemberHash, Error>>;
    /// The versions, as `/version` shows them.
    fn versions(&self) -> String;
    /// Whether the cluster is being downgraded.
    fn downgrading(&self) -> bool;
    /// The time as RFC 3339 with nanoseconds.
    fn wall_clock(&self) -> String;
}

/// Everything that a peer port serves.
pub fn router(transport: Arc<Transport>) -> axum::Router {
    server::router(transport)
}
