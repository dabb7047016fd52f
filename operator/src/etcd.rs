//! What the operator asks of etcd's members, and the members themselves over gRPC.

use std::{future::Future, time::Duration};

use proto::etcdserverpb::{
    MemberAddRequest, MemberListRequest, MemberPromoteRequest, StatusRequest,
    cluster_client::ClusterClient, maintenance_client::MaintenanceClient,
};
use tonic::transport::{Channel, Endpoint};

use crate::names::CLIENT_PORT;

/// How long a member has to answer a question.
const CALL: Duration = Duration::from_secs(3);
/// How long a change of members may take.
const CHANGE: Duration = Duration::from_secs(8);

/// What a member says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The cluster that it is of.
    pub cluster_id: u64,
    /// Its own ID.
    pub member_id: u64,
    /// The leader's ID; 0 when it knows none.
    pub leader: u64,
    /// Version of etcd that it stands for.
    pub version: String,
    /// Bytes of its database.
    pub db_size: u64,
    /// Whether it has no vote.
    pub learner: bool,
    /// What is wrong with it.
    pub errors: Vec<String>,
}

/// One line of the member list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// etcd's ID.
    pub id: u64,
    /// Empty until it has started for the first time.
    pub name: String,
    /// Where other members reach it.
    pub peer_urls: Vec<String>,
    /// Whether it has no vote.
    pub learner: bool,
}

/// How a change of members ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It is done.
    Done,
    /// The cluster says: not yet. Nothing changed.
    NotYet,
}

/// The members of clusters. Addresses are IPs of pods.
pub trait Etcd: Send + Sync + 'static {
    /// What one member says of itself.
    fn status(&self, address: &str) -> impl Future<Output = Result<Answer, String>> + Send;
    /// The member list, as a quorum knows it.
    fn members(
        &self,
        addresses: &[String],
    ) -> impl Future<Output = Result<Vec<Member>, String>> + Send;
    /// Adds a learner. One that is there already counts as done.
    fn add_learner(
        &self,
        addresses: &[String],
        peer_url: &str,
    ) -> impl Future<Output = Result<Changed, String>> + Send;
    /// Gives a learner its vote.
    fn promote(
        &self,
        addresses: &[String],
        id: u64,
    ) -> impl Future<Output = Result<Changed, String>> + Send;
}

/// Over gRPC.
#[derive(Clone, Copy, Debug, Default)]
pub struct Grpc;

async fn connect(address: &str, limit: Duration) -> Result<Channel, String> {
    let host = match address.contains(':') {
        true => format!("[{address}]"),
        false => address.to_owned(),
    };
    let endpoint = Endpoint::from_shared(format!("http://{host}:{CLIENT_PORT}"));
    let endpoint = endpoint.map_err(|error| format!("{address}: {error}"))?;
    let endpoint = endpoint.connect_timeout(CALL).timeout(limit);
    let connected = endpoint.connect().await;
    connected.map_err(|error| format!("{address}: cannot connect: {error}"))
}

/// Asks one after the other until one answers.
async fn first<T, F, Fut>(addresses: &[String], limit: Duration, call: F) -> Result<T, String>
where
    F: Fn(Channel) -> Fut,
    Fut: Future<Output = Result<T, tonic::Status>>,
{
    let mut failed = "no member to ask".to_owned();
    for address in addresses {
        let asked = async {
            let channel = connect(address, limit).await?;
            let answer = call(channel).await;
            answer.map_err(|status| format!("{address}: {}", status.message()))
        };
        match tokio::time::timeout(limit, asked).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => failed = error,
            Err(_) => failed = format!("{address}: no answer in time"),
        }
    }
    Err(failed)
}

impl Etcd for Grpc {
    async fn status(&self, address: &str) -> Result<Answer, String> {
        let addresses = [address.to_owned()];
        let answer = first(&addresses, CALL, |channel| async {
            MaintenanceClient::new(channel)
                .status(StatusRequest::default())
                .await
        });
        let answer = answer.await?.into_inner();
        let header = answer.header.unwrap_or_default();
        Ok(Answer {
            cluster_id: header.cluster_id,
            member_id: header.member_id,
            leader: answer.leader,
            version: answer.version,
            db_size: u64::try_from(answer.db_size).unwrap_or_default(),
            learner: answer.is_learner,
            errors: answer.errors,
        })
    }

    async fn members(&self, addresses: &[String]) -> Result<Vec<Member>, String> {
        let answer = first(addresses, CALL, |channel| async {
            let request = MemberListRequest { linearizable: true };
            ClusterClient::new(channel).member_list(request).await
        });
        let members = answer.await?.into_inner().members.into_iter();
        let members = members.map(|member| Member {
            id: member.id,
            name: member.name,
            peer_urls: member.peer_ur_ls,
            learner: member.is_learner,
        });
        Ok(members.collect())
    }

    async fn add_learner(&self, addresses: &[String], peer_url: &str) -> Result<Changed, String> {
        let added = first(addresses, CHANGE, |channel| async move {
            let request = MemberAddRequest {
                peer_ur_ls: vec![peer_url.to_owned()],
                is_learner: true,
            };
            ClusterClient::new(channel).member_add(request).await
        });
        let added = added.await.map(|_| ());
        let known = ["Peer URLs already exist"];
        outcome(added, &known)
    }

    async fn promote(&self, addresses: &[String], id: u64) -> Result<Changed, String> {
        let promoted = first(addresses, CHANGE, |channel| async move {
            ClusterClient::new(channel)
                .member_promote(MemberPromoteRequest { id })
                .await
        });
        let promoted = promoted.await.map(|_| ());
        let known = ["can only promote a learner member"];
        outcome(promoted, &known)
    }
}

/// What etcd says when a change of members has to wait: a learner is behind, a connection is
/// young, a member is down.
const NOT_NOW: [&str; 4] = [
    "in sync with leader",
    "unhealthy cluster",
    "not enough started members",
    "too many learner members",
];

/// A refusal that is an answer: etcd tells it by its text.
fn outcome(result: Result<(), String>, done: &[&str]) -> Result<Changed, String> {
    match result {
        Ok(()) => Ok(Changed::Done),
        Err(error) if NOT_NOW.iter().any(|text| error.contains(text)) => Ok(Changed::NotYet),
        Err(error) if done.iter().any(|text| error.contains(text)) => Ok(Changed::Done),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_that_are_answers() {
        let said = |text: &str| outcome(Err(text.into()), &["Peer URLs already exist"]);
        assert_eq!(
            said("etcdserver: Peer URLs already exists"),
            Ok(Changed::Done)
        );
        let behind = "etcdserver: can only promote a learner member which is in sync with leader";
        assert_eq!(said(behind), Ok(Changed::NotYet));
        assert_eq!(said("etcdserver: unhealthy cluster"), Ok(Changed::NotYet));
        assert!(said("etcdserver: permission denied").is_err());
    }
}
