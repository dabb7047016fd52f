//! Our bbolt files and bbolt itself, each on what the other wrote, and the files of a real etcd.
//! `bolttool` beside this folder holds the Go side; `go.mod` pins bbolt.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::BufWriter,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bolt::{Database, Error, MAX_KEY_BYTES, PAGE_BYTES, Planner, Writer};
use e2e::{Kind, Server, client, tool};
use proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, HashKvRequest, HashKvResponse, LeaseGrantRequest,
    PutRequest, kv_client::KvClient, lease_client::LeaseClient,
    maintenance_client::MaintenanceClient,
};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use serde_json::Value;

/// Files of each kind that the tests with random rows make.
const FILES: u64 = 8;

/// Rows of all buckets.
type Content = BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>;

static BOLTTOOL: LazyLock<PathBuf> = LazyLock::new(|| tool("bolttool"));

/// Runs it on a file; the error is what bbolt said.
fn bolttool(command: &str, file: &Path, more: &[&str]) -> Result<Vec<u8>, String> {
    let mut tool = Command::new(&*BOLTTOOL);
    let output = tool.arg(command).arg(file).args(more).output().unwrap();
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// What bbolt finds in a file, after its own check of all pages.
struct Found {
    content: Content,
    page_bytes: u64,
    free_pages: u64,
}

fn read_by_bbolt(file: &Path) -> Result<Found, String> {
    let found: Value = serde_json::from_slice(&bolttool("read", file, &[])?).unwrap();
    let bytes = |value: &Value| STANDARD.decode(value.as_str().unwrap()).unwrap();
    let row = |row: &Value| (bytes(&row["key"]), bytes(&row["value"]));
    let rows = |bucket: &Value| bucket["rows"].as_array().unwrap().iter().map(row).collect();
    let buckets = found["buckets"].as_array().unwrap().iter();
    Ok(Found {
        content: buckets
            .map(|bucket| (bytes(&bucket["name"]), rows(bucket)))
            .collect(),
        page_bytes: found["page_bytes"].as_u64().unwrap(),
        free_pages: found["free_pages"].as_u64().unwrap(),
    })
}

/// What we find, after our own check.
fn read(file: &Path) -> Result<Content, Error> {
    let database = Database::open(File::open(file).unwrap())?;
    database.check()?;
    let mut content = Content::new();
    for name in database.buckets()? {
        let rows = database.rows(&name)?;
        let rows = rows.map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec())));
        content.insert(name, rows.collect::<Result<_, _>>()?);
    }
    Ok(content)
}

/// Both find the same, and it is this.
fn assert_holds(file: &Path, content: &Content) {
    let theirs = read_by_bbolt(file).unwrap();
    // Not assert_eq: nobody reads a message of megabytes.
    assert!(&theirs.content == content, "bbolt found other rows");
    assert!(&read(file).unwrap() == content, "we found other rows");
}

/// Writes what `content` holds as one of our files.
fn write(file: &Path, content: &Content) {
    let mut planner = Planner::new();
    for (name, rows) in content {
        planner.bucket(name).unwrap();
        for (key, value) in rows {
            planner.row(key, value.len()).unwrap();
        }
    }
    let plan = planner.finish().unwrap();
    let length = plan.file_bytes();
    let sink = BufWriter::new(File::create(file).unwrap());
    let mut writer = Writer::new(plan, sink).unwrap();
    for (name, rows) in content {
        writer.bucket(name).unwrap();
        for (key, value) in rows {
            writer.row(key, value).unwrap();
        }
    }
    writer.finish().unwrap();
    assert_eq!(fs::metadata(file).unwrap().len(), length);
}

/// Rows of all lengths, with keys that `bolttool change` then hits.
fn any_rows(rng: &mut StdRng, rows: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let row = |_| {
        let mut key = format!("key{:04}", rng.random_range(0..2000)).into_bytes();
        if rng.random_range(0..40) == 0 {
            key.resize(key.len() + rng.random_range(0..3000), 0);
        }
        let length = match rng.random_range(0..20) {
            0 => 0,
            1 => rng.random_range(0..20_000),
            _ => rng.random_range(0..200),
        };
        let mut value = vec![0; length];
        rng.fill_bytes(&mut value);
        (key, value)
    };
    (0..rows).map(row).collect()
}

fn any_content(seed: u64) -> Content {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut content = Content::new();
    content.insert(b"empty".to_vec(), BTreeMap::new());
    for name in ["first", "second", "third"] {
        let rows = [1, 30, 3000][rng.random_range(0..3)];
        content.insert(name.into(), any_rows(&mut rng, rows));
    }
    content
}

/// Trees of all heights: many short rows; branches of a few of the longest keys; branches that have
/// room for one key each, so that bbolt's deletes show whether one of them has only that child.
fn high_content() -> Content {
    let short = |i: u64| (i.to_be_bytes().to_vec(), vec![i as u8; 30]);
    let long = |i: u8| {
        let mut key = vec![1; MAX_KEY_BYTES];
        key[0] = i;
        (key, vec![i; 100])
    };
    let mixed = |i: usize| {
        let mut key = format!("key{i:04}").into_bytes();
        key.resize([3000, key.len()][i % 2], 0);
        (key, vec![i as u8; 400])
    };
    Content::from([
        (b"empty".to_vec(), BTreeMap::new()),
        (b"first".to_vec(), (0..40_000).map(short).collect()),
        (b"second".to_vec(), (0..60).map(long).collect()),
        (b"third".to_vec(), (0..2000).map(mixed).collect()),
    ])
}

#[test]
fn bbolt_reads_what_we_write_and_goes_on_in_it() {
    let folder = tempfile::tempdir().unwrap();
    for seed in 0..FILES {
        let file = folder.path().join(format!("{seed}.db"));
        let content = match seed {
            0 => Content::new(),
            1 => high_content(),
            seed => any_content(seed),
        };
        write(&file, &content);
        println!("seed {seed}, {} bytes", fs::metadata(&file).unwrap().len());
        assert_holds(&file, &content);
        // bbolt checks all pages after each of these transactions.
        bolttool("change", &file, &[&seed.to_string(), "25"]).unwrap();
        let changed = read_by_bbolt(&file).unwrap();
        assert_holds(&file, &changed.content);
        assert_eq!(changed.content == content, seed == 0);
        // And we write again what came of it.
        write(&file, &changed.content);
        assert_holds(&file, &changed.content);
    }
}

#[test]
fn we_read_what_bbolt_writes() {
    let folder = tempfile::tempdir().unwrap();
    for seed in 0..FILES {
        let sizes = ["1024", "4096", "16384", "65536"];
        for (page_bytes, options) in sizes.into_iter().zip([&[][..], &[], &["unsynced"], &[]]) {
            let file = folder.path().join(format!("{seed}-{page_bytes}.db"));
            let (seed, transactions) = (seed.to_string(), (seed * 6).to_string());
            let arguments = [&[&seed, &transactions, page_bytes][..], options].concat();
            bolttool("write", &file, &arguments).unwrap();
            println!("{arguments:?}");
            let theirs = read_by_bbolt(&file).unwrap();
            assert_eq!(theirs.page_bytes.to_string(), page_bytes);
            assert!(theirs.free_pages > 0, "there is nothing in the freelist");
            assert_holds(&file, &theirs.content);
        }
    }
}

/// The list of free pages is then written in another way, and takes many pages itself.
#[test]
fn we_read_a_freelist_that_is_longer_than_a_header_can_say() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("db");
    bolttool("write", &file, &["1", "10", "1024", "longfree"]).unwrap();
    let theirs = read_by_bbolt(&file).unwrap();
    assert!(theirs.free_pages > u64::from(u16::MAX));
    assert_holds(&file, &theirs.content);
}

/// etcd has none of these: their pages are checked, and their rows are not taken for others.
#[test]
fn buckets_in_buckets_are_checked_and_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("db");
    bolttool("write", &file, &["1", "10", "4096", "nested"]).unwrap();
    read_by_bbolt(&file).unwrap();
    let database = Database::open(File::open(&file).unwrap()).unwrap();
    database.check().unwrap();
    assert!(database.buckets().unwrap().contains(&b"outer".to_vec()));
    let error = database
        .rows(b"outer")
        .unwrap()
        .next()
        .unwrap()
        .unwrap_err();
    assert!(error.to_string().contains(r#""inline""#), "{error}");
}

/// The comparison would prove nothing if bbolt's side accepted anything.
#[test]
fn bbolt_refuses_damaged_files_as_we_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("db");
    let content = any_content(2);
    write(&file, &content);
    let good = fs::read(&file).unwrap();
    let both_refuse = |bytes: &[u8], says: &str| {
        fs::write(&file, bytes).unwrap();
        assert!(read_by_bbolt(&file).is_err());
        let error = read(&file).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    // Keys out of order: those of the first leaf with two or more, of the same length.
    let pages = good.chunks(PAGE_BYTES).position(|page| {
        let leaf = page[8] == 2 && u16::from_le_bytes([page[10], page[11]]) > 2;
        leaf && page[16 + 8..16 + 12] == page[32 + 8..32 + 12]
    });
    let begin = pages.unwrap() * PAGE_BYTES;
    let key = |element: usize| {
        let at = begin + 16 + 16 * element;
        let position = u32::from_le_bytes(good[at + 4..at + 8].try_into().unwrap());
        at + position as usize
    };
    let mut bytes = good.clone();
    let second = bytes[key(1)..key(1) + 7].to_vec();
    bytes[key(0)..key(0) + 7].copy_from_slice(&second);
    both_refuse(&bytes, "is not behind");
    // A page that is free and in use.
    let mut bytes = good.clone();
    bytes[2 * PAGE_BYTES + 10] = 1;
    bytes[2 * PAGE_BYTES + 16] = 3;
    both_refuse(&bytes, "page 3 is damaged: is in use and in the freelist");
    // Both meta pages.
    let mut bytes = good.clone();
    bytes[16 + 56] ^= 1;
    bytes[PAGE_BYTES + 16 + 56] ^= 1;
    both_refuse(&bytes, "checksum");
    fs::write(&file, &good).unwrap();
    assert_holds(&file, &content);
}

async fn hash(url: &str) -> HashKvResponse {
    let mut maintenance = MaintenanceClient::new(client::channel(url));
    let request = HashKvRequest { revision: 0 };
    let hash = client::eventually("hash", async || maintenance.hash_kv(request).await).await;
    hash.into_inner()
}

/// Puts, overwrites, deletes, leases and a compaction, so that the file is one that etcd worked in.
async fn fill(url: &str, leases: RangeInclusive<i64>) {
    let mut kv = KvClient::new(client::channel(url));
    let mut revision = 0;
    for i in 0..1500 {
        let value = match i % 100 {
            0 => "long".repeat(20_000),
            i => i.to_string(),
        };
        let request = PutRequest {
            key: format!("/key/{}", i % 700).into(),
            value: value.into(),
            ..PutRequest::default()
        };
        let put = kv.put(request).await.unwrap().into_inner();
        revision = put.header.unwrap().revision;
        if i % 200 == 0 {
            let request = DeleteRangeRequest {
                key: "/key/3".into(),
                range_end: "/key/4".into(),
                ..DeleteRangeRequest::default()
            };
            kv.delete_range(request).await.unwrap();
        }
    }
    let mut lease = LeaseClient::new(client::channel(url));
    for id in leases {
        let grant = LeaseGrantRequest { id, ttl: 10_000 };
        lease.lease_grant(grant).await.unwrap();
    }
    let compaction = CompactionRequest {
        revision: revision - 600,
        physical: true,
    };
    kv.compact(compaction).await.unwrap();
    client::put(url, "/last", "word").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcds_own_file_is_read_and_etcd_runs_on_ours() {
    let folder = tempfile::tempdir().unwrap();
    let mut etcd = Server::start(Kind::Etcd, folder.path(), &[]);
    fill(etcd.url(), 1..=20).await;
    let before = hash(etcd.url()).await;
    etcd.stop();

    let file = folder.path().join("data/member/snap/db");
    let content = read_by_bbolt(&file).unwrap().content;
    assert_holds(&file, &content);
    assert!(content[b"key".as_slice()].len() > 500);
    assert_eq!(content[b"lease".as_slice()].len(), 20);
    assert!(content[b"meta".as_slice()].contains_key(b"consistent_index".as_slice()));

    // The same rows in a file of ours, where etcd's was.
    let ours = folder.path().join("ours");
    write(&ours, &content);
    assert_holds(&ours, &content);
    assert!(fs::metadata(&ours).unwrap().len() <= fs::metadata(&file).unwrap().len());
    fs::rename(&ours, &file).unwrap();
    etcd.restart();
    let after = hash(etcd.url()).await;
    assert_eq!(after.hash, before.hash);
    assert_eq!(after.hash_revision, before.hash_revision);
    assert_eq!(after.compact_revision, before.compact_revision);
    let last = client::get(etcd.url(), "/last", false).await;
    assert_eq!(last.as_deref(), Some("word"));

    // And it works in there.
    fill(etcd.url(), 21..=30).await;
    let before = hash(etcd.url()).await;
    etcd.stop();
    let content = read_by_bbolt(&file).unwrap().content;
    assert_holds(&file, &content);
    etcd.restart();
    assert_eq!(hash(etcd.url()).await.hash, before.hash);
}
