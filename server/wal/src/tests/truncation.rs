//! Segments dropped, logs begun anew, and what a cut at any of their steps leaves.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use prost::Message;
use proto::walpb;

use super::*;
use crate::frame;

const END: u64 = u64::MAX;

fn mark(index: u64, term: u64) -> SnapshotMark {
    SnapshotMark { index, term }
}

fn open_at<V: Vfs>(vfs: &Arc<V>, at_most: u64) -> Result<(Wal<V>, Recovered), Error> {
    Wal::open(Arc::clone(vfs), Path::new(DIR), at_most, SMALL)
}

fn segments<V: Vfs>(vfs: &V) -> Vec<String> {
    let mut names = vfs.list(Path::new(DIR)).unwrap();
    names.retain(|name| name.ends_with(".wal"));
    names
}

/// A log of the entries 1 to `count` of term 1, all synced; a commit index is known of each.
fn filled(vfs: &Arc<MemVfs>, dice: &mut Dice, count: u64) -> (Wal<MemVfs>, Vec<Entry>) {
    let mut wal = create(vfs, Path::new(DIR), SMALL);
    let size = |dice: &mut Dice| dice.below(1500) as usize;
    let entries: Vec<_> = (1..=count).map(|i| entry(i, 1, size(dice))).collect();
    for entry in &entries {
        let commit = entry.index.unwrap_or_default() / 2;
        let entries = std::slice::from_ref(entry);
        wal.append(entries, Some(&state(1, commit)), true).unwrap();
    }
    (wal, entries)
}

/// What is there after the process died: after a power cut, or without one.
fn after(vfs: &Arc<MemVfs>, dice: &mut Dice) -> Arc<MemVfs> {
    if dice.below(4) == 0 {
        vfs.fail_after(u64::MAX);
        return Arc::clone(vfs);
    }
    Arc::new(vfs.crash(dice.roll()))
}

/// The state is durable up to 30 when the process dies at any step of a truncation up to there. The
/// log that is left continues the state, without a gap, up to all that was synced; and so it does
/// after a second death.
#[test]
fn a_cut_at_any_step_of_a_truncation_leaves_a_log_that_continues_the_state() {
    let (mut fewer, mut steps) = (BTreeSet::new(), 0);
    for seed in 0..60 {
        for calls in 0.. {
            let mut dice = Dice(seed << 32 | calls);
            let vfs = Arc::new(MemVfs::new());
            let (mut wal, mut written) = filled(&vfs, &mut dice, 40);
            wal.save_snapshot_mark(mark(8, 1), members(&[1])).unwrap();
            let unsynced = entry(41, 1, dice.below(1500) as usize);
            wal.append(std::slice::from_ref(&unsynced), None, false)
                .unwrap();
            written.push(unsynced);
            let all = segments(&*vfs).len();

            vfs.fail_after(calls);
            let saved = wal.save_snapshot_mark(mark(30, 1), members(&[1, 2]));
            let done = saved.is_ok() && wal.release(30).is_ok();
            drop(wal);

            let vfs = after(&vfs, &mut dice);
            let (mut wal, recovered) = open_at(&vfs, 30).unwrap_or_else(|error| {
                panic!("seed {seed}, {calls} calls: {error}");
            });
            let start = recovered.start.mark.index;
            assert!(start == 30 || (start == 8 && saved.is_err()), "{start}");
            let last = wal.last_index();
            assert!(last >= 40, "{last}");
            assert_eq!(recovered.entries, written[start as usize..last as usize]);
            fewer.insert(all - segments(&*vfs).len());
            // A second life on what the first one left, which nobody may have synced.
            wal.append(&[entry(last + 1, 2, 100)], None, true).unwrap();
            drop(wal);
            let vfs = Arc::new(vfs.crash(dice.roll()));
            let (wal, again) = open_at(&vfs, 30).unwrap();
            assert_eq!(wal.last_index(), last + 1);
            assert_eq!(again.start, recovered.start);
            steps += 1;
            if done {
                break;
            }
        }
    }
    assert!(steps > 60 * 5, "{steps}");
    assert!(fewer.len() > 4 && fewer.contains(&0), "{fewer:?}");
}

/// A snapshot replaces a log that ends below it, or one that holds another history at its index.
#[test]
fn a_cut_at_any_step_of_a_new_beginning_leaves_the_old_log_or_the_new_one() {
    let (mut old, mut new) = (0, 0);
    for seed in 0..60 {
        let snapshot = match seed % 2 {
            0 => mark(200, 7),
            _ => mark(33, 7),
        };
        for calls in 0.. {
            let mut dice = Dice(seed << 32 | calls);
            let vfs = Arc::new(MemVfs::new());
            let (mut wal, written) = filled(&vfs, &mut dice, 40);
            vfs.fail_after(calls);
            // The commit index is the snapshot's, also when raft knows more.
            let begun = wal.restart_at(snapshot, members(&[4, 5]), &state(8, 999));
            let done = begun.is_ok() && wal.release(snapshot.index).is_ok();
            drop(wal);

            let vfs = after(&vfs, &mut dice);
            let (mut wal, recovered) = open_at(&vfs, END).unwrap_or_else(|error| {
                panic!("seed {seed}, {calls} calls: {error}");
            });
            let term = match recovered.start.mark == snapshot {
                true => {
                    new += 1;
                    assert_eq!(recovered.start.conf_state, members(&[4, 5]));
                    assert_eq!(recovered.entries, []);
                    assert_eq!(recovered.hard_state, state(8, snapshot.index));
                    assert_eq!(wal.last_index(), snapshot.index);
                    7
                }
                false => {
                    old += 1;
                    assert!(begun.is_err());
                    assert_eq!(recovered.start, Start::default());
                    assert_eq!(recovered.entries, written);
                    1
                }
            };
            // The next life, on a name that may not be durable yet.
            let next = wal.last_index() + 1;
            wal.append(&[entry(next, term, 900)], None, true).unwrap();
            if dice.below(2) == 0 {
                wal.release(snapshot.index).unwrap();
            }
            drop(wal);
            let vfs = Arc::new(vfs.crash(dice.roll()));
            if term == 7 {
                let refused = open_at(&vfs, snapshot.index - 1).err().unwrap().to_string();
                assert!(
                    refused.contains("snapshot not found: the state"),
                    "{refused}"
                );
                assert!(
                    refused.contains("Put the state or the snapshot file"),
                    "{refused}"
                );
            }
            let (wal, again) = open_at(&vfs, END).unwrap();
            assert_eq!(again.start, recovered.start);
            assert_eq!(again.entries.last(), Some(&entry(next, term, 900)));
            assert_eq!(wal.last_index(), next);
            if done {
                break;
            }
        }
    }
    assert!(old > 100 && new > 100, "{old} old, {new} new");
}

/// Lives with everything that a member does to its log, each ended by a power cut.
#[test]
fn whatever_was_done_a_cut_loses_nothing_that_was_synced() {
    let (mut dropped, mut begun) = (0, 0);
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let mut vfs = Arc::new(MemVfs::new());
        let mut wal = create(&vfs, Path::new(DIR), SMALL);
        // All entries since the last new beginning at `base`.
        let (mut base, mut written, mut synced) = (0, Vec::<Entry>::new(), 0);
        let (mut term, mut applied, mut newest) = (1, 0, SnapshotMark::default());
        for _ in 0..5 {
            for _ in 0..dice.below(30) {
                let last = base + written.len() as u64;
                match dice.below(12) {
                    0 if applied > newest.index => {
                        let index = newest.index + 1 + dice.below(applied - newest.index);
                        let entry = &written[(index - base) as usize - 1];
                        newest = mark(index, entry.term.unwrap());
                        wal.save_snapshot_mark(newest, members(&[seed])).unwrap();
                        synced = last;
                    }
                    1 => dropped += wal.release(dice.below(applied + 2)).unwrap().segments,
                    2 if dice.below(4) == 0 => {
                        term += 1;
                        let index = synced.max(applied) + 1 + dice.below(50);
                        newest = mark(index, term);
                        wal.restart_at(newest, members(&[seed]), &state(term, index))
                            .unwrap();
                        (base, applied, synced) = (index, index, index);
                        written.clear();
                        begun += 1;
                    }
                    // A new leader replaces what is not committed.
                    3 if last > applied => {
                        term += 1;
                        let index = applied + 1 + dice.below(last - applied);
                        written.truncate((index - base) as usize - 1);
                        let new = entry(index, term, 700);
                        written.push(new.clone());
                        wal.append(&[new], Some(&state(term, applied)), true)
                            .unwrap();
                        synced = index;
                    }
                    _ => {
                        let size = dice.below(1500) as usize;
                        let new = entry(last + 1, term, size);
                        written.push(new.clone());
                        let sync = dice.below(3) > 0;
                        wal.append(&[new], Some(&state(term, applied)), sync)
                            .unwrap();
                        if sync {
                            synced = last + 1;
                            applied += dice.below(synced - applied + 1);
                        }
                    }
                }
            }
            drop(wal);
            vfs = Arc::new(vfs.crash(dice.roll()));
            let (again, recovered) =
                open_at(&vfs, applied).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            wal = again;
            assert_eq!(recovered.start.mark, newest, "seed {seed}");
            let left = wal.last_index();
            assert!(left >= synced, "seed {seed}: {left} of {synced}");
            let from = (newest.index - base) as usize;
            assert_eq!(recovered.entries, written[from..(left - base) as usize]);
            let read = wal
                .reader()
                .read(newest.index + 1, left + 1, usize::MAX)
                .unwrap();
            assert_eq!(read, recovered.entries);
            written.truncate((left - base) as usize);
            synced = left;
        }
    }
    assert!(
        dropped > 300 && begun > 50,
        "{dropped} dropped, {begun} begun"
    );
}

/// The engine may have lost what it had not flushed; truncation went only as far as it had.
#[test]
fn a_state_behind_the_newest_record_finds_an_older_one() {
    let vfs = Arc::new(MemVfs::new());
    let (mut wal, written) = filled(&vfs, &mut Dice(5), 60);
    wal.save_snapshot_mark(mark(20, 1), members(&[1])).unwrap();
    wal.save_snapshot_mark(mark(40, 1), members(&[2])).unwrap();
    wal.release(20).unwrap();
    let first = wal.first_index();
    assert!(first > 10 && first <= 20, "{first}");
    drop(wal);
    for (at_most, start) in [(20, 20), (39, 20), (40, 40), (60, 40)] {
        let (wal, recovered) = open_at(&vfs, at_most).unwrap();
        assert_eq!(recovered.start.mark.index, start);
        assert_eq!(recovered.entries, written[start as usize..]);
        assert_eq!(wal.first_index(), start + 1);
        let marks: Vec<_> = recovered.marks.iter().map(|mark| mark.index).collect();
        assert_eq!(
            marks,
            [20, 40]
                .into_iter()
                .filter(|i| *i >= start)
                .collect::<Vec<_>>()
        );
    }
    // A state that raft handed over before it was told of the snapshot is written after it.
    let (mut wal, _) = open_at(&vfs, 60).unwrap();
    wal.append(&[], Some(&state(1, 31)), true).unwrap();
    drop(wal);
    let (_, recovered) = open_at(&vfs, 60).unwrap();
    assert_eq!(recovered.start.mark.index, 40);
    assert_eq!(recovered.hard_state, state(1, 40));

    // Nothing goes that a start at the older record needs, whatever the newer one says.
    let (mut wal, _) = open_at(&vfs, 25).unwrap();
    wal.release(END).unwrap();
    drop(wal);
    let (_, recovered) = open_at(&vfs, 25).unwrap();
    assert_eq!(recovered.entries, written[20..]);
    let error = open_at(&vfs, 19).err().unwrap();
    assert!(
        matches!(
            error,
            Error::SnapshotNotFound {
                at_most: 19,
                first: 11..=20,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn only_what_no_start_needs_is_dropped_and_nothing_else_stays() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("wal");
    let vfs = Arc::new(OsVfs::without_sync());
    let options = Options {
        prepare_ahead: true,
        ..SMALL
    };
    let mut wal = create(&vfs, &dir, options);
    let entries: Vec<_> = (1..=200).map(|index| entry(index, 1, 500)).collect();
    for entry in entries.chunks(1) {
        wal.append(entry, Some(&state(1, 0)), false).unwrap();
    }
    let names = || {
        let mut names: Vec<String> = vfs.list(&dir).unwrap();
        names.retain(|name| name.ends_with(".wal"));
        names
    };
    let size = |name: &String| fs::metadata(dir.join(name)).unwrap().len();
    let closed = |names: &[String]| names[..names.len() - 1].iter().map(size).sum::<u64>();
    let all = names();
    assert_eq!(wal.release(END).unwrap(), Released::default(), "no record");
    let bytes = wal.retained_bytes();
    assert!(
        bytes > closed(&all) && bytes < closed(&all) + 4096,
        "{bytes}"
    );
    assert_eq!(wal.index_within(END), 1);
    assert_eq!(wal.index_within(0), 201);
    let within = wal.index_within(bytes / 2);
    assert!(within > 90 && within < 110, "{within}");

    wal.save_snapshot_mark(mark(150, 1), members(&[1])).unwrap();
    let (before, on_disk) = (wal.retained_bytes(), closed(&all));
    let first = wal.release(150).unwrap();
    assert_eq!((first.segments, first.more), (RELEASE_AT_ONCE, true));
    assert_eq!(wal.retained_bytes(), before - first.bytes);
    assert_eq!(closed(&names()), on_disk - first.bytes);
    let mut dropped = first.segments;
    loop {
        let released = wal.release(150).unwrap();
        dropped += released.segments;
        if !released.more {
            break;
        }
    }
    assert_eq!(names(), all[dropped..]);
    assert_eq!(wal.release(150).unwrap(), Released::default());
    // The oldest one left is the one in which 150 lies, or the one that begins with it.
    let oldest = wal.first_index();
    assert!(oldest > 140 && oldest <= 150, "{oldest}");
    assert_eq!(names()[0], format!("{dropped:016x}-{oldest:016x}.wal"));
    assert_eq!(wal.index_within(END), oldest);
    let reader = wal.reader();
    assert_eq!(reader.read(oldest - 1, 201, usize::MAX).unwrap(), []);
    assert_eq!(
        reader.read(oldest, 201, usize::MAX).unwrap(),
        entries[oldest as usize - 1..]
    );
    assert_eq!(reader.term(oldest - 1), Some(1));

    // Begun anew: the next segments are named after the snapshot and then after its entries.
    wal.restart_at(mark(900, 3), members(&[2]), &state(3, 900))
        .unwrap();
    assert_eq!((wal.first_index(), wal.last_index()), (901, 900));
    assert_eq!(wal.index_within(END), 901);
    assert_eq!(reader.read(160, 201, usize::MAX).unwrap(), []);
    assert!(matches!(
        reader.read(901, 902, 1),
        Err(Error::Unavailable { last_index: 900 })
    ));
    while wal.release(900).unwrap().more {}
    wal.append(&[entry(901, 3, 5000)], None, false).unwrap();
    wal.append(&[entry(902, 3, 100)], None, false).unwrap();
    let left = names();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left[0].ends_with(&format!("{:016x}.wal", 900)), "{left:?}");
    assert!(left[1].ends_with(&format!("{:016x}.wal", 902)), "{left:?}");
    for (index, term) in [(900, 3), (900, 4), (899, 1), (902, 3)] {
        let again = wal.restart_at(mark(index, term), members(&[2]), &state(4, index));
        assert!(matches!(again, Err(Error::Refused(_))), "{index}");
    }
    drop((wal, reader));
    assert!(size(&left[0]) < 6000, "a closed segment keeps its zeros");
    let others = vfs.list(&dir).unwrap().len() - 2;
    assert!(others <= 3, "{others} files beside the segments");
}

/// Readers of other threads get whole entries or, once they are dropped, none.
#[test]
fn readers_are_safe_while_segments_go() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("wal");
    let vfs = Arc::new(OsVfs::without_sync());
    let mut wal = create(&vfs, &dir, SMALL);
    wal.append(&[entry(1, 1, 300)], None, false).unwrap();
    // The newest entry; 0 in the end.
    let newest = Arc::new(AtomicU64::new(1));
    let threads: Vec<_> = (0..2)
        .map(|seed| {
            let (reader, newest) = (wal.reader(), Arc::clone(&newest));
            thread::spawn(move || {
                let (mut dice, mut read, mut gone) = (Dice(seed), 0, 0);
                loop {
                    let last = newest.load(Ordering::SeqCst);
                    if last == 0 {
                        break;
                    }
                    let from = last.saturating_sub(dice.below(120)).max(1);
                    let found = reader.read(from, last + 1, usize::MAX).unwrap();
                    gone += usize::from(found.is_empty());
                    for (found, index) in found.iter().zip(from..) {
                        assert_eq!(found, &entry(index, 1, 300));
                    }
                    read += found.len();
                }
                (read, gone)
            })
        })
        .collect();
    for index in 2..=3000 {
        wal.append(&[entry(index, 1, 300)], None, false).unwrap();
        newest.store(index, Ordering::SeqCst);
        if index % 25 == 0 {
            wal.save_snapshot_mark(mark(index - 20, 1), members(&[1]))
                .unwrap();
            while wal.release(index.saturating_sub(40)).unwrap().more {}
        }
    }
    newest.store(0, Ordering::SeqCst);
    for thread in threads {
        let (read, gone) = thread.join().unwrap();
        assert!(read > 0, "{read} entries read, {gone} times none");
    }
    assert!(wal.first_index() > 2900);
}

/// What an etcd writes, record by record, beside what Cairn itself would.
enum Rec {
    Entries(std::ops::RangeInclusive<u64>, u64),
    Commit(u64),
    Mark(u64, u64),
}
use Rec::{Commit, Entries, Mark};

/// One segment with these records.
fn written(index: u64, records: &[Rec]) -> Arc<MemVfs> {
    let vfs = Arc::new(MemVfs::new());
    let mut bytes = Vec::new();
    let mut chain = frame::encode(&mut bytes, 0, frame::CRC, None);
    let mut put = |kind, data: Vec<u8>| {
        chain = frame::encode(&mut bytes, chain, kind, Some(&data));
    };
    put(frame::METADATA, {
        let owner = proto::etcdserverpb::Metadata {
            node_id: Some(OWNER.node_id),
            cluster_id: Some(OWNER.cluster_id),
        };
        owner.encode_to_vec()
    });
    for record in records {
        match record {
            Entries(range, term) => {
                for index in range.clone() {
                    put(frame::ENTRY, entry(index, *term, 20).encode_to_vec());
                }
            }
            Commit(commit) => put(frame::STATE, state(1, *commit).encode_to_vec()),
            Mark(index, term) => put(frame::SNAPSHOT, {
                let record = walpb::Snapshot {
                    index: Some(*index),
                    term: Some(*term),
                    conf_state: Some(members(&[*index])),
                };
                record.encode_to_vec()
            }),
        }
    }
    vfs.create_dir(Path::new(DIR)).unwrap();
    let name = crate::segment::Name { seq: 0, index };
    let file = vfs.create(&name.path(Path::new(DIR))).unwrap();
    file.write_at(&bytes, 0).unwrap();
    vfs
}

/// Start, first term behind it, and last index, or the error.
fn opened(vfs: &Arc<MemVfs>, at_most: u64) -> Result<(u64, Option<u64>, u64), String> {
    let (wal, recovered) = open_at(vfs, at_most).map_err(|error| error.to_string())?;
    let start = recovered.start.mark.index;
    let indexes: Vec<_> = recovered.entries.iter().map(|e| e.index.unwrap()).collect();
    assert_eq!(indexes, (start + 1..=wal.last_index()).collect::<Vec<_>>());
    let first = recovered.entries.first();
    Ok((start, first.and_then(|e| e.term), wal.last_index()))
}

#[test]
fn snapshot_records_are_read_as_etcd_means_them() {
    // A record above the commit index counts for nothing: the crash came before the state.
    let log = [
        Mark(0, 0),
        Entries(1..=50, 1),
        Commit(40),
        Mark(30, 1),
        Mark(45, 1),
        Mark(200, 5),
    ];
    let vfs = written(0, &log);
    assert_eq!(opened(&vfs, END), Ok((30, Some(1), 50)));
    assert_eq!(opened(&vfs, 29), Ok((0, Some(1), 50)));
    let (mut wal, recovered) = open_at(&vfs, END).unwrap();
    assert_eq!(recovered.marks, [mark(30, 1)]);
    // Life goes on as if it were not there, until the log itself gets to it.
    let more: Vec<_> = (51..=250).map(|index| entry(index, 5, 20)).collect();
    wal.append(&more, Some(&state(5, 199)), true).unwrap();
    drop(wal);
    assert_eq!(opened(&vfs, END), Ok((45, Some(1), 250)));
    let (mut wal, _) = open_at(&vfs, END).unwrap();
    wal.append(&[], Some(&state(5, 220)), true).unwrap();
    drop(wal);
    assert_eq!(opened(&vfs, END), Ok((200, Some(5), 250)));

    // A snapshot that was received: record, then entries and state.
    let mut log = vec![Mark(0, 0), Entries(1..=50, 1), Commit(40), Mark(200, 5)];
    log.extend([Entries(201..=210, 5), Commit(200)]);
    let received = written(0, &log);
    assert_eq!(opened(&received, END), Ok((200, Some(5), 210)));
    let refused = opened(&received, 199).unwrap_err();
    assert!(
        refused.contains("has a hole: entry 201 follows entry 50"),
        "{refused}"
    );
}

#[test]
fn a_received_snapshot_ends_the_history_before_it() {
    let before = || vec![Mark(0, 0), Entries(1..=250, 1), Commit(40), Mark(40, 1)];
    let log = |rest: Vec<Rec>| written(0, &before().into_iter().chain(rest).collect::<Vec<_>>());
    // Entries up to 250 are those of a leader that lost.
    let vfs = log(vec![Mark(200, 5), Commit(200)]);
    assert_eq!(opened(&vfs, END), Ok((200, None, 200)));
    let refused = opened(&vfs, 199).unwrap_err();
    assert!(
        refused.contains("reaches to entry 199, and the log"),
        "{refused}"
    );
    assert!(refused.contains("begins with entry 201"), "{refused}");
    let vfs = log(vec![Mark(200, 5), Commit(200), Entries(201..=203, 6)]);
    assert_eq!(opened(&vfs, END), Ok((200, Some(6), 203)));
    // etcd writes entries behind it before the state that commits it.
    let vfs = log(vec![
        Mark(200, 5),
        Entries(201..=203, 6),
        Commit(200),
        Entries(204..=205, 6),
    ]);
    assert_eq!(opened(&vfs, END), Ok((200, Some(6), 205)));
    let vfs = log(vec![Mark(250, 5), Entries(251..=253, 6), Commit(250)]);
    assert_eq!(opened(&vfs, END), Ok((250, Some(6), 253)));
    for at in [200, 250, 300] {
        let log = log(vec![Mark(at, 5), Entries(at + 1..=at + 1, 6)]);
        let refused = opened(&log, END).unwrap_err();
        assert!(
            refused.contains("the state that commits it is missing"),
            "{refused}"
        );
    }
    // It was never followed: the log went on from before it.
    let vfs = log(vec![
        Mark(200, 5),
        Entries(201..=203, 6),
        Entries(150..=202, 6),
        Mark(210, 7),
        Commit(210),
    ]);
    assert_eq!(opened(&vfs, END), Ok((210, None, 210)));
    // One that is not committed leaves them, as does one of their own.
    assert_eq!(
        opened(&log(vec![Mark(200, 5)]), END),
        Ok((40, Some(1), 250))
    );
    assert_eq!(
        opened(&log(vec![Mark(200, 1), Commit(220)]), END),
        Ok((200, Some(1), 250))
    );
    // Beyond the end, with the state first, as etcd 3.4 wrote them.
    let vfs = log(vec![Entries(301..=303, 5), Commit(301), Mark(300, 5)]);
    assert_eq!(opened(&vfs, END), Ok((300, Some(5), 303)));
    let refused = opened(&vfs, 299).unwrap_err();
    assert!(refused.contains("entry 301 follows entry 250"), "{refused}");
}

#[test]
fn a_log_without_its_beginning_is_opened_from_a_record_or_refused() {
    let log = [
        Commit(120),
        Entries(100..=120, 2),
        Mark(110, 2),
        Entries(121..=130, 2),
    ];
    let vfs = written(100, &log);
    assert_eq!(opened(&vfs, 110), Ok((110, Some(2), 130)));
    assert_eq!(opened(&vfs, END), Ok((110, Some(2), 130)));
    for at_most in [0, 99, 109] {
        let refused = opened(&vfs, at_most).unwrap_err();
        assert!(refused.contains("begins with entry 100"), "{refused}");
    }
    // A hole above every record is one for everybody; below, for nobody.
    let log = [
        Commit(120),
        Entries(100..=120, 2),
        Mark(110, 2),
        Entries(122..=130, 2),
    ];
    let refused = opened(&written(100, &log), END).unwrap_err();
    assert!(refused.contains("entry 122 follows entry 120"), "{refused}");
    let log = [
        Entries(1..=9, 1),
        Entries(12..=30, 1),
        Commit(20),
        Mark(15, 1),
    ];
    assert_eq!(opened(&written(0, &log), END), Ok((15, Some(1), 30)));
    let log = [Mark(0, 0), Entries(1..=9, 1), Commit(12)];
    let refused = opened(&written(0, &log), END).unwrap_err();
    assert!(
        refused.contains("entry 12 is committed and the log ends at 9"),
        "{refused}"
    );
    let refused = opened(&written(0, &[Mark(u64::MAX, 1)]), END).unwrap_err();
    assert!(refused.contains("is no index"), "{refused}");
}

/// Who asks first writes no record that lets nothing go.
#[test]
fn whether_anything_would_go_is_known_before_the_record_is_written() {
    let vfs = Arc::new(MemVfs::new());
    let (mut wal, _) = filled(&vfs, &mut Dice(5), 40);
    let second = segments(&*vfs)[1].clone();
    let second = u64::from_str_radix(&second[17..33], 16).unwrap();
    assert!(!wal.is_releasable(second - 1));
    assert!(wal.is_releasable(second));
    // It takes the record, though.
    assert_eq!(wal.release(second).unwrap(), Released::default());
    for (index, goes) in [(second - 1, false), (second, true)] {
        assert_eq!(wal.is_releasable(index), goes);
        wal.save_snapshot_mark(mark(index, 1), members(&[1]))
            .unwrap();
        assert_eq!(wal.release(index).unwrap().segments > 0, goes);
    }
    assert!(!wal.is_releasable(second));
}
