//! etcd's JSON gateway: REST paths over the gRPC services of the same process.
//!
//! Owns: the paths, etcd's JSON form of messages, the words of Go's JSON libraries for what is no
//! such JSON, HTTP codes of gRPC's, streams as lines of JSON, and websockets.
//!
//! Must never know: what a message means, who may call, or where the services get their answers.
//! It calls them as any client does, through the whole of their stack, so all checks and counts hold.
//!
//! Start reading in `paths.rs`, then [`Gateway::call`].

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod answer;
mod decode;
mod encode;
mod error;
mod messages;
mod metadata;
mod paths;
mod requests;
mod scan;
mod values;
mod websocket;

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::Response,
};
use http::{Method as HttpMethod, StatusCode};
use http_body_util::{BodyExt, Full};
use prost_reflect::{DescriptorPool, MessageDescriptor};
use tokio::{sync::oneshot, time::timeout};
use tonic::Status;
use tower::ServiceExt;

use answer::Streamed;
use messages::{Messages, framed};
use metadata::Metadata;
use requests::Requests;
use values::Values;

pub use error::Error;

/// How long the whole body of a request that is no stream may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// What JSON may be longer than the message that it says: names, and base64.
const JSON_FACTOR: usize = 2;

/// The gateway. Clones are one.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    services: Router,
    methods: HashMap<&'static str, Method>,
    max_json_bytes: usize,
    body_timeout: Duration,
}

/// What stands behind a path.
struct Method {
    /// The gRPC path.
    path: String,
    kind: Kind,
    input: MessageDescriptor,
    output: MessageDescriptor,
}

/// Who of the two may send more than one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Unary,
    ServerStream,
    Bidi,
}

impl Gateway {
    /// A gateway to services, whose largest request has `max_message_bytes`.
    ///
    /// # Errors
    /// When the .proto files lack a method that a path names, which is a mistake of ours.
    pub fn new(services: Router, max_message_bytes: usize) -> Result<Self, Error> {
        let pool = DescriptorPool::decode(proto::DESCRIPTORS).map_err(Error::Descriptors)?;
        Ok(Self(Arc::new(Inner {
            services,
            methods: paths::methods(&pool)?,
            max_json_bytes: max_message_bytes.saturating_mul(JSON_FACTOR),
            body_timeout: BODY_TIMEOUT,
        })))
    }

    /// Serves what begins with `/v3/`, or with `/v3beta/`, as it was once.
    pub fn router(self) -> Router {
        let serve = || axum::routing::any(serve);
        Router::new()
            .route("/v3/", serve())
            .route("/v3/{*rest}", serve())
            .route("/v3beta/", serve())
            .route("/v3beta/{*rest}", serve())
            .with_state(self)
    }

    /// Answers one request. `drain` says that the body ends with the request, so that what is behind
    /// its first value can be read and dropped, as etcd does.
    pub(crate) async fn call(&self, request: Request, drain: bool) -> Response {
        let path = request.uri().path();
        let method = match path.strip_prefix("/v3beta/") {
            Some(rest) => self.0.methods.get(format!("/v3/{rest}").as_str()),
            None => self.0.methods.get(path),
        };
        let Some(method) = method else {
            return answer::failed(&Status::not_found("Not Found"));
        };
        if request.method() != HttpMethod::POST {
            return answer::failed(&Status::unimplemented("Method Not Allowed"));
        }
        let (parts, body) = request.into_parts();
        let metadata = match Metadata::of(&parts.headers) {
            Ok(metadata) => metadata,
            Err(status) => return answer::failed(&status),
        };
        match method.kind {
            Kind::Unary | Kind::ServerStream => {
                let message = match self.one_message(method, body, drain).await {
                    Ok(message) => message,
                    Err(refused) => return refused,
                };
                let request = metadata.request(&method.path, Full::new(framed(&message)));
                match method.kind {
                    Kind::Unary => self.unary(method, request, metadata.deadline).await,
                    _ => self.stream(method, request, metadata.deadline, None).await,
                }
            }
            Kind::Bidi => {
                let (refuse, refused) = oneshot::channel();
                let values = Values::new(self.0.max_json_bytes);
                let requests = Requests::new(body, values, method.input.clone(), refuse);
                let request = metadata.request(&method.path, requests);
                self.stream(method, request, metadata.deadline, Some(refused))
                    .await
            }
        }
    }

    /// The first value of a body as a message; none at all is an empty message.
    async fn one_message(
        &self,
        method: &Method,
        mut body: Body,
        drain: bool,
    ) -> Result<Vec<u8>, Response> {
        let mut values = Values::new(self.0.max_json_bytes);
        let read = async {
            let value = loop {
                if let Some(value) = values.next()? {
                    break Some(value);
                }
                match body.frame().await {
                    Some(Ok(frame)) => {
                        if let Ok(data) = frame.into_data() {
                            values.push(data);
                        }
                    }
                    Some(Err(_)) => return Err(Error::Syntax("unexpected EOF".to_owned())),
                    None => break values.end()?,
                }
            };
            let mut left = self.0.max_json_bytes;
            while let Some(Ok(frame)) = if drain { body.frame().await } else { None } {
                let more = frame.data_ref().map_or(0, |data| data.len());
                left = match left.checked_sub(more) {
                    Some(left) => left,
                    None => break,
                };
            }
            match value {
                Some(value) => decode::decode(&value, &method.input),
                None => Ok(Vec::new()),
            }
        };
        match timeout(self.0.body_timeout, read).await {
            Ok(read) => read.map_err(|error| answer::failed(&error.status())),
            Err(_) => {
                let status = Status::deadline_exceeded(format!(
                    "the request's body did not come within {} s; send it at once",
                    BODY_TIMEOUT.as_secs()
                ));
                let mut response = answer::failed(&status);
                *response.status_mut() = StatusCode::REQUEST_TIMEOUT;
                Err(response)
            }
        }
    }

    async fn unary(
        &self,
        method: &Method,
        request: http::Request<Body>,
        deadline: Option<Duration>,
    ) -> Response {
        let call = async {
            let mut messages = self.begin(request).await?;
            let message = messages.next().await.unwrap_or_else(|| Err(no_answer()))?;
            // What comes behind says whether it counts.
            match messages.next().await {
                None => Ok(message),
                Some(Err(status)) => Err(status),
                Some(Ok(_)) => Err(Status::internal("more than one answer")),
            }
        };
        match within(deadline, call).await {
            Ok(message) => answer::message(&method.output, message),
            Err(status) => answer::failed(&status),
        }
    }

    /// Answers once the first message is there: until then a failure is one of the whole request.
    async fn stream(
        &self,
        method: &Method,
        request: http::Request<Body>,
        deadline: Option<Duration>,
        refused: Option<oneshot::Receiver<Error>>,
    ) -> Response {
        match within(deadline, self.begin(request)).await {
            Ok(messages) => {
                let stream = Streamed::new(messages, method.output.clone(), refused, deadline);
                stream.into_response().await
            }
            Err(status) => answer::failed(&status),
        }
    }

    /// Sends a request to the services and returns what answers it.
    async fn begin(&self, request: http::Request<Body>) -> Result<Messages, Status> {
        let services = self.0.services.clone();
        let response = services.oneshot(request).await;
        let response = response.unwrap_or_else(|never| match never {});
        Messages::of(response)
    }
}

async fn serve(State(gateway): State<Gateway>, request: Request) -> Response {
    match websocket::asked_for(&request) {
        true => websocket::serve(gateway, request).await,
        false => gateway.call(request, true).await,
    }
}

async fn within<T>(
    deadline: Option<Duration>,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    match deadline {
        None => call.await,
        Some(deadline) => match timeout(deadline, call).await {
            Ok(answer) => answer,
            Err(_) => Err(late()),
        },
    }
}

/// A call that took longer than it may.
fn late() -> Status {
    Status::deadline_exceeded("context deadline exceeded")
}

fn no_answer() -> Status {
    Status::internal("the call ended without an answer")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    async fn text(response: Response) -> (u16, String) {
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_slow_body_is_given_up() {
        let mut gateway = Gateway::new(Router::new(), 1000).unwrap();
        let inner = Arc::get_mut(&mut gateway.0).unwrap();
        inner.body_timeout = Duration::from_millis(20);
        let begun = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"{"))]);
        let never = futures::StreamExt::chain(begun, futures::stream::pending());
        let request = Request::post("/v3/kv/range").body(Body::from_stream(never));
        let (status, said) = text(gateway.call(request.unwrap(), true).await).await;
        assert_eq!(status, 408, "{said}");
        assert!(said.contains("did not come within 60 s"), "{said}");
    }

    #[tokio::test]
    async fn an_answer_may_come_in_any_pieces_and_still_fail() {
        let answer = async || {
            let message = framed(b"\x10\x01");
            let pieces = message.chunks(2).map(Bytes::copy_from_slice);
            let pieces: Vec<_> = pieces
                .map(|piece| Ok(http_body::Frame::data(piece)))
                .collect();
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", 14.into());
            trailers.insert("grpc-message", "no%20leader".parse().unwrap());
            let last = [Ok::<_, std::io::Error>(http_body::Frame::trailers(
                trailers,
            ))];
            let frames = futures::stream::iter(pieces.into_iter().chain(last));
            Response::new(Body::new(http_body_util::StreamBody::new(frames)))
        };
        let services = Router::new()
            .route("/etcdserverpb.KV/Txn", axum::routing::post(answer))
            .route("/etcdserverpb.Watch/Watch", axum::routing::post(answer));
        let gateway = Gateway::new(services, 1000).unwrap();
        let request = Request::post("/v3/kv/txn").body(Body::empty()).unwrap();
        let (status, said) = text(gateway.call(request, true).await).await;
        assert_eq!(
            (status, said.as_str()),
            (503, r#"{"code":14,"message":"no leader"}"#)
        );
        let request = Request::post("/v3/watch").body(Body::empty()).unwrap();
        let (status, said) = text(gateway.call(request, true).await).await;
        let lines = "{\"result\":{\"watch_id\":\"1\"}}\n\
                     {\"error\":{\"code\":14,\"message\":\"no leader\"}}\n";
        assert_eq!((status, said.as_str()), (200, lines));
    }
}
