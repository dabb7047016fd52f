//! Two members on loopback.

use std::{
    collections::HashSet,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use proto::{
    etcdserverpb::{LeaseTimeToLiveRequest, LeaseTimeToLiveResponse},
    raftpb::{Entry, Message, MessageType, Snapshot, SnapshotMetadata},
};
use state::{Error, Member, Version};
use tls::Tls;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle, time::timeout};
use tokio_stream::StreamExt as _;

use crate::{
    Answer, Client, Config, Handler, HashError, MemberHash, SnapshotBody, Transport, router,
};

const LIMIT: Duration = Duration::from_secs(10);

/// The message, and the database or why it broke off.
type Received = (Message, Result<Vec<u8>, String>);

struct Node {
    stepped: mpsc::UnboundedSender<Message>,
    unreachable: AtomicUsize,
    was_removed: AtomicUsize,
    removed: Mutex<HashSet<u64>>,
    /// The database to be sent; an error in the middle when it is cut off.
    database: Mutex<Vec<Result<Bytes, String>>>,
    /// The snapshots that came.
    received: Mutex<Vec<Received>>,
    /// How the ones that were sent ended.
    sent: Mutex<Vec<(u64, bool)>>,
}

impl Handler for Node {
    fn step(&self, message: Message) -> Answer<'_, ()> {
        self.stepped.send(message).unwrap();
        Box::pin(async {})
    }

    fn report_unreachable(&self, _id: u64) {
        self.unreachable.fetch_add(1, Ordering::Relaxed);
    }

    fn report_snapshot(&self, id: u64, ok: bool) {
        self.sent.lock().push((id, ok));
    }

    fn open_snapshot<'a>(
        &'a self,
        _message: &'a Message,
    ) -> Answer<'a, Result<SnapshotBody, String>> {
        let pieces = self.database.lock().clone();
        let pieces = pieces
            .into_iter()
            .map(|piece| piece.map_err(io::Error::other));
        Box::pin(async move { Ok(Box::pin(tokio_stream::iter(pieces)) as SnapshotBody) })
    }

    fn receive_snapshot(
        &self,
        message: Message,
        mut body: SnapshotBody,
    ) -> Answer<'_, Result<(), String>> {
        Box::pin(async move {
            let mut database = Vec::new();
            let read = loop {
                match body.next().await {
                    None => break Ok(()),
                    Some(Ok(piece)) => database.extend_from_slice(&piece),
                    Some(Err(error)) => break Err(error.to_string()),
                }
            };
            let outcome = read.clone().map(|()| database);
            self.received.lock().push((message, outcome));
            read
        })
    }

    fn removed(&self) {
        self.was_removed.fetch_add(1, Ordering::Relaxed);
    }

    fn is_removed(&self, id: u64) -> bool {
        self.removed.lock().contains(&id)
    }

    fn members(&self) -> Vec<Member> {
        vec![Member {
            id: u64::MAX,
            peer_urls: vec!["http://a:1".to_owned()],
            ..Member::default()
        }]
    }

    fn promote(&self, id: u64, token: Option<String>) -> Answer<'_, Result<Vec<Member>, Error>> {
        Box::pin(async move {
            match id {
                1 => Ok(self.members()),
                4 if token.as_deref() == Some("a.1") => Ok(self.members()),
                2 => Err(Error::LearnerNotReady),
                _ => Err(Error::MemberNotFound),
            }
        })
    }

    fn renew_lease(&self, id: i64) -> Answer<'_, Result<i64, Error>> {
        Box::pin(async move {
            match id {
                7 => Ok(60),
                _ => Err(Error::LeaseNotFound),
            }
        })
    }

    fn lease_time_to_live(
        &self,
        request: LeaseTimeToLiveRequest,
    ) -> Answer<'_, Result<LeaseTimeToLiveResponse, Error>> {
        Box::pin(async move {
            match request.id {
                7 => Ok(LeaseTimeToLiveResponse {
                    id: 7,
                    ttl: 30,
                    granted_ttl: 60,
                    ..LeaseTimeToLiveResponse::default()
                }),
                _ => Err(Error::LeaseNotFound),
            }
        })
    }

    fn hash_kv(&self, revision: i64) -> Answer<'_, Result<MemberHash, Error>> {
        Box::pin(async move {
            match revision {
                ..5 => Err(Error::Compacted),
                10.. => Err(Error::FutureRev),
                revision => Ok(MemberHash {
                    current: 9,
                    hash: 77,
                    compact_revision: 5,
                    revision,
                }),
            }
        })
    }

    fn versions(&self) -> String {
        "{\"etcdserver\":\"3.7.3\"}".to_owned()
    }

    fn downgrading(&self) -> bool {
        false
    }

    fn wall_clock(&self) -> String {
        "2026-01-01T00:00:00Z".to_owned()
    }
}

struct Running {
    transport: Arc<Transport>,
    node: Arc<Node>,
    stepped: mpsc::UnboundedReceiver<Message>,
    url: String,
    server: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.transport.stop();
        self.server.abort();
    }
}

async fn start(member_id: u64, cluster_id: u64) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, stepped) = mpsc::unbounded_channel();
    let node = Arc::new(Node {
        stepped: sender,
        unreachable: AtomicUsize::new(0),
        was_removed: AtomicUsize::new(0),
        removed: Mutex::default(),
        database: Mutex::default(),
        received: Mutex::default(),
        sent: Mutex::default(),
    });
    let config = Config {
        member_id,
        cluster_id,
        peer_urls: vec![url.clone()],
        version: Version::new(3, 7, 3),
        min_version: Version::new(3, 0, 0),
    };
    let client = Client::new(Tls::load("peer", tls::Options::default()).unwrap());
    let handler = Arc::clone(&node) as Arc<dyn Handler>;
    let transport = Transport::new(config, client, handler);
    let app = router(Arc::clone(&transport));
    let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    Running {
        transport,
        node,
        stepped,
        url,
        server,
    }
}

async fn pair() -> (Running, Running) {
    let (a, b) = (start(1, 9).await, start(2, 9).await);
    a.transport.add_peer(2, vec![b.url.clone()]);
    b.transport.add_peer(1, vec![a.url.clone()]);
    (a, b)
}

fn message(kind: MessageType, from: u64, to: u64, index: u64) -> Message {
    Message {
        r#type: Some(kind as i32),
        from: Some(from),
        to: Some(to),
        term: Some(3),
        log_term: Some(3),
        index: Some(index),
        commit: Some(0),
        entries: match kind {
            MessageType::MsgApp => vec![Entry {
                r#type: Some(0),
                term: Some(3),
                index: Some(index + 1),
                data: Some("x".into()),
            }],
            _ => vec![],
        },
        ..Message::default()
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let held = timeout(LIMIT, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(held.await.is_ok(), "{what} in time");
}

#[tokio::test]
async fn messages_travel_both_ways_and_in_order() {
    let (mut a, mut b) = pair().await;
    let (to_b, to_a) = (Arc::clone(&a.transport), Arc::clone(&b.transport));
    until("streams", || {
        to_b.active_since(2).is_some() && to_a.active_since(1).is_some()
    })
    .await;
    for index in 0..200 {
        a.transport
            .send(vec![message(MessageType::MsgApp, 1, 2, index)]);
        b.transport
            .send(vec![message(MessageType::MsgHeartbeatResp, 2, 1, index)]);
    }
    for index in 0..200 {
        let got = timeout(LIMIT, b.stepped.recv()).await.unwrap().unwrap();
        assert_eq!(got, message(MessageType::MsgApp, 1, 2, index));
        let got = timeout(LIMIT, a.stepped.recv()).await.unwrap().unwrap();
        assert_eq!(got, message(MessageType::MsgHeartbeatResp, 2, 1, index));
    }
}

#[tokio::test]
async fn without_a_stream_messages_are_posted_and_a_lost_member_is_reported() {
    let a = start(1, 9).await;
    let mut b = start(2, 9).await;
    // b does not know a, so it opens no stream at it.
    a.transport.add_peer(2, vec![b.url.clone()]);
    a.transport
        .send(vec![message(MessageType::MsgVote, 1, 2, 5)]);
    let got = timeout(LIMIT, b.stepped.recv()).await.unwrap().unwrap();
    assert_eq!(got, message(MessageType::MsgVote, 1, 2, 5));
    drop(b);
    a.transport
        .send(vec![message(MessageType::MsgVote, 1, 2, 6)]);
    let node = Arc::clone(&a.node);
    until("a report", || node.unreachable.load(Ordering::Relaxed) > 0).await;
}

#[tokio::test]
async fn strangers_and_removed_members_are_turned_away() {
    let (a, stranger) = (start(1, 9).await, start(2, 8).await);
    a.transport.add_peer(2, vec![stranger.url.clone()]);
    stranger.transport.add_peer(1, vec![a.url.clone()]);
    stranger
        .transport
        .send(vec![message(MessageType::MsgVote, 2, 1, 5)]);
    let node = Arc::clone(&stranger.node);
    until("a refusal", || node.unreachable.load(Ordering::Relaxed) > 0).await;
    assert!(a.transport.active_since(2).is_none());

    let removed = start(3, 9).await;
    a.node.removed.lock().insert(3);
    removed.transport.add_peer(1, vec![a.url.clone()]);
    let node = Arc::clone(&removed.node);
    until("the news", || node.was_removed.load(Ordering::Relaxed) > 0).await;
}

#[tokio::test]
async fn calls_are_answered() {
    let a = start(1, 9).await;
    let urls = ["http://127.0.0.1:1".to_owned(), a.url.clone()];
    let client = a.transport.client();
    assert_eq!(client.members(&urls).await, Ok((9, a.node.members())));
    assert_eq!(client.version(&urls).await, Some(Version::new(3, 7, 3)));
    assert_eq!(client.renew_lease(&urls, 7).await, Ok(60));
    assert_eq!(
        client.renew_lease(&urls, 8).await,
        Err(Error::LeaseNotFound)
    );
    let ask = |id| LeaseTimeToLiveRequest { id, keys: false };
    let left = client.lease_time_to_live(&urls, ask(7)).await.unwrap();
    assert_eq!((left.ttl, left.granted_ttl), (30, 60));
    assert!(left.header.is_some(), "etcd ends itself without one");
    let left = client.lease_time_to_live(&urls, ask(8)).await;
    assert_eq!(left, Err(Error::LeaseNotFound));
    assert_eq!(client.promote(&urls, 1, None).await, Ok(a.node.members()));
    assert_eq!(
        client.promote(&urls, 4, Some("a.1")).await,
        Ok(a.node.members())
    );
    assert_eq!(
        client.promote(&urls, 2, None).await,
        Err(Error::LearnerNotReady)
    );
    assert_eq!(
        client.promote(&urls, 3, None).await,
        Err(Error::MemberNotFound)
    );
    assert!(client.members(&urls[..1]).await.is_err());
}

#[tokio::test]
async fn members_are_added_from_any_thread() {
    let (a, mut b) = (start(1, 9).await, start(2, 9).await);
    let transport = Arc::clone(&a.transport);
    let url = b.url.clone();
    let added = std::thread::spawn(move || transport.add_peer(2, vec![url]));
    added.join().unwrap();
    a.transport
        .send(vec![message(MessageType::MsgVote, 1, 2, 5)]);
    assert!(timeout(LIMIT, b.stepped.recv()).await.unwrap().is_some());
}

fn snapshot_message() -> Message {
    let metadata = SnapshotMetadata {
        index: Some(40),
        term: Some(3),
        ..SnapshotMetadata::default()
    };
    Message {
        snapshot: Some(Snapshot {
            data: Some("{}".into()),
            metadata: Some(metadata),
        }),
        ..message(MessageType::MsgSnap, 1, 2, 0)
    }
}

#[tokio::test]
async fn a_snapshot_travels_with_its_database() {
    let (a, b) = pair().await;
    let pieces: Vec<Bytes> = (0..100u8).map(|n| vec![n; 70_000].into()).collect();
    *a.node.database.lock() = pieces.iter().cloned().map(Ok).collect();
    a.transport.send(vec![snapshot_message()]);
    let sender = Arc::clone(&a.node);
    until("a report", || !sender.sent.lock().is_empty()).await;
    assert_eq!(*a.node.sent.lock(), [(2, true)]);
    let received = b.node.received.lock().clone();
    assert_eq!(received, [(snapshot_message(), Ok(pieces.concat()))]);
}

#[tokio::test]
async fn a_snapshot_that_breaks_off_is_not_taken_for_a_whole_one() {
    let (a, b) = pair().await;
    // Enough that some of it is on its way before the end.
    let mut cut = vec![Ok(Bytes::from(vec![1; 70_000])); 100];
    cut.push(Err("the disk".to_owned()));
    *a.node.database.lock() = cut;
    a.transport.send(vec![snapshot_message()]);
    let sender = Arc::clone(&a.node);
    until("a report", || !sender.sent.lock().is_empty()).await;
    assert_eq!(*a.node.sent.lock(), [(2, false)]);
    let receiver = Arc::clone(&b.node);
    until("the other side's", || !receiver.received.lock().is_empty()).await;
    assert!(b.node.received.lock()[0].1.is_err());
}

#[tokio::test]
async fn what_is_no_snapshot_is_refused() {
    use axum::body::Body;
    let a = start(1, 9).await;
    let post = async |body: Vec<u8>| {
        let (status, text) = crate::snapshot::receive(&a.transport, Body::from(body)).await;
        (status.as_u16(), text)
    };
    let framed = |message: &Message| {
        let encoded = prost::Message::encode_to_vec(message);
        [&(encoded.len() as u64).to_be_bytes()[..], &encoded].concat()
    };
    assert_eq!(post(vec![0; 5]).await.0, 400);
    assert_eq!(post(vec![0xff; 64]).await.0, 400);
    assert_eq!(
        post([&[0; 7][..], &[3, 0xff, 0xff, 0xff]].concat()).await.0,
        400
    );
    let other = message(MessageType::MsgHeartbeat, 2, 1, 0);
    assert_eq!(post(framed(&other)).await.0, 405);
    assert!(a.node.received.lock().is_empty());
}

#[tokio::test]
async fn members_hash_their_keys_for_their_own_cluster() {
    let a = start(1, 9).await;
    let client = a.transport.client();
    let urls = ["http://127.0.0.1:1".to_owned(), a.url.clone()];
    let hash = client.hash_kv(9, &urls, 7, LIMIT).await.unwrap();
    assert_eq!((hash.current, hash.hash), (9, 77));
    assert_eq!((hash.compact_revision, hash.revision), (5, 7));
    let ask = async |cluster, revision| {
        let asked = client.hash_kv(cluster, &urls[1..], revision, LIMIT).await;
        asked.unwrap_err()
    };
    assert_eq!(ask(9, 4).await, HashError::Compacted);
    assert_eq!(ask(9, 10).await, HashError::FutureRevision);
    assert_eq!(ask(8, 7).await, HashError::ClusterMismatch);
    let nobody = client.hash_kv(9, &urls[..1], 7, LIMIT).await.unwrap_err();
    assert!(matches!(nobody, HashError::NoAnswer(_)), "{nobody}");
}
