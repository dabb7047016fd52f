//! A snapshot on its way: one POST whose body is the message and then the database, of any length,
//! as etcd sends and takes it.

use std::{
    io::{self, ErrorKind},
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use bytes::{Buf, Bytes, BytesMut};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use prost::Message as _;
use proto::raftpb::{Message, MessageType};
use tokio::time::{interval, timeout};
use tokio_stream::{Stream, StreamExt};
use tracing::{info, warn};

use crate::{SnapshotBody, Transport, client::RequestBody, transport::Peer};

/// The longest message before a database: the members are in it, and nothing that grows with keys.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// A snapshot that gets no further for so long is given up.
const STANDSTILL: Duration = Duration::from_secs(30);
/// How long the other side may take to make a whole one durable.
const ANSWER: Duration = Duration::from_secs(120);
/// The length of the message stands before it.
const LENGTH_BYTES: usize = 8;

/// Sends a snapshot to a member and tells raft how it ended.
pub(crate) async fn send(transport: Arc<Transport>, peer: Weak<Peer>, message: Message) {
    let to = message.to.unwrap_or_default();
    let index = snapshot_index(&message);
    let Some(peer) = peer.upgrade() else {
        return;
    };
    let sent = send_to(&transport, &peer, message).await;
    match &sent {
        Ok(bytes) => info!(peer = %format_args!("{to:x}"), index, bytes, "sent a snapshot"),
        Err(error) => {
            warn!(peer = %format_args!("{to:x}"), index, %error, "could not send a snapshot");
        }
    }
    transport.handler.report_snapshot(to, sent.is_ok());
}

/// The entry that a snapshot message stands for; 0 when it does not say.
pub fn snapshot_index(message: &Message) -> u64 {
    let snapshot = message.snapshot.as_ref();
    let metadata = snapshot.and_then(|snapshot| snapshot.metadata.as_ref());
    metadata
        .and_then(|metadata| metadata.index)
        .unwrap_or_default()
}

async fn send_to(transport: &Transport, peer: &Peer, message: Message) -> Result<u64, String> {
    let database = transport.handler.open_snapshot(&message).await?;
    let mut head = BytesMut::new();
    let length = message.encoded_len() as u64;
    head.extend_from_slice(&length.to_be_bytes());
    message
        .encode(&mut head)
        .map_err(|error| error.to_string())?;
    let head = tokio_stream::once(Ok(head.freeze()));
    let sent = Arc::new(AtomicU64::new(0));
    let counted = Counted {
        inner: Box::pin(head.chain(database)),
        sent: Arc::clone(&sent),
    };
    let body: RequestBody = StreamBody::new(counted).boxed_unsync();
    let url = peer.urls.lock().first().cloned().unwrap_or_default();
    let url = format!("{url}/raft/snapshot");
    let request = transport.request(Method::POST, &url, peer.id, body)?;
    let answer = transport.client().send_patiently(request);
    let answer = watch(answer, &sent).await?;
    match answer.status() {
        StatusCode::NO_CONTENT => Ok(sent.load(Relaxed) & !ENDED),
        status => Err(format!("it answers {status}")),
    }
}

/// Marks a count as the last one.
const ENDED: u64 = 1 << 63;

/// Waits for an answer for as long as what is sent gets on.
async fn watch<T>(
    answer: impl Future<Output = Result<T, String>>,
    sent: &AtomicU64,
) -> Result<T, String> {
    tokio::pin!(answer);
    let mut looks = interval(Duration::from_secs(1));
    let mut last = (0, tokio::time::Instant::now());
    loop {
        tokio::select! {
            answer = &mut answer => return answer,
            _ = looks.tick() => {}
        }
        let now = sent.load(Relaxed);
        if now != last.0 {
            last = (now, tokio::time::Instant::now());
        }
        let limit = if now & ENDED == 0 { STANDSTILL } else { ANSWER };
        if last.1.elapsed() > limit {
            return Err(format!("it stands still after {} bytes", now & !ENDED));
        }
    }
}

/// Counts what goes through, so that a standstill is noticed.
struct Counted {
    inner: SnapshotBody,
    sent: Arc<AtomicU64>,
}

impl Stream for Counted {
    type Item = io::Result<Frame<Bytes>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match ready!(self.inner.as_mut().poll_next(cx)) {
            Some(Ok(bytes)) => {
                self.sent.fetch_add(bytes.len() as u64, Relaxed);
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => {
                self.sent.fetch_or(ENDED, Relaxed);
                Poll::Ready(None)
            }
        }
    }
}

/// Takes a snapshot from a member.
pub(crate) async fn receive(transport: &Transport, body: Body) -> (StatusCode, String) {
    let mut chunks = body.into_data_stream();
    let (message, rest) = match head(&mut chunks).await {
        Ok(head) => head,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")),
    };
    if message.r#type != Some(MessageType::MsgSnap as i32) {
        let text = "this is no snapshot message\n".to_owned();
        return (StatusCode::METHOD_NOT_ALLOWED, text);
    }
    let from = message.from.unwrap_or_default();
    let index = snapshot_index(&message);
    info!(peer = %format_args!("{from:x}"), index, "receiving a snapshot");
    let rest = tokio_stream::once(Ok(rest));
    let chunks = chunks.timeout(STANDSTILL).map(|chunk| match chunk {
        Ok(chunk) => chunk.map_err(io::Error::other),
        Err(_) => Err(io::Error::new(
            ErrorKind::TimedOut,
            "the snapshot stands still",
        )),
    });
    let body: SnapshotBody = Box::pin(rest.chain(chunks));
    let handler = Arc::clone(&transport.handler);
    // In a task of its own: this one is dropped when the sender goes, and would leave things undone.
    let taken = tokio::spawn(async move { handler.receive_snapshot(message, body).await });
    let taken = taken.await.unwrap_or_else(|error| Err(error.to_string()));
    match taken {
        Ok(()) => (StatusCode::NO_CONTENT, String::new()),
        Err(error) => {
            warn!(peer = %format_args!("{from:x}"), index, %error, "could not take a snapshot");
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))
        }
    }
}

/// The message, and the first bytes of the database.
async fn head<S, E>(chunks: &mut S) -> Result<(Message, Bytes), String>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::fmt::Display,
{
    let mut read = BytesMut::new();
    let mut wanted = LENGTH_BYTES;
    let mut length = None;
    loop {
        while read.len() < wanted {
            let chunk = timeout(STANDSTILL, chunks.next()).await;
            let chunk = chunk.map_err(|_| "the snapshot's message does not come".to_owned())?;
            let chunk = chunk.ok_or("the snapshot ends before its message does")?;
            read.extend_from_slice(&chunk.map_err(|error| error.to_string())?);
        }
        match length {
            None => {
                let bytes = usize::try_from(read.get_u64()).unwrap_or(usize::MAX);
                if bytes > MAX_MESSAGE_BYTES {
                    return Err(format!("a snapshot's message of {bytes} bytes"));
                }
                length = Some(bytes);
                wanted = bytes;
            }
            Some(bytes) => {
                let message = Message::decode(read.split_to(bytes).freeze());
                let message = message.map_err(|error| format!("no message: {error}"))?;
                return Ok((message, read.freeze()));
            }
        }
    }
}
