//! Calls that take long, in etcd's words: `request stats` for any unary call, and `apply request
//! took too long` for what was only read.

use std::{
    fmt::Display,
    net::SocketAddr,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use prost::Message;
use proto::{
    etcdserverpb::{
        DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, TxnRequest,
        TxnResponse,
    },
    framed::RangeResponse,
    text::Text,
};
use tonic::{Request, Response, Status};
use tracing::{Level, debug, enabled, warn};

/// Where a connection comes from. Whoever accepts it puts this into the extensions of its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote(pub SocketAddr);

/// From when on calls are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slow {
    /// Calls of one request and one answer, as `--warning-unary-request-duration`.
    pub unary: Duration,
    /// Reads, as `--warning-apply-duration`.
    pub apply: Duration,
}

/// A call that is under way.
pub(crate) struct Clock {
    began: Instant,
    remote: Option<SocketAddr>,
    slow: Slow,
}

/// What `request stats` says of a call; -1 where it has nothing to say.
struct Stats {
    request_count: i64,
    request_size: i64,
    response_count: i64,
    response_size: i64,
    content: String,
}

impl Clock {
    /// A call begins.
    pub fn of(slow: Slow, remote: Option<Remote>) -> Self {
        Self {
            began: Instant::now(),
            remote: remote.map(|remote| remote.0),
            slow,
        }
    }

    /// It has ended.
    fn end<Q: Told>(&self, request: &Q, answer: &Result<Response<Q::Answer>, Status>) {
        let took = self.began.elapsed();
        let answer = answer.as_ref();
        if took > self.slow.apply
            && let Some(prefix) = request.read_only()
        {
            let response = answer.map(|answer| Q::read(answer.get_ref()));
            let error = answer.err().map(Status::message).unwrap_or_default();
            warn!(
                ?took,
                "expected-duration" = ?self.slow.apply,
                prefix,
                request = %request.content(),
                response = response.unwrap_or_default(),
                error,
                "apply request took too long"
            );
        }
        if self.tells(took) {
            let answer = answer.ok().map(Response::get_ref);
            self.tell(Q::METHOD, took, &stats(request, answer));
        }
    }

    /// One has ended of which no more is known than its method.
    pub fn end_of(&self, method: std::fmt::Arguments<'_>) {
        let took = self.began.elapsed();
        if self.tells(took) {
            let stats = Stats {
                request_count: -1,
                request_size: -1,
                response_count: -1,
                response_size: -1,
                content: String::new(),
            };
            self.tell(&method.to_string(), took, &stats);
        }
    }

    fn tells(&self, took: Duration) -> bool {
        took > self.slow.unary || enabled!(Level::DEBUG)
    }

    fn tell(&self, method: &str, took: Duration, stats: &Stats) {
        let start = Timestamp::now().saturating_sub(took).unwrap_or_default();
        let remote = self.remote.map(|remote| remote.to_string());
        let remote = remote.unwrap_or_else(|| "No remote client info.".to_owned());
        macro_rules! tell {
            ($level:ident) => {
                $level!(
                    "start time" = %start,
                    "time spent" = ?took,
                    remote,
                    "response type" = method,
                    "request count" = stats.request_count,
                    "request size" = stats.request_size,
                    "response count" = stats.response_count,
                    "response size" = stats.response_size,
                    "request content" = stats.content,
                    "request stats"
                )
            };
        }
        // As etcd: one that is told anyway is no warning.
        match enabled!(Level::DEBUG) {
            true => tell!(debug),
            false => tell!(warn),
        }
    }
}

/// Makes a call, and tells of it when it took long.
pub(crate) async fn timed<Q: Told + Clone, F>(
    slow: Slow,
    request: Request<Q>,
    call: impl FnOnce(Request<Q>) -> F,
) -> Result<Response<Q::Answer>, Status>
where
    F: Future<Output = Result<Response<Q::Answer>, Status>>,
{
    let clock = Clock::of(slow, request.extensions().get::<Remote>().copied());
    // The call takes the request with it; keys and values are shared.
    let asked = request.get_ref().clone();
    let answer = call(request).await;
    clock.end(&asked, &answer);
    answer
}

/// A request of which `request stats` tells more.
pub(crate) trait Told {
    /// What answers it.
    type Answer;
    /// Its gRPC path.
    const METHOD: &str;

    /// The request as text, without values.
    fn content(&self) -> impl Display;

    /// How many there are in the request and in the answer, and how long these are.
    fn counts(&self, answer: Option<&Self::Answer>) -> (i64, usize, i64, usize);

    /// What reads are called in the log; `None` of what writes.
    fn read_only(&self) -> Option<&'static str> {
        None
    }

    /// What the log says of a read's answer.
    fn read(_: &Self::Answer) -> String {
        String::new()
    }
}

fn stats<Q: Told>(request: &Q, answer: Option<&Q::Answer>) -> Stats {
    let (request_count, request_size, response_count, response_size) = request.counts(answer);
    let size = |size| i64::try_from(size).unwrap_or(i64::MAX);
    Stats {
        request_count,
        request_size: size(request_size),
        response_count,
        response_size: size(response_size),
        content: request.content().to_string(),
    }
}

fn length<M: Message>(message: Option<&M>) -> usize {
    message.map_or(0, Message::encoded_len)
}

impl Told for RangeRequest {
    type Answer = RangeResponse;
    const METHOD: &str = "/etcdserverpb.KV/Range";

    fn content(&self) -> impl Display {
        Text(self)
    }

    fn counts(&self, answer: Option<&RangeResponse>) -> (i64, usize, i64, usize) {
        let found = answer.map_or(0, |answer| answer.count);
        (0, self.encoded_len(), found, length(answer))
    }

    fn read_only(&self) -> Option<&'static str> {
        Some("read-only range ")
    }

    fn read(answer: &RangeResponse) -> String {
        let (count, size) = (answer.kvs.count(), answer.encoded_len());
        format!("range_response_count:{count} size:{size}")
    }
}

impl Told for PutRequest {
    type Answer = PutResponse;
    const METHOD: &str = "/etcdserverpb.KV/Put";

    fn content(&self) -> impl Display {
        Text(self)
    }

    fn counts(&self, answer: Option<&PutResponse>) -> (i64, usize, i64, usize) {
        (1, self.encoded_len(), 0, length(answer))
    }
}

impl Told for DeleteRangeRequest {
    type Answer = DeleteRangeResponse;
    const METHOD: &str = "/etcdserverpb.KV/DeleteRange";

    fn content(&self) -> impl Display {
        Text(self)
    }

    fn counts(&self, answer: Option<&DeleteRangeResponse>) -> (i64, usize, i64, usize) {
        let deleted = answer.map_or(0, |answer| answer.deleted);
        (0, self.encoded_len(), deleted, length(answer))
    }
}

impl Told for TxnRequest {
    type Answer = TxnResponse;
    const METHOD: &str = "/etcdserverpb.KV/Txn";

    fn content(&self) -> impl Display {
        Text(self)
    }

    /// Of the branch that was taken.
    fn counts(&self, answer: Option<&TxnResponse>) -> (i64, usize, i64, usize) {
        let Some(answer) = answer else {
            return (0, 0, 0, 0);
        };
        let taken = match answer.succeeded {
            true => &self.success,
            false => &self.failure,
        };
        let size = taken.iter().map(Message::encoded_len).sum();
        let count = i64::try_from(taken.len()).unwrap_or(i64::MAX);
        (count, size, 0, answer.encoded_len())
    }

    fn read_only(&self) -> Option<&'static str> {
        state::is_read_only(self).then_some("read-only txn ")
    }

    fn read(answer: &TxnResponse) -> String {
        use proto::etcdserverpb::response_op::Response;
        let counts = answer.responses.iter().map(|op| match &op.response {
            Some(Response::ResponseRange(range)) => {
                format!("range_response_count:{}", range.kvs.len())
            }
            _ => "range_response:nil".to_owned(),
        });
        let counts: Vec<_> = counts.collect();
        let size = answer.encoded_len();
        format!("responses:<{}> size:{size}", counts.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use proto::etcdserverpb::{RequestOp, ResponseOp, request_op, response_op};

    use super::*;

    #[test]
    fn what_is_told_is_etcds() {
        let range = RangeRequest {
            key: "k".into(),
            ..RangeRequest::default()
        };
        let txn = TxnRequest {
            success: vec![RequestOp {
                request: Some(request_op::Request::RequestRange(range.clone())),
            }],
            ..TxnRequest::default()
        };
        assert_eq!(txn.read_only(), Some("read-only txn "));
        let answer = TxnResponse {
            succeeded: true,
            responses: vec![ResponseOp {
                response: Some(response_op::Response::ResponseRange(
                    proto::etcdserverpb::RangeResponse::default(),
                )),
            }],
            ..TxnResponse::default()
        };
        let size = answer.encoded_len();
        let text = format!("responses:<range_response_count:0> size:{size}");
        assert_eq!(TxnRequest::read(&answer), text);
        assert_eq!(txn.counts(Some(&answer)), (1, 5, 0, size));
        assert_eq!(txn.counts(None), (0, 0, 0, 0));
        assert_eq!(PutRequest::default().read_only(), None);
        assert_eq!(range.counts(None), (0, 3, 0, 0));
    }
}
