//! Clients that read and write whatever the dice say.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use history::{Compare, Comparison, KeyRange, Outcome, Request, Target, Txn, TxnOp};
use proto::etcdserverpb::{DefragmentRequest, maintenance_client::MaintenanceClient};
use rand::{Rng, rngs::StdRng};

use super::{CALL, KEPT, Shared, rest};

/// The time to live of leases that are left to end by themselves; the least that members grant with
/// their default election timeout.
pub(super) const SHORT_TTL: Duration = Duration::from_secs(2);
/// How often the past is forgotten.
const COMPACTION: Duration = Duration::from_millis(700);

/// How long a client rests whose member failed it.
const FAILED: Duration = Duration::from_millis(40);

/// One client. It stays at its member until that one fails it.
pub(super) async fn client(shared: Arc<Shared>, client: u64) {
    let mut rng = shared.rng(client);
    let mut number = 0;
    let mut at = None;
    while !shared.is_over() {
        number += 1;
        let same = at.take().and_then(|target| shared.targets.again(&target));
        let target = same.unwrap_or_else(|| shared.targets.pick(&mut rng));
        let mut dice = Dice {
            shared: &shared,
            rng: &mut rng,
            name: format!("{client}/{number}"),
        };
        let outcome = if dice.rng.random_ratio(1, 60) {
            let id = shared.next_lease.fetch_add(1, Ordering::Relaxed);
            let ttl = u64::try_from(SHORT_TTL.as_nanos()).expect("seconds");
            let put = Request::Put {
                // A key of its own, or another client would take it off the lease.
                key: format!("b-short-{id}").into(),
                value: dice.value(),
                lease: id,
                prev_kv: true,
            };
            let grant = Request::LeaseGrant { id, ttl };
            match shared.ask(client, &target, grant).await {
                Outcome::Done(_) => shared.ask(client, &target, put).await,
                failed => failed,
            }
        } else {
            let request = dice.request();
            shared.ask(client, &target, request).await
        };
        match outcome {
            Outcome::Unknown => tokio::time::sleep(FAILED).await,
            _ => at = Some(target),
        }
        rest(&mut rng, shared.options.rest).await;
    }
}

/// Forgets what all witnesses have seen, but for the newest part, and defragments members.
pub(super) async fn housekeeper(shared: Arc<Shared>, client: u64) {
    let mut rng = shared.rng(client);
    let mut compacted = 0;
    while !shared.is_over() {
        rest(&mut rng, COMPACTION * 2).await;
        let target = shared.targets.pick(&mut rng);
        let revision = shared.witnessed() - KEPT;
        if revision > compacted {
            compacted = revision;
            let compact = Request::Compact { revision };
            shared.ask(client, &target, compact).await;
        }
        if rng.random() {
            let mut client = MaintenanceClient::new(target.channel);
            // What becomes of it shows in what is read later.
            let defragment = client.defragment(DefragmentRequest {});
            let _ = tokio::time::timeout(CALL, defragment).await;
        }
    }
}

struct Dice<'a> {
    shared: &'a Shared,
    rng: &'a mut StdRng,
    /// Makes values unique.
    name: String,
}

impl Dice<'_> {
    fn key(&mut self) -> Bytes {
        let key = self.rng.random_range(0..self.shared.options.keys);
        // Watchers look at the keys that begin with one letter.
        format!("{}{key:03}", ["a", "b", "c"][key % 3]).into()
    }

    fn value(&mut self) -> Bytes {
        let filling = self.rng.random_range(0..=self.shared.options.value_bytes);
        format!("{}{}", self.name, "-".repeat(filling)).into()
    }

    fn keys(&mut self) -> KeyRange {
        match self.rng.random_range(0..4) {
            0 => KeyRange::all(),
            1 => KeyRange {
                key: self.key(),
                end: Bytes::from_static(b"b999"),
            },
            _ => KeyRange::one(self.key()),
        }
    }

    /// A revision of the recent past, or 0.
    fn revision(&mut self) -> i64 {
        let newest = self.shared.witnessed();
        match self.rng.random_ratio(1, 5) {
            true => (newest - self.rng.random_range(0..KEPT)).max(0),
            false => 0,
        }
    }

    fn request(&mut self) -> Request {
        match self.rng.random_range(0..100) {
            0..35 => Request::Put {
                key: self.key(),
                value: self.value(),
                lease: 0,
                prev_kv: self.rng.random(),
            },
            35..42 => Request::Delete {
                keys: match self.rng.random_ratio(1, 8)
                    && !self.shared.spares.load(Ordering::Relaxed)
                {
                    true => self.keys(),
                    false => KeyRange::one(self.key()),
                },
                prev_kv: self.rng.random(),
            },
            42..60 => Request::Txn(self.txn()),
            60..85 => Request::Range {
                keys: self.keys(),
                limit: [0, 0, 3][self.rng.random_range(0..3)],
                revision: self.revision(),
                serializable: false,
                count_only: self.rng.random_ratio(1, 6),
            },
            _ => Request::Range {
                keys: self.keys(),
                limit: 0,
                revision: 0,
                serializable: true,
                count_only: false,
            },
        }
    }

    fn txn(&mut self) -> Txn {
        let keys = KeyRange::one(self.key());
        let target = match self.rng.random_range(0..3) {
            0 => Target::Version(self.rng.random_range(0..4)),
            1 => Target::ModRevision(self.shared.witnessed()),
            _ => Target::CreateRevision(0),
        };
        let comparison = [Comparison::Equal, Comparison::Greater, Comparison::NotEqual]
            [self.rng.random_range(0..3)];
        let put = TxnOp::Put {
            key: keys.key.clone(),
            value: self.value(),
            lease: 0,
            prev_kv: true,
        };
        let get = TxnOp::Range {
            keys: self.keys(),
            limit: 0,
            revision: 0,
            count_only: false,
        };
        let otherwise = match self.rng.random_ratio(1, 4) {
            true => vec![TxnOp::Delete {
                keys: KeyRange::one(keys.key.clone()),
                prev_kv: true,
            }],
            false => vec![get.clone()],
        };
        Txn {
            compares: vec![Compare {
                keys,
                comparison,
                target,
            }],
            then: vec![get, put],
            otherwise,
        }
    }
}
