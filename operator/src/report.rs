//! What is told: the status, from the picture and the verdict.

use crds::{
    EtcdClusterStatus, quantity,
    status::{MemberPhase, MemberStatus, OperationType, Phase, Role, condition},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::{
    observe::Seen,
    plan::{Because, Facts, Verdict, quorum},
};

/// Longest message of a condition, in bytes; Kubernetes takes 32 KiB.
const MAX_MESSAGE_BYTES: usize = 2048;

/// What members and claims say that cannot be true of one cluster, a phrase each.
pub fn odd_members(facts: &Facts<'_>) -> Vec<String> {
    let mut said: Vec<(String, String)> = Vec::new();
    for (number, seen) in &facts.seen.members {
        let member = facts.seen.names.member(*number);
        if let Some(Ok(answer)) = &seen.answer
            && answer.cluster_id != 0
        {
            let id = format!("{:x}", answer.cluster_id);
            said.push((format!("member {member} is of cluster {id}"), id));
        }
        let noted = seen
            .volume
            .as_ref()
            .and_then(|volume| volume.cluster_id.clone());
        if let Some(id) = noted {
            said.push((format!("the claim {member} holds data of cluster {id}"), id));
        }
    }
    let agreed = match &facts.cluster_id {
        Some(id) => Some(id.clone()),
        // Nothing is latched: two that differ are both odd.
        None => said
            .first()
            .map(|(_, id)| id.clone())
            .filter(|first| said.iter().all(|(_, id)| id == first)),
    };
    said.into_iter()
        .filter(|(_, id)| Some(id) != agreed.as_ref())
        .map(|(text, _)| text)
        .collect()
}

/// Whether a member is healthy and Kubernetes calls its pod ready.
fn ready(facts: &Facts<'_>, number: i64) -> bool {
    let pod = facts
        .seen
        .members
        .get(&number)
        .and_then(|seen| seen.pod.as_ref());
    facts.healthy(number) && pod.is_some_and(|pod| pod.ready && !pod.deleting)
}

fn ready_voters(facts: &Facts<'_>) -> usize {
    let voters = facts.voters.iter().filter_map(|voter| facts.number(voter));
    voters.filter(|number| ready(facts, *number)).count()
}

/// Whether there are as many voters as asked for, all of them ready, and nobody else.
pub fn all_ready(facts: &Facts<'_>) -> bool {
    let target = usize::try_from(facts.seen.spec.replicas).unwrap_or_default();
    facts.voters.len() == target
        && facts.learners.is_empty()
        && ready_voters(facts) == facts.voters.len()
}

/// Fills in all that is told.
pub fn write(facts: &Facts<'_>, verdict: &Verdict, status: &mut EtcdClusterStatus) {
    let seen = facts.seen;
    status.observed_generation = seen.generation;
    // Without the list it is not known how many vote; what was true last stays.
    if seen.list.is_some() {
        status.replicas = i32::try_from(facts.voters.len()).unwrap_or(i32::MAX);
    }
    status.ready_replicas = i32::try_from(ready_voters(facts)).unwrap_or(i32::MAX);
    status.ready = Some(format!("{}/{}", status.ready_replicas, seen.spec.replicas));
    let selector = seen.names.pod_selector();
    let selector: Vec<String> = selector
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    status.selector = Some(selector.join(","));
    status.members = seen
        .members
        .iter()
        .map(|(number, seen)| member(facts, *number, seen))
        .collect();
    status.leader = status
        .members
        .iter()
        .find(|member| member.role == Role::Leader)
        .map(|member| member.name.clone());
    let answers = seen
        .members
        .values()
        .filter_map(|seen| seen.answer.as_ref()?.as_ref().ok());
    if let Some(largest) = answers.map(|answer| answer.db_size).max() {
        status.db_size = Some(quantity::rounded(largest));
    }
    status.endpoints = endpoints(facts);
    status.conditions = conditions(facts, verdict, status);
    status.phase = Some(phase(facts, verdict, status));
}

fn endpoints(facts: &Facts<'_>) -> Vec<String> {
    let seen = facts.seen;
    if facts.cluster_id.is_none() || seen.client_service.is_none() {
        return Vec::new();
    }
    if seen.list.is_none() {
        return seen.status.endpoints.clone();
    }
    let domain = &seen.settings.cluster_domain;
    let mut members: Vec<i64> = facts
        .voters
        .iter()
        .filter_map(|voter| facts.number(voter))
        .collect();
    members.sort_unstable();
    let members = members
        .into_iter()
        .map(|number| seen.names.member_url(number, domain));
    std::iter::once(seen.names.service_url(domain))
        .chain(members)
        .collect()
}

fn member(facts: &Facts<'_>, number: i64, seen: &Seen) -> MemberStatus {
    let names = &facts.seen.names;
    let listed = facts.listed(number);
    let answer = seen.answer.as_ref().and_then(|answer| answer.as_ref().ok());
    let before = facts
        .seen
        .status
        .members
        .iter()
        .find(|member| member.name == names.member(number));
    let role = match (listed, answer) {
        (Some(listed), _) if listed.learner => Role::Learner,
        (Some(listed), Some(answer)) if answer.leader == listed.id => Role::Leader,
        (Some(_), _) => Role::Voter,
        // Without a quorum nobody leads, and who votes is what it was.
        (None, _) if facts.seen.list.is_none() => match before.map(|before| before.role) {
            Some(Role::Leader) | None => Role::None,
            Some(role) => role,
        },
        (None, _) => Role::None,
    };
    let ready = ready(facts, number);
    let phase = match role {
        Role::Learner if facts.started(number) && facts.healthy(number) => MemberPhase::Learner,
        Role::Leader | Role::Voter if ready => MemberPhase::Ready,
        Role::Learner | Role::None
            if seen.answer.as_ref().is_none_or(Result::is_err) && !refused(seen) =>
        {
            MemberPhase::Provisioning
        }
        _ => MemberPhase::Unhealthy,
    };
    let id = listed.map(|listed| format!("{:x}", listed.id));
    MemberStatus {
        name: names.member(number),
        member_id: id.or_else(|| before.and_then(|before| before.member_id.clone())),
        pod_name: names.pod(number),
        role,
        phase,
        version: answer
            .map(|answer| answer.version.clone())
            .filter(|version| !version.is_empty()),
        db_size: answer.map(|answer| quantity::rounded(answer.db_size)),
        message: message(facts, number, seen, phase),
    }
}

fn refused(seen: &Seen) -> bool {
    seen.pod.as_ref().is_some_and(|pod| pod.refused.is_some())
}

/// What is wrong with a member. No error texts of connections: they differ from try to try, and a
/// status that changes all the time is written all the time.
fn message(facts: &Facts<'_>, number: i64, seen: &Seen, phase: MemberPhase) -> Option<String> {
    if phase == MemberPhase::Ready {
        return None;
    }
    let text = match (&seen.pod, &seen.answer) {
        (None, _) if seen.set.is_some() => "it has no pod yet".to_owned(),
        (None, _) => return None,
        (Some(pod), _) if pod.deleting => "its pod is ending".to_owned(),
        (Some(pod), _) if pod.refused.is_some() => {
            let refused = pod.refused.as_ref()?;
            format!("{}: {}", refused.reason, refused.message)
        }
        (Some(pod), _) if pod.trouble.is_some() => pod.trouble.clone()?,
        (Some(pod), _) if !pod.running => "its pod starts".to_owned(),
        (_, Some(Err(_))) if facts.listed(number).is_some() => "it does not answer".to_owned(),
        (_, Some(Ok(answer))) if answer.leader == 0 => "it knows no leader".to_owned(),
        (_, Some(Ok(answer))) if !answer.errors.is_empty() => answer.errors.join("; "),
        (Some(pod), Some(Ok(_))) if !pod.ready && phase == MemberPhase::Unhealthy => {
            "its pod is not ready".to_owned()
        }
        _ => return None,
    };
    Some(shortened(text))
}

fn shortened(mut text: String) -> String {
    if text.len() > MAX_MESSAGE_BYTES {
        let mut end = MAX_MESSAGE_BYTES;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

fn available(facts: &Facts<'_>) -> bool {
    facts.seen.list.is_some()
        && !facts.voters.is_empty()
        && facts.healthy_voters() >= quorum(facts.voters.len())
}

fn phase(facts: &Facts<'_>, verdict: &Verdict, status: &EtcdClusterStatus) -> Phase {
    let seen = facts.seen;
    let few = usize::try_from(seen.spec.replicas).unwrap_or_default() > facts.voters.len();
    let growing = status
        .operation
        .as_ref()
        .is_some_and(|operation| operation.r#type == OperationType::Grow);
    match () {
        () if seen.deleting => Phase::Deleting,
        () if seen.spec.paused => Phase::Paused,
        () if verdict.stalled.is_some() => Phase::Stalled,
        () if facts.cluster_id.is_none() => Phase::Creating,
        () if !available(facts) => {
            match status.operation.as_ref().map(|operation| operation.r#type) {
                Some(OperationType::Bootstrap) => Phase::Creating,
                _ => Phase::Unavailable,
            }
        }
        () if growing || few => Phase::Growing,
        () if all_ready(facts) => Phase::Running,
        () => Phase::Degraded,
    }
}

fn conditions(facts: &Facts<'_>, verdict: &Verdict, status: &EtcdClusterStatus) -> Vec<Condition> {
    let seen = facts.seen;
    let paused = seen.spec.paused;
    let available = available(facts);
    let whole = all_ready(facts);
    let settled = verdict.stalled.is_none() && status.operation.is_none() && !seen.deleting;
    let because = verdict.stalled.as_ref().or(verdict.working.as_ref());
    let count = format!(
        "{} of {} members are ready",
        status.ready_replicas, seen.spec.replicas
    );
    let failed = seen.failure.as_ref().map(|failure| Because {
        reason: "RequestFailed",
        message: format!(
            "{} failed ({}): {}",
            failure.step, failure.reason, failure.message
        ),
    });
    let conflict = seen
        .failure
        .as_ref()
        .filter(|failure| failure.reason == "NameConflict");
    let stalled = match (&verdict.stalled, conflict) {
        (Some(because), _) => Some(because.clone()),
        (None, Some(failure)) => Some(Because::new("NameConflict", failure.message.clone())),
        (None, None) => None,
    };
    let overdue = status
        .operation
        .as_ref()
        .filter(|operation| seen.now > operation.deadline.0);
    let overdue = overdue.map(|operation| {
        let under_way = because
            .map(|because| because.message.clone())
            .unwrap_or_default();
        Because::new(
            "OperationOverdue",
            format!("{} takes longer than expected: {under_way}", operation.id),
        )
    });
    let working = failed.or(overdue).or_else(|| verdict.working.clone());
    let odd = odd_members(facts);
    let fact = |holds: bool, yes: (&'static str, &str), no: (&'static str, String)| match holds {
        true => (true, Because::new(yes.0, yes.1)),
        false => (false, Because::new(no.0, no.1)),
    };
    let reason = because.map_or("MembersNotReady", |because| because.reason);
    let why = because.map_or_else(
        || count.clone(),
        |because| format!("{count}; {}", because.message),
    );
    let told = [
        fact(
            whole && settled && available,
            ("AllMembersReady", &count),
            (reason, why),
        ),
        match (stalled.is_none(), working) {
            (true, Some(because)) => (true, because),
            _ if paused => (
                false,
                Because::new("Paused", "spec.paused is set: nothing is changed"),
            ),
            (true, None) => (false, Because::new("Settled", "nothing is under way")),
            (false, _) => (false, Because::new("Stalled", "see the condition Stalled")),
        },
        match stalled {
            Some(because) => (true, because),
            None => (false, Because::new("NotStalled", "nobody needs to act")),
        },
        fact(
            available,
            ("QuorumAnswers", "a quorum of the members is healthy"),
            ("NoQuorum", unavailable(facts)),
        ),
        fact(
            whole,
            ("AllMembersReady", &count),
            ("MembersNotReady", unready(status, &count)),
        ),
        match odd.is_empty() {
            true if facts.cluster_id.is_some() => (
                true,
                Because::new("OneCluster", "all members name the same cluster ID"),
            ),
            true => (
                false,
                Because::new("NotFounded", "the cluster is not founded yet"),
            ),
            false => (false, Because::new("ClusterIDMismatch", odd.join("; "))),
        },
    ];
    let named = condition::ALL.iter().zip(told);
    let mut all: Vec<Condition> = named
        .map(|(name, (holds, because))| one(facts, name, holds, because))
        .collect();
    // Those that others added stay.
    let others = seen
        .status
        .conditions
        .iter()
        .filter(|old| !condition::ALL.contains(&old.type_.as_str()));
    all.extend(others.cloned());
    all
}

fn unavailable(facts: &Facts<'_>) -> String {
    if facts.cluster_id.is_none() {
        return "the cluster is not founded yet".to_owned();
    }
    match facts.seen.list.is_some() {
        true => format!(
            "{} of {} voting members are healthy; a quorum is {}",
            facts.healthy_voters(),
            facts.voters.len(),
            quorum(facts.voters.len())
        ),
        false => "no quorum of members answers".to_owned(),
    }
}

fn unready(status: &EtcdClusterStatus, count: &str) -> String {
    let wrong = status.members.iter().filter_map(|member| {
        let message = member.message.as_ref()?;
        Some(format!("{}: {message}", member.name))
    });
    let parts: Vec<String> = std::iter::once(count.to_owned()).chain(wrong).collect();
    parts.join("; ")
}

fn one(facts: &Facts<'_>, name: &str, holds: bool, because: Because) -> Condition {
    let status = if holds { "True" } else { "False" };
    let before = facts
        .seen
        .status
        .conditions
        .iter()
        .find(|old| old.type_ == name);
    let since = before
        .filter(|before| before.status == status)
        .map(|before| before.last_transition_time.clone());
    Condition {
        type_: name.to_owned(),
        status: status.to_owned(),
        reason: because.reason.to_owned(),
        message: shortened(because.message),
        observed_generation: facts.seen.generation,
        last_transition_time: since.unwrap_or(Time(facts.seen.now)),
    }
}
