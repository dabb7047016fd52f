//! The world around the operator: StatefulSet controller, garbage collection, kubelets with their
//! lag, the server's bootstrap guard (the very function that `cairn` runs), and etcd's membership
//! with its rules. One tick is one small while. It notes every broken promise.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crds::EtcdCluster;
use operator::etcd::{Answer, Changed, Etcd, Member};
use parking_lot::Mutex;
use record::{Action, Decision, Disk as Held, Identity, Pod, Record, decide};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::api::Store;

pub const NAMESPACE: &str = "prod";
/// Ticks after which a kubelet shows a pod its record anew without being told.
const LAG: u64 = 12;
/// Ticks that a learner needs to catch up.
const CATCH_UP: u64 = 3;

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Normal,
    /// Refused with this code; nothing is done.
    Refuse(u16),
    /// Never answered; nothing is done.
    Hang,
    /// Done, and the answer is lost.
    LoseAnswer,
    /// The operator dies before it is done.
    KillBefore,
    /// The operator dies after it was done.
    KillAfter,
}

/// One fault, at the N-th call.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Which call, from 1 on.
    pub at: u64,
    /// Whether only calls that change something count.
    pub changes: bool,
    pub fate: Fate,
}

/// A disk, by the UID of its claim.
#[derive(Clone, Debug, Default)]
struct Disk {
    identity: Option<Identity>,
    /// etcd's cluster and member ID.
    data: Option<(u64, u64)>,
}

#[derive(Clone, Debug, Default)]
struct Life {
    mounted: Option<Record>,
    /// The annotation and the tick of the last refresh.
    refreshed: (Option<String>, u64),
    marks: BTreeSet<String>,
    /// The member that it runs, and since when.
    runs: Option<(u64, u64)>,
    since: u64,
}

#[derive(Clone, Debug, Default)]
struct Cluster {
    members: Vec<Member>,
}

/// Everything. A clone is a moment to go back to.
#[derive(Clone, Default)]
pub struct World {
    pub store: Store,
    pub tick: u64,
    disks: BTreeMap<String, Disk>,
    lives: BTreeMap<String, Life>,
    clusters: BTreeMap<u64, Cluster>,
    /// How often a cluster was founded for an object, by its UID.
    pub founded: BTreeMap<String, u32>,
    next_id: u64,
    pub calls: u64,
    pub changes: u64,
    pub fault: Option<Fault>,
    pub killed: Arc<Notify>,
    /// Promises that were broken.
    pub broken: Vec<String>,
    /// Every change, in order.
    pub log: Vec<String>,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

impl World {
    pub fn new() -> Arc<Mutex<Self>> {
        let mut world = Self {
            next_id: 1,
            ..Self::default()
        };
        for (class, grows) in [("standard", false), ("elastic", true)] {
            let class = json!({
                "metadata": { "name": class }, "provisioner": "model", "allowVolumeExpansion": grows,
            });
            world.store.create("storageclasses", "", class);
        }
        Arc::new(Mutex::new(world))
    }

    /// A call arrives.
    pub fn meet(&mut self, changes: bool, what: &str) -> Fate {
        self.calls += 1;
        self.changes += u64::from(changes);
        let Some(fault) = self.fault else {
            return Fate::Normal;
        };
        let count = match fault.changes {
            true if !changes => return Fate::Normal,
            true => self.changes,
            false => self.calls,
        };
        match count == fault.at {
            true => {
                self.log
                    .push(format!("tick {}: {:?} at {what}", self.tick, fault.fate));
                fault.fate
            }
            false => Fate::Normal,
        }
    }

    pub fn kill(&mut self) {
        self.killed.notify_one();
    }

    /// A change was made.
    pub fn changed(&mut self, what: &str, object: &Value) {
        if what.contains("/events") {
            return;
        }
        let record = object["data"]["record.json"].as_str().unwrap_or_default();
        self.log
            .push(format!("tick {}: {what} {record}", self.tick));
    }

    fn break_promise(&mut self, what: String) {
        self.log.push(format!("tick {}: BROKEN {what}", self.tick));
        self.broken.push(what);
    }

    pub fn cluster(&self, name: &str) -> Option<EtcdCluster> {
        let object = self.store.get("etcdclusters", NAMESPACE, name)?;
        serde_json::from_value(object.clone()).ok()
    }

    /// Time passes.
    pub fn tick(&mut self) {
        self.tick += 1;
        self.collect();
        self.run_sets();
        self.run_pods();
        self.show_pods();
        self.check();
    }

    /// Children go with their owners, claims once no pod uses them.
    fn collect(&mut self) {
        let uids: BTreeSet<String> = self
            .store
            .objects
            .values()
            .map(|object| text(&object["metadata"]["uid"]))
            .collect();
        let used: BTreeSet<String> = self.store.all("pods").iter().map(claim_of).collect();
        let mut gone = Vec::new();
        for (key, object) in &self.store.objects {
            let owners = object["metadata"]["ownerReferences"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let orphan = !owners.is_empty()
                && owners
                    .iter()
                    .all(|owner| !uids.contains(&text(&owner["uid"])));
            let ending = object["metadata"]["deletionTimestamp"].is_string();
            let free = key.0 != "persistentvolumeclaims" || !used.contains(&key.2);
            if orphan || (ending && free) {
                gone.push(key.clone());
            }
        }
        for key in gone {
            let object = self.store.objects.remove(&key).unwrap_or_default();
            let uid = text(&object["metadata"]["uid"]);
            self.lives.remove(&uid);
            if key.0 == "persistentvolumeclaims" {
                self.disks.remove(&uid);
            }
        }
    }

    fn run_sets(&mut self) {
        for set in self.store.all("statefulsets") {
            let name = format!("{}-0", text(&set["metadata"]["name"]));
            if set["spec"]["replicas"] != json!(1) {
                self.break_promise(format!("StatefulSet of {name} has not one replica"));
            }
            if self.store.get("pods", NAMESPACE, &name).is_some() {
                continue;
            }
            let template = &set["spec"]["template"];
            let mut metadata = template["metadata"].clone();
            metadata["name"] = json!(name);
            metadata["ownerReferences"] = json!([{
                "apiVersion": "apps/v1", "kind": "StatefulSet", "controller": true,
                "name": set["metadata"]["name"], "uid": set["metadata"]["uid"],
            }]);
            let pod = json!({ "metadata": metadata, "spec": template["spec"] });
            self.store.create("pods", NAMESPACE, pod);
        }
    }

    fn run_pods(&mut self) {
        for pod in self.store.all("pods") {
            let uid = text(&pod["metadata"]["uid"]);
            let Some(claim) = self
                .store
                .get("persistentvolumeclaims", NAMESPACE, &claim_of(&pod))
                .cloned()
            else {
                continue;
            };
            let claim_uid = text(&claim["metadata"]["uid"]);
            if !self.lives.contains_key(&uid) && claim["metadata"]["deletionTimestamp"].is_string()
            {
                continue;
            }
            self.refresh(&pod, &uid);
            if self.lives.get(&uid).is_some_and(|life| life.runs.is_none()) {
                self.start(&pod, &uid, &claim_uid);
            }
        }
    }

    /// The kubelet shows the record at the start, when the pod changes, and now and then.
    fn refresh(&mut self, pod: &Value, uid: &str) {
        let told = pod["metadata"]["annotations"]["cairn.dev/record"]
            .as_str()
            .map(str::to_owned);
        let born = !self.lives.contains_key(uid);
        let tick = self.tick;
        let life = self.lives.entry(uid.to_owned()).or_default();
        if !born && life.refreshed.0 == told && tick < life.refreshed.1 + LAG {
            return;
        }
        life.refreshed = (told, tick);
        let map = self.store.get("configmaps", NAMESPACE, &claim_of(pod));
        let said = map.and_then(|map| map["data"]["record.json"].as_str());
        let said = said.and_then(|said| serde_json::from_str(said).ok());
        if let Some(life) = self.lives.get_mut(uid) {
            life.mounted = said;
        }
    }

    /// What `cairn` does when it starts.
    fn start(&mut self, pod: &Value, uid: &str, claim_uid: &str) {
        let environment = pod["spec"]["containers"][0]["env"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let cluster_uid = environment
            .iter()
            .find(|set| set["name"] == "CAIRN_CLUSTER_UID");
        let own = Pod {
            uid: uid.to_owned(),
            cluster_uid: cluster_uid
                .map(|set| text(&set["value"]))
                .unwrap_or_default(),
            member: claim_of(pod),
        };
        let disk = self.disks.entry(claim_uid.to_owned()).or_default().clone();
        let held = Held {
            data: disk.data.is_some(),
            identity: disk.identity.clone(),
        };
        let Some(life) = self.lives.get(uid).cloned() else {
            return;
        };
        let record = life.mounted.as_ref();
        let used = record.is_some_and(|record| life.marks.contains(&record.record_id));
        match decide(&held, record, used, &own) {
            Decision::Run => self.run(uid, disk.data),
            Decision::Begin => {
                if let Some(record) = record {
                    self.begin(record, &own, claim_uid);
                }
            }
            Decision::Wait(_) => {}
            Decision::Refuse(refusal) => {
                let said = serde_json::to_string(&refusal.termination()).unwrap_or_default();
                let code = refusal.exit_code();
                self.store
                    .change("pods", NAMESPACE, &text(&pod["metadata"]["name"]), |pod| {
                        pod["status"]["ended"] = json!({ "exitCode": code, "message": said });
                    });
            }
        }
    }

    fn run(&mut self, uid: &str, data: Option<(u64, u64)>) {
        let tick = self.tick;
        if let Some(life) = self.lives.get_mut(uid) {
            life.runs = data;
            life.since = tick;
        }
    }

    fn begin(&mut self, record: &Record, own: &Pod, claim_uid: &str) {
        let listed: Vec<(String, String)> = record
            .initial_cluster
            .split(',')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, url)| (name.to_owned(), url.to_owned()))
            .collect();
        let Some(url) = listed
            .iter()
            .find(|(name, _)| *name == own.member)
            .map(|(_, url)| url.clone())
        else {
            self.break_promise(format!("the record of {} does not name it", own.member));
            return;
        };
        let data = match record.action {
            Action::New => self.found(record, own, url),
            _ => self.join(&listed, own, &url),
        };
        let Some(data) = data else { return };
        self.disks.insert(
            claim_uid.to_owned(),
            Disk {
                identity: serde_json::from_value(json!({
                    "clusterUID": own.cluster_uid,
                    "member": own.member,
                    "clusterID": format!("{:x}", data.0),
                    "lastRecordID": record.record_id,
                }))
                .ok(),
                data: Some(data),
            },
        );
        if let Some(life) = self.lives.get_mut(&own.uid) {
            life.marks.insert(record.record_id.clone());
        }
        self.run(&own.uid, Some(data));
    }

    fn found(&mut self, record: &Record, own: &Pod, url: String) -> Option<(u64, u64)> {
        let count = self.founded.entry(own.cluster_uid.clone()).or_default();
        *count += 1;
        if *count > 1 {
            let what = format!("a second cluster was founded for {}", own.cluster_uid);
            self.break_promise(what);
        }
        if !record.token.contains(&own.cluster_uid) {
            self.break_promise("the token could be another cluster's".to_owned());
        }
        let (cluster, member) = (self.fresh(), self.fresh());
        let seed = Member {
            id: member,
            name: own.member.clone(),
            peer_urls: vec![url],
            learner: false,
        };
        self.clusters.insert(
            cluster,
            Cluster {
                members: vec![seed],
            },
        );
        Some((cluster, member))
    }

    fn join(&mut self, listed: &[(String, String)], own: &Pod, url: &str) -> Option<(u64, u64)> {
        let urls: BTreeSet<&String> = listed.iter().map(|(_, url)| url).collect();
        let with_quorum: Vec<u64> = self
            .clusters
            .keys()
            .copied()
            .filter(|id| self.leader(*id).is_some())
            .collect();
        for id in with_quorum {
            let Some(cluster) = self.clusters.get_mut(&id) else {
                continue;
            };
            let theirs: BTreeSet<&String> = cluster
                .members
                .iter()
                .flat_map(|member| &member.peer_urls)
                .collect();
            if theirs != urls {
                continue;
            }
            let member = cluster
                .members
                .iter_mut()
                .find(|member| member.peer_urls[0] == url)?;
            let before = std::mem::replace(&mut member.name, own.member.clone());
            let found = (id, member.id);
            if !before.is_empty() {
                let what = format!("{before} joined anew with an empty disk");
                self.break_promise(what);
            }
            return Some(found);
        }
        None
    }

    fn fresh(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Members of a cluster that run.
    fn running(&self, cluster: u64) -> BTreeSet<u64> {
        let runs = self.lives.values().filter_map(|life| life.runs);
        runs.filter(|(of, _)| *of == cluster)
            .map(|(_, member)| member)
            .collect()
    }

    fn leader(&self, cluster: u64) -> Option<u64> {
        let running = self.running(cluster);
        let voters: Vec<u64> = self.clusters.get(&cluster)?.voters().collect();
        let up: Vec<u64> = voters
            .iter()
            .copied()
            .filter(|id| running.contains(id))
            .collect();
        (up.len() > voters.len() / 2).then(|| up.first().copied())?
    }

    /// What Kubernetes tells of pods.
    fn show_pods(&mut self) {
        for pod in self.store.all("pods") {
            let uid = text(&pod["metadata"]["uid"]);
            let name = text(&pod["metadata"]["name"]);
            let ended = pod["status"]["ended"].clone();
            let life = self.lives.get(&uid).cloned();
            let ready =
                life.as_ref()
                    .and_then(|life| life.runs)
                    .is_some_and(|(cluster, member)| {
                        self.leader(cluster).is_some()
                            && self.clusters[&cluster]
                                .voters()
                                .any(|voter| voter == member)
                    });
            let word = if ready { "True" } else { "False" };
            let mut status = match (&life, ended.is_null()) {
                (None, _) => json!({
                    "phase": "Pending",
                    "conditions": [{ "type": "PodScheduled", "status": "False", "message": "no claim" }],
                }),
                (Some(_), true) => json!({
                    "phase": "Running",
                    "podIP": uid,
                    "conditions": [{ "type": "Ready", "status": word }],
                    "containerStatuses": [{
                        "name": "cairn", "image": "", "imageID": "", "ready": ready, "restartCount": 0,
                        "state": { "running": {} },
                    }],
                }),
                (Some(_), false) => json!({
                    "phase": "Running",
                    "podIP": uid,
                    "conditions": [{ "type": "Ready", "status": "False" }],
                    "containerStatuses": [{
                        "name": "cairn", "image": "", "imageID": "", "ready": false, "restartCount": 1,
                        "state": { "waiting": { "reason": "CrashLoopBackOff" } },
                        "lastState": { "terminated": ended },
                    }],
                }),
            };
            if !ended.is_null() {
                status["ended"] = ended;
            }
            self.store
                .change("pods", NAMESPACE, &name, |pod| pod["status"] = status);
        }
    }

    /// Promises that hold at each tick.
    fn check(&mut self) {
        for id in self.clusters.keys().copied().collect::<Vec<_>>() {
            let cluster = &self.clusters[&id];
            let voters = cluster.voters().count();
            let learners = cluster
                .members
                .iter()
                .filter(|member| member.learner)
                .count();
            if learners > 2 {
                self.break_promise(format!("{learners} learners at once"));
            }
            self.check_budget(id, voters);
        }
        for service in self.store.all("services") {
            let selector = &service["spec"]["selector"];
            let name = text(&service["metadata"]["name"]);
            if name.ends_with("-client") && selector["cairn.dev/serving"] != "true" {
                self.break_promise(format!("{name} selects more than voters"));
            }
        }
        for pod in self.store.all("pods") {
            if pod["metadata"]["labels"]["cairn.dev/serving"] == "true" {
                let life = self.lives.get(&text(&pod["metadata"]["uid"]));
                let runs = life.and_then(|life| life.runs);
                let votes = runs.is_none_or(|(cluster, member)| {
                    self.clusters[&cluster]
                        .voters()
                        .any(|voter| voter == member)
                });
                if !votes {
                    self.break_promise("clients reach a learner".to_owned());
                }
            }
        }
    }

    /// While several vote, no eviction may take the quorum.
    fn check_budget(&mut self, cluster: u64, voters: usize) {
        // Of clusters whose object is gone nothing is promised.
        let uid = self.disks.values().find_map(|disk| {
            let own = disk.data.is_some_and(|(of, _)| of == cluster);
            disk.identity
                .as_ref()
                .filter(|_| own)
                .map(|identity| identity.cluster_uid.clone())
        });
        let lives = self.store.all("etcdclusters");
        let lives = lives
            .iter()
            .any(|object| Some(text(&object["metadata"]["uid"])) == uid);
        if voters < 2 || !lives {
            return;
        }
        let budgets = self.store.all("poddisruptionbudgets");
        let least = budgets
            .iter()
            .filter_map(|budget| budget["spec"]["minAvailable"].as_u64())
            .max();
        let quorum = (voters / 2 + 1) as u64;
        if least.is_none_or(|least| least < quorum) {
            let what = format!("{voters} members vote and the budget keeps {least:?}");
            self.break_promise(what);
        }
    }

    /// Somebody deletes a pod.
    pub fn delete_pod(&mut self, name: &str) {
        let key = ("pods".to_owned(), NAMESPACE.to_owned(), name.to_owned());
        if let Some(pod) = self.store.objects.remove(&key) {
            self.lives.remove(&text(&pod["metadata"]["uid"]));
        }
    }

    /// Somebody deletes a claim: it goes when its pod does.
    pub fn delete_claim(&mut self, name: &str) {
        self.store
            .change("persistentvolumeclaims", NAMESPACE, name, |claim| {
                claim["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            });
    }

    /// Somebody empties a disk.
    pub fn empty_disk(&mut self, claim: &str) {
        let uid = self.store.get("persistentvolumeclaims", NAMESPACE, claim);
        let uid = uid
            .map(|claim| text(&claim["metadata"]["uid"]))
            .unwrap_or_default();
        self.disks.insert(uid, Disk::default());
    }

    fn runs(&self, address: &str) -> Option<(u64, u64)> {
        self.lives.get(address)?.runs
    }
}

impl Cluster {
    fn voters(&self) -> impl Iterator<Item = u64> {
        self.members
            .iter()
            .filter(|member| !member.learner)
            .map(|member| member.id)
    }
}

fn claim_of(pod: &Value) -> String {
    text(&pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"])
}

/// The members as the operator reaches them. A pod's address is its UID.
#[derive(Clone)]
pub struct Members(pub Arc<Mutex<World>>);

impl Members {
    /// One call, with whatever befalls it.
    async fn call<T>(
        &self,
        changes: bool,
        what: &str,
        serve: impl FnOnce(&mut World) -> Result<T, String> + Send,
    ) -> Result<T, String> {
        let fate = self.0.lock().meet(changes, what);
        match fate {
            Fate::Normal => {
                if changes {
                    self.0.lock().changed(&format!("etcd {what}"), &Value::Null);
                }
                serve(&mut self.0.lock())
            }
            Fate::Refuse(code) => Err(format!("injected {code}")),
            Fate::Hang => futures::future::pending().await,
            Fate::LoseAnswer => {
                let _ = serve(&mut self.0.lock());
                Err("the connection broke".to_owned())
            }
            Fate::KillBefore => {
                self.0.lock().kill();
                futures::future::pending().await
            }
            Fate::KillAfter => {
                let _ = serve(&mut self.0.lock());
                self.0.lock().kill();
                futures::future::pending().await
            }
        }
    }
}

/// A cluster with a quorum that one of the addresses is a voter of.
fn asked(world: &World, addresses: &[String]) -> Result<u64, String> {
    for address in addresses {
        if let Some((cluster, member)) = world.runs(address)
            && world.leader(cluster).is_some()
            && world.clusters[&cluster]
                .voters()
                .any(|voter| voter == member)
        {
            return Ok(cluster);
        }
    }
    Err("no voter with a quorum".to_owned())
}

impl Etcd for Members {
    async fn status(&self, address: &str) -> Result<Answer, String> {
        self.call(false, "status", |world| {
            let (cluster, member) = world.runs(address).ok_or("cannot connect")?;
            let learner = !world.clusters[&cluster]
                .voters()
                .any(|voter| voter == member);
            Ok(Answer {
                cluster_id: cluster,
                member_id: member,
                leader: world.leader(cluster).unwrap_or_default(),
                version: "3.7.3".to_owned(),
                db_size: 4096,
                learner,
                errors: Vec::new(),
            })
        })
        .await
    }

    async fn members(&self, addresses: &[String]) -> Result<Vec<Member>, String> {
        self.call(false, "members", |world| {
            let cluster = asked(world, addresses)?;
            Ok(world.clusters[&cluster].members.clone())
        })
        .await
    }

    async fn add_learner(&self, addresses: &[String], peer_url: &str) -> Result<Changed, String> {
        self.call(true, &format!("add {peer_url}"), |world| {
            let cluster = asked(world, addresses)?;
            let running = world.running(cluster);
            let id = world.fresh();
            let members = &mut world.clusters.get_mut(&cluster).ok_or("gone")?.members;
            if members.iter().any(|member| member.peer_urls[0] == peer_url) {
                return Ok(Changed::Done);
            }
            let unwell = members
                .iter()
                .any(|member| !member.learner && !running.contains(&member.id));
            let learners = members.iter().filter(|member| member.learner).count();
            if unwell || learners >= 2 {
                return Ok(Changed::NotYet);
            }
            members.push(Member {
                id,
                name: String::new(),
                peer_urls: vec![peer_url.to_owned()],
                learner: true,
            });
            Ok(Changed::Done)
        })
        .await
    }

    async fn promote(&self, addresses: &[String], id: u64) -> Result<Changed, String> {
        self.call(true, &format!("promote {id}"), |world| {
            let cluster = asked(world, addresses)?;
            let tick = world.tick;
            let up = world
                .lives
                .values()
                .any(|life| life.runs == Some((cluster, id)) && tick >= life.since + CATCH_UP);
            let members = &mut world.clusters.get_mut(&cluster).ok_or("gone")?.members;
            let member = members
                .iter_mut()
                .find(|member| member.id == id)
                .ok_or("no such member")?;
            if member.learner && !up {
                return Ok(Changed::NotYet);
            }
            member.learner = false;
            if world.leader(cluster).is_none() {
                world.break_promise("a promotion took the quorum".to_owned());
            }
            Ok(Changed::Done)
        })
        .await
    }
}
