//! The server of an earlier commit, built from this repository's own history.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{root, target_folder};

/// The commit whose server clusters must be upgradable from: the last one that was released, or
/// else landed.
pub const COMMIT: &str = include_str!("../previous").trim_ascii();

/// Its program; `None` when this clone has no history that reaches back to it.
///
/// It is built once, in this build's own target folder and with the same packages and features, so
/// that only the crates of this repository are compiled again. These get a version of their own: to
/// cargo, crates of one name and version are the same wherever they lie, and it would take those of
/// one tree for those of the other.
pub fn program() -> Option<PathBuf> {
    let built = target_folder().join("cairn-previous");
    let marker = target_folder().join("cairn-previous.commit");
    if built.exists() && fs::read_to_string(&marker).is_ok_and(|commit| commit == COMMIT) {
        return Some(built);
    }
    let folder = tempfile::tempdir().unwrap();
    if !extract(folder.path()) {
        return None;
    }
    let in_manifest = |manifest: &str, from: &str, to: &str| {
        let manifest = folder.path().join(manifest);
        let text = fs::read_to_string(&manifest).unwrap();
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{manifest:?} has no {from:?}");
        fs::write(&manifest, changed).unwrap();
    };
    let version = "[workspace.package]\nversion = \"";
    in_manifest("Cargo.toml", version, &format!("{version}0.0.0-before-"));
    in_manifest(
        "server/Cargo.toml",
        "[[bin]]\nname = \"cairn\"",
        "[[bin]]\nname = \"cairn-previous\"",
    );
    // Not locked: the lock file has the versions that were just changed.
    let build = [
        "build",
        "--release",
        "--workspace",
        "--all-features",
        "--bin",
        "cairn-previous",
    ];
    let status = Command::new("cargo")
        .args(build)
        .current_dir(folder.path())
        .env("CARGO_TARGET_DIR", target_folder().parent().unwrap())
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "the server of {COMMIT} does not build");
    fs::write(&marker, COMMIT).unwrap();
    Some(built)
}

/// Puts the commit's files into a folder; false when it is not in this clone.
fn extract(folder: &Path) -> bool {
    let archive = folder.join("files.tar");
    let status = Command::new("git")
        .args(["archive", "--output"])
        .arg(&archive)
        .arg(COMMIT)
        .current_dir(root())
        .status()
        .unwrap();
    if !status.success() {
        return false;
    }
    tar::Archive::new(fs::File::open(&archive).unwrap())
        .unpack(folder)
        .unwrap();
    true
}
