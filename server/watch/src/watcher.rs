//! One watcher: what it wants, and up to where it has it.

use std::sync::Arc;

use bytes::Bytes;
use mvcc::EventKind;
use proto::{
    etcdserverpb::{WatchCreateRequest, watch_create_request::FilterType},
    framed::{self, Events, GatherEvents},
    mvccpb::event::EventType,
};

use crate::hub::StreamId;

/// Names a watcher in the hub; never used twice.
pub(crate) type WatcherKey = u64;

/// The keys that a watcher watches.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Keys {
    One(Bytes),
    /// Up to `upper`; to the end without.
    Range {
        lower: Bytes,
        upper: Option<Bytes>,
    },
}

/// What a watcher is sent. Watchers of equal interest are sent the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Interest {
    pub keys: Keys,
    prev_kv: bool,
    no_put: bool,
    no_delete: bool,
}

#[derive(Debug)]
pub(crate) struct Watcher {
    pub stream: StreamId,
    pub id: i64,
    pub interest: Arc<Interest>,
    pub progress_notify: bool,
    pub fragment: bool,
    /// Every wanted event before this revision has been queued.
    pub next: i64,
    /// Whether it gets events as they are published. Otherwise it reads history.
    pub synced: bool,
    /// Whether it got no event since the last progress tick.
    pub quiet: bool,
}

impl Keys {
    /// As the request gives them; `None` for an empty range.
    pub fn of(request: &WatchCreateRequest) -> Option<Self> {
        // The smallest key stands for no key.
        let lower = match request.key.is_empty() {
            true => Bytes::from_static(&[0]),
            false => request.key.clone(),
        };
        match &request.range_end[..] {
            [] => Some(Self::One(lower)),
            [0] => Some(Self::Range { lower, upper: None }),
            upper if lower[..] >= *upper => None,
            _ => Some(Self::Range {
                lower,
                upper: Some(request.range_end.clone()),
            }),
        }
    }

    pub fn contain(&self, key: &Bytes) -> bool {
        match self {
            Self::One(one) => one == key,
            Self::Range { lower, upper } => {
                key >= lower && upper.as_ref().is_none_or(|upper| key < upper)
            }
        }
    }
}

impl Interest {
    pub fn new(keys: Keys, r: &WatchCreateRequest) -> Self {
        let filters = |kind: FilterType| r.filters.contains(&(kind as i32));
        Self {
            keys,
            prev_kv: r.prev_kv,
            no_put: filters(FilterType::Noput),
            no_delete: filters(FilterType::Nodelete),
        }
    }

    /// Whether it is no kind of event that the request filters out.
    pub fn wants_kind(&self, event: &mvcc::Event) -> bool {
        match event.kind {
            EventKind::Put { .. } => !self.no_put,
            EventKind::Delete => !self.no_delete,
        }
    }

    /// Events in the form in which they are sent.
    pub fn encode(&self, events: &[&mvcc::Event]) -> Events {
        let mut gather = GatherEvents::default();
        gather.reserve(events.iter().map(|event| self.event_bytes(event)).sum());
        for event in events {
            gather.push_event(kind(event), &event.kv, self.prev(event));
        }
        gather.done()
    }

    /// What an event takes in that form.
    pub fn event_bytes(&self, event: &mvcc::Event) -> usize {
        framed::event_bytes(kind(event), &event.kv, self.prev(event))
    }

    fn prev<'a>(&self, event: &'a mvcc::Event) -> Option<&'a [u8]> {
        event.prev.as_deref().filter(|_| self.prev_kv)
    }
}

fn kind(event: &mvcc::Event) -> EventType {
    match event.kind {
        EventKind::Put { .. } => EventType::Put,
        EventKind::Delete => EventType::Delete,
    }
}

impl Watcher {
    pub fn new(stream: StreamId, id: i64, keys: Keys, r: &WatchCreateRequest) -> Self {
        Self {
            stream,
            id,
            interest: Arc::new(Interest::new(keys, r)),
            progress_notify: r.progress_notify,
            fragment: r.fragment,
            next: 0,
            synced: true,
            quiet: true,
        }
    }
}
