//! Whether a user may do what a request asks for, in etcd's order of checks: members must come
//! to the same answer, and clients are told the first reason.

use bytes::Bytes;
use proto::etcdserverpb::{
    DeleteRangeRequest, InternalRaftRequest, PutRequest, RequestOp, TxnRequest, request_op::Request,
};

use super::{Access, Auth, AuthInfo};
use crate::error::Error;

/// The keys of a lease; none when there is no such lease.
pub type LeaseKeys<'a> = &'a dyn Fn(i64) -> Vec<Bytes>;

impl Auth {
    /// Whether a committed request may be carried out, as far as its user decides it. What asks
    /// for root's rights is seen to by [`Auth::check_admin_request`], before anything else.
    pub(crate) fn check(
        &self,
        by: &AuthInfo,
        r: &InternalRaftRequest,
        leases: LeaseKeys<'_>,
    ) -> Result<(), Error> {
        // The order in which etcd tells requests apart.
        if let Some(r) = &r.range {
            self.check_read(by, &r.key, &r.range_end)
        } else if let Some(r) = &r.put {
            self.check_put(by, r, leases)
        } else if let Some(r) = &r.delete_range {
            self.check_write(by, &r.key, &r.range_end)?;
            self.check_previous(by, r)
        } else if let Some(r) = &r.txn {
            self.check_txn(by, r, leases)
        } else if let Some(r) = &r.lease_revoke {
            self.check_lease(by, r.id, leases)
        } else if let Some(r) = &r.auth_user_get {
            let own = r.name == by.username;
            self.check_admin(by)
                .or_else(|e| if own { Ok(()) } else { Err(e) })
        } else if let Some(r) = &r.auth_role_get {
            let own = self.has_role(&by.username, &r.role);
            self.check_admin(by)
                .or_else(|e| if own { Ok(()) } else { Err(e) })
        } else {
            Ok(())
        }
    }

    /// Whether a request that needs root's rights has them.
    pub(crate) fn check_admin_request(
        &self,
        by: &AuthInfo,
        r: &InternalRaftRequest,
    ) -> Result<(), Error> {
        let needed = r.auth_enable.is_some()
            || r.auth_disable.is_some()
            || r.auth_user_add.is_some()
            || r.auth_user_delete.is_some()
            || r.auth_user_change_password.is_some()
            || r.auth_user_grant_role.is_some()
            || r.auth_user_revoke_role.is_some()
            || r.auth_role_add.is_some()
            || r.auth_role_grant_permission.is_some()
            || r.auth_role_revoke_permission.is_some()
            || r.auth_role_delete.is_some()
            || r.auth_user_list.is_some()
            || r.auth_role_list.is_some();
        match needed {
            true => self.check_admin(by),
            false => Ok(()),
        }
    }

    /// Whether a transaction may be carried out, with all that is in it, whichever branch is taken.
    ///
    /// # Errors
    /// What the caller is told.
    pub fn check_txn(
        &self,
        by: &AuthInfo,
        r: &TxnRequest,
        leases: LeaseKeys<'_>,
    ) -> Result<(), Error> {
        if !self.enabled {
            return Ok(());
        }
        for compare in &r.compare {
            self.check_read(by, &compare.key, &compare.range_end)?;
        }
        let ops = r.success.iter().chain(&r.failure);
        ops.into_iter()
            .try_for_each(|op| self.check_op(by, op, leases))
    }

    fn check_op(&self, by: &AuthInfo, op: &RequestOp, leases: LeaseKeys<'_>) -> Result<(), Error> {
        match &op.request {
            Some(Request::RequestRange(r)) => self.check_read(by, &r.key, &r.range_end),
            Some(Request::RequestPut(r)) => self.check_put(by, r, leases),
            Some(Request::RequestDeleteRange(r)) => {
                self.check_previous(by, r)?;
                self.check_write(by, &r.key, &r.range_end)
            }
            Some(Request::RequestTxn(r)) => self.check_txn(by, r, leases),
            None => Ok(()),
        }
    }

    fn check_put(&self, by: &AuthInfo, r: &PutRequest, leases: LeaseKeys<'_>) -> Result<(), Error> {
        self.check_write(by, &r.key, b"")?;
        // Who may not revoke a lease may not tie a key to it either.
        self.check_lease(by, r.lease, leases)?;
        match r.prev_kv {
            true => self.check_read(by, &r.key, b""),
            false => Ok(()),
        }
    }

    /// What a delete shows of the keys has to be readable.
    fn check_previous(&self, by: &AuthInfo, r: &DeleteRangeRequest) -> Result<(), Error> {
        match r.prev_kv {
            true => self.check_read(by, &r.key, &r.range_end),
            false => Ok(()),
        }
    }

    /// Whether all keys of a lease may be written.
    fn check_lease(&self, by: &AuthInfo, id: i64, leases: LeaseKeys<'_>) -> Result<(), Error> {
        if self.check_admin(by).is_ok() {
            return Ok(());
        }
        let keys = leases(id);
        keys.iter()
            .try_for_each(|key| self.check_write(by, key, b""))
    }

    /// Whether all of a range may be read; without an end it is the one key.
    ///
    /// # Errors
    /// What the caller is told.
    pub fn check_read(&self, by: &AuthInfo, key: &[u8], range_end: &[u8]) -> Result<(), Error> {
        self.check_keys(by, key, range_end, Access::Read)
    }

    /// Whether all of a range may be written; without an end it is the one key.
    ///
    /// # Errors
    /// What the caller is told.
    pub fn check_write(&self, by: &AuthInfo, key: &[u8], range_end: &[u8]) -> Result<(), Error> {
        self.check_keys(by, key, range_end, Access::Write)
    }

    fn check_keys(
        &self,
        by: &AuthInfo,
        key: &[u8],
        range_end: &[u8],
        access: Access,
    ) -> Result<(), Error> {
        if !self.enabled {
            return Ok(());
        }
        if by.revision == 0 {
            return Err(Error::UserEmpty);
        }
        if by.revision < self.revision {
            return Err(Error::AuthOldRevision);
        }
        let name = by.username.as_bytes();
        let user = self.users.get(name).ok_or(Error::PermissionDenied)?;
        let grants = self.grants.get(name);
        let permitted = super::has_root_role(user)
            || grants.is_some_and(|grants| grants.permit(key, range_end, access));
        match permitted {
            true => Ok(()),
            false => Err(Error::PermissionDenied),
        }
    }

    /// Whether a user has root's rights. How old its information is does not matter here.
    ///
    /// # Errors
    /// What the caller is told.
    pub fn check_admin(&self, by: &AuthInfo) -> Result<(), Error> {
        if !self.enabled {
            return Ok(());
        }
        if by.username.is_empty() {
            return Err(Error::UserEmpty);
        }
        let user = self.users.get(by.username.as_bytes());
        match super::has_root_role(user.ok_or(Error::UserNotFound)?) {
            true => Ok(()),
            false => Err(Error::PermissionDenied),
        }
    }

    fn has_role(&self, user: &str, role: &str) -> bool {
        let user = self.users.get(user.as_bytes());
        user.is_some_and(|user| user.roles.iter().any(|found| found == role))
    }
}
