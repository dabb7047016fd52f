//! What lies where in an instance's folder, and which addresses its parts have.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::k8s::{cgroups, process};

/// Where the control plane is reached.
pub const CONTROL: &str = "10.99.0.1";
/// Nothing answers here: what a pod sends to the world ends here.
pub const NOWHERE: &str = "10.99.0.254";
/// Where services have their addresses.
pub const SERVICES: &str = "10.96.0.0/16";
/// The service `kubernetes` is the first of them.
pub const FIRST_SERVICE: &str = "10.96.0.1";
/// Where pods have their addresses.
pub const PODS: &str = "10.244.0.0/16";
/// Where kube-apiserver listens.
pub const API_PORT: u16 = 6443;
/// Volumes of each node, and how much each says it holds. Nothing enforces the size.
pub const VOLUMES: usize = 8;
/// See [`VOLUMES`].
pub const VOLUME_SIZE: &str = "10Gi";
/// Most nodes of one instance.
pub const MAX_NODES: usize = 3;
/// A socket's path may not be longer, the zero behind it not counted.
const LONGEST_SOCKET: usize = 107;

/// What kube-apiserver keeps its objects in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    /// Ours.
    Cairn,
    /// The real one, for comparison.
    Etcd,
}

/// What an instance is, kept in its folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Instance {
    /// One or three.
    pub nodes: usize,
    /// What the objects lie in.
    pub store: Store,
    /// The process that holds it together.
    pub supervisor: u32,
    /// When that started, in clock ticks since the machine did: a process ID is used again.
    pub since: u64,
}

impl Instance {
    /// The name of its control groups.
    pub fn cgroup(&self) -> String {
        format!("cairn-{}-{}", self.supervisor, self.since)
    }

    /// Whether its supervisor is there.
    pub fn alive(&self) -> bool {
        process::start_time(self.supervisor) == Some(self.since)
    }
}

/// The folder of one instance.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Of the folder `root`, which need not be there yet.
    pub fn new(root: &Path) -> Result<Self> {
        let root = std::path::absolute(root)?;
        let layout = Self { root };
        let socket = layout.socket(MAX_NODES);
        ensure!(
            socket.as_os_str().len() <= LONGEST_SOCKET,
            "{} is longer than the {LONGEST_SOCKET} bytes of a socket's path; choose a shorter folder",
            socket.display()
        );
        Ok(layout)
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// What all parts write.
    pub fn logs(&self) -> PathBuf {
        self.path("logs")
    }

    /// A line for each step of the start that is done.
    pub fn progress(&self) -> PathBuf {
        self.logs().join("progress.log")
    }

    /// Why the control plane ended.
    pub fn control_log(&self) -> PathBuf {
        self.logs().join("control.log")
    }

    /// One of the programs that run inside: kube-apiserver, kubectl, helm and so on.
    pub fn program(&self, name: &str) -> PathBuf {
        self.path("bin").join(name)
    }

    /// The administrator's.
    pub fn kubeconfig(&self) -> PathBuf {
        self.path("kubeconfig")
    }

    /// Of one of the parts.
    pub fn kubeconfig_of(&self, part: &str) -> PathBuf {
        self.path("pki").join(format!("{part}.kubeconfig"))
    }

    /// A certificate (`crt`) or key (`key`).
    pub fn pki(&self, name: &str, ending: &str) -> PathBuf {
        self.path("pki").join(format!("{name}.{ending}"))
    }

    /// There once everything is up.
    pub fn ready(&self) -> PathBuf {
        self.path("ready")
    }

    /// There once kube-apiserver answers: nodes wait for it.
    pub fn api_ready(&self) -> PathBuf {
        self.path("api-ready")
    }

    /// What belongs to node `number`, which counts from one.
    pub fn node(&self, number: usize) -> PathBuf {
        self.path("nodes").join(number.to_string())
    }

    /// There while a node shall be down.
    pub fn node_down(&self, number: usize) -> PathBuf {
        self.node(number).join("down")
    }

    /// There while a node's processes are.
    pub fn node_running(&self, number: usize) -> PathBuf {
        self.node(number).join("running")
    }

    /// Where its containerd listens.
    pub fn socket(&self, number: usize) -> PathBuf {
        self.node(number).join("containerd.sock")
    }

    /// One of its volumes, which count from one.
    pub fn volume(&self, node: usize, volume: usize) -> PathBuf {
        self.node(node).join("volumes").join(volume.to_string())
    }

    /// Images that every node imports when it starts.
    pub fn images(&self) -> PathBuf {
        self.path("images")
    }

    /// The first process of the control plane, as the machine numbers it.
    pub fn init(&self) -> Result<u32> {
        let text = fs::read_to_string(self.path("init.pid")).context("it is not running")?;
        text.trim().parse().context("init.pid holds no process ID")
    }

    /// Keeps the PID of [`Layout::init`].
    pub fn save_init(&self, pid: u32) -> Result<()> {
        Ok(fs::write(self.path("init.pid"), pid.to_string())?)
    }

    /// What must be gone when the instance is: its folder and its control groups.
    pub fn traces(&self) -> Result<Vec<PathBuf>> {
        let mut traces = cgroups::groups(&self.instance()?.cgroup())?;
        traces.push(self.root.clone());
        Ok(traces)
    }

    /// What the instance is.
    pub fn instance(&self) -> Result<Instance> {
        let path = self.path("instance.json");
        let text = fs::read(&path).with_context(|| format!("no {}", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Keeps it.
    pub fn save_instance(&self, instance: &Instance) -> Result<()> {
        let path = self.path("instance.json");
        Ok(fs::write(path, serde_json::to_vec(instance)?)?)
    }
}

/// The name of node `number`.
pub fn node_name(number: usize) -> String {
    format!("node-{number}")
}

/// The address of node `number`.
pub fn node_address(number: usize) -> String {
    format!("10.99.0.{}", 10 + number)
}

/// The addresses of its pods.
pub fn node_pods(number: usize) -> String {
    format!("10.244.{number}.0/24")
}

/// The hardware address of its link. It stays the same over a crash, so that nobody has to learn
/// it anew.
pub fn node_link(number: usize) -> String {
    format!("02:00:0a:63:00:{:02x}", 10 + number)
}

/// One or three: two lose their quorum with either.
pub fn check_nodes(nodes: usize) -> Result<()> {
    match nodes {
        1 | 3 => Ok(()),
        other => bail!("{other} nodes are not offered; say 1 or 3"),
    }
}
