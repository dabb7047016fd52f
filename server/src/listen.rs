//! The accept loop: HTTP/1.1 and HTTP/2 on one port, over TCP or a unix socket.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use axum::Router;
use config::Url;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{Semaphore, watch},
};
use tracing::{debug, warn};

use crate::coalesce;

/// Connections of one listener that are served at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 20_000;
/// Streams that a client may reset before they are served. Go clients cancel often.
const PENDING_RESETS: usize = 1024;
/// Bytes that a client may send ahead on one stream: more than the largest request.
const STREAM_WINDOW: u32 = 2 << 20;
/// Bytes that it may send ahead on all streams of a connection.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// How long the headers of an HTTP/1 request may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long open requests may go on after the server was told to stop.
const DRAIN: Duration = Duration::from_millis(500);
/// Pending connections that the system holds.
const BACKLOG: i32 = 1024;
/// After a failed accept, as for want of file descriptors, the loop rests so long.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// How connections are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Streams of one connection, at most.
    pub max_concurrent_streams: u32,
    /// After so long without a frame the client is asked whether it lives.
    pub keepalive_interval: Duration,
    /// How long it has to answer.
    pub keepalive_timeout: Duration,
    /// Whether other processes may listen on the port too.
    pub reuse_port: bool,
}

/// Sockets that are bound and do not accept yet.
pub(crate) enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Binds what a URL names.
pub(crate) fn bind(url: &Url, options: Options) -> anyhow::Result<Bound> {
    if url.scheme() == "unix" {
        // etcd's form is unix://name:port, a path relative to the working directory.
        let authority = url.as_str().trim_start_matches("unix://");
        let path = authority.trim_end_matches('/');
        // A socket left behind by a process that is gone.
        let _ = std::fs::remove_file(path);
        let listener =
            UnixListener::bind(path).with_context(|| format!("could not listen on {url}"))?;
        return Ok(Bound::Unix(listener));
    }
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        bail!("{url} has no host and port to listen on");
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let addresses = (host, port).to_socket_addrs();
    let addresses = addresses.with_context(|| format!("could not find the address of {url}"))?;
    // One address, as Go's net.Listen takes it: the first of IPv4, if there is one.
    let address = addresses
        .min_by_key(SocketAddr::is_ipv6)
        .with_context(|| format!("{url} has no address"))?;
    let listener = bind_tcp(address, options).with_context(|| {
        format!("could not listen on {url}; is another server running on that port?")
    })?;
    Ok(Bound::Tcp(listener))
}

fn bind_tcp(address: SocketAddr, options: Options) -> std::io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves a router on a bound socket until `stop` turns true; then open requests get a short while.
pub(crate) async fn serve(
    bound: Bound,
    router: Router,
    options: Options,
    stop: watch::Receiver<bool>,
) {
    let connections = Connections {
        server: server(options),
        router,
        graceful: GracefulShutdown::new(),
        room: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
    };
    connections.accept(bound, stop).await;
}

fn server(options: Options) -> auto::Builder<TokioExecutor> {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    server
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(options.max_concurrent_streams)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(Some(options.keepalive_interval))
        .keep_alive_timeout(options.keepalive_timeout);
    server
}

/// The connections of one listener.
struct Connections {
    server: auto::Builder<TokioExecutor>,
    router: Router,
    graceful: GracefulShutdown,
    room: Arc<Semaphore>,
}

impl Connections {
    async fn accept(self, listener: Bound, mut stop: watch::Receiver<bool>) {
        loop {
            let Ok(permit) = Arc::clone(&self.room).acquire_owned().await else {
                break;
            };
            tokio::select! {
                () = stopped(&mut stop) => break,
                accepted = accept(&listener) => match accepted {
                    Ok(stream) => self.serve(stream, permit),
                    Err(error) => {
                        warn!(%error, "could not accept a connection");
                        tokio::time::sleep(ACCEPT_REST).await;
                    }
                },
            }
        }
        drop(listener);
        // Streams that never end, as watches, are cut off after this while.
        let _ = tokio::time::timeout(DRAIN, self.graceful.shutdown()).await;
    }

    fn serve(&self, stream: Stream, permit: tokio::sync::OwnedSemaphorePermit) {
        let service = TowerToHyperService::new(self.router.clone());
        let (stream, writer) = coalesce::gather(stream);
        let connection = self
            .server
            .serve_connection_with_upgrades(TokioIo::new(stream), service)
            .into_owned();
        let connection = writer.serve(self.graceful.watch(connection));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "a connection ended");
            }
            drop(permit);
        });
    }
}

/// Waits until the server is told to stop, or its owner is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Any stream of bytes.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
type Stream = Box<dyn Duplex>;

async fn accept(listener: &Bound) -> std::io::Result<Stream> {
    match listener {
        Bound::Tcp(listener) => {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        }
        Bound::Unix(listener) => Ok(Box::new(listener.accept().await?.0)),
    }
}
