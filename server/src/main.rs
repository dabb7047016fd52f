//! `cairn`: a server that etcd's clients and tools cannot tell from etcd.
//!
//! Owns: the process: flags, logging, signals, the exit code, and the wiring of all other crates:
//! `node` runs the member, `listen` its sockets.
//!
//! Start reading in [`run`], then `node/mod.rs`.

mod coalesce;
mod guard;
mod listen;
mod logging;
mod node;

use std::process::ExitCode;

use anyhow::Context;
use config::{Command, Config, Url};
use node::{Ended, Node};
use record::Refusal;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use tracing::{error, info, warn};

/// jemalloc gives freed memory back and keeps its arenas apart; glibc's allocator does neither
/// well under many threads.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The exit code of a command line that is not understood, as Go's flag package has it.
const USAGE: u8 = 2;
/// The exit code of a server that cannot start or go on.
const FAILED: u8 = 1;

fn main() -> ExitCode {
    // Variables that are no text cannot be any of ours.
    let env = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let args = std::env::args_os().skip(1);
    let args = args.map(|arg| arg.to_string_lossy().into_owned());
    match config::parse(args, env, |path| std::fs::read_to_string(path)) {
        Ok(Command::Version) => {
            print!("{}", version());
            ExitCode::SUCCESS
        }
        Ok(Command::Help) => {
            print!("{}", config::help());
            ExitCode::SUCCESS
        }
        Ok(Command::Run(config)) => start(*config),
        Err(config::Error::Usage(problem)) => {
            eprintln!("{problem}\nSee 'cairn --help' for all flags.");
            ExitCode::from(USAGE)
        }
        Err(error) => {
            eprintln!("cairn cannot start: {error}");
            ExitCode::from(FAILED)
        }
    }
}

/// What `--version` prints: etcd's lines, which launchers parse, and Cairn's own behind them.
fn version() -> String {
    let os = std::env::consts::OS;
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!(
        "etcd Version: {}\nGit SHA: none\nGo Version: none\nGo OS/Arch: {os}/{arch}\n\
         cairn Version: {}\n",
        state::version::SERVER,
        env!("CARGO_PKG_VERSION")
    )
}

fn start(mut config: Config) -> ExitCode {
    if let Err(error) = logging::init(&config) {
        eprintln!("cairn cannot start: {error:#}");
        return ExitCode::from(FAILED);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("could not start the runtime");
    let ended = runtime.and_then(|runtime| {
        let ended = runtime.block_on(run(&mut config));
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(Ended::Asked) => ExitCode::SUCCESS,
        Ok(Ended::Removed) => {
            error!("the member has been permanently removed from the cluster");
            match config.guard {
                // An operator would start it again; etcd's own launchers expect success.
                Some(_) => refused(&Refusal::Removed),
                None => ExitCode::SUCCESS,
            }
        }
        Ok(Ended::Fatal(why)) => {
            error!(error = why, "cairn cannot go on");
            ExitCode::from(FAILED)
        }
        Err(error) => {
            error!(error = format!("{error:#}"), "cairn cannot start");
            match error.downcast_ref::<Refusal>() {
                Some(refusal) => refused(refusal),
                None => ExitCode::from(FAILED),
            }
        }
    }
}

/// Ends a member that the bootstrap guard does not let start.
fn refused(refusal: &Refusal) -> ExitCode {
    guard::leave_word(refusal);
    ExitCode::from(refusal.exit_code())
}

/// Runs a server until it is told to end or cannot go on.
async fn run(config: &mut Config) -> anyhow::Result<Ended> {
    for warning in &config.warnings {
        warn!("{warning}");
    }
    info!(
        "etcd-version" = %state::version::SERVER,
        "cairn-version" = env!("CARGO_PKG_VERSION"),
        name = config.name,
        "data-dir" = %config.data_dir.display(),
        "starting a server"
    );
    let mut interrupt = signal(SignalKind::interrupt()).context("could not watch for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("could not watch for signals")?;
    let options = listen::Options {
        max_concurrent_streams: config.max_concurrent_streams,
        keepalive_interval: config.keepalive_interval,
        keepalive_timeout: config.keepalive_timeout,
        reuse_port: config.reuse_port,
    };
    // Sockets first: a port that is taken should not touch the data.
    let bind = |urls: &[Url]| -> anyhow::Result<Vec<(Url, listen::Bound)>> {
        let bound = urls
            .iter()
            .map(|url| Ok((url.clone(), listen::bind(url, options)?)));
        bound.collect()
    };
    let clients = bind(&config.listen_client)?;
    let metrics = bind(&config.listen_metrics)?;
    let peers = bind(&config.listen_peer)?;
    let (stop, stopped) = watch::channel(false);
    let mut servers = JoinSet::new();
    // Probes are answered from the start: a member that waits or replays its log is alive.
    let front = guard::Front::default();
    for (url, bound) in metrics {
        info!(address = %url, "serving metrics");
        let serving = listen::serve(bound, front.router(), options, stopped.clone());
        servers.spawn(serving);
    }
    let start = async {
        let guarded = match config.guard.clone() {
            Some(guard) => Some(guard::wait(config, &guard).await?),
            None => None,
        };
        let node = Node::start(config, guarded.is_some()).await?;
        if let Some(guarded) = guarded {
            guarded.started(node.cluster_id())?;
        }
        anyhow::Ok(node)
    };
    let node = tokio::select! {
        started = start => started?,
        _ = interrupt.recv() => return Ok(Ended::Asked),
        _ = terminate.recv() => return Ok(Ended::Asked),
    };
    front.open(api::metrics_router(node.backend()));
    for (url, bound) in peers {
        info!(address = %url, "serving peer traffic");
        servers.spawn(listen::serve(
            bound,
            node.peer_router(),
            options,
            stopped.clone(),
        ));
    }
    let serving = async {
        node.ready().await;
        for (url, bound) in clients {
            let router = api::router(node.backend());
            servers.spawn(listen::serve(bound, router, options, stopped.clone()));
            info!("ready to serve client requests");
            info!(
                traffic = "grpc+http",
                address = %url,
                "serving client traffic insecurely; this is strongly discouraged!"
            );
        }
        node.ended().await
    };
    let ended = tokio::select! {
        ended = serving => ended,
        ended = node.ended() => ended,
        _ = interrupt.recv() => Ended::Asked,
        _ = terminate.recv() => Ended::Asked,
    };
    if let Ended::Fatal(_) = ended {
        // Nothing is waited for: a thread may hang in the very call that failed.
        return Ok(ended);
    }
    if ended == Ended::Asked {
        info!("received signal; shutting down");
        node.hand_over().await;
    }
    // Nobody is left to receive this when there are no listeners.
    let _ = stop.send(true);
    while servers.join_next().await.is_some() {}
    node.stop().await;
    Ok(ended)
}
