//! The HTTP side of a client port beside real etcd's: the JSON gateway with its streams and
//! websockets, endpoints, browsers and hosts. The same requests go to both, good and bad ones.

#![allow(clippy::unwrap_used)]

mod http;
mod secured;

use std::time::Instant;

use e2e::{Kind, Member, Server, free_port};
use futures::{SinkExt, StreamExt};
use http::{Answer, Ask, LIMIT, comparable};
use serde_json::Value;
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

/// Both servers, with the same history and the same IDs.
struct Pair {
    servers: [Server; 2],
    _folder: tempfile::TempDir,
}

impl Pair {
    fn start(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let start = |kind, name: &str| {
            let folder = folder.path().join(name);
            std::fs::create_dir_all(&folder).unwrap();
            Server::start(kind, &folder, more)
        };
        let servers = [start(Kind::Etcd, "etcd"), start(Kind::Cairn, "cairn")];
        servers.iter().for_each(|server| decided(port(server)));
        Self {
            servers,
            _folder: folder,
        }
    }

    fn ports(&self) -> [u16; 2] {
        [port(&self.servers[0]), port(&self.servers[1])]
    }

    /// Sends a request to both and returns their answer, which must be one.
    fn ask(&self, ask: Ask<'_>) -> Answer {
        let [etcd, cairn] = self.ports().map(|port| ask.send(port).comparable());
        assert_eq!(cairn, etcd, "{ask:?}");
        cairn
    }

    /// Posts to both and returns the JSON.
    fn json(&self, path: &str, body: &str) -> Value {
        let answer = self.ask(Ask::post(path, body));
        serde_json::from_str(&answer.body).unwrap_or_else(|_| panic!("{path} {answer:?}"))
    }
}

fn port(server: &Server) -> u16 {
    server.url().rsplit_once(':').unwrap().1.parse().unwrap()
}

/// Asks again until it is answered as expected.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < LIMIT, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// Waits until a server knows its cluster's version and has noted it.
fn decided(port: u16) {
    eventually("the version is decided", || {
        let versions = Ask::of("GET", "/version").send(port).body;
        versions.contains(r#""storage":"3.7.0""#)
    });
}

/// Posts in this order.
const POSTS: &[(&str, &str)] = &[
    ("/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#),
    (
        "/v3/kv/put",
        r#"{"key":"Zm9v","value":"YmF6","prev_kv":true}"#,
    ),
    (
        "/v3/kv/put",
        r#"{"key":"Zm9vMg","value":"_-8","prevKv":true}"#,
    ),
    (
        "/v3/kv/put",
        r#"{"key":"Zm9vMg","ignore_value":true,"lease":"9"}"#,
    ),
    ("/v3/kv/put", r#"{"key":"bm9uZQ==","ignore_value":true}"#),
    ("/v3/kv/put", r#"{"value":"YmFy"}"#),
    ("/v3/kv/put", ""),
    ("/v3beta/kv/put", r#"{"key":"YmV0YQ==","value":"YmFy"}"#),
    ("/v3alpha/kv/put", r#"{"key":"YmV0YQ==","value":"YmFy"}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v"}"#),
    ("/v3/kv/range", r#"{"key":"AA==","range_end":"AA=="}"#),
    (
        "/v3/kv/range",
        r#"{"key":"AA==","range_end":"AA==","limit":"1","sort_order":"DESCEND","sort_target":"KEY"}"#,
    ),
    (
        "/v3/kv/range",
        r#"{"key":"AA==","range_end":"AA==","limit":1,"sort_order":2}"#,
    ),
    (
        "/v3/kv/range",
        r#"{"key":"AA==","range_end":"AA==","sort_order":"UP","keys_only":true}"#,
    ),
    (
        "/v3/kv/range",
        r#"{"key":"AA==","range_end":"AA==","count_only":true}"#,
    ),
    ("/v3/kv/range", r#"{"key":"Zm9v","revision":"2"}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v","revision":99}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v","sort_order":9}"#),
    (
        "/v3/kv/range",
        r#"{"key":"Zm9v","serializable":null,"unknown":{"a":[1,{"b":null}]}}"#,
    ),
    ("/v3/kv/range", "{}"),
    ("/v3/kv/range", ""),
    ("/v3/kv/range", "   \n\t"),
    ("/v3/kv/range", "{"),
    ("/v3/kv/range", "}"),
    ("/v3/kv/range", "\u{feff}{}"),
    ("/v3/kv/range", "key=Zm9v"),
    ("/v3/kv/range", "{\"key\":\"Zm9v\"} trailing"),
    ("/v3/kv/range", "{\"key\":\"Zm9v\"}{\"key\":\"bm9uZQ==\"}"),
    ("/v3/kv/range", "[]"),
    ("/v3/kv/range", "null"),
    ("/v3/kv/range", "1"),
    ("/v3/kv/range", "\"key\""),
    ("/v3/kv/range", "{\"key\" \"Zm9v\"}"),
    ("/v3/kv/range", "{\"key\":\"Zm9v\",}"),
    ("/v3/kv/range", "{'key':'Zm9v'}"),
    ("/v3/kv/range", "{\"key\":\"Zm9v\"\n \"limit\":1}"),
    ("/v3/kv/range", "{\"key\":\"foo!\"}"),
    ("/v3/kv/range", "{\"key\":\"Zm9\"}"),
    ("/v3/kv/range", "{\"key\":\"Zm9vZg=\"}"),
    ("/v3/kv/range", "{\"key\":\"Zm9\\nv\"}"),
    ("/v3/kv/range", "{\"key\":\"Zm9\nv\"}"),
    ("/v3/kv/range", "{\"key\":1}"),
    ("/v3/kv/range", "{\"key\":[1]}"),
    ("/v3/kv/range", "{\"key\":{}}"),
    ("/v3/kv/range", "{\"key\":\"Zm9v\",\"key\":\"Zm9v\"}"),
    (
        "/v3/kv/range",
        "{\"key\":\"Zm9v\",\"range_end\":\"\",\"rangeEnd\":\"\"}",
    ),
    ("/v3/kv/range", "{\"key\":\"Zm9v\",\"limit\":\"abc\"}"),
    ("/v3/kv/range", "{\"key\":\"Zm9v\",\"limit\":1.5}"),
    (
        "/v3/kv/range",
        "{\"key\":\"Zm9v\",\"limit\":1e1,\"revision\":\"2.0\"}",
    ),
    (
        "/v3/kv/range",
        "{\"key\":\"Zm9v\",\"limit\":99999999999999999999}",
    ),
    (
        "/v3/kv/range",
        "{\"key\":\"Zm9v\",\"serializable\":\"true\"}",
    ),
    ("/v3/kv/range", "{\"key\":\"Zm9v\",\"sort_order\":\"\"}"),
    ("/v3/kv/range", "{\n  \"é\": 1,\n  \"limit\": true}"),
    ("/v3/kv/range", "{\"x\":\"\\ud800\"}"),
    ("/v3/kv/range", "{\"\\u006bey\":\"Zm\\u0039v\"}"),
    ("/v3/kv/range", "{\"key\":\"Zm9v\",\"x\":tru}"),
    ("/v3/kv/range", "{\"key\":\"Zm9v\",\"x\":-}"),
    ("/v3/kv/range", "{\"key\":\"Zm9v\",\"x\":01}"),
    ("/v3/kv/range", "\u{1}"),
    ("/v3/kv/range", "é"),
    (
        "/v3/kv/txn",
        r#"{"compare":[{"target":"VERSION","key":"Zm9v","result":"GREATER","version":"0"}],
            "success":[{"request_range":{"key":"Zm9v"}},{"requestPut":{"key":"Zm9v","value":""}},
            {"request_delete_range":{"key":"Zm9vMg==","prev_kv":true}},{"request_txn":{}}],
            "failure":[{"request_range":{"key":"Zm9v"}}]}"#,
    ),
    (
        "/v3/kv/txn",
        r#"{"compare":[{"target":"CREATE","key":"Zm9v","createRevision":"0"}],
            "success":[{"request_put":{"key":"Zm9v"}}],"failure":[{"request_range":{"key":"Zm9v"}}]}"#,
    ),
    (
        "/v3/kv/txn",
        r#"{"compare":[{"target":"VALUE","key":"Zm9v","value":"","version":"1"}]}"#,
    ),
    ("/v3/kv/txn", r#"{"compare":{}}"#),
    ("/v3/kv/txn", r#"{"compare":[null]}"#),
    ("/v3/kv/txn", r#"{"success":[{}]}"#),
    (
        "/v3/kv/txn",
        r#"{"success":[{"request_put":{"key":"YQ=="}},{"request_put":{"key":"YQ=="}}]}"#,
    ),
    ("/v3/kv/txn", "{}"),
    ("/v3/kv/deleterange", r#"{"key":"YmV0YQ==","prev_kv":true}"#),
    ("/v3/kv/deleterange", r#"{"key":"YmV0YQ=="}"#),
    ("/v3/kv/deleterange", "{}"),
    ("/v3/kv/compaction", r#"{"revision":"3","physical":true}"#),
    ("/v3/kv/compaction", r#"{"revision":"3"}"#),
    ("/v3/kv/compaction", r#"{"revision":"300"}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v","revision":"2"}"#),
    ("/v3/lease/grant", r#"{"TTL":"600","ID":"77"}"#),
    ("/v3/lease/grant", r#"{"TTL":"600","ID":77}"#),
    ("/v3/lease/grant", r#"{"TTL":9000000001}"#),
    ("/v3/kv/put", r#"{"key":"bGVhc2Vk","lease":"77"}"#),
    ("/v3/lease/leases", "{}"),
    ("/v3/kv/lease/leases", ""),
    ("/v3/lease/timetolive", r#"{"ID":"78","keys":true}"#),
    ("/v3/kv/lease/timetolive", r#"{"ID":"78"}"#),
    ("/v3/lease/keepalive", r#"{"ID":"77"}{"ID":"78"}"#),
    ("/v3/lease/keepalive", ""),
    ("/v3/kv/lease/revoke", r#"{"ID":"77"}"#),
    ("/v3/lease/revoke", r#"{"ID":"77"}"#),
    ("/v3/cluster/member/list", "{}"),
    ("/v3/cluster/member/list", r#"{"linearizable":true}"#),
    ("/v3/cluster/member/add", r#"{"peerURLs":["nonsense"]}"#),
    ("/v3/cluster/member/add", r#"{"peerURLs":[null]}"#),
    ("/v3/cluster/member/remove", r#"{"ID":"5"}"#),
    (
        "/v3/cluster/member/update",
        r#"{"ID":"5","peerURLs":["http://127.0.0.1:3"]}"#,
    ),
    (
        "/v3/cluster/member/promote",
        r#"{"ID":"18446744073709551615"}"#,
    ),
    ("/v3/cluster/member/promote", r#"{"ID":"-1"}"#),
    ("/v3/maintenance/alarm", "{}"),
    (
        "/v3/maintenance/alarm",
        r#"{"action":"GET","alarm":"NOSPACE"}"#,
    ),
    (
        "/v3/maintenance/alarm",
        r#"{"action":1,"memberID":"5","alarm":1}"#,
    ),
    (
        "/v3/maintenance/alarm",
        r#"{"action":"DEACTIVATE","memberID":"5","alarm":"NOSPACE"}"#,
    ),
    ("/v3/maintenance/hashkv", r#"{"revision":"400"}"#),
    ("/v3/maintenance/transfer-leadership", r#"{"targetID":"5"}"#),
    ("/v3/maintenance/defragment", "{}"),
    ("/v3/auth/status", "{}"),
    ("/v3/auth/enable", "{}"),
    ("/v3/auth/disable", "{}"),
    ("/v3/auth/authenticate", r#"{"name":"a","password":"b"}"#),
    ("/v3/auth/user/list", ""),
    ("/v3/auth/user/get", r#"{"name":"nobody"}"#),
    (
        "/v3/auth/user/add",
        r#"{"name":"<&>\" é\u0001","password":"p"}"#,
    ),
    ("/v3/auth/user/list", "{}"),
    (
        "/v3/auth/user/changepw",
        r#"{"name":"nobody","password":"p"}"#,
    ),
    ("/v3/auth/user/delete", r#"{"name":"nobody"}"#),
    ("/v3/auth/role/add", r#"{"name":"r"}"#),
    (
        "/v3/auth/role/grant",
        r#"{"name":"r","perm":{"permType":"READWRITE","key":"YQ==","range_end":"Yg=="}}"#,
    ),
    ("/v3/auth/role/get", r#"{"role":"r"}"#),
    (
        "/v3/auth/role/revoke",
        r#"{"role":"r","key":"YQ==","range_end":"Yg=="}"#,
    ),
    ("/v3/auth/role/list", "{}"),
    ("/v3/auth/role/delete", r#"{"role":"r"}"#),
    ("/v3/auth/user/grant", r#"{"user":"nobody","role":"r"}"#),
    ("/v3/auth/user/revoke", r#"{"name":"nobody","role":"r"}"#),
    ("/v3", ""),
    ("/v3/", "{}"),
    ("/v3/kv", "{}"),
    ("/v3/kv/range/", r#"{"key":"Zm9v"}"#),
    ("/v3/kv/nothing", "{}"),
    ("//v3/kv/range", "{}"),
    ("/v3//kv/./put/../range?a=b", "{}"),
    ("/v3/kv/range?key=Zm9v", r#"{"key":"Zm9v"}"#),
    ("/nothing", "{}"),
];

#[test]
fn requests_are_answered_as_etcd_answers_them() {
    let pair = Pair::start(&[]);
    for (path, body) in POSTS {
        pair.ask(Ask::post(path, body));
    }
    for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        for path in [
            "/v3/kv/range",
            "/v3/watch",
            "/v3/nothing",
            "/v3",
            "//v3/kv/range",
        ] {
            pair.ask(Ask::of(method, path));
        }
    }
    let range = Ask::post("/v3/kv/range", r#"{"key":"Zm9v"}"#);
    let headers: &[&[(&str, &str)]] = &[
        &[("Content-Type", "application/json")],
        &[("Content-Type", "text/plain"), ("Accept", "text/html")],
        &[("Content-Type", "application/x-www-form-urlencoded")],
        &[("Authorization", "nonsense.1")],
        &[("Authorization", "Bearer nonsense.1")],
        &[("Origin", "http://a.example:80"), ("Cookie", "token=a")],
        &[("Grpc-Metadata-hasleader", "true")],
        &[("Grpc-Metadata-Content-Type", "text/plain")],
        &[("Grpc-Timeout", "10S")],
        &[("Grpc-Timeout", "nonsense")],
        &[("Host", "else.example")],
    ];
    for headers in headers {
        pair.ask(range.with(headers));
    }
}

#[test]
fn what_differs_by_itself_has_the_same_fields() {
    let pair = Pair::start(&[]);
    pair.json("/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#);
    for (path, body) in [
        ("/v3/maintenance/status", "{}"),
        ("/v3/lease/grant", r#"{"TTL":600}"#),
    ] {
        let [etcd, cairn] = pair.ports().map(|port| {
            let answer = Ask::post(path, body).send(port);
            assert_eq!(answer.status, 200, "{path} {answer:?}");
            let json: Value = serde_json::from_str(&answer.body).unwrap();
            shape(&json)
        });
        assert_eq!(cairn, etcd, "{path}");
    }
    pair.json("/v3/maintenance/hashkv", "{}");
}

/// Names and types in the order in which they come.
fn shape(json: &Value) -> String {
    match json {
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(name, json)| format!("{name}:{}", shape(json)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
        }
        Value::Array(values) => format!("[{}]", values.first().map(shape).unwrap_or_default()),
        Value::String(_) => "string".to_owned(),
        Value::Number(_) => "number".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Null => "null".to_owned(),
    }
}

#[test]
fn a_token_in_the_header_makes_a_user() {
    let pair = Pair::start(&[]);
    for (path, body) in [
        ("/v3/auth/user/add", r#"{"name":"root","password":"r"}"#),
        ("/v3/auth/user/add", r#"{"name":"ann","password":"a"}"#),
        ("/v3/auth/role/add", r#"{"name":"reader"}"#),
        (
            "/v3/auth/role/grant",
            r#"{"name":"reader","perm":{"key":"Zm9v"}}"#,
        ),
        ("/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#),
        ("/v3/auth/user/grant", r#"{"user":"ann","role":"reader"}"#),
        ("/v3/auth/enable", "{}"),
    ] {
        assert_eq!(pair.ask(Ask::post(path, body)).status, 200, "{path} {body}");
    }
    let denied = pair.ask(Ask::post(
        "/v3/auth/authenticate",
        r#"{"name":"ann","password":"x"}"#,
    ));
    assert_eq!(denied.status, 400);
    let tokens = |body: &str| {
        pair.ports().map(|port| {
            let answer = Ask::post("/v3/auth/authenticate", body).send(port);
            assert_eq!(answer.status, 200, "{answer:?}");
            let json: Value = serde_json::from_str(&answer.body).unwrap();
            json["token"].as_str().unwrap().to_owned()
        })
    };
    let ann = tokens(r#"{"name":"ann","password":"a"}"#);
    let root = tokens(r#"{"name":"root","password":"r"}"#);
    let with = |tokens: &[String; 2], bearer: &str, path: &str, body: &str| {
        let answers = [0, 1].map(|at| {
            let token = format!("{bearer}{}", tokens[at]);
            let headers = [("Authorization", token.as_str())];
            let answer = Ask::post(path, body).with(&headers).send(pair.ports()[at]);
            answer.comparable()
        });
        let [etcd, cairn] = answers;
        assert_eq!(cairn, etcd, "{path} {body}");
        cairn.status
    };
    let bad = ["nonsense.1".to_owned(), "nonsense.1".to_owned()];
    let range = ("/v3/kv/range", r#"{"key":"Zm9v"}"#);
    assert_eq!(with(&ann, "", range.0, range.1), 200);
    assert_eq!(with(&ann, "Bearer ", range.0, range.1), 200);
    assert_eq!(with(&ann, "", "/v3/kv/put", r#"{"key":"Zm9v"}"#), 403);
    assert_eq!(with(&root, "", "/v3/kv/put", r#"{"key":"Zm9v"}"#), 200);
    assert_eq!(with(&bad, "", range.0, range.1), 401);
    assert_eq!(with(&bad, "Bearer ", "/v3/auth/user/list", "{}"), 401);
    assert_eq!(pair.ask(Ask::post(range.0, range.1)).status, 400);
    assert_eq!(pair.ask(Ask::post("/v3/auth/user/list", "{}")).status, 400);
    // A watch that may not be is told within the stream.
    for tokens in [&ann, &bad] {
        let lines = [0, 1].map(|at| {
            let headers = [("Authorization", tokens[at].as_str())];
            let watch = r#"{"create_request":{"key":"YmFy"}}"#;
            let ask = Ask::post("/v3/watch", watch).with(&headers);
            let mut stream = ask.open(pair.ports()[at]);
            assert_eq!(stream.status, 200);
            comparable(&stream.line().unwrap())
        });
        assert_eq!(lines[1], lines[0]);
        assert!(lines[1].contains("cancel_reason"), "{}", lines[1]);
    }
    // A changed password takes the tokens; who asks again, as APISIX does, goes on.
    let change = r#"{"name":"ann","password":"b"}"#;
    assert_eq!(with(&root, "", "/v3/auth/user/changepw", change), 200);
    assert_eq!(with(&ann, "", range.0, range.1), 401);
    let root = tokens(r#"{"name":"root","password":"r"}"#);
    let ann = tokens(change);
    assert_eq!(with(&ann, "", range.0, range.1), 200);
    assert_eq!(with(&root, "", "/v3/auth/disable", "{}"), 200);
}

#[test]
fn streams_are_lines_as_they_come() {
    let pair = Pair::start(&["--watch-progress-notify-interval=1s"]);
    pair.json("/v3/kv/put", r#"{"key":"Zm9v","value":"b2xk"}"#);
    let create = r#"{"create_request":{"key":"Zm9v","range_end":"Zm9w","start_revision":"2",
        "prev_kv":true,"filters":["NODELETE"]}}"#;
    let mut watches = pair
        .ports()
        .map(|port| Ask::post("/v3/watch", create).open(port));
    let mut next = |what: &str| {
        let [etcd, cairn] = &mut watches;
        let (etcd, cairn) = (etcd.line().unwrap(), cairn.line().unwrap());
        assert_eq!(comparable(&cairn), comparable(&etcd), "{what}");
        cairn
    };
    assert!(next("created").contains("\"created\":true"));
    assert!(next("history").contains("b2xk"));
    // Each line comes when its event does, however long the stream goes on.
    for value in ["MQ==", "Mg==", "PA=="] {
        let put = format!(r#"{{"key":"Zm9v","value":"{value}"}}"#);
        pair.json("/v3/kv/put", &put);
        assert!(next(value).contains(value));
    }
    pair.json("/v3/kv/deleterange", r#"{"key":"Zm9v"}"#);
    pair.json("/v3/kv/put", r#"{"key":"Zm9vMg==","value":"bGFzdA=="}"#);
    assert!(next("after a delete").contains("bGFzdA=="));
    let heads = watches.map(|watch| {
        let Answer {
            status, headers, ..
        } = Answer {
            status: watch.status,
            headers: watch.headers,
            body: String::new(),
        }
        .comparable();
        (status, headers)
    });
    assert_eq!(heads[1], heads[0]);
    // What cannot be watched.
    pair.json("/v3/kv/compaction", r#"{"revision":"4"}"#);
    for (body, lines) in [
        (
            r#"{"create_request":{"key":"Zm9v","start_revision":"-1"}}"#,
            1,
        ),
        (r#"{"create_request":{"key":"Zm9v","range_end":"Zm8="}}"#, 1),
        (
            r#"{"create_request":{"watch_id":"7"}}{"create_request":{"watch_id":"7"}}"#,
            2,
        ),
        (r#"{"create_request":{"start_revision":"2"}}"#, 2),
        (
            r#"{"create_request":{}} {"cancel_request":{"watch_id":"0"}}"#,
            2,
        ),
        (
            r#"{"create_request":{"key":"eA=="}} {"progress_request":{}}"#,
            2,
        ),
        (
            r#"{"create_request":{"key":"eA==","progress_notify":true}}"#,
            2,
        ),
    ] {
        let said = pair.ports().map(|port| {
            let mut stream = Ask::post("/v3/watch", body).open(port);
            let lines = (0..lines).map(|_| comparable(&stream.line().unwrap()));
            lines.collect::<Vec<_>>()
        });
        assert_eq!(said[1], said[0], "{body}");
    }
}

/// Only Cairn: etcd answers a body in pieces over HTTP/1.1 when it is at its end.
#[test]
fn a_stream_takes_requests_while_it_answers() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Kind::Cairn, folder.path(), &[]);
    let port = port(&server);
    Ask::post("/v3/lease/grant", r#"{"TTL":600,"ID":5}"#).send(port);
    let mut renewals = Ask::post("/v3/lease/keepalive", "").begin(port);
    renewals.send("{\"ID\":");
    renewals.send("5}");
    let mut answers = renewals.answer();
    assert!(answers.line().unwrap().contains("\"TTL\":\"600\""));
    renewals.send("{\"ID\":6}");
    assert!(answers.line().unwrap().contains("\"ID\":\"6\""));
    // What cannot be read ends it with a word.
    renewals.send("nonsense");
    let said = answers.line().unwrap();
    let expected = r#"{"error":{"code":3,"message":"Failed to decode request: invalid character 'o' in literal null (expecting 'u')"}}"#;
    assert_eq!(said, expected);
    assert_eq!(answers.line(), None);
    // Likewise before anything was answered, where etcd never answers.
    let answer = Ask::post("/v3/watch", "{\"create_request\":{\"key\":1}}").send(port);
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(
        answer.body.contains("invalid value for bytes field key: 1"),
        "{answer:?}"
    );
}

#[test]
fn a_stream_ends_with_its_client() {
    let pair = Pair::start(&[]);
    for port in pair.ports() {
        let streams = |count: u32| {
            let metrics = Ask::of("GET", "/metrics").send(port).body;
            let line = format!("\netcd_debugging_mvcc_watcher_total {count}\n");
            metrics.contains(&line)
        };
        let mut watch = Ask::post("/v3/watch", r#"{"create_request":{"key":"Zm9v"}}"#).open(port);
        watch.line().unwrap();
        eventually("the watcher is there", || streams(1));
        drop(watch);
        eventually("the watcher is gone", || streams(0));
    }
}

type Socket =
    tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

/// The next message that is text; `None` when the socket is closed.
async fn text(socket: &mut Socket) -> Option<String> {
    loop {
        let next = tokio::time::timeout(LIMIT, socket.next()).await.unwrap();
        match next {
            Some(Ok(Message::Text(text))) => return Some(text.to_string()),
            Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
            Some(Ok(_)) => {}
        }
    }
}

async fn open_socket(port: u16, path: &str) -> Socket {
    let url = format!("ws://127.0.0.1:{port}{path}");
    let mut request = url.into_client_request().unwrap();
    let protocols = "Bearer, nonsense.1".parse().unwrap();
    let name = "sec-websocket-protocol";
    request.headers_mut().insert(name, protocols);
    let (socket, answer) = tokio_tungstenite::connect_async(request).await.unwrap();
    assert_eq!(answer.headers()[name], "Bearer");
    socket
}

#[test]
fn websockets_carry_streams() {
    let pair = Pair::start(&[]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut sockets = Vec::new();
        for port in pair.ports() {
            sockets.push(open_socket(port, "/v3/watch").await);
        }
        let script = [
            (r#"{"create_request":{"key":"Zm9v"}}"#, 1),
            (r#"{"create_request":{"key":"YmFy","watch_id":"5"}}"#, 1),
            ("put Zm9v", 1),
            ("put YmFy", 1),
            (r#"{"progress_request":{}}"#, 1),
            (r#"{"cancel_request":{"watch_id":"5"}}"#, 1),
            ("put Zm9v", 1),
        ];
        for (step, answers) in script {
            match step.strip_prefix("put ") {
                Some(key) => {
                    let body = format!(r#"{{"key":"{key}","value":"MQ=="}}"#);
                    let pair = &pair;
                    tokio::task::block_in_place(|| pair.json("/v3/kv/put", &body));
                }
                None => {
                    for socket in &mut sockets {
                        socket.send(Message::text(step)).await.unwrap();
                    }
                }
            }
            for _ in 0..answers {
                let mut lines = Vec::new();
                for socket in &mut sockets {
                    lines.push(comparable(&text(socket).await.unwrap()));
                }
                assert_eq!(lines[1], lines[0], "{step}");
            }
        }
        for mut socket in sockets {
            socket.close(None).await.unwrap();
        }
        for port in pair.ports() {
            // The watchers end with their socket.
            tokio::task::block_in_place(|| {
                eventually("the watchers are gone", || {
                    let metrics = Ask::of("GET", "/metrics").send(port).body;
                    metrics.contains("\netcd_debugging_mvcc_watcher_total 0\n")
                });
            });
        }
    });
}

#[test]
fn a_snapshot_is_lines_of_blobs() {
    let pair = Pair::start(&[]);
    for port in pair.ports() {
        let mut stream = Ask::post("/v3/maintenance/snapshot", "{}").open(port);
        assert_eq!(stream.status, 200);
        let (mut bytes, mut last) = (0, String::new());
        while let Some(line) = stream.line() {
            let json: Value = serde_json::from_str(&line).unwrap();
            let blob = json["result"]["blob"].as_str().unwrap_or_default();
            bytes += blob.len() / 4 * 3;
            last = blob.to_owned();
        }
        // The last one is the hash of 32 bytes.
        assert_eq!(last.len(), 44, "{port}");
        assert!(bytes > 16 << 10, "{port}: {bytes}");
    }
}

#[test]
fn endpoints_are_as_etcds() {
    let pair = Pair::start(&[]);
    let compare = |method: &str, path: &str| {
        let [etcd, cairn] = pair.ports().map(|port| {
            let mut answer = Ask::of(method, path).send(port).comparable();
            // etcd runs its checks in any order.
            let mut lines: Vec<&str> = answer.body.split_inclusive('\n').collect();
            lines.sort_unstable();
            answer.body = lines.concat();
            answer
        });
        assert_eq!(cairn, etcd, "{method} {path}");
        cairn.status
    };
    let look = || {
        let mut found = Vec::new();
        for path in [
            "/health",
            "/health?serializable=true",
            "/health?exclude=NOSPACE",
            "/health?exclude=NOSPACE&exclude=CORRUPT&exclude=",
            "/livez",
            "/livez?verbose",
            "/livez?exclude=serializable_read&verbose",
            "/readyz",
            "/readyz?verbose",
            "/readyz?verbose=false&exclude=data_corruption&exclude=nonsense",
            "/livez/serializable_read",
            "/readyz/data_corruption",
            "/readyz/data_corruption?verbose&exclude=data_corruption",
            "/readyz/linearizable_read?verbose",
            "/readyz/non_learner",
            "/readyz/nothing",
            "/livez/non_learner",
            "/livez/",
        ] {
            found.push(compare("GET", path));
        }
        found
    };
    assert!(look().iter().all(|status| [200, 404].contains(status)));
    for path in [
        "/health",
        "/livez",
        "/readyz",
        "/readyz/non_learner",
        "/version",
        "/debug/vars",
    ] {
        for method in ["POST", "HEAD", "PUT", "OPTIONS"] {
            compare(method, path);
        }
    }
    for path in [
        "/",
        "/nothing",
        "/version",
        "/v2/keys",
        "/config/local/log",
        "//version?a=b",
    ] {
        compare("GET", path);
    }
    for alarm in ["NOSPACE", "CORRUPT"] {
        let raise = format!(r#"{{"action":"ACTIVATE","memberID":"5","alarm":"{alarm}"}}"#);
        let lower = raise.replace("ACTIVATE", "DEACTIVATE");
        pair.json("/v3/maintenance/alarm", &raise);
        assert!(look().contains(&503), "{alarm}");
        pair.json("/v3/maintenance/alarm", &lower);
        assert!(!look().contains(&503), "{alarm}");
    }
}

#[test]
fn without_a_leader_probes_say_what_etcds_say() {
    let folder = tempfile::tempdir().unwrap();
    let said = [Kind::Etcd, Kind::Cairn].map(|kind| {
        let folder = folder.path().join(format!("{kind:?}"));
        std::fs::create_dir_all(&folder).unwrap();
        let members = [Member::new(kind, "a"), Member::new(kind, "b")];
        let all = [&members[0], &members[1]];
        let mut servers = all.map(|member| member.launch(&folder, &all, "new"));
        servers.iter_mut().for_each(Server::wait_ready);
        servers[1].kill();
        let port = port(&servers[0]);
        let ask = |path: &str| Ask::of("GET", path).send(port).comparable();
        eventually("the leader is gone", || ask("/health").status == 503);
        eventually("it says why", || ask("/health").body.contains("NO LEADER"));
        let paths = [
            "/health",
            "/health?serializable=true",
            "/livez",
            "/readyz?exclude=linearizable_read&verbose",
            "/readyz/serializable_read",
            "/readyz/linearizable_read",
        ];
        paths.map(|path| {
            let mut answer = ask(path);
            let mut lines: Vec<&str> = answer.body.split_inclusive('\n').collect();
            lines.sort_unstable();
            answer.body = lines.concat();
            (path, answer)
        })
    });
    assert_eq!(said[1], said[0]);
}

#[test]
fn the_variables_are_there() {
    let pair = Pair::start(&[]);
    let [etcd, cairn] = pair.ports().map(|port| {
        let answer = Ask::of("GET", "/debug/vars").send(port).comparable();
        assert_eq!(answer.status, 200);
        let json: Value = serde_json::from_str(&answer.body).unwrap();
        (answer.headers, json)
    });
    assert_eq!(cairn.0, etcd.0);
    let names =
        |json: &Value| -> Vec<String> { json.as_object().unwrap().keys().cloned().collect() };
    assert_eq!(names(&cairn.1), names(&etcd.1));
    assert!(cairn.1["memstats"]["Sys"].as_u64().unwrap() > 1 << 20);
    for name in ["id", "lead", "raftState"] {
        let of = |json: &Value| json["raft.status"][name].clone();
        assert_eq!(of(&cairn.1), of(&etcd.1), "{name}");
    }
}

#[test]
fn a_cpu_profile_can_be_taken() {
    let pair = Pair::start(&["--enable-pprof"]);
    let [_, port] = pair.ports();
    pair.ask(Ask::of("GET", "/debug/pprof/nothing"));
    let work = std::thread::spawn(move || {
        for _ in 0..300 {
            Ask::post("/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#).send(port);
        }
    });
    let (headers, profile) = Ask::of("GET", "/debug/pprof/profile?seconds=2")
        .open(port)
        .bytes();
    work.join().unwrap();
    assert_eq!(headers["content-type"], "application/octet-stream");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("profile");
    std::fs::write(&file, profile).unwrap();
    // Go's own tool is who must be able to read it.
    let said = std::process::Command::new("go")
        .args(["tool", "pprof", "-top", "-nodecount=500"])
        .arg(&file)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success(), "{said:?}");
    assert!(
        text.contains("Type: cpu") && text.contains("Duration: 2s"),
        "{text}"
    );
    // Which functions were met depends on how busy the machine is.
    assert!(text.contains("flat%"), "{text}");
}

#[test]
fn pages_and_hosts_are_let_in_as_etcd_does() {
    let pair = Pair::start(&[
        "--cors=http://a.example:80,https://b.example:443",
        "--host-whitelist=a.example,127.0.0.1",
    ]);
    for (origin, host) in [
        ("http://a.example:80", "127.0.0.1:2379"),
        ("https://b.example:443", "a.example"),
        ("http://c.example:80", "a.example:80"),
        ("", "127.0.0.1"),
        ("http://a.example:80", "b.example"),
        ("http://a.example:80", "localhost:2379"),
        ("", "[::1]:2379"),
    ] {
        for (method, path) in [
            ("GET", "/version"),
            ("OPTIONS", "/v3/kv/put"),
            ("GET", "/nothing"),
            ("POST", "/v3/maintenance/alarm"),
        ] {
            let headers = [("Host", host), ("Origin", origin)];
            pair.ask(Ask::of(method, path).with(&headers));
        }
    }
}

#[test]
fn http_may_have_ports_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let mut answers = Vec::new();
    for (kind, name) in [(Kind::Etcd, "etcd"), (Kind::Cairn, "cairn")] {
        let folder = folder.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let http = free_port();
        let flag = format!("--listen-client-http-urls=http://127.0.0.1:{http}");
        let server = Server::start(kind, &folder, &[&flag]);
        // etcd says that it is ready once for each port.
        let all = |server: &Server| {
            server
                .log()
                .matches("serving client traffic insecurely")
                .count()
                == 2
        };
        eventually("both are served", || all(&server));
        decided(http);
        let put = Ask::post("/v3/kv/put", r#"{"key":"Zm9v"}"#);
        answers.push([
            put.send(http).comparable(),
            Ask::of("GET", "/version").send(http).comparable(),
        ]);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (grpc_url, http_url) = (server.url().to_owned(), format!("http://127.0.0.1:{http}"));
        runtime.block_on(async {
            assert!(e2e::client::get(&grpc_url, "foo", false).await.is_some());
            use proto::etcdserverpb::{RangeRequest, kv_client::KvClient};
            let mut kv = KvClient::new(e2e::client::channel(&http_url));
            assert!(
                kv.range(RangeRequest::default()).await.is_err(),
                "gRPC is not there"
            );
        });
    }
    assert_eq!(answers[1], answers[0]);
    // Cairn's gRPC port says that nothing is there; etcd's takes no HTTP/1.1 at all.
    let folder = folder.path().join("split");
    std::fs::create_dir_all(&folder).unwrap();
    let flag = format!("--listen-client-http-urls=http://127.0.0.1:{}", free_port());
    let server = Server::start(Kind::Cairn, &folder, &[&flag]);
    let answer = Ask::post("/v3/kv/put", "{}").send(port(&server));
    assert_eq!(answer.status, 404, "{answer:?}");
}

#[test]
fn the_gateway_can_be_left_out() {
    let pair = Pair::start(&["--enable-grpc-gateway=false"]);
    for path in ["/v3/kv/range", "/v3", "/v3/nothing"] {
        pair.ask(Ask::post(path, "{}"));
    }
    pair.ask(Ask::of("GET", "/health"));
}

/// Only Cairn: etcd's gateway keeps whatever comes.
#[test]
fn a_body_has_its_bound() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Kind::Cairn, folder.path(), &["--max-request-bytes=100000"]);
    let port = port(&server);
    // Too large for a request, which the server says, and too large for the gateway.
    for (length, status, text) in [
        (200_000, 400, "etcdserver: request is too large"),
        (1_000_000, 429, "grpc: received message larger than max (75"),
        (8_000_000, 429, "bytes of JSON"),
    ] {
        let body = format!(r#"{{"key":"Zm9v","value":"{}"}}"#, "A".repeat(length));
        let answer = Ask::post("/v3/kv/put", &body).send(port);
        assert_eq!(answer.status, status, "{length} {answer:?}");
        assert!(answer.body.contains(text), "{length} {answer:?}");
    }
    // Depth as well.
    let deep = format!("{{\"x\":{}", "[".repeat(20_000));
    let answer = Ask::post("/v3/kv/put", &deep).send(port);
    assert!(answer.body.contains("exceeded max depth"), "{answer:?}");
    let deep = "{\"success\":[{\"request_txn\":".repeat(200);
    let answer = Ask::post("/v3/kv/txn", &format!("{deep}{{}}{}", "}]}".repeat(200))).send(port);
    assert_eq!(answer.status, 400, "{answer:?}");
}

/// As Patroni does it: it looks at the version, takes a lease, races for the leader's key by a
/// transaction, renews, and watches the key over REST.
#[test]
fn a_leader_race_over_rest_goes_as_with_etcd() {
    let pair = Pair::start(&[]);
    let version: Value = {
        let answer = pair.ask(Ask::of("GET", "/version"));
        serde_json::from_str(&answer.body).unwrap()
    };
    assert!(version["etcdcluster"].as_str().unwrap() > "3.4");
    pair.json("/v3/cluster/member/list", "{}");
    pair.json("/v3/lease/grant", r#"{"TTL":30,"ID":1001}"#);
    pair.json("/v3/lease/grant", r#"{"TTL":30,"ID":1002}"#);
    let race = |lease: u32, who: &str| {
        format!(
            r#"{{"compare":[{{"target":"CREATE","create_revision":0,"key":"bGVhZGVy"}}],
            "success":[{{"request_put":{{"key":"bGVhZGVy","value":"{who}","lease":"{lease}"}}}}],
            "failure":[{{"request_range":{{"key":"bGVhZGVy"}}}}]}}"#
        )
    };
    let won = pair.json("/v3/kv/txn", &race(1001, "YW5u"));
    assert_eq!(won["succeeded"], true);
    let lost = pair.json("/v3/kv/txn", &race(1002, "Ym9i"));
    assert_eq!(lost["succeeded"], Value::Null);
    let holder = &lost["responses"][0]["response_range"]["kvs"][0];
    assert_eq!(holder["value"], "YW5u");
    let revision = holder["mod_revision"].as_str().unwrap();
    let watch = format!(
        r#"{{"create_request":{{"key":"bGVhZGVy","range_end":"bGVhZGVz","start_revision":"{revision}",
        "prev_kv":true,"progress_notify":true}}}}"#
    );
    let mut watches = pair
        .ports()
        .map(|port| Ask::post("/v3/watch", &watch).open(port));
    let mut next = || {
        let lines = watches
            .each_mut()
            .map(|watch| comparable(&watch.line().unwrap()));
        assert_eq!(lines[1], lines[0]);
        lines[1].clone()
    };
    assert!(next().contains("created"));
    assert!(next().contains("YW5u"));
    let renewed = pair.ask(Ask::post("/v3/lease/keepalive", r#"{"ID":1001}"#));
    assert!(renewed.body.contains(r#""TTL":"30""#), "{renewed:?}");
    pair.json("/v3/lease/revoke", r#"{"ID":1001}"#);
    let gone = next();
    assert!(
        gone.contains(r#""type":"DELETE""#) && gone.contains("YW5u"),
        "{gone}"
    );
    assert_eq!(
        pair.json("/v3/kv/txn", &race(1002, "Ym9i"))["succeeded"],
        true
    );
    assert!(next().contains("Ym9i"));
    let expired = pair.ask(Ask::post("/v3/lease/keepalive", r#"{"ID":1001}"#));
    assert!(!expired.body.contains("TTL"), "{expired:?}");
}
