//! Whether the API server serves the kind as this operator knows it.
//!
//! Under an older CustomResourceDefinition fields that the operator relies on would be dropped
//! without a word. So it does not begin under one, and ends when one is put in place.

use std::time::Duration;

use crds::manifests;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client, ResourceExt};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::Error;

/// The CustomResourceDefinition's name.
pub const CRD: &str = "etcdclusters.cairn.dev";
/// How long it is waited for: a chart may install it after the operator.
const WAIT: Duration = Duration::from_secs(120);
/// Between two looks while it is waited for.
const AGAIN: Duration = Duration::from_secs(1);
/// Between two looks while it is served.
const LOOK: Duration = Duration::from_secs(30);

/// Waits until the kind is served.
///
/// # Errors
/// [`Error::OldKind`] when it is an older one, [`Error::NoKind`] when it does not come, or the API
/// server refuses.
pub async fn wait(client: &Client) -> Result<(), Error> {
    let until = Instant::now() + WAIT;
    let mut told = false;
    while !served(client).await? {
        if Instant::now() > until {
            return Err(Error::NoKind);
        }
        if !told {
            info!(crd = CRD, "waiting until the kind is served");
            told = true;
        }
        sleep(AGAIN).await;
    }
    Ok(())
}

/// Looks once, when the lease has become ours: it may have been waited for for long.
///
/// # Errors
/// As [`wait`].
pub async fn check(client: &Client) -> Result<(), Error> {
    match served(client).await? {
        true => Ok(()),
        false => Err(Error::NoKind),
    }
}

/// Returns when an older kind was put in place of the one that we began with. That there is none
/// for a while, or no answer, ends nothing.
pub async fn outdated(client: &Client) -> Error {
    loop {
        sleep(LOOK).await;
        match served(client).await {
            Err(old @ Error::OldKind { .. }) => return old,
            Err(error) => warn!(%error, "could not look at the kind; trying again"),
            Ok(_) => {}
        }
    }
}

async fn served(client: &Client) -> Result<bool, Error> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let found = api.get_opt(CRD).await.map_err(|source| Error::Api {
        action: format!("read the CustomResourceDefinition {CRD}"),
        source: Box::new(source),
    })?;
    let Some(crd) = found else {
        return Ok(false);
    };
    let schema = crd.annotations().get(manifests::SCHEMA_ANNOTATION);
    let found = schema.and_then(|schema| schema.parse().ok()).unwrap_or(0);
    if found < manifests::SCHEMA {
        return Err(Error::OldKind { found });
    }
    let status = crd.status.unwrap_or_default();
    let mut conditions = status.conditions.iter().flatten();
    Ok(conditions.any(|told| told.type_ == "Established" && told.status == "True"))
}
