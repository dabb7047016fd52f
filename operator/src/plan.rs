//! What is done next: pure and total, one step at a time.
//!
//! The order is the point. What is told first is what the next step rests on: an operation stands
//! in the status before its first effect, the cluster's ID before any member is told to run for
//! good. A record says `new` only while no cluster of this object can exist, and `join` only to a
//! member that has not started. No step removes anything that holds data.

use crds::{
    EtcdClusterStatus,
    cluster::RetainPolicy,
    quantity,
    status::{Operation, OperationType},
};
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use record::{Action, Record};

use crate::{
    etcd::Member,
    observe::{Foreign, INVALID_FLAGS, Observed, Seen, Target, version},
    report,
};

/// After this time an operation counts as overdue. It goes on; a condition says so.
const OPERATION_LIMIT: SignedDuration = SignedDuration::from_mins(10);

/// The next step, and what is told meanwhile.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The status as it is to be. When it differs from the one that was read, writing it is all
    /// that this pass does.
    pub status: EtcdClusterStatus,
    /// What is done once the status stands.
    pub step: Step,
}

/// One effect, or none.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Make the headless service.
    CreatePeerService,
    /// Bring it back to what it should be.
    ApplyPeerService,
    /// Make the clients' service.
    CreateClientService,
    /// Bring it back to what it should be.
    ApplyClientService,
    /// Make the disruption budget.
    CreateBudget(i32),
    /// Change it.
    ApplyBudget(i32),
    /// A single member has none.
    DeleteBudget(Target),
    /// Make a member's record, which tells it to wait.
    Hold(i64),
    /// Make a member's claim.
    CreateVolume(i64),
    /// Make a member's StatefulSet.
    CreateSet(i64),
    /// Replace a member's record.
    WriteRecord {
        /// The member.
        member: i64,
        /// What it is told.
        record: Record,
        /// The claim that this holds for.
        volume_uid: Option<String>,
        /// The record that is replaced; `None` when it is gone.
        replaces: Option<Target>,
    },
    /// Touch a pod, so that its kubelet shows it the record at once.
    Announce {
        /// The member.
        member: i64,
        /// The record.
        record: String,
        /// UID of the pod.
        pod: String,
    },
    /// Note the cluster's ID on a member's claim.
    NoteCluster {
        /// The member.
        member: i64,
        /// The ID.
        cluster_id: String,
        /// The claim.
        volume: Target,
    },
    /// Let the pods of a member be born as serving.
    ServeSet {
        /// The member.
        member: i64,
        /// The StatefulSet.
        set: Target,
    },
    /// Let clients reach a pod.
    ServePod {
        /// The member.
        member: i64,
        /// UID of the pod.
        pod: String,
    },
    /// Add a member to etcd's list, without a vote.
    AddLearner(i64),
    /// Give it its vote.
    Promote {
        /// The member.
        member: i64,
        /// etcd's ID of it.
        id: u64,
    },
    /// Let a claim grow.
    GrowVolume {
        /// The member.
        member: i64,
        /// The claim.
        volume: Target,
    },
    /// Let a claim go with the cluster, or stay.
    OwnVolume {
        /// The member.
        member: i64,
        /// Whether it goes.
        owned: bool,
        /// The claim.
        volume: Target,
    },
    /// Nothing: something is under way.
    Wait,
    /// Nothing: all is as it should be, or somebody has to act.
    Rest,
}

impl Step {
    /// The step's name, for logs, metrics and the operation's record.
    pub fn name(&self) -> &'static str {
        match self {
            Self::CreatePeerService => "CreatePeerService",
            Self::ApplyPeerService => "ApplyPeerService",
            Self::CreateClientService => "CreateClientService",
            Self::ApplyClientService => "ApplyClientService",
            Self::CreateBudget(_) => "CreateBudget",
            Self::ApplyBudget(_) => "ApplyBudget",
            Self::DeleteBudget(_) => "DeleteBudget",
            Self::Hold(_) => "Hold",
            Self::CreateVolume(_) => "CreateVolume",
            Self::CreateSet(_) => "CreateSet",
            Self::WriteRecord { .. } => "WriteRecord",
            Self::Announce { .. } => "Announce",
            Self::NoteCluster { .. } => "NoteCluster",
            Self::ServeSet { .. } => "ServeSet",
            Self::ServePod { .. } => "ServePod",
            Self::AddLearner(_) => "AddLearner",
            Self::Promote { .. } => "Promote",
            Self::GrowVolume { .. } => "GrowVolume",
            Self::OwnVolume { .. } => "OwnVolume",
            Self::Wait => "Wait",
            Self::Rest => "Rest",
        }
    }
}

/// Why nothing more happens, or what is under way: a reason and a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Because {
    /// One word.
    pub reason: &'static str,
    /// What to do, or what is waited for.
    pub message: String,
}

impl Because {
    /// A reason with its message.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// What the picture comes to.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The picture.
    pub seen: &'a Observed,
    /// The cluster's ID as it is latched or can be from what outlived the status.
    pub cluster_id: Option<String>,
    /// Voting members of etcd's list.
    pub voters: Vec<&'a Member>,
    /// Members without a vote.
    pub learners: Vec<&'a Member>,
}

/// The smallest majority.
pub fn quorum(members: usize) -> usize {
    members / 2 + 1
}

impl<'a> Facts<'a> {
    /// What a picture comes to.
    pub fn of(seen: &'a Observed) -> Self {
        let list = seen.list.as_deref().unwrap_or_default();
        let (learners, voters) = list.iter().partition(|member| member.learner);
        Self {
            cluster_id: seen.status.cluster_id.clone().or_else(|| survived_id(seen)),
            seen,
            voters,
            learners,
        }
    }

    /// The number of one of etcd's members, if it is one of ours.
    pub fn number(&self, member: &Member) -> Option<i64> {
        let urls = member.peer_urls.iter();
        urls.filter_map(|url| self.seen.names.number_of_url(url))
            .next()
    }

    /// A member's line in etcd's list.
    pub fn listed(&self, number: i64) -> Option<&'a Member> {
        let all = self.voters.iter().chain(&self.learners);
        all.copied()
            .find(|member| self.number(member) == Some(number))
    }

    /// Whether a member has been part of the cluster: it has said its name.
    pub fn started(&self, number: i64) -> bool {
        self.listed(number)
            .is_some_and(|member| !member.name.is_empty())
    }

    /// Whether a member answers, knows a leader and complains of nothing.
    pub fn healthy(&self, number: i64) -> bool {
        let answer = self
            .seen
            .members
            .get(&number)
            .and_then(|seen| seen.answer.as_ref());
        answer.is_some_and(|answer| {
            answer
                .as_ref()
                .is_ok_and(|answer| answer.leader != 0 && answer.errors.is_empty())
        })
    }

    /// How many voters are healthy.
    pub fn healthy_voters(&self) -> usize {
        let voters = self.voters.iter().filter_map(|voter| self.number(voter));
        voters.filter(|number| self.healthy(*number)).count()
    }

    /// Whether every voter is healthy and there is one.
    pub fn all_voters_healthy(&self) -> bool {
        !self.voters.is_empty() && self.healthy_voters() == self.voters.len()
    }

    /// A member whose claim is gone although it had one.
    fn without_volume(&self) -> Option<i64> {
        let lost = |seen: &Seen| {
            let began = seen
                .said()
                .is_some_and(|record| record.action != Action::Hold);
            seen.volume.as_ref().is_none_or(|volume| volume.deleting)
                && (seen.set.is_some() || began)
        };
        let mut members = self.seen.members.iter();
        let lost = members
            .find(|(_, seen)| lost(seen))
            .map(|(number, _)| *number);
        // One of etcd's list of which nothing is left here.
        let listed = self.voters.iter().chain(&self.learners);
        let mut listed = listed.filter_map(|member| self.number(member));
        lost.or_else(|| listed.find(|number| !self.seen.members.contains_key(number)))
    }
}

fn hex(id: u64) -> String {
    format!("{id:x}")
}

/// The ID that claims or members still know when the status was lost.
fn survived_id(seen: &Observed) -> Option<String> {
    let noted = seen
        .members
        .values()
        .filter_map(|seen| seen.volume.as_ref()?.cluster_id.clone());
    let mut noted: Vec<String> = noted.collect();
    let answered = seen
        .members
        .values()
        .filter_map(|seen| seen.answer.as_ref()?.as_ref().ok());
    // A member that has not yet elected a leader, itself, has founded nothing that lasts.
    let answered = answered.filter(|answer| answer.leader != 0 && answer.cluster_id != 0);
    noted.extend(answered.map(|answer| hex(answer.cluster_id)));
    noted.sort();
    noted.dedup();
    match noted.as_slice() {
        [one] => Some(one.clone()),
        _ => None,
    }
}

/// Plans.
pub fn plan(seen: &Observed) -> Plan {
    let facts = Facts::of(seen);
    let mut status = seen.status.clone();
    latch(&facts, &mut status);
    let verdict = decide(&facts, &mut status);
    if let Some(operation) = &mut status.operation {
        operation.step = verdict.step.name().to_owned();
        operation.attempt = 1 + match &seen.failure {
            Some(failure) if failure.step == operation.step => failure.attempts,
            _ => 0,
        };
    }
    report::write(&facts, &verdict, &mut status);
    Plan {
        status,
        step: verdict.step,
    }
}

/// What is decided, and why.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The step.
    pub step: Step,
    /// Why somebody has to act.
    pub stalled: Option<Because>,
    /// What is under way.
    pub working: Option<Because>,
}

impl Verdict {
    fn stalled(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            step: Step::Rest,
            stalled: Some(Because::new(reason, message)),
            working: None,
        }
    }

    fn working(step: Step, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            step,
            stalled: None,
            working: Some(Because::new(reason, message)),
        }
    }
}

/// What never changes once it is known.
fn latch(facts: &Facts<'_>, status: &mut EtcdClusterStatus) {
    let seen = facts.seen;
    status.version = Some(version(&seen.spec, &seen.status, &seen.settings));
    status.cluster_id.clone_from(&facts.cluster_id);
    let listed = facts.voters.iter().chain(&facts.learners);
    let listed = listed.filter_map(|member| facts.number(member));
    let highest = seen.members.keys().copied().chain(listed).max();
    let next = highest.map_or(0, |highest| highest.saturating_add(1));
    status.next_member = status.next_member.max(next);
}

fn decide(facts: &Facts<'_>, status: &mut EtcdClusterStatus) -> Verdict {
    let seen = facts.seen;
    if seen.deleting {
        let message = "the cluster is being deleted; Kubernetes removes what belongs to it";
        return Verdict::working(Step::Rest, "Deleting", message);
    }
    if seen.spec.paused {
        return Verdict {
            step: Step::Rest,
            stalled: None,
            working: None,
        };
    }
    if let Some(verdict) = strangers(facts).or_else(|| other_cluster(facts)) {
        return verdict;
    }
    if let Some(step) = frame(facts, status) {
        return Verdict::working(
            step,
            "Arranging",
            "services and budget are being brought up to date",
        );
    }
    if let Some(step) = upkeep(facts) {
        return Verdict::working(
            step,
            "Arranging",
            "a member's objects are being brought up to date",
        );
    }
    if let Some(verdict) = trouble(facts) {
        return verdict;
    }
    if status.operation.is_none() {
        status.operation = next_operation(facts, status);
    }
    if let Some(verdict) = operate(facts, status) {
        return verdict;
    }
    status.operation = None;
    storage(facts)
        .or_else(|| refusal(facts))
        .or_else(|| grow(facts, status))
        .unwrap_or_else(|| at_rest(facts))
}

/// Objects of this name that are another cluster's. Nothing is ever taken over.
fn strangers(facts: &Facts<'_>) -> Option<Verdict> {
    let foreign = &facts.seen.foreign;
    let claims: Vec<&Foreign> = foreign
        .iter()
        .filter(|foreign| foreign.kind == "PersistentVolumeClaim")
        .collect();
    if let Some(first) = claims.first() {
        let names: Vec<&str> = claims.iter().map(|claim| claim.name.as_str()).collect();
        return Some(Verdict::stalled(
            "AdoptionRequired",
            format!(
                "the claims {} hold the data of an earlier cluster of this name (UID {}). They are left \
                 alone, and taking them over is not possible yet: delete them if the data are of no \
                 use, or give this cluster another name",
                names.join(", "),
                first.cluster_uid
            ),
        ));
    }
    let first = foreign.first()?;
    Some(Verdict::stalled(
        "NameConflict",
        format!(
            "{} {} bears this cluster's name and does not belong to it (UID {}); it was left alone. \
             If it is of a cluster that is being deleted it will go; otherwise delete or rename it",
            first.kind, first.name, first.cluster_uid
        ),
    ))
}

/// Members that name another cluster than the latched one: nothing may be changed.
fn other_cluster(facts: &Facts<'_>) -> Option<Verdict> {
    let odd = report::odd_members(facts);
    if odd.is_empty() {
        return None;
    }
    Some(Verdict::stalled(
        "ClusterIDMismatch",
        format!(
            "{}; the cluster's ID is {}. Nothing is changed until all name the same: put the right \
             disks back",
            odd.join(", "),
            facts
                .cluster_id
                .as_deref()
                .unwrap_or("not known, since they differ")
        ),
    ))
}

/// What is around the members: services and the budget.
fn frame(facts: &Facts<'_>, status: &EtcdClusterStatus) -> Option<Step> {
    let seen = facts.seen;
    match seen.peer_service {
        None => return Some(Step::CreatePeerService),
        Some(false) => return Some(Step::ApplyPeerService),
        Some(true) => {}
    }
    let serving = seen
        .members
        .values()
        .any(|seen| seen.set.as_ref().is_some_and(|set| set.serving));
    match seen.client_service {
        None if serving && facts.cluster_id.is_some() => return Some(Step::CreateClientService),
        Some(false) => return Some(Step::ApplyClientService),
        _ => {}
    }
    budget(facts, status)
}

/// Enough pods stay for a quorum of what is, of what is asked for, and of what is on its way. So it
/// rises before a member is added and falls after one has gone.
fn budget(facts: &Facts<'_>, status: &EtcdClusterStatus) -> Option<Step> {
    let seen = facts.seen;
    // Without the list, what was true last time.
    let live = match seen.list.is_some() {
        true => facts.voters.len(),
        false => usize::try_from(seen.status.replicas).unwrap_or_default(),
    };
    let votes = |number| facts.listed(number).is_some_and(|member| !member.learner);
    let coming = status
        .operation
        .as_ref()
        .is_some_and(|operation| !votes(operation.member));
    let target = usize::try_from(seen.spec.replicas).unwrap_or_default();
    let most = target.max(live + usize::from(coming));
    let wanted = i32::try_from(quorum(most)).unwrap_or(i32::MAX);
    match &seen.budget {
        Some(budget) if most <= 1 => Some(Step::DeleteBudget(budget.target.clone())),
        None if most > 1 => Some(Step::CreateBudget(wanted)),
        Some(budget) if budget.min_available != wanted || !budget.intact => {
            Some(Step::ApplyBudget(wanted))
        }
        _ => None,
    }
}

/// Each member's own objects, as far as no operation decides on them.
fn upkeep(facts: &Facts<'_>) -> Option<Step> {
    facts.seen.members.iter().find_map(|(number, seen)| {
        note_cluster(facts, *number, seen)
            .or_else(|| settle_record(facts, *number, seen))
            .or_else(|| announce(*number, seen))
            .or_else(|| serve(facts, *number, seen))
            .or_else(|| restore_set(*number, seen))
    })
}

/// The claim says whose data it holds before the member is told to run for good: what outlives the
/// status must suffice to never found a second cluster.
fn note_cluster(facts: &Facts<'_>, number: i64, seen: &Seen) -> Option<Step> {
    let latched = facts.seen.status.cluster_id.as_ref()?;
    let volume = seen.volume.as_ref().filter(|volume| !volume.deleting)?;
    (volume.cluster_id.is_none() && facts.started(number)).then(|| Step::NoteCluster {
        member: number,
        cluster_id: latched.clone(),
        volume: volume.target.clone(),
    })
}

/// A member that is of the cluster must have its data from now on.
fn settle_record(facts: &Facts<'_>, number: i64, seen: &Seen) -> Option<Step> {
    let run = || {
        Some(Step::WriteRecord {
            member: number,
            record: record(facts, number, Action::Run, None),
            volume_uid: None,
            replaces: seen.record.as_ref().map(|record| record.target.clone()),
        })
    };
    match seen.said() {
        Some(record) if record.action == Action::Run => None,
        // Known to etcd and to us: it has started, so an empty disk is a lost one.
        Some(_) if facts.started(number) && facts.seen.status.cluster_id.is_some() => run(),
        Some(_) => None,
        // Whoever took the record away took with it what we knew: better to ask for help than to
        // let an empty disk begin. One with data runs.
        None if seen.set.is_some() => run(),
        None => None,
    }
}

fn announce(number: i64, seen: &Seen) -> Option<Step> {
    let record = seen.said()?;
    let pod = seen.pod.as_ref().filter(|pod| !pod.deleting)?;
    let theirs = record
        .member_pod_uid
        .as_ref()
        .is_none_or(|uid| *uid == pod.target.uid);
    let told = pod.record.as_ref() == Some(&record.record_id);
    (theirs && !told && record.action != Action::Hold).then(|| Step::Announce {
        member: number,
        record: record.record_id.clone(),
        pod: pod.target.uid.clone(),
    })
}

/// Clients reach voters of the cluster that run for good. The template first, so that a pod that
/// comes back serves also when no operator is there to label it.
fn serve(facts: &Facts<'_>, number: i64, seen: &Seen) -> Option<Step> {
    facts.seen.status.cluster_id.as_ref()?;
    let votes = facts.listed(number).is_some_and(|member| !member.learner);
    let settled = seen
        .said()
        .is_some_and(|record| record.action == Action::Run);
    let set = seen
        .set
        .as_ref()
        .filter(|set| votes && settled && !set.deleting)?;
    if !set.serving {
        return Some(Step::ServeSet {
            member: number,
            set: set.target.clone(),
        });
    }
    let pod = seen
        .pod
        .as_ref()
        .filter(|pod| !pod.deleting && !pod.serving)?;
    Some(Step::ServePod {
        member: number,
        pod: pod.target.uid.clone(),
    })
}

/// A member's StatefulSet that somebody deleted comes back on the member's disk.
fn restore_set(number: i64, seen: &Seen) -> Option<Step> {
    let volume = seen.volume.as_ref().is_some_and(|volume| !volume.deleting);
    let runs = seen
        .said()
        .is_some_and(|record| record.action == Action::Run);
    (seen.set.is_none() && volume && runs).then_some(Step::CreateSet(number))
}

/// Members that need help: nothing new is begun meanwhile.
fn trouble(facts: &Facts<'_>) -> Option<Verdict> {
    for (number, seen) in &facts.seen.members {
        let refused = seen.pod.as_ref().and_then(|pod| pod.refused.as_ref());
        if let Some(refused) = refused {
            let member = facts.seen.names.member(*number);
            if refused.reason == INVALID_FLAGS {
                return Some(Verdict::stalled(
                    "InvalidExtraArgs",
                    format!(
                        "member {member} does not take its flags: {}. Changing members is not possible \
                         yet: delete the EtcdCluster and its claims, and make it anew with other \
                         spec.etcd.extraArgs",
                        refused.message
                    ),
                ));
            }
            let reason = match refused.reason.as_str() {
                "DataLost" => "DataLost",
                "ForeignData" => "ForeignData",
                "MemberRemoved" => "MemberRemoved",
                _ => "MemberRefused",
            };
            return Some(Verdict::stalled(
                reason,
                format!(
                    "member {member} does not start: {}. Replacing members is not possible yet",
                    refused.message
                ),
            ));
        }
    }
    let number = facts.without_volume()?;
    let member = facts.seen.names.member(number);
    Some(Verdict::stalled(
        "VolumeLost",
        format!(
            "the claim {member} is gone or being deleted, and with it the data of member {member}. No \
             empty one is made in its place, and replacing members is not possible yet: restore the \
             claim, or, if the cluster holds nothing of use, delete it and make it anew"
        ),
    ))
}

/// What the spec asks for and cannot be done yet.
fn refusal(facts: &Facts<'_>) -> Option<Verdict> {
    let seen = facts.seen;
    let running = seen.status.version.as_deref();
    if let (Some(wanted), Some(running)) = (seen.spec.version.as_deref(), running)
        && wanted != running
    {
        return Some(Verdict::stalled(
            "VersionChangeNotSupported",
            format!(
                "the members run version {running}, and a change to {wanted} is not possible yet: set \
                 spec.version to {running}"
            ),
        ));
    }
    let other = |seen: &Seen| {
        seen.set
            .as_ref()
            .is_some_and(|set| set.hash != facts.seen.template_hash)
    };
    let mut others = seen.members.iter().filter(|(_, seen)| other(seen));
    if let Some((number, _)) = others.next() {
        return Some(Verdict::stalled(
            "TemplateChangeNotSupported",
            format!(
                "spec.etcd, spec.pod or spec.image changed since member {} was made, and changing \
                 running members is not possible yet: the members go on as they are. Undo the change",
                seen.names.member(*number)
            ),
        ));
    }
    let target = usize::try_from(seen.spec.replicas).unwrap_or_default();
    if seen.list.is_some() && facts.voters.len() > target {
        let live = facts.voters.len();
        return Some(Verdict::stalled(
            "ShrinkNotSupported",
            format!(
                "the cluster has {live} members, and making it smaller is not possible yet: set \
                 spec.replicas to {}",
                live | 1
            ),
        ));
    }
    None
}

/// The operation that what is there asks for: one that a lost status forgot, or the very first.
fn next_operation(facts: &Facts<'_>, status: &EtcdClusterStatus) -> Option<Operation> {
    let seen = facts.seen;
    let unfinished = |number: &i64, member: &Seen| {
        let waiting = member
            .said()
            .is_some_and(|record| record.action != Action::Run);
        let learner = facts
            .learners
            .iter()
            .any(|learner| facts.number(learner) == Some(*number));
        waiting || learner
    };
    if facts.cluster_id.is_some() {
        let mut known = seen
            .members
            .iter()
            .filter(|(number, seen)| unfinished(number, seen));
        let (number, _) = known.next()?;
        return Some(begin(seen, OperationType::Grow, *number));
    }
    match seen.members.len() {
        0 => Some(begin(seen, OperationType::Bootstrap, status.next_member)),
        // The seed whose cluster nobody has seen yet.
        1 => {
            let (number, member) = seen.members.iter().next()?;
            let seed = member.said().map(|record| record.action);
            matches!(seed, Some(Action::Hold | Action::New))
                .then(|| begin(seen, OperationType::Bootstrap, *number))
        }
        _ => None,
    }
}

fn begin(seen: &Observed, r#type: OperationType, member: i64) -> Operation {
    let word = match r#type {
        OperationType::Bootstrap => "bootstrap",
        OperationType::Grow => "grow",
    };
    // Numbers are never used again, so this names one operation of this cluster.
    Operation {
        id: format!("{word}-{member}"),
        r#type,
        member,
        step: String::new(),
        spec_hash: seen.spec_hash.clone(),
        started_at: Time(seen.now),
        attempt: 1,
        deadline: Time(seen.now.checked_add(OPERATION_LIMIT).unwrap_or(seen.now)),
    }
}

/// The next step of the operation in flight; `None` when it is done.
fn operate(facts: &Facts<'_>, status: &mut EtcdClusterStatus) -> Option<Verdict> {
    let operation = status.operation.clone()?;
    // The number is used up in the write that begins the operation.
    status.next_member = status.next_member.max(operation.member.saturating_add(1));
    match operation.r#type {
        OperationType::Bootstrap => bootstrap(facts, operation.member),
        OperationType::Grow => join(facts, operation.member),
    }
}

/// Record, claim, StatefulSet, in this order: no pod may ever see a disk without a record.
fn parts(facts: &Facts<'_>, number: i64) -> Option<Step> {
    let nothing = Seen::default();
    let seen = facts.seen.members.get(&number).unwrap_or(&nothing);
    if seen.set.is_some() {
        return None;
    }
    if seen.said().is_none() {
        return Some(match &seen.record {
            None => Step::Hold(number),
            Some(unreadable) => Step::WriteRecord {
                member: number,
                record: record(facts, number, Action::Hold, None),
                volume_uid: None,
                replaces: Some(unreadable.target.clone()),
            },
        });
    }
    Some(match seen.volume {
        None => Step::CreateVolume(number),
        Some(_) => Step::CreateSet(number),
    })
}

fn bootstrap(facts: &Facts<'_>, number: i64) -> Option<Verdict> {
    let member = facts.seen.names.member(number);
    let working = |step, message: &str| {
        Some(Verdict::working(
            step,
            "Bootstrapping",
            format!("{member}: {message}"),
        ))
    };
    if facts.cluster_id.is_some() {
        let settled = facts.seen.members.get(&number).and_then(Seen::said);
        return match settled.is_some_and(|record| record.action == Action::Run) {
            true => None,
            false => working(Step::Wait, "waiting until the new cluster answers"),
        };
    }
    if let Some(step) = parts(facts, number) {
        return working(step, "the first member is being made");
    }
    let seen = facts.seen.members.get(&number)?;
    let Some(pod) = seen.pod.as_ref().filter(|pod| !pod.deleting) else {
        return working(Step::Wait, "waiting for its pod");
    };
    let armed = seen.said().filter(|record| record.action == Action::New);
    if armed.is_some_and(|record| record.member_pod_uid.as_ref() == Some(&pod.target.uid)) {
        return working(Step::Wait, "founding the cluster");
    }
    let volume = seen.volume.as_ref()?;
    if let Some(refused) = other_disk(&member, seen, &volume.target.uid) {
        return Some(refused);
    }
    // A record that says more than this was written for a cluster that exists.
    let founds =
        matches!(seen.said(), Some(record) if matches!(record.action, Action::Hold | Action::New));
    if facts.seen.members.len() > 1 || !founds {
        return Some(Verdict::stalled(
            "AdoptionRequired",
            "members of this cluster exist, and none says of which etcd cluster; no cluster is founded \
             over them. If none holds data, delete the EtcdCluster with its claims and make it anew",
        ));
    }
    let mut new = record(facts, number, Action::New, Some(&pod.target.uid));
    new.initial_cluster = format!("{member}={}", facts.seen.names.peer_url(number));
    new.token = facts.seen.names.token();
    working(
        Step::WriteRecord {
            member: number,
            record: new,
            volume_uid: Some(volume.target.uid.clone()),
            replaces: seen.record.as_ref().map(|record| record.target.clone()),
        },
        "its pod is told to found the cluster",
    )
}

/// A record that was written for one disk is never renewed for another: the first may hold what the
/// second lacks.
fn other_disk(member: &str, seen: &Seen, volume_uid: &str) -> Option<Verdict> {
    let written = seen.record.as_ref()?.volume_uid.as_ref()?;
    (written != volume_uid).then(|| {
        Verdict::stalled(
            "VolumeReplaced",
            format!(
                "the claim {member} was replaced while member {member} began; the first one may hold \
                 its data. Restore it, or delete the EtcdCluster and its claims and make it anew"
            ),
        )
    })
}

fn join(facts: &Facts<'_>, number: i64) -> Option<Verdict> {
    let member = facts.seen.names.member(number);
    let working = |step, message: &str| {
        Some(Verdict::working(
            step,
            "Growing",
            format!("{member}: {message}"),
        ))
    };
    if facts.seen.list.is_none() {
        return working(Step::Wait, "waiting for a quorum of members to answer");
    }
    if let Some(step) = parts(facts, number) {
        return working(step, "the member's objects are being made");
    }
    let seen = facts.seen.members.get(&number)?;
    let Some(pod) = seen.pod.as_ref().filter(|pod| !pod.deleting && pod.running) else {
        // Only a pod that runs is added to the list: one that never starts would count there.
        return working(Step::Wait, "waiting for its pod");
    };
    let Some(listed) = facts.listed(number) else {
        return match facts.all_voters_healthy() && facts.learners.is_empty() {
            true => working(Step::AddLearner(number), "it is being added as a learner"),
            false => working(Step::Wait, "waiting until every member is healthy"),
        };
    };
    if !listed.name.is_empty() {
        let settled = seen
            .said()
            .is_some_and(|record| record.action == Action::Run);
        if !listed.learner && settled {
            return None;
        }
        return match settled && facts.healthy(number) && facts.all_voters_healthy() {
            true => working(
                Step::Promote {
                    member: number,
                    id: listed.id,
                },
                "it catches up and is then given its vote",
            ),
            false => working(Step::Wait, "waiting until it is healthy"),
        };
    }
    let armed = seen.said().filter(|record| record.action == Action::Join);
    if armed.is_some_and(|record| record.member_pod_uid.as_ref() == Some(&pod.target.uid)) {
        return working(Step::Wait, "joining the cluster");
    }
    let volume = seen.volume.as_ref()?;
    if let Some(refused) = other_disk(&member, seen, &volume.target.uid) {
        return Some(refused);
    }
    let mut join = record(facts, number, Action::Join, Some(&pod.target.uid));
    join.initial_cluster = initial_cluster(facts);
    join.token = facts.seen.names.token();
    working(
        Step::WriteRecord {
            member: number,
            record: join,
            volume_uid: Some(volume.target.uid.clone()),
            replaces: seen.record.as_ref().map(|record| record.target.clone()),
        },
        "its pod is told to join",
    )
}

/// All members with their URLs, as `--initial-cluster` has them.
fn initial_cluster(facts: &Facts<'_>) -> String {
    let mut members: Vec<String> = Vec::new();
    for member in facts.voters.iter().chain(&facts.learners) {
        let ours = facts
            .number(member)
            .map(|number| facts.seen.names.member(number));
        let name = match member.name.is_empty() {
            true => ours.unwrap_or_else(|| hex(member.id)),
            false => member.name.clone(),
        };
        members.extend(member.peer_urls.iter().map(|url| format!("{name}={url}")));
    }
    members.sort();
    members.join(",")
}

/// A record. Its ID says all that makes it another: a write whose answer was lost is the same again.
pub fn record(facts: &Facts<'_>, number: i64, action: Action, pod_uid: Option<&str>) -> Record {
    let names = &facts.seen.names;
    let member = names.member(number);
    let word = match action {
        Action::Hold => "hold",
        Action::New => "new",
        Action::Join => "join",
        Action::Run => "run",
        Action::Restore => "restore",
        Action::ForceNew => "force-new",
    };
    let suffix = pod_uid.map(|uid| format!("-{uid}")).unwrap_or_default();
    Record {
        record_id: format!("{word}-{member}{suffix}"),
        cluster_uid: names.uid.clone(),
        member,
        action,
        member_pod_uid: pod_uid.map(str::to_owned),
        initial_cluster: String::new(),
        token: String::new(),
    }
}

/// Claims: who they go with, and their size.
fn storage(facts: &Facts<'_>) -> Option<Verdict> {
    let seen = facts.seen;
    let owned = seen.spec.storage.retain.on_delete == RetainPolicy::Delete;
    let size = quantity::bytes(&seen.spec.storage.size).unwrap_or_default();
    let volumes = seen.members.iter();
    let volumes = volumes.filter_map(|(number, seen)| Some((*number, seen.volume.as_ref()?)));
    let mut refused = None;
    for (member, volume) in volumes.filter(|(_, volume)| !volume.deleting) {
        let claim = seen.names.member(member);
        if volume.owned != owned {
            let step = Step::OwnVolume {
                member,
                owned,
                volume: volume.target.clone(),
            };
            return Some(Verdict::working(
                step,
                "Arranging",
                format!("claim {claim}: retain policy"),
            ));
        }
        if volume.asked >= size {
            continue;
        }
        let class = volume.class.as_deref().unwrap_or_default();
        if seen.classes.get(class).copied().unwrap_or_default() {
            let step = Step::GrowVolume {
                member,
                volume: volume.target.clone(),
            };
            return Some(Verdict::working(
                step,
                "GrowingStorage",
                format!("claim {claim} grows"),
            ));
        }
        refused.get_or_insert_with(|| {
            Verdict::stalled(
                "StorageCannotGrow",
                format!(
                    "the claim {claim} cannot grow: its StorageClass '{class}' does not allow it. Set \
                     allowVolumeExpansion in the class, or undo the change of spec.storage.size"
                ),
            )
        });
    }
    refused
}

/// Begins to add a member, when there are too few and all are well.
fn grow(facts: &Facts<'_>, status: &mut EtcdClusterStatus) -> Option<Verdict> {
    let seen = facts.seen;
    let target = usize::try_from(seen.spec.replicas).unwrap_or_default();
    if seen.list.is_none() || facts.voters.len() >= target {
        return None;
    }
    if !facts.all_voters_healthy() || !facts.learners.is_empty() {
        let message = "a member is to be added; waiting until every member is healthy";
        return Some(Verdict::working(Step::Wait, "Growing", message));
    }
    status.operation = Some(begin(seen, OperationType::Grow, status.next_member));
    operate(facts, status)
}

/// Nothing to do: either all is well, or members are awaited.
fn at_rest(facts: &Facts<'_>) -> Verdict {
    if facts.cluster_id.is_none() {
        return Verdict::stalled(
            "AdoptionRequired",
            "members of this cluster exist, and nothing says of which etcd cluster they are; no \
             cluster is founded over them. Bring a member up, or delete the EtcdCluster with its \
             claims and make it anew",
        );
    }
    if facts.seen.list.is_none() {
        return Verdict::working(
            Step::Wait,
            "NoQuorum",
            "waiting for a quorum of members to answer",
        );
    }
    let all = report::all_ready(facts);
    Verdict {
        step: if all { Step::Rest } else { Step::Wait },
        stalled: None,
        working: (!all)
            .then(|| Because::new("MembersNotReady", "waiting for members to become ready")),
    }
}
