//! The operator in a model of Kubernetes and etcd: every scenario, with one fault at every call.
//!
//! The operator's own code runs: its requests go as HTTP to an API server in memory, its calls of
//! etcd to a model of membership, and pods start by the decision table that `cairn` itself uses.
//! After each pass the world moves a little. The promises are checked at each tick: no second
//! cluster for one object, no empty disk that begins twice, no quorum lost by us, a budget that
//! fits; and in the end all is as the spec asks, or the condition says what to do.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "model/api.rs"]
mod api;
#[path = "model/world.rs"]
mod world;

use std::{sync::Arc, time::Duration};

use crds::{
    EtcdCluster, EtcdClusterSpec, manifests,
    status::{Phase, condition},
};
use kube::{Client, CustomResourceExt};
use operator::{
    Error, Settings, kind,
    lease::{Candidate, Fence, LENGTH},
    observe::Observed,
    plan::{Plan, Step, plan},
    reconcile::{Context, Passed},
    telemetry::Telemetry,
};
use parking_lot::Mutex;
use record::Action;
use serde_json::json;
use world::{Fate, Fault, Members, NAMESPACE, World};

const NAME: &str = "db";
/// Passes after which a scenario counts as stuck.
const PASSES: usize = 900;

/// What somebody does.
#[derive(Clone, Debug)]
enum Do {
    Create(Box<EtcdClusterSpec>),
    Spec(fn(&mut EtcdClusterSpec)),
    Delete,
    /// Deletes and creates at once, before Kubernetes has removed anything.
    Replace(Box<EtcdClusterSpec>),
    WipeStatus,
    DeletePod(&'static str),
    DeleteAllPods,
    DeleteSet(&'static str),
    DeleteRecord(&'static str),
    DeleteClaim(&'static str),
    EmptyDisk(&'static str),
    /// Lets this many passes go by.
    Passes(usize),
}

/// How it ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Ready,
    Stalled(&'static str),
    Gone,
    /// Nothing is waited for.
    Any,
}

type Scenario = Vec<(Do, End)>;
type Planner = fn(&Observed) -> Plan;

fn settings() -> Settings {
    Settings {
        server_image: "cairn".into(),
        version: "0.1.0".into(),
        cluster_domain: "cluster.local".into(),
    }
}

fn sized(replicas: i32) -> Box<EtcdClusterSpec> {
    Box::new(EtcdClusterSpec {
        replicas,
        ..EtcdClusterSpec::default()
    })
}

fn created(replicas: i32) -> (Do, End) {
    (Do::Create(sized(replicas)), End::Ready)
}

/// A moment of a scenario: before a pass.
struct Moment {
    step: usize,
    passes: usize,
    world: World,
}

struct Run {
    world: Arc<Mutex<World>>,
    context: Context<Members>,
    planner: Planner,
}

impl Run {
    fn new(planner: Planner) -> Self {
        Self::on(World::new(), planner)
    }

    fn from(moment: &Moment, fault: Fault) -> Self {
        let mut world = moment.world.clone();
        world.fault = Some(fault);
        world.killed = Arc::default();
        Self::on(Arc::new(Mutex::new(world)), plan)
    }

    fn on(world: Arc<Mutex<World>>, planner: Planner) -> Self {
        let context = Self::operator(&world, planner);
        Self {
            world,
            context,
            planner,
        }
    }

    /// A new process: it knows nothing.
    fn operator(world: &Arc<Mutex<World>>, planner: Planner) -> Context<Members> {
        let client = Client::new(api::Api(world.clone()), NAMESPACE);
        let fence = Fence::open_for(Duration::from_secs(1 << 30));
        let members = Members(world.clone());
        let context = Context::new(
            client,
            members,
            settings(),
            fence,
            Telemetry::new(),
            "model",
        );
        context.with_planner(planner)
    }

    async fn pass(&mut self) -> Option<Passed> {
        let killed = self.world.lock().killed.clone();
        let passed = tokio::select! {
            passed = self.context.pass(NAMESPACE, NAME) => Some(passed),
            () = killed.notified() => None,
        };
        let passed = match passed {
            Some(passed) => passed.ok(),
            None => {
                self.context = Self::operator(&self.world, self.planner);
                None
            }
        };
        self.world.lock().tick();
        passed
    }

    fn act(&self, what: &Do) {
        let mut world = self.world.lock();
        let line = format!("tick {}: somebody does {what:?}", world.tick);
        world.log.push(line.chars().take(120).collect());
        let key =
            |plural: &str, name: &str| (plural.to_owned(), NAMESPACE.to_owned(), name.to_owned());
        match what {
            Do::Create(spec) | Do::Replace(spec) => {
                world.store.objects.remove(&key("etcdclusters", NAME));
                let object = EtcdCluster::new(NAME, spec.as_ref().clone());
                let object = serde_json::to_value(object).unwrap();
                world.store.create("etcdclusters", NAMESPACE, object);
            }
            Do::Spec(change) => {
                let mut spec = world.cluster(NAME).unwrap().spec;
                change(&mut spec);
                world
                    .store
                    .change("etcdclusters", NAMESPACE, NAME, |object| {
                        object["spec"] = serde_json::to_value(&spec).unwrap();
                    });
            }
            Do::Delete => {
                world.store.objects.remove(&key("etcdclusters", NAME));
            }
            Do::WipeStatus => world
                .store
                .change("etcdclusters", NAMESPACE, NAME, |object| {
                    object["status"] = json!({});
                }),
            Do::DeletePod(name) => world.delete_pod(name),
            Do::DeleteAllPods => {
                for pod in world.store.all("pods") {
                    world.delete_pod(pod["metadata"]["name"].as_str().unwrap());
                }
            }
            Do::DeleteSet(name) => {
                world.store.objects.remove(&key("statefulsets", name));
            }
            Do::DeleteRecord(name) => {
                world.store.objects.remove(&key("configmaps", name));
            }
            Do::DeleteClaim(name) => world.delete_claim(name),
            Do::EmptyDisk(name) => world.empty_disk(name),
            Do::Passes(_) => {}
        }
    }

    fn has_ended(&self, passed: Option<Passed>, end: End) -> bool {
        let world = self.world.lock();
        let Some(cluster) = world.cluster(NAME) else {
            return matches!(end, End::Gone)
                && passed == Some(Passed::Gone)
                && world.store.all("pods").is_empty();
        };
        let status = cluster.status.clone().unwrap_or_default();
        let told = |name: &str| {
            status
                .conditions
                .iter()
                .find(|told| told.type_ == name)
                .cloned()
        };
        let current = status.observed_generation == cluster.metadata.generation;
        match end {
            End::Ready => {
                passed == Some(Passed::Resting)
                    && current
                    && status.phase == Some(Phase::Running)
                    && status.replicas == cluster.spec.replicas
                    && status.operation.is_none()
                    && told(condition::READY).is_some_and(|told| told.status == "True")
            }
            End::Stalled(reason) => {
                current
                    && told(condition::STALLED)
                        .is_some_and(|told| told.status == "True" && told.reason == reason)
            }
            End::Gone => false,
            End::Any => true,
        }
    }

    /// Plays a scenario to its end, and keeps the moment before each pass.
    async fn play(&mut self, scenario: &Scenario) -> Result<Vec<Moment>, String> {
        let mut moments = Vec::new();
        for (at, (what, _)) in scenario.iter().enumerate() {
            self.act(what);
            self.play_step(scenario, at, 0, Some(&mut moments)).await?;
        }
        Ok(moments)
    }

    /// Plays on from a moment.
    async fn play_on(&mut self, scenario: &Scenario, moment: &Moment) -> Result<(), String> {
        self.play_step(scenario, moment.step, moment.passes, None)
            .await?;
        for (at, (what, _)) in scenario.iter().enumerate().skip(moment.step + 1) {
            self.act(what);
            self.play_step(scenario, at, 0, None).await?;
        }
        Ok(())
    }

    async fn play_step(
        &mut self,
        scenario: &Scenario,
        step: usize,
        mut passes: usize,
        mut moments: Option<&mut Vec<Moment>>,
    ) -> Result<(), String> {
        let (what, end) = &scenario[step];
        let least = match what {
            Do::Passes(count) => *count,
            _ => 2,
        };
        loop {
            if let Some(moments) = &mut moments {
                moments.push(Moment {
                    step,
                    passes,
                    world: self.world.lock().clone(),
                });
            }
            let passed = self.pass().await;
            passes += 1;
            let broken = self.world.lock().broken.first().cloned();
            if let Some(broken) = broken {
                return Err(self.story(&broken));
            }
            if passes >= least && self.has_ended(passed, *end) {
                return Ok(());
            }
            if passes > PASSES {
                return Err(self.story(&format!("{what:?} did not end as {end:?}")));
            }
        }
    }

    fn story(&self, what: &str) -> String {
        let world = self.world.lock();
        let cluster = world.cluster(NAME).and_then(|cluster| cluster.status);
        let status = serde_json::to_string_pretty(&cluster).unwrap();
        let from = world.log.len().saturating_sub(60);
        format!("{what}\n{}\n{status}", world.log[from..].join("\n"))
    }
}

/// Time stands still but for waits: a call without an answer costs nothing.
fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().unwrap()
}

fn play(scenario: &Scenario, planner: Planner) -> Result<Vec<Moment>, String> {
    runtime().block_on(async { Run::new(planner).play(scenario).await })
}

const FATES: [Fate; 7] = [
    Fate::KillBefore,
    Fate::KillAfter,
    Fate::Refuse(409),
    Fate::Refuse(429),
    Fate::Refuse(500),
    Fate::Hang,
    Fate::LoseAnswer,
];

/// Where faults are tried: from which step of the scenario on, and at each how many-th call that
/// changes something and of all calls.
#[derive(Clone, Copy)]
struct Faults {
    from: usize,
    changes: usize,
    calls: usize,
}

/// Once without a fault; then with each fault at the calls that change something, and with the
/// operator's death, a failure and a call without an answer at calls of any kind. Each of these
/// goes on from the moment before the pass that makes the call: what led there was the same.
fn endure(name: &str, scenario: &Scenario, faults: Faults) {
    let moments = play(scenario, plan).unwrap_or_else(|story| panic!("{name}: {story}"));
    let mut runs = 1;
    let mut endure = |moment: &Moment, fault: Fault| {
        runs += 1;
        let played =
            runtime().block_on(async { Run::from(moment, fault).play_on(scenario, moment).await });
        played.unwrap_or_else(|story| panic!("{name} with {fault:?}: {story}"));
    };
    for pair in moments.windows(2) {
        let (moment, next) = (&pair[0], &pair[1]);
        if moment.step < faults.from {
            continue;
        }
        for at in moment.world.changes + 1..=next.world.changes {
            if at % u64::try_from(faults.changes).unwrap() == 0 {
                for fate in FATES {
                    endure(
                        moment,
                        Fault {
                            at,
                            changes: true,
                            fate,
                        },
                    );
                }
            }
        }
        for at in moment.world.calls + 1..=next.world.calls {
            if at % u64::try_from(faults.calls).unwrap() == 0 {
                for fate in [Fate::KillBefore, Fate::Refuse(500), Fate::Hang] {
                    endure(
                        moment,
                        Fault {
                            at,
                            changes: false,
                            fate,
                        },
                    );
                }
            }
        }
    }
    let last = moments.last().unwrap();
    println!(
        "{name}: {runs} runs over {} calls, {} of them changes",
        last.world.calls, last.world.changes
    );
}

/// Faults from this step on, at every call that changes something and some others.
fn from(from: usize) -> Faults {
    Faults {
        from,
        changes: 1,
        calls: 23,
    }
}

/// The same at fewer calls, for what repeats itself.
fn some(from: usize) -> Faults {
    Faults {
        from,
        changes: 4,
        calls: 101,
    }
}

#[test]
fn one_member_is_created() {
    endure(
        "create 1",
        &vec![created(1)],
        Faults {
            from: 0,
            changes: 1,
            calls: 3,
        },
    );
}

#[test]
fn three_members_are_created() {
    endure("create 3", &vec![created(3)], from(0));
}

#[test]
fn five_members_are_created() {
    endure("create 5", &vec![created(5)], some(0));
}

#[test]
fn a_cluster_grows_from_one_to_three_to_five() {
    let scenario = vec![
        created(1),
        (Do::Spec(|spec| spec.replicas = 3), End::Ready),
        (Do::Spec(|spec| spec.replicas = 5), End::Ready),
    ];
    endure("grow", &scenario, from(1));
}

#[test]
fn deleted_pods_come_back() {
    let scenario = vec![
        created(3),
        (Do::DeletePod("db-0-0"), End::Ready),
        (Do::DeletePod("db-2-0"), End::Ready),
        (Do::DeleteAllPods, End::Ready),
    ];
    endure("pods deleted", &scenario, from(1));
}

#[test]
fn a_wiped_status_is_rebuilt_and_nothing_restarts() {
    let scenario = vec![created(3), (Do::WipeStatus, End::Ready)];
    endure("status wiped", &scenario, from(1));
    // With nobody up to ask: what the claims say suffices.
    let scenario = vec![
        created(3),
        (Do::DeleteAllPods, End::Any),
        (Do::WipeStatus, End::Ready),
    ];
    endure("status wiped with all pods gone", &scenario, from(1));
}

#[test]
fn a_status_wiped_at_any_moment_of_the_creation_founds_no_second_cluster() {
    for passes in (1..170).step_by(2) {
        let scenario = vec![
            (Do::Create(sized(3)), End::Any),
            (Do::Passes(passes), End::Any),
            (Do::WipeStatus, End::Ready),
        ];
        play(&scenario, plan).unwrap_or_else(|story| panic!("after {passes} passes: {story}"));
    }
}

#[test]
fn a_pod_deleted_at_any_moment_of_the_creation_is_no_harm() {
    for pod in ["db-0-0", "db-1-0"] {
        for passes in (1..170).step_by(3) {
            let scenario = vec![
                (Do::Create(sized(3)), End::Any),
                (Do::Passes(passes), End::Any),
                (Do::DeletePod(pod), End::Ready),
            ];
            play(&scenario, plan)
                .unwrap_or_else(|story| panic!("{pod} after {passes} passes: {story}"));
        }
    }
}

#[test]
fn a_new_object_of_the_same_name_takes_over_nothing() {
    let scenario = vec![
        created(3),
        (Do::Delete, End::Gone),
        (Do::Create(sized(3)), End::Stalled("AdoptionRequired")),
        (Do::DeleteClaim("db-0"), End::Any),
        (Do::DeleteClaim("db-1"), End::Any),
        (Do::DeleteClaim("db-2"), End::Ready),
    ];
    endure("created anew", &scenario, some(1));
    let scenario = vec![
        created(3),
        (Do::Replace(sized(3)), End::Stalled("AdoptionRequired")),
    ];
    endure("replaced", &scenario, from(1));
}

#[test]
fn claims_go_with_the_cluster_when_told_so() {
    let delete: fn(&mut EtcdClusterSpec) = |spec| {
        spec.storage.retain.on_delete = crds::cluster::RetainPolicy::Delete;
    };
    let scenario = vec![
        created(1),
        (Do::Spec(delete), End::Ready),
        (Do::Delete, End::Gone),
        created(1),
    ];
    endure("claims go", &scenario, from(1));
}

#[test]
fn lost_disks_are_told_and_never_filled_anew() {
    for (what, reason) in [
        (Do::EmptyDisk("db-1"), "DataLost"),
        (Do::EmptyDisk("db-0"), "DataLost"),
        (Do::DeleteClaim("db-0"), "VolumeLost"),
        (Do::DeleteClaim("db-2"), "VolumeLost"),
    ] {
        let scenario = vec![
            created(3),
            (what, End::Any),
            (Do::DeleteAllPods, End::Stalled(reason)),
            (Do::WipeStatus, End::Stalled(reason)),
        ];
        endure(reason, &scenario, from(1));
    }
    // The only member: the last chance to found a cluster twice.
    for wiped in [false, true] {
        let mut scenario = vec![
            created(1),
            (Do::EmptyDisk("db-0"), End::Any),
            (Do::DeleteAllPods, End::Any),
        ];
        if wiped {
            scenario.push((Do::WipeStatus, End::Any));
        }
        scenario.push((Do::Passes(40), End::Stalled("DataLost")));
        endure("the only disk emptied", &scenario, from(1));
    }
}

#[test]
fn a_claim_lost_at_any_moment_of_the_creation_founds_no_second_cluster() {
    for passes in 1..60 {
        runtime().block_on(async {
            let mut run = Run::new(plan);
            run.act(&Do::Create(sized(1)));
            for _ in 0..passes {
                run.pass().await;
            }
            run.act(&Do::DeleteClaim("db-0"));
            run.act(&Do::DeleteAllPods);
            for _ in 0..60 {
                run.pass().await;
            }
            run.act(&Do::WipeStatus);
            for _ in 0..60 {
                run.pass().await;
            }
            let broken = run.world.lock().broken.first().cloned();
            assert!(broken.is_none(), "{}", run.story(&broken.unwrap()));
        });
    }
}

#[test]
fn what_somebody_deletes_by_hand_comes_back_without_harm() {
    let scenario = vec![
        created(3),
        (Do::DeleteSet("db-1"), End::Ready),
        (Do::DeleteRecord("db-2"), End::Ready),
        (Do::DeleteRecord("db-0"), End::Any),
        (Do::DeletePod("db-0-0"), End::Ready),
    ];
    endure("deleted by hand", &scenario, from(1));
}

#[test]
fn what_is_not_possible_yet_is_refused_and_can_be_undone() {
    let shrink: fn(&mut EtcdClusterSpec) = |spec| spec.replicas = 1;
    let level: fn(&mut EtcdClusterSpec) =
        |spec| spec.etcd.log_level = crds::cluster::LogLevel::Debug;
    let same: fn(&mut EtcdClusterSpec) = |spec| spec.etcd.log_level = crds::cluster::LogLevel::Info;
    let version: fn(&mut EtcdClusterSpec) = |spec| spec.version = Some("0.2.0".into());
    let unset: fn(&mut EtcdClusterSpec) = |spec| spec.version = None;
    let larger: fn(&mut EtcdClusterSpec) = |spec| spec.storage.size.0 = "16Gi".into();
    let scenario = vec![
        created(3),
        (Do::Spec(shrink), End::Stalled("ShrinkNotSupported")),
        (Do::DeletePod("db-1-0"), End::Any),
        (Do::Spec(|spec| spec.replicas = 3), End::Ready),
        (Do::Spec(level), End::Stalled("TemplateChangeNotSupported")),
        (Do::Spec(same), End::Ready),
        (Do::Spec(version), End::Stalled("VersionChangeNotSupported")),
        (Do::Spec(unset), End::Ready),
        (Do::Spec(larger), End::Stalled("StorageCannotGrow")),
    ];
    endure("refused", &scenario, some(1));
}

#[test]
fn claims_grow_where_their_class_lets_them() {
    let mut spec = sized(3);
    spec.storage.storage_class_name = Some("elastic".into());
    let larger: fn(&mut EtcdClusterSpec) = |spec| spec.storage.size.0 = "16Gi".into();
    let scenario = vec![
        (Do::Create(spec), End::Ready),
        (Do::Spec(larger), End::Ready),
    ];
    endure("storage grows", &scenario, from(1));
}

#[test]
fn a_second_operator_takes_over_only_after_the_first_has_stopped() {
    runtime().block_on(async {
        let world = World::new();
        let candidate = |identity: &str| {
            let client = Client::new(api::Api(world.clone()), NAMESPACE);
            let fence = Fence::shut();
            (
                Candidate::new(client, NAMESPACE, "lease", identity, fence.clone()),
                fence,
            )
        };
        let (mut first, first_fence) = candidate("first");
        let (mut second, second_fence) = candidate("second");
        assert!(first_fence.remaining().is_err());
        first.acquire().await.unwrap();
        // While it is renewed nobody else gets it.
        tokio::select! {
            lost = first.keep() => panic!("{lost}"),
            got = second.acquire() => panic!("two hold it: {got:?}"),
            () = tokio::time::sleep(Duration::from_secs(120)) => {}
        }
        assert!(first_fence.remaining().is_ok() && second_fence.remaining().is_err());
        // The first hangs. When the second begins, the first may do nothing any more.
        second.acquire().await.unwrap();
        assert!(first_fence.remaining().is_err() && second_fence.remaining().is_ok());
        assert!(matches!(first.keep().await, Error::LeaseLost));
        // Given back, it is free at once.
        second.release().await;
        assert!(second_fence.remaining().is_err());
        let (mut third, _) = candidate("third");
        let began = tokio::time::Instant::now();
        third.acquire().await.unwrap();
        assert!(began.elapsed() < LENGTH);
    });
}

/// The CRD as a chart of this schema has it, served.
fn served(schema: u32) -> serde_json::Value {
    let mut crd = serde_json::to_value(EtcdCluster::crd()).unwrap();
    crd["metadata"]["annotations"] = json!({ manifests::SCHEMA_ANNOTATION: schema.to_string() });
    crd["status"] = json!({ "conditions": [{
        "type": "Established", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z",
        "reason": "", "message": "",
    }] });
    crd
}

#[test]
fn the_kind_is_waited_for_and_an_older_one_is_refused_at_any_time() {
    runtime().block_on(async {
        let world = World::new();
        let client = Client::new(api::Api(world.clone()), NAMESPACE);
        let put = |crd: serde_json::Value| {
            let mut world = world.lock();
            let key = ("customresourcedefinitions", "", kind::CRD);
            if world.store.get(key.0, key.1, key.2).is_none() {
                world.store.create(key.0, key.1, crd);
            } else {
                world.store.change(key.0, key.1, key.2, |old| *old = crd);
            }
        };
        assert!(matches!(kind::wait(&client).await, Err(Error::NoKind)));
        // It comes while it is waited for, and is served some time later.
        let mut young = served(manifests::SCHEMA);
        young["status"] = json!({});
        let comes = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            put(young);
            tokio::time::sleep(Duration::from_secs(10)).await;
            put(served(manifests::SCHEMA));
        };
        let (waited, ()) = tokio::join!(kind::wait(&client), comes);
        waited.unwrap();
        kind::check(&client).await.unwrap();
        // A newer one has all that we need.
        put(served(manifests::SCHEMA + 1));
        kind::check(&client).await.unwrap();
        tokio::select! {
            ended = kind::outdated(&client) => panic!("{ended}"),
            () = tokio::time::sleep(Duration::from_secs(600)) => {}
        }
        let mut unnamed = served(0);
        unnamed["metadata"]["annotations"] = json!({});
        for old in [served(0), unnamed] {
            put(served(manifests::SCHEMA));
            kind::check(&client).await.unwrap();
            put(old);
            for refused in [
                kind::wait(&client).await.unwrap_err(),
                kind::check(&client).await.unwrap_err(),
                kind::outdated(&client).await,
            ] {
                assert!(matches!(refused, Error::OldKind { found: 0 }), "{refused}");
                assert!(refused.to_string().contains("Upgrade the CRD first"));
            }
        }
    });
}

#[test]
fn without_a_lease_nothing_is_changed() {
    runtime().block_on(async {
        let mut run = Run::new(plan);
        run.act(&Do::Create(sized(1)));
        let fence = Fence::open_for(Duration::from_secs(5));
        let client = Client::new(api::Api(run.world.clone()), NAMESPACE);
        let members = Members(run.world.clone());
        run.context = Context::new(
            client,
            members,
            settings(),
            fence,
            Telemetry::new(),
            "model",
        );
        for _ in 0..4 {
            run.pass().await;
        }
        let changes = run.world.lock().changes;
        assert!(changes > 0);
        tokio::time::sleep(Duration::from_secs(6)).await;
        for _ in 0..4 {
            let result = run.context.pass(NAMESPACE, NAME).await;
            assert!(matches!(result, Err(Error::LeaseLost)), "{result:?}");
        }
        assert_eq!(run.world.lock().changes, changes);
    });
}

/// The same scenario with a planner that forgets what claims and members know: the model must
/// notice, or it could not tell a good planner from a bad one.
#[test]
fn a_planner_that_founds_over_what_exists_is_caught() {
    let forgetful: Planner = |seen| {
        let mut seen = seen.clone();
        seen.status.cluster_id = None;
        seen.list = None;
        for member in seen.members.values_mut() {
            member.answer = None;
            if let Some(volume) = &mut member.volume {
                volume.cluster_id = None;
            }
            if let Some(pod) = &mut member.pod {
                pod.refused = None;
            }
            if let Some(record) = member
                .record
                .as_mut()
                .and_then(|written| written.record.as_mut())
                && record.action == Action::Run
            {
                record.action = Action::Hold;
            }
        }
        plan(&seen)
    };
    let scenario = vec![
        created(1),
        (Do::EmptyDisk("db-0"), End::Any),
        (Do::DeleteAllPods, End::Any),
        (Do::WipeStatus, End::Any),
        (Do::Passes(60), End::Any),
    ];
    play(&scenario, plan).unwrap();
    runtime().block_on(async {
        let mut run = Run::new(plan);
        for (what, _) in &scenario {
            run.act(what);
            let passes = if matches!(what, Do::Create(_)) {
                120
            } else {
                2
            };
            for _ in 0..passes {
                run.pass().await;
            }
        }
        run.planner = forgetful;
        run.context = Run::operator(&run.world, forgetful);
        for _ in 0..80 {
            run.pass().await;
        }
        let broken = run.world.lock().broken.join("; ");
        assert!(
            broken.contains("a second cluster was founded"),
            "{}",
            run.story(&broken)
        );
    });
}

#[test]
fn a_planner_with_a_budget_too_small_is_caught() {
    let careless: Planner = |seen| {
        let mut seen = seen.clone();
        if let Some(budget) = &mut seen.budget {
            budget.min_available += 1;
        }
        let mut plan = plan(&seen);
        plan.step = match plan.step {
            Step::CreateBudget(least) => Step::CreateBudget(least - 1),
            Step::ApplyBudget(least) => Step::ApplyBudget(least - 1),
            other => other,
        };
        plan
    };
    let story = play(&vec![created(3)], careless).err().unwrap();
    assert!(story.contains("the budget keeps"), "{story}");
}
