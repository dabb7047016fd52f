//! The crate `etcd-client`, as programs use it.

use std::{fs, path::Path, time::Duration};

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, Error, EventType,
    GetOptions, LeaseTimeToLiveOptions, LockOptions, ProclaimOptions, PutOptions, ResignOptions,
    SortOrder, SortTarget, TlsOptions, Txn, TxnOp, TxnOpResponse, WatchOptions,
};
use tokio::time::timeout;

use super::{APP, ROOT};

/// How long one wait may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// What it did, line by line, without anything that differs between two servers that answer alike.
#[derive(Default)]
struct Said(String);

impl Said {
    /// Notes what was found, which must be that.
    fn want(&mut self, what: &str, found: impl ToString, expected: &str) {
        let found = found.to_string();
        self.0 += &format!("{what}: {found}\n");
        assert_eq!(found, expected, "{what}; until now:\n{}", self.0);
    }

    /// Notes how a call ended, which must be that error.
    fn refused<T>(&mut self, what: &str, answer: Result<T, Error>, expected: &str) {
        match answer {
            Ok(_) => panic!("{what}: not refused; until now:\n{}", self.0),
            Err(Error::GRpcStatus(status)) => {
                let told = format!("{:?}: {}", status.code(), status.message());
                self.want(what, told, expected);
            }
            Err(error) => panic!("{what}: {error:?}"),
        }
    }
}

async fn connect(url: &str, ca: &Path, name: &str, password: &str) -> Result<Client, Error> {
    let ca = Certificate::from_pem(fs::read(ca).unwrap());
    let options = ConnectOptions::new()
        .with_user(name, password)
        .with_tls(TlsOptions::new().ca_certificate(ca))
        .with_timeout(LIMIT);
    Client::connect([url], Some(options)).await
}

/// All of it; returns what it said.
pub async fn run(url: &str, ca: &Path) -> String {
    let mut said = Said::default();
    let wrong = connect(url, ca, "app", "wrong").await;
    said.refused(
        "wrong password",
        wrong,
        "InvalidArgument: etcdserver: authentication failed, invalid user ID or password",
    );
    let mut app = connect(url, ca, "app", APP).await.unwrap();
    let mut root = connect(url, ca, "root", ROOT).await.unwrap();
    users(&mut said, &mut app, &mut root).await;
    keys(&mut said, &mut app).await;
    transactions(&mut said, &mut app).await;
    watches(&mut said, &mut app, &mut root).await;
    leases(&mut said, &mut app).await;
    locks(&mut said, &mut app).await;
    elections(&mut said, &mut app).await;
    maintenance(&mut said, &mut app, &mut root).await;
    said.0
}

async fn users(said: &mut Said, app: &mut Client, root: &mut Client) {
    let denied = "PermissionDenied: etcdserver: permission denied";
    said.refused("put", app.put("other", "1", None).await, denied);
    let all = app.get("", Some(GetOptions::new().with_all_keys())).await;
    said.refused("all", all, denied);
    said.refused("list", app.user_list().await, denied);
    let users = root.user_list().await.unwrap();
    said.want("users", users.users().join(" "), "app root");
}

async fn below(app: &mut Client, prefix: &str, options: GetOptions) -> String {
    let found = app.get(prefix, Some(options.with_prefix())).await.unwrap();
    let pair = |kv: &etcd_client::KeyValue| {
        format!("{}={};", kv.key_str().unwrap(), kv.value_str().unwrap())
    };
    found.kvs().iter().map(pair).collect()
}

async fn keys(said: &mut Said, app: &mut Client) {
    for n in 0..3 {
        let key = format!("app/k/{n}");
        app.put(key, (n * n).to_string(), None).await.unwrap();
    }
    let previous = Some(PutOptions::new().with_prev_key());
    let put = app.put("app/k/0", "zero", previous).await.unwrap();
    let before = put.prev_key().unwrap().value_str().unwrap();
    said.want("before", before, "0");
    let down = GetOptions::new().with_sort(SortTarget::Key, SortOrder::Descend);
    said.want(
        "sorted",
        below(app, "app/k/", down).await,
        "app/k/2=4;app/k/1=1;app/k/0=zero;",
    );
    let all = DeleteOptions::new().with_prefix();
    let deleted = app.delete("app/k/", Some(all)).await.unwrap();
    said.want("deleted", deleted.deleted(), "3");
}

async fn transactions(said: &mut Said, app: &mut Client) {
    let create = || {
        Txn::new()
            .when([Compare::create_revision("app/t", CompareOp::Equal, 0)])
            .and_then([
                TxnOp::put("app/t", "1", None),
                TxnOp::txn(Txn::new().and_then([TxnOp::put("app/t/in", "2", None)])),
            ])
            .or_else([TxnOp::get("app/t", None)])
    };
    let first = app.txn(create()).await.unwrap();
    said.want("first", first.succeeded(), "true");
    let second = app.txn(create()).await.unwrap();
    said.want("second", second.succeeded(), "false");
    let answers = second.op_responses();
    let Some(TxnOpResponse::Get(found)) = answers.first() else {
        panic!("{answers:?}");
    };
    said.want("else", found.kvs()[0].value_str().unwrap(), "1");
    let put = || TxnOp::put("app/t", "3", None);
    said.refused(
        "twice",
        app.txn(Txn::new().and_then([put(), put()])).await,
        "InvalidArgument: etcdserver: duplicate key given in txn request",
    );
}

async fn watches(said: &mut Said, app: &mut Client, root: &mut Client) {
    let first = app.put("app/w/a", "1", None).await.unwrap();
    let first = first.header().unwrap().revision();
    app.put("app/w/a", "2", None).await.unwrap();
    app.delete("app/w/a", None).await.unwrap();
    let options = WatchOptions::new().with_prefix().with_prev_key();
    let options = options.with_start_revision(first);
    let mut stream = app.watch("app/w/", Some(options)).await.unwrap();
    let mut events = Vec::new();
    while events.len() < 4 {
        let answer = timeout(LIMIT, stream.message()).await.unwrap().unwrap();
        for event in answer.unwrap().events() {
            let value = |kv: Option<&etcd_client::KeyValue>| {
                kv.map_or(String::new(), |kv| kv.value_str().unwrap().to_owned())
            };
            let (is, was) = (value(event.kv()), value(event.prev_kv()));
            events.push(format!("{:?} {is} was {was}", event.event_type()));
            if events.len() == 3 {
                app.put("app/w/live", "now", None).await.unwrap();
            }
        }
    }
    said.want(
        "events",
        events.join(";"),
        "Put 1 was ;Put 2 was 1;Delete  was 2;Put now was ",
    );
    root.compact(first + 1, None).await.unwrap();
    let late = WatchOptions::new().with_start_revision(first);
    let mut stream = app.watch("app/w/a", Some(late)).await.unwrap();
    let compacted = loop {
        let answer = timeout(LIMIT, stream.message()).await.unwrap().unwrap();
        let answer = answer.unwrap();
        if answer.canceled() {
            break answer.compact_revision();
        }
    };
    said.want("compacted", compacted - first, "1");
}

async fn leases(said: &mut Said, app: &mut Client) {
    let id = app.lease_grant(600, None).await.unwrap().id();
    let with = |id| Some(PutOptions::new().with_lease(id));
    app.put("app/l/a", "v", with(id)).await.unwrap();
    let attached = Some(LeaseTimeToLiveOptions::new().with_keys());
    let left = app.lease_time_to_live(id, attached).await.unwrap();
    let keys = left.keys().iter().map(|key| String::from_utf8_lossy(key));
    said.want("keys", keys.collect::<String>(), "app/l/a");
    let (mut keeper, mut kept) = app.lease_keep_alive(id).await.unwrap();
    keeper.keep_alive().await.unwrap();
    let answer = timeout(LIMIT, kept.message()).await.unwrap().unwrap();
    said.want("kept", answer.unwrap().ttl(), "600");
    app.lease_revoke(id).await.unwrap();
    said.want("left", below(app, "app/l/", GetOptions::new()).await, "");
    said.refused(
        "unknown",
        app.put("app/l/a", "v", with(id)).await,
        "NotFound: etcdserver: requested lease not found",
    );
    let short = app.lease_grant(1, None).await.unwrap().id();
    let put = app.put("app/l/short", "v", with(short)).await.unwrap();
    let begin = put.header().unwrap().revision() + 1;
    let options = WatchOptions::new().with_start_revision(begin);
    let mut stream = app.watch("app/l/short", Some(options)).await.unwrap();
    let expired = loop {
        let answer = timeout(LIMIT, stream.message()).await.unwrap().unwrap();
        if let Some(event) = answer.unwrap().events().first() {
            break event.event_type();
        }
    };
    said.want("expired", expired == EventType::Delete, "true");
}

async fn locks(said: &mut Said, app: &mut Client) {
    let lease = app.lease_grant(600, None).await.unwrap().id();
    let with = |lease| Some(LockOptions::new().with_lease(lease));
    let held = app.lock("app/lock", with(lease)).await.unwrap();
    let held = held.key().to_vec();
    said.want("held", held.starts_with(b"app/lock/"), "true");
    let other = app.lease_grant(600, None).await.unwrap().id();
    let mut waiting = app.lock_client();
    let waits = tokio::spawn(async move { waiting.lock("app/lock", with(other)).await });
    app.unlock(held.clone()).await.unwrap();
    let next = timeout(LIMIT, waits).await.unwrap().unwrap().unwrap();
    said.want("other", next.key() == held, "false");
    app.lease_revoke(other).await.unwrap();
    said.want("free", below(app, "app/lock/", GetOptions::new()).await, "");
}

async fn elections(said: &mut Said, app: &mut Client) {
    let lease = app.lease_grant(600, None).await.unwrap().id();
    let won = app.campaign("app/e", "first", lease).await.unwrap();
    let mut seen = app.observe("app/e").await.unwrap();
    let mut observed = async |expected: &str, said: &mut Said| {
        let answer = timeout(LIMIT, seen.message()).await.unwrap().unwrap();
        let answer = answer.unwrap();
        said.want(
            "observed",
            answer.kv().unwrap().value_str().unwrap(),
            expected,
        );
    };
    observed("first", said).await;
    let mine = won.leader().unwrap().clone();
    let options = ProclaimOptions::new().with_leader(mine.clone());
    app.proclaim("changed", Some(options)).await.unwrap();
    observed("changed", said).await;
    let leader = app.leader("app/e").await.unwrap();
    said.want(
        "leader",
        leader.kv().unwrap().value_str().unwrap(),
        "changed",
    );
    let options = ResignOptions::new().with_leader(mine);
    app.resign(Some(options)).await.unwrap();
    said.refused(
        "nobody",
        app.leader("app/e").await,
        "Unknown: election: no leader",
    );
}

async fn maintenance(said: &mut Said, app: &mut Client, root: &mut Client) {
    let members = app.member_list().await.unwrap();
    let status = root.status().await.unwrap();
    said.want("version", status.version(), "3.7.3");
    let leads = status.leader() == members.members()[0].id();
    said.want("leads", leads, "true");
    root.defragment().await.unwrap();
    let mut snapshot = root.snapshot().await.unwrap();
    let mut bytes = 0;
    while let Some(piece) = snapshot.message().await.unwrap() {
        bytes += piece.blob().len();
    }
    // Pages, and the checksum behind them.
    said.want("snapshot", bytes % 512, "32");
}
