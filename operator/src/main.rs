//! cairn-operator.

use std::{net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use crds::EtcdCluster;
use futures::StreamExt;
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, Config, ResourceExt,
    client::ClientBuilder,
    core::DeserializeGuard,
    runtime::{controller, reflector::ObjectRef, watcher},
};
use operator::{
    Settings,
    etcd::Grpc,
    kind,
    lease::{Candidate, Fence},
    names, probe,
    reconcile::{Context, on_error, run},
    telemetry::{Counted, Telemetry},
};
use tokio::{net::TcpListener, signal::unix, sync::watch};
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

/// How long reconciliations under way may take at the end.
const GRACE: Duration = Duration::from_secs(12);
/// Changes that come within this time are reconciled once.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// Turns EtcdCluster objects into clusters that look after themselves.
#[derive(Parser)]
#[command(
    name = "cairn-operator",
    version,
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Run the operator (the default).
    Run(RunArgs),
    /// Put, read back and delete one key through a cluster's client URL.
    Probe(ProbeArgs),
}

#[derive(Args, Clone)]
struct RunArgs {
    /// Repository of the server's image, without tag.
    #[arg(long, env = "CAIRN_SERVER_IMAGE", default_value = "cairn")]
    server_image: String,
    /// Where metrics and health are served.
    #[arg(long, env = "CAIRN_METRICS_ADDRESS", default_value = "0.0.0.0:8080")]
    metrics_address: SocketAddr,
    /// The Kubernetes cluster's domain in DNS.
    #[arg(long, env = "CAIRN_CLUSTER_DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// Name of the Lease: of several operators only its holder works.
    #[arg(long, env = "CAIRN_LEASE_NAME", default_value = "cairn-operator")]
    lease_name: String,
    /// Namespace of the Lease; the one of the kubeconfig when unset.
    #[arg(long, env = "POD_NAMESPACE")]
    lease_namespace: Option<String>,
    /// This process's name in the Lease and in events.
    #[arg(long, env = "POD_NAME")]
    identity: Option<String>,
    /// Clusters that are worked on at a time.
    #[arg(long, env = "CAIRN_CONCURRENCY", default_value_t = 8,
          value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: u16,
    /// error, warn, info, debug or trace, or a filter such as info,kube=debug.
    #[arg(long, env = "CAIRN_LOG_LEVEL", default_value = "info")]
    log_level: String,
    /// How log lines look.
    #[arg(long, env = "CAIRN_LOG_FORMAT", value_enum, default_value = "json")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Console,
}

#[derive(Args)]
struct ProbeArgs {
    /// The cluster's client URL, for example http://db-client.default.svc:2379.
    #[arg(long)]
    endpoint: String,
    /// How long it may take, for example 60s.
    #[arg(long, default_value = "60s", value_parser = duration)]
    timeout: Duration,
}

/// A time such as 500ms, 60s or 2m.
fn duration(text: &str) -> Result<Duration, String> {
    let parsed: Result<jiff::SignedDuration, _> = text.parse();
    let parsed = parsed.ok().and_then(|time| Duration::try_from(time).ok());
    parsed
        .filter(|time| !time.is_zero())
        .ok_or_else(|| "a time such as 500ms, 60s or 2m".to_owned())
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cairn-operator: could not start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = match cli.command {
        Some(Command::Probe(args)) => runtime.block_on(look(args)),
        Some(Command::Run(args)) => runtime.block_on(operate(args)),
        None => runtime.block_on(operate(cli.run)),
    };
    // Nothing that is still under way may outlive the lease.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cairn-operator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn look(args: ProbeArgs) -> anyhow::Result<()> {
    let said = probe::probe(&args.endpoint, args.timeout).await;
    println!("{}", said.map_err(anyhow::Error::msg)?);
    Ok(())
}

fn log(args: &RunArgs) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log_level).with_context(|| {
        format!(
            "--log-level {}: use error, warn, info, debug or trace",
            args.log_level
        )
    })?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Json => subscriber
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .init(),
        LogFormat::Console => subscriber.init(),
    }
    Ok(())
}

/// Resolves when the process is told to end. Clones resolve together.
#[derive(Clone)]
struct Stop(watch::Receiver<bool>);

impl Stop {
    fn on_signals() -> anyhow::Result<Self> {
        let signal = |kind| unix::signal(kind).context("could not wait for signals");
        let mut terminated = signal(unix::SignalKind::terminate())?;
        let mut interrupted = signal(unix::SignalKind::interrupt())?;
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(async move {
            tokio::select! {
                _ = terminated.recv() => {}
                _ = interrupted.recv() => {}
            }
            let _ = stop.send(true);
        });
        Ok(Self(stopped))
    }

    async fn told(mut self) {
        // A sender that is gone tells the same.
        let _ = self.0.wait_for(|stopped| *stopped).await;
    }
}

async fn operate(args: RunArgs) -> anyhow::Result<()> {
    log(&args)?;
    let stop = Stop::on_signals()?;
    let begun = tokio::select! {
        begun = begin(&args) => begun?,
        () = stop.clone().told() => {
            info!("stopped by a signal");
            return Ok(());
        }
    };
    lead(&args, begun, stop).await
}

/// What leads once the lease is ours.
struct Leader {
    client: Client,
    context: Context<Grpc>,
    candidate: Candidate,
}

/// Everything up to the moment when the lease is ours.
async fn begin(args: &RunArgs) -> anyhow::Result<Leader> {
    let telemetry = Telemetry::new();
    let listener = TcpListener::bind(args.metrics_address)
        .await
        .with_context(|| format!("--metrics-address {}", args.metrics_address))?;
    let router = telemetry.router();
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            error!(%error, "metrics and health are no longer served");
        }
    });
    let config = Config::infer().await.context(
        "no Kubernetes to talk to: run inside of a pod, or set KUBECONFIG to a kubeconfig file",
    )?;
    let namespace = args
        .lease_namespace
        .clone()
        .unwrap_or_else(|| config.default_namespace.clone());
    let client = client(config, &telemetry)?;
    kind::wait(&client).await?;
    telemetry.serve();
    let identity = match &args.identity {
        Some(identity) if !identity.is_empty() => identity.clone(),
        _ => format!("cairn-operator-{:08x}", rand::random::<u32>()),
    };
    let fence = Fence::shut();
    let mut candidate = Candidate::new(
        client.clone(),
        &namespace,
        &args.lease_name,
        &identity,
        fence.clone(),
    );
    candidate
        .acquire()
        .await
        .with_context(|| format!("no Lease {} in namespace {namespace}", args.lease_name))?;
    if let Err(error) = kind::check(&client).await {
        candidate.release().await;
        return Err(error.into());
    }
    telemetry.lead();
    let settings = Settings {
        server_image: args.server_image.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cluster_domain: args.cluster_domain.clone(),
    };
    let context = Context::new(client.clone(), Grpc, settings, fence, telemetry, &identity);
    Ok(Leader {
        client,
        context,
        candidate,
    })
}

/// Works for as long as the lease is ours. It is given back only after the last change.
async fn lead(args: &RunArgs, leader: Leader, stop: Stop) -> anyhow::Result<()> {
    let Leader {
        client,
        context,
        mut candidate,
    } = leader;
    let ended = stop.clone().told();
    let work = controller(args.concurrency, client.clone(), Arc::new(context), ended);
    let mut work = tokio::spawn(work);
    tokio::select! {
        // The process ends, and with it whatever is under way.
        lost = candidate.keep() => return Err(lost.into()),
        old = kind::outdated(&client) => return Err(old.into()),
        () = stop.told() => info!("ending: no new work is begun"),
        done = &mut work => bail!("the controller ended by itself: {done:?}"),
    }
    if tokio::time::timeout(GRACE, &mut work).await.is_ok() {
        candidate.release().await;
    }
    Ok(())
}

fn client(config: Config, telemetry: &Telemetry) -> anyhow::Result<Client> {
    let mut config = config;
    // What failed is planned anew from a fresh look, not sent again.
    config.default_retry = false;
    let builder = ClientBuilder::try_from(config).context("the kubeconfig")?;
    Ok(builder.with_layer(&Counted(telemetry.clone())).build())
}

/// Reconciles until told to end, and then what is under way.
async fn controller(
    concurrency: u16,
    client: Client,
    context: Arc<Context<Grpc>>,
    ended: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let clusters: Api<DeserializeGuard<EtcdCluster>> = Api::all(client.clone());
    let ours = watcher::Config::default().labels("app.kubernetes.io/managed-by=cairn-operator");
    let config = controller::Config::default()
        .concurrency(concurrency)
        .debounce(DEBOUNCE);
    controller::Controller::new(clusters, watcher::Config::default())
        .with_config(config)
        .owns(Api::<StatefulSet>::all(client.clone()), ours.clone())
        .owns(Api::<Service>::all(client.clone()), ours.clone())
        .owns(Api::<ConfigMap>::all(client.clone()), ours.clone())
        .owns(
            Api::<PodDisruptionBudget>::all(client.clone()),
            ours.clone(),
        )
        .watches(Api::<Pod>::all(client.clone()), ours.clone(), |pod| {
            by_label(&pod)
        })
        .watches(Api::<PersistentVolumeClaim>::all(client), ours, |claim| {
            by_label(&claim)
        })
        .graceful_shutdown_on(ended)
        .run(run, on_error, context)
        .for_each(|_| async {})
        .await;
}

/// The cluster whose name an object bears.
fn by_label<K: ResourceExt>(object: &K) -> Option<ObjectRef<DeserializeGuard<EtcdCluster>>> {
    let name = object.labels().get(names::CLUSTER)?;
    Some(ObjectRef::new(name).within(&object.namespace()?))
}
