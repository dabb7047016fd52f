//! What each auth request does, in etcd's order of checks.

use std::{mem, sync::Arc};

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use mvcc::Family;
use prost::Message;
use proto::{
    authpb::{Permission, Role, User, permission::Type},
    etcdserverpb::{
        AuthRoleGetResponse, AuthRoleGrantPermissionRequest, AuthRoleListResponse,
        AuthRoleRevokePermissionRequest, AuthStatusResponse, AuthUserAddRequest,
        AuthUserChangePasswordRequest, AuthUserGetResponse, AuthUserGrantRoleRequest,
        AuthUserListResponse, AuthUserRevokeRoleRequest, AuthenticateResponse,
        InternalAuthenticateRequest, InternalRaftRequest, ResponseHeader,
    },
};

use super::{
    Auth, AuthReply, ENABLED, OFF, ON, REVISION, ROOT, RowChange, has_no_password, has_root_role,
    order, permissions,
};
use crate::error::Error;

/// Go's form of base64: with padding, and blind to what the last letter has too much.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// What an auth request means for tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TokenChange {
    /// Tokens are given, or all end.
    Enabled(bool),
    /// A user gets one.
    Assign { token: String, user: String },
    /// Those of a user end.
    Invalidate(String),
}

/// What an auth request did.
#[derive(Debug)]
pub(crate) struct Done {
    pub reply: AuthReply,
    pub rows: Vec<RowChange>,
    pub tokens: Option<TokenChange>,
}

/// Carries out one request.
struct Apply<'a> {
    /// Copied only by what changes it.
    auth: &'a mut Arc<Auth>,
    rows: Vec<RowChange>,
    tokens: Option<TokenChange>,
}

/// Whether a request holds a password that is not hashed: etcd before 3.5 wrote such. Each member
/// would hash it for itself, with other salt.
pub(crate) fn has_clear_password(r: &InternalRaftRequest) -> bool {
    let clear = |password: &str, hash: &str| !password.is_empty() && hash.is_empty();
    let adds = r.auth_user_add.as_ref().is_some_and(|r| {
        let unused = r.options.is_some_and(|options| options.no_password);
        !unused && clear(&r.password, &r.hashed_password)
    });
    let change = r.auth_user_change_password.as_ref();
    adds || change.is_some_and(|r| clear(&r.password, &r.hashed_password))
}

/// Whether this is an auth request.
pub(crate) fn is_auth(r: &InternalRaftRequest) -> bool {
    r.authenticate.is_some()
        || r.auth_enable.is_some()
        || r.auth_disable.is_some()
        || r.auth_status.is_some()
        || r.auth_user_add.is_some()
        || r.auth_user_delete.is_some()
        || r.auth_user_change_password.is_some()
        || r.auth_user_grant_role.is_some()
        || r.auth_user_get.is_some()
        || r.auth_user_revoke_role.is_some()
        || r.auth_role_add.is_some()
        || r.auth_role_grant_permission.is_some()
        || r.auth_role_get.is_some()
        || r.auth_role_revoke_permission.is_some()
        || r.auth_role_delete.is_some()
        || r.auth_user_list.is_some()
        || r.auth_role_list.is_some()
}

/// Carries out an auth request (see [`is_auth`]) of the entry `index`. What it answers bears
/// `header`. A refused one changes nothing.
pub(crate) fn apply(
    auth: &mut Arc<Auth>,
    r: &InternalRaftRequest,
    index: u64,
    header: Option<ResponseHeader>,
) -> Result<Done, Error> {
    let mut apply = Apply {
        auth,
        rows: Vec::new(),
        tokens: None,
    };
    let reply = apply.dispatch(r, index, header)?;
    Ok(Done {
        reply,
        rows: apply.rows,
        tokens: apply.tokens,
    })
}

impl Apply<'_> {
    /// In the order in which etcd tells requests apart.
    fn dispatch(
        &mut self,
        r: &InternalRaftRequest,
        index: u64,
        header: Option<ResponseHeader>,
    ) -> Result<AuthReply, Error> {
        let done = if let Some(r) = &r.authenticate {
            return self.authenticate(r, index, header);
        } else if r.auth_enable.is_some() {
            self.enable()
        } else if r.auth_disable.is_some() {
            self.disable();
            Ok(())
        } else if r.auth_status.is_some() {
            return Ok(AuthReply::Status(AuthStatusResponse {
                header,
                enabled: self.auth.enabled,
                auth_revision: self.auth.revision,
            }));
        } else if let Some(r) = &r.auth_user_add {
            self.user_add(r)
        } else if let Some(r) = &r.auth_user_delete {
            self.user_delete(&r.name)
        } else if let Some(r) = &r.auth_user_change_password {
            self.user_change_password(r)
        } else if let Some(r) = &r.auth_user_grant_role {
            self.user_grant_role(r)
        } else if let Some(r) = &r.auth_user_get {
            let roles = self.user(&r.name)?.roles;
            return Ok(AuthReply::User(AuthUserGetResponse { header, roles }));
        } else if let Some(r) = &r.auth_user_revoke_role {
            self.user_revoke_role(r)
        } else if let Some(r) = &r.auth_role_add {
            self.role_add(&r.name)
        } else if let Some(r) = &r.auth_role_grant_permission {
            self.role_grant_permission(r)
        } else if let Some(r) = &r.auth_role_get {
            let perm = permissions_shown(self.role(&r.role)?);
            return Ok(AuthReply::Role(AuthRoleGetResponse { header, perm }));
        } else if let Some(r) = &r.auth_role_revoke_permission {
            self.role_revoke_permission(r)
        } else if let Some(r) = &r.auth_role_delete {
            self.role_delete(&r.role)
        } else if r.auth_user_list.is_some() {
            let users = self
                .auth
                .users
                .values()
                .map(|user| text(&user.name))
                .collect();
            let response = AuthUserListResponse { header, users };
            return Ok(AuthReply::Users(response));
        } else {
            let roles = self
                .auth
                .roles
                .values()
                .map(|role| text(&role.name))
                .collect();
            let response = AuthRoleListResponse { header, roles };
            return Ok(AuthReply::Roles(response));
        };
        done.map(|()| AuthReply::Done(header))
    }

    /// The password was checked before the entry was proposed.
    fn authenticate(
        &mut self,
        r: &InternalAuthenticateRequest,
        index: u64,
        header: Option<ResponseHeader>,
    ) -> Result<AuthReply, Error> {
        if !self.auth.enabled {
            return Err(Error::AuthNotEnabled);
        }
        let user = self.auth.users.get(r.name.as_bytes());
        if has_no_password(user.ok_or(Error::AuthFailed)?) {
            return Err(Error::AuthFailed);
        }
        // Where tokens are signed there is none to be known.
        let token = match r.simple_token.is_empty() {
            true => String::new(),
            false => format!("{}.{index}", r.simple_token),
        };
        if !token.is_empty() {
            self.tokens = Some(TokenChange::Assign {
                token: token.clone(),
                user: r.name.clone(),
            });
        }
        let response = AuthenticateResponse { header, token };
        Ok(AuthReply::Authenticated(response, self.auth.revision))
    }

    fn enable(&mut self) -> Result<(), Error> {
        if self.auth.enabled {
            return Ok(());
        }
        let root = self.auth.users.get(ROOT.as_bytes());
        if !has_root_role(root.ok_or(Error::RootUserNotExist)?) {
            return Err(Error::RootRoleNotExist);
        }
        self.write_enabled(ON);
        Ok(())
    }

    fn disable(&mut self) {
        if self.auth.enabled {
            self.write_enabled(OFF);
            self.raise_revision();
        }
    }

    fn write_enabled(&mut self, row: &'static [u8]) {
        let (key, row) = (Bytes::from_static(ENABLED), Bytes::from_static(row));
        let enabled = row == ON;
        self.auth_mut().enabled = enabled;
        self.tokens = Some(TokenChange::Enabled(enabled));
        self.rows.push((Family::Auth, key, Some(row)));
    }

    fn user_add(&mut self, r: &AuthUserAddRequest) -> Result<(), Error> {
        if r.name.is_empty() {
            return Err(Error::UserEmpty);
        }
        if self.auth.users.contains_key(r.name.as_bytes()) {
            return Err(Error::UserAlreadyExist);
        }
        let options = r.options.unwrap_or_default();
        let password = match options.no_password {
            true => Bytes::new(),
            false => decode_password(&r.hashed_password)?,
        };
        self.put_user(User {
            name: r.name.clone().into(),
            password,
            options: Some(options),
            ..User::default()
        });
        self.changed();
        Ok(())
    }

    fn user_delete(&mut self, name: &str) -> Result<(), Error> {
        if self.auth.enabled && name == ROOT {
            return Err(Error::InvalidAuthMgmt);
        }
        let key = self.user(name)?.name;
        self.auth_mut().users.remove(name.as_bytes());
        self.rows.push((Family::AuthUsers, key, None));
        self.changed();
        self.tokens = Some(TokenChange::Invalidate(name.to_owned()));
        Ok(())
    }

    fn user_change_password(&mut self, r: &AuthUserChangePasswordRequest) -> Result<(), Error> {
        let mut user = self.user(&r.name)?;
        user.password = match has_no_password(&user) {
            true => Bytes::new(),
            false => decode_password(&r.hashed_password)?,
        };
        self.put_user(user);
        self.changed();
        self.tokens = Some(TokenChange::Invalidate(r.name.clone()));
        Ok(())
    }

    fn user_grant_role(&mut self, r: &AuthUserGrantRoleRequest) -> Result<(), Error> {
        let mut user = self.user(&r.user)?;
        if r.role != ROOT {
            self.role(&r.role)?;
        }
        let Err(at) = user.roles.binary_search(&r.role) else {
            return Ok(());
        };
        user.roles.insert(at, r.role.clone());
        self.put_user(user);
        self.changed();
        Ok(())
    }

    fn user_revoke_role(&mut self, r: &AuthUserRevokeRoleRequest) -> Result<(), Error> {
        if self.auth.enabled && r.name == ROOT && r.role == ROOT {
            return Err(Error::InvalidAuthMgmt);
        }
        let mut user = self.user(&r.name)?;
        let had = user.roles.len();
        user.roles.retain(|role| *role != r.role);
        if user.roles.len() == had {
            return Err(Error::RoleNotGranted);
        }
        self.put_user(user);
        self.changed();
        Ok(())
    }

    fn role_add(&mut self, name: &str) -> Result<(), Error> {
        if name.is_empty() {
            return Err(Error::RoleEmpty);
        }
        if self.auth.roles.contains_key(name.as_bytes()) {
            return Err(Error::RoleAlreadyExist);
        }
        self.put_role(Role {
            name: Bytes::copy_from_slice(name.as_bytes()),
            ..Role::default()
        });
        self.changed();
        Ok(())
    }

    fn role_delete(&mut self, name: &str) -> Result<(), Error> {
        if self.auth.enabled && name == ROOT {
            return Err(Error::InvalidAuthMgmt);
        }
        let key = self.role(name)?.name;
        self.auth_mut().roles.remove(name.as_bytes());
        self.rows.push((Family::AuthRoles, key, None));
        let users = self.auth.users.values();
        let of_role = |user: &&User| user.roles.iter().any(|role| role == name);
        for mut user in users.filter(of_role).cloned().collect::<Vec<_>>() {
            user.roles.retain(|role| role != name);
            self.put_user(user);
        }
        self.changed();
        Ok(())
    }

    fn role_grant_permission(&mut self, r: &AuthRoleGrantPermissionRequest) -> Result<(), Error> {
        let permission = r.perm.as_ref().ok_or(Error::PermissionNotGiven)?;
        if !permissions::is_valid(&permission.key, &permission.range_end) {
            return Err(Error::InvalidAuthMgmt);
        }
        let mut role = self.role(&r.name)?;
        let granted = &mut role.key_permission;
        // As in etcd only the first one of the key is looked at.
        let first = granted.partition_point(|found| found.key < permission.key);
        match granted.get_mut(first) {
            Some(found)
                if found.key == permission.key && found.range_end == permission.range_end =>
            {
                found.perm_type = permission.perm_type;
            }
            _ => {
                granted.push(permission.clone());
                order::sort(granted);
            }
        }
        self.put_role(role);
        self.changed();
        Ok(())
    }

    fn role_revoke_permission(&mut self, r: &AuthRoleRevokePermissionRequest) -> Result<(), Error> {
        let mut role = self.role(&r.role)?;
        let had = role.key_permission.len();
        let other = |found: &Permission| found.key != r.key || found.range_end != r.range_end;
        role.key_permission.retain(other);
        if role.key_permission.len() == had {
            return Err(Error::PermissionNotGranted);
        }
        self.put_role(role);
        self.changed();
        Ok(())
    }

    fn auth_mut(&mut self) -> &mut Auth {
        Arc::make_mut(self.auth)
    }

    fn user(&self, name: &str) -> Result<User, Error> {
        let user = self.auth.users.get(name.as_bytes());
        user.cloned().ok_or(Error::UserNotFound)
    }

    fn role(&self, name: &str) -> Result<Role, Error> {
        let role = self.auth.roles.get(name.as_bytes());
        role.cloned().ok_or(Error::RoleNotFound)
    }

    fn put_user(&mut self, user: User) {
        let (key, row) = (user.name.clone(), user.encode_to_vec().into());
        self.rows.push((Family::AuthUsers, key.clone(), Some(row)));
        self.auth_mut().users.insert(key, user);
    }

    fn put_role(&mut self, role: Role) {
        let (key, row) = (role.name.clone(), role.encode_to_vec().into());
        self.rows.push((Family::AuthRoles, key.clone(), Some(row)));
        self.auth_mut().roles.insert(key, role);
    }

    /// Ends each change of users and roles.
    fn changed(&mut self) {
        self.raise_revision();
        self.auth_mut().refresh();
    }

    fn raise_revision(&mut self) {
        self.auth_mut().revision += 1;
        let row = Bytes::copy_from_slice(&self.auth.revision.to_be_bytes());
        let key = Bytes::from_static(REVISION);
        self.rows.push((Family::Auth, key, Some(row)));
    }
}

/// A password's hash as it goes through the log.
fn decode_password(hashed: &str) -> Result<Bytes, Error> {
    // Go passes over the ends of lines.
    let hashed: String = hashed
        .chars()
        .filter(|c| !matches!(c, '\r' | '\n'))
        .collect();
    let password = BASE64.decode(hashed).map_err(|_| Error::NoPasswordUser)?;
    Ok(password.into())
}

/// The role root has no permissions of its own, and may do everything.
fn permissions_shown(mut role: Role) -> Vec<Permission> {
    if role.name != ROOT.as_bytes() {
        return mem::take(&mut role.key_permission);
    }
    vec![Permission {
        perm_type: Type::Readwrite as i32,
        key: Bytes::new(),
        range_end: Bytes::from_static(b"\0"),
    }]
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
