//! What the control plane and each node do to look like a machine of their own. All of it happens
//! in their own namespaces and goes with them.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::k8s::{layout::Layout, process::run};

/// Folders in which the parts of Kubernetes write at fixed places. They get a layer above, so
/// that nothing of it reaches the machine.
const WRITTEN: [&str; 2] = ["/var", "/etc"];
/// Keeps the instance's folder in sight while a layer is put above it.
const ASIDE: &str = "/run/instance";

/// Gives this process a name, folders and a loopback of its own.
pub fn become_machine(layout: &Layout, name: &str) -> Result<()> {
    fs::write("/proc/sys/kernel/hostname", name).context("no name for the machine")?;
    // Mounts that kubelet makes have to reach the containers' own view.
    run("mount", &["--make-rshared", "/"])?;
    run("mount", &["-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])?;
    for folder in WRITTEN {
        cover(layout, folder)?;
    }
    let resolver = Path::new("/etc/resolv.conf");
    // It may be a link into the machine's /run.
    let _ = fs::remove_file(resolver);
    fs::copy(layout.path("resolv.conf"), resolver)?;
    run("ip", &["link", "set", "lo", "up"])?;
    sysctl("net/ipv4/ip_forward")
}

/// Puts a layer in memory above `folder`.
fn cover(layout: &Layout, folder: &str) -> Result<()> {
    let root = layout.root().display().to_string();
    let hidden = layout.root().starts_with(folder);
    if hidden {
        fs::create_dir_all(ASIDE)?;
        run("mount", &["--bind", &root, ASIDE])?;
    }
    let (upper, work) = (format!("/run/upper{folder}"), format!("/run/work{folder}"));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    let options = format!("lowerdir={folder},upperdir={upper},workdir={work}");
    run(
        "mount",
        &["-t", "overlay", "-o", &options, "overlay", folder],
    )?;
    if hidden {
        run("mount", &["--bind", ASIDE, &root])?;
        run("umount", &[ASIDE])?;
    }
    Ok(())
}

/// Sets a switch of this network namespace.
pub fn sysctl(name: &str) -> Result<()> {
    let path = format!("/proc/sys/{name}");
    fs::write(&path, "1").with_context(|| {
        format!("could not write {path}; for net/bridge the machine needs `modprobe br_netfilter`")
    })
}
