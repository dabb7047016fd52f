//! Clients that others wrote, in other languages, with TLS and users: each program runs on a real
//! etcd first, which shows that the program is right, and then on a Cairn. What it says must be the
//! same.

#![allow(clippy::unwrap_used)]

mod rust;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use e2e::{
    Authority, Etcdctl, Issue, KeyFiles, Kind, Member, Server, etcdctl::ok, replace, target_folder,
    tool,
};

/// How long a program may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(240);
/// How long the registry of a language may take to give what a program needs.
const FETCH: Duration = Duration::from_secs(500);
/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

const ROOT: &str = "rootpw";
const APP: &str = "apppw";

/// A server with TLS, root, and the user `app`, who may do all below `app/`.
struct Guarded {
    folder: tempfile::TempDir,
    bundle: PathBuf,
    server: Server,
}

impl Guarded {
    fn start(kind: Kind, etcdctl: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca = Authority::new("ca");
        let bundle = folder.path().join("ca.crt");
        replace(&bundle, ca.pem().as_bytes());
        let KeyFiles { certificate, key } = ca.issue(folder.path(), "server", &Issue::default());
        let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let flags = vec![
            flag("cert-file", &certificate),
            flag("key-file", &key),
            flag("peer-cert-file", &certificate),
            flag("peer-key-file", &key),
            flag("peer-trusted-ca-file", &bundle),
            // Cheap hashes: programs connect often.
            "--bcrypt-cost=4".to_owned(),
        ];
        let member = Member::new(kind, "m").with_tls(flags);
        let mut server = member.launch(folder.path(), &[&member], "new");
        server.wait_ready();
        let etcdctl = Etcdctl::new(etcdctl, server.url()).with_ca(&bundle);
        for command in [
            &[
                "user",
                "add",
                "root",
                &format!("--new-user-password={ROOT}"),
            ][..],
            &["user", "grant-role", "root", "root"],
            &["role", "add", "app"],
            &[
                "role",
                "grant-permission",
                "app",
                "readwrite",
                "app/",
                "--prefix",
            ],
            &["user", "add", "app", &format!("--new-user-password={APP}")],
            &["user", "grant-role", "app", "app"],
            &["auth", "enable"],
        ] {
            ok(etcdctl.run(command));
        }
        Self {
            folder,
            bundle,
            server,
        }
    }

    /// What a program says of this server.
    fn say(&self, mut command: Command) -> String {
        command
            .arg(self.server.url())
            .arg(&self.bundle)
            .args(["app", APP, ROOT])
            .arg(self.folder.path());
        run(command, self.folder.path(), LIMIT)
    }
}

/// Runs a command to its end and returns what it printed.
fn run(mut command: Command, folder: &Path, limit: Duration) -> String {
    let [output, errors] = ["output", "errors"].map(|name| folder.join(name));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(File::create(&output).unwrap())
        .stderr(File::create(&errors).unwrap())
        .spawn()
        .unwrap_or_else(|error| panic!("could not run {command:?}: {error}"));
    let [output, errors] = [output, errors].map(|path| move || fs::read_to_string(&path).unwrap());
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if began.elapsed() > limit {
            // It may have ended just now.
            let _ = child.kill();
            let _ = child.wait();
            panic!("{command:?} does not end:\n{}\n{}", output(), errors());
        }
        std::thread::sleep(LOOK_EVERY);
    };
    let output = output();
    assert!(
        status.success(),
        "{command:?}: {status}\n{output}\n{}",
        errors()
    );
    output
}

/// Runs a program on both, which must say at least so many lines.
fn same(program: impl Fn() -> Command, lines: usize) {
    same_by(|guarded| guarded.say(program()), lines);
}

fn same_by(say: impl Fn(&Guarded) -> String, lines: usize) {
    let etcdctl = tool("etcdctl");
    let [etcd, cairn] = [Kind::Etcd, Kind::Cairn].map(|kind| {
        let guarded = Guarded::start(kind, &etcdctl);
        let began = Instant::now();
        let said = say(&guarded);
        println!("{kind:?}: {:?}", began.elapsed());
        let log = guarded.server.log();
        // etcd itself logs some of what it refuses as errors.
        assert!(
            kind == Kind::Etcd || !log.contains("\"level\":\"error\""),
            "{log}"
        );
        said
    });
    assert_eq!(etcd, cairn, "etcd left, cairn right");
    assert!(etcd.lines().count() >= lines, "{etcd}");
}

/// Where programs of a language lie.
fn sources(language: &str) -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.join("clients").join(language)
}

/// A folder with what a language's registry gives for the pins in its files; made by `fetch` when
/// they are others than at the last time.
fn fetched(language: &str, pins: &[&str], fetch: impl Fn(&Path)) -> PathBuf {
    let folder = target_folder().join("clients").join(language);
    let sources = sources(language);
    let wanted: String = pins
        .iter()
        .map(|pin| fs::read_to_string(sources.join(pin)).unwrap())
        .collect();
    let done = folder.join("done");
    if fs::read_to_string(&done).is_ok_and(|had| had == wanted) {
        return folder;
    }
    // It may not be there.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    for pin in pins {
        fs::copy(sources.join(pin), folder.join(pin)).unwrap();
    }
    fetch(&folder);
    replace(&done, wanted.as_bytes());
    folder
}

#[test]
fn go_with_all_its_packages() {
    let binary = tool("clients/go");
    same(|| Command::new(&binary), 100);
}

#[test]
fn python() {
    let folder = fetched("python", &["requirements.txt"], |folder| {
        let mut make = Command::new("python3");
        make.args(["-m", "venv"]).arg(folder.join("venv"));
        run(make, folder, FETCH);
        let mut install = Command::new(folder.join("venv/bin/pip"));
        install
            .args(["install", "--disable-pip-version-check", "--no-deps", "-r"])
            .arg(folder.join("requirements.txt"));
        run(install, folder, FETCH);
    });
    let program = || {
        let mut command = Command::new(folder.join("venv/bin/python"));
        command.arg(sources("python").join("main.py"));
        command
    };
    same(program, 35);
}

#[test]
fn node() {
    let folder = fetched("node", &["package.json", "package-lock.json"], |folder| {
        let mut install = Command::new("npm");
        install
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
            .current_dir(folder);
        run(install, folder, FETCH);
    });
    let program = || {
        // Packages are looked for beside the program.
        fs::copy(sources("node").join("main.js"), folder.join("main.js")).unwrap();
        let mut command = Command::new("node");
        command.arg(folder.join("main.js"));
        command
    };
    same(program, 35);
}

#[test]
fn java() {
    let folder = fetched("java", &["pom.xml", "Main.java"], |folder| {
        let mut build = Command::new("mvn");
        build
            .args(["--batch-mode", "--quiet"])
            .args(["compiler:compile", "dependency:copy-dependencies"])
            .current_dir(folder);
        run(build, folder, FETCH);
    });
    let classes = folder.join("target/classes");
    let packages = folder.join("target/dependency/*");
    let program = || {
        let mut command = Command::new("java");
        command
            .arg("-cp")
            .arg(format!("{}:{}", classes.display(), packages.display()))
            .arg("Main");
        command
    };
    same(program, 35);
}

#[test]
fn rust() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let say = |guarded: &Guarded| {
        runtime.block_on(async {
            let said = rust::run(guarded.server.url(), &guarded.bundle);
            tokio::time::timeout(LIMIT, said).await.unwrap()
        })
    };
    same_by(say, 20);
}
