//! The engine's folder: which database is in use and in which format it is.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use mvcc::EngineError;

/// The version of the layout that this build reads and writes. A database of a newer one is
/// refused: its rows may mean something else.
pub const FORMAT_VERSION: u32 = 1;

const POINTER: &str = "CURRENT";
const FORMAT: &str = "CAIRN_FORMAT";
const OWNER: &str = "CAIRN_OWNER";
/// The first database of a folder. Later ones are named after the index they were imported at.
const FIRST: &str = "0000000000000000";
const NAME_LENGTH: usize = 16;

/// Why an engine's folder could not be opened. Nothing in it was changed.
#[derive(Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// The system refused.
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// `CURRENT` names no database, or `CAIRN_FORMAT` no version.
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: String,
    },
    /// Written by a newer Cairn.
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// Another member's.
    Foreign {
        /// The engine's folder.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Who asks for it.
        wanted: String,
    },
    /// The database that was to be built is the one in use.
    InUse {
        /// The database.
        path: PathBuf,
    },
    /// There is none.
    Missing {
        /// The engine's folder.
        path: PathBuf,
    },
    /// Another process has it open.
    Busy {
        /// The database.
        path: PathBuf,
    },
    /// A power cut tore what was not synced off a manifest, which a start mends and a look does not.
    Torn {
        /// The manifest.
        path: PathBuf,
    },
    /// RocksDB refused.
    Engine(EngineError),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io {
                action,
                path,
                cause,
            } => write!(f, "could not {action} {}: {cause}", path.display()),
            Self::Damaged { path, found } => write!(
                f,
                "{} holds {found:?}, which Cairn never writes there; restore the data directory \
                 from a backup, or remove this member and add a new one",
                path.display()
            ),
            Self::Newer { path, version } => write!(
                f,
                "{} has engine format {version}, this cairn knows up to {FORMAT_VERSION}; start \
                 the newer cairn that wrote it",
                path.display()
            ),
            Self::Foreign {
                path,
                found,
                wanted,
            } => write!(
                f,
                "the engine in {} is that of {found}, and the log beside it that of {wanted}; put \
                 the right folder back, or move this one away: the engine is built anew from a \
                 whole log",
                path.display()
            ),
            Self::InUse { path } => write!(
                f,
                "{} is the database in use, and cannot be built anew; import what was made at a \
                 later entry, or move the engine's folder away",
                path.display()
            ),
            Self::Missing { path } => write!(
                f,
                "there is no engine in {}; name the data directory of a cairn",
                path.display()
            ),
            Self::Busy { path } => write!(
                f,
                "another process has {} open; end the server that runs on it first",
                path.display()
            ),
            Self::Torn { path } => write!(
                f,
                "a power cut tore the end of {}, which is no damage; start cairn on it once, \
                 which mends it, and end it again",
                path.display()
            ),
            Self::Engine(cause) => cause.fmt(f),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { cause, .. } => Some(cause),
            Self::Engine(cause) => Some(cause),
            Self::Damaged { .. }
            | Self::Newer { .. }
            | Self::Foreign { .. }
            | Self::InUse { .. }
            | Self::Missing { .. }
            | Self::Busy { .. }
            | Self::Torn { .. } => None,
        }
    }
}

impl From<EngineError> for OpenError {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    move |cause| OpenError::Io {
        action,
        path: path.to_owned(),
        cause,
    }
}

fn sync_folder(folder: &Path) -> Result<(), OpenError> {
    let synced = File::open(folder).and_then(|file| file.sync_all());
    synced.map_err(failed("sync the folder", folder))
}

/// Writes a small file so that a crash leaves either what was there before or all of `content`.
fn write_whole(path: &Path, folder: &Path, content: &str) -> Result<(), OpenError> {
    let draft = path.with_extension("tmp");
    let written = File::create(&draft).and_then(|mut file| {
        file.write_all(content.as_bytes())?;
        // Before the rename: otherwise a power cut can leave the new name on an empty file.
        file.sync_all()
    });
    written.map_err(failed("write", &draft))?;
    failpoint::ENGINE_BEFORE_RENAME.hit();
    fs::rename(&draft, path).map_err(failed("put in place", path))?;
    failpoint::ENGINE_BEFORE_DIR_SYNC.hit();
    sync_folder(folder)
}

fn read_line(path: &Path) -> Result<Option<String>, OpenError> {
    // What is no text is none of ours: told apart by whoever knows what should be there.
    match fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()) {
        Ok(text) => Ok(Some(text.strip_suffix('\n').unwrap_or(&text).to_owned())),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(failed("read", path)(cause)),
    }
}

/// The folder of the database in use. Makes `folder` and names its first database when it is new.
///
/// The order survives a crash at any step: a database folder without a pointer to it is an empty
/// one that nothing was written to, and is taken again.
pub(crate) fn database(folder: &Path) -> Result<PathBuf, OpenError> {
    fs::create_dir_all(folder).map_err(failed("create the folder", folder))?;
    if let Some(database) = in_use(folder)? {
        return Ok(database);
    }
    if let Some(parent) = folder.parent() {
        sync_folder(parent)?;
    }
    let database = folder.join(FIRST);
    make(&database)?;
    point_to(folder, FIRST)?;
    Ok(database)
}

/// Makes a database folder, in the format of this build.
fn make(database: &Path) -> Result<(), OpenError> {
    fs::create_dir_all(database).map_err(failed("create the folder", database))?;
    let format = format!("{FORMAT_VERSION}\n");
    write_whole(&database.join(FORMAT), database, &format)
}

/// Takes a database into use. Its name and all that is in it must be durable.
fn point_to(folder: &Path, name: &str) -> Result<(), OpenError> {
    write_whole(&folder.join(POINTER), folder, &format!("{name}\n"))
}

/// The folder of a database that is to be built beside the one in use, new and empty: what an
/// earlier attempt left of it is removed first.
///
/// A crash at any step leaves a folder that the pointer does not name, for [`sweep`].
pub(crate) fn beside(folder: &Path, index: u64) -> Result<PathBuf, OpenError> {
    let database = folder.join(format!("{index:016x}"));
    if in_use(folder)?.as_ref() == Some(&database) {
        return Err(OpenError::InUse { path: database });
    }
    remove(&database)?;
    make(&database)?;
    sync_folder(folder)?;
    Ok(database)
}

/// Takes a database into use, by one rename: a crash leaves this one in use or the one before.
/// What the database holds must be durable.
pub(crate) fn switch(database: &Path) -> Result<(), OpenError> {
    check_format(database)?;
    let name = database.file_name().and_then(|name| name.to_str());
    match (database.parent(), name) {
        (Some(folder), Some(name)) if is_name(name) => {
            // The name of the database, before the pointer that relies on it.
            sync_folder(folder)?;
            failpoint::ENGINE_BEFORE_SWITCH.hit();
            point_to(folder, name)?;
            failpoint::ENGINE_AFTER_SWITCH.hit();
            Ok(())
        }
        _ => Err(OpenError::Damaged {
            path: database.to_owned(),
            found: name.unwrap_or_default().to_owned(),
        }),
    }
}

/// Removes databases that are not in use: what a crash left of one that was being built, or of
/// one before a switch. No other process may have the folder open.
pub(crate) fn sweep(folder: &Path) -> Result<(), OpenError> {
    let Some(used) = in_use(folder)? else {
        return Ok(());
    };
    let entries = fs::read_dir(folder).map_err(failed("list", folder))?;
    for entry in entries {
        let path = entry.map_err(failed("list", folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(is_name) && path != used {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Removes a database that is closed, if another one is in use. What cannot be removed now is
/// left for [`sweep`].
pub(crate) fn discard(database: &Path) {
    let folder = database.parent();
    if let Some(Ok(Some(used))) = folder.map(in_use)
        && used != database
    {
        let _ = remove(database);
    }
}

fn remove(database: &Path) -> Result<(), OpenError> {
    if database.exists() {
        failpoint::ENGINE_BEFORE_REMOVE.hit();
    }
    match fs::remove_dir_all(database) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove", database)(cause))
        }
        _ => Ok(()),
    }
}

/// Whether it is the name of a database.
fn is_name(name: &str) -> bool {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    name.len() == NAME_LENGTH && name.bytes().all(hex)
}

/// The database that the pointer names, in a format that this build knows.
fn in_use(folder: &Path) -> Result<Option<PathBuf>, OpenError> {
    let pointer = folder.join(POINTER);
    let Some(name) = read_line(&pointer)? else {
        return Ok(None);
    };
    if !is_name(&name) {
        return Err(OpenError::Damaged {
            path: pointer,
            found: name,
        });
    }
    let database = folder.join(name);
    check_format(&database)?;
    Ok(Some(database))
}

/// The folder of the database in use, which is there already.
pub(crate) fn existing(folder: &Path) -> Result<PathBuf, OpenError> {
    in_use(folder)?.ok_or_else(|| OpenError::Missing {
        path: folder.to_owned(),
    })
}

/// Whose engine `folder` holds; `None` when nobody has claimed it.
///
/// # Errors
/// When it cannot be read.
pub fn owner(folder: &Path) -> Result<Option<String>, OpenError> {
    read_line(&folder.join(OWNER))
}

/// Whether there is an engine in `folder`.
pub fn exists(folder: &Path) -> bool {
    folder.join(POINTER).exists()
}

/// Looks whether the engine in `folder` could be opened, and changes nothing: for who must not
/// touch the rest of a data directory that it cannot use.
///
/// # Errors
/// A format that this build does not know.
pub fn check(folder: &Path) -> Result<(), OpenError> {
    in_use(folder).map(|_| ())
}

/// Says whose engine `folder` holds, for good: a log must never be applied on top of another
/// member's state. `owner` is one line.
///
/// # Errors
/// [`OpenError::Foreign`] when it is somebody else's; nothing is changed then.
pub fn claim(folder: &Path, owner: &str) -> Result<(), OpenError> {
    fs::create_dir_all(folder).map_err(failed("create the folder", folder))?;
    let path = folder.join(OWNER);
    match read_line(&path)? {
        Some(found) if found == owner => Ok(()),
        Some(found) => Err(OpenError::Foreign {
            path: folder.to_owned(),
            found,
            wanted: owner.to_owned(),
        }),
        // Before the first row is written: a crash leaves an engine without rows, or an owner.
        None => write_whole(&path, folder, &format!("{owner}\n")),
    }
}

fn check_format(database: &Path) -> Result<(), OpenError> {
    let path = database.join(FORMAT);
    let found = read_line(&path)?.unwrap_or_default();
    match found.parse() {
        Ok(version) if version > FORMAT_VERSION => Err(OpenError::Newer {
            path: database.to_owned(),
            version,
        }),
        Ok(1..) => Ok(()),
        Ok(0) | Err(_) => Err(OpenError::Damaged { path, found }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_new_folder_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("member/engine");
        let database = super::database(&inner).unwrap();
        assert!(database.ends_with(FIRST));
        assert_eq!(super::database(&inner).unwrap(), database);
    }

    #[test]
    fn a_crash_before_the_pointer_is_taken_up_again() {
        let folder = tempfile::tempdir().unwrap();
        let database = super::database(folder.path()).unwrap();
        fs::remove_file(folder.path().join(POINTER)).unwrap();
        fs::remove_file(database.join(FORMAT)).unwrap();
        assert_eq!(super::database(folder.path()).unwrap(), database);
    }

    #[test]
    fn what_it_cannot_read_is_refused_with_advice() {
        for (file, content, says) in [
            (
                "0000000000000000/CAIRN_FORMAT",
                "2\n",
                "has engine format 2",
            ),
            ("0000000000000000/CAIRN_FORMAT", "0\n", "holds \"0\""),
            (
                "0000000000000000/CAIRN_FORMAT",
                "",
                "restore the data directory",
            ),
            ("CURRENT", "../elsewhere", "holds \"../elsewhere\""),
            ("CURRENT", "", "holds \"\""),
        ] {
            let folder = tempfile::tempdir().unwrap();
            super::database(folder.path()).unwrap();
            fs::write(folder.path().join(file), content).unwrap();
            let error = super::database(folder.path()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
            let kept = fs::read_to_string(folder.path().join(file)).unwrap();
            assert_eq!(kept, content, "the refused file was changed");
        }
    }

    #[test]
    fn what_is_no_text_is_refused_with_the_same_advice() {
        let folder = tempfile::tempdir().unwrap();
        super::database(folder.path()).unwrap();
        for file in ["0000000000000000/CAIRN_FORMAT", "CURRENT"] {
            let path = folder.path().join(file);
            let before = fs::read(&path).unwrap();
            fs::write(&path, b"\xb0\n").unwrap();
            let error = super::database(folder.path()).unwrap_err().to_string();
            assert!(error.contains("restore the data directory"), "{error}");
            assert!(error.contains(file), "{error}");
            fs::write(&path, before).unwrap();
        }
    }

    /// The databases in a folder, the one in use with a star.
    fn databases(folder: &Path) -> String {
        let used = in_use(folder).unwrap().unwrap();
        let paths = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
        let mut names: Vec<String> = paths
            .filter(|path| path.is_dir())
            .map(|path| {
                let name = path.file_name().unwrap().to_str().unwrap();
                let name = name.trim_start_matches('0');
                format!("{name}{}", if path == used { "*" } else { "" })
            })
            .collect();
        names.sort();
        names.join(" ")
    }

    #[test]
    fn one_database_takes_the_place_of_another() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let first = database(folder).unwrap();
        let next = beside(folder, 0x1f).unwrap();
        assert_eq!(databases(folder), "* 1f");
        fs::write(next.join("left"), "").unwrap();
        assert_eq!(beside(folder, 0x1f).unwrap(), next);
        assert!(!next.join("left").exists(), "an earlier attempt is left");
        assert_eq!(database(folder).unwrap(), first);
        switch(&next).unwrap();
        assert_eq!(databases(folder), " 1f*");
        let error = beside(folder, 0x1f).unwrap_err().to_string();
        assert!(error.contains("is the database in use"), "{error}");
        sweep(folder).unwrap();
        assert_eq!(databases(folder), "1f*");
        assert_eq!(database(folder).unwrap(), next);
        assert!(switch(&folder.join("elsewhere")).is_err());
        assert_eq!(databases(folder), "1f*");
    }

    #[test]
    fn only_what_is_not_in_use_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        claim(folder, "member 1").unwrap();
        sweep(folder).unwrap();
        let first = database(folder).unwrap();
        let next = beside(folder, 7).unwrap();
        discard(&first);
        assert_eq!(databases(folder), "* 7", "the one in use is gone");
        fs::write(folder.join("a file of the operator"), "").unwrap();
        fs::create_dir(folder.join("a folder")).unwrap();
        discard(&next);
        sweep(folder).unwrap();
        assert_eq!(databases(folder), "* a folder");
        claim(folder, "member 1").unwrap();
    }

    /// A crash between any two steps of a switch: the files are what the steps before it leave.
    #[test]
    fn a_crash_within_a_switch_leaves_one_database_in_use() {
        // A folder without its files, with its format only, with rows too.
        for step in 0..5 {
            let folder = tempfile::tempdir().unwrap();
            let folder = folder.path();
            let first = database(folder).unwrap();
            let next = folder.join("0000000000000009");
            fs::create_dir(&next).unwrap();
            if step >= 1 {
                fs::write(next.join("CAIRN_FORMAT.tmp"), "").unwrap();
            }
            if step >= 2 {
                make(&next).unwrap();
            }
            if step >= 3 {
                // The draft of the pointer, torn.
                fs::write(folder.join("CURRENT.tmp"), "00000").unwrap();
            }
            if step >= 4 {
                switch(&next).unwrap();
            }
            let (used, other) = match step {
                4 => (next, first),
                _ => (first, next),
            };
            assert_eq!(database(folder).unwrap(), used, "step {step}");
            sweep(folder).unwrap();
            assert_eq!(database(folder).unwrap(), used, "step {step}");
            assert!(used.exists() && !other.exists(), "step {step}");
            if other.ends_with("0000000000000009") {
                switch(&beside(folder, 9).unwrap()).unwrap();
                assert_eq!(database(folder).unwrap(), other);
            }
        }
    }

    #[test]
    fn an_engine_has_one_owner() {
        let folder = tempfile::tempdir().unwrap();
        let engine = folder.path().join("engine");
        check(&engine).unwrap();
        assert!(!engine.exists(), "a look made the folder");
        for _ in 0..2 {
            claim(&engine, "member 1 of cluster 2").unwrap();
        }
        let error = claim(&engine, "member 3 of cluster 2").unwrap_err();
        assert!(error.to_string().contains("is that of member 1"), "{error}");
        claim(&engine, "member 1 of cluster 2").unwrap();
        super::database(&engine).unwrap();
        check(&engine).unwrap();
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("engine");
        fs::write(&file, "").unwrap();
        let error = super::database(&file).unwrap_err().to_string();
        assert!(error.starts_with("could not create the folder"), "{error}");
    }
}
