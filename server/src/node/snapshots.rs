//! The state as a whole: as a database file of etcd's for clients and for members that are behind,
//! and what comes from other members until it has taken the place of this one's state.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use peer::{SnapshotBody, snapshot_index};
use proto::raftpb::{self, Message};
use sha2::{Digest, Sha256};
use state::Published;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tracing::info;

use super::{
    bootstrap::{make_private, sync_folder},
    raft::RaftInput,
    shared::{Shared, Snapshot},
};
use crate::database;

/// Snapshots that are sent to members at once: each reads all of the state.
const MAX_SENDS: usize = 2;
/// Entries behind a snapshot are kept for so long after its end: its receiver has to install it
/// before it asks for them. An offer that raft does not take up is held as long.
const KEPT_AFTER: Duration = Duration::from_secs(30);
/// Bytes of a database file that go out together.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces that wait for whoever reads them.
const WAITING_PIECES: usize = 4;
/// The end of the name of a database that came from another member, as in etcd.
const RECEIVED: &str = ".snap.db";
/// The end of its name while it comes.
const PART: &str = ".part";

/// A snapshot for one member.
struct Send {
    index: u64,
    /// What is sent; nothing once it is over.
    state: Option<Arc<Published<Snapshot>>>,
    /// When it was offered, then when it was opened or ended.
    at: Instant,
    opened: bool,
}

impl Send {
    fn is_over(&self) -> bool {
        self.state.is_none()
    }

    fn is_past(&self) -> bool {
        (self.is_over() || !self.opened) && self.at.elapsed() > KEPT_AFTER
    }
}

/// What is on its way to and from other members.
pub(crate) struct Snapshots {
    folder: PathBuf,
    sends: Mutex<HashMap<u64, Send>>,
    receiving: Semaphore,
}

impl Snapshots {
    /// Keeps what comes in `folder`.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            sends: Mutex::default(),
            receiving: Semaphore::new(1),
        }
    }

    /// What a member that is behind is to be sent; `None` when it has to wait.
    pub fn offer(&self, to: u64, published: Arc<Published<Snapshot>>) -> Option<raftpb::Snapshot> {
        // Its own membership must be in it, or it would be dropped there.
        published.members.get(to)?;
        let mut sends = self.sends.lock();
        sends.retain(|_, send| !send.is_past());
        let others = sends
            .iter()
            .filter(|(id, send)| **id != to && !send.is_over());
        if others.count() >= MAX_SENDS {
            return None;
        }
        let snapshot = state::raft_snapshot(&published);
        let send = Send {
            index: published.applied.index,
            state: Some(published),
            at: Instant::now(),
            opened: false,
        };
        sends.insert(to, send);
        Some(snapshot)
    }

    /// The state that belongs to a snapshot message to `to`.
    fn taken_up(&self, to: u64, index: u64) -> Option<Arc<Published<Snapshot>>> {
        let mut sends = self.sends.lock();
        let send = sends.get_mut(&to).filter(|send| send.index == index)?;
        send.at = Instant::now();
        send.opened = true;
        send.state.clone()
    }

    /// Sending to `to` is over, whichever way.
    pub fn ended(&self, to: u64) {
        if let Some(send) = self.sends.lock().get_mut(&to) {
            send.at = Instant::now();
            send.state = None;
        }
    }

    /// The first entry that receivers of snapshots will ask for.
    pub fn first_wanted(&self) -> Option<u64> {
        let mut sends = self.sends.lock();
        sends.retain(|_, send| !send.is_past());
        sends.values().map(|send| send.index + 1).min()
    }

    /// The database that came with the snapshot of `index`.
    pub fn database(&self, index: u64) -> PathBuf {
        received_path(&self.folder, index)
    }

    /// Removes what came and is in the state, or is older.
    pub fn sweep(&self, applied: u64) -> io::Result<()> {
        for (index, path) in received(&self.folder)? {
            if index <= applied {
                failpoint::SNAP_BEFORE_SWEEP.hit();
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

fn received_path(folder: &Path, index: u64) -> PathBuf {
    folder.join(format!("{index:016x}{RECEIVED}"))
}

/// The databases that came from other members, by their index.
pub(crate) fn received(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let index = name.and_then(|name| name.strip_suffix(RECEIVED));
        if let Some(Ok(index)) = index.map(|index| u64::from_str_radix(index, 16)) {
            found.push((index, path));
        }
    }
    Ok(found)
}

/// A database file that is being made from a state.
pub(crate) struct Made {
    pub bytes: u64,
    pub pieces: mpsc::Receiver<io::Result<Bytes>>,
}

/// Makes the database file of a state on a thread of its own. Its length is known when this
/// returns; it holds the state until the last piece is taken or the receiver dropped.
pub(crate) async fn make(
    shared: &Arc<Shared>,
    published: Arc<Published<Snapshot>>,
) -> io::Result<Made> {
    let shared = Arc::clone(shared);
    let (pieces, receiver) = mpsc::channel(WAITING_PIECES);
    let (planned, plan) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let began = Instant::now();
        let layout = match database::plan(published.view.snapshot()) {
            Ok(layout) => layout,
            Err(error) => {
                let _ = planned.send(Err(error));
                return;
            }
        };
        let bytes = layout.file_bytes();
        if planned.send(Ok(bytes)).is_err() {
            return;
        }
        let sink = Pieces {
            piece: BytesMut::with_capacity(PIECE_BYTES),
            pieces: pieces.clone(),
        };
        match database::write(published.view.snapshot(), layout, sink) {
            Ok(()) => {
                let took = began.elapsed();
                shared.counters.snapshots.made(took);
                info!(bytes, ?took, "made a snapshot");
            }
            // Its reader is told, or is gone.
            Err(error) => {
                let _ = pieces.blocking_send(Err(error));
            }
        }
    });
    let bytes = plan.await.map_err(io::Error::other)??;
    Ok(Made {
        bytes,
        pieces: receiver,
    })
}

/// Collects what is written into pieces.
struct Pieces {
    piece: BytesMut,
    pieces: mpsc::Sender<io::Result<Bytes>>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, BytesMut::with_capacity(PIECE_BYTES));
        failpoint::SNAP_BEFORE_SEND_PIECE.hit();
        let sent = self.pieces.blocking_send(Ok(piece.freeze()));
        sent.map_err(|_| io::Error::new(ErrorKind::BrokenPipe, "nobody reads the snapshot"))
    }
}

/// Opens the database that a snapshot message stands for.
pub(crate) async fn open(shared: &Arc<Shared>, message: &Message) -> Result<SnapshotBody, String> {
    let state = shared
        .snapshots
        .taken_up(message.to.unwrap_or_default(), snapshot_index(message))
        .ok_or("its state is no longer held")?;
    let counters = &shared.counters.snapshots;
    counters.send_began(message.to.unwrap_or_default());
    let made = make(shared, state)
        .await
        .map_err(|error| error.to_string())?;
    Ok(Box::pin(ReceiverStream::new(made.pieces)))
}

/// Takes a snapshot of another member: its database becomes durable before raft hears of it.
pub(crate) async fn receive(
    shared: &Shared,
    message: Message,
    body: SnapshotBody,
) -> Result<(), String> {
    let snapshots = &shared.snapshots;
    let counters = &shared.counters.snapshots;
    let mut counted = counters.receive(message.from.unwrap_or_default());
    let Ok(_only) = snapshots.receiving.try_acquire() else {
        return Err("another snapshot is on its way here".to_owned());
    };
    let index = snapshot_index(&message);
    if index == 0 {
        return Err("it has no index".to_owned());
    }
    let began = Instant::now();
    let Saved { bytes, sync } = save(&snapshots.folder, index, body)
        .await
        .map_err(|error| format!("could not save the snapshot: {error}"))?;
    let took = began.elapsed();
    counters.saved(took, sync);
    info!(index, bytes, ?took, "saved a received snapshot");
    let (done, taken) = oneshot::channel();
    let input = RaftInput::Received(Box::new(message), done);
    let ended = || "this member ends".to_owned();
    shared.to_raft.send(input).map_err(|_| ended())?;
    taken.await.map_err(|_| ended())??;
    counted.well = true;
    Ok(())
}

/// A database that came, durable.
struct Saved {
    bytes: u64,
    /// How long its sync took.
    sync: Duration,
}

async fn save(folder: &Path, index: u64, mut body: SnapshotBody) -> io::Result<Saved> {
    let (pieces, mut receiver) = mpsc::channel::<Bytes>(WAITING_PIECES);
    let folder = folder.to_owned();
    let saved = tokio::task::spawn_blocking(move || {
        let path = received_path(&folder, index);
        let part = path.with_extension(format!("db{PART}"));
        let saved = save_pieces(&folder, &part, &path, &mut receiver);
        if saved.is_err() && part.exists() {
            // On a disk that it filled there is room again.
            fs::remove_file(&part)?;
        }
        saved
    });
    let forwarded: io::Result<()> = async {
        while let Some(piece) = body.next().await {
            let piece = piece?;
            if !piece.is_empty() && pieces.send(piece).await.is_err() {
                // The disk's error is the better one.
                return Ok(());
            }
        }
        let _ = pieces.send(Bytes::new()).await;
        Ok(())
    }
    .await;
    drop(pieces);
    let saved = saved.await.map_err(io::Error::other)?;
    forwarded.and(saved)
}

/// Writes what comes to `part`, and renames it to `path` when all of it is durable.
fn save_pieces(
    folder: &Path,
    part: &Path,
    path: &Path,
    pieces: &mut mpsc::Receiver<Bytes>,
) -> io::Result<Saved> {
    make_private(folder).map_err(io::Error::other)?;
    let mut file = File::create(part)?;
    let mut bytes = 0;
    let mut sum = Sha256::new();
    while let Some(piece) = pieces.blocking_recv() {
        if piece.is_empty() {
            // Behind the last one: without it the body broke off. The file may lie here for a
            // while, and bbolt has no checksums of rows.
            file.write_all(&sum.finalize())?;
            failpoint::SNAP_BEFORE_BODY_SYNC.hit();
            let began = Instant::now();
            file.sync_all()?;
            let sync = began.elapsed();
            failpoint::SNAP_BEFORE_RENAME.hit();
            fs::rename(part, path)?;
            failpoint::SNAP_DB_RENAME_BEFORE_DIR_SYNC.hit();
            failpoint::SNAP_DB_DIR_SYNC_ERROR.fail()?;
            sync_folder(folder)?;
            failpoint::SNAP_AFTER_DIR_SYNC.hit();
            return Ok(Saved { bytes, sync });
        }
        bytes += piece.len() as u64;
        sum.update(&piece);
        file.write_all(&piece)?;
    }
    Err(io::Error::new(ErrorKind::UnexpectedEof, "it broke off"))
}
