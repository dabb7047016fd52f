//! The one process of an instance outside of its namespaces. It makes the instance's folder and
//! control groups, starts the control plane, and removes all of it in the end: when it is told to,
//! when the control plane ends, and when whoever started it ends. If it is killed itself, the
//! kernel ends the rest, and the next one to start removes what was left.

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use crate::k8s::{
    binaries, cgroups, config,
    control::namespaces,
    layout::{Instance, Layout, Store, check_nodes},
    process,
};

/// What the launcher needs of the machine, and the Debian package that has it.
const NEEDED: [(&str, &str); 9] = [
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("mount", "mount"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("busybox", "busybox-static"),
];
/// How long a start may take, the building of programs left out.
const START: Duration = Duration::from_secs(420);
/// How long an instance may take to be gone.
const STOP: Duration = Duration::from_secs(60);
/// How long the namespaces' first process may take to appear.
const APPEAR: Duration = Duration::from_secs(20);
/// Said to the supervisor's standard input: stay when the starter ends.
const STAY: u8 = b's';
/// Said to it: the logs are worth keeping.
pub const KEEP_LOGS: u8 = b'k';
/// What temporary folders of instances are called.
pub const PREFIX: &str = "cairn-k8s-";

/// How an instance is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its folder, made and removed by the supervisor.
    pub dir: PathBuf,
    /// One or three.
    pub nodes: usize,
    /// What kube-apiserver keeps its objects in.
    pub store: Store,
    /// Where the logs are copied to when it fails.
    pub logs: PathBuf,
    /// Held while it runs, when there shall be only one.
    pub lock: Option<PathBuf>,
}

/// Runs an instance to its end.
pub fn supervise(options: &Options) -> Result<()> {
    let _lock = match &options.lock {
        Some(path) => Some(lock(path)?),
        None => None,
    };
    check_nodes(options.nodes)?;
    preflight()?;
    cgroups::sweep()?;
    let layout = Layout::new(&options.dir)?;
    let supervisor = std::process::id();
    let instance = Instance {
        nodes: options.nodes,
        store: options.store,
        supervisor,
        since: process::start_time(supervisor).context("this process has no start time")?,
    };
    clear(layout.root())?;
    fs::create_dir_all(layout.root())?;
    layout.save_instance(&instance)?;
    let result = run(&layout, &instance, options);
    let cleaned = clean(&layout, &instance);
    result.and(cleaned)
}

fn run(layout: &Layout, instance: &Instance, options: &Options) -> Result<()> {
    config::write(layout, instance)?;
    cgroups::create(&instance.cgroup(), instance.nodes)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let end = runtime.block_on(hold(layout))?;
    if end != End::Asked {
        let logs = keep_logs(layout, &options.logs)?;
        println!("its logs are in {}", logs.display());
    }
    match end {
        End::Failed(how) => bail!("the control plane ended: {how}"),
        _ => Ok(()),
    }
}

/// Why an instance ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Somebody asked for it, or is gone.
    Asked,
    /// The same, with the wish to keep the logs.
    AskedToKeepLogs,
    /// By itself.
    Failed(String),
}

/// Starts the control plane and waits for whichever end comes first.
async fn hold(layout: &Layout) -> Result<End> {
    let mut control = namespaces()?;
    control.arg("control").arg("--dir").arg(layout.root());
    control.stdout(File::create(layout.progress())?);
    control.stderr(File::create(layout.control_log())?);
    let mut child = tokio::process::Command::from(control)
        .kill_on_drop(true)
        .spawn()
        .context("could not start unshare")?;
    let outer = child.id().context("unshare has a process ID")?;
    let mut said = listen();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let first = find_first(&mut child, outer, layout);
    let end = tokio::select! {
        status = child.wait() => End::Failed(format!(
            "{}; its last words:\n{}", status?, process::tail(&layout.control_log())
        )),
        _ = terminate.recv() => End::Asked,
        _ = interrupt.recv() => End::Asked,
        end = wait_for_starter(&mut said) => end,
    };
    // All processes of the namespaces end before their first one is gone for good, and unshare
    // waits for that.
    match first {
        Some(first) => process::kill(first),
        None => process::kill(outer),
    }
    child.wait().await?;
    Ok(end)
}

/// The first process of the namespaces. None when unshare ended before there was one.
fn find_first(child: &mut tokio::process::Child, outer: u32, layout: &Layout) -> Option<u32> {
    let found = process::wait_for("the first process", APPEAR, || {
        if child.try_wait()?.is_some() {
            bail!("unshare ended");
        }
        Ok(process::children(outer).first().copied())
    });
    let first = found.ok()?;
    // Without it nobody can enter, which they will say.
    let _ = layout.save_init(first);
    Some(first)
}

/// What the starter says, byte by byte. Ends with it.
fn listen() -> mpsc::Receiver<u8> {
    let (sender, receiver) = mpsc::channel(4);
    thread::spawn(move || {
        for byte in io::stdin().lock().bytes() {
            let Ok(byte) = byte else { return };
            if sender.blocking_send(byte).is_err() {
                return;
            }
        }
    });
    receiver
}

async fn wait_for_starter(said: &mut mpsc::Receiver<u8>) -> End {
    let mut keep = false;
    loop {
        match said.recv().await {
            Some(STAY) => std::future::pending().await,
            Some(KEEP_LOGS) => keep = true,
            Some(_) => {}
            None if keep => return End::AskedToKeepLogs,
            None => return End::Asked,
        }
    }
}

fn clean(layout: &Layout, instance: &Instance) -> Result<()> {
    let groups = cgroups::remove(&instance.cgroup());
    clear(layout.root())?;
    groups
}

fn clear(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("could not remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Replaces what was kept there of an earlier run.
fn keep_logs(layout: &Layout, to: &Path) -> Result<PathBuf> {
    clear(to)?;
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    let from = layout.logs().display().to_string();
    process::run("cp", &["-r", &from, &to.display().to_string()])?;
    Ok(to.to_owned())
}

/// Says what the machine lacks, before anything is made.
fn preflight() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "namespaces, control groups and containers need root; run it as root"
    );
    let missing = NEEDED
        .iter()
        .filter(|(program, _)| process::find(program).is_none());
    let mut packages: Vec<&str> = missing.map(|&(_, package)| package).collect();
    if !Path::new(config::CNI).join("bridge").exists() {
        packages.push("containernetworking-plugins");
    }
    packages.dedup();
    ensure!(
        packages.is_empty(),
        "these Debian packages are missing: {0}; run `make deps` or apt-get install {0}",
        packages.join(" ")
    );
    process::run(
        "unshare",
        &[
            "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "true",
        ],
    )
    .context("this machine does not allow namespaces; a container needs --privileged")?;
    Ok(())
}

fn lock(path: &Path) -> Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            bail!("a Kubernetes is running already; `make k8s-down` ends it")
        }
        Err(fs::TryLockError::Error(error)) => Err(error.into()),
    }
}

/// Starts a supervisor that ends with this process, as long as it is not told to stay. It complains
/// into `output`, or where this process does.
pub fn start(program: &Path, options: &Options, output: Option<&File>) -> Result<Child> {
    let mut supervisor = Command::new(program);
    supervisor.arg("supervise");
    supervisor.arg("--dir").arg(&options.dir);
    supervisor.args(["--nodes", &options.nodes.to_string()]);
    let store = match options.store {
        Store::Cairn => "cairn",
        Store::Etcd => "etcd",
    };
    supervisor.args(["--store", store]);
    supervisor.arg("--logs").arg(&options.logs);
    if let Some(lock) = &options.lock {
        supervisor.arg("--lock").arg(lock);
    }
    supervisor.stdin(Stdio::piped());
    if let Some(output) = output {
        supervisor.stdout(output.try_clone()?);
        supervisor.stderr(output.try_clone()?);
    }
    // What a terminal sends to its foreground is not for it.
    std::os::unix::process::CommandExt::process_group(&mut supervisor, 0);
    supervisor
        .spawn()
        .with_context(|| format!("could not run {}", program.display()))
}

/// Waits until the instance is up; `show` gets the progress.
pub fn wait_ready(
    layout: &Layout,
    supervisor: &mut Child,
    mut show: impl FnMut(&str),
) -> Result<()> {
    let mut shown = 0;
    process::wait_for("Kubernetes", START, || {
        let text = fs::read_to_string(layout.progress()).unwrap_or_default();
        if let Some(more) = text.get(shown..).filter(|more| more.ends_with('\n')) {
            show(more);
            shown = text.len();
        }
        if let Some(status) = supervisor.try_wait()? {
            bail!("it did not start: the supervisor ended with {status}");
        }
        Ok(layout.ready().exists().then_some(()))
    })
}

/// Where the instance of this user's lies, and what belongs to it.
fn own(nodes: usize, store: Store) -> Result<Options> {
    let cache = match env::var_os("XDG_CACHE_HOME") {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    let folder = cache.join("cairn/k8s");
    Ok(Options {
        dir: folder.join("run"),
        nodes,
        store,
        logs: folder.join("logs"),
        lock: Some(folder.join("lock")),
    })
}

/// The folder of this user's instance.
pub fn own_layout() -> Result<Layout> {
    Layout::new(&own(1, Store::Cairn)?.dir)
}

/// Starts the instance of this user and says how to use it.
pub fn up(nodes: usize, store: Store) -> Result<()> {
    check_nodes(nodes)?;
    let options = own(nodes, store)?;
    let layout = Layout::new(&options.dir)?;
    // The supervisor makes sure; this says it before minutes of building.
    if let Some(lock_path) = &options.lock {
        drop(lock(lock_path)?);
    }
    preflight()?;
    println!("building Kubernetes (minutes for the first time)");
    binaries::kubernetes(store)?;
    binaries::helm()?;
    println!("starting {nodes} node(s) on {store:?}");
    clear(layout.root())?;
    let program = env::current_exe()?;
    let errors = tempfile::NamedTempFile::new()?;
    let mut supervisor = start(&program, &options, Some(errors.as_file()))?;
    let waited = wait_ready(&layout, &mut supervisor, |text| print!("{text}"));
    if waited.is_err() {
        say(&mut supervisor, KEEP_LOGS);
        drop(supervisor.stdin.take());
        supervisor.wait()?;
        print!("{}", fs::read_to_string(errors.path())?);
    }
    waited?;
    say(&mut supervisor, STAY);
    let wrappers = wrappers(&layout, &program)?;
    println!(
        "Kubernetes is up: {nodes} node(s), objects in {store:?}, no network outside.
  export PATH={wrappers}:$PATH   # kubectl, helm and etcdctl inside of it
  kubectl get nodes
  kubeconfig: {kubeconfig} (for programs run by `{program} exec -- PROGRAM`)
  make k8s-down                  # removes all of it",
        wrappers = wrappers.display(),
        kubeconfig = layout.kubeconfig().display(),
        program = program.display(),
    );
    Ok(())
}

/// A supervisor that is gone already says so by its end.
pub fn say(supervisor: &mut Child, word: u8) {
    if let Some(stdin) = &mut supervisor.stdin {
        let _ = stdin.write_all(&[word]);
    }
}

/// Short commands that run inside of the instance.
fn wrappers(layout: &Layout, program: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let folder = layout.root().with_file_name("bin");
    fs::create_dir_all(&folder)?;
    let program = program.display();
    for name in ["kubectl", "helm", "etcdctl"] {
        let path = folder.join(name);
        fs::write(
            &path,
            format!("#!/bin/sh\nexec '{program}' {name} \"$@\"\n"),
        )?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(folder)
}

/// Ends the instance of this user. None is no error.
pub fn down() -> Result<()> {
    let options = own(1, Store::Cairn)?;
    let layout = Layout::new(&options.dir)?;
    let running = layout.instance().ok().filter(Instance::alive);
    if let Some(instance) = running {
        process::run("kill", &["-TERM", &instance.supervisor.to_string()])?;
        process::wait_for("the instance to end", STOP, || {
            Ok((!instance.alive()).then_some(()))
        })?;
        println!("the Kubernetes and all that belonged to it is gone");
    } else {
        println!("no Kubernetes is running");
    }
    cgroups::sweep()?;
    clear(layout.root())
}

/// Removes the folders of instances of tests whose supervisor was killed.
pub fn sweep_folders(parent: &Path) -> Result<()> {
    for entry in fs::read_dir(parent)?.flatten() {
        let path = entry.path();
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        // One that says nothing yet is being made.
        let Some(instance) = ours
            .then(|| Layout::new(&path).ok()?.instance().ok())
            .flatten()
        else {
            continue;
        };
        if !instance.alive() {
            clear(&path)?;
        }
    }
    Ok(())
}
