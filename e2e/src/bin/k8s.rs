//! A real Kubernetes on this machine, for people: `make k8s-up`. Tests use the library.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use e2e::k8s::{self, Image, Kubernetes, Options, Store};

/// Starts, uses and ends a Kubernetes in namespaces of its own.
#[derive(Parser)]
#[command(name = "k8s", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start one and wait until it is ready.
    Up {
        /// One or three.
        #[arg(long, default_value_t = 3)]
        nodes: usize,
        /// What kube-apiserver keeps its objects in.
        #[arg(long, value_enum, default_value = "cairn")]
        store: Store,
    },
    /// End it and remove all of it.
    Down,
    /// Run kubectl inside of it.
    #[command(disable_help_flag = true)]
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run helm inside of it.
    #[command(disable_help_flag = true)]
    Helm {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run etcdctl inside of it.
    #[command(disable_help_flag = true)]
    Etcdctl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run any program of this machine inside of it: its services and their names are reachable.
    Exec {
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        program: Vec<OsString>,
    },
    /// Load image archives into every node.
    Load {
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// End a node as a power failure does.
    Crash {
        /// Its number, from one.
        node: usize,
    },
    /// Start a node again that crashed.
    Return {
        /// Its number, from one.
        node: usize,
    },
    /// Make the image archives of what is built, in the given folder.
    Images {
        /// Where to put them.
        folder: PathBuf,
        /// Only these: cairn, cairn-operator, tools.
        only: Vec<String>,
    },
    #[command(hide = true)]
    Supervise {
        #[arg(long)]
        dir: PathBuf,
        #[arg(long)]
        nodes: usize,
        #[arg(long, value_enum)]
        store: Store,
        #[arg(long)]
        logs: PathBuf,
        #[arg(long)]
        lock: Option<PathBuf>,
    },
    #[command(hide = true)]
    Control {
        #[arg(long)]
        dir: PathBuf,
    },
    #[command(hide = true)]
    Node {
        #[arg(long)]
        dir: PathBuf,
        #[arg(long)]
        number: usize,
    },
    #[command(hide = true)]
    Recycle {
        #[arg(long)]
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("k8s: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Up { nodes, store } => k8s::up(nodes, store),
        Command::Down => k8s::down(),
        Command::Kubectl { arguments } => inside("kubectl", &arguments),
        Command::Helm { arguments } => inside("helm", &arguments),
        Command::Etcdctl { arguments } => inside("etcdctl", &arguments),
        Command::Exec { program } => exec(&program),
        Command::Load { archives } => load(&archives),
        Command::Crash { node } => Kubernetes::attach()?.crash_node(node),
        Command::Return { node } => Kubernetes::attach()?.return_node(node),
        Command::Images { folder, only } => images(&folder, &only),
        Command::Supervise {
            dir,
            nodes,
            store,
            logs,
            lock,
        } => k8s::supervise(&Options {
            dir,
            nodes,
            store,
            logs,
            lock,
        }),
        Command::Control { dir } => k8s::control(&dir),
        Command::Node { dir, number } => k8s::node(&dir, number),
        Command::Recycle { dir } => k8s::recycle(&dir),
    }
}

fn inside(program: &str, arguments: &[OsString]) -> Result<()> {
    let kubernetes = Kubernetes::attach()?;
    let mut command = kubernetes.program(program);
    command.args(arguments);
    Err(kubernetes.become_program(command))
}

fn exec(words: &[OsString]) -> Result<()> {
    let kubernetes = Kubernetes::attach()?;
    let (program, arguments) = words.split_first().context("no program was given")?;
    let mut command = kubernetes.command(program);
    command.args(arguments);
    Err(kubernetes.become_program(command))
}

fn load(archives: &[PathBuf]) -> Result<()> {
    let kubernetes = Kubernetes::attach()?;
    for archive in archives {
        kubernetes.load_archive(archive)?;
        println!("{} is in every node", archive.display());
    }
    Ok(())
}

fn images(folder: &Path, only: &[String]) -> Result<()> {
    let own = std::env::current_exe()?;
    let built = own.parent().context("this program is in a folder")?;
    let all: [(&str, &dyn Fn() -> Result<Image>); 3] = [
        ("cairn", &|| k8s::cairn(&built.join("cairn"))),
        ("cairn-operator", &|| {
            k8s::operator(&built.join("cairn-operator"))
        }),
        ("tools", &|| k8s::tools(&e2e::tool("etcdctl"))),
    ];
    for (name, make) in all {
        if !only.is_empty() && !only.iter().any(|wanted| wanted == name) {
            continue;
        }
        let image = make()?;
        let path = folder.join(format!("{name}.tar"));
        image.write(&path)?;
        println!("{}  {}", image.reference(), path.display());
    }
    Ok(())
}
