//! The frames of gRPC: messages in a body, and how a call ended.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, Response};
use http_body::Body as HttpBody;
use tonic::{Code, Status};

/// A message's flag and length, before it.
const PREFIX: usize = 5;

/// A message as it stands in a body.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(PREFIX + message.len());
    frame.put_u8(0);
    // Bodies are bounded far below.
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    frame.freeze()
}

/// The messages that answer a call.
pub(crate) struct Messages {
    body: Body,
    buffer: BytesMut,
    ended: bool,
}

impl Messages {
    /// # Errors
    /// When the call failed before any message.
    pub fn of(response: Response<Body>) -> Result<Self, Status> {
        let (parts, body) = response.into_parts();
        if let Some(status) = ended(&parts.headers) {
            status?;
            // An answer without messages.
            return Ok(Self {
                body: Body::empty(),
                buffer: BytesMut::new(),
                ended: true,
            });
        }
        Ok(Self {
            body,
            buffer: BytesMut::new(),
            ended: false,
        })
    }

    /// The next message, or how the call failed; `None` when it ended well.
    pub async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        loop {
            if let Some(message) = self.take() {
                return Poll::Ready(Some(Ok(message)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if self.buffer.is_empty() => self.buffer = data.into(),
                    Ok(data) => self.buffer.extend_from_slice(&data),
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        self.ended = true;
                        if let Some(Err(status)) = ended(&trailers) {
                            return Poll::Ready(Some(Err(status)));
                        }
                    }
                },
                Some(Err(error)) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(Status::internal(error.to_string()))));
                }
                None => self.ended = true,
            }
        }
    }

    fn take(&mut self) -> Option<Bytes> {
        let [_, a, b, c, d] = *self.buffer.first_chunk::<PREFIX>()?;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if self.buffer.len() - PREFIX < length {
            return None;
        }
        self.buffer.advance(PREFIX);
        Some(self.buffer.split_to(length).freeze())
    }
}

/// How a call ended, if these headers or trailers say it.
fn ended(headers: &HeaderMap) -> Option<Result<(), Status>> {
    let status = Status::from_header_map(headers)?;
    Some(match status.code() {
        Code::Ok => Ok(()),
        _ => Err(status),
    })
}
