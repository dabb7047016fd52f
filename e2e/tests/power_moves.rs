//! Power cuts while a state moves as a whole: a snapshot that is installed, a data directory of
//! etcd's that is taken over, one that is exported. `power.rs` has those under load.
//!
//! `CAIRN_CUTS` sets how many cuts there are, a third of each kind, `CAIRN_SEED` where they come.

#![allow(clippy::unwrap_used)]

use std::{
    fs::{self, File},
    path::Path,
    time::{Duration, Instant},
};

use e2e::{
    Kind, Member, Server,
    client::{channel, eventually},
    powerfs::{Moment, PowerFs},
    process::export,
    setting,
};
use proto::etcdserverpb::{
    DefragmentRequest, HashKvRequest, HashKvResponse, PutRequest, kv_client::KvClient,
    maintenance_client::MaintenanceClient,
};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};

/// Cuts in the gate.
const CUTS: u64 = 24;
/// Cuts of one move at most; then it is let through.
const IN_A_ROW: u64 = 3;
const KEYS: usize = 40;
/// Bytes of a value: enough for several pieces and segments.
const VALUE: usize = 10_000;
/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);
/// The name of what is exported.
const EXPORTED: &str = "exported";
/// How often the log of the others is shortened before a member that was away needs a snapshot.
const SHORTENED: usize = 3;
/// What a member logs of a snapshot that came.
const SAVED: &str = "saved a received snapshot";
const SHORT: [&str; 2] = [
    "--cairn-wal-segment-bytes=65536",
    "--snapshot-catchup-entries=10",
];

/// A third of the cuts, and where they come.
fn begin(kind: &str) -> (u64, StdRng) {
    let (cuts, seed) = (setting("CAIRN_CUTS", CUTS), setting("CAIRN_SEED", 1));
    println!("{kind}: CAIRN_CUTS={cuts} CAIRN_SEED={seed}");
    (cuts.div_ceil(3), StdRng::seed_from_u64(seed))
}

/// Writes all keys anew. Returns the revision after it.
async fn write(url: &str, rng: &mut StdRng) -> i64 {
    let mut revision = 0;
    for key in 0..KEYS {
        let mut value = vec![0; VALUE];
        rng.fill_bytes(&mut value);
        let request = PutRequest {
            key: format!("k{key}").into(),
            value: value.into(),
            ..PutRequest::default()
        };
        let mut kv = KvClient::new(channel(url));
        let put = eventually("put", async || kv.put(request.clone()).await).await;
        revision = put.into_inner().header.unwrap().revision;
    }
    revision
}

async fn hash(url: &str, revision: i64) -> (u32, i64) {
    let mut client = MaintenanceClient::new(channel(url));
    let request = HashKvRequest { revision };
    let hash = eventually("hash", async || client.hash_kv(request).await).await;
    let HashKvResponse {
        hash,
        hash_revision,
        ..
    } = hash.into_inner();
    (hash, hash_revision)
}

/// Waits until the power is cut, or the member serves: whether it was cut. Then it is dead.
fn cut_or_ready(power: &mut PowerFs, server: &mut Server) -> bool {
    let began = Instant::now();
    while !power.is_cut() {
        if server.is_ready() {
            return false;
        }
        if server.ended().is_some() && !power.is_cut() {
            let log = server.log();
            // Somebody else on this machine may have had its port for a moment.
            assert!(
                log.contains("Address already in use"),
                "it ended with power on:\n{log}"
            );
            server.relaunch();
        }
        assert!(
            began.elapsed() < LIMIT,
            "neither cut nor ready:\n{}",
            server.log()
        );
        std::thread::sleep(POLL);
    }
    server.kill();
    power.power_on();
    true
}

/// Copies a folder so that a power cut takes nothing of it.
fn copy_synced(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_synced(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
            File::open(&target).unwrap().sync_all().unwrap();
        }
    }
    for folder in [to, to.parent().unwrap()] {
        File::open(folder).unwrap().sync_all().unwrap();
    }
}

/// The data of a member that was ended in order, in `folder/m`, and their hash.
async fn some_data(folder: &Path, rng: &mut StdRng) -> (u32, i64) {
    let member = Member::new(Kind::Cairn, "m");
    let mut server = member.launch(folder, &[&member], "new");
    server.wait_ready();
    let revision = write(server.url(), rng).await;
    let hash = hash(server.url(), revision).await;
    // The engine has them on the disk, so that an export has rows.
    let mut client = MaintenanceClient::new(channel(server.url()));
    let defragment = async || client.defragment(DefragmentRequest {}).await;
    eventually("defragment", defragment).await;
    assert!(server.stop().success());
    hash
}

#[tokio::test]
async fn a_takeover_survives_power_cuts() {
    let (cuts, mut rng) = begin("takeover");
    let rest = tempfile::tempdir().unwrap();
    let expected = some_data(rest.path(), &mut rng).await;
    let of_etcd = rest.path().join("of-etcd");
    assert!(export(&rest.path().join("m"), &of_etcd).status.success());
    let mut power = PowerFs::new(rng.random());
    let logs = tempfile::tempdir().unwrap();
    // What a takeover takes, so that cuts come in all of it.
    let (mut done, mut moves, mut calls) = (0, 0, 300);
    while done < cuts {
        let data = power.path().join(format!("t{moves}"));
        copy_synced(&of_etcd, &data);
        moves += 1;
        let log = logs.path().join("log");
        let before = power.calls();
        let mut server = None;
        for _ in 0..rng.random_range(1..=IN_A_ROW) {
            power.arm(Moment::Calls(rng.random_range(0..calls)));
            let server = server
                .get_or_insert_with(|| Server::launch_single(Kind::Cairn, &data, log.clone(), &[]));
            if server.ended().is_some() {
                server.relaunch();
            }
            if !cut_or_ready(&mut power, server) {
                calls = (power.calls() - before).max(50);
                break;
            }
            done += 1;
        }
        power.arm(Moment::Calls(u64::MAX));
        let mut server = server.unwrap();
        if server.ended().is_some() {
            server.restart();
        }
        assert_eq!(hash(server.url(), 0).await, expected, "takeover {moves}");
        assert!(data.join("member/snap/db.superseded").exists());
        server.kill();
        fs::remove_dir_all(&data).unwrap();
    }
    println!("{done} power cuts in {moves} takeovers, nothing lost");
}

#[tokio::test]
async fn an_export_survives_power_cuts() {
    let (cuts, mut rng) = begin("export");
    let rest = tempfile::tempdir().unwrap();
    let expected = some_data(rest.path(), &mut rng).await;
    let mut power = PowerFs::new(rng.random());
    let data = power.path().join("m");
    copy_synced(&rest.path().join("m"), &data);
    let (mut done, mut exports, mut whole, mut calls) = (0, 0, 0, 300);
    while done < cuts {
        let output = power.path().join(EXPORTED);
        exports += 1;
        for _ in 0..rng.random_range(1..=IN_A_ROW) {
            let before = power.calls();
            let moment = match rng.random_range(0..4) {
                // When it gets its name.
                0 => Moment::Name(EXPORTED, rng.random_range(0..2)),
                _ => Moment::Calls(rng.random_range(0..calls)),
            };
            power.arm(moment);
            let status = export(&data, &output).status;
            if !power.is_cut() {
                assert!(status.success());
                calls = power.calls() - before;
                break;
            }
            power.power_on();
            done += 1;
            if output.exists() {
                whole += 1;
                break;
            }
        }
        power.arm(Moment::Calls(u64::MAX));
        if !output.exists() {
            assert!(export(&data, &output).status.success());
        }
        let log = rest.path().join("log");
        let mut server = Server::launch_single(Kind::Cairn, &output, log, &[]);
        server.wait_ready();
        assert_eq!(hash(server.url(), 0).await, expected, "export {exports}");
        server.kill();
        fs::remove_dir_all(&output).unwrap();
        // Or a later cut brings it back.
        File::open(power.path()).unwrap().sync_all().unwrap();
    }
    println!("{done} power cuts in {exports} exports, {whole} of them whole after a cut");
}

#[tokio::test]
async fn an_install_survives_power_cuts() {
    let (cuts, mut rng) = begin("install");
    let rest = tempfile::tempdir().unwrap();
    let mut power = PowerFs::new(rng.random());
    let member = |name| {
        let flags = SHORT.map(str::to_owned).to_vec();
        Member::new(Kind::Cairn, name).with_flags(flags)
    };
    let members = [
        member("a"),
        member("b"),
        member("c").with_data_on(power.path()),
    ];
    let all: Vec<&Member> = members.iter().collect();
    let launch = |at: usize| members[at].launch(rest.path(), &all, "new");
    let mut others = [launch(0), launch(1)];
    let mut behind = launch(2);
    others.iter_mut().for_each(Server::wait_ready);
    behind.wait_ready();
    let shortened = |server: &Server| server.log().matches("compacted Raft logs").count();
    let (mut done, mut came, mut installs) = (0, 0, 0);
    // The log of a process begins anew with it.
    let count = |server: &Server, line: &str| server.log().matches(line).count();
    while done < cuts {
        // Durable on its own disk is what it acknowledged; the rest it gets again.
        power.cut();
        behind.kill();
        power.power_on();
        let before = others.each_ref().map(shortened);
        let mut revision = write(others[0].url(), &mut rng).await;
        let began = Instant::now();
        while others
            .iter()
            .zip(before)
            .any(|(other, before)| shortened(other) < before + SHORTENED)
        {
            assert!(began.elapsed() < LIMIT, "the log is not shortened");
            revision = write(others[0].url(), &mut rng).await;
            tokio::time::sleep(10 * POLL).await;
        }
        for _ in 0..rng.random_range(1..=IN_A_ROW) {
            // The start, the body, the log, the import, the switch.
            let moment = match rng.random_range(0..4) {
                0 => Moment::Name(".snap.db", rng.random_range(0..30)),
                1 => Moment::Name("CURRENT", rng.random_range(0..20)),
                2 => Moment::Name(".sst", rng.random_range(0..20)),
                _ => Moment::Calls(rng.random_range(0..400)),
            };
            power.arm(moment);
            behind.relaunch();
            if !cut_or_ready(&mut power, &mut behind) {
                break;
            }
            done += 1;
            came += count(&behind, SAVED);
        }
        power.arm(Moment::Calls(u64::MAX));
        if behind.ended().is_some() {
            behind.restart();
        }
        let expected = hash(others[0].url(), revision).await;
        assert_eq!(
            hash(behind.url(), revision).await,
            expected,
            "after {done} cuts"
        );
        came += count(&behind, SAVED);
        installs += count(&behind, "applied snapshot");
    }
    println!("{done} power cuts, {came} snapshots came, {installs} of them without a cut");
    assert!(came > 0, "all came by the log");
}
