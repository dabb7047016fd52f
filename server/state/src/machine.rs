//! The state machine: committed entries in, replies and events out, one engine write for each
//! batch of entries.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use mvcc::{CompactionHash, CompactionProgress, Engine, Family, Read, RevisionEvents, Store, View};
use prost::Message;
use proto::{
    etcdserverpb::{
        AlarmResponse, CompactionResponse, DeleteRangeResponse, LeaseGrantResponse,
        LeaseRevokeResponse, PutResponse, RangeResponse, ResponseHeader, TxnResponse,
    },
    raftpb::{ConfChange, ConfState, Entry, EntryType},
};

use crate::{
    alarms::Alarms,
    apply::Batch,
    auth::{self, Auth, AuthReply, Tokens},
    cost,
    counts::Counts,
    error::Error,
    fatal::Fatal,
    lessor::Lessor,
    members::{MemberChange, Members},
    version::{Downgrade, Version},
};

/// etcd's rows in family `meta`.
pub(crate) const CONSISTENT_INDEX: &[u8] = b"consistent_index";
pub(crate) const TERM: &[u8] = b"term";
pub(crate) const CONF_STATE: &[u8] = b"confState";
pub(crate) const STORAGE_VERSION: &[u8] = b"storageVersion";
/// etcd's rows in family `cluster`.
pub(crate) const CLUSTER_VERSION: &[u8] = b"clusterVersion";
pub(crate) const DOWNGRADE: &[u8] = b"downgrade";

/// Settings that apply depends on. Members of one cluster must agree on all but the member ID.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// This member.
    pub member_id: u64,
    /// `--quota-backend-bytes`: 0 is etcd's default, less than 0 no quota.
    pub quota_bytes: i64,
    /// `--max-learners`.
    pub max_learners: usize,
    /// The shortest lease, in seconds: three election timeouts by two, rounded up.
    pub min_lease_ttl: i64,
}

/// The last entry in the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Its place in the log.
    pub index: u64,
    /// Its term.
    pub term: u64,
}

/// What a waiting caller is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// Of a range that went through the log.
    Range(RangeResponse),
    /// Of a put.
    Put(PutResponse),
    /// Of a delete.
    DeleteRange(DeleteRangeResponse),
    /// Of a transaction.
    Txn(TxnResponse),
    /// Of a compaction: it is logically done.
    Compaction(CompactionResponse),
    /// Of a new lease.
    LeaseGrant(LeaseGrantResponse),
    /// Of a lease's end.
    LeaseRevoke(LeaseRevokeResponse),
    /// Of a checkpoint of leases, of a version, or of a member's attributes.
    Done,
    /// Of an alarm.
    Alarm(AlarmResponse),
    /// Of a conf change: the members after it.
    Members(Arc<Members>),
    /// Of what is about users and roles.
    Auth(AuthReply),
}

/// What a conf change in the batch means for raft and for the transport.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfChangeOutcome {
    /// What raft is told: the change, or `None` when it was refused and nothing changed.
    pub change: Option<ConfChange>,
    /// What the transport is told, in that case not.
    pub member: Option<MemberChange>,
}

/// What a batch of entries did.
#[derive(Debug)]
pub struct Outcome<S> {
    /// The state after it.
    pub published: Arc<Published<S>>,
    /// What callers are told, by the ID of their request.
    pub replies: Vec<(u64, Result<Reply, Error>)>,
    /// Requests that were applied and left the store beyond its quota: the member raises the
    /// alarm, then tells these callers `NoSpace`.
    pub beyond_quota: Vec<u64>,
    /// What watchers are told.
    pub events: Vec<RevisionEvents>,
    /// Conf changes, in order.
    pub conf_changes: Vec<ConfChangeOutcome>,
    /// A hash to be computed beside the compaction that the batch scheduled.
    pub compaction_hash: Option<CompactionHash<S>>,
    /// How much of what it did.
    pub counts: Counts,
    /// Whether the batch held a leader's first entry: everything of earlier terms is applied.
    pub term_began: bool,
    /// Whether this member was removed.
    pub removed_self: bool,
}

/// What the state of another engine changed in place of entries: see [`Machine::replace`].
#[derive(Debug)]
pub struct Replaced<S> {
    /// The state now.
    pub published: Arc<Published<S>>,
    /// What the transport is told: how the members differ from those before.
    pub members: Vec<MemberChange>,
    /// Whether this member was removed.
    pub removed_self: bool,
}

/// The state as readers see it.
#[derive(Clone, Debug)]
pub struct Published<S> {
    /// Keys.
    pub view: View<S>,
    /// The last entry in it.
    pub applied: Applied,
    /// Members.
    pub members: Arc<Members>,
    /// Alarms.
    pub alarms: Arc<Alarms>,
    /// The cluster's version; `None` until it is decided.
    pub cluster_version: Option<Version>,
    /// The storage's version; `None` before it is kept.
    pub storage_version: Option<Version>,
    /// The job of downgrading.
    pub downgrade: Arc<Downgrade>,
    /// Users and roles.
    pub auth: Arc<Auth>,
}

/// The replicated state on an engine.
pub struct Machine<E: Engine> {
    store: Store<E>,
    options: Options,
    lessor: Arc<Mutex<Lessor>>,
    tokens: Arc<Mutex<Tokens>>,
    published: Arc<Published<E::Snapshot>>,
    /// Whether the row is there that etcd writes before the first entry.
    has_auth_revision: bool,
}

impl<E: Engine> Machine<E> {
    /// Opens the state that the engine holds. An empty engine is the state before the first
    /// entry.
    ///
    /// # Errors
    /// The engine's, or damage.
    pub fn open(engine: Arc<E>, options: Options) -> Result<Self, Fatal> {
        let store = Store::open(engine).map_err(store_error)?;
        let published = load(store.view())?;
        let mut lessor = Lessor::new(options.min_lease_ttl);
        for row in lease_rows(published.view.snapshot())? {
            lessor.load(&row).map_err(Fatal::Store)?;
        }
        Ok(Self {
            has_auth_revision: has_auth_revision(published.view.snapshot())?,
            store,
            options,
            lessor: Arc::new(Mutex::new(lessor)),
            tokens: Arc::new(Mutex::new(Tokens::new(published.auth.is_enabled()))),
            published: Arc::new(published),
        })
    }

    /// Goes on with what another engine holds: a later state of the same cluster, as a snapshot
    /// of the leader brings it. Leases are those of that state; who holds the lessor keeps it.
    ///
    /// `now` is when their deadlines begin, should this member lead, which it does not while it
    /// takes a snapshot.
    ///
    /// # Errors
    /// The engine's, damage, or a state that is older than this one. This one is then unchanged.
    pub fn replace(
        &mut self,
        engine: Arc<E>,
        now: Duration,
    ) -> Result<Replaced<E::Snapshot>, Fatal> {
        let store = Store::open(engine).map_err(store_error)?;
        let next = load(store.view())?;
        let old = Arc::clone(&self.published);
        if next.applied.index < old.applied.index {
            return Err(Fatal::Store(format!(
                "the state that is to replace this one ends at entry {}, and this one at {}",
                next.applied.index, old.applied.index
            )));
        }
        let rows = next.view.snapshot();
        let has_auth_revision = has_auth_revision(rows)?;
        let leases = lease_rows(rows)?;
        let mut lessor = lock(&self.lessor);
        lessor.replace(&leases, now).map_err(Fatal::Store)?;
        self.store.replace(store);
        drop(lessor);
        // As in etcd tokens outlive a snapshot, though not the users that it may have ended.
        lock(&self.tokens).set_enabled(next.auth.is_enabled());
        self.has_auth_revision = has_auth_revision;
        self.published = Arc::new(next);
        self.republish();
        let members = &self.published.members;
        Ok(Replaced {
            members: old.members.changes_to(members),
            removed_self: members.is_removed(self.options.member_id),
            published: Arc::clone(&self.published),
        })
    }

    /// The state after the last batch.
    pub fn published(&self) -> Arc<Published<E::Snapshot>> {
        Arc::clone(&self.published)
    }

    /// What raft is told of the members at its start.
    pub fn conf_state(&self) -> ConfState {
        self.published.members.conf_state()
    }

    /// The leases. Deadlines are read and set by others than apply too.
    pub fn lessor(&self) -> Arc<Mutex<Lessor>> {
        Arc::clone(&self.lessor)
    }

    /// The simple tokens. Who uses one prolongs it.
    pub fn tokens(&self) -> Arc<Mutex<Tokens>> {
        Arc::clone(&self.tokens)
    }

    /// The engine below.
    pub fn engine(&self) -> &E {
        self.store.engine()
    }

    /// Applies a batch of committed entries, which go on where the last batch ended. Entries that
    /// are in the state already are passed over: after a crash the log begins before it.
    ///
    /// `now` feeds the deadlines of leases and never the data. `wanted` says whether anyone waits
    /// for the reply of a request; a mere read is otherwise not done.
    ///
    /// # Errors
    /// Nothing that a client did is an error here; any error ends the process.
    pub fn apply(
        &mut self,
        entries: &[Entry],
        now: Duration,
        wanted: &dyn Fn(u64) -> bool,
    ) -> Result<Outcome<E::Snapshot>, Fatal> {
        let lessor = Arc::clone(&self.lessor);
        let mut batch = Batch {
            writer: self.store.begin(),
            lessor: lock(&lessor),
            options: &self.options,
            tokens: &self.tokens,
            quota: cost::quota(self.options.quota_bytes),
            next: Published::clone(&self.published),
            now,
            wanted,
            replies: Vec::new(),
            beyond_quota: Vec::new(),
            conf_changes: Vec::new(),
            counts: Counts::default(),
            term_began: false,
            removed_self: false,
        };
        if !self.has_auth_revision {
            batch.write_auth_revision()?;
        }
        for entry in entries {
            let at = Applied {
                index: entry.index.unwrap_or_default(),
                term: entry.term.unwrap_or_default(),
            };
            if at.index <= batch.next.applied.index {
                continue;
            }
            if at.index != batch.next.applied.index + 1 {
                return Err(Fatal::Entry {
                    index: at.index,
                    reason: format!("entry {} was applied last", batch.next.applied.index),
                });
            }
            apply_entry(&mut batch, entry, at.index)?;
            batch.next.applied = at;
        }
        batch.write_applied()?;
        let Batch {
            writer,
            lessor,
            mut next,
            replies,
            beyond_quota,
            conf_changes,
            counts,
            term_began,
            removed_self,
            ..
        } = batch;
        drop(lessor);
        let committed = writer.commit().map_err(store_error)?;
        next.view = committed.view;
        self.published = Arc::new(next);
        self.has_auth_revision = true;
        Ok(Outcome {
            published: Arc::clone(&self.published),
            replies,
            beyond_quota,
            events: committed.events,
            conf_changes,
            compaction_hash: committed.compaction_hash,
            counts,
            term_began,
            removed_self,
        })
    }

    /// Does one bounded piece of compaction; see [`Store::compaction_step`].
    ///
    /// # Errors
    /// The engine's.
    pub fn compaction_step(&mut self) -> Result<CompactionProgress, Fatal> {
        let progress = self.store.compaction_step().map_err(store_error)?;
        if progress != CompactionProgress::Idle {
            self.republish();
        }
        Ok(progress)
    }

    /// Rows of keys that compactions have deleted since the start.
    pub fn compacted_rows(&self) -> u64 {
        self.store.compacted_rows()
    }

    /// Whether there is anything to compact.
    pub fn compaction_pending(&self) -> bool {
        self.store.compaction_pending()
    }

    /// Accounts for a defragmentation of the engine.
    ///
    /// # Errors
    /// The engine's.
    pub fn defragmented(&mut self) -> Result<(), Fatal> {
        self.store.defragmented().map_err(store_error)?;
        self.republish();
        Ok(())
    }

    fn republish(&mut self) {
        let mut next = Published::clone(&self.published);
        next.view = self.store.view();
        self.published = Arc::new(next);
    }
}

/// What the rows say besides leases.
fn load<S: Read>(view: View<S>) -> Result<Published<S>, Fatal> {
    let rows = view.snapshot();
    let members = all_rows(rows, Family::Members)?.into_iter();
    let removed = all_rows(rows, Family::MembersRemoved)?.into_iter();
    let alarms = all_rows(rows, Family::Alarm)?.into_iter();
    let downgrade = match rows.get(Family::Cluster, DOWNGRADE)? {
        Some(row) => serde_json::from_slice(&row)
            .map_err(|error| Fatal::Store(format!("the row of the downgrade: {error}")))?,
        None => Downgrade::default(),
    };
    let removed = removed.map(|(key, _)| key);
    let auth = Auth::load(
        all_rows(rows, Family::Auth)?.into_iter(),
        all_rows(rows, Family::AuthUsers)?.into_iter(),
        all_rows(rows, Family::AuthRoles)?.into_iter(),
    );
    Ok(Published {
        auth: Arc::new(auth.map_err(Fatal::Store)?),
        applied: Applied {
            index: number_row(rows, CONSISTENT_INDEX)?,
            term: number_row(rows, TERM)?,
        },
        members: Arc::new(Members::load(members, removed).map_err(Fatal::Store)?),
        alarms: Arc::new(Alarms::load(alarms.map(|(key, _)| key)).map_err(Fatal::Store)?),
        cluster_version: version_row(rows, Family::Cluster, CLUSTER_VERSION)?,
        storage_version: version_row(rows, Family::Meta, STORAGE_VERSION)?,
        downgrade: Arc::new(downgrade),
        view,
    })
}

fn lease_rows<R: Read>(rows: &R) -> Result<Vec<Bytes>, Fatal> {
    let rows = all_rows(rows, Family::Lease)?.into_iter();
    Ok(rows.map(|(_, row)| row).collect())
}

fn has_auth_revision<R: Read>(rows: &R) -> Result<bool, Fatal> {
    Ok(rows.get(Family::Auth, auth::REVISION)?.is_some())
}

fn apply_entry<E: Engine>(
    batch: &mut Batch<'_, E>,
    entry: &Entry,
    index: u64,
) -> Result<(), Fatal> {
    let data = entry.data.clone().unwrap_or_default();
    match EntryType::try_from(entry.r#type.unwrap_or_default()) {
        Ok(EntryType::EntryNormal) if data.is_empty() => {
            batch.term_began = true;
            Ok(())
        }
        Ok(EntryType::EntryNormal) => {
            failpoint::BEFORE_APPLY_ONE_ENTRY_NORMAL.hit();
            batch.apply_request(data, index)
        }
        Ok(EntryType::EntryConfChange) => {
            failpoint::BEFORE_APPLY_ONE_CONF_CHANGE.hit();
            let change = ConfChange::decode(data).map_err(|error| Fatal::Entry {
                index,
                reason: format!("no conf change: {error}"),
            })?;
            batch.apply_conf_change(change, index)
        }
        _ => Err(Fatal::Entry {
            index,
            reason: format!("an entry of type {:?}", entry.r#type),
        }),
    }
}

/// A lock on the lessor or the tokens. They have no state in between, so a panic elsewhere leaves
/// them whole.
pub(crate) fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn store_error(error: mvcc::Error) -> Fatal {
    Fatal::Store(error.to_string())
}

/// The header of a reply; what it lacks the edge completes.
pub(crate) fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        revision,
        ..ResponseHeader::default()
    })
}

fn all_rows<R: Read>(rows: &R, family: Family) -> Result<Vec<(Bytes, Bytes)>, Fatal> {
    let mut found = Vec::new();
    let mut cursor = rows.scan(family, b"", None, mvcc::Direction::Ascending)?;
    while cursor.valid() {
        found.push((
            Bytes::copy_from_slice(cursor.key()),
            Bytes::copy_from_slice(cursor.value()),
        ));
        cursor.next()?;
    }
    Ok(found)
}

fn number_row<R: Read>(rows: &R, key: &[u8]) -> Result<u64, Fatal> {
    let Some(row) = rows.get(Family::Meta, key)? else {
        return Ok(0);
    };
    number(key, &row)
}

/// The number in a row of family `meta`.
pub(crate) fn number(key: &[u8], row: &[u8]) -> Result<u64, Fatal> {
    let bytes: [u8; 8] = row.try_into().map_err(|_| {
        let key = String::from_utf8_lossy(key);
        Fatal::Store(format!("the row {key} of family meta: {row:02x?}"))
    })?;
    Ok(u64::from_be_bytes(bytes))
}

fn version_row<R: Read>(rows: &R, family: Family, key: &[u8]) -> Result<Option<Version>, Fatal> {
    let Some(row) = rows.get(family, key)? else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&row);
    text.parse().map(Some).map_err(Fatal::Store)
}
