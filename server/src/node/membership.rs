//! Changes of the members: what is checked before one goes into the log, by etcd's rules.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use proto::{
    etcdserverpb::{Member as MemberProto, MemberAddRequest, MemberUpdateRequest},
    raftpb::ConfChange,
};
use state::{Error, Member, Members, Reply, ids, members, validate};
use tokio::{sync::oneshot, time::timeout};
use tracing::warn;

use super::{peers, raft::RaftInput, shared::Shared};

/// A learner may be promoted when it has so much of the leader's log, in hundredths.
const READY_PERCENT: u64 = 90;

type Changed = Result<Arc<Members>, Error>;

/// Adds a member that is known by its URLs only.
pub(crate) async fn add(
    shared: &Shared,
    r: MemberAddRequest,
) -> Result<(MemberProto, Vec<MemberProto>), Error> {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = since_epoch.unwrap_or_default().as_secs() as i64;
    // etcd makes the ID of an added member from its URLs and the time, without the token.
    let member = Member {
        id: ids::member_id(&r.peer_ur_ls, "", Some(seconds)),
        peer_urls: r.peer_ur_ls,
        is_learner: r.is_learner,
        ..Member::default()
    };
    let may_add = shared.published.load().members.may_add_voter();
    if shared.settings.strict_reconfig && !member.is_learner && !may_add {
        warn!("rejecting member add request; not enough started members");
        return Err(Error::MemberNotEnoughStarted);
    }
    // Of a learner too, as in etcd.
    if shared.settings.strict_reconfig && !peers::addition_keeps_quorum(shared) {
        warn!("rejecting member add request; local member has not been connected to enough peers");
        return Err(Error::Unhealthy);
    }
    let change = members::add(shared.next_id(), &member);
    let members = configure(shared, change).await?;
    Ok((member.to_proto(), members.to_proto()))
}

/// Removes a member.
pub(crate) async fn remove(shared: &Shared, id: u64) -> Result<Vec<MemberProto>, Error> {
    let may_remove = {
        let members = &shared.published.load().members;
        let voter = members.get(id).is_some_and(|member| !member.is_learner);
        !voter || members.may_remove_voter(id)
    };
    if shared.settings.strict_reconfig && !may_remove {
        warn!("rejecting member remove request; not enough started members");
        return Err(Error::MemberNotEnoughStarted);
    }
    if shared.settings.strict_reconfig && !peers::removal_keeps_quorum(shared, id) {
        warn!("rejecting member remove request; it would risk the quorum");
        return Err(Error::Unhealthy);
    }
    let change = members::remove(shared.next_id(), id);
    Ok(configure(shared, change).await?.to_proto())
}

/// Changes a member's peer URLs.
pub(crate) async fn update(
    shared: &Shared,
    r: MemberUpdateRequest,
) -> Result<Vec<MemberProto>, Error> {
    let member = Member {
        id: r.id,
        peer_urls: r.peer_ur_ls,
        ..Member::default()
    };
    let change = members::update(shared.next_id(), &member);
    Ok(configure(shared, change).await?.to_proto())
}

/// Makes a learner a voter, if it has nearly all of the log. Another member that leads is shown
/// the caller's token.
pub(crate) async fn promote(
    shared: &Shared,
    id: u64,
    token: Option<&str>,
) -> Result<Vec<MemberProto>, Error> {
    let (known, may_promote) = {
        let members = &shared.published.load().members;
        let learner = members.get(id).map(|member| member.is_learner);
        (learner, members.may_promote())
    };
    match known {
        None => return Err(Error::MemberNotFound),
        Some(false) => return Err(Error::MemberNotLearner),
        Some(true) => {}
    }
    if !shared.is_leader() {
        return peers::promote_at_leader(shared, id, token).await;
    }
    let promoted = promote_here(shared, id, may_promote).await;
    let counters = &shared.counters;
    match &promoted {
        Ok(_) => {
            counters.promotions.fetch_add(1, Ordering::Relaxed);
        }
        Err(error) => counters.promotion_failed(*error),
    }
    promoted
}

async fn promote_here(
    shared: &Shared,
    id: u64,
    may_promote: bool,
) -> Result<Vec<MemberProto>, Error> {
    if !is_ready(shared, id).await? {
        return Err(Error::LearnerNotReady);
    }
    if shared.settings.strict_reconfig && !may_promote {
        return Err(Error::MemberNotEnoughStarted);
    }
    let change = members::promote(shared.next_id(), id);
    Ok(configure(shared, change).await?.to_proto())
}

async fn is_ready(shared: &Shared, id: u64) -> Result<bool, Error> {
    let (asker, status) = oneshot::channel();
    shared
        .to_raft
        .send(RaftInput::Status(asker))
        .map_err(|_| Error::Stopped)?;
    let status = status.await.map_err(|_| Error::Stopped)?;
    let matched = |id| {
        let mut peers = status.peers.iter();
        peers.find(|peer| peer.id == id).map(|peer| peer.matched)
    };
    let (leader, learner) = (matched(status.id), matched(id));
    Ok(match (leader, learner) {
        (Some(leader), Some(learner)) => learner * 100 >= leader * READY_PERCENT,
        _ => false,
    })
}

/// Puts a change into the log and waits until it is applied.
async fn configure(shared: &Shared, change: ConfChange) -> Changed {
    if let Err(problem) = validate::admit_conf_change(&change) {
        warn!(
            problem,
            "refusing a membership change that etcd could not decode"
        );
        return Err(Error::MemberBadUrls);
    }
    let id = change.id.unwrap_or_default();
    let began = shared.now();
    let limit = shared.settings.request_timeout();
    let reply = shared.wait_for(id);
    let input = RaftInput::ConfChange {
        change,
        deadline: Instant::now() + limit,
    };
    if shared.to_raft.send(input).is_err() {
        return Err(Error::Stopped);
    }
    match timeout(limit, reply).await {
        Ok(Ok(Ok(Reply::Members(members)))) => Ok(members),
        Ok(Ok(Ok(_))) | Ok(Err(_)) => Err(Error::Stopped),
        Ok(Ok(Err(refused))) => Err(refused),
        Err(_) => {
            shared.forget(id);
            Err(shared.timeout_since(began))
        }
    }
}
