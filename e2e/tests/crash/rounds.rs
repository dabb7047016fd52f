//! Three members under recorded load: one fault each round, after which all of them serve again.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use e2e::{
    Kind, Member, Server,
    client::{channel, eventually, status},
    failpoints::died_at,
    load::{Load, Options, Targets},
    setting,
};
use proto::etcdserverpb::{
    HashKvRequest, MoveLeaderRequest, PutRequest, kv_client::KvClient,
    maintenance_client::MaintenanceClient,
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

/// Rounds in the gate.
const ROUNDS: u64 = 16;
/// From so many on every point must have been reached.
const ALL_POINTS: u64 = 300;
/// Rounds of one cluster. Its history is then checked, and another one is founded.
const OF_A_CLUSTER: u64 = 20;
const MEMBERS: usize = 3;
/// Load before a fault.
const BEFORE: std::ops::Range<u64> = 150..600;
/// How long a member stands still: longer than the others wait for a leader.
const PAUSE: Duration = Duration::from_millis(1300);
/// How long a point may take to be reached.
const REACH: Duration = Duration::from_secs(4);
/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);
/// Short segments, so that the log is cut and shortened and members are brought up to date by
/// snapshots; an election that does not take most of a round.
const FLAGS: [&str; 4] = [
    "--cairn-wal-segment-bytes=65536",
    "--snapshot-catchup-entries=10",
    "--heartbeat-interval=50",
    "--election-timeout=400",
];

/// What the apply, raft and log threads of any member pass under load.
const UNDER_LOAD: &[&str] = &[
    "raftBeforeSave",
    "raftAfterSave",
    "raftBeforeLeaderSend",
    "raftBeforeFollowerSend",
    "raftBeforeWALSaveSnaphot",
    "raftAfterWALRelease",
    "raftBeforeAdvance",
    "walBeforeSync",
    "walAfterSync",
    "walBeforeFill",
    "walAfterFill",
    "walBeforeCloseSegment",
    "walAfterCloseSegment",
    "walBeforeHeadSync",
    "walBeforeSegmentRename",
    "walBeforeSegmentDirSync",
    "walAfterCut",
    "walBeforeRemoveSegment",
    "walAfterRemoveSegment",
    "beforeApplyOneEntryNormal",
    "beforeWritebackBuf",
    "afterWritebackBuf",
    "beforeCommit",
    "afterCommit",
    "compactBeforeCommitScheduledCompact",
    "compactAfterCommitScheduledCompact",
    "compactBeforeSetFinishedCompact",
    "compactAfterSetFinishedCompact",
    "defragBeforeCopy",
    "beforeSendWatchResponse",
];
/// What a member passes that is brought up to date by a snapshot.
const INSTALLING: &[&str] = &[
    "raftBeforeSaveSnap",
    "raftAfterSaveSnap",
    "raftBeforeWALSaveSnaphot",
    "raftBeforeApplySnap",
    "raftAfterApplySnap",
    "snapBeforeBodySync",
    "snapBeforeRename",
    "snapDBRenameBeforeDirSync",
    "snapAfterDirSync",
    "applyBeforeOpenSnapshot",
    "applyAfterOpenSnapshot",
    "snapBeforeSweep",
    "engineAfterBuild",
    "importAfterBatch",
    "importBeforeFlush",
    "engineBeforeRename",
    "engineBeforeDirSync",
    "engineBeforeSwitch",
    "engineAfterSwitch",
    "engineBeforeRemove",
];
/// What the sender of a snapshot passes.
const SENDING: &str = "snapBeforeSendPiece";
/// What every start passes.
const STARTING: &[&str] = &[
    "bootAfterClaim",
    "walBeforeFill",
    "walAfterFill",
    "raftBeforeSave",
    "walAfterSync",
    "beforeApplyOneEntryNormal",
    "beforePublishing",
];

/// All of these.
pub fn points() -> impl Iterator<Item = &'static str> {
    let all = UNDER_LOAD.iter().chain(INSTALLING).chain(STARTING);
    all.chain([&SENDING]).copied()
}

/// What goes wrong in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// kill -9 of the leader, a follower, two, all.
    KillLeader,
    KillFollower,
    KillTwo,
    KillAll,
    /// SIGSTOP and, when another leads, SIGCONT: it answers what it was asked before and while.
    PauseLeader,
    PauseFollower,
    /// SIGTERM of the leader.
    EndLeader,
    /// Another leads, by request.
    MoveLeader,
    /// The leader waits before each write of its log.
    SlowLeader,
    /// A follower does not hear the others.
    Deaf,
    /// A point ends the leader or a follower.
    PointOfLeader,
    PointOfFollower,
    /// A point ends a member while it starts.
    PointOfStart,
    /// A point ends a member that installs a snapshot, or the one that sends it.
    PointOfInstall,
    PointOfSend,
    /// The directory of a received snapshot cannot be synced.
    FailedInstall,
}

/// With how often each is drawn.
const FAULTS: &[(Fault, u32)] = &[
    (Fault::KillLeader, 6),
    (Fault::KillFollower, 4),
    (Fault::KillTwo, 3),
    (Fault::KillAll, 4),
    (Fault::PauseLeader, 8),
    (Fault::PauseFollower, 2),
    (Fault::EndLeader, 3),
    (Fault::MoveLeader, 2),
    (Fault::SlowLeader, 3),
    (Fault::Deaf, 3),
    (Fault::PointOfLeader, 18),
    (Fault::PointOfFollower, 16),
    (Fault::PointOfStart, 5),
    (Fault::PointOfInstall, 18),
    (Fault::PointOfSend, 3),
    (Fault::FailedInstall, 2),
];

/// What was done and reached.
#[derive(Default)]
struct Tally {
    rounds: BTreeMap<Fault, u64>,
    /// How often each point was tried and how often it ended its member.
    points: BTreeMap<&'static str, (u64, u64)>,
}

impl Tally {
    /// One of the least reached, of those the least tried.
    fn next(&self, points: &[&'static str], rng: &mut StdRng) -> &'static str {
        let rank = |point: &&'static str| {
            let (tried, reached) = self.points.get(point).copied().unwrap_or_default();
            (reached, tried)
        };
        let least = points.iter().map(rank).min();
        let least: Vec<_> = points.iter().filter(|at| Some(rank(at)) == least).collect();
        least.choose(rng).unwrap()
    }

    fn tried(&mut self, point: &'static str, reached: bool) {
        let (tried, hit) = self.points.entry(point).or_default();
        *tried += 1;
        *hit += u64::from(reached);
    }

    fn unreached(&self) -> Vec<&'static str> {
        let reached = |point: &&str| self.points.get(point).is_some_and(|(_, hit)| *hit > 0);
        let mut left: Vec<_> = points().filter(|point| !reached(point)).collect();
        left.sort_unstable();
        left.dedup();
        left
    }

    fn print(&self) {
        for (fault, rounds) in &self.rounds {
            println!("{rounds:5} rounds  {fault:?}");
        }
        for (point, (tried, reached)) in &self.points {
            println!("{reached:5} of {tried:3}  {point}");
        }
        println!("not reached: {:?}", self.unreached());
    }
}

struct Cluster {
    folder: tempfile::TempDir,
    servers: Vec<Server>,
    /// The members' IDs.
    ids: Vec<u64>,
}

impl Cluster {
    async fn found() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let members = ["a", "b", "c"].map(|name| {
            Member::new(Kind::Cairn, name)
                .with_flags(FLAGS.map(str::to_owned).to_vec())
                .with_failpoints("")
        });
        let all: Vec<&Member> = members.iter().collect();
        let launch = |member: &Member| member.launch(folder.path(), &all, "new");
        let mut servers: Vec<Server> = members.iter().map(launch).collect();
        servers.iter_mut().for_each(Server::wait_ready);
        let mut ids = Vec::new();
        for server in &servers {
            ids.push(status(server.url()).await.header.unwrap().member_id);
        }
        Self {
            folder,
            servers,
            ids,
        }
    }

    /// The members, whichever life they are in: none may go back in time by a restart.
    fn targets(&self) -> Arc<Targets> {
        let targets = Arc::new(Targets::default());
        for (number, server) in self.servers.iter().enumerate() {
            targets.set(&number.to_string(), server.url());
        }
        targets
    }

    /// Who leads, as one member says that serves.
    async fn leader(&self, ask: usize) -> usize {
        let url = self.servers[ask].url();
        let began = Instant::now();
        loop {
            let leader = status(url).await.leader;
            if let Some(at) = self.ids.iter().position(|id| *id == leader) {
                return at;
            }
            assert!(began.elapsed() < LIMIT, "no leader");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Ends after a point ended this member, or not in time: whether it did.
    async fn dies(&mut self, at: usize, point: &str, limit: Duration) -> bool {
        let began = Instant::now();
        while began.elapsed() < limit {
            if self.servers[at].ended().is_some() {
                let log = self.servers[at].log();
                assert_eq!(died_at(&log), Some(point), "another end:\n{log}");
                return true;
            }
            tokio::time::sleep(POLL).await;
        }
        false
    }

    /// Starts those again that ended, and waits until all serve.
    fn heal(&mut self, expected: Option<&str>) {
        for server in &mut self.servers {
            // One that has said that it dies takes a while on a busy machine.
            let began = Instant::now();
            while died_at(&server.log()).is_some() && server.ended().is_none() {
                assert!(began.elapsed() < LIMIT, "it does not die");
                std::thread::sleep(POLL);
            }
            if server.ended().is_some() {
                let log = server.log();
                let point = died_at(&log);
                assert!(point.is_none() || point == expected, "{log}");
                server.failpoints().at_start("");
                server.relaunch();
            }
        }
        self.servers.iter_mut().for_each(Server::wait_ready);
    }

    async fn agree(&self) {
        let mut kv = KvClient::new(channel(self.servers[0].url()));
        let barrier = PutRequest {
            key: "k/1".into(),
            value: "agree".into(),
            ..PutRequest::default()
        };
        let put = eventually("agree", async || kv.put(barrier.clone()).await).await;
        let revision = put.into_inner().header.unwrap().revision;
        let mut hashes = Vec::new();
        for server in &self.servers {
            let mut client = MaintenanceClient::new(channel(server.url()));
            let request = HashKvRequest { revision };
            // A member may have to catch up first.
            let hash = eventually("hash", async || client.hash_kv(request).await).await;
            let hash = hash.into_inner();
            hashes.push((hash.hash, hash.hash_revision, hash.compact_revision));
        }
        let same = hashes.iter().all(|hash| hash.0 == hashes[0].0);
        assert!(same, "at {revision}: {hashes:x?}");
    }

    async fn round(&mut self, fault: Fault, rng: &mut StdRng, tally: &mut Tally) {
        tokio::time::sleep(Duration::from_millis(rng.random_range(BEFORE))).await;
        let leader = self.leader(0).await;
        let follower = (leader + rng.random_range(1..MEMBERS)) % MEMBERS;
        let third = MEMBERS - leader - follower;
        let mut point = None;
        match fault {
            Fault::KillLeader => self.servers[leader].kill(),
            Fault::KillFollower => self.servers[follower].kill(),
            Fault::KillTwo => {
                self.servers[leader].kill();
                self.servers[follower].kill();
            }
            Fault::KillAll => self.servers.iter_mut().for_each(Server::kill),
            Fault::PauseLeader => self.pause(leader, Some(follower)).await,
            Fault::PauseFollower => self.pause(follower, None).await,
            Fault::EndLeader => {
                let status = self.servers[leader].stop();
                assert!(status.success(), "{}", self.servers[leader].log());
            }
            Fault::MoveLeader => {
                let to = MoveLeaderRequest {
                    target_id: self.ids[follower],
                };
                let mut client = MaintenanceClient::new(channel(self.servers[leader].url()));
                // The load goes on either way.
                let _ = client.move_leader(to).await;
            }
            Fault::SlowLeader => {
                let slow = self.servers[leader].failpoints();
                slow.tell("raftBeforeSave", "sleep(700)");
                tokio::time::sleep(PAUSE).await;
                self.servers[leader].failpoints().forget("raftBeforeSave");
            }
            Fault::Deaf => {
                let deaf = self.servers[follower].failpoints();
                deaf.tell("raftDropHeartbeat", "return");
                tokio::time::sleep(PAUSE).await;
                self.servers[follower]
                    .failpoints()
                    .forget("raftDropHeartbeat");
            }
            Fault::PointOfLeader => point = Some(self.point(leader, rng, tally).await),
            Fault::PointOfFollower => point = Some(self.point(follower, rng, tally).await),
            Fault::PointOfStart => {
                let name = tally.next(STARTING, rng);
                self.servers[follower].kill();
                self.start_dying(follower, name, rng.random_range(0..3), tally)
                    .await;
                point = Some(name);
            }
            Fault::PointOfInstall => {
                let name = tally.next(INSTALLING, rng);
                self.lag(follower, third).await;
                self.start_dying(follower, name, 0, tally).await;
                point = Some(name);
            }
            Fault::PointOfSend => {
                self.lag(follower, third).await;
                let leader = self.leader(third).await;
                let terms = format!("{}*off->panic", rng.random_range(0..2));
                self.servers[leader].failpoints().tell(SENDING, &terms);
                self.servers[follower].relaunch();
                let dies = self.dies(leader, SENDING, REACH).await;
                tally.tried(SENDING, dies);
                point = Some(SENDING);
            }
            Fault::FailedInstall => {
                self.lag(follower, third).await;
                let terms = "snapDBDirSyncError=1*return(\"no\")";
                self.servers[follower].failpoints().at_start(terms);
                self.servers[follower].relaunch();
                self.servers[follower].wait_ready();
                self.servers[follower].failpoints().at_start("");
            }
        }
        self.heal(point);
        for server in &mut self.servers {
            if let Some(point) = point {
                server.failpoints().forget(point);
            }
        }
        // It may have been reached right before it was forgotten.
        self.heal(point);
    }

    /// A member stands still until another one leads, or for a while.
    async fn pause(&mut self, at: usize, other: Option<usize>) {
        self.servers[at].signal("STOP");
        let began = Instant::now();
        while began.elapsed() < PAUSE {
            tokio::time::sleep(POLL).await;
        }
        if let Some(other) = other {
            let began = Instant::now();
            while self.leader(other).await == at && began.elapsed() < LIMIT {
                tokio::time::sleep(POLL).await;
            }
        }
        self.servers[at].signal("CONT");
    }

    /// A point of this member is to end it under load.
    async fn point(&mut self, at: usize, rng: &mut StdRng, tally: &mut Tally) -> &'static str {
        let name = tally.next(UNDER_LOAD, rng);
        // Not always with the first time that it is passed.
        let terms = format!("{}*off->panic", rng.random_range(0..4));
        self.servers[at].failpoints().tell(name, &terms);
        let dies = self.dies(at, name, REACH).await;
        tally.tried(name, dies);
        name
    }

    /// A member that is down misses more than the log of the others keeps.
    async fn lag(&mut self, at: usize, other: usize) {
        self.servers[at].kill();
        let shortened = |server: &Server| server.log().matches("compacted Raft logs").count();
        let before = shortened(&self.servers[other]);
        let began = Instant::now();
        while shortened(&self.servers[other]) < before + 3 && began.elapsed() < 2 * REACH {
            tokio::time::sleep(10 * POLL).await;
        }
    }

    /// Starts a member that a point is to end.
    async fn start_dying(&mut self, at: usize, name: &'static str, skip: u64, tally: &mut Tally) {
        let terms = format!("{name}={skip}*off->panic");
        self.servers[at].failpoints().at_start(&terms);
        self.servers[at].relaunch();
        let dies = self.dies(at, name, REACH).await;
        self.servers[at].failpoints().at_start("");
        tally.tried(name, dies);
    }
}

/// Values so long that segments are cut all the time.
fn options(seed: u64) -> Options {
    Options {
        clients: 9,
        value_bytes: 3000,
        seed,
        ..Options::default()
    }
}

fn draw(rng: &mut StdRng) -> Fault {
    let drawn = FAULTS.choose_weighted(rng, |(_, weight)| *weight);
    drawn.unwrap().0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_keep_every_promise_through_rounds_of_faults() {
    let (rounds, seed) = (setting("CAIRN_ROUNDS", ROUNDS), setting("CAIRN_SEED", 1));
    println!("CAIRN_ROUNDS={rounds} CAIRN_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut tally = Tally::default();
    let (mut done, mut acknowledged, mut events) = (0, 0, 0);
    while done < rounds {
        let mut cluster = Cluster::found().await;
        let load = Load::start(cluster.targets(), options(rng.random())).await;
        for _ in 0..OF_A_CLUSTER.min(rounds - done) {
            let fault = draw(&mut rng);
            let began = Instant::now();
            cluster.round(fault, &mut rng, &mut tally).await;
            *tally.rounds.entry(fault).or_default() += 1;
            done += 1;
            println!("round {done}: {fault:?}, {:?}", began.elapsed());
        }
        let history = load.history().await;
        match history::check(&history) {
            Ok(summary) => {
                println!("{summary:?}");
                acknowledged += summary.writes;
                events += summary.events;
            }
            Err(violation) => {
                let kept = cluster.folder.keep();
                panic!(
                    "after round {done}, data in {}: {violation}",
                    kept.display()
                );
            }
        }
        cluster.agree().await;
    }
    tally.print();
    println!(
        "{done} rounds, {acknowledged} acknowledged writes, {events} events; none lost, none \
         invented, no stale read"
    );
    let unreached = tally.unreached();
    assert!(
        done < ALL_POINTS || unreached.is_empty(),
        "never reached: {unreached:?}"
    );
}
