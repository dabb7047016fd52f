//! A cluster of one, made of what is left of a larger one: `--force-new-cluster`, as etcd does it.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use prost::Message;
use proto::raftpb::{ConfChange, ConfChangeType, ConfState, Entry, EntryType, HardState};
use state::{Member, members};
use tracing::{info, warn};
use wal::{OsVfs, Reader, Wal};

/// Entries are looked through in pieces of this many bytes.
const PIECE: usize = 8 << 20;

/// What the log and the state say before anything is forced.
pub(crate) struct Left<'a> {
    /// This member, with the peer URLs that it has if the others never heard of it.
    pub own: Member,
    /// Whether this member was removed from its cluster.
    pub removed: bool,
    /// The voters and learners as of entry `applied`.
    pub conf_state: &'a ConfState,
    /// The last entry in the state.
    pub applied: u64,
    /// Term and commit index as the log has them.
    pub hard_state: HardState,
}

/// Makes this member the only one: what is not known to be committed is thrown away, and the other
/// members are removed by entries that count as committed. Both is one durable write, of which a
/// crash leaves at most a part that nothing takes for committed: the same flag does it again.
///
/// Returns whether the log was changed, which then has to be opened anew.
///
/// # Errors
/// A member that cannot be a cluster of its own: one without a vote, one that was removed, and one
/// that has received nothing yet. The log is as it was.
pub(crate) fn restart_alone(wal: &mut Wal<OsVfs>, left: &Left<'_>) -> anyhow::Result<bool> {
    // The commit index is written without a sync of its own; what is applied was committed.
    let commit = left.hard_state.commit().max(left.applied);
    let members = members_at(&wal.reader(), left, commit)?;
    let own = left.own.id;
    ensure!(
        !left.removed,
        "--force-new-cluster: this member was removed from its cluster, and an ID never comes \
         back. Force a member that was not, or restore a snapshot with 'etcdutl snapshot restore'"
    );
    ensure!(
        commit > 0 && !members.all.is_empty(),
        "--force-new-cluster: this member has received nothing of its cluster yet; force one that \
         has data"
    );
    ensure!(
        !members.learners.contains(&own),
        "--force-new-cluster: this member is a learner and has no vote; force a voter, or restore \
         a snapshot with 'etcdutl snapshot restore'"
    );
    let mut changes = Vec::new();
    // This one first: there must be a voter at each step.
    if !members.all.contains(&own) {
        changes.push(members::add(0, &left.own));
    }
    let others = members.all.iter().filter(|&&id| id != own);
    changes.extend(others.map(|&id| members::remove(0, id)));
    let term = left.hard_state.term();
    let mut entries: Vec<Entry> = (commit + 1..)
        .zip(&changes)
        .map(|(index, change)| Entry {
            r#type: Some(EntryType::EntryConfChange as i32),
            term: Some(term),
            index: Some(index),
            data: Some(change.encode_to_vec().into()),
        })
        .collect();
    let discarded = wal.last_index().saturating_sub(commit);
    if entries.is_empty() {
        if discarded == 0 {
            return Ok(false);
        }
        // An entry that does nothing takes the place of those that are thrown away.
        entries.push(Entry {
            r#type: Some(EntryType::EntryNormal as i32),
            term: Some(term),
            index: Some(commit + 1),
            data: None,
        });
    }
    let hard_state = HardState {
        commit: Some(commit + entries.len() as u64),
        ..left.hard_state
    };
    if discarded > 0 {
        warn!(
            after = commit,
            discarded, "discarding uncommitted WAL entries"
        );
    }
    wal.append(&entries, Some(&hard_state), true)
        .context("could not write the entries that force a new cluster")?;
    info!(
        removed = others_text(&members.all, own),
        commit_index = hard_state.commit(),
        "forcing restart member"
    );
    Ok(true)
}

fn others_text(all: &BTreeSet<u64>, own: u64) -> String {
    let others = all.iter().filter(|&&id| id != own);
    let others: Vec<String> = others.map(|id| format!("{id:x}")).collect();
    others.join(",")
}

/// Members at an entry of the log.
struct Members {
    all: BTreeSet<u64>,
    learners: BTreeSet<u64>,
}

/// Who the members are when all is applied up to `commit`: those of the state, and the changes
/// behind it.
fn members_at(reader: &Reader<OsVfs>, left: &Left<'_>, commit: u64) -> anyhow::Result<Members> {
    let state = left.conf_state;
    let learners: BTreeSet<u64> = state.learners.iter().copied().collect();
    let mut members = Members {
        all: state
            .voters
            .iter()
            .copied()
            .chain(learners.clone())
            .collect(),
        learners,
    };
    let mut next = left.applied + 1;
    while next <= commit {
        let entries = reader
            .read(next, commit + 1, PIECE)
            .context("could not read the log")?;
        let Some(last) = entries.last().and_then(|entry| entry.index) else {
            break;
        };
        for entry in &entries {
            if entry.r#type == Some(EntryType::EntryConfChange as i32) {
                let change = ConfChange::decode(entry.data.clone().unwrap_or_default())
                    .context("could not decode a change of the members")?;
                members.change(&change);
            }
        }
        next = last + 1;
    }
    Ok(members)
}

impl Members {
    fn change(&mut self, change: &ConfChange) {
        let id = change.node_id();
        match change.r#type() {
            ConfChangeType::ConfChangeAddNode => {
                self.all.insert(id);
                self.learners.remove(&id);
            }
            ConfChangeType::ConfChangeAddLearnerNode => {
                self.all.insert(id);
                self.learners.insert(id);
            }
            ConfChangeType::ConfChangeRemoveNode => {
                self.all.remove(&id);
                self.learners.remove(&id);
            }
            ConfChangeType::ConfChangeUpdateNode => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use wal::{Metadata, Options};

    use super::*;

    const OWN: u64 = 1;

    fn change(index: u64, term: u64, change: &ConfChange) -> Entry {
        Entry {
            r#type: Some(EntryType::EntryConfChange as i32),
            term: Some(term),
            index: Some(index),
            data: Some(change.encode_to_vec().into()),
        }
    }

    fn member(id: u64) -> Member {
        Member {
            id,
            peer_urls: vec![format!("http://127.0.0.1:{id}")],
            ..Member::default()
        }
    }

    /// A log of three founders, with a fourth one that is added by an entry that may not count.
    fn log(folder: &std::path::Path) -> (Arc<OsVfs>, Wal<OsVfs>) {
        let vfs = Arc::new(OsVfs::new());
        let metadata = Metadata {
            node_id: OWN,
            cluster_id: 9,
        };
        let mut wal = Wal::create(Arc::clone(&vfs), folder, metadata, Options::default()).unwrap();
        let founders: Vec<Member> = (1..=3).map(member).collect();
        let mut entries: Vec<Entry> = (1..)
            .zip(members::found(&founders))
            .map(|(index, found)| change(index, 1, &found))
            .collect();
        entries.push(change(4, 2, &members::add(7, &member(4))));
        let state = HardState {
            term: Some(2),
            vote: Some(2),
            commit: Some(3),
        };
        wal.append(&entries, Some(&state), true).unwrap();
        (vfs, wal)
    }

    fn left(conf_state: &ConfState, applied: u64) -> Left<'_> {
        Left {
            own: member(OWN),
            removed: false,
            conf_state,
            applied,
            hard_state: HardState {
                term: Some(2),
                vote: Some(2),
                commit: Some(3),
            },
        }
    }

    fn ids(wal: &Wal<OsVfs>, commit: u64) -> Vec<u64> {
        let nothing = ConfState::default();
        let all = members_at(&wal.reader(), &left(&nothing, 0), commit).unwrap();
        all.all.into_iter().collect()
    }

    #[test]
    fn others_are_removed_and_what_is_not_committed_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let (vfs, mut wal) = log(&folder.path().join("wal"));
        let nothing = ConfState::default();
        assert!(restart_alone(&mut wal, &left(&nothing, 0)).unwrap());
        drop(wal);
        let dir = folder.path().join("wal");
        let (mut wal, recovered) = Wal::open(vfs, &dir, 0, Options::default()).unwrap();
        assert_eq!(wal.last_index(), 5);
        assert_eq!(recovered.hard_state.commit(), 5);
        assert_eq!(ids(&wal, 5), [OWN]);
        // The second time there is nothing to do.
        let again = Left {
            hard_state: recovered.hard_state,
            ..left(&nothing, 0)
        };
        assert!(!restart_alone(&mut wal, &again).unwrap());
    }

    /// The state may know more than the log's commit index, which is not synced for itself.
    #[test]
    fn what_is_applied_counts_as_committed() {
        let folder = tempfile::tempdir().unwrap();
        let (_, mut wal) = log(&folder.path().join("wal"));
        let state = ConfState {
            voters: vec![1, 2, 3, 4],
            ..ConfState::default()
        };
        assert!(restart_alone(&mut wal, &left(&state, 4)).unwrap());
        assert_eq!(wal.last_index(), 7);
        assert_eq!(ids(&wal, 7), [OWN]);
    }

    #[test]
    fn an_entry_that_does_nothing_replaces_those_of_a_member_that_is_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (_, mut wal) = log(&folder.path().join("wal"));
        let state = ConfState {
            voters: vec![OWN],
            ..ConfState::default()
        };
        assert!(restart_alone(&mut wal, &left(&state, 3)).unwrap());
        assert_eq!(wal.last_index(), 4);
        let entry = wal.reader().read(4, 5, 1).unwrap().remove(0);
        assert_eq!(entry.r#type(), EntryType::EntryNormal);
        assert_eq!(entry.data, None);
    }

    #[test]
    fn who_cannot_be_a_cluster_is_refused_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let (_, mut wal) = log(&folder.path().join("wal"));
        let learner = ConfState {
            voters: vec![2],
            learners: vec![OWN],
            ..ConfState::default()
        };
        let mut check = |left: Left<'_>, expected: &str| {
            let error = restart_alone(&mut wal, &left).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert_eq!(wal.last_index(), 4);
        };
        check(left(&learner, 3), "is a learner");
        let nothing = ConfState::default();
        let empty = Left {
            hard_state: HardState::default(),
            ..left(&nothing, 0)
        };
        check(empty, "has received nothing");
        let removed = Left {
            removed: true,
            ..left(&learner, 3)
        };
        check(removed, "was removed");
    }
}
