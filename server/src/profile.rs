//! CPU profiles of the process in the form of Go's `pprof` tools, below `/debug/pprof`, where etcd
//! has them. Profiles of what only Go's runtime has are not there, and of the heap neither.

use std::{
    collections::HashMap,
    io::Write,
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use api::failed;
use axum::{
    Router,
    extract::RawQuery,
    http::{HeaderName, StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::any,
};
use flate2::{Compression, write::GzEncoder};
use pprof::{ProfilerGuardBuilder, Report, Symbol};
use prost::Message;

/// Looks in each second of CPU time, as in Go.
const FREQUENCY: i32 = 100;
/// How long a profile takes when nobody says.
const SECONDS: u64 = 30;
/// How long it may take.
const MAX_SECONDS: u64 = 600;
/// Unwinding within these could wait for a lock that the thread holds already.
const NOT_IN: &[&str] = &["libc", "libgcc", "pthread", "vdso"];
const NO_SNIFF: HeaderName = HeaderName::from_static("x-content-type-options");

/// The endpoints.
pub(crate) fn router() -> Router {
    Router::new()
        .route("/debug/pprof/", any(index))
        .route("/debug/pprof/cmdline", any(cmdline))
        .route("/debug/pprof/profile", any(profile))
        .route("/debug/pprof/{name}", any(unknown))
}

async fn index() -> Html<&'static str> {
    Html(
        "<html>\n<head>\n<title>/debug/pprof/</title>\n</head>\n<body>\n/debug/pprof/\n<br>\n\
         <table>\n\
         <tr><td><a href='cmdline'>cmdline</a></td><td>The command line.</td></tr>\n\
         <tr><td><a href='profile'>profile</a></td><td>A CPU profile, for `go tool pprof`. \
         ?seconds= says how long it takes.</td></tr>\n</table>\n</body>\n</html>\n",
    )
}

async fn cmdline() -> Response {
    let arguments: Vec<String> = std::env::args_os()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    let kind = "text/plain; charset=utf-8";
    let headers = [(header::CONTENT_TYPE, kind), (NO_SNIFF, "nosniff")];
    (headers, arguments.join("\0")).into_response()
}

async fn unknown() -> Response {
    let mut response = failed(StatusCode::NOT_FOUND, "Unknown profile".to_owned());
    let name = HeaderName::from_static("x-go-pprof");
    response.headers_mut().insert(name, 1.into());
    response
}

async fn profile(query: RawQuery) -> Response {
    let query = query.0.unwrap_or_default();
    let seconds = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("seconds="));
    let seconds = seconds
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or(SECONDS);
    let length = Duration::from_secs(seconds.clamp(1, MAX_SECONDS));
    // Dropped with this future when the client goes away.
    let (client, gone) = mpsc::channel::<()>();
    let taken = tokio::task::spawn_blocking(move || take(length, &gone)).await;
    drop(client);
    match taken {
        Ok(Ok(profile)) => {
            let headers = [
                (header::CONTENT_TYPE, "application/octet-stream"),
                (
                    header::CONTENT_DISPOSITION,
                    "attachment; filename=\"profile\"",
                ),
                (NO_SNIFF, "nosniff"),
            ];
            (headers, profile).into_response()
        }
        Ok(Err(error)) => {
            let text = format!("Could not enable CPU profiling: {error:#}");
            failed(StatusCode::INTERNAL_SERVER_ERROR, text)
        }
        Err(error) => failed(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// Takes one profile; the profiler allows no second one at a time.
fn take(length: Duration, gone: &mpsc::Receiver<()>) -> anyhow::Result<Vec<u8>> {
    let guard = ProfilerGuardBuilder::default()
        .frequency(FREQUENCY)
        .blocklist(NOT_IN)
        .build()?;
    let began = SystemTime::now();
    if gone.recv_timeout(length) == Err(RecvTimeoutError::Disconnected) {
        anyhow::bail!("the client is gone");
    }
    let profile = Builder::default().profile(&guard.report().build()?, began, length);
    let mut compressed = GzEncoder::new(Vec::new(), Compression::fast());
    compressed.write_all(&profile.encode_to_vec())?;
    Ok(compressed.finish()?)
}

/// The format of the pprof tools, `profile.proto`, as far as it is filled.
mod format {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Profile {
        #[prost(message, repeated, tag = "1")]
        pub sample_type: Vec<ValueType>,
        #[prost(message, repeated, tag = "2")]
        pub sample: Vec<Sample>,
        #[prost(message, repeated, tag = "4")]
        pub location: Vec<Location>,
        #[prost(message, repeated, tag = "5")]
        pub function: Vec<Function>,
        #[prost(string, repeated, tag = "6")]
        pub string_table: Vec<String>,
        #[prost(int64, tag = "9")]
        pub time_nanos: i64,
        #[prost(int64, tag = "10")]
        pub duration_nanos: i64,
        #[prost(message, optional, tag = "11")]
        pub period_type: Option<ValueType>,
        #[prost(int64, tag = "12")]
        pub period: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ValueType {
        #[prost(int64, tag = "1")]
        pub kind: i64,
        #[prost(int64, tag = "2")]
        pub unit: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Sample {
        /// The leaf first.
        #[prost(uint64, repeated, tag = "1")]
        pub location_id: Vec<u64>,
        #[prost(int64, repeated, tag = "2")]
        pub value: Vec<i64>,
        #[prost(message, repeated, tag = "3")]
        pub label: Vec<Label>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Label {
        #[prost(int64, tag = "1")]
        pub key: i64,
        #[prost(int64, tag = "2")]
        pub text: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Location {
        #[prost(uint64, tag = "1")]
        pub id: u64,
        #[prost(message, repeated, tag = "4")]
        pub line: Vec<Line>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Line {
        #[prost(uint64, tag = "1")]
        pub function_id: u64,
        #[prost(int64, tag = "2")]
        pub line: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Function {
        #[prost(uint64, tag = "1")]
        pub id: u64,
        #[prost(int64, tag = "2")]
        pub name: i64,
        #[prost(int64, tag = "3")]
        pub system_name: i64,
        #[prost(int64, tag = "4")]
        pub filename: i64,
    }
}

use format::{Function, Label, Line, Location, Profile, Sample, ValueType};

/// Makes a profile of a report: each text, function and line once.
#[derive(Default)]
struct Builder {
    profile: Profile,
    texts: HashMap<String, i64>,
    functions: HashMap<String, u64>,
    locations: HashMap<(u64, u32), u64>,
}

impl Builder {
    fn profile(mut self, report: &Report, began: SystemTime, length: Duration) -> Profile {
        // The first text is empty by the format's rule.
        self.text("");
        let period = 1_000_000_000 / i64::from(FREQUENCY);
        let samples = self.value_type("samples", "count");
        let cpu = self.value_type("cpu", "nanoseconds");
        self.profile.sample_type = vec![samples, cpu.clone()];
        self.profile.period_type = Some(cpu);
        self.profile.period = period;
        let since = began.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.profile.time_nanos = i64::try_from(since.as_nanos()).unwrap_or_default();
        self.profile.duration_nanos = i64::try_from(length.as_nanos()).unwrap_or_default();
        for (frames, count) in &report.data {
            let symbols = frames.frames.iter().flatten();
            let location_id = symbols.map(|symbol| self.location(symbol)).collect();
            let count = *count as i64;
            let label = Label {
                key: self.text("thread"),
                text: self.text(&frames.thread_name),
            };
            self.profile.sample.push(Sample {
                location_id,
                value: vec![count, count * period],
                label: vec![label],
            });
        }
        self.profile
    }

    fn value_type(&mut self, kind: &str, unit: &str) -> ValueType {
        ValueType {
            kind: self.text(kind),
            unit: self.text(unit),
        }
    }

    fn text(&mut self, text: &str) -> i64 {
        if let Some(&at) = self.texts.get(text) {
            return at;
        }
        let at = self.texts.len() as i64;
        self.texts.insert(text.to_owned(), at);
        self.profile.string_table.push(text.to_owned());
        at
    }

    fn function(&mut self, symbol: &Symbol) -> u64 {
        let name = symbol.name();
        if let Some(&id) = self.functions.get(&name) {
            return id;
        }
        let id = self.functions.len() as u64 + 1;
        let function = Function {
            id,
            name: self.text(&name),
            system_name: self.text(&symbol.sys_name()),
            filename: self.text(&symbol.filename()),
        };
        self.profile.function.push(function);
        self.functions.insert(name, id);
        id
    }

    fn location(&mut self, symbol: &Symbol) -> u64 {
        let function_id = self.function(symbol);
        let place = (function_id, symbol.lineno());
        if let Some(&id) = self.locations.get(&place) {
            return id;
        }
        let id = self.locations.len() as u64 + 1;
        let line = Line {
            function_id,
            line: i64::from(place.1),
        };
        self.profile.location.push(Location {
            id,
            line: vec![line],
        });
        self.locations.insert(place, id);
        id
    }
}
