//! Two members on loopback.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use proto::{
    etcdserverpb::{LeaseTimeToLiveRequest, LeaseTimeToLiveResponse},
    raftpb::{Entry, Message, MessageType},
};
use state::{Error, Member, Version};
use tls::Tls;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle, time::timeout};

use crate::{Answer, Client, Config, Handler, Transport, router};

const LIMIT: Duration = Duration::from_secs(10);

struct Node {
    stepped: mpsc::UnboundedSender<Message>,
    unreachable: AtomicUsize,
    was_removed: AtomicUsize,
    removed: Mutex<HashSet<u64>>,
}

impl Handler for Node {
    fn step(&self, message: Message) -> Answer<'_, ()> {
        self.stepped.send(message).unwrap();
        Box::pin(async {})
    }

    fn report_unreachable(&self, _id: u64) {
        self.unreachable.fetch_add(1, Ordering::Relaxed);
    }

    fn report_snapshot(&self, _id: u64, _ok: bool) {}

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

    fn promote(&self, id: u64) -> Answer<'_, Result<Vec<Member>, Error>> {
        Box::pin(async move {
            match id {
                1 => Ok(self.members()),
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
    assert_eq!(client.promote(&urls, 1).await, Ok(a.node.members()));
    assert_eq!(client.promote(&urls, 2).await, Err(Error::LearnerNotReady));
    assert_eq!(client.promote(&urls, 3).await, Err(Error::MemberNotFound));
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
