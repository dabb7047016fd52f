//! Answers in JSON: a message, lines of them, or a failure.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use http_body::{Body as HttpBody, Frame};
use prost_reflect::{DynamicMessage, MessageDescriptor};
use tokio::{
    sync::oneshot,
    time::{Sleep, sleep},
};
use tonic::{Code, Status};

use crate::{Error, encode::Encoder, late, messages::Messages};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// grpc-gateway shows the headers of the call that it made; there is only this one.
const METADATA: HeaderName = HeaderName::from_static("grpc-metadata-content-type");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
/// What nginx calls a client that is gone; grpc-gateway too.
const CLIENT_GONE: u16 = 499;

/// A message of a call that ended well.
pub(crate) fn message(descriptor: &MessageDescriptor, message: Bytes) -> Response {
    let mut encoder = Encoder::new(false);
    match DynamicMessage::decode(descriptor.clone(), message) {
        Ok(message) => encoder.message(&message),
        Err(error) => return failed(&Status::internal(error.to_string())),
    }
    let mut response = json(StatusCode::OK, encoder.out);
    response.headers_mut().insert(METADATA, GRPC);
    response
}

/// A call that failed.
pub(crate) fn failed(status: &Status) -> Response {
    let mut encoder = Encoder::new(false);
    write(&mut encoder, status);
    let mut response = json(http_code(status.code()), encoder.out);
    if status.code() == Code::Unauthenticated
        && let Ok(message) = HeaderValue::from_str(status.message())
    {
        let headers = response.headers_mut();
        headers.insert(header::WWW_AUTHENTICATE, message);
    }
    response
}

fn json(code: StatusCode, text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

/// google.rpc.Status in JSON. No error of etcd's has details.
fn write(encoder: &mut Encoder, status: &Status) {
    encoder.out.push('{');
    encoder.name("code");
    encoder.out += &(status.code() as i32).to_string();
    if !status.message().is_empty() {
        encoder.out.push(',');
        encoder.name("message");
        encoder.text(status.message());
    }
    encoder.out.push('}');
}

/// The line of a stream that says how it failed.
fn failed_line(status: &Status) -> Bytes {
    let mut encoder = Encoder::new(true);
    encoder.out.push('{');
    encoder.name("error");
    write(&mut encoder, status);
    encoder.out += "}\n";
    Bytes::from(encoder.out)
}

/// grpc-gateway's HTTP codes.
fn http_code(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::from_u16(CLIENT_GONE).unwrap_or(StatusCode::REQUEST_TIMEOUT),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            StatusCode::BAD_REQUEST
        }
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// A stream's answer: one line of JSON for each message, each sent when it is there. Dropping it
/// ends the call.
pub(crate) struct Streamed {
    messages: Messages,
    descriptor: MessageDescriptor,
    /// What is wrong with the requests, once something is.
    refused: Option<oneshot::Receiver<Error>>,
    deadline: Option<Pin<Box<Sleep>>>,
    /// The line that was waited for before the answer began.
    first: Option<Bytes>,
    ended: bool,
}

impl Streamed {
    pub fn new(
        messages: Messages,
        descriptor: MessageDescriptor,
        refused: Option<oneshot::Receiver<Error>>,
        deadline: Option<Duration>,
    ) -> Self {
        Self {
            messages,
            descriptor,
            refused,
            deadline: deadline.map(|deadline| Box::pin(sleep(deadline))),
            first: None,
            ended: false,
        }
    }

    /// Waits for the first line, on which the HTTP code depends.
    pub async fn into_response(mut self) -> Response {
        let first = std::future::poll_fn(|cx| self.poll_line(cx)).await;
        let mut response = match first {
            Some(Ok(line)) => {
                self.first = Some(line);
                let mut response = json(StatusCode::OK, String::new());
                response.headers_mut().insert(METADATA, GRPC);
                response
            }
            Some(Err(status)) => {
                let mut response = json(http_code(status.code()), String::new());
                *response.body_mut() = Body::from(failed_line(&status));
                return response;
            }
            None => Response::default(),
        };
        *response.body_mut() = Body::new(self);
        response
    }

    fn poll_line(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        if let Poll::Ready(line) = self.messages.poll_next(cx) {
            // A stream that was ended for what is wrong with a request says so.
            let refused = self
                .refused
                .as_mut()
                .and_then(|refused| refused.try_recv().ok());
            return Poll::Ready(match (line, refused) {
                (Some(message), _) => Some(message.and_then(|message| self.line(message))),
                (None, Some(error)) => Some(Err(in_stream(&error))),
                (None, None) => None,
            });
        }
        if let Some(refused) = &mut self.refused
            && let Poll::Ready(refused) = Pin::new(refused).poll(cx)
        {
            self.refused = None;
            if let Ok(error) = refused {
                return Poll::Ready(Some(Err(in_stream(&error))));
            }
        }
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Some(Err(late())));
        }
        Poll::Pending
    }

    fn line(&self, message: Bytes) -> Result<Bytes, Status> {
        let message = DynamicMessage::decode(self.descriptor.clone(), message);
        let message = message.map_err(|error| Status::internal(error.to_string()))?;
        let mut encoder = Encoder::new(true);
        encoder.out.push('{');
        encoder.name("result");
        encoder.message(&message);
        encoder.out += "}\n";
        Ok(Bytes::from(encoder.out))
    }
}

fn in_stream(error: &Error) -> Status {
    let status = error.status();
    let message = format!("Failed to decode request: {}", status.message());
    Status::new(status.code(), message)
}

impl HttpBody for Streamed {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        self.poll_line(cx).map(|line| {
            let line = match line? {
                Ok(line) => line,
                Err(status) => {
                    self.ended = true;
                    failed_line(&status)
                }
            };
            Some(Ok(Frame::data(line)))
        })
    }
}
