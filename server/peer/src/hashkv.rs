//! Hashes of other members' keys, `/members/hashkv`: a GET whose body says at which revision.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde::{Deserialize, Serialize};
use state::{Error, ids};

use crate::client::{CLUSTER_ID, Client, whole};

/// The path that etcd has for it.
pub(crate) const PATH: &str = "/members/hashkv";
/// What the answer to a member of another cluster says.
pub(crate) const CLUSTER_MISMATCH: &str = "cluster ID mismatch";
/// The longest answer that is read: a few numbers, or the text of an error.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// The hash of a member's keys, with what it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberHash {
    /// The member's revision when it answered.
    pub current: i64,
    /// The hash.
    pub hash: u32,
    /// The compacted revision that it counts from; -1 before the first compaction.
    pub compact_revision: i64,
    /// The revision up to which it counts.
    pub revision: i64,
}

/// Why there is no hash of a member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// The member has compacted the revision.
    #[error("{}", Error::Compacted)]
    Compacted,
    /// The member has not come so far.
    #[error("{}", Error::FutureRev)]
    FutureRevision,
    /// Who answers belongs to another cluster.
    #[error("{}", Error::ClusterIdMismatch)]
    ClusterMismatch,
    /// It did not answer, or not so that it can be understood.
    #[error("{0}")]
    NoAnswer(String),
}

/// The form on the wire: what Go's encoding makes of etcd's own messages, which leaves zeros out.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RequestJson {
    #[serde(skip_serializing_if = "is_zero")]
    pub revision: i64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct HeaderJson {
    #[serde(skip_serializing_if = "is_zero")]
    revision: i64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct ResponseJson {
    header: HeaderJson,
    #[serde(skip_serializing_if = "is_zero")]
    hash: u32,
    #[serde(skip_serializing_if = "is_zero")]
    compact_revision: i64,
    #[serde(skip_serializing_if = "is_zero")]
    hash_revision: i64,
}

fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

impl MemberHash {
    pub(crate) fn to_json(self) -> String {
        let json = ResponseJson {
            header: HeaderJson {
                revision: self.current,
            },
            hash: self.hash,
            compact_revision: self.compact_revision,
            hash_revision: self.revision,
        };
        // A struct of numbers always has a JSON form.
        serde_json::to_string(&json).unwrap_or_default()
    }

    fn of_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        let json: ResponseJson = serde_json::from_slice(json)?;
        Ok(Self {
            current: json.header.revision,
            hash: json.hash,
            compact_revision: json.compact_revision,
            revision: json.hash_revision,
        })
    }
}

/// The texts of the store as etcd's members look for them: without the server's prefix.
pub(crate) fn text(error: Error) -> &'static str {
    let text = error.text();
    text.strip_prefix("etcdserver: ").unwrap_or(text)
}

/// Whether a request names another cluster. One that names none is answered, as in etcd.
pub(crate) fn is_foreign(headers: &HeaderMap, own: &str) -> bool {
    let named = headers
        .get(CLUSTER_ID)
        .map(|id| id.to_str().unwrap_or_default());
    named.is_some_and(|named| !named.is_empty() && named != own)
}

impl Client {
    /// The hash of the keys at `revision` (0: the current one) of the member behind `urls`, as the
    /// first of them that answers has it. Each may take as long as `limit`: all rows are read.
    ///
    /// # Errors
    /// The refusal, or why nobody answered.
    pub async fn hash_kv(
        &self,
        cluster_id: u64,
        urls: &[String],
        revision: i64,
        limit: Duration,
    ) -> Result<MemberHash, HashError> {
        let mut failed = HashError::NoAnswer("no peer URL to ask".to_owned());
        for url in urls {
            let asked = self.hash_kv_at(cluster_id, url, revision);
            let answer = tokio::time::timeout(limit, asked).await;
            let late = || Err(HashError::NoAnswer(format!("{url}: no answer in time")));
            match answer.unwrap_or_else(|_| late()) {
                Ok(hash) => return Ok(hash),
                Err(error) => {
                    tracing::warn!(
                        "requested-revision" = revision,
                        "remote-peer-endpoint" = url,
                        %error,
                        "failed hash kv request"
                    );
                    failed = error;
                }
            }
        }
        Err(failed)
    }

    async fn hash_kv_at(
        &self,
        cluster_id: u64,
        url: &str,
        revision: i64,
    ) -> Result<MemberHash, HashError> {
        let problem = |problem: String| HashError::NoAnswer(format!("{url}{PATH}: {problem}"));
        let body = serde_json::to_vec(&RequestJson { revision });
        let request = Request::builder()
            .method(Method::GET)
            .uri(format!("{url}{PATH}"))
            .header(header::CONTENT_TYPE, "application/json")
            .header(CLUSTER_ID, ids::to_text(cluster_id))
            .body(whole(body.unwrap_or_default()))
            .map_err(|error| problem(error.to_string()))?;
        let answer = self.send_patiently(request).await.map_err(problem)?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| problem(error.to_string()))?.to_bytes();
        understand(head.status, &body).map_err(|error| match error {
            HashError::NoAnswer(why) => problem(why),
            other => other,
        })
    }
}

fn understand(status: StatusCode, body: &Bytes) -> Result<MemberHash, HashError> {
    let said = String::from_utf8_lossy(body);
    match status {
        StatusCode::OK => MemberHash::of_json(body)
            .map_err(|error| HashError::NoAnswer(format!("not understood: {error}"))),
        StatusCode::BAD_REQUEST if said.contains(text(Error::Compacted)) => {
            Err(HashError::Compacted)
        }
        StatusCode::BAD_REQUEST if said.contains(text(Error::FutureRev)) => {
            Err(HashError::FutureRevision)
        }
        StatusCode::PRECONDITION_FAILED if said.contains(CLUSTER_MISMATCH) => {
            Err(HashError::ClusterMismatch)
        }
        status => Err(HashError::NoAnswer(format!("{status}: {}", said.trim()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_what_go_writes() {
        let hash = MemberHash {
            current: 9,
            hash: 4_000_000_000,
            compact_revision: -1,
            revision: 7,
        };
        let json = r#"{"header":{"revision":9},"hash":4000000000,"compact_revision":-1,"hash_revision":7}"#;
        assert_eq!(hash.to_json(), json);
        assert_eq!(MemberHash::of_json(json.as_bytes()).unwrap(), hash);
        // Zeros are left out, and more than is known may come.
        let sparse = br#"{"header":{"revision":1,"member_id":3},"hash":5}"#;
        let read = MemberHash::of_json(sparse).unwrap();
        assert_eq!((read.current, read.hash, read.revision), (1, 5, 0));
        assert!(MemberHash::of_json(b"404 page not found").is_err());
    }

    #[test]
    fn refusals_are_told_apart() {
        let check = |status: StatusCode, body: &'static str| {
            understand(status, &Bytes::from_static(body.as_bytes())).unwrap_err()
        };
        let bad = StatusCode::BAD_REQUEST;
        let compacted = check(bad, "mvcc: required revision has been compacted\n");
        assert_eq!(compacted, HashError::Compacted);
        let future = check(bad, "mvcc: required revision is a future revision\n");
        assert_eq!(future, HashError::FutureRevision);
        let mismatch = check(StatusCode::PRECONDITION_FAILED, "cluster ID mismatch\n");
        assert_eq!(mismatch, HashError::ClusterMismatch);
        for (status, body) in [
            (bad, "error unmarshalling request\n"),
            (StatusCode::NOT_FOUND, "404 page not found\n"),
            (StatusCode::OK, "no json"),
        ] {
            assert!(matches!(check(status, body), HashError::NoAnswer(_)));
        }
    }
}
