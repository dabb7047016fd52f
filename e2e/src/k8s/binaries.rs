//! Kubernetes and its tools from the Go modules that `e2e/k8s/go.mod` pins. Go's own cache makes a
//! second build cheap; the first takes minutes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{k8s::layout::Store, server::target_folder};

/// Without debug information and inlining the compile takes a quarter less processor time.
const COMPILE: &str = "-gcflags=all=-dwarf=false -l";
/// The version matters: without it nodes and API server disagree about what they speak.
const LINK: &str = "-ldflags=-s -w -X k8s.io/component-base/version.gitVersion=v1.37.2 \
    -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37 \
    -X k8s.io/component-base/version.gitTreeState=clean";
/// helm is a tool of the module, the others are ours.
const HELM: &str = "helm.sh/helm/v4/cmd/helm";

/// Where the programs are put.
pub fn folder() -> PathBuf {
    target_folder().join("tools")
}

/// Builds what an instance consists of, and etcdctl.
pub fn kubernetes(store: Store) -> Result<()> {
    build(&["./node", "./dns", "./pause"])?;
    crate::tool("etcdctl");
    if store == Store::Etcd {
        crate::tool("etcd");
    }
    Ok(())
}

/// Builds helm, and says where it is.
pub fn helm() -> Result<PathBuf> {
    build(&[HELM])?;
    Ok(folder().join("helm"))
}

/// Builds packages of the module `e2e/k8s`.
pub fn build(packages: &[&str]) -> Result<()> {
    let folder = folder();
    fs::create_dir_all(&folder)?;
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s");
    let mut target = folder.into_os_string();
    // Go wants to see that it is a folder.
    target.push("/");
    let status = Command::new("go")
        .args(["build", "-trimpath", COMPILE, LINK, "-o"])
        .arg(target)
        .args(packages)
        .current_dir(&module)
        .status()
        .context("could not run go; install Go 1.26 or later")?;
    ensure!(
        status.success(),
        "{packages:?} of {} do not build",
        module.display()
    );
    Ok(())
}
