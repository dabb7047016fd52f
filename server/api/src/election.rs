//! The Election service: elections that the server runs for clients without etcd's Go package.

use bytes::Bytes;
use proto::{
    etcdserverpb::{ResponseHeader, TxnResponse},
    mvccpb::{KeyValue, event::EventType},
    v3electionpb::{
        CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse,
        ProclaimRequest, ProclaimResponse, ResignRequest, ResignResponse,
        election_server::Election,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{
    Backend,
    caller::Caller,
    concurrency::{
        Change, Client, Place, first, get, get_op, key_of, prefix_of, put_op, range_of,
        revision_of, told,
    },
    gate,
    stream::Leaderless,
};

/// In the words of etcd's server and its Go package.
const NO_LEADER_KEY: &str = "\"leader\" field must be provided";
const NOT_LEADER: &str = "election: not leader";
const NO_LEADER: &str = "election: no leader";
/// Leaders that wait for a client that does not read them; then no more are looked for.
const WAITING_LEADERS: usize = 1;

type Leaders = mpsc::Sender<Result<LeaderResponse, Status>>;

pub(crate) struct ElectionService<B>(pub B);

impl<B: Backend> ElectionService<B> {
    fn client<T>(&self, request: &Request<T>) -> Result<Client<B>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        Ok(Client {
            backend: self.0.clone(),
            // It may wait for long.
            caller: Caller::of_stream(request),
        })
    }
}

#[tonic::async_trait]
impl<B: Backend> Election for ElectionService<B> {
    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        let client = self.client(&request)?;
        let CampaignRequest { name, lease, value } = request.into_inner();
        let lease = client.lease(lease).await.map_err(told)?;
        let prefix = prefix_of(&name);
        let key = key_of(&prefix, lease);
        let then = vec![put_op(&key, &value, lease)];
        let stood = client.txn(&key, 0, then, vec![get_op(get(&key))]).await;
        let stood = stood.map_err(told)?;
        let mut leader = LeaderKey {
            name,
            key: key.clone(),
            rev: revision_of(stood.header.as_ref()),
            lease,
        };
        // Who stands already goes on with the new value.
        if let (false, Some(own)) = (stood.succeeded, range_of(&stood, 0).first()) {
            leader.rev = own.create_revision;
            if own.value != value
                && let Err(refusal) = proclaim(&client, &leader, value, lease).await
            {
                // The first reason counts.
                let _ = client.leave(&key, leader.rev).await;
                return Err(refusal);
            }
        }
        let mut place = Place::new(client, prefix, key, leader.rev);
        place.wait_turn().await.map_err(told)?;
        place.keep();
        Ok(Response::new(CampaignResponse {
            header: stood.header,
            leader: Some(leader),
        }))
    }

    async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        let client = self.client(&request)?;
        let ProclaimRequest { leader, value } = request.into_inner();
        let leader = leader.ok_or_else(|| Status::unknown(NO_LEADER_KEY))?;
        let lease = client.lease(leader.lease).await.map_err(told)?;
        let told = proclaim(&client, &leader, value, lease).await?;
        let header = told.header;
        Ok(Response::new(ProclaimResponse { header }))
    }

    async fn leader(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<LeaderResponse>, Status> {
        let client = self.client(&request)?;
        let prefix = prefix_of(&request.into_inner().name);
        let found = client.range(first(&prefix)).await.map_err(told)?;
        let leader = found.kvs.into_iter().next();
        let leader = leader.ok_or_else(|| Status::unknown(NO_LEADER))?;
        Ok(Response::new(LeaderResponse {
            header: found.header,
            kv: Some(leader),
        }))
    }

    type ObserveStream = ReceiverStream<Result<LeaderResponse, Status>>;

    async fn observe(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let client = self.client(&request)?;
        let leaderless = Leaderless::of(&self.0, request.metadata());
        let name = request.into_inner().name;
        let (leaders, receiver) = mpsc::channel(WAITING_LEADERS);
        let stream = observe(client, name.to_vec(), leaders.clone());
        tokio::spawn(async move {
            let ended = tokio::select! {
                () = stream => return,
                ended = leaderless.wait() => ended,
                () = leaders.closed() => return,
            };
            // A client that is gone needs no reason.
            let _ = leaders.send(Err(ended)).await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn resign(
        &self,
        request: Request<ResignRequest>,
    ) -> Result<Response<ResignResponse>, Status> {
        let client = self.client(&request)?;
        let leader = request.into_inner().leader;
        let leader = leader.ok_or_else(|| Status::unknown(NO_LEADER_KEY))?;
        // As in etcd: nobody uses it.
        client.lease(leader.lease).await.map_err(told)?;
        // Whoever does not lead has nothing to give up.
        let left = client.leave(&leader.key, leader.rev).await;
        let header = left.map_err(told)?.header;
        Ok(Response::new(ResignResponse { header }))
    }
}

/// Gives a leader, or who stands, another value.
async fn proclaim<B: Backend>(
    client: &Client<B>,
    leader: &LeaderKey,
    value: Bytes,
    lease: i64,
) -> Result<TxnResponse, Status> {
    let then = vec![put_op(&leader.key, &value, lease)];
    let done = client.txn(&leader.key, leader.rev, then, Vec::new()).await;
    let done = done.map_err(told)?;
    match done.succeeded {
        true => Ok(done),
        false => Err(Status::unknown(NOT_LEADER)),
    }
}

/// Tells of each leader, and of each of its values, until the client goes or nothing more can be
/// known; as in etcd the stream then ends without an error.
async fn observe<B: Backend>(client: Client<B>, name: Vec<u8>, leaders: Leaders) {
    let prefix = prefix_of(&name);
    let tell = async |header: Option<ResponseHeader>, kv: KeyValue| {
        let leader = LeaderResponse {
            header,
            kv: Some(kv),
        };
        leaders.send(Ok(leader)).await.map_err(|_| Gone)
    };
    let until_gone = async || -> Result<(), Gone> {
        loop {
            let found = client.range(first(&prefix)).await?;
            let (header, leader) = match found.kvs.into_iter().next() {
                Some(leader) => (found.header, leader),
                None => {
                    let since = revision_of(found.header.as_ref());
                    let put = first_put(&client, &prefix, since).await?;
                    let header = put.header.map(|header| ResponseHeader {
                        // Of this leader, not of all that came with it.
                        revision: put.kv.mod_revision,
                        ..header
                    });
                    (header, put.kv)
                }
            };
            let (key, since) = (leader.key.clone(), revision_of(header.as_ref()) + 1);
            tell(header, leader).await?;
            let mut changes = client.watch(&key, Bytes::new(), since).await?;
            'leads: loop {
                for change in changes.next().await? {
                    if change.kind == EventType::Delete {
                        break 'leads;
                    }
                    tell(change.header, change.kv).await?;
                }
            }
        }
    };
    // Why it ended is not told.
    let _ = until_gone().await;
}

/// Why nothing more is told: the client is gone, or the backend refused.
struct Gone;

impl From<state::Error> for Gone {
    fn from(_: state::Error) -> Self {
        Self
    }
}

/// Waits for the first key of a prefix.
async fn first_put<B: Backend>(
    client: &Client<B>,
    prefix: &Bytes,
    since: i64,
) -> Result<Change, state::Error> {
    let mut changes = client.watch_prefix(prefix, since).await?;
    loop {
        let changes = changes.next().await?;
        let put = |change: &Change| change.kind == EventType::Put;
        if let Some(put) = changes.into_iter().find(put) {
            return Ok(put);
        }
    }
}
