use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
};

use rand::Rng;
use rustix::fs::{FallocateFlags, FlockOperation, OFlags, fallocate, fcntl_lock, statvfs};

use super::{
    disk::{Disk, Place, ROOT},
    *,
};

/// Cuts of one state.
const SEEDS: u64 = 200;

fn place(folder: u64, name: &str) -> Place {
    Place::new(folder, OsStr::new(name))
}

fn make(disk: &mut Disk, folder: u64, name: &str) -> u64 {
    disk.make(place(folder, name), 0o600, false).unwrap()
}

fn make_folder(disk: &mut Disk, name: &str) -> u64 {
    disk.make(place(ROOT, name), 0o700, true).unwrap()
}

fn write(disk: &mut Disk, file: u64, offset: u64, data: &[u8]) {
    let end = offset + data.len() as u64;
    let written = disk.edit(file, end, |file| file.write(offset, data));
    written.unwrap();
}

fn has(disk: &Disk, folder: u64, name: &str) -> bool {
    disk.find(&place(folder, name)).is_ok()
}

fn content(disk: &Disk, file: u64) -> Vec<u8> {
    disk.file(file).unwrap().read(0, usize::MAX)
}

/// What `look` sees in the disks that cuts leave.
fn seen<T: Ord>(disk: &Disk, look: impl Fn(&Disk) -> T) -> BTreeSet<T> {
    let cut = |seed| disk.after_cut(&mut StdRng::seed_from_u64(seed));
    (0..SEEDS).map(|seed| look(&cut(seed))).collect()
}

/// A disk with a durable file of `data`.
fn with_file(data: &[u8]) -> (Disk, u64) {
    let mut disk = Disk::new();
    let file = make(&mut disk, ROOT, "a");
    write(&mut disk, file, 0, data);
    disk.sync_file(file).unwrap();
    disk.sync_folder(ROOT).unwrap();
    (disk, file)
}

#[test]
fn a_cut_keeps_what_was_synced_and_any_part_of_the_rest() {
    let (mut disk, file) = with_file(&[1; 1536]);
    write(&mut disk, file, 512, &[2; 1024]);
    let all = seen(&disk, |left| {
        let data = content(left, file);
        assert_eq!(data.len(), 1536);
        assert!(data[..512].iter().all(|byte| *byte == 1));
        for sector in data.chunks(512) {
            assert!(
                sector.iter().all(|byte| *byte == sector[0]),
                "a torn sector"
            );
        }
        (data[512], data[1024])
    });
    assert_eq!(all, [(1, 1), (1, 2), (2, 1), (2, 2)].into());

    disk.sync_file(file).unwrap();
    let all = seen(&disk, |left| content(left, file));
    assert_eq!(all.len(), 1, "what is synced is not touched");
    assert_eq!(all.first().unwrap()[512..], [2; 1024]);
}

#[test]
fn a_sector_may_be_as_an_earlier_write_left_it() {
    let (mut disk, file) = with_file(&[1; 512]);
    write(&mut disk, file, 0, &[2; 512]);
    write(&mut disk, file, 0, &[3; 512]);
    let all = seen(&disk, |left| content(left, file)[0]);
    assert_eq!(all, [1, 2, 3].into());
}

#[test]
fn a_length_may_be_any_on_the_way() {
    let (mut disk, file) = with_file(&[1; 100]);
    write(&mut disk, file, 100, &[1; 20_000]);
    disk.edit(file, 0, |file| file.set_len(50)).unwrap();
    let all = seen(&disk, |left| content(left, file).len());
    assert!(all.contains(&100) && all.contains(&50), "{all:?}");
    assert!(all.iter().any(|length| *length > 4096), "{all:?}");
    assert!(all.iter().all(|length| *length <= 20_100), "{all:?}");
}

#[test]
fn names_stay_in_their_order_and_a_synced_file_is_not_a_synced_name() {
    let mut disk = Disk::new();
    for name in ["a", "b"] {
        let file = make(&mut disk, ROOT, name);
        disk.sync_file(file).unwrap();
    }
    let look = |left: &Disk| (has(left, ROOT, "a"), has(left, ROOT, "b"));
    let all = seen(&disk, look);
    assert_eq!(all, [(false, false), (true, false), (true, true)].into());
    disk.sync_folder(ROOT).unwrap();
    assert_eq!(seen(&disk, look), [(true, true)].into());
    disk.remove(place(ROOT, "a"), false).unwrap();
    assert_eq!(seen(&disk, look), [(false, true), (true, true)].into());
}

#[test]
fn folders_keep_their_changes_apart() {
    let mut disk = Disk::new();
    let (first, second) = (make_folder(&mut disk, "1"), make_folder(&mut disk, "2"));
    disk.sync_folder(ROOT).unwrap();
    make(&mut disk, first, "a");
    make(&mut disk, second, "b");
    let look = |left: &Disk| (has(left, first, "a"), has(left, second, "b"));
    assert_eq!(seen(&disk, look).len(), 4);
    disk.sync_folder(second).unwrap();
    assert_eq!(seen(&disk, look), [(false, true), (true, true)].into());
}

#[test]
fn a_rename_may_be_undone_and_is_never_half_done() {
    let (mut disk, _) = with_file(b"new");
    let old = make(&mut disk, ROOT, "b");
    disk.sync_folder(ROOT).unwrap();
    disk.rename(place(ROOT, "a"), place(ROOT, "b"), true)
        .unwrap();
    let look = |left: &Disk| {
        let replaced = left.find(&place(ROOT, "b")).unwrap() != old;
        assert_eq!(replaced, !has(left, ROOT, "a"));
        replaced
    };
    assert_eq!(seen(&disk, look).len(), 2);
    disk.sync_folder(ROOT).unwrap();
    assert_eq!(seen(&disk, look), [true].into());
}

#[test]
fn a_move_between_folders_happens_in_both_or_in_none() {
    let (mut disk, _) = with_file(b"x");
    let to = make_folder(&mut disk, "to");
    disk.sync_folder(ROOT).unwrap();
    make(&mut disk, ROOT, "before");
    disk.rename(place(ROOT, "a"), place(to, "b"), true).unwrap();
    let look = |left: &Disk| {
        assert!(has(left, ROOT, "a") != has(left, to, "b"));
        has(left, to, "b")
    };
    assert_eq!(seen(&disk, look).len(), 2);
    disk.sync_folder(to).unwrap();
    assert_eq!(seen(&disk, look), [true].into());
    let before = seen(&disk, |left| has(left, ROOT, "before"));
    assert_eq!(before, [true].into(), "it came before");
}

#[test]
fn what_has_no_name_is_lost_with_its_content() {
    let mut disk = Disk::new();
    let folder = make_folder(&mut disk, "folder");
    make(&mut disk, folder, "a");
    disk.sync_folder(folder).unwrap();
    let all = seen(&disk, |left| {
        assert_eq!(has(left, ROOT, "folder"), left.folder(folder).is_ok());
        left.folder(folder).is_ok() && has(left, folder, "a")
    });
    assert_eq!(all, [false, true].into());
}

#[test]
fn a_file_is_what_was_written() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut disk = Disk::new();
    let file = make(&mut disk, ROOT, "a");
    let mut model: Vec<u8> = Vec::new();
    for _ in 0..4000 {
        let (from, length) = (rng.random_range(0..30_000), rng.random_range(0..9_000));
        let to = from + length;
        match rng.random_range(0..8) {
            0 => {
                disk.edit(file, 0, |file| file.set_len(to as u64)).unwrap();
                model.resize(to, 0);
            }
            1 => {
                let range = from as u64..to as u64;
                disk.edit(file, 0, |file| file.zero(range)).unwrap();
                let (from, to) = (from.min(model.len()), to.min(model.len()));
                model[from..to].fill(0);
            }
            2 => disk.sync_file(file).unwrap(),
            3 => {
                let read = disk.file(file).unwrap().read(from as u64, length);
                let (from, to) = (from.min(model.len()), to.min(model.len()));
                assert!(read == model[from..to]);
            }
            _ => {
                let byte = rng.random_range(0..3);
                write(&mut disk, file, from as u64, &vec![byte; length]);
                if length > 0 || model.len() < to {
                    model.resize(model.len().max(to), 0);
                }
                model[from..to].fill(byte);
            }
        }
        assert!(content(&disk, file) == model);
        if rng.random_range(0..20) == 0 {
            disk.sync_file(file).unwrap();
            disk.sync_folder(ROOT).unwrap();
            let left = disk.after_cut(&mut rng);
            assert!(content(&left, file) == model);
            disk = left;
        }
    }
}

fn sync(folder: &Path) {
    File::open(folder).unwrap().sync_all().unwrap();
}

#[test]
fn the_kernel_sees_what_the_cut_left() {
    let mut power = PowerFs::new(1);
    let kept = power.path().join("kept");
    fs::create_dir(&kept).unwrap();
    sync(power.path());
    let mut file = File::create(kept.join("file")).unwrap();
    file.write_all(&[7; 10_000]).unwrap();
    file.sync_all().unwrap();
    sync(&kept);
    drop(file);
    let mut without_name = 0;
    for _ in 0..20 {
        let new = kept.join("new");
        fs::write(&new, [8; 5000]).unwrap();
        File::open(&new).unwrap().sync_all().unwrap();
        power.cut();
        assert!(fs::write(kept.join("later"), "").is_err(), "no power");
        power.power_on();
        assert_eq!(fs::read(kept.join("file")).unwrap(), [7; 10_000]);
        match fs::read(&new) {
            Ok(data) => assert_eq!(data, [8; 5000]),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NotFound);
                without_name += 1;
            }
        }
        let _ = fs::remove_file(&new);
        sync(&kept);
    }
    assert!((1..20).contains(&without_name), "{without_name} of 20");
    let copy = tempfile::tempdir().unwrap();
    power.save(copy.path()).unwrap();
    assert_eq!(
        fs::read(copy.path().join("kept/file")).unwrap(),
        [7; 10_000]
    );
}

#[test]
fn a_cut_comes_with_the_call_that_was_asked_for() {
    let mut power = PowerFs::new(2);
    let path = power.path().join("a.log");
    power.arm(Moment::Name(".log", 2));
    let file = File::create(&path).unwrap();
    file.write_all_at(b"x", 0).unwrap();
    assert!(!power.is_cut());
    assert!(file.sync_all().is_err(), "the sync has not ended");
    assert!(power.is_cut());
    drop(file);
    power.power_on();
    power.arm(Moment::Calls(0));
    assert!(File::create(&path).is_err());
    assert!(power.is_cut());
}

/// The calls of RocksDB and of the log beyond reading and writing.
#[test]
fn it_does_what_a_server_asks_for() {
    let power = PowerFs::new(3);
    let path = power.path().join("direct");
    let direct = OFlags::DIRECT.bits() as i32;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true);
    let file = options.custom_flags(direct).open(&path).unwrap();
    // Aligned as direct I/O wants it.
    let buffer = vec![5u8; 3 * 4096];
    let from = buffer.as_ptr().align_offset(4096);
    file.write_all_at(&buffer[from..from + 8192], 0).unwrap();
    file.set_len(5000).unwrap();
    file.sync_data().unwrap();
    assert_eq!(fs::read(&path).unwrap(), [5; 5000]);

    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 5000);
    fallocate(&file, FallocateFlags::empty(), 0, 6000).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 0, 4096).unwrap();
    let data = fs::read(&path).unwrap();
    assert_eq!(
        (data.len(), data[4095], data[4096], data[5000]),
        (6000, 0, 5, 0)
    );

    let other = File::open(&path).unwrap();
    file.try_lock().unwrap();
    assert!(other.try_lock().is_err());
    fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
    let space = statvfs(power.path()).unwrap();
    assert!(space.f_bavail > 0 && space.f_bavail <= space.f_blocks);

    let many = power.path().join("many");
    fs::create_dir(&many).unwrap();
    for number in 0..2000 {
        File::create(many.join(format!("a name of some length {number}"))).unwrap();
    }
    assert_eq!(fs::read_dir(&many).unwrap().count(), 2000);
    fs::remove_dir_all(&many).unwrap();
    assert!(!many.exists());
}
