//! A load that remembers: clients that read and write, watchers, and holders of leases, all over
//! gRPC at members that come, go, restart and hang. What each was told is judged by the crate
//! `history` in the end.
//!
//! Start reading at [`Load::start`] and [`Load::finish`]. Whoever changes the cluster tells the
//! [`Targets`].

mod clients;
mod convert;
mod leases;
mod watchers;

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use history::{Base, History, Operation, Outcome, Request, Summary, WatchRecord};
use parking_lot::Mutex;
use proto::etcdserverpb::{RangeRequest, kv_client::KvClient};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use crate::client::{LIMIT, channel, eventually};

/// How long a call may take before its outcome counts as unknown.
const CALL: Duration = Duration::from_secs(3);
/// Watchers of all keys. What they saw together is the truth, so each goes to another member.
const WITNESSES: usize = 2;
/// Revisions that stay readable behind what the slowest witness has seen.
const KEPT: i64 = 200;

/// How much load.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Clients that read and write, one request after the other.
    pub clients: usize,
    /// Watchers of a part of the keys.
    pub watchers: usize,
    /// Holders of leases that they renew.
    pub holders: usize,
    /// Keys that clients share.
    pub keys: usize,
    /// Bytes of a value at most, beside what makes it unique.
    pub value_bytes: usize,
    /// How long a client rests between two requests at most.
    pub rest: Duration,
    /// Whether the past is forgotten and members are defragmented meanwhile.
    pub keeps_house: bool,
    /// Where all choices come from.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            clients: 5,
            watchers: 3,
            holders: 2,
            keys: 16,
            value_bytes: 200,
            rest: Duration::from_millis(20),
            keeps_house: true,
            seed: 1,
        }
    }
}

/// A member, as long as it is not set anew.
#[derive(Clone)]
struct Target {
    name: String,
    life: u64,
    channel: Channel,
}

/// The members that the load may ask.
#[derive(Default)]
pub struct Targets {
    members: Mutex<Vec<Target>>,
    lives: AtomicU64,
}

impl Targets {
    /// A member is there, or another one is in its place: what it reads for itself may be older than
    /// what the one before did.
    pub fn set(&self, name: &str, url: &str) {
        let target = Target {
            name: name.to_owned(),
            life: self.lives.fetch_add(1, Ordering::Relaxed),
            channel: channel(url),
        };
        let mut members = self.members.lock();
        members.retain(|member| member.name != name);
        members.push(target);
    }

    /// A member is gone for good.
    pub fn remove(&self, name: &str) {
        self.members.lock().retain(|member| member.name != name);
    }

    fn pick(&self, rng: &mut StdRng) -> Target {
        let members = self.members.lock();
        members.choose(rng).expect("a member").clone()
    }

    /// The same one again, if it is there.
    fn again(&self, target: &Target) -> Option<Target> {
        let members = self.members.lock();
        members
            .iter()
            .find(|member| member.name == target.name)
            .cloned()
    }
}

/// What all parts of the load share.
struct Shared {
    targets: Arc<Targets>,
    options: Options,
    began: Instant,
    /// Clients and holders are to end.
    stop: AtomicBool,
    /// Whole ranges are not deleted for now.
    spares: AtomicBool,
    /// Watchers of a part of the keys are to end when they know of this revision; 0 while not.
    watchers_end: AtomicI64,
    /// The same for the witnesses.
    witnesses_end: AtomicI64,
    /// What each witness knows of.
    seen: [AtomicI64; WITNESSES],
    operations: Mutex<Vec<Operation>>,
    watches: Mutex<Vec<WatchRecord>>,
    next_lease: AtomicI64,
    /// What went wrong and is no matter of the history.
    complaints: Mutex<Vec<String>>,
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn rng(&self, who: u64) -> StdRng {
        StdRng::seed_from_u64(self.options.seed.wrapping_mul(1_000_003).wrapping_add(who))
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Up to here all witnesses know everything.
    fn witnessed(&self) -> i64 {
        let seen = self.seen.iter().map(|seen| seen.load(Ordering::Relaxed));
        seen.min().unwrap_or_default()
    }

    /// Makes a request and writes down what became of it, with an end of `None` when no answer came.
    async fn ask(&self, client: u64, target: &Target, request: Request) -> Outcome {
        let start = self.now();
        let call = convert::call(target.channel.clone(), &request);
        let outcome = match tokio::time::timeout(CALL, call).await {
            Ok(Ok(response)) => Outcome::Done(response),
            Ok(Err(status)) => convert::refusal(&status),
            Err(_) => Outcome::Unknown,
        };
        let end = (outcome != Outcome::Unknown).then(|| self.now());
        self.operations.lock().push(Operation {
            client,
            member: target.life,
            request,
            start,
            end,
            outcome: outcome.clone(),
        });
        outcome
    }
}

/// What came of a load.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What was checked.
    pub summary: Summary,
    /// Operations in all, also those of unknown outcome.
    pub operations: usize,
    /// The longest time in which no write was answered.
    pub longest_pause: Duration,
}

/// A running load.
pub struct Load {
    shared: Arc<Shared>,
    base: Base,
    clients: Vec<JoinHandle<()>>,
    watchers: Vec<JoinHandle<()>>,
    witnesses: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts it. From now on nobody else may write.
    pub async fn start(targets: Arc<Targets>, options: Options) -> Self {
        let any = targets.pick(&mut StdRng::seed_from_u64(options.seed));
        let base = base(any.channel).await;
        let shared = Arc::new(Shared {
            targets,
            options,
            began: Instant::now(),
            stop: AtomicBool::new(false),
            spares: AtomicBool::new(false),
            watchers_end: AtomicI64::new(0),
            witnesses_end: AtomicI64::new(0),
            seen: std::array::from_fn(|_| AtomicI64::new(base.revision)),
            operations: Mutex::default(),
            watches: Mutex::default(),
            // Leases of an earlier load on the same store have other IDs.
            next_lease: AtomicI64::new((base.revision << 20) + 1),
            complaints: Mutex::default(),
        });
        let from = base.revision + 1;
        let witnesses = (0..WITNESSES)
            .map(|n| tokio::spawn(watchers::witness(Arc::clone(&shared), n, from)))
            .collect();
        let watchers = (0..options.watchers)
            .map(|n| tokio::spawn(watchers::watcher(Arc::clone(&shared), n, from)))
            .collect();
        let mut clients: Vec<JoinHandle<()>> = (0..options.clients)
            .map(|n| tokio::spawn(clients::client(Arc::clone(&shared), n as u64)))
            .collect();
        clients.extend((0..options.holders).map(|n| {
            let client = (options.clients + n) as u64;
            tokio::spawn(leases::holder(Arc::clone(&shared), client))
        }));
        if options.keeps_house {
            let client = (options.clients + options.holders) as u64;
            clients.push(tokio::spawn(clients::housekeeper(
                Arc::clone(&shared),
                client,
            )));
        }
        Self {
            shared,
            base,
            clients,
            watchers,
            witnesses,
        }
    }

    /// Operations so far.
    pub fn operations(&self) -> usize {
        self.shared.operations.lock().len()
    }

    /// Goes on, on members that are left alone, until leases have ended that nobody renews, with
    /// their keys: each new leader gives leases their whole time again, and on a fast machine some
    /// client deletes all keys before it is over.
    pub async fn until_leases_end(&self) {
        self.shared.spares.store(true, Ordering::Relaxed);
        tokio::time::sleep(clients::SHORT_TTL * 4).await;
        self.shared.spares.store(false, Ordering::Relaxed);
    }

    /// Ends it, lets watchers hear of everything, and judges.
    ///
    /// # Panics
    /// When something was seen that no etcd may show; the whole history lies beside the binaries then.
    pub async fn finish(self) -> Verdict {
        let seed = self.shared.options.seed;
        let history = self.history().await;
        let summary = history::check(&history).unwrap_or_else(|violation| {
            panic!(
                "seed {seed}: {violation}\nthe history is in {:?}",
                keep(&history, seed)
            );
        });
        Verdict {
            summary,
            operations: history.operations.len(),
            longest_pause: longest_pause(&history.operations),
        }
    }

    /// Ends it, lets watchers hear of everything, and leaves it to the caller to judge.
    ///
    /// # Panics
    /// When a lease was lost that was renewed, or two watchers were told different things.
    pub async fn history(self) -> History {
        let shared = self.shared;
        shared.stop.store(true, Ordering::Relaxed);
        join(self.clients, "clients").await;
        // Leases go on ending by themselves, so those who see all are the last to leave.
        shared
            .watchers_end
            .store(revision(&shared).await, Ordering::Relaxed);
        join(self.watchers, "watchers").await;
        shared
            .witnesses_end
            .store(revision(&shared).await, Ordering::Relaxed);
        join(self.witnesses, "witnesses").await;
        let operations = std::mem::take(&mut *shared.operations.lock());
        let watches = std::mem::take(&mut *shared.watches.lock());
        let complaints = std::mem::take(&mut *shared.complaints.lock());
        assert!(complaints.is_empty(), "{complaints:#?}");
        let log = history::log_of(&watches);
        History {
            base: self.base,
            operations,
            watches,
            log: log.unwrap_or_else(|violation| panic!("{violation}")),
        }
    }
}

/// Keeps a history that was judged wrong.
fn keep(history: &History, seed: u64) -> PathBuf {
    let folder = crate::target_folder().join("histories");
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join(format!("{}-{seed}.txt", std::process::id()));
    fs::write(&file, format!("{history:#?}")).unwrap();
    file
}

/// Waits for all of them to end.
async fn join(tasks: Vec<JoinHandle<()>>, what: &str) {
    for task in tasks {
        let ended = tokio::time::timeout(LIMIT * 2, task).await;
        ended
            .unwrap_or_else(|_| panic!("{what} do not end"))
            .unwrap();
    }
}

async fn base(channel: Channel) -> Base {
    let all = RangeRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        ..RangeRequest::default()
    };
    let mut kv = KvClient::new(channel);
    let found = eventually("base", async || kv.range(all.clone()).await).await;
    let found = found.into_inner();
    Base {
        revision: found.header.unwrap().revision,
        kvs: found.kvs.into_iter().map(history::wire::of_kv).collect(),
    }
}

/// The revision now, by a linearizable read of whoever answers.
async fn revision(shared: &Shared) -> i64 {
    let mut rng = shared.rng(u64::MAX);
    let one = RangeRequest {
        key: "none".into(),
        ..RangeRequest::default()
    };
    eventually("revision", async || {
        let mut kv = KvClient::new(shared.targets.pick(&mut rng).channel);
        kv.range(one.clone()).await
    })
    .await
    .into_inner()
    .header
    .unwrap()
    .revision
}

fn longest_pause(operations: &[Operation]) -> Duration {
    let is_write = |operation: &&Operation| {
        matches!(
            operation.request,
            Request::Put { .. } | Request::Delete { .. } | Request::Txn(_)
        ) && matches!(operation.outcome, Outcome::Done(_))
    };
    let mut answered: Vec<u64> = operations
        .iter()
        .filter(is_write)
        .filter_map(|operation| operation.end)
        .collect();
    answered.sort_unstable();
    let pauses = answered.windows(2).map(|pair| pair[1] - pair[0]);
    Duration::from_nanos(pauses.max().unwrap_or_default())
}

/// Rests for a moment.
async fn rest(rng: &mut StdRng, most: Duration) {
    tokio::time::sleep(most.mul_f64(rng.random::<f64>())).await;
}
