//! What a client port says of the process behind it, below `/debug`, as etcd does.

use std::sync::Arc;

use axum::{
    Router,
    http::header,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::node::Node;

/// The endpoints below `/debug` that a configuration asks for.
pub(crate) fn router(node: &Node) -> Router {
    let raft = node.raft_status();
    let raft: Arc<dyn Fn() -> Value + Send + Sync> = Arc::new(raft);
    let vars = move || {
        let raft = Arc::clone(&raft);
        async move { vars(&raft()) }
    };
    Router::new().route("/debug/vars", api::get(vars))
}

/// The variables of Go's expvar, in its form: one in each line, in the order of their names. What
/// Go's runtime alone could say is left out.
fn vars(raft: &Value) -> Response {
    let arguments: Vec<String> = std::env::args_os()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let variables = [
        ("cmdline", json!(arguments)),
        (
            "file_descriptor_limit",
            json!(limit.current.unwrap_or(u64::MAX)),
        ),
        ("memstats", memory()),
        ("raft.status", raft.clone()),
    ];
    let lines = variables.map(|(name, value)| format!("{}: {value}", json!(name)));
    let text = format!("{{\n{}\n}}\n", lines.join(",\n"));
    let kind = "application/json; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// Bytes that the system has given to the process, under Go's name for it.
fn memory() -> Value {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let resident = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    let resident: u64 = resident.unwrap_or_default();
    json!({ "Sys": resident * rustix::param::page_size() as u64 })
}
