//! The log as a whole: written, cut off at any moment, damaged, and opened again.

use std::{fs, path::Path, sync::Arc};

use proto::raftpb::{ConfState, Entry, HardState};

use crate::{mem::Dice, *};

mod truncation;

const DIR: &str = "/data/wal";
const OWNER: Metadata = Metadata {
    node_id: 0x8e9e_05c5_2164_694d,
    cluster_id: 0xcdf8_1819_4e3a_8c32,
};
const SMALL: Options = Options {
    segment_bytes: 4096,
    prepare_ahead: false,
};

fn entry(index: u64, term: u64, size: usize) -> Entry {
    Entry {
        r#type: Some(0),
        term: Some(term),
        index: Some(index),
        // No zeros, so that a lost sector shows.
        data: Some(vec![b'a' + (index % 20) as u8; size].into()),
    }
}

fn state(term: u64, commit: u64) -> HardState {
    HardState {
        term: Some(term),
        vote: Some(1),
        commit: Some(commit),
    }
}

fn members(ids: &[u64]) -> ConfState {
    ConfState {
        voters: ids.to_vec(),
        ..ConfState::default()
    }
}

fn create<V: Vfs>(vfs: &Arc<V>, dir: &Path, options: Options) -> Wal<V> {
    Wal::create(Arc::clone(vfs), dir, OWNER, options).unwrap()
}

fn open<V: Vfs>(vfs: &Arc<V>, dir: &Path) -> Result<(Wal<V>, Recovered), Error> {
    Wal::open(Arc::clone(vfs), dir, 0, SMALL)
}

#[test]
fn what_was_written_is_found_on_a_real_disk() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("wal");
    let vfs = Arc::new(OsVfs::new());
    let options = Options {
        prepare_ahead: true,
        ..SMALL
    };
    let entries: Vec<_> = (1..=100).map(|index| entry(index, 2, 200)).collect();
    let mut wal = create(&vfs, &dir, options);
    for piece in entries.chunks(7) {
        wal.append(piece, Some(&state(2, piece[0].index.unwrap())), true)
            .unwrap();
    }
    let reader = wal.reader();
    assert_eq!(reader.read(1, 101, usize::MAX).unwrap(), entries);
    assert_eq!(reader.read(40, 101, 1).unwrap(), entries[39..40]);
    assert_eq!(reader.read(40, 45, 700).unwrap().len(), 3);
    assert_eq!((reader.term(100), reader.term(101)), (Some(2), None));
    assert_eq!(reader.read(0, 3, 1).unwrap(), []);
    let error = reader.read(101, 102, 1).unwrap_err().to_string();
    assert!(error.contains("above 100 are not"), "{error}");

    let error = open(&vfs, &dir).err().unwrap().to_string();
    assert!(error.contains("another process uses"), "{error}");
    drop((wal, reader));
    let error = Wal::create(Arc::clone(&vfs), &dir, OWNER, SMALL).err();
    assert!(matches!(error, Some(Error::Exists(_))));

    let (wal, recovered) = open(&vfs, &dir).unwrap();
    assert_eq!(recovered.entries, entries);
    assert_eq!(recovered.hard_state, state(2, 99));
    assert_eq!((recovered.metadata, wal.metadata()), (OWNER, OWNER));
    assert_eq!(recovered.start, Start::default());
    assert_eq!(recovered.marks, [SnapshotMark::default()]);
    assert_eq!(recovered.repair, None);
    drop(wal);
    assert_eq!(Wal::metadata_of(&*vfs, &dir).unwrap(), OWNER);
    assert!(fs::read_dir(&dir).unwrap().count() > 5, "it was never cut");
}

#[test]
fn entries_are_replaced_and_gaps_refused() {
    let vfs = Arc::new(MemVfs::new());
    let mut wal = create(&vfs, Path::new(DIR), SMALL);
    let first: Vec<_> = (1..=9).map(|index| entry(index, 1, 10)).collect();
    wal.append(&first, None, true).unwrap();
    for (bad, says) in [
        (vec![entry(11, 1, 1)], "entry 11 does not continue"),
        (vec![entry(0, 1, 1)], "entry 0 does not continue"),
        (
            vec![entry(10, 1, 1), entry(12, 1, 1)],
            "entry 12 where 11 belongs",
        ),
    ] {
        let error = wal.append(&bad, None, true).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    wal.append(&[entry(5, 2, 10), entry(6, 2, 10)], None, true)
        .unwrap();
    let expected = [&first[..4], &[entry(5, 2, 10), entry(6, 2, 10)]].concat();
    assert_eq!(wal.reader().read(1, 7, usize::MAX).unwrap(), expected);
    let mark = SnapshotMark { index: 4, term: 1 };
    wal.save_snapshot_mark(mark, members(&[1])).unwrap();
    for (index, term, says) in [
        (
            4,
            9,
            "a snapshot at 4 of term 9, which is of term 1 in the log",
        ),
        (7, 2, "a snapshot at 7 of a log of 1 to 6"),
    ] {
        let mark = SnapshotMark { index, term };
        let error = wal.save_snapshot_mark(mark, members(&[1])).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
    let error = wal.append(&[entry(4, 2, 1)], None, true).unwrap_err();
    let says = "entry 4 does not continue a log of 5 to 6";
    assert!(error.to_string().contains(says), "{error}");
    drop(wal);
    let (wal, recovered) = open(&vfs, Path::new(DIR)).unwrap();
    assert_eq!(recovered.entries, expected);
    assert_eq!(recovered.marks, [SnapshotMark::default(), mark]);
    drop(wal);

    for at_most in [4, 5, u64::MAX] {
        let (wal, recovered) = Wal::open(Arc::clone(&vfs), Path::new(DIR), at_most, SMALL).unwrap();
        assert_eq!(recovered.start.mark, mark);
        assert_eq!(recovered.start.conf_state, members(&[1]));
        assert_eq!(recovered.marks, [mark]);
        // The record is nothing to a reader without it.
        assert_eq!(recovered.hard_state.commit, Some(4));
        assert_eq!(recovered.entries, expected[4..]);
        assert_eq!((wal.first_index(), wal.last_index()), (5, 6));
        assert_eq!(wal.reader().term(4), Some(1));
        assert_eq!(wal.reader().read(4, 7, usize::MAX).unwrap(), []);
    }
    let (_, recovered) = Wal::open(vfs, Path::new(DIR), 3, SMALL).unwrap();
    assert_eq!(recovered.start, Start::default());
}

/// One life of a log after another, each ended by a power cut that keeps any part of what was not
/// synced. Nothing synced is ever lost or changed, and nothing appears that was not written.
#[test]
fn power_cuts_lose_nothing_that_was_synced() {
    let mut torn = 0;
    for seed in 0..400 {
        let mut dice = Dice(seed);
        let mut vfs = Arc::new(MemVfs::new());
        let mut wal = create(&vfs, Path::new(DIR), SMALL);
        // All that was written, and how much of it is synced.
        let mut written: Vec<Entry> = Vec::new();
        let mut synced = 0;
        for term in 1..=4 {
            for _ in 0..dice.below(12) {
                let entries: Vec<_> = (1..=dice.below(4))
                    .map(|n| entry(written.len() as u64 + n, term, dice.below(1500) as usize))
                    .collect();
                written.extend(entries.clone());
                let sync = dice.below(3) > 0;
                wal.append(&entries, Some(&state(term, synced as u64)), sync)
                    .unwrap();
                if sync {
                    synced = written.len();
                }
            }
            drop(wal);
            vfs = Arc::new(vfs.crash(dice.roll()));
            let (again, recovered) = open(&vfs, Path::new(DIR)).unwrap();
            wal = again;
            let left = recovered.entries.len();
            assert!(left >= synced, "{} of {synced} synced entries", left);
            assert_eq!(recovered.entries, written[..left]);
            assert!(recovered.hard_state.commit.unwrap_or_default() <= left as u64);
            torn += usize::from(recovered.repair.is_some());
            written.truncate(left);
            synced = left;
        }
    }
    assert!(
        torn > 20,
        "only {torn} torn tails: the test does not reach them"
    );
}

/// A second cut while the log is opened, and while a torn tail is cut off it, at any call.
#[test]
fn power_cuts_while_it_is_opened_lose_nothing() {
    let mut torn = 0;
    for seed in 0..2000 {
        let mut dice = Dice(seed);
        let vfs = Arc::new(MemVfs::new());
        let mut wal = create(&vfs, Path::new(DIR), SMALL);
        let synced = 1 + dice.below(4);
        for index in 1..=synced {
            let size = dice.below(1500) as usize;
            wal.append(&[entry(index, 1, size)], None, true).unwrap();
        }
        let size = dice.below(3000) as usize;
        wal.append(&[entry(synced + 1, 1, size)], None, false)
            .unwrap();
        drop(wal);
        let vfs = Arc::new(vfs.crash(dice.roll()));
        vfs.fail_after(dice.below(12));
        drop(open(&vfs, Path::new(DIR)));
        let vfs = Arc::new(vfs.crash(dice.roll()));
        let (_, recovered) = open(&vfs, Path::new(DIR)).unwrap_or_else(|error| {
            panic!("seed {seed}: {error}");
        });
        assert!(recovered.entries.len() as u64 >= synced, "seed {seed}");
        torn += usize::from(recovered.repair.is_some());
    }
    assert!(torn > 100, "only {torn} tails were torn twice");
}

/// Any bit flipped in any record is either found or lies in the zeros behind the last record.
#[test]
fn a_flipped_bit_never_passes() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("wal");
    let vfs = Arc::new(OsVfs::without_sync());
    let mut wal = create(&vfs, &dir, SMALL);
    // The CRC leaves the type out, and states and entries look alike but for it.
    let mut entries = Vec::new();
    for (index, term) in (1..=8).zip([1, 1, 1, 2, 2, 4, 4, 4]) {
        let mut next = entry(index, term, 20);
        next.data = next.data.filter(|_| index % 4 != 0);
        wal.append(&[next.clone()], Some(&state(term, index - 1)), true)
            .unwrap();
        entries.push(next);
    }
    drop(wal);
    let file = dir.join("0000000000000000-0000000000000000.wal");
    let whole = fs::read(&file).unwrap();
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap();
    let mut found = 0;
    for flip in 0..8 * (end + 1) {
        let at = flip / 8;
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (flip % 8);
        fs::write(&file, &bytes).unwrap();
        if let Ok(owner) = Wal::metadata_of(&*vfs, &dir) {
            assert_eq!(owner, OWNER, "byte {at}");
        }
        match open(&vfs, &dir) {
            Err(error) => {
                found += 1;
                let text = error.to_string();
                assert!(text.starts_with("wal: "), "{text}");
                assert_eq!(fs::read(&file).unwrap(), bytes, "a refused log was changed");
            }
            // Padding carries nothing.
            Ok((_, recovered)) => {
                assert_eq!(recovered.entries, entries, "bit {flip}");
                assert_eq!(recovered.hard_state, state(4, 7), "bit {flip}");
            }
        }
    }
    let flips = 8 * end;
    assert!(
        found * 10 > flips * 8,
        "{found} of {flips} flips were found"
    );
}

/// A state of term 2 whose record lost the right type looks like one.
#[test]
fn a_membership_change_of_the_second_kind_is_refused() {
    let vfs = Arc::new(MemVfs::new());
    let mut wal = create(&vfs, Path::new(DIR), SMALL);
    let mut change = entry(1, 1, 0);
    change.r#type = Some(2);
    wal.append(&[change], None, true).unwrap();
    drop(wal);
    let error = open(&vfs, Path::new(DIR)).err().unwrap().to_string();
    assert!(error.contains("entry 1 of type 2"), "{error}");
}

#[test]
fn a_missing_segment_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("wal");
    let vfs = Arc::new(OsVfs::without_sync());
    let mut wal = create(&vfs, &dir, SMALL);
    for index in 1..=40 {
        wal.append(&[entry(index, 1, 500)], None, true).unwrap();
    }
    drop(wal);
    let error = Wal::metadata_of(&*vfs, folder.path()).unwrap_err();
    assert!(error.to_string().contains("holds no segment"), "{error}");
    let mut names = vfs.list(&dir).unwrap();
    names.retain(|name| name.starts_with("0000000000000002-"));
    fs::remove_file(dir.join(&names[0])).unwrap();
    let error = open(&vfs, &dir).err().unwrap().to_string();
    assert!(error.contains("segment 3 follows 1"), "{error}");
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let error = open(&vfs, &empty).err().unwrap().to_string();
    assert!(error.contains("holds no segment"), "{error}");
}

/// What a disk holds after a failed write is unknown, so nothing may be appended behind it; and at
/// whichever call the disk begins to fail, what was synced before is found again.
#[test]
fn after_a_failed_write_there_is_no_other() {
    let mut failed = 0;
    for calls in 0..120 {
        let vfs = Arc::new(MemVfs::new());
        let mut wal = create(&vfs, Path::new(DIR), SMALL);
        vfs.fail_after(calls);
        let mut synced = 0;
        for index in 1..=30 {
            match wal.append(&[entry(index, 1, 700)], None, true) {
                Ok(()) => synced = index,
                Err(_) => break,
            }
        }
        if synced < 30 {
            failed += 1;
            let again = wal.append(&[entry(synced + 1, 1, 1)], None, true);
            assert!(matches!(again, Err(Error::Poisoned)), "{again:?}");
        }
        drop(wal);
        let vfs = Arc::new(vfs.crash(calls));
        vfs.fail_after(u64::MAX);
        let (_, recovered) = open(&vfs, Path::new(DIR)).unwrap();
        assert!(recovered.entries.len() as u64 >= synced);
    }
    assert!(failed > 20, "{failed}");
}

#[test]
fn an_empty_directory_is_taken_and_another_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("wal");
    let vfs = Arc::new(OsVfs::new());
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("notes"), "mine").unwrap();
    let refused = Wal::create(Arc::clone(&vfs), &dir, OWNER, SMALL);
    let error = refused.err().unwrap().to_string();
    assert!(error.contains("cannot put in place"), "{error}");
    assert_eq!(fs::read_to_string(dir.join("notes")).unwrap(), "mine");
    fs::remove_file(dir.join("notes")).unwrap();
    // What the refused attempt left behind is cleared away.
    drop(create(&vfs, &dir, SMALL));
    assert_eq!(open(&vfs, &dir).unwrap().1.entries, []);
}

/// The thread that prepares segments ends with the log: the next one finds the directory free.
#[test]
fn a_log_is_reopened_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("wal");
    let vfs = Arc::new(OsVfs::without_sync());
    let options = Options {
        segment_bytes: 1 << 20,
        prepare_ahead: true,
    };
    drop(create(&vfs, &dir, options));
    for index in 1..=30 {
        let (mut wal, _) = Wal::open(Arc::clone(&vfs), &dir, 0, options).unwrap();
        let large = entry(index, 1, 1 << 20);
        wal.append(&[large], None, true).unwrap();
    }
}
