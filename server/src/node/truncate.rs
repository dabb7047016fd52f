//! Keeps the log short: what the engine holds durably and no member is likely to ask for is dropped.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval};
use tracing::info;
use wal::{OsVfs, SnapshotMark, Wal};

use super::{raft::RaftInput, shared::Shared};

/// How often the log's length is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How much of the log is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// Length of a segment in bytes; the log is cut off by whole segments, and so many bytes of it
    /// are kept for members that lag a little.
    pub segment_bytes: u64,
    /// Entries kept for members that lag, as `--snapshot-catchup-entries` says.
    pub catch_up_entries: u64,
}

/// Looks at the log by the clock. An error of the disk ends the node.
pub(crate) async fn run(shared: Arc<Shared>, wal: Arc<Mutex<Wal<OsVfs>>>, policy: Policy) {
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let (node, wal) = (Arc::clone(&shared), Arc::clone(&wal));
        let looked = tokio::task::spawn_blocking(move || truncate(&node, &wal, policy));
        match looked.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => shared.fatal(format!("{error:#}")),
            Err(_) => shared.fatal("the look at the log panicked"),
        }
    }
}

/// Drops what is no longer needed. In this order, so that a crash at any point leaves a log that
/// continues the engine: the engine holds entry i durably; the log says, durably, that a snapshot
/// stands for the entries up to i and that they are committed; segments below go, oldest first.
///
/// # Errors
/// The disk's, which end the node.
fn truncate(shared: &Arc<Shared>, wal: &Mutex<Wal<OsVfs>>, policy: Policy) -> anyhow::Result<()> {
    let (first, last, wanted) = {
        let wal = wal.lock();
        if wal.retained_bytes() < 2 * policy.segment_bytes {
            return Ok(());
        }
        let wanted = wal.index_within(policy.segment_bytes);
        (wal.first_index(), wal.last_index(), wanted)
    };
    let engine = shared.engine.load_full();
    let Some(persisted) = state::persisted(&*engine)? else {
        return Ok(());
    };
    let applied = persisted.applied;
    let keep = [
        applied.index,
        wanted,
        last.saturating_sub(policy.catch_up_entries),
        shared.snapshots.first_wanted().unwrap_or(u64::MAX),
    ];
    let keep = keep.into_iter().min().unwrap_or_default();
    if keep <= first {
        return Ok(());
    }
    let mark = SnapshotMark {
        index: applied.index,
        term: applied.term,
    };
    let mut wal = wal.lock();
    // Meanwhile a snapshot may have taken the place of the log, and of this state too, soon. And no
    // record is written for nothing, every second.
    if wal.first_index() > applied.index || !wal.is_releasable(keep) {
        return Ok(());
    }
    wal.save_snapshot_mark(mark, persisted.conf_state)
        .context("could not note in the log what the engine holds")?;
    let released = wal.release(keep).context("could not shorten the log")?;
    let first = wal.first_index();
    drop(wal);
    failpoint::RAFT_AFTER_WAL_RELEASE.hit();
    info!(
        segments = released.segments,
        bytes = released.bytes,
        "first-index" = first,
        "snapshot-index" = applied.index,
        "compacted Raft logs"
    );
    // Raft is gone only when the node ends.
    let _ = shared.to_raft.send(RaftInput::Compacted(first));
    shared
        .snapshots
        .sweep(applied.index)
        .context("could not remove old snapshots")
}
