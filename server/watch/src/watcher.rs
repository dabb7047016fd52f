//! One watcher: what it wants, and up to where it has it.

use bytes::Bytes;
use mvcc::EventKind;
use prost::Message;
use proto::{
    etcdserverpb::{WatchCreateRequest, watch_create_request::FilterType},
    mvccpb,
};

use crate::hub::StreamId;

/// Names a watcher in the hub; never used twice.
pub(crate) type WatcherKey = u64;

/// What a watcher watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    One(Bytes),
    /// Up to `upper`; to the end without.
    Range {
        lower: Bytes,
        upper: Option<Bytes>,
    },
}

#[derive(Debug)]
pub(crate) struct Watcher {
    pub stream: StreamId,
    pub id: i64,
    pub keys: Keys,
    pub prev_kv: bool,
    pub progress_notify: bool,
    pub fragment: bool,
    pub no_put: bool,
    pub no_delete: bool,
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

impl Watcher {
    pub fn new(stream: StreamId, id: i64, keys: Keys, r: &WatchCreateRequest) -> Self {
        let filters = |kind: FilterType| r.filters.contains(&(kind as i32));
        Self {
            stream,
            id,
            keys,
            prev_kv: r.prev_kv,
            progress_notify: r.progress_notify,
            fragment: r.fragment,
            no_put: filters(FilterType::Noput),
            no_delete: filters(FilterType::Nodelete),
            next: 0,
            synced: true,
            quiet: true,
        }
    }

    /// The event as this watcher is sent it; `None` when it filters it out.
    pub fn event(&self, event: &mvcc::Event) -> Option<mvccpb::Event> {
        let (kind, filtered) = match event.kind {
            EventKind::Put { .. } => (mvccpb::event::EventType::Put, self.no_put),
            EventKind::Delete => (mvccpb::event::EventType::Delete, self.no_delete),
        };
        if filtered {
            return None;
        }
        // The store encoded these; decoding shares their bytes.
        let decode = |kv: &Bytes| mvccpb::KeyValue::decode(kv.clone()).ok();
        Some(mvccpb::Event {
            r#type: kind as i32,
            kv: decode(&event.kv),
            prev_kv: match self.prev_kv {
                true => event.prev.as_ref().and_then(decode),
                false => None,
            },
        })
    }
}
