//! The watch hub with its lock, and the tasks that wait for its streams.

use std::{collections::HashMap, sync::Arc};

use mvcc::RevisionEvents;
use parking_lot::Mutex;
use proto::{etcdserverpb::WatchCreateRequest, framed::WatchResponse};
use tokio::sync::Notify;
use watch::{Gauges, History, Hub, StreamId};

use super::shared::Shared;

/// Bytes of responses that a stream takes from the hub at once.
const TAKE_BYTES: usize = 256 << 10;
/// Bytes of history that are read while the hub is locked.
const CATCH_UP_BYTES: usize = 256 << 10;

/// The hub, and who waits for what.
pub(crate) struct Watches {
    hub: Mutex<Locked>,
    /// Wakes the task that reads history for watchers that are behind.
    behind: Notify,
}

struct Locked {
    hub: Hub,
    streams: HashMap<StreamId, Arc<Notify>>,
}

impl Locked {
    fn wake(&self, streams: Vec<StreamId>) {
        for stream in streams {
            if let Some(notify) = self.streams.get(&stream) {
                notify.notify_one();
            }
        }
    }
}

impl Watches {
    pub fn new(revision: i64, fragment_bytes: usize) -> Self {
        Self {
            hub: Mutex::new(Locked {
                hub: Hub::new(revision, fragment_bytes),
                streams: HashMap::new(),
            }),
            behind: Notify::new(),
        }
    }

    /// Tells watchers of a batch.
    pub fn publish(&self, events: &[RevisionEvents], revision: i64) {
        let mut locked = self.hub.lock();
        let wake = locked.hub.publish(events, revision);
        locked.wake(wake);
    }

    /// Has watchers read what they missed when another state took the place of this one.
    pub fn replaced(&self, revision: i64) {
        let mut locked = self.hub.lock();
        locked.hub.replaced(revision);
        self.kick_if_behind(&locked);
    }

    /// Tells watchers that asked for it how far they are.
    pub fn progress_tick(&self) {
        let mut locked = self.hub.lock();
        let wake = locked.hub.progress_tick();
        locked.wake(wake);
    }

    /// Waits until a watcher is behind.
    pub async fn wait_behind(&self) {
        self.behind.notified().await;
    }

    /// Reads history for those who are behind, until nobody is who could take more.
    pub fn catch_up(&self, history: impl Fn() -> Box<dyn History>) -> Result<(), mvcc::Error> {
        loop {
            let view = history();
            let mut locked = self.hub.lock();
            if !locked.hub.is_behind() {
                return Ok(());
            }
            let wake = locked.hub.catch_up(&*view, CATCH_UP_BYTES)?;
            locked.wake(wake);
        }
    }

    pub fn gauges(&self) -> Gauges {
        self.hub.lock().hub.gauges()
    }

    fn kick_if_behind(&self, locked: &Locked) {
        if locked.hub.is_behind() {
            self.behind.notify_one();
        }
    }
}

/// One client's stream.
pub(crate) struct Handle {
    shared: Arc<Shared>,
    stream: StreamId,
    notify: Arc<Notify>,
}

impl Handle {
    pub fn open(shared: &Arc<Shared>) -> Self {
        let notify = Arc::new(Notify::new());
        let mut locked = shared.watches.hub.lock();
        let stream = locked.hub.open_stream();
        locked.streams.insert(stream, Arc::clone(&notify));
        drop(locked);
        Self {
            shared: Arc::clone(shared),
            stream,
            notify,
        }
    }

    fn with_hub(&self, act: impl FnOnce(&mut Hub)) {
        let watches = &self.shared.watches;
        let mut locked = watches.hub.lock();
        act(&mut locked.hub);
        watches.kick_if_behind(&locked);
        drop(locked);
        self.notify.notify_one();
    }

    /// Takes what waits; `None` when the stream is cut off.
    fn take(&mut self) -> Option<Vec<WatchResponse>> {
        let watches = &self.shared.watches;
        let mut locked = watches.hub.lock();
        let taken = locked.hub.take(self.stream, TAKE_BYTES)?;
        // A stream that was full may have room for its watchers again.
        watches.kick_if_behind(&locked);
        Some(taken)
    }
}

impl api::backend::WatchHandle for Handle {
    fn create(&mut self, r: WatchCreateRequest) {
        self.with_hub(|hub| hub.create(self.stream, &r));
    }

    fn refuse(&mut self, reason: &str) {
        self.with_hub(|hub| hub.refuse(self.stream, reason));
    }

    fn cancel(&mut self, watch_id: i64) {
        self.with_hub(|hub| hub.cancel(self.stream, watch_id));
    }

    fn progress(&mut self) {
        self.with_hub(|hub| hub.request_progress(self.stream));
    }

    async fn next(&mut self) -> Option<Vec<WatchResponse>> {
        loop {
            let taken = self.take()?;
            if !taken.is_empty() {
                return Some(taken);
            }
            self.notify.notified().await;
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut locked = self.shared.watches.hub.lock();
        locked.hub.close_stream(self.stream);
        locked.streams.remove(&self.stream);
    }
}
