//! The control groups of an instance: one folder in each hierarchy, in which each node has its own.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::k8s::{layout::node_name, process};

/// What kubelet wants to see in a node's group of the second version.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];
/// How long the groups of ended processes may take to become empty.
const EMPTY: Duration = Duration::from_secs(20);

/// A mounted hierarchy.
struct Hierarchy {
    path: PathBuf,
    unified: bool,
}

fn hierarchies() -> Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let found: Vec<Hierarchy> = mounts
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let (path, kind) = (fields.get(1)?, fields.get(2)?);
            matches!(*kind, "cgroup" | "cgroup2").then(|| Hierarchy {
                path: PathBuf::from(path),
                unified: *kind == "cgroup2",
            })
        })
        .collect();
    ensure!(
        !found.is_empty(),
        "no control groups are mounted below /sys/fs/cgroup; kubelet needs them"
    );
    Ok(found)
}

/// Makes the groups of an instance and its nodes.
pub fn create(name: &str, nodes: usize) -> Result<()> {
    for hierarchy in hierarchies()? {
        let top = hierarchy.path.join(name);
        make(&hierarchy, &top)?;
        for number in 1..=nodes {
            make(&hierarchy, &top.join(node_name(number)))?;
        }
    }
    Ok(())
}

fn make(hierarchy: &Hierarchy, group: &Path) -> Result<()> {
    let parent = group.parent().context("a group has a parent")?;
    if hierarchy.unified {
        enable(parent)?;
    }
    match fs::create_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| {
                format!(
                    "no control group {}; are control groups read-only here?",
                    group.display()
                )
            });
        }
        _ => {}
    }
    // In the first version a group without processors and memory nodes takes no process.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if !hierarchy.unified && group.join(file).exists() {
            fs::write(group.join(file), fs::read(parent.join(file))?)?;
        }
    }
    Ok(())
}

/// Hands the controllers that a group of the second version has to those below it.
fn enable(group: &Path) -> Result<()> {
    let has = fs::read_to_string(group.join("cgroup.controllers"))?;
    for controller in CONTROLLERS {
        if has.split_whitespace().any(|found| found == controller) {
            let file = group.join("cgroup.subtree_control");
            fs::write(&file, format!("+{controller}"))
                .with_context(|| format!("could not enable {controller} in {}", file.display()))?;
        }
    }
    Ok(())
}

/// Removes the groups of an instance whose processes have ended.
pub fn remove(name: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.path.join(name);
        process::wait_for(&format!("{} to be empty", group.display()), EMPTY, || {
            Ok((remove_tree(&group) || !group.exists()).then_some(()))
        })?;
    }
    Ok(())
}

/// A group's files go with its folder.
fn remove_tree(group: &Path) -> bool {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_tree(&entry.path());
        }
    }
    fs::remove_dir(group).is_ok()
}

/// Removes what supervisors left that were killed and could not clean up.
pub fn sweep() -> Result<()> {
    for hierarchy in hierarchies()? {
        for entry in fs::read_dir(&hierarchy.path)?.flatten() {
            let name = entry.file_name();
            let Some((pid, since)) = name.to_str().and_then(parse) else {
                continue;
            };
            if process::start_time(pid) != Some(since) {
                // Best effort: one that still holds processes is another machine's, which
                // shares these groups.
                remove_tree(&entry.path());
            }
        }
    }
    Ok(())
}

/// The supervisor of which a group's name speaks.
fn parse(name: &str) -> Option<(u32, u64)> {
    let (pid, since) = name.strip_prefix("cairn-")?.split_once('-')?;
    Some((pid.parse().ok()?, since.parse().ok()?))
}

/// The folders of an instance's groups.
pub fn groups(name: &str) -> Result<Vec<PathBuf>> {
    let all = hierarchies()?.into_iter();
    Ok(all.map(|hierarchy| hierarchy.path.join(name)).collect())
}
