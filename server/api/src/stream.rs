//! What ends a stream from the server's side.

use std::time::Duration;

use state::Error;
use tonic::{Status, metadata::MetadataMap};

use crate::{Backend, gate, status};

/// How often a stream that requires a leader looks for one.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Ends a stream that requires a leader when there has been none for too long.
pub(crate) struct Leaderless<B> {
    /// `None` when the client does not ask for it.
    backend: Option<B>,
}

impl<B: Backend> Leaderless<B> {
    pub fn of(backend: &B, metadata: &MetadataMap) -> Self {
        Self {
            backend: gate::requires_leader(metadata).then(|| backend.clone()),
        }
    }

    /// Returns when the stream must end, with what the client is told.
    pub async fn wait(self) -> Status {
        let Some(backend) = self.backend else {
            return std::future::pending().await;
        };
        let grace = backend.limits().leaderless_grace;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let leaderless = backend.standing().leaderless_for;
            if leaderless.is_some_and(|time| time > grace) {
                return status::of(Error::NoLeader);
            }
        }
    }
}
