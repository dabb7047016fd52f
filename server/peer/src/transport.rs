//! The members that this one talks with: what goes to each, and the tasks that read from each.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use parking_lot::Mutex;
use prost::Message as _;
use proto::raftpb::{Message, MessageType};
use state::ids;
use tokio::{runtime::Handle, sync::mpsc, task::JoinSet, time::timeout};
use tracing::{debug, info, warn};

use crate::{
    Client, Config, Handler,
    client::{CLUSTER_ID, RequestBody, whole},
    codec::{Decoder, Stream},
    outbound::Outbound,
    snapshot,
};

/// Rest between two attempts to open a stream, as in etcd.
const REDIAL: Duration = Duration::from_millis(100);
/// A stream that says nothing for so long is left: heartbeats of the link come more often.
const SILENCE: Duration = Duration::from_secs(5);
/// Messages that may wait for the pipeline, which is for when no stream is attached.
const PIPELINE: usize = 64;

/// Talks with all other members.
pub struct Transport {
    pub(crate) config: Config,
    pub(crate) handler: Arc<dyn Handler>,
    client: Client,
    /// Members are added from threads of the node, outside of the runtime.
    runtime: Handle,
    peers: Mutex<HashMap<u64, Arc<Peer>>>,
}

/// One other member.
pub(crate) struct Peer {
    pub id: u64,
    pub urls: Mutex<Vec<String>>,
    pub message: Outbound,
    pub append: Outbound,
    pipeline: mpsc::Sender<Message>,
    link: Mutex<Link>,
    received_bytes: AtomicU64,
    unsent: AtomicU64,
    tasks: Mutex<JoinSet<()>>,
}

/// What went to and came from a member since this one knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// The member.
    pub id: u64,
    /// Whether it can be heard now.
    pub active: bool,
    /// How often it could be heard no longer.
    pub lost: u64,
    /// Bytes of messages sent on streams.
    pub sent_bytes: u64,
    /// Bytes received on streams.
    pub received_bytes: u64,
    /// Messages that could not be sent.
    pub unsent: u64,
}

/// How well it can be heard.
#[derive(Debug, Default)]
struct Link {
    open_streams: usize,
    /// How often the last stream was lost.
    lost: u64,
    since: Option<Instant>,
}

impl Peer {
    pub fn outbound(&self, stream: Stream) -> &Outbound {
        match stream {
            Stream::Message => &self.message,
            Stream::Append => &self.append,
        }
    }

    fn traffic(&self) -> Traffic {
        let link = self.link.lock();
        Traffic {
            id: self.id,
            active: link.since.is_some(),
            lost: link.lost,
            sent_bytes: self.message.sent_bytes() + self.append.sent_bytes(),
            received_bytes: self.received_bytes.load(Relaxed),
            unsent: self.unsent.load(Relaxed),
        }
    }

    fn opened(&self) {
        let mut link = self.link.lock();
        link.open_streams += 1;
        link.since.get_or_insert_with(Instant::now);
    }

    fn closed(&self) {
        let mut link = self.link.lock();
        link.open_streams -= 1;
        if link.open_streams == 0 {
            link.since = None;
            link.lost += 1;
        }
    }
}

impl Transport {
    /// A transport without members, which calls them by `client`. Its tasks run on the runtime that
    /// this is called on.
    pub fn new(config: Config, client: Client, handler: Arc<dyn Handler>) -> Arc<Self> {
        Arc::new(Self {
            config,
            handler,
            client,
            runtime: Handle::current(),
            peers: Mutex::default(),
        })
    }

    /// For calls with an answer.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Begins to talk with a member; one that is known gets these URLs.
    pub fn add_peer(self: &Arc<Self>, id: u64, urls: Vec<String>) {
        if id == self.config.member_id {
            return;
        }
        let mut peers = self.peers.lock();
        if let Some(peer) = peers.get(&id) {
            *peer.urls.lock() = urls;
            return;
        }
        info!(peer = %format_args!("{id:x}"), ?urls, "started a remote peer");
        let (pipeline, piped) = mpsc::channel(PIPELINE);
        let peer = Arc::new(Peer {
            id,
            urls: Mutex::new(urls),
            message: Outbound::new(Stream::Message),
            append: Outbound::new(Stream::Append),
            pipeline,
            link: Mutex::default(),
            received_bytes: AtomicU64::new(0),
            unsent: AtomicU64::new(0),
            tasks: Mutex::default(),
        });
        let mut tasks = peer.tasks.lock();
        for stream in Stream::BOTH {
            let read = read(Arc::downgrade(self), Arc::clone(&peer), stream);
            tasks.spawn_on(read, &self.runtime);
        }
        let post = post(Arc::downgrade(self), Arc::downgrade(&peer), piped);
        tasks.spawn_on(post, &self.runtime);
        drop(tasks);
        peers.insert(id, peer);
    }

    /// Ends talking with a member.
    pub fn remove_peer(&self, id: u64) {
        let removed = self.peers.lock().remove(&id);
        if let Some(peer) = removed {
            peer.message.detach();
            peer.append.detach();
            peer.tasks.lock().abort_all();
            info!(peer = %format_args!("{id:x}"), "stopped a remote peer");
        }
    }

    /// Ends talking with everybody.
    pub fn stop(&self) {
        let ids: Vec<u64> = self.peers.lock().keys().copied().collect();
        for id in ids {
            self.remove_peer(id);
        }
    }

    /// Since when a member can be heard; `None` when it cannot.
    pub fn active_since(&self, id: u64) -> Option<Instant> {
        let peers = self.peers.lock();
        peers.get(&id).and_then(|peer| peer.link.lock().since)
    }

    /// Sends messages; never waits. What cannot be sent is dropped, and raft told of it.
    pub fn send(self: &Arc<Self>, messages: Vec<Message>) {
        for message in messages {
            let to = message.to.unwrap_or_default();
            let is_snapshot = message.r#type == Some(MessageType::MsgSnap as i32);
            let Some(peer) = self.peer(to) else {
                if is_snapshot {
                    // Raft sends nothing else there until it hears.
                    self.handler.report_snapshot(to, false);
                }
                continue;
            };
            if is_snapshot {
                let sending = snapshot::send(Arc::clone(self), Arc::downgrade(&peer), message);
                peer.tasks.lock().spawn_on(sending, &self.runtime);
                continue;
            }
            let sent = peer.outbound(Stream::of(&message)).send(&message)
                || peer.pipeline.try_send(message).is_ok();
            if !sent {
                peer.unsent.fetch_add(1, Relaxed);
                self.handler.report_unreachable(to);
            }
        }
    }

    /// How much went to and came from each member, by its ID.
    pub fn traffic(&self) -> Vec<Traffic> {
        let peers = self.peers.lock();
        let mut traffic: Vec<Traffic> = peers.values().map(|peer| peer.traffic()).collect();
        traffic.sort_by_key(|traffic| traffic.id);
        traffic
    }

    pub(crate) fn peer(&self, id: u64) -> Option<Arc<Peer>> {
        self.peers.lock().get(&id).cloned()
    }

    /// A request with the headers by which members know each other.
    pub(crate) fn request(
        &self,
        method: Method,
        url: &str,
        to: u64,
        body: RequestBody,
    ) -> Result<Request<RequestBody>, String> {
        let config = &self.config;
        Request::builder()
            .method(method)
            .uri(url)
            .header("x-server-from", ids::to_text(config.member_id))
            .header("x-server-version", config.version.to_string())
            .header("x-min-cluster-version", config.min_version.to_string())
            .header(CLUSTER_ID, ids::to_text(config.cluster_id))
            .header("x-raft-to", ids::to_text(to))
            .header("x-peerurls", config.peer_urls.join(","))
            .header(http::header::CONTENT_TYPE, "application/protobuf")
            .body(body)
            .map_err(|error| format!("{url}: {error}"))
    }
}

/// Opens a stream of a member again and again, and steps what it brings.
async fn read(transport: Weak<Transport>, peer: Arc<Peer>, stream: Stream) {
    let mut attempt = 0;
    let mut told = String::new();
    loop {
        let Some(transport) = transport.upgrade() else {
            return;
        };
        let urls = peer.urls.lock().clone();
        let url = urls.get(attempt % urls.len().max(1)).cloned();
        let error = match url {
            Some(url) => match open(&transport, &peer, &url, stream).await {
                Ok(body) => {
                    let (from, kind) = (peer.id, stream.path());
                    info!(peer = %format_args!("{from:x}"), stream = kind, "opened a stream");
                    told.clear();
                    peer.opened();
                    let ended = drain(&transport, &peer, stream, body).await;
                    peer.closed();
                    ended
                }
                Err(error) => error,
            },
            None => "it has no URL".to_owned(),
        };
        // Once for each reason: a member that is away is asked ten times a second.
        if error != told {
            let (from, kind) = (peer.id, stream.path());
            warn!(peer = %format_args!("{from:x}"), stream = kind, %error, "lost a stream");
            told = error;
        }
        attempt += 1;
        drop(transport);
        tokio::time::sleep(REDIAL).await;
    }
}

async fn open(
    transport: &Transport,
    peer: &Peer,
    url: &str,
    stream: Stream,
) -> Result<Incoming, String> {
    let own = ids::to_text(transport.config.member_id);
    let url = format!("{url}/raft/stream/{}/{own}", stream.path());
    let request = transport.request(Method::GET, &url, peer.id, whole(Bytes::new()))?;
    let response = transport.client.send(request).await?;
    match response.status() {
        StatusCode::OK => Ok(response.into_body()),
        StatusCode::GONE => {
            transport.handler.removed();
            Err("this member was removed from the cluster".to_owned())
        }
        status => Err(format!("it answers {status}")),
    }
}

/// Reads a stream to its end and says why it ended.
async fn drain(transport: &Transport, peer: &Peer, stream: Stream, mut body: Incoming) -> String {
    let mut decoder = Decoder::new(stream, transport.config.member_id, peer.id);
    loop {
        let frame = match timeout(SILENCE, body.frame()).await {
            Err(_) => return "it fell silent".to_owned(),
            Ok(None) => return "it ended the stream".to_owned(),
            Ok(Some(Err(error))) => return error.to_string(),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(bytes) = frame.into_data() else {
            continue;
        };
        peer.received_bytes.fetch_add(bytes.len() as u64, Relaxed);
        match decoder.feed(&bytes) {
            Ok(messages) => {
                for message in messages {
                    if !failpoint::RAFT_DROP_HEARTBEAT.skips() {
                        transport.handler.step(message).await;
                    }
                }
            }
            Err(error) => return error,
        }
    }
}

/// Posts messages one by one, for when no stream is attached.
async fn post(transport: Weak<Transport>, peer: Weak<Peer>, mut piped: mpsc::Receiver<Message>) {
    while let Some(message) = piped.recv().await {
        let (Some(transport), Some(peer)) = (transport.upgrade(), peer.upgrade()) else {
            return;
        };
        let url = peer.urls.lock().first().cloned().unwrap_or_default();
        let body = whole(message.encode_to_vec());
        let request = transport.request(Method::POST, &format!("{url}/raft"), peer.id, body);
        let posted = match request {
            Ok(request) => transport.client.send(request).await,
            Err(error) => Err(error),
        };
        match posted {
            Ok(response) if response.status() == StatusCode::NO_CONTENT => {}
            Ok(response) => {
                debug!(status = %response.status(), "a posted message was refused");
                transport.handler.report_unreachable(peer.id);
            }
            Err(error) => {
                debug!(%error, "could not post a message");
                transport.handler.report_unreachable(peer.id);
            }
        }
    }
}
