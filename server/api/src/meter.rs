//! What the client edge counts, under etcd's names: calls by method and outcome, messages, bytes,
//! and the checks of health. Everything on the way of a request is an atomic of its own method.

use std::{
    collections::HashMap,
    fmt::Write,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use axum::{body::Body, extract::State, middleware::Next};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::RwLock;

use crate::{Remote, Slow, gate::API_VERSION, sizes, slow::Clock};

/// gRPC's codes, by number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
const CANCELED: usize = 1;
const UNKNOWN: usize = 2;
/// Versions that clients name and that are counted apart; clients choose the text.
const MAX_CLIENT_VERSIONS: usize = 32;
/// The longest such text.
const MAX_CLIENT_VERSION: usize = 32;
/// A message's flag and length, before it.
const PREFIX: usize = 5;

const UNARY: &str = "unary";
const BIDI: &str = "bidi_stream";
const SERVER: &str = "server_stream";

/// All methods that a client port serves, or that etcd's does: service, method, kind.
const METHODS: &[(&str, &str, &str)] = &[
    ("etcdserverpb.Auth", "AuthDisable", UNARY),
    ("etcdserverpb.Auth", "AuthEnable", UNARY),
    ("etcdserverpb.Auth", "AuthStatus", UNARY),
    ("etcdserverpb.Auth", "Authenticate", UNARY),
    ("etcdserverpb.Auth", "RoleAdd", UNARY),
    ("etcdserverpb.Auth", "RoleDelete", UNARY),
    ("etcdserverpb.Auth", "RoleGet", UNARY),
    ("etcdserverpb.Auth", "RoleGrantPermission", UNARY),
    ("etcdserverpb.Auth", "RoleList", UNARY),
    ("etcdserverpb.Auth", "RoleRevokePermission", UNARY),
    ("etcdserverpb.Auth", "UserAdd", UNARY),
    ("etcdserverpb.Auth", "UserChangePassword", UNARY),
    ("etcdserverpb.Auth", "UserDelete", UNARY),
    ("etcdserverpb.Auth", "UserGet", UNARY),
    ("etcdserverpb.Auth", "UserGrantRole", UNARY),
    ("etcdserverpb.Auth", "UserList", UNARY),
    ("etcdserverpb.Auth", "UserRevokeRole", UNARY),
    ("etcdserverpb.Cluster", "MemberAdd", UNARY),
    ("etcdserverpb.Cluster", "MemberList", UNARY),
    ("etcdserverpb.Cluster", "MemberPromote", UNARY),
    ("etcdserverpb.Cluster", "MemberRemove", UNARY),
    ("etcdserverpb.Cluster", "MemberUpdate", UNARY),
    ("etcdserverpb.KV", "Compact", UNARY),
    ("etcdserverpb.KV", "DeleteRange", UNARY),
    ("etcdserverpb.KV", "Put", UNARY),
    ("etcdserverpb.KV", "Range", UNARY),
    ("etcdserverpb.KV", "RangeStream", SERVER),
    ("etcdserverpb.KV", "Txn", UNARY),
    ("etcdserverpb.Lease", "LeaseGrant", UNARY),
    ("etcdserverpb.Lease", "LeaseKeepAlive", BIDI),
    ("etcdserverpb.Lease", "LeaseLeases", UNARY),
    ("etcdserverpb.Lease", "LeaseRevoke", UNARY),
    ("etcdserverpb.Lease", "LeaseTimeToLive", UNARY),
    ("etcdserverpb.Maintenance", "Alarm", UNARY),
    ("etcdserverpb.Maintenance", "Defragment", UNARY),
    ("etcdserverpb.Maintenance", "Downgrade", UNARY),
    ("etcdserverpb.Maintenance", "Hash", UNARY),
    ("etcdserverpb.Maintenance", "HashKV", UNARY),
    ("etcdserverpb.Maintenance", "MoveLeader", UNARY),
    ("etcdserverpb.Maintenance", "Snapshot", SERVER),
    ("etcdserverpb.Maintenance", "Status", UNARY),
    ("etcdserverpb.Watch", "Watch", BIDI),
    ("grpc.health.v1.Health", "Check", UNARY),
    ("grpc.health.v1.Health", "List", UNARY),
    ("grpc.health.v1.Health", "Watch", SERVER),
    ("v3electionpb.Election", "Campaign", UNARY),
    ("v3electionpb.Election", "Leader", UNARY),
    ("v3electionpb.Election", "Observe", SERVER),
    ("v3electionpb.Election", "Proclaim", UNARY),
    ("v3electionpb.Election", "Resign", UNARY),
    ("v3lockpb.Lock", "Lock", UNARY),
    ("v3lockpb.Lock", "Unlock", UNARY),
];
/// These services come so late in etcd's start that its metrics know nothing of them until they are
/// used.
const UNKNOWN_UNTIL_USED: &str = "v3";

/// Whether a value of a service is shown.
fn is_shown(service: &str, value: u64) -> bool {
    value > 0 || !service.starts_with(UNKNOWN_UNTIL_USED)
}

const KV: &str = "etcdserverpb.KV";
/// Its methods that say themselves what was slow.
const TOLD_THERE: [&str; 4] = ["Range", "Put", "DeleteRange", "Txn"];

/// The counters of one method.
#[derive(Debug, Default)]
struct Method {
    started: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    handled: [AtomicU64; CODES.len()],
}

/// What a client port has counted since the process began.
#[derive(Debug)]
pub struct Meter {
    methods: Vec<Method>,
    paths: HashMap<String, usize>,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    /// Calls by the client's version and by whether they are streams.
    clients: RwLock<Vec<Client>>,
    healthy: AtomicU64,
    unhealthy: AtomicU64,
    /// The checks of `/livez` and `/readyz`: how often each went well and ill, and how it last went.
    checks: RwLock<HashMap<(&'static str, &'static str), Checked>>,
}

#[derive(Debug)]
struct Client {
    version: String,
    stream: bool,
    calls: AtomicU64,
}

#[derive(Debug, Default)]
struct Checked {
    well: AtomicU64,
    ill: AtomicU64,
    last: AtomicU64,
}

impl Default for Meter {
    fn default() -> Self {
        let paths = METHODS.iter().enumerate();
        let paths = paths.map(|(at, (service, method, _))| (format!("/{service}/{method}"), at));
        Self {
            methods: METHODS.iter().map(|_| Method::default()).collect(),
            paths: paths.collect(),
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            clients: RwLock::default(),
            healthy: AtomicU64::new(0),
            unhealthy: AtomicU64::new(0),
            checks: RwLock::default(),
        }
    }
}

impl Meter {
    /// Counts an answer of `/health`.
    pub(crate) fn health(&self, well: bool) {
        let of = if well { &self.healthy } else { &self.unhealthy };
        of.fetch_add(1, Relaxed);
    }

    /// Counts a check of `/livez` or `/readyz`.
    pub(crate) fn check(&self, probe: &'static str, check: &'static str, well: bool) {
        let count = |checked: &Checked| {
            let of = if well { &checked.well } else { &checked.ill };
            of.fetch_add(1, Relaxed);
            checked.last.store(u64::from(well), Relaxed);
        };
        if let Some(checked) = self.checks.read().get(&(probe, check)) {
            return count(checked);
        }
        count(self.checks.write().entry((probe, check)).or_default());
    }

    fn client(&self, headers: &HeaderMap, stream: bool) {
        let version = headers.get(API_VERSION).map(|of| of.to_str().unwrap_or(""));
        let version = version.unwrap_or("unknown");
        // What is no version is refused later; what is too long is counted with the unknown.
        let version = match version.len() {
            1..=MAX_CLIENT_VERSION => version,
            _ => "unknown",
        };
        if let Some(client) = find(&self.clients.read(), version, stream) {
            client.calls.fetch_add(1, Relaxed);
            return;
        }
        let mut clients = self.clients.write();
        let version = match clients.len() < MAX_CLIENT_VERSIONS {
            true => version,
            false => "unknown",
        };
        if let Some(client) = find(&clients, version, stream) {
            client.calls.fetch_add(1, Relaxed);
            return;
        }
        clients.push(Client {
            version: version.to_owned(),
            stream,
            calls: AtomicU64::new(1),
        });
    }

    /// All of it in Prometheus' text form.
    pub fn write(&self, text: &mut String) {
        self.write_methods(text);
        let mut metric = |name: &str, help: &str, value: &AtomicU64| {
            let value = value.load(Relaxed);
            let _ = writeln!(
                text,
                "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}"
            );
        };
        metric(
            "etcd_network_client_grpc_received_bytes_total",
            "The total number of bytes received from grpc clients.",
            &self.received_bytes,
        );
        metric(
            "etcd_network_client_grpc_sent_bytes_total",
            "The total number of bytes sent to grpc clients.",
            &self.sent_bytes,
        );
        metric(
            "etcd_server_health_success",
            "The total number of successful health checks",
            &self.healthy,
        );
        metric(
            "etcd_server_health_failures",
            "The total number of failed health checks",
            &self.unhealthy,
        );
        self.write_clients(text);
        self.write_checks(text);
    }

    fn write_methods(&self, text: &mut String) {
        let mut family = |name: &str, help: &str, of: &dyn Fn(&Method) -> &AtomicU64| {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
            for ((service, method, kind), counters) in METHODS.iter().zip(&self.methods) {
                let value = of(counters).load(Relaxed);
                if !is_shown(service, value) {
                    continue;
                }
                let _ = writeln!(
                    text,
                    "{name}{{grpc_method=\"{method}\",grpc_service=\"{service}\",grpc_type=\"{kind}\"}} \
                     {value}"
                );
            }
        };
        family(
            "grpc_server_started_total",
            "Total number of RPCs started on the server.",
            &|method| &method.started,
        );
        family(
            "grpc_server_msg_received_total",
            "Total number of RPC stream messages received on the server.",
            &|method| &method.received,
        );
        family(
            "grpc_server_msg_sent_total",
            "Total number of gRPC stream messages sent by the server.",
            &|method| &method.sent,
        );
        let name = "grpc_server_handled_total";
        let help =
            "Total number of RPCs completed on the server, regardless of success or failure.";
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
        for ((service, method, kind), counters) in METHODS.iter().zip(&self.methods) {
            for (code, handled) in CODES.iter().zip(&counters.handled) {
                let value = handled.load(Relaxed);
                if !is_shown(service, value) {
                    continue;
                }
                let _ = writeln!(
                    text,
                    "{name}{{grpc_code=\"{code}\",grpc_method=\"{method}\",grpc_service=\"{service}\",\
                     grpc_type=\"{kind}\"}} {value}"
                );
            }
        }
    }

    fn write_clients(&self, text: &mut String) {
        let clients = self.clients.read();
        if clients.is_empty() {
            return;
        }
        let name = "etcd_server_client_requests_total";
        let help = "The total number of client requests per client version.";
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
        for client in clients.iter() {
            let kind = if client.stream { "stream" } else { "unary" };
            let version = client.version.replace(['"', '\\'], "_");
            let value = client.calls.load(Relaxed);
            let _ = writeln!(
                text,
                "{name}{{client_api_version=\"{version}\",type=\"{kind}\"}} {value}"
            );
        }
    }

    fn write_checks(&self, text: &mut String) {
        let checks = self.checks.read();
        if checks.is_empty() {
            return;
        }
        let name = "etcd_server_healthcheck";
        let help = "The result of each kind of healthcheck.";
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for ((probe, check), checked) in checks.iter() {
            let value = checked.last.load(Relaxed);
            let _ = writeln!(text, "{name}{{name=\"{check}\",type=\"{probe}\"}} {value}");
        }
        let name = "etcd_server_healthchecks_total";
        let help = "The total number of each kind of healthcheck.";
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
        for ((probe, check), checked) in checks.iter() {
            for (status, count) in [("success", &checked.well), ("error", &checked.ill)] {
                let value = count.load(Relaxed);
                if value > 0 {
                    let _ = writeln!(
                        text,
                        "{name}{{name=\"{check}\",status=\"{status}\",type=\"{probe}\"}} {value}"
                    );
                }
            }
        }
    }
}

fn find<'a>(clients: &'a [Client], version: &str, stream: bool) -> Option<&'a Client> {
    let mut clients = clients.iter();
    clients.find(|client| client.version == version && client.stream == stream)
}

/// The layer before all services: counts a call from its first byte to its last.
pub(crate) async fn count(
    State((meter, slow)): State<(Arc<Meter>, Slow)>,
    request: Request<Body>,
    next: Next,
) -> Response<Body> {
    let Some(&at) = meter.paths.get(request.uri().path()) else {
        return sizes::in_gos_words(next.run(request).await);
    };
    meter.methods[at].started.fetch_add(1, Relaxed);
    let (service, method, kind) = METHODS[at];
    meter.client(request.headers(), kind != UNARY);
    let tells = kind == UNARY && !(service == KV && TOLD_THERE.contains(&method));
    let clock = tells.then(|| Clock::of(slow, request.extensions().get::<Remote>().copied()));
    // Made before the call: one whose client goes away is dropped with it, and counts.
    let call = Call {
        meter: Arc::clone(&meter),
        at,
        code: None,
        clock,
    };
    let request = request.map(|body| {
        Body::new(Received {
            body,
            meter,
            at,
            messages: Messages::default(),
        })
    });
    let response = sizes::in_gos_words(next.run(request).await);
    let code = code_of(response.headers());
    response.map(|body| {
        let mut sent = Sent {
            body,
            call,
            messages: Messages::default(),
        };
        sent.call.code = code;
        Body::new(sent)
    })
}

/// The code in headers or trailers.
fn code_of(headers: &HeaderMap) -> Option<usize> {
    let code = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    Some(if code < CODES.len() { code } else { UNKNOWN })
}

/// A call that is under way; how it ended is counted when it is dropped.
struct Call {
    meter: Arc<Meter>,
    at: usize,
    /// `None` until the end: a call without one was given up by its client.
    code: Option<usize>,
    /// Of one that is told of when it was slow.
    clock: Option<Clock>,
}

impl Drop for Call {
    fn drop(&mut self) {
        let code = self.code.unwrap_or(CANCELED);
        self.meter.methods[self.at].handled[code].fetch_add(1, Relaxed);
        if let Some(clock) = &self.clock {
            let (service, method, _) = METHODS[self.at];
            clock.end_of(format_args!("/{service}/{method}"));
        }
    }
}

/// Finds messages in a body's bytes, which come in any pieces.
#[derive(Debug, Default)]
struct Messages {
    prefix: [u8; PREFIX],
    filled: usize,
    /// What is left of the message under way.
    left: usize,
}

impl Messages {
    /// Returns how many messages begin in a piece, and how long they are together.
    fn feed(&mut self, mut piece: &[u8]) -> (u64, u64) {
        let (mut count, mut bytes) = (0, 0);
        while !piece.is_empty() {
            if self.left > 0 {
                let taken = self.left.min(piece.len());
                self.left -= taken;
                piece = &piece[taken..];
                continue;
            }
            let taken = (PREFIX - self.filled).min(piece.len());
            self.prefix[self.filled..self.filled + taken].copy_from_slice(&piece[..taken]);
            self.filled += taken;
            piece = &piece[taken..];
            if self.filled == PREFIX {
                let [_, a, b, c, d] = self.prefix;
                let length = u32::from_be_bytes([a, b, c, d]);
                self.left = length as usize;
                self.filled = 0;
                count += 1;
                bytes += u64::from(length);
            }
        }
        (count, bytes)
    }
}

/// A request's body.
struct Received {
    body: Body,
    meter: Arc<Meter>,
    at: usize,
    messages: Messages,
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            let (count, bytes) = self.messages.feed(data);
            let method = &self.meter.methods[self.at];
            method.received.fetch_add(count, Relaxed);
            self.meter.received_bytes.fetch_add(bytes, Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body.
struct Sent {
    body: Body,
    call: Call,
    messages: Messages,
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            if let Some(data) = frame.data_ref() {
                let (count, bytes) = self.messages.feed(data);
                let meter = Arc::clone(&self.call.meter);
                meter.methods[self.call.at].sent.fetch_add(count, Relaxed);
                meter.sent_bytes.fetch_add(bytes, Relaxed);
            } else if let Some(trailers) = frame.trailers_ref() {
                self.call.code = code_of(trailers);
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_in_any_pieces() {
        let mut body = Vec::new();
        for length in [0_usize, 3, 300, 1] {
            body.push(0);
            body.extend((length as u32).to_be_bytes());
            body.extend(vec![7; length]);
        }
        for step in 1..body.len() {
            let mut messages = Messages::default();
            let fed = body.chunks(step).map(|piece| messages.feed(piece));
            let sum = fed.fold((0, 0), |sum, (n, bytes)| (sum.0 + n, sum.1 + bytes));
            assert_eq!(sum, (4, 304), "{step}");
        }
    }

    #[test]
    fn a_call_without_an_end_was_given_up() {
        let meter = Arc::new(Meter::default());
        let at = meter.paths["/etcdserverpb.Watch/Watch"];
        for code in [None, Some(0)] {
            drop(Call {
                meter: Arc::clone(&meter),
                at,
                code,
                clock: None,
            });
        }
        let mut text = String::new();
        meter.write(&mut text);
        for code in ["OK", "Canceled"] {
            let line = format!(
                "grpc_server_handled_total{{grpc_code=\"{code}\",grpc_method=\"Watch\",\
                 grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"}} 1"
            );
            assert!(text.contains(&line), "{code}");
        }
    }

    #[test]
    fn a_client_cannot_make_endless_series() {
        let meter = Meter::default();
        for n in 0..1000 {
            let mut headers = HeaderMap::new();
            headers.insert(API_VERSION, format!("{n}").parse().unwrap());
            meter.client(&headers, false);
        }
        assert_eq!(meter.clients.read().len(), MAX_CLIENT_VERSIONS + 1);
    }
}
