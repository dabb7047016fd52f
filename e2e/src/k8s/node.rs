//! A node: its first process, with containerd, kubelet and kube-proxy below.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::k8s::{
    config,
    layout::{Layout, NOWHERE, node_address, node_name, node_pods},
    machine,
    process::{self, Daemons, STEP, command, run},
};

/// How long its link may take to appear.
const LINK: Duration = Duration::from_secs(30);
/// How long containerd may take on a busy machine.
const CONTAINERD: Duration = Duration::from_secs(60);
/// How long kube-apiserver may take.
const API: Duration = Duration::from_secs(300);

/// Runs node `number` of the instance in `root`, until something of it ends.
pub fn node(root: &Path, number: usize) -> Result<()> {
    let layout = Layout::new(root)?;
    let nodes = layout.instance()?.nodes;
    machine::become_machine(&layout, &node_name(number))?;
    machine::sysctl("net/bridge/bridge-nf-call-iptables")?;
    own_mounts(&layout, number)?;
    let mut daemons = Daemons::new(layout.logs());
    connect(number, nodes)?;
    start_containerd(&layout, number, &mut daemons)?;
    let api = layout.api_ready();
    process::wait_for("kube-apiserver", API, || {
        daemons.all_alive()?;
        Ok(api.exists().then_some(()))
    })?;
    start(&layout, number, &mut daemons)?;
    loop {
        daemons.all_alive()?;
        thread::sleep(STEP);
    }
}

/// kubelet writes here whatever its own folder is, and expects to find it after a restart.
fn own_mounts(layout: &Layout, number: usize) -> Result<()> {
    let lib = layout.node(number).join("kubelet-lib");
    fs::create_dir_all("/var/lib/kubelet")?;
    fs::create_dir_all("/var/log/containers")?;
    run(
        "mount",
        &["--bind", &lib.to_string_lossy(), "/var/lib/kubelet"],
    )?;
    Ok(())
}

/// Waits for the link to the others, and takes its address and the ways to their pods.
fn connect(number: usize, nodes: usize) -> Result<()> {
    process::wait_for("the link to the other nodes", LINK, || {
        let devices = fs::read_to_string("/proc/self/net/dev")?;
        Ok(devices.contains("eth0:").then_some(()))
    })?;
    let address = format!("{}/24", node_address(number));
    run("ip", &["addr", "add", &address, "dev", "eth0"])?;
    run("ip", &["link", "set", "eth0", "up"])?;
    // Some parts insist on a default route.
    run("ip", &["route", "add", "default", "via", NOWHERE])?;
    for other in (1..=nodes).filter(|&other| other != number) {
        let way = [&node_pods(other), "via", &node_address(other)];
        run("ip", &["route", "add", way[0], way[1], way[2]])?;
    }
    Ok(())
}

/// Starts it and loads the images that every node has.
fn start_containerd(layout: &Layout, number: usize, daemons: &mut Daemons) -> Result<()> {
    let name = format!("{}-containerd", node_name(number));
    let config = layout.node(number).join("containerd.toml");
    let mut containerd = command("containerd");
    containerd.arg("--config").arg(config);
    daemons.spawn(&name, containerd)?;
    let socket = layout.socket(number);
    process::wait_for("containerd", CONTAINERD, || {
        daemons.all_alive()?;
        Ok(UnixStream::connect(&socket).is_ok().then_some(()))
    })?;
    let mut images: Vec<PathBuf> = fs::read_dir(layout.images())?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    images.sort();
    for image in images {
        import(layout, number, &image)?;
    }
    Ok(())
}

/// Loads an image into one node.
pub fn import(layout: &Layout, number: usize, image: &Path) -> Result<()> {
    let socket = layout.socket(number).display().to_string();
    let image = image.display().to_string();
    let arguments = [
        "--address",
        &socket,
        "--namespace",
        "k8s.io",
        "images",
        "import",
        &image,
    ];
    run("ctr", &arguments)
        .with_context(|| format!("could not load {image} into {}", node_name(number)))?;
    Ok(())
}

fn start(layout: &Layout, number: usize, daemons: &mut Daemons) -> Result<()> {
    let name = node_name(number);
    let mut kubelet = command(layout.program("kubelet"));
    kubelet.args(config::kubelet_arguments(layout, number));
    daemons.spawn(&format!("{name}-kubelet"), kubelet)?;
    let mut proxy = command(layout.program("kube-proxy"));
    let file = layout.node(number).join("kube-proxy.yaml");
    proxy.arg(format!("--config={}", file.display()));
    daemons.spawn(&format!("{name}-kube-proxy"), proxy)?;
    Ok(())
}
