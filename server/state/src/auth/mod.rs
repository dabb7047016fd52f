//! Users, roles and what they may do: etcd's auth store. All of it is in memory, and each change
//! goes to etcd's buckets `auth`, `authUsers` and `authRoles`.
//!
//! Who a caller is, is found out at the edge: by a token or by a certificate. Entries carry the
//! name and the revision of the store at that time, and apply decides by them alone.

mod check;
mod order;
mod permissions;
mod requests;
mod tokens;
mod tree;

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use mvcc::Family;
use prost::Message;
use proto::{
    authpb::{Role, User},
    etcdserverpb::{
        AuthRoleGetResponse, AuthRoleListResponse, AuthStatusResponse, AuthUserGetResponse,
        AuthUserListResponse, AuthenticateResponse, ResponseHeader,
    },
};

pub use check::LeaseKeys;
use permissions::{Access, Grants};
pub(crate) use requests::{TokenChange, apply, has_clear_password, is_auth};
pub use tokens::{TOKEN_TTL, Tokens, token_index};

use crate::error::Error;

/// etcd's rows in bucket `auth`.
pub(crate) const ENABLED: &[u8] = b"authEnabled";
pub(crate) const REVISION: &[u8] = b"authRevision";
/// The revision of a store without users; its row is there from the start.
pub(crate) const FIRST_REVISION: u64 = 1;
/// The values of the row [`ENABLED`].
const ON: &[u8] = &[1];
const OFF: &[u8] = &[0];
/// The user without whom authentication cannot be switched on, and the role that may do all.
pub const ROOT: &str = "root";

/// Who asks, as a request's header says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthInfo {
    /// The user; empty when there is none.
    pub username: String,
    /// The revision of the auth store when the user was recognised; 0 when there is none.
    pub revision: u64,
}

/// What an auth request is answered.
#[derive(Clone, Debug, PartialEq)]
pub enum AuthReply {
    /// It is done.
    Done(Option<ResponseHeader>),
    /// Whether authentication is on.
    Status(AuthStatusResponse),
    /// A token, and the revision of the auth store that it is given at.
    Authenticated(AuthenticateResponse, u64),
    /// The roles of a user.
    User(AuthUserGetResponse),
    /// All users.
    Users(AuthUserListResponse),
    /// The permissions of a role.
    Role(AuthRoleGetResponse),
    /// All roles.
    Roles(AuthRoleListResponse),
}

/// A row to be written, or without a value to be deleted.
pub(crate) type RowChange = (Family, Bytes, Option<Bytes>);

/// Users, roles, and whether they count.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Auth {
    enabled: bool,
    revision: u64,
    users: BTreeMap<Bytes, User>,
    roles: BTreeMap<Bytes, Role>,
    /// What follows from the roles of each user.
    grants: HashMap<Bytes, Grants>,
}

impl Auth {
    /// From the rows of the three buckets.
    ///
    /// # Errors
    /// Which row is damaged.
    pub(crate) fn load(
        auth: impl Iterator<Item = (Bytes, Bytes)>,
        users: impl Iterator<Item = (Bytes, Bytes)>,
        roles: impl Iterator<Item = (Bytes, Bytes)>,
    ) -> Result<Self, String> {
        let mut loaded = Self {
            revision: FIRST_REVISION,
            ..Self::default()
        };
        for (key, row) in auth {
            check_row(Family::Auth, &key, &row)?;
            if key == ENABLED {
                loaded.enabled = row == ON;
            } else if let (true, Ok(row)) = (key == REVISION, row[..].try_into()) {
                loaded.revision = u64::from_be_bytes(row);
            }
        }
        for (key, row) in users {
            loaded.users.insert(key, decode("authUsers", row)?);
        }
        for (key, row) in roles {
            loaded.roles.insert(key, decode("authRoles", row)?);
        }
        loaded.refresh();
        Ok(loaded)
    }

    /// Whether who may do what is asked at all.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Rises with each change of users and roles; not when authentication is switched on.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The hash by which a user's password is checked, with the revision that it is of.
    ///
    /// # Errors
    /// What who asks for a token is told.
    pub fn password_of(&self, user: &str) -> Result<(Bytes, u64), Error> {
        if !self.enabled {
            return Err(Error::AuthNotEnabled);
        }
        let user = self.users.get(user.as_bytes()).ok_or(Error::AuthFailed)?;
        match has_no_password(user) {
            true => Err(Error::NoPasswordUser),
            false => Ok((user.password.clone(), self.revision)),
        }
    }

    /// What the roles of each user permit together.
    fn refresh(&mut self) {
        let of = |user: &User| {
            let roles = user.roles.iter();
            let roles = roles.filter_map(|role| self.roles.get(role.as_bytes()));
            Grants::of(roles.flat_map(|role| &role.key_permission))
        };
        let users = self.users.iter();
        self.grants = users.map(|(name, user)| (name.clone(), of(user))).collect();
    }
}

/// Looks whether a row is one that [`Auth::load`] takes.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_row(family: Family, key: &[u8], row: &Bytes) -> Result<(), String> {
    match family {
        Family::Auth if key == REVISION && row.len() != 8 => {
            Err("the row authRevision of bucket auth has no 8 bytes".to_owned())
        }
        Family::AuthUsers => decode::<User>("authUsers", row.clone()).map(|_| ()),
        Family::AuthRoles => decode::<Role>("authRoles", row.clone()).map(|_| ()),
        _ => Ok(()),
    }
}

fn decode<M: Message + Default>(bucket: &str, row: Bytes) -> Result<M, String> {
    M::decode(row).map_err(|error| format!("a row of bucket {bucket}: {error}"))
}

/// Roles are in order, and looked for by halves as in etcd.
fn has_root_role(user: &User) -> bool {
    let by_name = |role: &String| role.as_str().cmp(ROOT);
    user.roles.binary_search_by(by_name).is_ok()
}

fn has_no_password(user: &User) -> bool {
    user.options.is_some_and(|options| options.no_password)
}
