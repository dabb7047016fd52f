//! The hub by etcd's rules, and against a model: every watcher sees exactly its events, in
//! order and once, however slowly its stream is read.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use mvcc::{EventKind, MemEngine, MemSnapshot, RevisionEvents, Store, View};
use prost::Message;
use proto::{
    etcdserverpb::{
        DeleteRangeRequest, PutRequest, WatchCreateRequest, WatchResponse,
        watch_create_request::FilterType,
    },
    mvccpb::{self, event::EventType},
};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{Hub, StreamId};

struct World {
    store: Store<MemEngine>,
    hub: Hub,
    events: Vec<RevisionEvents>,
}

impl World {
    fn new() -> Self {
        Self {
            store: Store::open(Arc::new(MemEngine::default())).unwrap(),
            hub: Hub::new(1, 1 << 20),
            events: Vec::new(),
        }
    }

    fn view(&self) -> View<MemSnapshot> {
        self.store.view()
    }

    fn put(&mut self, keys: &[&str], value: &[u8]) -> Vec<StreamId> {
        let mut writer = self.store.begin();
        for key in keys {
            let request = PutRequest {
                key: Bytes::copy_from_slice(key.as_bytes()),
                value: Bytes::copy_from_slice(value),
                ..PutRequest::default()
            };
            writer.put(&request).unwrap();
        }
        let committed = writer.commit().unwrap();
        self.events.extend(committed.events.clone());
        self.hub
            .publish(&committed.events, committed.view.revision())
    }

    fn delete(&mut self, key: &str) {
        let mut writer = self.store.begin();
        let request = DeleteRangeRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            ..DeleteRangeRequest::default()
        };
        writer.delete_range(&request).unwrap();
        let committed = writer.commit().unwrap();
        self.events.extend(committed.events.clone());
        self.hub
            .publish(&committed.events, committed.view.revision());
    }

    fn compact(&mut self, revision: i64) {
        let mut writer = self.store.begin();
        writer.compact(revision).unwrap();
        writer.commit().unwrap();
        while self.store.compaction_pending() {
            self.store.compaction_step().unwrap();
        }
    }

    fn catch_up(&mut self) {
        let view = self.view();
        while self.hub.is_behind() {
            self.hub.catch_up(&view, 64).unwrap();
        }
    }

    fn take(&mut self, stream: StreamId) -> Vec<WatchResponse> {
        let taken = self.hub.take(stream, usize::MAX).unwrap();
        let taken = taken.iter().map(Message::encode_to_vec);
        // As the client reads it.
        taken
            .map(|response| WatchResponse::decode(&response[..]).unwrap())
            .collect()
    }

    /// Responses in a short form.
    fn taken(&mut self, stream: StreamId) -> Vec<String> {
        self.take(stream).iter().map(outline).collect()
    }
}

fn outline(r: &WatchResponse) -> String {
    let mut text = format!("{}@{}", r.watch_id, r.header.as_ref().unwrap().revision);
    let flags = [
        (r.created, " created"),
        (r.canceled, " canceled"),
        (r.fragment, " fragment"),
    ];
    for (set, name) in flags {
        if set {
            text += name;
        }
    }
    if r.compact_revision != 0 {
        text += &format!(" compacted {}", r.compact_revision);
    }
    if !r.cancel_reason.is_empty() {
        text += &format!(" ({})", r.cancel_reason);
    }
    for event in &r.events {
        let kv = event.kv.as_ref().unwrap();
        let kind = if event.r#type == EventType::Put as i32 {
            '+'
        } else {
            '-'
        };
        let key = String::from_utf8_lossy(&kv.key);
        text += &format!(" {kind}{key}{}", kv.mod_revision);
        if let Some(prev) = &event.prev_kv {
            text += &format!("<{}", prev.mod_revision);
        }
    }
    text
}

fn watch(key: &str, end: &str) -> WatchCreateRequest {
    WatchCreateRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        range_end: Bytes::copy_from_slice(end.as_bytes()),
        ..WatchCreateRequest::default()
    }
}

fn from(start_revision: i64, request: WatchCreateRequest) -> WatchCreateRequest {
    WatchCreateRequest {
        start_revision,
        ..request
    }
}

#[test]
fn watchers_are_made_and_refused_as_etcd_does() {
    let mut world = World::new();
    let stream = world.hub.open_stream();
    let mut check = |request: WatchCreateRequest, expected: &str| {
        world.hub.create(stream, &request);
        assert_eq!(world.taken(stream), [expected]);
    };
    check(watch("a", ""), "0@1 created");
    check(watch("", ""), "1@1 created");
    check(
        watch("b", "a"),
        "-1@1 created canceled (mvcc: watcher range is empty)",
    );
    check(
        from(-1, watch("a", "")),
        "-1@1 created canceled (etcdserver: mvcc: required revision has been compacted)",
    );
    let seven = WatchCreateRequest {
        watch_id: 7,
        ..watch("a", "")
    };
    check(seven.clone(), "7@1 created");
    check(
        seven,
        "-1@1 created canceled (mvcc: duplicate watch ID provided on the WatchStream)",
    );
    check(watch("a", "\0"), "2@1 created");
    world.hub.cancel(stream, 7);
    world.hub.cancel(stream, 7);
    assert_eq!(world.taken(stream), ["7@1 canceled"]);
}

#[test]
fn events_come_to_those_who_want_them() {
    let mut world = World::new();
    let stream = world.hub.open_stream();
    let filtered = |kind: FilterType| WatchCreateRequest {
        filters: vec![kind as i32],
        ..watch("a", "")
    };
    let requests = [
        watch("a", ""),
        watch("a", "c"),
        watch("b", "\0"),
        filtered(FilterType::Noput),
        filtered(FilterType::Nodelete),
        WatchCreateRequest {
            prev_kv: true,
            ..watch("a", "")
        },
        from(4, watch("a", "")),
    ];
    for request in requests {
        world.hub.create(stream, &request);
    }
    world.take(stream);
    assert_eq!(world.put(&["a"], b"1"), [stream]);
    world.put(&["b", "c", "a"], b"2");
    world.delete("a");
    let mut taken = world.taken(stream);
    taken.sort();
    assert_eq!(
        taken,
        [
            "0@2 +a2",
            "0@5 +a5",
            "0@6 -a6",
            "1@2 +a2",
            "1@5 +b3 +a5",
            "1@6 -a6",
            "2@5 +b3 +c4",
            "3@6 -a6",
            "4@2 +a2",
            "4@5 +a5",
            "5@2 +a2",
            "5@5 +a5<2",
            "5@6 -a6<5",
            "6@5 +a5",
            "6@6 -a6",
        ]
    );
}

#[test]
fn the_past_is_caught_up_with_and_the_compacted_past_is_not() {
    let mut world = World::new();
    let stream = world.hub.open_stream();
    for value in [b"1", b"2", b"3", b"4"] {
        world.put(&["a"], value);
    }
    world.hub.create(stream, &from(3, watch("a", "")));
    world.hub.create(stream, &from(1, watch("x", "")));
    world.hub.request_progress(stream);
    world.catch_up();
    world.hub.request_progress(stream);
    world.put(&["a"], b"5");
    let taken = world.taken(stream);
    assert_eq!(taken[..2], ["0@5 created", "1@5 created"]);
    assert_eq!(taken[taken.len() - 2..], ["-1@5", "0@6 +a6"]);
    world.compact(5);
    world.hub.create(stream, &from(5, watch("a", "")));
    world.hub.create(stream, &from(4, watch("a", "")));
    world.catch_up();
    let mut taken = world.taken(stream);
    taken.sort();
    assert_eq!(
        taken,
        [
            "2@6 +a5 +a6",
            "2@6 created",
            "3@0 canceled compacted 5",
            "3@6 created"
        ]
    );
    assert_eq!(world.hub.gauges().watchers, 3);
    world.hub.close_stream(stream);
    assert_eq!(world.hub.gauges().watchers, 0);
}

#[test]
fn what_a_replaced_store_went_past_is_read_from_history() {
    let mut world = World::new();
    let stream = world.hub.open_stream();
    world.put(&["a"], b"1");
    for request in [
        watch("a", ""),
        watch("b", ""),
        from(6, watch("a", "")),
        from(90, watch("a", "")),
        from(2, watch("a", "")),
    ] {
        world.hub.create(stream, &request);
    }
    world.taken(stream);
    // What another member applied.
    let apart = Hub::new(1, 1 << 20);
    let hub = std::mem::replace(&mut world.hub, apart);
    world.put(&["a", "x", "a", "a"], b"2");
    world.hub = hub;
    world.hub.replaced(6);
    assert!(world.hub.is_behind());
    world.hub.request_progress(stream);
    assert!(world.taken(stream).is_empty(), "progress overtook events");
    world.catch_up();
    world.hub.replaced(6);
    assert!(!world.hub.is_behind());
    world.put(&["a"], b"3");
    let mut taken = world.taken(stream);
    taken.sort();
    assert_eq!(
        taken,
        [
            "0@6 +a3 +a5",
            "0@6 +a6",
            "0@7 +a7",
            "2@6 +a6",
            "2@7 +a7",
            "4@6 +a2 +a3 +a5",
            "4@6 +a6",
            "4@7 +a7"
        ]
    );

    let hub = std::mem::replace(&mut world.hub, Hub::new(1, 1 << 20));
    world.put(&["a", "a", "a"], b"4");
    world.compact(9);
    world.hub = hub;
    world.hub.replaced(10);
    world.catch_up();
    let mut taken = world.taken(stream);
    taken.sort();
    let gone = [0, 1, 2, 4].map(|id| format!("{id}@0 canceled compacted 9"));
    assert_eq!(taken, gone);
}

#[test]
fn progress_is_told_to_who_asked_and_had_nothing_else() {
    let mut world = World::new();
    let stream = world.hub.open_stream();
    world.hub.create(
        stream,
        &WatchCreateRequest {
            progress_notify: true,
            ..watch("a", "")
        },
    );
    world.hub.create(stream, &from(9, watch("b", "")));
    world.take(stream);
    assert_eq!(world.hub.progress_tick(), [stream]);
    assert_eq!(world.taken(stream), ["0@1"]);
    world.put(&["a"], b"1");
    assert!(world.hub.progress_tick().is_empty());
    assert_eq!(world.hub.progress_tick(), [stream]);
    assert_eq!(world.taken(stream), ["0@2 +a2", "0@2"]);
    // A watcher of the future holds the progress of the whole stream back.
    world.hub.request_progress(stream);
    assert!(world.taken(stream).is_empty());
    world.hub.cancel(stream, 1);
    world.hub.request_progress(stream);
    assert_eq!(world.taken(stream), ["1@2 canceled", "-1@2"]);
}

#[test]
fn large_responses_are_cut_for_who_asks_so() {
    let mut world = World::new();
    world.hub = Hub::new(1, 3000);
    let stream = world.hub.open_stream();
    world.hub.create(
        stream,
        &WatchCreateRequest {
            fragment: true,
            ..watch("", "\0")
        },
    );
    world.take(stream);
    world.put(&["a", "b", "c", "d", "e"], &[7; 1000]);
    let taken = world.taken(stream);
    assert_eq!(
        taken,
        ["0@6 fragment +a2 +b3", "0@6 fragment +c4 +d5", "0@6 +e6"]
    );
}

#[test]
fn every_watcher_sees_its_events_once_and_in_order() {
    let mut fell_behind = 0;
    for seed in 0..30 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World::new();
        let streams: Vec<StreamId> = (0..4).map(|_| world.hub.open_stream()).collect();
        let mut wanted: HashMap<(StreamId, i64), (WatchCreateRequest, i64)> = HashMap::new();
        let mut seen: HashMap<(StreamId, i64), Vec<mvccpb::Event>> = HashMap::new();
        let collect = |world: &mut World, stream: StreamId, seen: &mut HashMap<_, Vec<_>>| {
            for response in world.take(stream) {
                let revision = response.header.as_ref().unwrap().revision;
                for event in response.events {
                    assert!(event.kv.as_ref().unwrap().mod_revision <= revision);
                    let of = seen.entry((stream, response.watch_id)).or_default();
                    of.push(event);
                }
            }
        };
        for step in 0..300 {
            let stream = streams[rng.random_range(0..streams.len())];
            match rng.random_range(0..10) {
                0 if wanted.len() < 30 => {
                    let revision = world.view().revision();
                    let start = rng.random_range(0..revision + 5);
                    let id = step + 1;
                    let key = format!("k{}", rng.random_range(0..5));
                    let end = ["", "\0", "k9"][rng.random_range(0..3)];
                    let filters = [FilterType::Noput, FilterType::Nodelete];
                    let request = WatchCreateRequest {
                        watch_id: id,
                        prev_kv: rng.random(),
                        filters: filters
                            .iter()
                            .filter(|_| rng.random_bool(0.2))
                            .map(|filter| *filter as i32)
                            .collect(),
                        fragment: rng.random(),
                        ..from(start, watch(&key, end))
                    };
                    world.hub.create(stream, &request);
                    let start = if start == 0 { revision + 1 } else { start };
                    wanted.insert((stream, id), (request, start));
                }
                1 | 2 => collect(&mut world, stream, &mut seen),
                3 => {
                    let view = world.view();
                    world.hub.catch_up(&view, 3000).unwrap();
                }
                4 => world.delete(&format!("k{}", rng.random_range(0..7))),
                _ => {
                    let keys: Vec<String> = (0..rng.random_range(1..4))
                        .map(|k| format!("k{}", (k * 3) % 7))
                        .collect();
                    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                    // Large enough that unread streams fill up.
                    let slow = world.hub.gauges().slow_watchers;
                    world.put(&keys, &vec![1; 150 << 10]);
                    fell_behind += world.hub.gauges().slow_watchers - slow;
                }
            }
        }
        loop {
            for stream in &streams {
                collect(&mut world, *stream, &mut seen);
            }
            if !world.hub.is_behind() {
                break;
            }
            let view = world.view();
            world.hub.catch_up(&view, 1 << 20).unwrap();
        }
        for (watcher, (request, start)) in wanted {
            let keys = crate::watcher::Keys::of(&request).unwrap();
            let mut expected = Vec::new();
            for of in world.events.iter().filter(|of| of.revision >= start) {
                for event in of.events.iter().filter(|event| keys.contain(&event.key)) {
                    let (kind, filter) = match event.kind {
                        EventKind::Put { .. } => (EventType::Put, FilterType::Noput),
                        EventKind::Delete => (EventType::Delete, FilterType::Nodelete),
                    };
                    if request.filters.contains(&(filter as i32)) {
                        continue;
                    }
                    let decode = |kv: &Bytes| mvccpb::KeyValue::decode(&kv[..]).unwrap();
                    expected.push(mvccpb::Event {
                        r#type: kind as i32,
                        kv: Some(decode(&event.kv)),
                        prev_kv: event.prev.as_ref().filter(|_| request.prev_kv).map(decode),
                    });
                }
            }
            let seen = seen.remove(&watcher).unwrap_or_default();
            // Not assert_eq: values are long.
            assert!(
                seen == expected,
                "seed {seed} watcher {watcher:?} {request:?}: {} events, not {}",
                seen.len(),
                expected.len()
            );
        }
    }
    assert!(fell_behind > 0, "streams never filled up");
}

#[test]
fn an_unread_stream_holds_a_bounded_amount() {
    let mut world = World::new();
    let stream = world.hub.open_stream();
    world.hub.create(stream, &watch("", "\0"));
    for _ in 0..100 {
        world.put(&["a"], &vec![1; 1 << 20]);
    }
    assert!(world.hub.gauges().pending_events < 10);
    assert_eq!(world.hub.gauges().slow_watchers, 1);
    assert!(!world.hub.is_behind());
    world.take(stream);
    assert!(world.hub.is_behind());
    for _ in 0..200_000 {
        world.hub.cancel(stream, 5);
        world.hub.create(stream, &from(-1, watch("a", "")));
    }
    assert!(world.hub.take(stream, 1).is_none());
}
