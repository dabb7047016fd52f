//! Who calls, and what they may do: the edge's part of authentication. It refuses early; what goes
//! through the log is decided again by apply, from the name and the revision in the entry.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::UNIX_EPOCH,
};

use anyhow::Context;
use api::{
    Caller,
    backend::{AuthRequest, ReadPermit},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use config::{AuthToken, Config};
use proto::etcdserverpb::{
    AuthUserAddRequest, AuthUserChangePasswordRequest, AuthenticateRequest,
    InternalAuthenticateRequest, InternalRaftRequest,
};
use rand::Rng;
use state::{
    Auth, AuthInfo, AuthReply, Error, Published, Reply, Tokens,
    auth::{ROOT, token_index},
};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use super::{
    backend::{LOOK_EVERY, NodeBackend},
    jwt::Signer,
    shared::{Shared, Snapshot},
};

/// Letters of a token before the number of its entry.
const TOKEN_LETTERS: usize = 16;
/// Longest password that bcrypt takes, in bytes.
const MAX_PASSWORD_BYTES: usize = 72;
/// The costs that bcrypt knows.
const BCRYPT_COSTS: std::ops::RangeInclusive<u32> = 4..=31;
/// The cost that etcd takes in place of one that bcrypt does not know.
const DEFAULT_BCRYPT_COST: u32 = 10;

/// How passwords are hashed and tokens are made.
pub(crate) struct Access {
    /// The cost of a hash: its work is two to the power of it.
    bcrypt_cost: u32,
    /// Hashes take a core for a while each; so many are made at a time.
    hashes: Semaphore,
    tokens: Arc<Mutex<Tokens>>,
    /// Makes and checks tokens in place of the simple ones.
    signer: Option<Arc<Signer>>,
}

impl Access {
    /// As the flags say it.
    ///
    /// # Errors
    /// Keys of tokens that are of no use.
    pub fn of(config: &Config, tokens: Arc<Mutex<Tokens>>) -> anyhow::Result<Self> {
        let mut access = Self::new(config.bcrypt_cost, tokens);
        access.tokens().set_ttl(config.auth_token_ttl);
        if let AuthToken::Jwt(options) = &config.auth_token {
            let signer = Signer::load(options).context("--auth-token=jwt cannot be used")?;
            access.signer = Some(Arc::new(signer));
        }
        Ok(access)
    }

    fn new(bcrypt_cost: u32, tokens: Arc<Mutex<Tokens>>) -> Self {
        let bcrypt_cost = match BCRYPT_COSTS.contains(&bcrypt_cost) {
            true => bcrypt_cost,
            false => {
                let used = DEFAULT_BCRYPT_COST;
                warn!(given = bcrypt_cost, used, "bcrypt knows no such cost");
                used
            }
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            bcrypt_cost,
            hashes: Semaphore::new(cores),
            tokens,
            signer: None,
        }
    }

    /// What signs tokens, if they are signed.
    pub fn signer(&self) -> Option<&Arc<Signer>> {
        self.signer.as_ref()
    }

    fn tokens(&self) -> MutexGuard<'_, Tokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs bcrypt away from the tasks that serve connections.
    async fn hash<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let _room = self.hashes.acquire().await.map_err(|_| Error::Stopped)?;
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|_| Error::Stopped)
    }

    /// The hash of a password, in the form that goes through the log.
    async fn hashed(&self, password: String) -> Result<String, Error> {
        if password.len() > MAX_PASSWORD_BYTES {
            return Err(Error::PasswordTooLong);
        }
        let cost = self.bcrypt_cost;
        let hash = self.hash(move || bcrypt::hash_with_result(password, cost));
        let hash = hash.await?.map_err(|error| {
            warn!(%error, "could not hash a password");
            Error::Stopped
        })?;
        // The version that Go writes, which is the same hash.
        Ok(STANDARD.encode(hash.format_for_version(bcrypt::Version::TwoA)))
    }
}

/// The auth store as the edge sees it.
fn auth_of(shared: &Shared) -> Arc<Auth> {
    Arc::clone(&shared.published.load().auth)
}

/// Waits until an entry is applied that may never be: whoever calls may name any. So nothing is
/// noted for it.
async fn wait_for_entry(shared: &Shared, index: u64) {
    while shared.applied.load(Ordering::Acquire) < index {
        sleep(LOOK_EVERY).await;
    }
}

impl NodeBackend {
    /// Whether it counts who makes a call.
    pub(super) fn is_auth_enabled(&self) -> bool {
        self.shared().auth_enabled.load(Ordering::Relaxed)
    }

    /// Who makes a call, if it counts and the call says so.
    ///
    /// # Errors
    /// `InvalidAuthToken`.
    pub(super) async fn identify(&self, caller: &Caller) -> Result<Option<AuthInfo>, Error> {
        if !self.is_auth_enabled() {
            return Ok(None);
        }
        let shared = self.shared();
        let named = |username: String| AuthInfo {
            username,
            revision: auth_of(shared).revision(),
        };
        if caller.is_server() {
            return Ok(Some(named(ROOT.to_owned())));
        }
        let Some(token) = caller.token() else {
            return Ok(caller.common_name().map(|name| named(name.to_owned())));
        };
        if let Some(signer) = shared.access.signer() {
            // It says its revision itself: what was changed since asks for a new one.
            let user = signer.user_of(token).ok_or(Error::InvalidAuthToken)?;
            return Ok(Some(user));
        }
        let index = token_index(token).ok_or(Error::InvalidAuthToken)?;
        // This member may be behind the one that gave the token.
        let limit = shared.settings.request_timeout();
        let known = timeout(limit, wait_for_entry(shared, index)).await;
        known.map_err(|_| Error::InvalidAuthToken)?;
        let user = shared.access.tokens().user_of(token, shared.now());
        user.map(|user| Some(named(user)))
            .ok_or(Error::InvalidAuthToken)
    }

    /// Whether a caller's token says of itself at which revision it was given.
    fn is_dated(&self, caller: &Caller) -> bool {
        self.shared().access.signer().is_some() && !caller.is_server() && caller.token().is_some()
    }

    /// Looks whether a caller may do something, in the state that is then read.
    ///
    /// # Errors
    /// The refusal of `check`, and `InvalidAuthToken`.
    pub(super) async fn permitted(
        &self,
        caller: &Caller,
        check: impl FnOnce(&Published<Snapshot>, &AuthInfo) -> Result<(), Error>,
    ) -> Result<Arc<Published<Snapshot>>, Error> {
        if !self.is_auth_enabled() {
            return Ok(self.shared().published.load_full());
        }
        let by = self.identify(caller).await?;
        let published = self.shared().published.load_full();
        let mut by = by.unwrap_or_default();
        if by != AuthInfo::default() && !self.is_dated(caller) {
            // Who has been recognised is the same in a later state.
            by.revision = published.auth.revision();
        }
        check(&published, &by)?;
        Ok(published)
    }

    pub(super) async fn permit_range(
        &self,
        caller: &Caller,
        key: &[u8],
        range_end: &[u8],
    ) -> Result<ReadPermit, Error> {
        if !self.is_auth_enabled() {
            return Ok(ReadPermit(None));
        }
        let check = |published: &Published<Snapshot>, by: &AuthInfo| {
            published.auth.check_read(by, key, range_end)
        };
        let published = self.permitted(caller, check).await?;
        Ok(ReadPermit(Some(published.auth.revision())))
    }

    pub(super) fn recheck_permit(&self, permit: ReadPermit) -> Result<(), Error> {
        match permit.0 {
            Some(revision) if revision != auth_of(self.shared()).revision() => {
                Err(Error::AuthOldRevision)
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn known_user(&self, caller: &Caller) -> Result<(), Error> {
        if !self.is_auth_enabled() {
            return Ok(());
        }
        let by = self.identify(caller).await?;
        by.map(|_| ()).ok_or(Error::UserEmpty)
    }

    pub(super) async fn root(&self, caller: &Caller) -> Result<(), Error> {
        let check = |published: &Published<Snapshot>, by: &AuthInfo| published.auth.check_admin(by);
        self.permitted(caller, check).await.map(|_| ())
    }

    /// Looks whether a caller may do something with each key of a lease; root may with any.
    /// Returns the permit that it rests on.
    pub(super) async fn permit_lease(
        &self,
        caller: &Caller,
        leases: &[i64],
        check_key: impl Fn(&Auth, &AuthInfo, &[u8]) -> Result<(), Error>,
    ) -> Result<ReadPermit, Error> {
        if !self.is_auth_enabled() {
            return Ok(ReadPermit(None));
        }
        self.known_user(caller).await?;
        let check = |published: &Published<Snapshot>, by: &AuthInfo| {
            let auth = &published.auth;
            if auth.check_admin(by).is_ok() {
                return Ok(());
            }
            for lease in leases {
                let keys = self.told(published.view.lease_keys(*lease))?;
                keys.iter().try_for_each(|key| check_key(auth, by, key))?;
            }
            Ok(())
        };
        let published = self.permitted(caller, check).await?;
        Ok(ReadPermit(Some(published.auth.revision())))
    }

    /// Puts a caller's request into the log and waits until it is applied.
    pub(super) async fn propose_for(
        &self,
        caller: &Caller,
        request: InternalRaftRequest,
    ) -> Result<Reply, Error> {
        let by = self.identify(caller).await?;
        self.propose_by(by.unwrap_or_default(), request).await
    }

    /// Carries out what is about users and roles.
    pub(super) async fn change_auth(
        &self,
        caller: &Caller,
        request: AuthRequest,
    ) -> Result<AuthReply, Error> {
        let mut r = InternalRaftRequest::default();
        match request {
            AuthRequest::Authenticate(request) => return self.authenticate(request).await,
            AuthRequest::UserAdd(request) => r.auth_user_add = Some(self.hash_new(request).await?),
            AuthRequest::UserChangePassword(request) => {
                r.auth_user_change_password = Some(self.hash_changed(request).await?);
            }
            AuthRequest::Enable => r.auth_enable = Some(Default::default()),
            AuthRequest::Disable => r.auth_disable = Some(Default::default()),
            AuthRequest::Status => r.auth_status = Some(Default::default()),
            AuthRequest::UserGet(request) => r.auth_user_get = Some(request),
            AuthRequest::UserList => r.auth_user_list = Some(Default::default()),
            AuthRequest::UserDelete(request) => r.auth_user_delete = Some(request),
            AuthRequest::UserGrantRole(request) => r.auth_user_grant_role = Some(request),
            AuthRequest::UserRevokeRole(request) => r.auth_user_revoke_role = Some(request),
            AuthRequest::RoleAdd(request) => r.auth_role_add = Some(request),
            AuthRequest::RoleGet(request) => r.auth_role_get = Some(request),
            AuthRequest::RoleList => r.auth_role_list = Some(Default::default()),
            AuthRequest::RoleDelete(request) => r.auth_role_delete = Some(request),
            AuthRequest::RoleGrantPermission(request) => {
                r.auth_role_grant_permission = Some(request);
            }
            AuthRequest::RoleRevokePermission(request) => {
                r.auth_role_revoke_permission = Some(request);
            }
        }
        auth_reply(self.propose_for(caller, r).await?)
    }

    /// Only the hash of a password goes into the log.
    async fn hash_new(&self, mut r: AuthUserAddRequest) -> Result<AuthUserAddRequest, Error> {
        if !r.options.is_some_and(|options| options.no_password) {
            let password = std::mem::take(&mut r.password);
            r.hashed_password = self.shared().access.hashed(password).await?;
        }
        Ok(r)
    }

    async fn hash_changed(
        &self,
        mut r: AuthUserChangePasswordRequest,
    ) -> Result<AuthUserChangePasswordRequest, Error> {
        if !r.password.is_empty() {
            let password = std::mem::take(&mut r.password);
            r.hashed_password = self.shared().access.hashed(password).await?;
        }
        Ok(r)
    }

    /// Checks a password and has all members know a new token, unless tokens speak for themselves.
    async fn authenticate(&self, r: AuthenticateRequest) -> Result<AuthReply, Error> {
        self.wait_linearizable().await?;
        loop {
            let checked = self.check_password(&r).await?;
            let request = InternalRaftRequest {
                authenticate: Some(InternalAuthenticateRequest {
                    name: r.name.clone(),
                    simple_token: match self.shared().access.signer() {
                        Some(_) => String::new(),
                        None => token_letters(),
                    },
                    ..InternalAuthenticateRequest::default()
                }),
                ..InternalRaftRequest::default()
            };
            let reply = auth_reply(self.propose(request).await?)?;
            if checked == auth_of(self.shared()).revision() {
                return self.signed(&r.name, reply);
            }
            // The password may have been changed between the check and the entry.
            info!("users or roles were changed meanwhile; checking the password again");
        }
    }

    /// The reply with a signed token, if that is how tokens are made.
    fn signed(&self, user: &str, mut reply: AuthReply) -> Result<AuthReply, Error> {
        if let (Some(signer), AuthReply::Authenticated(response, revision)) =
            (self.shared().access.signer(), &mut reply)
        {
            let now = UNIX_EPOCH.elapsed().unwrap_or_default();
            let token = signer.sign(user, *revision, now);
            response.token = token.ok_or(Error::VerifyOnly)?;
        }
        Ok(reply)
    }

    /// The auth store's revision at which the password was right.
    async fn check_password(&self, r: &AuthenticateRequest) -> Result<u64, Error> {
        let found = auth_of(self.shared()).password_of(&r.name);
        let checked = match found {
            Ok((hash, revision)) => {
                let password = r.password.clone();
                let verify = move || is_password(&hash, &password);
                let right = self.shared().access.hash(verify).await?;
                right.then_some(revision).ok_or(Error::AuthFailed)
            }
            Err(error) => Err(error),
        };
        if let Err(Error::AuthFailed | Error::NoPasswordUser) = checked {
            warn!(user = r.name, "invalid authentication was requested");
        }
        checked
    }
}

/// Whether a password is the one that was hashed. A damaged or empty hash is of none.
fn is_password(hash: &Bytes, password: &str) -> bool {
    let hash = std::str::from_utf8(hash).unwrap_or_default();
    bcrypt::verify(password, hash).unwrap_or(false)
}

fn token_letters() -> String {
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let mut random = rand::rng();
    let letter = |_| char::from(LETTERS[random.random_range(..LETTERS.len())]);
    (0..TOKEN_LETTERS).map(letter).collect()
}

fn auth_reply(reply: Reply) -> Result<AuthReply, Error> {
    match reply {
        Reply::Auth(reply) => Ok(reply),
        // Request IDs are unique, so this reply is another's: nothing true can be said.
        _ => Err(Error::Stopped),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn passwords_hashed_by_go_are_recognised() {
        let check = |hash: &'static str, password: &str, right: bool| {
            assert_eq!(is_password(&hash.into(), password), right, "{hash}");
        };
        // Of golang.org/x/crypto/bcrypt, as etcd uses it.
        let secret = "$2a$04$.Pcf/Xfr0FnVCotX7IdJxuo3ImZhhu5WY0g8wxtd/YH3SsgJ2J71.";
        check(secret, "secret", true);
        check(secret, "secret2", false);
        check(secret, "", false);
        let empty = "$2a$04$KOPr2EzIHQd9EoLs3RCPK.Y8YbWOCwBXetmKNVZy9avVXTzpGbm0y";
        check(empty, "", true);
        check(empty, " ", false);
        let letters = "$2a$04$CR7omnEPe7acKqD6vZnlOu2rDxzj7XfBPj3tcn12p7Qk.Yz3MQf7q";
        check(letters, "p\u{e4}ss\u{e9}\u{2603}", true);
        let longest = "$2a$04$s/9vLqM0Yr3vA4uS0Q/lNOIG2JuK5boMotZkLLAjvjkDNpjNFjJZ2";
        check(longest, &"x".repeat(72), true);
        check(longest, &"x".repeat(71), false);
        check("", "", false);
        check("ann", "ann", false);
    }

    #[tokio::test]
    async fn passwords_are_hashed_as_go_reads_them() {
        let access = Access::new(4, Arc::default());
        let hashed = access.hashed("secret".to_owned()).await.unwrap();
        let hash = Bytes::from(STANDARD.decode(hashed).unwrap());
        assert!(hash.starts_with(b"$2a$04$"));
        assert!(is_password(&hash, "secret") && !is_password(&hash, "secre"));
        let long = access.hashed("x".repeat(73)).await;
        assert_eq!(long, Err(Error::PasswordTooLong));
        assert_eq!(Access::new(3, Arc::default()).bcrypt_cost, 10);
    }

    #[test]
    fn tokens_are_letters_unlike_each_other() {
        let (a, b) = (token_letters(), token_letters());
        assert!(a.len() == TOKEN_LETTERS && a.bytes().all(|c| c.is_ascii_alphabetic()));
        assert_ne!(a, b);
    }
}
