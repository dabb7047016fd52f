//! A cluster that is taken down to the release before, beside real etcd; and the etcd of that release,
//! which then takes over.

#![allow(clippy::unwrap_used)]

use std::{
    process::Command,
    time::{Duration, Instant},
};

use e2e::{Kind, Server, client, process, program};
use proto::etcdserverpb::{
    DowngradeRequest, downgrade_request::DowngradeAction, maintenance_client::MaintenanceClient,
};
use tonic::transport::Channel;

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// One answer, without what differs from run to run.
async fn ask(client: &mut MaintenanceClient<Channel>, action: i32, version: &str) -> String {
    let request = DowngradeRequest {
        action,
        version: version.to_owned(),
    };
    let said = match client.downgrade(request).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            let header = answer.header.unwrap();
            assert!(header.raft_term > 0);
            let header = (header.cluster_id, header.member_id, header.revision);
            format!("{} {header:?}", answer.version)
        }
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    };
    format!("{action} {version:?}: {said}")
}

/// What a member says of versions and of the job.
async fn shown(url: &str) -> String {
    let port = url.rsplit(':').next().unwrap().parse().unwrap();
    let (_, versions) = process::page(port, "/version").unwrap();
    // What is asked later is as new at least.
    let status = client::status(url).await;
    let job = status.downgrade_info;
    format!("{} {job:?} {versions}", status.storage_version)
}

async fn wait_shown(url: &str, what: &str) -> String {
    let began = Instant::now();
    loop {
        let text = shown(url).await;
        if text.contains(what) {
            return text;
        }
        assert!(began.elapsed() < LIMIT, "{what:?} is missing: {text}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_job_is_begun_and_called_off_as_in_etcd() {
    let mut told = Vec::new();
    for kind in [Kind::Etcd, Kind::Cairn] {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(kind, folder.path(), &[]);
        let url = server.url();
        let mut client = MaintenanceClient::new(client::channel(url));
        let validate = DowngradeAction::Validate as i32;
        let enable = DowngradeAction::Enable as i32;
        let cancel = DowngradeAction::Cancel as i32;
        let mut said = vec![wait_shown(url, "\"storage\":\"3.7.0\"").await];
        for version in [
            "", "x", "3", "3.6.x", "v3.6", "3.5", "3.7", "3.8", "4.6", "3.6", "3.6.9",
        ] {
            said.push(ask(&mut client, validate, version).await);
        }
        for (action, version) in [(9, "3.6"), (cancel, ""), (enable, "3.5"), (enable, "3.6.9")] {
            said.push(ask(&mut client, action, version).await);
        }
        // Versions follow, also the store's; the members are still the old ones, so the job goes on.
        said.push(wait_shown(url, "\"storage\":\"3.6.0\"").await);
        said.push(ask(&mut client, validate, "3.5").await);
        said.push(ask(&mut client, enable, "3.6").await);
        said.push(ask(&mut client, cancel, "").await);
        said.push(wait_shown(url, "\"storage\":\"3.7.0\"").await);
        said.push(ask(&mut client, cancel, "").await);
        client::put(url, "a", "1").await;
        told.push(said);
    }
    let (etcd, cairn) = (&told[0], &told[1]);
    for (etcd, cairn) in etcd.iter().zip(cairn) {
        assert_eq!(cairn, etcd, "{told:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_etcd_before_takes_over_when_the_cluster_has_gone_down() {
    let folder = tempfile::tempdir().unwrap();
    let mut cairn = Server::start(Kind::Cairn, folder.path(), &[]);
    let url = cairn.url().to_owned();
    client::put(&url, "a", "1").await;
    wait_shown(&url, "\"etcdcluster\":\"3.7.0\"").await;
    let mut client = MaintenanceClient::new(client::channel(&url));
    ask(&mut client, DowngradeAction::Enable as i32, "3.6").await;
    wait_shown(&url, "\"etcdcluster\":\"3.6.0\"").await;
    // The job outlives a restart.
    cairn.kill();
    cairn.restart();
    let text = wait_shown(&url, "\"etcdcluster\":\"3.6.0\"").await;
    assert!(text.contains("enabled: true"), "{text}");
    client::put(&url, "b", "2").await;
    assert!(cairn.stop().success());
    let export = folder.path().join("export");
    // Named as people do who are in the folder.
    let exported = Command::new(program(Kind::Cairn))
        .args(["export", "--data-dir=data", "export"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(exported.status.success(), "{exported:?}");
    let log = folder.path().join("log36");
    // It leads, is of the release that the job goes to, and so calls it off.
    let flags = ["--downgrade-check-time=500ms"];
    let mut before = Server::launch_single(Kind::Etcd36, &export, log, &flags);
    before.wait_ready();
    for (key, value) in [("a", "1"), ("b", "2")] {
        let found = client::get(before.url(), key, false).await;
        assert_eq!(found, Some(value.to_owned()));
    }
    client::put(before.url(), "c", "3").await;
    let text = wait_shown(before.url(), "enabled: false").await;
    assert!(text.contains("\"etcdcluster\":\"3.6.0\""), "{text}");
}
