//! `cairn`: a server that etcd's clients and tools cannot tell from etcd.
//!
//! Owns: the process: flags, logging, signals, the exit code, and the wiring of all other crates:
//! `node` runs the member, `listen` its sockets, `security` their TLS.
//!
//! Must never know: that its failpoints can be switched on; only `bin/cairn-failpoints` does that.
//!
//! Start reading in `run`, then `node/mod.rs`.

mod check;
mod coalesce;
mod database;
mod debug;
mod export;
mod front;
mod guard;
mod http2_debug;
mod listen;
mod logging;
mod node;
mod profile;
mod security;

use std::{path::Path, process::ExitCode};

use anyhow::Context;
use api::Serves;
use axum::Router;
use check::Verdict;
use config::{Command, Config, Guard, Url, is_secure};
use front::Front;
use node::{Ended, Node};
use record::Refusal;
use security::Secured;
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

/// Runs the server as its command line says, and says how it ended.
pub fn main() -> ExitCode {
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
        Ok(Command::Export { config, output }) => export(&config, &output),
        Ok(Command::Check { config, json }) => check(&config, json),
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

fn export(config: &Config, output: &Path) -> ExitCode {
    let exported = logging::init(config).and_then(|()| export::run(config, output));
    match exported {
        Ok(()) => {
            println!(
                "{} is a data directory that etcd starts on",
                output.display()
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cairn cannot export: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

/// Ends with 0 when all is whole, with 1 when something is damaged, and with 2 when it could not be
/// looked at.
fn check(config: &Config, json: bool) -> ExitCode {
    let report = check::run(config);
    match json {
        true => print!("{}", report.to_json()),
        false => print!("{}", report.to_text()),
    }
    match report.verdict() {
        Verdict::Whole => ExitCode::SUCCESS,
        Verdict::Damaged => ExitCode::from(FAILED),
        Verdict::Unchecked => ExitCode::from(USAGE),
    }
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
            match &config.guard {
                // An operator would start it again; etcd's own launchers expect success.
                Some(guard) => refused(guard, &Refusal::Removed),
                None => ExitCode::SUCCESS,
            }
        }
        Ok(Ended::Fatal(why)) => {
            error!(error = why, "cairn cannot go on");
            if let Some(advice) = node::advice(&why) {
                error!("{advice}");
            }
            ExitCode::from(FAILED)
        }
        Err(error) => {
            let why = format!("{error:#}");
            error!(error = why, "cairn cannot start");
            if let Some(advice) = node::advice(&why) {
                error!("{advice}");
            }
            match (&config.guard, error.downcast_ref::<Refusal>()) {
                (Some(guard), Some(refusal)) => refused(guard, refusal),
                _ => ExitCode::from(FAILED),
            }
        }
    }
}

/// Ends a member that the bootstrap guard does not let start.
fn refused(guard: &Guard, refusal: &Refusal) -> ExitCode {
    guard::leave_word(guard, refusal);
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
    let clients = client_listeners(config, options)?;
    let metrics = bind(&config.listen_metrics)?;
    let peers = bind(&config.listen_peer)?;
    let secured = Secured::load(config)?;
    let (stop, stopped) = watch::channel(false);
    let mut servers = JoinSet::new();
    // Probes are answered from the start: a member that waits or replays its log is alive.
    let front = Front::new();
    for (url, bound) in metrics {
        info!(address = %url, "serving metrics");
        let cover = secured.metrics_cover(&url);
        let (router, stop) = (front.router(), stopped.clone());
        servers.spawn(listen::serve(
            bound, "metrics", cover, router, options, stop,
        ));
    }
    let start = async {
        match config.guard.clone() {
            Some(guard) => guard::start(config, &guard, &front, &secured).await,
            None => Node::start(config, false, &secured).await,
        }
    };
    let node = tokio::select! {
        started = start => started?,
        _ = interrupt.recv() => return Ok(Ended::Asked),
        _ = terminate.recv() => return Ok(Ended::Asked),
    };
    front.open(api::metrics_router(node.backend()));
    for (url, bound) in peers {
        info!(address = %url, "serving peer traffic");
        let cover = secured.peer_cover(&url);
        let (router, stop) = (node.peer_router(), stopped.clone());
        servers.spawn(listen::serve(bound, "peer", cover, router, options, stop));
    }
    // As in etcd a log of all details brings them too.
    let profiles = match config.enable_pprof || config.log_level == "debug" {
        true => profile::router(),
        false => Router::new(),
    };
    let edge = api::Edge {
        access: api::Access {
            origins: config.cors.iter().cloned().collect(),
            hosts: config.host_whitelist.iter().cloned().collect(),
        },
        gateway: config.gateway,
        more: debug::router(&node).merge(profiles),
    };
    let edge_of = |serves| edge.router(node.backend(), serves);
    let routers = [Serves::All, Serves::Grpc, Serves::Http]
        .map(|serves| edge_of(serves).map(|router| (serves, http2_debug::wrap(router))));
    let routers: Vec<(Serves, Router)> = routers.into_iter().collect::<Result<_, _>>()?;
    let serving = async {
        node.ready().await;
        for clients in clients {
            let (plain, secure) = (clients.plain, clients.secure);
            let cover = secured.client_cover(plain.is_some(), secure.is_some());
            let router = routers.iter().find(|(serves, _)| *serves == clients.serves);
            let router = router.map(|(_, router)| router.clone()).unwrap_or_default();
            let stop = stopped.clone();
            servers.spawn(listen::serve(
                clients.bound,
                "client",
                cover,
                router,
                options,
                stop,
            ));
            info!("ready to serve client requests");
            let traffic = match clients.serves {
                Serves::All => "grpc+http",
                Serves::Grpc => "grpc",
                Serves::Http => "http",
            };
            if let Some(url) = plain {
                info!(
                    traffic,
                    address = %url,
                    "serving client traffic insecurely; this is strongly discouraged!"
                );
            }
            if let Some(url) = secure {
                info!(traffic, address = %url, "serving client traffic securely");
            }
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

/// A socket for clients, with the URL by which it is plain and the one by which it is secured.
struct ClientListener {
    bound: listen::Bound,
    plain: Option<Url>,
    secure: Option<Url>,
    serves: Serves,
}

/// Binds the sockets for clients. As in etcd, an address may be named twice, plain and secured;
/// then it takes both.
fn client_listeners(
    config: &Config,
    options: listen::Options,
) -> anyhow::Result<Vec<ClientListener>> {
    let grpc = match config.listen_client_http.is_empty() {
        true => Serves::All,
        false => Serves::Grpc,
    };
    let urls = config.listen_client.iter().map(|url| (url, grpc));
    let http = config.listen_client_http.iter();
    let urls = urls.chain(http.map(|url| (url, Serves::Http)));
    let mut listeners: Vec<ClientListener> = Vec::new();
    let address = |url: &Url| {
        let tcp = matches!(url.scheme(), "http" | "https");
        tcp.then(|| {
            (
                url.host_str().map(str::to_owned),
                url.port_or_known_default(),
            )
        })
    };
    for (url, serves) in urls {
        let same = listeners.iter_mut().find(|listener| {
            let known = listener.plain.iter().chain(&listener.secure).next();
            address(url).is_some() && known.and_then(address) == address(url)
        });
        let listener = match same {
            Some(listener) => listener,
            None => {
                listeners.push(ClientListener {
                    bound: listen::bind(url, options)?,
                    plain: None,
                    secure: None,
                    serves,
                });
                let Some(listener) = listeners.last_mut() else {
                    continue;
                };
                listener
            }
        };
        match is_secure(url) {
            true => listener.secure = Some(url.clone()),
            false => listener.plain = Some(url.clone()),
        }
    }
    Ok(listeners)
}
