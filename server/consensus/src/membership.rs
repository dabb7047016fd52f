//! Who is a member.

use std::collections::BTreeSet;

use proto::raftpb::{ConfChange, ConfChangeType, ConfState};
use raft::StateRole;

use crate::{Driver, Error, Output, Role, SoftState, codec};

/// Members that were removed since the start.
#[derive(Debug, Default)]
pub(crate) struct Removed {
    pub(crate) peers: BTreeSet<u64>,
    pub(crate) oneself: bool,
    /// What is still to be said after one's own removal.
    pub(crate) parting: Option<Output>,
}

impl Driver {
    /// Carries out a committed membership change, at the point where it is applied; returns the
    /// membership from then on. A change that apply refused must not come here: see
    /// [`Driver::conf_state`]. raft does not hear of one that was handed out before a snapshot that
    /// it has taken meanwhile: there it is known.
    ///
    /// The removal of this member ends the driver: one more output may come, and after it none.
    ///
    /// # Errors
    /// [`Error::ConfChange`], fatal: the change is committed and yet impossible.
    pub fn apply_conf_change(&mut self, change: &ConfChange) -> Result<ConfState, Error> {
        let impossible = |problem: String| Error::ConfChange(problem);
        let translated = codec::change_in(change).map_err(|problem| impossible(problem.into()))?;
        let node_id = change.node_id.unwrap_or_default();
        let Some(translated) = translated.filter(|change| change.node_id != 0) else {
            return Ok(self.conf_state());
        };
        let removes = change.r#type == Some(ConfChangeType::ConfChangeRemoveNode as i32);
        if let Some(state) = self.installs.change(&translated) {
            if removes && self.node.raft.prs().get(node_id).is_none() {
                self.removed.peers.insert(node_id);
            }
            return Ok(state);
        }
        let was_member = self.node.raft.prs().get(self.node.raft.id).is_some();
        if removes && node_id == self.node.raft.id && was_member {
            return Ok(self.leave(&translated));
        }
        match removes {
            true => self.removed.peers.insert(node_id),
            false => self.removed.peers.remove(&node_id),
        };
        let state = self.node.apply_conf_change(&translated);
        let state = state.map_err(|cause| impossible(cause.to_string()))?;
        Ok(codec::conf_state_out(&state))
    }

    /// The membership where the state machine is: the answer to a change that apply refused, which raft takes as applied
    /// with [`Driver::applied`].
    pub fn conf_state(&self) -> ConfState {
        if let Some(behind) = self.installs.behind() {
            return behind.clone();
        }
        codec::conf_state_out(&self.node.raft.prs().conf().to_conf_state())
    }

    /// A leader asks the best voter to stand for election, and says what it has not said yet.
    /// raft-rs would go on leading, and would panic about the writes that are still in flight.
    fn leave(&mut self, change: &raft::eraftpb::ConfChange) -> ConfState {
        let raft = &mut self.node.raft;
        let mut send = Vec::new();
        if raft.state == StateRole::Leader && self.durable_term == raft.term {
            let id = raft.id;
            let voters = raft.prs().conf().voters().ids();
            let others = voters.iter().filter(|voter| *voter != id);
            let matched = |voter: &u64| raft.prs().get(*voter).map_or(0, |peer| peer.matched);
            // The ID settles ties, so that a run can be repeated.
            if let Some(next) = others.max_by_key(|voter| (matched(voter), *voter)) {
                raft.send_timeout_now(next);
            }
            let unsaid = std::mem::take(&mut raft.msgs);
            send = unsaid.into_iter().map(codec::message_out).collect();
        }
        let mut state = self.conf_state();
        let id = self.node.raft.id;
        // The last voter's removal is one that raft-rs refuses; nobody is left to disagree.
        if self.node.apply_conf_change(change).is_ok() {
            state = self.conf_state();
        }
        state.voters.retain(|voter| *voter != id);
        state.learners.retain(|learner| *learner != id);
        self.removed.oneself = true;
        self.removed.parting = Some(Output {
            send,
            soft: Some(SoftState {
                leader: 0,
                role: Role::Follower,
                term: self.node.raft.term,
            }),
            ..Output::default()
        });
        state
    }
}
