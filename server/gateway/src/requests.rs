//! The requests of a stream: the JSON values of a body, as messages, as they come.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use prost_reflect::MessageDescriptor;
use tokio::sync::oneshot;

use crate::{Error, decode, messages::framed, values::Values};

/// A body of messages, made of a body of JSON.
pub(crate) struct Requests {
    body: Body,
    values: Values,
    message: MessageDescriptor,
    /// Who is told what is wrong with a value; nothing behind it is read.
    refuse: Option<oneshot::Sender<Error>>,
    ended: bool,
}

impl Requests {
    pub fn new(
        body: Body,
        values: Values,
        message: MessageDescriptor,
        refuse: oneshot::Sender<Error>,
    ) -> Self {
        Self {
            body,
            values,
            message,
            refuse: Some(refuse),
            ended: false,
        }
    }

    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Error>> {
        loop {
            if let Some(value) = self.values.next()? {
                return Poll::Ready(Ok(Some(value)));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.values.push(data);
                    }
                }
                // The client is gone, or its body broke off.
                Some(Err(_)) => {
                    return Poll::Ready(Err(Error::Syntax("unexpected EOF".to_owned())));
                }
                None => {
                    self.ended = true;
                    return Poll::Ready(self.values.end());
                }
            }
        }
    }
}

impl HttpBody for Requests {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let message = match ready!(self.next(cx)) {
            Ok(None) => return Poll::Ready(None),
            Ok(Some(value)) => decode::decode(&value, &self.message),
            Err(error) => Err(error),
        };
        match message {
            Ok(message) => Poll::Ready(Some(Ok(Frame::data(framed(&message))))),
            Err(error) => {
                self.ended = true;
                if let Some(refuse) = self.refuse.take() {
                    // Nobody listens any more when the call is over.
                    let _ = refuse.send(error);
                }
                Poll::Ready(None)
            }
        }
    }
}
