//! Only one operator works at a time, and it knows until when.
//!
//! The others take over after they have seen no renewal for the lease's length by their own clock.
//! So the holder counts from before it sent the renewal that succeeded last, stops a margin
//! earlier, and gives every call that changes something no longer than that. A lost lease ends the
//! process: what is still on its way was sent inside the lease.
//!
//! Our own and not a library's, since calls must know how much of the lease is left.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, ResourceExt, api::PostParams};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::Error;

/// How long a lease lasts without a renewal.
pub const LENGTH: Duration = Duration::from_secs(15);
/// How often it is renewed, and looked at by those who wait.
const RENEW: Duration = Duration::from_secs(4);
/// How much earlier than the others the holder counts it as over.
const MARGIN: Duration = Duration::from_secs(3);
/// How long one request may take.
const CALL: Duration = Duration::from_secs(5);

/// Says how long we still may change anything.
#[derive(Clone, Debug)]
pub struct Fence(Arc<Mutex<Option<Instant>>>);

impl Fence {
    /// A fence that is shut until a lease is held.
    pub fn shut() -> Self {
        Self(Arc::new(Mutex::new(None)))
    }

    /// A fence that stays open this long.
    pub fn open_for(time: Duration) -> Self {
        let fence = Self::shut();
        fence.extend(Instant::now() + time);
        fence
    }

    fn extend(&self, until: Instant) {
        *self.0.lock() = Some(until);
    }

    fn close(&self) {
        *self.0.lock() = None;
    }

    /// How long a call may take.
    ///
    /// # Errors
    /// [`Error::LeaseLost`] when there is no time left.
    pub fn remaining(&self) -> Result<Duration, Error> {
        let until = self.0.lock().ok_or(Error::LeaseLost)?;
        let left = until.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(Error::LeaseLost),
            false => Ok(left),
        }
    }
}

/// One candidate for the lease.
pub struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
    fence: Fence,
    /// The renewal that was seen last, and when by our own clock.
    seen: Option<(String, Instant)>,
}

impl Candidate {
    /// A candidate. `identity` differs between processes.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str, fence: Fence) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity: identity.to_owned(),
            fence,
            seen: None,
        }
    }

    /// Waits until the lease is ours.
    ///
    /// # Errors
    /// The API server forbids it.
    pub async fn acquire(&mut self) -> Result<(), Error> {
        loop {
            match self.attempt().await {
                Ok(true) => {
                    info!(
                        lease = self.name,
                        identity = self.identity,
                        "the lease is ours"
                    );
                    return Ok(());
                }
                Ok(false) => {}
                Err(error) if is_hopeless(&error) => return Err(error),
                Err(error) => warn!(%error, "could not take the lease; trying again"),
            }
            sleep(RENEW).await;
        }
    }

    /// Renews the lease for as long as that succeeds. Returns when it is lost.
    pub async fn keep(&mut self) -> Error {
        loop {
            sleep(RENEW).await;
            match self.attempt().await {
                Ok(true) => {}
                Ok(false) => {
                    self.fence.close();
                    return Error::LeaseLost;
                }
                Err(error) => warn!(%error, "could not renew the lease; trying again"),
            }
            if self.fence.remaining().is_err() {
                return Error::LeaseLost;
            }
        }
    }

    /// Gives the lease back, so that the next operator need not wait.
    pub async fn release(&mut self) {
        self.fence.close();
        let given = async {
            let mut lease = self.api.get(&self.name).await?;
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() != Some(&self.identity) {
                return Ok(());
            }
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            self.api
                .replace(&self.name, &PostParams::default(), &lease)
                .await
                .map(|_| ())
        };
        match timeout(CALL, given).await {
            Ok(Ok(())) => info!("the lease is given back"),
            Ok(Err(error)) => warn!(%error, "could not give the lease back; it will run out"),
            Err(_) => warn!("could not give the lease back in time; it will run out"),
        }
    }

    /// Takes or renews it. `false` when it is another's.
    async fn attempt(&mut self) -> Result<bool, Error> {
        let sent = Instant::now();
        let result = timeout(CALL, self.write()).await;
        let held = match result {
            Ok(Ok(held)) => held,
            Ok(Err(source)) => {
                return Err(Error::Api {
                    action: format!("write the Lease {}", self.name),
                    source: Box::new(source),
                });
            }
            Err(_) => return Err(Error::Timeout("write the Lease".to_owned())),
        };
        if held {
            self.fence.extend(sent + LENGTH - MARGIN);
        }
        Ok(held)
    }

    async fn write(&mut self) -> kube::Result<bool> {
        let Some(lease) = self.api.get_opt(&self.name).await? else {
            let mut lease = Lease::default();
            lease.metadata.name = Some(self.name.clone());
            lease.spec = Some(self.held(0, None));
            let made = self.api.create(&PostParams::default(), &lease).await;
            return is_won(made);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let ours = holder == self.identity;
        if !ours && !holder.is_empty() && !self.is_over(&lease) {
            return Ok(false);
        }
        let changes = spec.lease_transitions.unwrap_or_default();
        let since = spec.acquire_time.clone().filter(|_| ours);
        let mut next = lease;
        next.spec = Some(self.held(changes + i32::from(!ours), since));
        // Over the version that was read: of two that take it, one is refused.
        is_won(
            self.api
                .replace(&self.name, &PostParams::default(), &next)
                .await,
        )
    }

    /// Whether a lease has been seen without a renewal for all its length. Only our own clock is
    /// asked, since the holder's may differ.
    fn is_over(&mut self, lease: &Lease) -> bool {
        let version = lease.resource_version().unwrap_or_default();
        let spec = lease.spec.clone().unwrap_or_default();
        let seconds = spec
            .lease_duration_seconds
            .and_then(|length| u64::try_from(length).ok());
        let length = seconds.map_or(LENGTH, Duration::from_secs);
        match &self.seen {
            Some((seen, since)) if *seen == version => since.elapsed() > length,
            _ => {
                self.seen = Some((version, Instant::now()));
                false
            }
        }
    }

    fn held(&self, changes: i32, since: Option<MicroTime>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LENGTH.as_secs()).ok(),
            acquire_time: Some(since.unwrap_or_else(|| now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(changes),
            ..LeaseSpec::default()
        }
    }
}

fn is_won(written: kube::Result<Lease>) -> kube::Result<bool> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_hopeless(error: &Error) -> bool {
    matches!(error, Error::Api { source, .. } if matches!(source.as_ref(), kube::Error::Api(status) if status.is_forbidden()))
}
