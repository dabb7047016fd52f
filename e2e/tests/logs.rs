//! What the log says of requests that take long, beside etcd: everything takes too long here.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use e2e::{
    Kind, Server,
    client::{channel, eventually},
};
use proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest,
    RequestOp, TxnRequest, compare::TargetUnion, kv_client::KvClient, lease_client::LeaseClient,
    request_op::Request,
};
use serde_json::Value;

const FLAGS: [&str; 2] = [
    "--warning-apply-duration=1ns",
    "--warning-unary-request-duration=1ns",
];
/// Fields whose values are the same for all servers.
const FIELDS: [&str; 5] = [
    "prefix",
    "response type",
    "request count",
    "request size",
    "response count",
];

/// The same requests to any server.
async fn ask(url: &str) {
    let mut kv = KvClient::new(channel(url));
    let put = |key: &str, lease| PutRequest {
        key: key.to_owned().into(),
        value: "a secret".into(),
        lease,
        ..PutRequest::default()
    };
    let range = RangeRequest {
        key: "k\n\u{1}\"\u{e9}".into(),
        range_end: vec![0xff].into(),
        limit: 3,
        ..RangeRequest::default()
    };
    let of = |request| RequestOp {
        request: Some(request),
    };
    kv.put(put("k\n\u{1}\"\u{e9}", 0)).await.unwrap();
    kv.put(put("no lease", 77)).await.unwrap_err();
    kv.range(range.clone()).await.unwrap();
    let reads = TxnRequest {
        success: vec![of(Request::RequestRange(range.clone()))],
        ..TxnRequest::default()
    };
    kv.txn(reads.clone()).await.unwrap();
    let writes = TxnRequest {
        compare: vec![Compare {
            target: 3,
            key: "none".into(),
            target_union: Some(TargetUnion::Value("a secret".into())),
            ..Compare::default()
        }],
        success: Vec::new(),
        failure: vec![
            of(Request::RequestPut(put("t", 0))),
            of(Request::RequestTxn(reads)),
        ],
    };
    kv.txn(writes).await.unwrap();
    let delete = DeleteRangeRequest {
        key: "t".into(),
        prev_kv: true,
        ..DeleteRangeRequest::default()
    };
    kv.delete_range(delete).await.unwrap();
    let compact = CompactionRequest {
        revision: 2,
        physical: true,
    };
    kv.compact(compact).await.unwrap();
    let grant = LeaseGrantRequest { ttl: 60, id: 0x77 };
    LeaseClient::new(channel(url))
        .lease_grant(grant)
        .await
        .unwrap();
}

/// What a log says, without what differs from run to run.
fn lines(log: &str) -> BTreeSet<String> {
    let lines = log.lines().filter_map(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        let msg = line["msg"].as_str()?;
        let content = match msg {
            "request stats" => line["request content"].as_str()?,
            "apply request took too long" => {
                let request = line["request"].as_str()?;
                assert!(
                    line["took"].is_string() && line["expected-duration"] == "1ns",
                    "{line}"
                );
                // The header's ID differs.
                match request.starts_with("header:") {
                    true => request.split_once(' ').unwrap().1,
                    false => request,
                }
            }
            _ => return None,
        };
        let fields = FIELDS.map(|field| format!("{field}={}", line[field]));
        // Go's text has one space between fields, or two.
        let content: Vec<&str> = content.split_whitespace().collect();
        let content = content.join(" ").replace(" >", ">");
        Some(format!("{msg}: {content} {}", fields.join(" ")))
    });
    // Members' own requests have no place here.
    lines.filter(|line| !line.contains("cluster_")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_requests_are_told_in_etcds_words() {
    let folder = tempfile::tempdir().unwrap();
    let [cairn, etcd] = [(Kind::Cairn, "cairn"), (Kind::Etcd, "etcd")].map(|(kind, name)| {
        let folder = folder.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        Server::start(kind, &folder, &FLAGS)
    });
    for server in [&cairn, &etcd] {
        ask(server.url()).await;
    }
    // The log of a request may lag behind its answer.
    let told = eventually("lines", async || {
        let lines = lines(&etcd.log());
        match lines.iter().any(|line| line.contains("LeaseGrant")) {
            true => Ok(lines),
            false => Err("not yet"),
        }
    })
    .await;
    assert!(told.len() > 14, "{told:#?}");
    eventually("the same", async || {
        let own = lines(&cairn.log());
        let (more, fewer): (Vec<_>, Vec<_>) = (
            own.difference(&told).collect(),
            told.difference(&own).collect(),
        );
        match more.is_empty() && fewer.is_empty() {
            true => Ok(()),
            false => Err(format!("only Cairn: {more:#?}, only etcd: {fewer:#?}")),
        }
    })
    .await;
    for server in [&cairn, &etcd] {
        assert!(!server.log().contains("a secret"));
    }
}
