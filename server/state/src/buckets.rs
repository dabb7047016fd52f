//! The whole state as etcd has it: the rows of its buckets, byte for byte, on their way into an
//! etcd database ([`export`]) and out of one ([`import`]).

use std::fmt;

use bytes::Bytes;
use mvcc::{Direction, Engine, Family, Import, Read};
use prost::Message;
use proto::{etcdserverpb::AlarmMember, leasepb};

use crate::{
    auth,
    machine::{CLUSTER_VERSION, CONF_STATE, CONSISTENT_INDEX, DOWNGRADE, STORAGE_VERSION, TERM},
    members::{Member, Members, member_key},
    version::{self, Downgrade, Version},
};

/// etcd's buckets, in the order of their names. An etcd makes all of them when it first starts.
const BUCKETS: [Family; 10] = [
    Family::Alarm,
    Family::Auth,
    Family::AuthRoles,
    Family::AuthUsers,
    Family::Cluster,
    Family::Key,
    Family::Lease,
    Family::Members,
    Family::MembersRemoved,
    Family::Meta,
];
/// A bucket of etcd's own tests, which no server reads.
const TEST_BUCKET: &[u8] = b"test";
/// Bytes that one cursor passes over. A cursor keeps what it stands on in memory and its files on
/// disk, also when compactions have made others of them.
const SEAT_BYTES: usize = 64 << 20;
/// Rows of `meta`, which are in memory all at once. etcd has seven.
const MAX_META_ROWS: usize = 1000;

/// Takes the rows of buckets.
pub trait BucketSink {
    /// Why it takes no more.
    type Error;

    /// The next bucket; names rise.
    ///
    /// # Errors
    /// The sink's own.
    fn bucket(&mut self, name: &str) -> Result<(), Self::Error>;

    /// The next row of the bucket; keys rise.
    ///
    /// # Errors
    /// The sink's own.
    fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), Self::Error>;
}

/// A row of a bucket, its key and its value, or why there is none.
pub type BucketRow<E> = Result<(Bytes, Bytes), E>;

/// Has buckets with rows.
pub trait BucketSource {
    /// Why it gives no more.
    type Error;

    /// The names of all buckets.
    ///
    /// # Errors
    /// The source's own.
    fn buckets(&self) -> Result<Vec<Vec<u8>>, Self::Error>;

    /// The rows of a bucket in the order of keys; none when there is no such bucket.
    ///
    /// # Errors
    /// The source's own.
    fn rows(
        &self,
        bucket: &[u8],
    ) -> Result<impl Iterator<Item = BucketRow<Self::Error>>, Self::Error>;
}

/// Why the state could not be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyError<E> {
    /// The sink or the source failed.
    Outside(E),
    /// The store failed, or a row of the source is none that etcd writes.
    Store(mvcc::Error),
    /// A bucket that no etcd known to this version has.
    Bucket(String),
    /// Written by a newer server.
    Newer {
        /// The row that says so.
        row: &'static str,
        /// The version that it names.
        version: Version,
    },
}

impl<E: fmt::Display> fmt::Display for CopyError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outside(error) => error.fmt(f),
            Self::Store(error) => error.fmt(f),
            Self::Bucket(name) => write!(
                f,
                "bucket {name:?} has rows, and this cairn knows no such bucket; run one that stands \
                 for the etcd that wrote it"
            ),
            Self::Newer { row, version } => write!(
                f,
                "the row {row} says {version}, and this server is {}: run a newer one",
                version::SERVER
            ),
        }
    }
}

impl<E: fmt::Display + fmt::Debug> std::error::Error for CopyError<E> {}

impl<E> From<mvcc::Error> for CopyError<E> {
    fn from(error: mvcc::Error) -> Self {
        Self::Store(error)
    }
}

/// Shows `sink` all of etcd's buckets with their rows, exactly as etcd would have them. Families
/// that Cairn derives, and its counters, are left out. Two exports of one snapshot are equal.
///
/// # Errors
/// The sink's, or the engine's.
pub fn export<S: Read, K: BucketSink>(
    snapshot: &S,
    sink: &mut K,
) -> Result<(), CopyError<K::Error>> {
    for family in BUCKETS {
        sink.bucket(family.name()).map_err(CopyError::Outside)?;
        let mut from = Vec::new();
        while let Some(next) = export_seat(snapshot, sink, family, &from, SEAT_BYTES)? {
            from = next;
        }
    }
    Ok(())
}

/// Shows the rows that one cursor passes over. Returns where the next one begins.
fn export_seat<S: Read, K: BucketSink>(
    snapshot: &S,
    sink: &mut K,
    family: Family,
    from: &[u8],
    limit: usize,
) -> Result<Option<Vec<u8>>, CopyError<K::Error>> {
    let scan = snapshot.scan(family, from, None, Direction::Ascending);
    let mut cursor = scan.map_err(mvcc::Error::from)?;
    let mut bytes = 0;
    while cursor.valid() {
        let (key, value) = (cursor.key(), cursor.value());
        if bytes >= limit {
            return Ok(Some(key.to_vec()));
        }
        bytes += key.len() + value.len();
        if !mvcc::is_own(family, key) {
            sink.row(key, value).map_err(CopyError::Outside)?;
        }
        cursor.next().map_err(mvcc::Error::from)?;
    }
    Ok(None)
}

/// Fills an empty engine with the rows of etcd's buckets, derives what Cairn has besides, and
/// makes it durable. The revision is that of the last row or compaction; the size is that of the
/// rows, as after a defragmentation.
///
/// `meta` and `lease` are read before `key`. Memory is bounded, whatever the source holds. After
/// an error, or a crash before the end, the engine is of no use and cannot be opened as a state:
/// throw it away.
///
/// # Errors
/// The source's, the engine's, or a row that etcd does not write, with what to do.
pub fn import<E: Engine, B: BucketSource>(
    engine: &E,
    source: &B,
) -> Result<(), CopyError<B::Error>> {
    for name in source.buckets().map_err(CopyError::Outside)? {
        let known = BUCKETS
            .iter()
            .any(|family| family.name().as_bytes() == name);
        if known || name == TEST_BUCKET {
            continue;
        }
        let mut rows = source.rows(&name).map_err(CopyError::Outside)?;
        if rows.next().is_some() {
            let name = String::from_utf8_lossy(&name).into_owned();
            return Err(CopyError::Bucket(name));
        }
    }
    let mut meta = Vec::new();
    for row in source.rows(b"meta").map_err(CopyError::Outside)? {
        let (key, value) = row.map_err(CopyError::Outside)?;
        check(Family::Meta, &key, &value)?;
        meta.push((key, value));
        if meta.len() > MAX_META_ROWS {
            let (key, _) = meta.swap_remove(0);
            return Err(foreign(Family::Meta, &key, "its bucket has too many rows"));
        }
    }
    let mut import = Import::begin(engine, meta)?;
    let small = BUCKETS.into_iter();
    for family in small.filter(|family| !matches!(family, Family::Meta | Family::Key)) {
        let rows = source.rows(family.name().as_bytes());
        for row in rows.map_err(CopyError::Outside)? {
            let (key, value) = row.map_err(CopyError::Outside)?;
            check(family, &key, &value)?;
            import.row(family, key, value)?;
        }
    }
    for row in source.rows(b"key").map_err(CopyError::Outside)? {
        let (key, value) = row.map_err(CopyError::Outside)?;
        import.version(key, value)?;
    }
    Ok(import.finish()?)
}

/// Looks whether a row of a small bucket is one that a start could read.
fn check<E>(family: Family, key: &Bytes, value: &Bytes) -> Result<(), CopyError<E>> {
    let wrong = |reason: &str| Err(foreign(family, key, reason));
    match family {
        Family::Meta if [CONSISTENT_INDEX, TERM].contains(&&key[..]) => match value.len() {
            8 => Ok(()),
            _ => wrong("its value is no number of 8 bytes"),
        },
        Family::Meta if key == CONF_STATE => match is_json(value) {
            true => Ok(()),
            false => wrong("its value is no JSON"),
        },
        Family::Meta if key == STORAGE_VERSION => check_version(
            family,
            key,
            value,
            "storageVersion",
            version::SERVER.release(),
        ),
        Family::Cluster if key == CLUSTER_VERSION => {
            check_version(family, key, value, "clusterVersion", version::SERVER)
        }
        Family::Cluster if key == DOWNGRADE => match serde_json::from_slice::<Downgrade>(value) {
            Ok(_) => Ok(()),
            Err(error) => wrong(&error.to_string()),
        },
        Family::Lease => match leasepb::Lease::decode(value.clone()) {
            Ok(lease) if lease.id.to_be_bytes()[..] == key[..] => Ok(()),
            Ok(_) => wrong("its value is of another lease"),
            Err(error) => wrong(&error.to_string()),
        },
        Family::Alarm => match AlarmMember::decode(key.clone()) {
            Ok(_) => Ok(()),
            Err(error) => wrong(&error.to_string()),
        },
        Family::Members => match serde_json::from_slice::<Member>(value) {
            Ok(member) if member_key(member.id) == key => Ok(()),
            Ok(_) => wrong("its value is of another member"),
            Err(error) => wrong(&error.to_string()),
        },
        Family::MembersRemoved => {
            let removed = Members::load([].into_iter(), [key.clone()].into_iter());
            removed.map(|_| ()).or_else(|reason| wrong(&reason))
        }
        Family::Auth | Family::AuthUsers | Family::AuthRoles => {
            auth::check_row(family, key, value).or_else(|reason| wrong(&reason))
        }
        _ => Ok(()),
    }
}

fn is_json(value: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(value).is_ok()
}

fn check_version<E>(
    family: Family,
    key: &[u8],
    value: &[u8],
    row: &'static str,
    newest: Version,
) -> Result<(), CopyError<E>> {
    let text = String::from_utf8_lossy(value);
    match text.parse::<Version>() {
        Ok(version) if version > newest => Err(CopyError::Newer { row, version }),
        Ok(_) => Ok(()),
        Err(reason) => Err(foreign(family, key, &reason)),
    }
}

fn foreign<E>(family: Family, key: &[u8], reason: &str) -> CopyError<E> {
    CopyError::Store(mvcc::Error::Foreign {
        bucket: family.name(),
        key: Bytes::copy_from_slice(key),
        reason: reason.to_owned(),
    })
}
