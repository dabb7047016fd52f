//! One member in a process of its own, ended with its owner.

use std::{
    fs::{self, File},
    net::TcpListener,
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use crate::failpoints::{self, Failpoints};

/// Both log this line when they serve clients.
const READY: &str = "ready to serve client requests";
/// Ports for servers, below those that Linux gives to outgoing connections.
const PORTS: Range<u16> = 12_000..32_000;
/// How long a start may take on a busy machine.
const START: Duration = Duration::from_secs(60);
/// How long a server may take to end after SIGTERM.
const STOP: Duration = Duration::from_secs(20);

/// Which server a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ours.
    Cairn,
    /// Ours, of the commit that `e2e/previous` names.
    CairnBefore,
    /// The real one, as `e2e/go.mod` pins it.
    Etcd,
    /// The real one of the minor version before, as `e2e/etcd36/go.mod` pins it.
    Etcd36,
}

/// A running member. Dropping it kills the process.
pub struct Server {
    kind: Kind,
    failpoints: Option<Failpoints>,
    child: Child,
    arguments: Vec<String>,
    log: PathBuf,
    url: String,
}

/// Builds one of etcd's programs (`etcd`, `etcdctl`, `etcdutl`, and `benchmark`, its load generator)
/// from the modules that `go.mod` pins, `etcd36` from those of `etcd36/go.mod`, or one of the folders
/// beside it (`bolttool`, `waltool`, `clients/go`). Go's own cache makes this cheap after the first time.
pub fn tool(name: &str) -> PathBuf {
    let modules = Path::new(env!("CARGO_MANIFEST_DIR"));
    let modules = match name {
        "etcd36" => modules.join(name),
        _ => modules.to_owned(),
    };
    let package = match name {
        "etcd" | "etcd36" => "go.etcd.io/etcd/server/v3".to_owned(),
        "benchmark" => "go.etcd.io/etcd/v3/tools/benchmark".to_owned(),
        "bolttool" | "waltool" | "clients/go" => format!("./{name}"),
        name => format!("go.etcd.io/etcd/{name}/v3"),
    };
    let binary = target_folder().join("tools").join(name);
    fs::create_dir_all(binary.parent().unwrap()).unwrap();
    let status = Command::new("go")
        .args(["build", "-trimpath", "-o"])
        .arg(&binary)
        .arg(package)
        .current_dir(modules)
        .status()
        .unwrap();
    assert!(status.success(), "{name} does not build");
    binary
}

/// Where cargo put what it built.
pub fn target_folder() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let folder = own.parent().unwrap();
    // Tests lie one folder deeper than programs.
    match folder.ends_with("deps") {
        true => folder.parent().unwrap().to_owned(),
        false => folder.to_owned(),
    }
}

/// A port that is free now. The system gives none of these to connections that go out, so a server
/// that is down for a moment finds its port again.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = std::process::id() as u16;
    loop {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start + start.wrapping_mul(97).wrapping_add(next) % PORTS.len() as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// How a member is started.
#[derive(Clone)]
pub struct Member {
    kind: Kind,
    name: String,
    scheme: &'static str,
    peer_url: String,
    flags: Vec<String>,
    failpoints: Option<String>,
    disk: Option<PathBuf>,
}

impl Member {
    /// A member with a peer URL of its own.
    pub fn new(kind: Kind, name: &str) -> Self {
        Self {
            kind,
            name: name.to_owned(),
            scheme: "http",
            peer_url: format!("http://127.0.0.1:{}", free_port()),
            flags: Vec::new(),
            failpoints: None,
            disk: None,
        }
    }

    /// The same from the program whose failpoints can be told what to do: a cairn only.
    /// `terms` is what they are told at the start.
    pub fn with_failpoints(mut self, terms: &str) -> Self {
        self.failpoints = Some(terms.to_owned());
        self
    }

    /// The same with its data, and not what it writes to its log, below `disk`.
    pub fn with_data_on(mut self, disk: &Path) -> Self {
        self.disk = Some(disk.to_owned());
        self
    }

    /// The same with TLS on all ports, as `flags` say it.
    pub fn with_tls(mut self, flags: Vec<String>) -> Self {
        self.scheme = "https";
        self.peer_url = self.peer_url.replacen("http", "https", 1);
        self.flags = flags;
        self
    }

    /// The same with more flags.
    pub fn with_flags(mut self, flags: Vec<String>) -> Self {
        self.flags.extend(flags);
        self
    }

    /// The same, run by a server of this kind, without the flags that it had: data directories go both
    /// ways.
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self.flags.clear();
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where other members reach it.
    pub fn peer_url(&self) -> &str {
        &self.peer_url
    }

    /// Its part of `--initial-cluster`.
    pub fn pair(&self) -> String {
        format!("{}={}", self.name, self.peer_url)
    }

    /// Starts it and does not wait: the first members of a cluster wait for each other.
    pub fn launch(&self, folder: &Path, cluster: &[&Member], state: &str) -> Server {
        let pairs: Vec<String> = cluster.iter().map(|member| member.pair()).collect();
        let url = format!("{}://127.0.0.1:{}", self.scheme, free_port());
        let data = self.disk.as_deref().unwrap_or(folder).join(&self.name);
        let mut arguments = vec![
            format!("--name={}", self.name),
            format!("--data-dir={}", data.display()),
            format!("--listen-client-urls={url}"),
            format!("--advertise-client-urls={url}"),
            format!("--listen-peer-urls={}", self.peer_url),
            format!("--initial-advertise-peer-urls={}", self.peer_url),
            format!("--initial-cluster={}", pairs.join(",")),
            format!("--initial-cluster-state={state}"),
        ];
        arguments.extend(self.flags.iter().cloned());
        let log = folder.join(format!("{}.log", self.name));
        let failpoints = self.failpoints.as_deref().map(Failpoints::new);
        Server::launch(self.kind, failpoints, arguments, log, url)
    }
}

impl Server {
    /// Starts a single member in `folder` and waits until it serves. Members of both kinds get the
    /// same IDs, so that their answers can be compared whole.
    pub fn start(kind: Kind, folder: &Path, more: &[&str]) -> Self {
        let mut server = Self::launch_single(kind, &folder.join("data"), folder.join("log"), more);
        server.wait_ready();
        server
    }

    /// Starts a single member with its data in `data`, its log outside of it, and does not wait.
    pub fn launch_single(kind: Kind, data: &Path, log: PathBuf, more: &[&str]) -> Self {
        let (client, peer) = (free_port(), free_port());
        let url = format!("http://127.0.0.1:{client}");
        let mut arguments = vec![
            "--name=m".to_owned(),
            format!("--data-dir={}", data.display()),
            format!("--listen-client-urls={url}"),
            "--advertise-client-urls=http://127.0.0.1:1".to_owned(),
            format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
            "--initial-advertise-peer-urls=http://127.0.0.1:2".to_owned(),
            "--initial-cluster=m=http://127.0.0.1:2".to_owned(),
        ];
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        Self::launch(kind, None, arguments, log, url)
    }

    fn launch(
        kind: Kind,
        failpoints: Option<Failpoints>,
        arguments: Vec<String>,
        log: PathBuf,
        url: String,
    ) -> Self {
        Self {
            kind,
            child: spawn(kind, failpoints.as_ref(), &arguments, &log),
            failpoints,
            arguments,
            log,
            url,
        }
    }

    /// Where clients connect.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the server wrote since its last start.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Kills it without warning, as `kill -9` does.
    pub fn kill(&mut self) {
        // It may have ended by itself, which the tests see elsewhere.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end and waits until it has.
    pub fn stop(&mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        let asked = Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        assert!(asked.success());
        let began = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(began.elapsed() < STOP, "still there after SIGTERM");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts it again on the same data and waits until it serves.
    pub fn restart(&mut self) {
        self.relaunch();
        self.wait_ready();
    }

    /// Starts it again on the same data and does not wait.
    pub fn relaunch(&mut self) {
        let failpoints = self.failpoints.as_ref();
        self.child = spawn(self.kind, failpoints, &self.arguments, &self.log);
    }

    /// Its failpoints.
    ///
    /// # Panics
    /// When it has none that can be told anything.
    pub fn failpoints(&mut self) -> &mut Failpoints {
        self.failpoints.as_mut().unwrap()
    }

    /// Sends a signal, as `STOP`.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.unwrap().success());
    }

    /// Whether it has served clients since its last start.
    pub fn is_ready(&self) -> bool {
        self.log().contains(READY)
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until it serves clients.
    pub fn wait_ready(&mut self) {
        let began = Instant::now();
        while !self.is_ready() {
            if let Some(status) = self.ended() {
                panic!("{:?} ended with {status}:\n{}", self.kind, self.log());
            }
            assert!(began.elapsed() < START, "not ready:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The program of a kind.
pub fn program(kind: Kind) -> PathBuf {
    match kind {
        Kind::Cairn => target_folder().join("cairn"),
        Kind::CairnBefore => crate::previous::program().expect("this clone reaches back to it"),
        Kind::Etcd => tool("etcd"),
        Kind::Etcd36 => tool("etcd36"),
    }
}

fn spawn(kind: Kind, failpoints: Option<&Failpoints>, arguments: &[String], log: &Path) -> Child {
    let binary = match failpoints {
        Some(_) => failpoints::program(),
        None => program(kind),
    };
    let log = File::create(log).unwrap();
    Command::new(&binary)
        .args(arguments)
        // Nothing from outside may set a flag.
        .env_clear()
        .envs(
            failpoints
                .map(Failpoints::environment)
                .into_iter()
                .flatten(),
        )
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("could not run {}: {error}", binary.display()))
}
