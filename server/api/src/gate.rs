//! What is asked before any handler runs: whether this member may answer now.

use state::Error;
use tonic::{Status, metadata::MetadataMap};

use crate::{Backend, status};

/// The key by which a client says which version of the API it speaks.
pub(crate) const API_VERSION: &str = "client-api-version";
/// The key by which a client asks for a member that knows a leader.
const HAS_LEADER: &str = "hasleader";

/// Whether a client wants to hear of it when there is no leader.
pub(crate) fn requires_leader(metadata: &MetadataMap) -> bool {
    metadata
        .get(HAS_LEADER)
        .is_some_and(|value| value == "true")
}

/// Lets a call pass, or says why not. `on_learners` says whether a learner may answer it.
pub(crate) fn pass<B: Backend>(
    backend: &B,
    metadata: &MetadataMap,
    on_learners: bool,
) -> Result<(), Status> {
    let standing = backend.standing();
    if standing.is_learner && !on_learners {
        return Err(status::of(Error::NotSupportedForLearner));
    }
    if metadata
        .get(API_VERSION)
        .is_some_and(|v| v.to_str().is_err())
    {
        return Err(status::of(Error::InvalidClientApiVersion));
    }
    if requires_leader(metadata) && standing.leader == 0 {
        return Err(status::of(Error::NoLeader));
    }
    Ok(())
}
