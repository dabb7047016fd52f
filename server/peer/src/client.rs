//! Calls to other members: short ones with an answer, and the bodies of streams.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::{client::legacy::Client as Legacy, rt::TokioExecutor};
use prost::Message;
use proto::{
    etcdserverpb::{
        LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseTimeToLiveRequest,
        LeaseTimeToLiveResponse,
    },
    leasepb::{LeaseInternalRequest, LeaseInternalResponse},
};
use state::{Error, Member, Version};
use tls::Tls;

use crate::connect::Connector;

/// How long a short call may take.
const CALL: Duration = Duration::from_secs(5);
/// The longest answer that is read.
const MAX_ANSWER_BYTES: usize = 8 << 20;

/// The header with the cluster's ID.
pub(crate) const CLUSTER_ID: &str = "x-etcd-cluster-id";

/// What is sent with a request: a few bytes, or a snapshot as it is made.
pub(crate) type RequestBody = UnsyncBoxBody<Bytes, std::io::Error>;

/// A body that is there already.
pub(crate) fn whole(body: impl Into<Bytes>) -> RequestBody {
    Full::new(body.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A member's answer to a probe.
#[derive(Clone, Debug)]
pub struct Probe {
    /// From the question to the answer.
    pub took: Duration,
    /// Its wall clock, as RFC 3339 writes it.
    pub now: String,
}

/// Makes calls to other members.
#[derive(Clone)]
pub struct Client {
    http: Legacy<Connector, RequestBody>,
}

impl Client {
    /// A client whose calls to `https` URLs are secured by `tls`.
    pub fn new(tls: Arc<Tls>) -> Self {
        // etcd closes idle peer connections after five seconds; a shorter time here never meets
        // a closing one.
        let http = Legacy::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(3))
            .build(Connector::new(tls));
        Self { http }
    }

    pub(crate) async fn send(
        &self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, String> {
        let sent = tokio::time::timeout(CALL, self.send_patiently(request)).await;
        sent.map_err(|_| "no answer in time".to_owned())?
    }

    /// The same for as long as it takes: the caller bounds it.
    pub(crate) async fn send_patiently(
        &self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, String> {
        self.http.request(request).await.map_err(|error| {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            text
        })
    }

    async fn call(
        &self,
        method: Method,
        url: String,
        body: Vec<u8>,
    ) -> Result<(StatusCode, http::HeaderMap, Bytes), String> {
        self.call_as(method, url, body, None).await
    }

    /// The same for a client, who has shown this member a token.
    async fn call_as(
        &self,
        method: Method,
        url: String,
        body: Vec<u8>,
        token: Option<&str>,
    ) -> Result<(StatusCode, http::HeaderMap, Bytes), String> {
        let mut request = Request::builder()
            .method(method)
            .uri(&url)
            .header(http::header::CONTENT_TYPE, "application/protobuf");
        if let Some(token) = token {
            request = request.header(http::header::AUTHORIZATION, token);
        }
        let request = request.body(whole(body));
        let request = request.map_err(|error| format!("{url}: {error}"))?;
        let (head, body) = self.send(request).await?.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect();
        let body = tokio::time::timeout(CALL, body).await;
        let body = body.map_err(|_| format!("{url}: no answer in time"))?;
        let body = body.map_err(|error| format!("{url}: {error}"))?;
        Ok((head.status, head.headers, body.to_bytes()))
    }

    /// The cluster's ID and its members, as the first of `urls` that answers knows them.
    ///
    /// # Errors
    /// Why none answered.
    pub async fn members(&self, urls: &[String]) -> Result<(u64, Vec<Member>), String> {
        let mut failed = "no peer URL to ask".to_owned();
        for url in urls {
            match self.members_of(url).await {
                Ok(found) => return Ok(found),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn members_of(&self, url: &str) -> Result<(u64, Vec<Member>), String> {
        let (status, headers, body) = self
            .call(Method::GET, format!("{url}/members"), Vec::new())
            .await?;
        if status != StatusCode::OK {
            return Err(format!("{url}/members: {status}"));
        }
        let id = headers.get(CLUSTER_ID).and_then(|id| id.to_str().ok());
        let id = id.and_then(|id| u64::from_str_radix(id, 16).ok());
        let id = id.ok_or_else(|| format!("{url}/members: no cluster ID in the answer"))?;
        let members =
            serde_json::from_slice(&body).map_err(|error| format!("{url}/members: {error}"))?;
        Ok((id, members))
    }

    /// The server version of the member behind `urls`.
    pub async fn version(&self, urls: &[String]) -> Option<Version> {
        for url in urls {
            let answer = self.call(Method::GET, format!("{url}/version"), Vec::new());
            if let Ok((StatusCode::OK, _, body)) = answer.await
                && let Ok(json) = serde_json::from_slice::<serde_json::Value>(&body)
                && let Some(version) = json["etcdserver"].as_str()
                && let Ok(version) = version.parse()
            {
                return Some(version);
            }
        }
        None
    }

    /// Asks the member behind `urls` for nothing but an answer.
    pub async fn probe(&self, urls: &[String]) -> Option<Probe> {
        for url in urls {
            let began = Instant::now();
            let answer = self.call(Method::GET, format!("{url}/raft/probing"), Vec::new());
            if let Ok((StatusCode::OK, _, body)) = answer.await
                && let Ok(json) = serde_json::from_slice::<serde_json::Value>(&body)
                && let Some(now) = json["Now"].as_str()
            {
                return Some(Probe {
                    took: began.elapsed(),
                    now: now.to_owned(),
                });
            }
        }
        None
    }

    /// Asks the leader to promote a learner, for a client with this token; returns all members.
    ///
    /// # Errors
    /// The leader's refusal.
    pub async fn promote(
        &self,
        urls: &[String],
        id: u64,
        token: Option<&str>,
    ) -> Result<Vec<Member>, Error> {
        for url in urls {
            let url = format!("{url}/members/promote/{id}");
            let call = self.call_as(Method::POST, url, Vec::new(), token);
            let Ok((status, _, body)) = call.await else {
                continue;
            };
            if status == StatusCode::OK {
                return serde_json::from_slice(&body).map_err(|_| Error::Unhealthy);
            }
            // A refusal is told by its text, as etcd's own members do.
            let text = String::from_utf8_lossy(&body).trim().to_owned();
            // One text begins as another ends, so the longest one is meant.
            let known = Error::ALL
                .iter()
                .filter(|error| text.contains(error.text()));
            let known = known.max_by_key(|error| error.text().len());
            return Err(known.copied().unwrap_or(Error::Unhealthy));
        }
        Err(Error::NoLeader)
    }

    /// Asks the leader to renew a lease; returns its time to live in seconds.
    ///
    /// # Errors
    /// [`Error::LeaseNotFound`], or that the leader cannot be asked.
    pub async fn renew_lease(&self, urls: &[String], id: i64) -> Result<i64, Error> {
        let request = LeaseKeepAliveRequest { id }.encode_to_vec();
        for url in urls {
            let call = self.call(Method::POST, format!("{url}/leases"), request.clone());
            match call.await {
                Ok((StatusCode::OK, _, body)) => {
                    let response = LeaseKeepAliveResponse::decode(body);
                    return response.map(|r| r.ttl).map_err(|_| Error::Unhealthy);
                }
                Ok((StatusCode::NOT_FOUND, ..)) => return Err(Error::LeaseNotFound),
                _ => {}
            }
        }
        Err(Error::NoLeader)
    }

    /// Asks the leader what is left of a lease.
    ///
    /// # Errors
    /// [`Error::LeaseNotFound`], or that the leader cannot be asked.
    pub async fn lease_time_to_live(
        &self,
        urls: &[String],
        request: LeaseTimeToLiveRequest,
    ) -> Result<LeaseTimeToLiveResponse, Error> {
        let request = LeaseInternalRequest {
            lease_time_to_live_request: Some(request),
        };
        let request = request.encode_to_vec();
        for url in urls {
            let url = format!("{url}/leases/internal");
            match self.call(Method::POST, url, request.clone()).await {
                Ok((StatusCode::OK, _, body)) => {
                    let response = LeaseInternalResponse::decode(body).ok();
                    let response = response.and_then(|r| r.lease_time_to_live_response);
                    return response.ok_or(Error::Unhealthy);
                }
                Ok((StatusCode::NOT_FOUND, ..)) => return Err(Error::LeaseNotFound),
                _ => {}
            }
        }
        Err(Error::NoLeader)
    }
}
