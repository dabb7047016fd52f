//! The job of taking a cluster down to the release before, by etcd's rules: it is looked at, begun and
//! called off for clients; the leader calls it off when all members are of the release to go to. What
//! follows for the cluster's version is `state::version::decide`'s.

use std::{sync::Arc, time::Duration};

use proto::{
    etcdserverpb::{DowngradeRequest, InternalRaftRequest, downgrade_request::DowngradeAction},
    membershippb::DowngradeInfoSetRequest,
};
use state::{
    Error,
    version::{Downgrade, Version},
};
use tracing::{info, warn};

use super::{backend::NodeBackend, peers, shared::Shared};

impl NodeBackend {
    /// Does what a client asks for, and returns the cluster's version.
    pub(super) async fn change_downgrade(&self, r: &DowngradeRequest) -> Result<Version, Error> {
        match r.action() {
            DowngradeAction::Validate => {
                self.downgrade_target(&r.version).await?;
            }
            DowngradeAction::Enable => {
                let target = self
                    .downgrade_target(&r.version)
                    .await
                    .inspect_err(|error| {
                        warn!(%error, "reject downgrade request");
                    })?;
                self.set_downgrade(Some(target)).await?;
            }
            DowngradeAction::Cancel => {
                // As in etcd nobody is told that there was none.
                if let Err(error) = self.cancel_downgrade().await {
                    warn!(%error, "failed to cancel downgrade");
                }
            }
        }
        self.cluster_version()
    }

    fn cluster_version(&self) -> Result<Version, Error> {
        let version = self.shared().published.load().cluster_version;
        version.ok_or(Error::ClusterVersionUnavailable)
    }

    fn downgrade_job(&self) -> Arc<Downgrade> {
        Arc::clone(&self.shared().published.load().downgrade)
    }

    /// Where the cluster may go, if it is where the client wants it to.
    async fn downgrade_target(&self, text: &str) -> Result<Version, Error> {
        let target = Version::of_release(text).ok_or(Error::WrongDowngradeVersionFormat)?;
        self.cluster_version()?;
        self.wait_linearizable().await?;
        if self.cluster_version()?.before() != Some(target) {
            return Err(Error::InvalidDowngradeTargetVersion);
        }
        match self.downgrade_job().enabled {
            true => Err(Error::DowngradeInProcess),
            false => Ok(target),
        }
    }

    async fn cancel_downgrade(&self) -> Result<(), Error> {
        self.wait_linearizable().await?;
        if !self.downgrade_job().enabled {
            return Err(Error::NoInflightDowngrade);
        }
        self.set_downgrade(None).await
    }

    async fn set_downgrade(&self, target: Option<Version>) -> Result<(), Error> {
        let request = InternalRaftRequest {
            downgrade_info_set: Some(DowngradeInfoSetRequest {
                enabled: target.is_some(),
                ver: target.map(|target| target.to_string()).unwrap_or_default(),
            }),
            ..InternalRaftRequest::default()
        };
        self.propose(request).await.map(|_| ())
    }
}

/// Calls the job off when it is done, looking every `period`.
pub(crate) async fn run(shared: Arc<Shared>, period: Duration) {
    loop {
        tokio::time::sleep(period).await;
        let backend = NodeBackend::new(Arc::clone(&shared));
        let job = backend.downgrade_job();
        if !shared.is_leader() || !job.enabled || !job.is_done(peers::versions(&shared).await) {
            continue;
        }
        info!(
            "cluster-version" = job.target_version,
            "the cluster has been downgraded"
        );
        if let Err(error) = backend.cancel_downgrade().await {
            warn!(%error, "failed to cancel downgrade");
        }
    }
}
