//! Which crate may depend on which, and what the core must never see. A crate that is not in the
//! table fails: its author decides here, in the open, where it stands.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, path::Path, process::Command};

use serde_json::Value;

/// What a crate is part of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Plain structs: no runtime, no RPC library, no engine.
    Core,
    /// May hold what the core may not.
    Edge,
}

use Part::{Core, Edge};

/// Every crate of the workspace, and which others it may name outside of its tests.
const CRATES: &[(&str, Part, &[&str])] = &[
    ("proto", Core, &[]),
    ("failpoint", Core, &[]),
    ("mvcc", Core, &["failpoint", "proto"]),
    ("state", Core, &["failpoint", "proto", "mvcc"]),
    ("bolt", Core, &[]),
    ("wal", Core, &["failpoint", "proto"]),
    ("watch", Core, &["proto", "mvcc"]),
    ("consensus", Core, &["proto"]),
    ("config", Core, &[]),
    ("record", Core, &[]),
    ("engine", Edge, &["failpoint", "mvcc"]),
    ("tls", Edge, &[]),
    ("peer", Edge, &["failpoint", "proto", "state", "tls"]),
    ("gateway", Edge, &["proto"]),
    ("api", Edge, &["failpoint", "gateway", "proto", "state"]),
    (
        "cairn",
        Edge,
        &[
            "api",
            "bolt",
            "config",
            "consensus",
            "engine",
            "failpoint",
            "mvcc",
            "peer",
            "proto",
            "record",
            "state",
            "tls",
            "wal",
            "watch",
        ],
    ),
    ("history", Core, &["proto"]),
    (
        "sim",
        Edge,
        &[
            "consensus",
            "history",
            "mvcc",
            "proto",
            "state",
            "wal",
            "watch",
        ],
    ),
    ("crds", Edge, &[]),
    ("operator", Edge, &["crds", "proto", "record"]),
    ("e2e", Edge, &["history", "proto"]),
];

/// What no crate of the core may be built with, however far down.
const NOT_IN_THE_CORE: &[&str] = &[
    "tokio",
    "tonic",
    "hyper",
    "h2",
    "axum",
    "rustls",
    "rocksdb",
    "librocksdb-sys",
    "mio",
    "socket2",
    "rand",
];

/// What a crate of the core may be built with nevertheless, and need not use: raft-rs draws its
/// election timeouts at random, from a range that the driver narrows to one value.
const EXCEPT: &[(&str, &str)] = &[("consensus", "rand")];

fn cargo(arguments: &[&str]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .args(["--locked", "--offline"])
        .current_dir(root)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "cargo {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// The names of each workspace crate's own dependencies, those of its tests left out.
fn workspace() -> BTreeMap<String, Vec<String>> {
    let metadata = cargo(&["metadata", "--format-version=1", "--no-deps"]);
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .map(|package| {
            let all = package["dependencies"].as_array().unwrap().iter();
            let ours = all.filter(|dependency| dependency["kind"] != "dev");
            let names = ours.map(|dependency| text(&dependency["name"]));
            (text(&package["name"]), names.collect())
        })
        .collect()
}

#[test]
fn crates_depend_on_each_other_in_one_direction() {
    let workspace = workspace();
    for (name, dependencies) in &workspace {
        let rule = CRATES.iter().find(|(ruled, ..)| ruled == name);
        let (_, _, allowed) =
            rule.unwrap_or_else(|| panic!("crate {name} has no row in the table of this test"));
        for dependency in dependencies {
            let ours = workspace.contains_key(dependency);
            assert!(
                !ours || allowed.contains(&dependency.as_str()),
                "{name} depends on {dependency}, which its row does not allow"
            );
        }
    }
    for (name, ..) in CRATES {
        assert!(
            workspace.contains_key(*name),
            "the row of {name} has no crate"
        );
    }
}

#[test]
fn the_core_is_built_without_runtime_rpc_or_engine() {
    for (name, part, _) in CRATES {
        if *part == Edge {
            continue;
        }
        let tree = cargo(&["tree", "--package", name, "--edges=normal", "--prefix=none"]);
        for line in tree.lines() {
            let found = line.split(' ').next().unwrap();
            assert!(
                !NOT_IN_THE_CORE.contains(&found) || EXCEPT.contains(&(*name, found)),
                "{name} is built with {found}"
            );
        }
    }
}

/// The check above would pass for ever if it looked in the wrong place.
#[test]
fn the_engine_would_not_pass_as_core() {
    let tree = cargo(&[
        "tree",
        "--package=engine",
        "--edges=normal",
        "--prefix=none",
    ]);
    assert!(tree.lines().any(|line| line.starts_with("librocksdb-sys ")));
}
