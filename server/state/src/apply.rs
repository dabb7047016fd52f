//! What each committed request does, in etcd's order of checks: a raised alarm, permission, the
//! quota, the request itself.

use std::{
    cell::Cell,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use mvcc::{Engine, Family, Writer};
use prost::Message;
use proto::{
    etcdserverpb::{
        AlarmRequest, AlarmResponse, AlarmType, CompactionResponse, InternalRaftRequest,
        LeaseCheckpointRequest, LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeResponse,
        RequestHeader, alarm_request::AlarmAction,
    },
    membershippb::{ClusterMemberAttrSetRequest, DowngradeInfoSetRequest},
    raftpb::ConfChange,
};

use crate::{
    alarms::alarm_key,
    auth::{self, AuthInfo, TokenChange, Tokens},
    cost,
    counts::Counts,
    error::Error,
    fatal::Fatal,
    lessor::Lessor,
    machine::{
        CLUSTER_VERSION, CONF_STATE, CONSISTENT_INDEX, ConfChangeOutcome, DOWNGRADE, Options,
        Published, Reply, STORAGE_VERSION, TERM, header, lock, store_error,
    },
    members::{self, MemberChange},
    version::{self, Downgrade, STORAGE_VERSION_SINCE, Version},
};

/// A batch of entries being applied.
pub(crate) struct Batch<'a, E: Engine> {
    pub writer: Writer<'a, E>,
    pub lessor: MutexGuard<'a, Lessor>,
    pub options: &'a Options,
    pub tokens: &'a Mutex<Tokens>,
    pub quota: Option<i64>,
    /// What will be published; its view comes with the commit.
    pub next: Published<E::Snapshot>,
    pub now: Duration,
    pub wanted: &'a dyn Fn(u64) -> bool,
    pub replies: Vec<(u64, Result<Reply, Error>)>,
    pub beyond_quota: Vec<u64>,
    pub conf_changes: Vec<ConfChangeOutcome>,
    pub counts: Counts,
    pub term_began: bool,
    pub removed_self: bool,
}

/// A request is answered, refused with a client's error, or the process ends.
type Answer = Result<Result<Reply, Error>, Fatal>;

impl<E: Engine> Batch<'_, E> {
    /// Applies a normal entry.
    pub fn apply_request(&mut self, data: Bytes, index: u64) -> Result<(), Fatal> {
        let bad = |reason: String| Fatal::Entry { index, reason };
        let request = InternalRaftRequest::decode(data)
            .map_err(|error| bad(format!("no request: {error}")))?;
        let header = request.header.clone().unwrap_or_default();
        let id = match request.id {
            0 if request.header.is_none() => return Err(bad("a request without an ID".to_owned())),
            0 => header.id,
            id => id,
        };
        let beyond_quota = self.is_beyond_quota(&request);
        let answer = match self.refusal(header, &request)? {
            Some(refusal) => Err(refusal),
            None => self.dispatch(request, id, index)?,
        };
        if answer.is_ok() && beyond_quota {
            // As in etcd the request is done, and its caller told that it was the last one.
            let known = self.next.alarms.is_raised(AlarmType::Nospace);
            match known {
                true => self.replies.push((id, Err(Error::NoSpace))),
                false => self.beyond_quota.push(id),
            }
        } else {
            self.replies.push((id, answer));
        }
        Ok(())
    }

    /// Why a request is not carried out, by alarms and permission.
    fn refusal(
        &self,
        header: RequestHeader,
        r: &InternalRaftRequest,
    ) -> Result<Option<Error>, Fatal> {
        let by = AuthInfo {
            username: header.username,
            revision: header.auth_revision,
        };
        let auth = &self.next.auth;
        if let Err(refusal) = auth.check_admin_request(&by, r) {
            return Ok(Some(refusal));
        }
        if let Some(alarm) = self.alarm_against(r) {
            return Ok(Some(alarm));
        }
        if !auth.is_enabled() {
            return Ok(None);
        }
        let failed = Cell::new(None);
        let refusal = auth.check(&by, r, &|lease| match self.writer.lease_keys(lease) {
            Ok(keys) => keys,
            Err(error) => {
                failed.set(Some(error));
                Vec::new()
            }
        });
        match failed.take() {
            Some(error) => Err(store_error(error)),
            None => Ok(refusal.err()),
        }
    }

    fn alarm_against(&self, r: &InternalRaftRequest) -> Option<Error> {
        let writes = r.put.is_some()
            || r.delete_range.is_some()
            || r.txn.is_some()
            || r.range.is_some()
            || r.compaction.is_some()
            || r.lease_grant.is_some()
            || r.lease_revoke.is_some();
        let alarms = &self.next.alarms;
        if writes && alarms.is_raised(AlarmType::Corrupt) {
            return Some(Error::Corrupt);
        }
        let grows = r.put.is_some()
            || r.lease_grant.is_some()
            || r.txn.as_ref().is_some_and(|txn| cost::txn(txn) > 0);
        if grows && alarms.is_raised(AlarmType::Nospace) {
            return Some(Error::NoSpace);
        }
        None
    }

    fn is_beyond_quota(&self, r: &InternalRaftRequest) -> bool {
        let cost = match (&r.put, &r.txn, &r.lease_grant) {
            (Some(put), _, _) => cost::put(put),
            (_, Some(txn), _) => cost::txn(txn),
            (_, _, Some(_)) => cost::LEASE,
            _ => 0,
        };
        let quota = self.quota.unwrap_or(i64::MAX);
        cost > 0 && self.writer.size().saturating_add(cost) >= quota
    }

    fn dispatch(&mut self, r: InternalRaftRequest, id: u64, index: u64) -> Answer {
        if let Some(r) = r.cluster_version_set {
            return self.set_cluster_version(&r.ver, index);
        }
        if let Some(r) = r.cluster_member_attr_set {
            return self.set_member_attributes(r, index);
        }
        if let Some(r) = r.downgrade_info_set {
            return self.set_downgrade(r);
        }
        if r.downgrade_version_test.is_some() {
            return Ok(Ok(Reply::Done));
        }
        if let Some(r) = r.range {
            if !(self.wanted)(id) {
                return Ok(Ok(Reply::Done));
            }
            self.counts.ranges += 1;
            return answer(self.writer.range(&r).map(Reply::Range));
        }
        if let Some(r) = r.put {
            let response = self.writer.put(&r);
            if response.is_ok() {
                self.counts.put(&r);
            }
            return answer(response.map(Reply::Put));
        }
        if let Some(r) = r.delete_range {
            self.counts.deletes += 1;
            return answer(self.writer.delete_range(&r).map(Reply::DeleteRange));
        }
        if let Some(r) = r.txn {
            let response = self.writer.txn(&r);
            if let Ok(response) = &response {
                self.counts.txn(&r, response);
            }
            return answer(response.map(Reply::Txn));
        }
        if let Some(r) = r.compaction {
            let compacted = self.writer.compact(r.revision);
            let response = CompactionResponse {
                header: header(self.writer.revision()),
            };
            return answer(compacted.map(|()| Reply::Compaction(response)));
        }
        if let Some(r) = r.lease_grant {
            return self.grant(r);
        }
        if let Some(r) = r.lease_revoke {
            return self.revoke(r.id);
        }
        if let Some(r) = r.lease_checkpoint {
            return self.checkpoint(r);
        }
        if let Some(r) = r.alarm {
            return self.alarm(r);
        }
        self.auth(&r, index)
    }

    fn auth(&mut self, r: &InternalRaftRequest, index: u64) -> Answer {
        if auth::has_clear_password(r) {
            let reason = "a password that is not hashed, as no etcd since 3.5 writes it".to_owned();
            return Err(Fatal::Entry { index, reason });
        }
        if !auth::is_auth(r) {
            return Err(Fatal::Unsupported {
                index,
                request: "such request, which a newer etcd may have written",
            });
        }
        let header = header(self.writer.revision());
        let done = match auth::apply(&mut self.next.auth, r, index, header) {
            Ok(done) => done,
            Err(refusal) => return Ok(Err(refusal)),
        };
        for (family, key, row) in done.rows {
            match row {
                Some(row) => self.put_row(family, &key, row)?,
                None => self.delete_row(family, &key)?,
            }
        }
        let mut tokens = lock(self.tokens);
        match done.tokens {
            Some(TokenChange::Enabled(enabled)) => tokens.set_enabled(enabled),
            Some(TokenChange::Assign { token, user }) => tokens.assign(&token, &user, self.now),
            Some(TokenChange::Invalidate(user)) => tokens.invalidate(&user),
            None => {}
        }
        Ok(Ok(Reply::Auth(done.reply)))
    }

    fn grant(&mut self, r: LeaseGrantRequest) -> Answer {
        let ttl = match self.lessor.grant(r.id, r.ttl, self.now) {
            Ok(ttl) => ttl,
            Err(refusal) => return Ok(Err(refusal)),
        };
        self.write_lease(r.id)?;
        self.counts.granted.push(ttl);
        Ok(Ok(Reply::LeaseGrant(LeaseGrantResponse {
            header: header(self.writer.revision()),
            id: r.id,
            ttl,
            error: String::new(),
        })))
    }

    fn write_lease(&mut self, id: i64) -> Result<(), Fatal> {
        match self.lessor.row(id) {
            Some(row) => self.put_row(Family::Lease, &id.to_be_bytes(), row),
            None => Ok(()),
        }
    }

    fn revoke(&mut self, id: i64) -> Answer {
        if let Err(refusal) = self.lessor.revoke(id) {
            return Ok(Err(refusal));
        }
        // As in etcd each of its keys is deleted by itself.
        let keys = self.writer.delete_lease_keys(id).map_err(store_error)?;
        self.counts.deletes += keys as u64;
        self.counts.revoked += 1;
        self.delete_row(Family::Lease, &id.to_be_bytes())?;
        Ok(Ok(Reply::LeaseRevoke(LeaseRevokeResponse {
            header: header(self.writer.revision()),
        })))
    }

    fn checkpoint(&mut self, r: LeaseCheckpointRequest) -> Answer {
        let version = self.next.cluster_version;
        let kept = version.is_some_and(|version| version >= STORAGE_VERSION_SINCE);
        for checkpoint in r.checkpoints {
            let id = checkpoint.id;
            if self
                .lessor
                .checkpoint(id, checkpoint.remaining_ttl, self.now)
                && kept
            {
                self.write_lease(id)?;
            }
        }
        Ok(Ok(Reply::Done))
    }

    fn alarm(&mut self, r: AlarmRequest) -> Answer {
        let mut response = AlarmResponse {
            header: header(self.writer.revision()),
            alarms: Vec::new(),
        };
        let of = r.alarm();
        match r.action() {
            AlarmAction::Get => response.alarms = self.next.alarms.of(of),
            AlarmAction::Activate if of != AlarmType::None => {
                let alarm = Arc::make_mut(&mut self.next.alarms).raise(r.member_id, of);
                let key = alarm_key(&alarm);
                self.put_row(Family::Alarm, &key, Bytes::new())?;
                response.alarms.push(alarm);
            }
            AlarmAction::Activate => {}
            AlarmAction::Deactivate => {
                let cleared = Arc::make_mut(&mut self.next.alarms).clear(r.member_id, of);
                if let Some(alarm) = cleared {
                    self.delete_row(Family::Alarm, &alarm_key(&alarm))?;
                    response.alarms.push(alarm);
                }
            }
        }
        Ok(Ok(Reply::Alarm(response)))
    }

    fn set_cluster_version(&mut self, version: &str, index: u64) -> Answer {
        let version: Version = version
            .parse()
            .map_err(|reason| Fatal::Entry { index, reason })?;
        if version > version::SERVER {
            let own = version::SERVER;
            return Err(Fatal::Entry {
                index,
                reason: format!(
                    "the cluster's version is now {version}, and this server's is {own}: run a \
                     newer one"
                ),
            });
        }
        self.next.cluster_version = Some(version);
        let text = Bytes::from(version.to_string());
        self.put_row(Family::Cluster, CLUSTER_VERSION, text.clone())?;
        if version >= STORAGE_VERSION_SINCE {
            self.next.storage_version = Some(version);
            self.put_row(Family::Meta, STORAGE_VERSION, text)?;
        }
        Ok(Ok(Reply::Done))
    }

    fn set_member_attributes(&mut self, r: ClusterMemberAttrSetRequest, index: u64) -> Answer {
        let attributes = r.member_attributes.unwrap_or_default();
        let members = Arc::make_mut(&mut self.next.members);
        let member = members
            .set_attributes(r.member_id, &attributes.name, &attributes.client_urls)
            .map_err(|reason| Fatal::Entry { index, reason })?;
        if let Some(member) = member {
            let (key, row) = member.row();
            self.put_row(Family::Members, &key, row)?;
        }
        Ok(Ok(Reply::Done))
    }

    fn set_downgrade(&mut self, r: DowngradeInfoSetRequest) -> Answer {
        let downgrade = Downgrade {
            enabled: r.enabled,
            target_version: if r.enabled { r.ver } else { String::new() },
        };
        // Strings and a flag always have a JSON form.
        let row = serde_json::to_vec(&downgrade).unwrap_or_default();
        self.next.downgrade = Arc::new(downgrade);
        self.put_row(Family::Cluster, DOWNGRADE, row.into())?;
        Ok(Ok(Reply::Done))
    }

    /// Applies a conf change: it is validated once more, as it may have been overtaken by another
    /// since it was proposed. A refused one changes nothing and is told raft as nothing.
    pub fn apply_conf_change(&mut self, change: ConfChange, index: u64) -> Result<(), Fatal> {
        let member = members::decode(&change).map_err(|reason| Fatal::Entry { index, reason })?;
        let id = change.id.unwrap_or_default();
        let max_learners = self.options.max_learners;
        if let Err(refusal) = self.next.members.validate(&member, max_learners) {
            self.replies.push((id, Err(refusal)));
            self.conf_changes.push(ConfChangeOutcome {
                change: None,
                member: None,
            });
            return Ok(());
        }
        let changed = Arc::make_mut(&mut self.next.members).apply(&member);
        match changed {
            Some(member) => {
                let (key, row) = member.row();
                self.put_row(Family::Members, &key, row)?;
            }
            None => {
                if let MemberChange::Remove(node) = member {
                    let key = members::member_key(node);
                    self.delete_row(Family::Members, &key)?;
                    let removed = Bytes::from_static(members::REMOVED);
                    self.put_row(Family::MembersRemoved, &key, removed)?;
                    self.removed_self |= node == self.options.member_id;
                }
            }
        }
        self.write_conf_state()?;
        let members = Arc::clone(&self.next.members);
        self.replies.push((id, Ok(Reply::Members(members))));
        self.conf_changes.push(ConfChangeOutcome {
            change: Some(change),
            member: Some(member),
        });
        Ok(())
    }

    /// The row that etcd starts raft from, in its JSON.
    fn write_conf_state(&mut self) -> Result<(), Fatal> {
        let state = self.next.members.conf_state();
        let list = |ids: &[u64]| {
            let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
            format!("[{}]", ids.join(","))
        };
        let mut json = String::from("{");
        if !state.voters.is_empty() {
            json += &format!("\"voters\":{},", list(&state.voters));
        }
        if !state.learners.is_empty() {
            json += &format!("\"learners\":{},", list(&state.learners));
        }
        json += "\"auto_leave\":false}";
        self.put_row(Family::Meta, CONF_STATE, json.into())
    }

    /// Writes the row that etcd has of users before there are any; every snapshot has it.
    pub fn write_auth_revision(&mut self) -> Result<(), Fatal> {
        let first = Bytes::copy_from_slice(&auth::FIRST_REVISION.to_be_bytes());
        self.put_row(Family::Auth, auth::REVISION, first)
    }

    /// Writes which entry is the last, in the same batch as what the entries did: after a crash
    /// the log is replayed from exactly here.
    pub fn write_applied(&mut self) -> Result<(), Fatal> {
        let applied = self.next.applied;
        let number = |number: u64| Bytes::copy_from_slice(&number.to_be_bytes());
        self.put_row(Family::Meta, CONSISTENT_INDEX, number(applied.index))?;
        self.put_row(Family::Meta, TERM, number(applied.term))
    }

    fn put_row(&mut self, family: Family, key: &[u8], row: Bytes) -> Result<(), Fatal> {
        let key = Bytes::copy_from_slice(key);
        self.writer.put_row(family, key, row).map_err(store_error)
    }

    fn delete_row(&mut self, family: Family, key: &[u8]) -> Result<(), Fatal> {
        let key = Bytes::copy_from_slice(key);
        self.writer.delete_row(family, key).map_err(store_error)
    }
}

/// Parts a client's error from what ends the process.
fn answer(result: Result<Reply, mvcc::Error>) -> Answer {
    match result {
        Ok(reply) => Ok(Ok(reply)),
        Err(error) => match Error::of_store(&error) {
            Some(refusal) => Ok(Err(refusal)),
            None => Err(store_error(error)),
        },
    }
}
