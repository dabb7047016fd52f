//! What waits to be sent to one member on one stream: bounded by bytes, attached to a connection
//! whenever the other side opens one.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use proto::raftpb::Message;
use tokio::{
    sync::mpsc,
    time::{Interval, MissedTickBehavior, interval},
};

use crate::codec::Stream;

/// Bytes that may wait for one connection. Raft itself bounds what it sends ahead to a follower.
const WAITING_BYTES: usize = 64 << 20;
/// An idle stream is kept alive this often: etcd leaves one that is silent for five seconds.
const HEARTBEAT: Duration = Duration::from_millis(1600);

/// The sending end of a stream.
pub(crate) struct Outbound {
    stream: Stream,
    attached: Mutex<Option<Attached>>,
    sent_bytes: AtomicU64,
}

struct Attached {
    frames: mpsc::UnboundedSender<Bytes>,
    waiting: Arc<AtomicUsize>,
}

impl Outbound {
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            attached: Mutex::new(None),
            sent_bytes: AtomicU64::new(0),
        }
    }

    /// Attaches a connection; an older one ends.
    pub fn attach(&self) -> Frames {
        let (frames, receiver) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        *self.attached.lock() = Some(Attached {
            frames,
            waiting: Arc::clone(&waiting),
        });
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Frames {
            stream: self.stream,
            receiver,
            waiting,
            heartbeat,
        }
    }

    /// Ends the connection, if there is one.
    pub fn detach(&self) {
        *self.attached.lock() = None;
    }

    /// Bytes of messages that were sent.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Sends a message, if a connection is there and keeps up.
    pub fn send(&self, message: &Message) -> bool {
        let mut attached = self.attached.lock();
        let Some(connection) = &*attached else {
            return false;
        };
        if connection.waiting.load(Ordering::Relaxed) > WAITING_BYTES {
            return false;
        }
        let frame = self.stream.encode(message);
        connection.waiting.fetch_add(frame.len(), Ordering::Relaxed);
        let length = frame.len() as u64;
        let sent = connection.frames.send(frame).is_ok();
        if sent {
            self.sent_bytes.fetch_add(length, Ordering::Relaxed);
        } else {
            *attached = None;
        }
        sent
    }
}

/// The body of a stream's response: frames as they come, heartbeats in between.
pub(crate) struct Frames {
    stream: Stream,
    receiver: mpsc::UnboundedReceiver<Bytes>,
    waiting: Arc<AtomicUsize>,
    heartbeat: Interval,
}

impl tokio_stream::Stream for Frames {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.receiver.poll_recv(cx) {
            Poll::Ready(Some(frame)) => {
                self.waiting.fetch_sub(frame.len(), Ordering::Relaxed);
                self.heartbeat.reset();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => match self.heartbeat.poll_tick(cx) {
                Poll::Ready(_) => Poll::Ready(Some(Ok(self.stream.heartbeat()))),
                Poll::Pending => Poll::Pending,
            },
        }
    }
}
