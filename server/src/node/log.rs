//! The log thread: writes what raft appends, in order, with one sync for all that has gathered.

use std::{sync::Arc, time::Instant};

use consensus::{Append, FetchRequest};
use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;
use wal::{OsVfs, Reader, SnapshotMark, Wal};

use super::{
    raft::{Outbox, RaftInput},
    shared::Shared,
};

/// Writes that are gathered into one sync, at most.
const GATHER: usize = 256;

/// Writes one append, durably if raft asks for it.
pub(crate) fn write(
    wal: &Mutex<Wal<OsVfs>>,
    shared: &Shared,
    append: &Append,
) -> Result<(), wal::Error> {
    let began = Instant::now();
    let state = append.hard_state.as_ref();
    let mut wal = wal.lock();
    let before = wal.appended_bytes();
    if let Some(snapshot) = &append.snapshot {
        let mark = SnapshotMark {
            index: snapshot.index.unwrap_or_default(),
            term: snapshot.term.unwrap_or_default(),
        };
        let members = snapshot.conf_state.clone().unwrap_or_default();
        let hard_state = state.copied().unwrap_or_default();
        failpoint::RAFT_BEFORE_SAVE_SNAP.hit();
        wal.restart_at(mark, members, &hard_state)?;
        failpoint::RAFT_AFTER_SAVE_SNAP.hit();
    }
    failpoint::RAFT_BEFORE_SAVE.hit();
    wal.append(&append.entries, state, false)?;
    let write = began.elapsed();
    let bytes = wal.appended_bytes() - before;
    let sync = match append.must_sync {
        true => {
            // Nothing more, but durably, with all before it.
            wal.append(&[], None, true)?;
            Some(began.elapsed() - write)
        }
        false => None,
    };
    if sync.is_some() {
        failpoint::RAFT_AFTER_SAVE.hit();
    }
    shared.counters.logged(bytes, write, sync);
    Ok(())
}

/// Runs until raft is gone. An error of the disk ends the node: what was promised may be lost.
pub(crate) fn run(
    wal: &Mutex<Wal<OsVfs>>,
    shared: &Arc<Shared>,
    appends: &Receiver<Append>,
    outbox: &Outbox,
) {
    while let Ok(first) = appends.recv() {
        let mut gathered = vec![first];
        while gathered.len() < GATHER {
            match appends.try_recv() {
                Ok(append) => gathered.push(append),
                Err(_) => break,
            }
        }
        // One sync, with the last write, makes all before it durable too.
        let sync = gathered.iter().any(|append| append.must_sync);
        let last = gathered.len() - 1;
        for (position, append) in gathered.iter_mut().enumerate() {
            append.must_sync = sync && position == last;
            if let Err(error) = write(wal, shared, append) {
                shared.fatal(error);
                return;
            }
        }
        let number = gathered[last].number;
        // Raft must know first: an answer to one of these may come back at once.
        if shared.to_raft.send(RaftInput::Persisted(number)).is_err() {
            return;
        }
        let messages: Vec<_> = gathered.into_iter().flat_map(|a| a.then_send).collect();
        if !messages.is_empty() {
            failpoint::RAFT_BEFORE_FOLLOWER_SEND.hit();
            outbox(messages);
        }
    }
}

/// Reads entries that have left memory, for followers that are far behind.
pub(crate) fn serve_fetches(
    reader: &Reader<OsVfs>,
    shared: &Shared,
    requests: &Receiver<FetchRequest>,
    to_raft: &Sender<RaftInput>,
) {
    while let Ok(request) = requests.recv() {
        let max_bytes = usize::try_from(request.max_bytes).unwrap_or(usize::MAX);
        match reader.read(request.lo, request.hi, max_bytes) {
            Ok(entries) => {
                if to_raft.send(RaftInput::Fetched(request, entries)).is_err() {
                    return;
                }
            }
            Err(error) => return shared.fatal(error),
        }
    }
}
