//! The planner over generated pictures, also such as cannot come about: whatever it sees, it ends,
//! and what it plans keeps the promises.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;

use crds::{EtcdClusterSpec, EtcdClusterStatus, status::OperationType};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use operator::{
    Settings,
    etcd::{Answer, Member},
    names::Names,
    observe::{Budget, Failure, Foreign, Observed, PodSeen, Seen, Set, Target, Volume, Written},
    plan::{Facts, Step, plan},
};
use proptest::prelude::*;
use record::{Action, Record, Termination};

/// Choices, one byte each; when they run out, the first of each.
struct Dice(std::vec::IntoIter<u8>);

impl Dice {
    fn roll(&mut self, sides: u8) -> u8 {
        self.0.next().unwrap_or_default() % sides
    }

    fn yes(&mut self) -> bool {
        self.roll(2) == 1
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        match self.yes() {
            true => Some(make(self)),
            false => None,
        }
    }

    /// One time in sixteen.
    fn rarely(&mut self) -> bool {
        self.roll(16) == 15
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        let index = self.roll(u8::try_from(from.len()).unwrap());
        from[usize::from(index)].clone()
    }
}

/// The cluster's ID, rarely another.
fn id(dice: &mut Dice) -> u64 {
    if dice.rarely() { 0xb } else { 0xa }
}

fn target(dice: &mut Dice, what: &str) -> Target {
    Target {
        uid: format!("{what}-{}", dice.roll(2)),
        resource_version: "7".into(),
    }
}

fn names() -> Names {
    Names {
        namespace: "prod".into(),
        cluster: "db".into(),
        uid: "own".into(),
    }
}

fn record(dice: &mut Dice, number: i64) -> Record {
    let actions = [
        Action::Hold,
        Action::New,
        Action::Join,
        Action::Run,
        Action::Restore,
    ];
    Record {
        record_id: format!("r-{}", dice.roll(2)),
        cluster_uid: "own".into(),
        member: names().member(number),
        action: dice.pick(&actions),
        member_pod_uid: dice.maybe(|dice| format!("pod-{}", dice.roll(2))),
        initial_cluster: String::new(),
        token: String::new(),
    }
}

fn answer(dice: &mut Dice) -> Result<Answer, String> {
    if dice.rarely() {
        return Err("cannot connect".into());
    }
    Ok(Answer {
        cluster_id: id(dice),
        member_id: u64::from(dice.roll(4)),
        leader: u64::from(dice.roll(8)),
        version: "3.7.3".into(),
        db_size: 1 << 20,
        learner: dice.yes(),
        errors: Some("NOSPACE".to_owned())
            .filter(|_| dice.rarely())
            .into_iter()
            .collect(),
    })
}

/// A member as it may be on its way, or any at all.
fn member(dice: &mut Dice, number: i64) -> Seen {
    let mut seen = anything(dice, number);
    let stage = dice.roll(7);
    if stage == 6 {
        return seen;
    }
    let mut said = record(dice, number);
    let pod = seen.pod.get_or_insert_default();
    pod.target.uid = "pod-0".into();
    pod.ip = Some("10.0.0.1".into());
    pod.refused = None;
    pod.deleting = false;
    said.member_pod_uid = None;
    said.action = match stage {
        0..=2 => Action::Hold,
        3 => dice.pick(&[Action::New, Action::Join]),
        _ => Action::Run,
    };
    if stage == 3 {
        said.member_pod_uid = Some(format!("pod-{}", dice.roll(2)));
    }
    if stage >= 3 && !dice.rarely() {
        pod.record = Some(said.record_id.clone());
    }
    let volume = seen.volume.get_or_insert_default();
    volume.target.uid = "volume-0".into();
    volume.deleting = false;
    if stage <= 3 && !dice.rarely() {
        volume.cluster_id = None;
    }
    let set = seen.set.get_or_insert_default();
    set.deleting = false;
    set.hash = "same".into();
    match stage {
        0 => (seen.volume, seen.set, seen.pod) = (None, None, None),
        1 => (seen.set, seen.pod) = (None, None),
        _ => {}
    }
    if stage >= 4 {
        seen.answer = Some(answer(dice));
    } else if !dice.rarely() {
        seen.answer = None;
    }
    seen.record = Some(Written {
        target: target(dice, "record"),
        record: Some(said),
        volume_uid: dice.maybe(|_| "volume-0".to_owned()),
    });
    seen
}

fn anything(dice: &mut Dice, number: i64) -> Seen {
    Seen {
        set: dice.maybe(|dice| Set {
            target: target(dice, "set"),
            hash: dice.pick(&["same", "same", "other"]).to_owned(),
            serving: dice.yes(),
            deleting: dice.roll(8) == 7,
        }),
        volume: dice.maybe(|dice| Volume {
            target: target(dice, "volume"),
            cluster_id: dice.maybe(|dice| format!("{:x}", id(dice))),
            owned: dice.yes(),
            asked: dice.pick(&[8 << 30, 4 << 30]),
            class: dice.maybe(|_| "standard".to_owned()),
            deleting: dice.roll(8) == 7,
        }),
        record: dice.maybe(|dice| Written {
            target: target(dice, "record"),
            record: Some(record(dice, number)).filter(|_| dice.roll(8) != 7),
            volume_uid: dice.maybe(|dice| format!("volume-{}", dice.roll(2))),
        }),
        pod: dice.maybe(|dice| PodSeen {
            target: target(dice, "pod"),
            ip: Some("10.0.0.1".into()),
            running: dice.yes(),
            ready: dice.yes(),
            deleting: dice.roll(8) == 7,
            record: dice.maybe(|dice| format!("r-{}", dice.roll(2))),
            serving: dice.yes(),
            refused: Some(Termination {
                reason: "DataLost".into(),
                message: "gone".into(),
                exit_code: 64,
            })
            .filter(|_| dice.roll(8) == 7),
            trouble: dice.maybe(|_| "not scheduled".to_owned()),
        }),
        answer: dice.maybe(answer),
    }
}

fn picture(choices: Vec<u8>) -> Observed {
    let mut dice = Dice(choices.into_iter());
    let dice = &mut dice;
    let mut members = BTreeMap::new();
    let count = dice.roll(5);
    for number in 0..4 {
        if i64::from(count) > number && !dice.rarely() {
            members.insert(number, member(dice, number));
        }
    }
    let list = dice.maybe(|dice| {
        let mut list = Vec::new();
        for number in 0..4 {
            if dice.yes() {
                list.push(Member {
                    id: u64::try_from(number).unwrap() + 1,
                    name: dice.pick(&[
                        names().member(number),
                        names().member(number),
                        String::new(),
                    ]),
                    peer_urls: vec![names().peer_url(number)],
                    learner: dice.roll(3) == 2,
                });
            }
        }
        list
    });
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    let operation = dice.maybe(|dice| crds::status::Operation {
        id: "op".into(),
        r#type: dice.pick(&[OperationType::Bootstrap, OperationType::Grow]),
        member: i64::from(dice.roll(4)),
        step: String::new(),
        spec_hash: "spec".into(),
        started_at: Time(now),
        attempt: 1,
        deadline: Time(now),
    });
    let mut seen = Observed {
        names: names(),
        spec: EtcdClusterSpec {
            replicas: dice.pick(&[1, 3, 5]),
            paused: dice.rarely(),
            version: dice.maybe(|dice| dice.pick(&["0.1.0", "0.2.0"]).to_owned()),
            ..EtcdClusterSpec::default()
        },
        status: EtcdClusterStatus {
            cluster_id: dice.maybe(|dice| format!("{:x}", id(dice))),
            version: dice.maybe(|_| "0.1.0".to_owned()),
            next_member: i64::from(dice.roll(4)),
            replicas: i32::from(dice.roll(4)),
            operation,
            ..EtcdClusterStatus::default()
        },
        generation: Some(3),
        resource_version: "9".into(),
        deleting: dice.rarely(),
        now,
        settings: Settings {
            server_image: "cairn".into(),
            version: "0.1.0".into(),
            cluster_domain: "cluster.local".into(),
        },
        template_hash: "same".into(),
        spec_hash: "spec".into(),
        members,
        foreign: match dice.rarely() {
            true => vec![Foreign {
                kind: "PersistentVolumeClaim",
                name: "db-0".into(),
                cluster_uid: "old".into(),
            }],
            false => Vec::new(),
        },
        peer_service: if dice.rarely() {
            dice.pick(&[Some(false), None])
        } else {
            Some(true)
        },
        client_service: if dice.rarely() {
            dice.pick(&[Some(false), None])
        } else {
            Some(true)
        },
        budget: dice.maybe(|dice| Budget {
            min_available: i32::from(dice.roll(4)),
            intact: dice.yes(),
            target: target(dice, "budget"),
        }),
        list,
        classes: BTreeMap::from([("standard".to_owned(), dice.yes())]),
        failure: dice.maybe(|_| Failure {
            step: "Hold".into(),
            reason: "RequestRefused".into(),
            message: "no".into(),
            attempts: 2,
        }),
    };
    // Mostly with the budget that belongs to it, or nothing else would ever be reached.
    if !dice.rarely() {
        let intact = |min_available| Budget {
            min_available,
            intact: true,
            target: Target::default(),
        };
        let mut look = seen.clone();
        for _ in 0..6 {
            look.status = plan(&look).status;
        }
        match plan(&look).step {
            Step::CreateBudget(least) | Step::ApplyBudget(least) => {
                seen.budget = Some(intact(least))
            }
            Step::DeleteBudget(_) => seen.budget = None,
            _ => {}
        }
    }
    seen
}

/// The picture once the status stands, and the step that is then done. Fails if the status never
/// comes to rest: it would be written for ever, and nothing done.
fn settled(mut seen: Observed) -> (Observed, Step) {
    for _ in 0..6 {
        let plan = plan(&seen);
        if plan.status == seen.status {
            return (seen, plan.step);
        }
        seen.status = plan.status;
    }
    panic!("the status does not come to rest: {:#?}", seen.status);
}

fn check(choices: Vec<u8>) {
    let (seen, step) = settled(picture(choices));
    let facts = Facts::of(&seen);
    let of = |number: &i64| seen.members.get(number);
    let idle = seen.deleting || seen.spec.paused || !seen.foreign.is_empty();
    assert!(
        !idle || step == Step::Rest,
        "{step:?} while it must keep its hands off"
    );
    match &step {
        Step::Hold(number) => {
            let operation = seen.status.operation.as_ref().expect("an operation");
            assert_eq!(operation.member, *number);
            assert!(
                seen.status.next_member > *number,
                "the number is not used up"
            );
            assert!(
                of(number).is_none_or(|member| member.set.is_none() && member.record.is_none())
            );
        }
        Step::CreateVolume(number) => {
            let member = of(number).unwrap();
            assert!(member.set.is_none() && member.volume.is_none());
            let said = member.said().unwrap().action;
            assert_eq!(
                said,
                Action::Hold,
                "an empty disk for a member that may have begun"
            );
        }
        Step::CreateSet(number) => {
            let member = of(number).unwrap();
            assert!(member.set.is_none() && member.volume.is_some() && member.said().is_some());
        }
        Step::WriteRecord {
            member,
            record,
            volume_uid,
            ..
        } => check_record(&seen, &facts, *member, record, volume_uid.as_deref()),
        Step::AddLearner(number) => {
            assert!(facts.all_voters_healthy(), "added while a voter is unwell");
            assert!(facts.learners.is_empty() && facts.listed(*number).is_none());
            assert_eq!(
                seen.status.operation.as_ref().map(|o| o.member),
                Some(*number)
            );
            assert!(of(number).unwrap().pod.as_ref().unwrap().running);
        }
        Step::Promote { member, .. } => {
            assert!(facts.healthy(*member) && facts.all_voters_healthy());
            assert_eq!(of(member).unwrap().said().unwrap().action, Action::Run);
        }
        Step::ServePod { member, .. } | Step::ServeSet { member, .. } => {
            assert!(facts.listed(*member).is_some_and(|listed| !listed.learner));
        }
        Step::CreateBudget(least) | Step::ApplyBudget(least) => {
            let voters = i32::try_from(facts.voters.len()).unwrap();
            assert!(*least > voters / 2, "{least} of {voters}");
        }
        Step::DeleteBudget(_) => assert!(facts.voters.len() <= 1),
        _ => {}
    }
}

fn check_record(
    seen: &Observed,
    facts: &Facts<'_>,
    number: i64,
    record: &Record,
    volume_uid: Option<&str>,
) {
    let member = &seen.members[&number];
    assert_eq!(record.cluster_uid, "own");
    match record.action {
        Action::New => {
            assert_eq!(seen.status.cluster_id, None, "founded over a known cluster");
            assert_eq!(seen.members.len(), 1, "founded beside other members");
            let volume = member.volume.as_ref().unwrap();
            assert_eq!(volume.cluster_id, None);
            assert_eq!(volume_uid, Some(volume.target.uid.as_str()));
            let before = member
                .record
                .as_ref()
                .and_then(|written| written.volume_uid.clone());
            assert!(
                before.is_none_or(|before| before == volume.target.uid),
                "for another disk"
            );
            let said = member.said().unwrap().action;
            assert!(
                matches!(said, Action::Hold | Action::New),
                "{said:?} became new"
            );
            assert!(record.member_pod_uid.is_some());
        }
        Action::Join => {
            assert!(
                !facts.started(number),
                "a member that has started joins again"
            );
            assert!(facts.listed(number).is_some());
            assert!(record.member_pod_uid.is_some());
        }
        Action::Run | Action::Hold => {}
        other => panic!("{other:?}"),
    }
}

/// The promises above would hold as well if no picture ever led to a step that could break them.
#[test]
fn the_pictures_lead_to_every_step() {
    use rand::{RngCore, SeedableRng};
    let mut chance = rand::rngs::StdRng::seed_from_u64(1);
    let mut seen = BTreeMap::<String, u32>::new();
    for _ in 0..200_000 {
        let mut choices = vec![0; 220];
        chance.fill_bytes(&mut choices);
        let (_, step) = settled(picture(choices));
        let word = match &step {
            Step::WriteRecord { record, .. } => format!("{:?}", record.action),
            step => step.name().to_owned(),
        };
        *seen.entry(word).or_default() += 1;
    }
    for step in [
        "Hold",
        "New",
        "Join",
        "Run",
        "CreatePeerService",
        "ApplyPeerService",
        "CreateClientService",
        "ApplyClientService",
        "CreateBudget",
        "ApplyBudget",
        "DeleteBudget",
        "CreateVolume",
        "CreateSet",
        "Announce",
        "NoteCluster",
        "ServeSet",
        "ServePod",
        "AddLearner",
        "Promote",
        "GrowVolume",
        "OwnVolume",
        "Wait",
        "Rest",
    ] {
        assert!(
            seen.contains_key(step),
            "no picture leads to {step}: {seen:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_seen_the_promises_hold(choices in prop::collection::vec(any::<u8>(), 0..220)) {
        check(choices);
    }
}
