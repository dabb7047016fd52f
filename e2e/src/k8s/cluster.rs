//! A running Kubernetes in the hands of a test.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    k8s::{
        binaries, images,
        layout::{Layout, Store, node_name},
        node, process,
        supervise::{self, KEEP_LOGS, Options, PREFIX},
    },
    server::target_folder,
};

/// How long a node may take to end or to appear.
const NODE: Duration = Duration::from_secs(60);
/// How long the supervisor may take to clean up.
const STOP: Duration = Duration::from_secs(90);

/// What a program said.
#[derive(Clone, Debug)]
pub struct Output {
    /// Whether its exit code was zero.
    pub ok: bool,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A Kubernetes. One that a test started ends with it, and leaves nothing; when the test fails,
/// the logs are copied to `k8s-logs` beside the binaries.
pub struct Kubernetes {
    layout: Layout,
    first: u32,
    supervisor: Option<Child>,
}

impl Kubernetes {
    /// Starts one of `nodes` nodes in a temporary folder, and waits until it is ready. Builds what
    /// it needs first.
    pub fn start(nodes: usize, store: Store) -> Result<Self> {
        binaries::kubernetes(store)?;
        binaries::helm()?;
        let parent = std::env::temp_dir();
        supervise::sweep_folders(&parent)?;
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
        // The supervisor removes it, also when this process is killed.
        let dir = folder.keep();
        let name = dir.file_name().context("a folder has a name")?;
        let options = Options {
            logs: target_folder().join("k8s-logs").join(name),
            dir: dir.clone(),
            nodes,
            store,
            lock: None,
        };
        let layout = Layout::new(&dir)?;
        let mut supervisor = supervise::start(&target_folder().join("k8s"), &options, None)?;
        if let Err(error) = supervise::wait_ready(&layout, &mut supervisor, |_| ()) {
            end(&mut supervisor, true);
            return Err(error);
        }
        Ok(Self {
            first: layout.init()?,
            layout,
            supervisor: Some(supervisor),
        })
    }

    /// The one that `make k8s-up` started. It stays when this value goes.
    pub fn attach() -> Result<Self> {
        let layout = supervise::own_layout()?;
        let running = layout.instance().is_ok_and(|instance| instance.alive());
        ensure!(
            running && layout.ready().exists(),
            "no Kubernetes is running; `make k8s-up NODES=3` starts one"
        );
        Ok(Self {
            first: layout.init()?,
            layout,
            supervisor: None,
        })
    }

    /// How many nodes it has.
    pub fn nodes(&self) -> Result<usize> {
        Ok(self.layout.instance()?.nodes)
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        self.layout.root()
    }

    /// A command that will run inside: with its network, names and files, in this folder.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        let target = self.first.to_string();
        command.args(["--target", &target, "--net", "--mount", "--uts"]);
        if let Ok(folder) = std::env::current_dir() {
            let mut there = OsString::from("--wdns=");
            there.push(folder);
            command.arg(there);
        }
        command.arg(program.as_ref());
        command
            .env("KUBECONFIG", self.layout.kubeconfig())
            .env("KUBECACHEDIR", self.layout.path("kubectl-cache"))
            .env("HELM_CACHE_HOME", self.layout.path("helm/cache"))
            .env("HELM_CONFIG_HOME", self.layout.path("helm/config"))
            .env("HELM_DATA_HOME", self.layout.path("helm/data"));
        command
    }

    /// kubectl, helm or etcdctl, as [`Kubernetes::command`].
    pub fn program(&self, name: &str) -> Command {
        self.command(self.layout.program(name))
    }

    /// Runs a program inside of it.
    pub fn exec<S: AsRef<OsStr>>(&self, words: &[S]) -> Result<Output> {
        let (program, arguments) = words.split_first().context("no command was given")?;
        let mut command = self.command(program);
        command.args(arguments);
        output(&mut command, "")
    }

    /// Replaces this process by a program inside of it; returns only when that fails.
    pub fn become_program(&self, mut command: Command) -> anyhow::Error {
        anyhow::Error::from(command.exec()).context("could not run nsenter")
    }

    /// Runs kubectl; that it fails is an answer too.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<Output> {
        output(self.program("kubectl").args(arguments), "")
    }

    /// Runs kubectl, which must succeed; gives what it printed.
    pub fn must(&self, arguments: &[&str]) -> Result<String> {
        let output = self.kubectl(arguments)?;
        ensure!(output.ok, "kubectl {arguments:?}: {}", output.stderr.trim());
        Ok(output.stdout)
    }

    /// Reads objects: `get(&["pod", "a"])`.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.must(&[&["get", "--output=json"], arguments].concat())?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Applies manifests.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        let mut command = self.program("kubectl");
        command.args(["apply", "--filename=-"]);
        let output = output(&mut command, yaml)?;
        ensure!(output.ok, "kubectl apply: {}", output.stderr.trim());
        Ok(())
    }

    /// Runs helm, which must succeed; gives what it printed.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        let output = output(self.program("helm").args(arguments), "")?;
        ensure!(output.ok, "helm {arguments:?}: {}", output.stderr.trim());
        Ok(output.stdout)
    }

    /// Asks until there is an answer. An error of `attempt` ends it; an answer that is not there
    /// yet is none.
    pub fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        attempt: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        process::wait_for(what, limit, attempt)
    }

    /// Waits until a pod is ready, also one that does not exist yet.
    pub fn wait_pod(&self, namespace: &str, name: &str, limit: Duration) -> Result<()> {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        let asked = [
            "get",
            "pod",
            "--namespace",
            namespace,
            name,
            "--output",
            path,
        ];
        process::wait_for(&format!("pod {namespace}/{name}"), limit, || {
            let output = self.kubectl(&asked)?;
            Ok((output.ok && output.stdout == "True").then_some(()))
        })
        .with_context(|| self.describe(namespace, name))
    }

    /// What kubectl has to say of a pod, for an error.
    fn describe(&self, namespace: &str, name: &str) -> String {
        let asked = ["describe", "pod", "--namespace", namespace, name];
        match self.kubectl(&asked) {
            Ok(output) => output.stdout + &output.stderr,
            Err(error) => error.to_string(),
        }
    }

    /// Loads an image archive into every node.
    pub fn load_archive(&self, archive: &Path) -> Result<()> {
        for number in 1..=self.nodes()? {
            node::import(&self.layout, number, archive)?;
        }
        Ok(())
    }

    /// Makes an image and loads it into every node; gives its name.
    pub fn load_image(&self, image: &images::Image) -> Result<String> {
        let archive = self.layout.path("image.tar");
        image.write(&archive)?;
        self.load_archive(&archive)?;
        fs::remove_file(archive)?;
        Ok(image.reference())
    }

    /// Ends node `number` as a power failure does: all its processes at once. The cluster finds
    /// out by itself.
    pub fn crash_node(&self, number: usize) -> Result<()> {
        self.check_node(number)?;
        fs::write(self.layout.node_down(number), "")?;
        let running = self.layout.node_running(number);
        process::wait_for(&format!("{} to end", node_name(number)), NODE, || {
            Ok((!running.exists()).then_some(()))
        })
    }

    /// Starts a node again that crashed, with what is on its disk. Does not wait until the
    /// cluster calls it ready.
    pub fn return_node(&self, number: usize) -> Result<()> {
        self.check_node(number)?;
        let down = self.layout.node_down(number);
        fs::remove_file(&down).with_context(|| format!("{} is up", node_name(number)))?;
        let running = self.layout.node_running(number);
        process::wait_for(&format!("{} to start", node_name(number)), NODE, || {
            Ok(running.exists().then_some(()))
        })
    }

    fn check_node(&self, number: usize) -> Result<()> {
        let nodes = self.nodes()?;
        ensure!(
            (1..=nodes).contains(&number),
            "there is no node {number}; they are numbered 1 to {nodes}"
        );
        Ok(())
    }

    /// Whether a node is ready in the eyes of the cluster.
    pub fn node_ready(&self, number: usize) -> Result<bool> {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        let state = self.must(&["get", "node", &node_name(number), "--output", path])?;
        Ok(state == "True")
    }

    /// What must be gone when it is.
    pub fn traces(&self) -> Result<Vec<PathBuf>> {
        self.layout.traces()
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        if let Some(supervisor) = &mut self.supervisor {
            end(supervisor, thread::panicking());
        }
    }
}

/// Lets the supervisor clean up, and waits for it.
fn end(supervisor: &mut Child, keep_logs: bool) {
    if keep_logs {
        supervise::say(supervisor, KEEP_LOGS);
    }
    drop(supervisor.stdin.take());
    let ended = process::wait_for("the supervisor to end", STOP, || {
        Ok(supervisor.try_wait()?.map(|_| ()))
    });
    if ended.is_err() {
        let _ = supervisor.kill();
    }
}

fn output(command: &mut Command, input: &str) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("could not run nsenter")?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read all of it says why itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    Ok(Output {
        ok: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
