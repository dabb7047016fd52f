//! The accept loop: HTTP/1.1 and HTTP/2 on one port, over TCP or a unix socket, plain or with TLS.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use api::{CommonName, Remote, Secured};
use axum::Router;
use config::Url;
use http::{Extensions, Request};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
    service::TowerToHyperService,
};
use tls::{Acceptor, Rejected, TlsStream};
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::timeout,
};
use tokio_util::either::Either;
use tower::ServiceExt;
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
/// The first byte of a TLS connection: the record type of a handshake. No HTTP begins so.
const TLS_HANDSHAKE: u8 = 0x16;
/// How long the headers of an HTTP/1 request may take, and the first byte where a port takes both
/// plain connections and TLS.
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

/// What a listener speaks below HTTP.
#[derive(Clone, Debug)]
pub(crate) enum Cover {
    /// Nothing.
    Plain,
    /// TLS.
    Tls(Acceptor),
    /// Both: the first byte of a connection tells.
    Both(Acceptor),
}

/// Binds what a URL names.
pub(crate) fn bind(url: &Url, options: Options) -> anyhow::Result<Bound> {
    if let "unix" | "unixs" = url.scheme() {
        // etcd's form is unix://name:port, a path relative to the working directory.
        let (_, authority) = url.as_str().split_once("://").unwrap_or_default();
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
/// `name` says whose socket it is.
pub(crate) async fn serve(
    bound: Bound,
    name: &'static str,
    cover: Cover,
    router: Router,
    options: Options,
    stop: watch::Receiver<bool>,
) {
    let connections = Connections {
        name,
        cover,
        http: Http {
            server: server(options),
            router,
        },
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
    name: &'static str,
    cover: Cover,
    http: Http,
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
                    Ok((stream, remote)) => self.serve(stream, remote, permit),
                    Err(error) => {
                        warn!(%error, "could not accept a connection");
                        tokio::time::sleep(ACCEPT_REST).await;
                    }
                },
            }
        }
        drop(listener);
        // Streams that never end, as watches, are cut off after this while.
        let _ = timeout(DRAIN, self.graceful.shutdown()).await;
    }

    fn serve(&self, stream: Plain, remote: Option<SocketAddr>, permit: OwnedSemaphorePermit) {
        let watcher = self.graceful.watcher();
        let (acceptor, both) = match &self.cover {
            Cover::Plain => {
                let peer = Peer::plain(remote);
                tokio::spawn(self.http.serve(Either::Left(stream), watcher, permit, peer));
                return;
            }
            Cover::Tls(acceptor) => (acceptor.clone(), false),
            Cover::Both(acceptor) => (acceptor.clone(), true),
        };
        let (http, name) = (self.http.clone(), self.name);
        // The handshake is made here, so that nobody else waits for it.
        tokio::spawn(async move {
            if both && !begins_with_tls(&stream).await {
                let peer = Peer::plain(remote);
                http.serve(Either::Left(stream), watcher, permit, peer)
                    .await;
                return;
            }
            match acceptor
                .accept(stream, remote.map(|remote| remote.ip()))
                .await
            {
                Ok(stream) => {
                    let user = acceptor.user_of(&stream);
                    let user = user.map(|user| CommonName(user.into()));
                    let stream = Either::Right(Box::new(stream));
                    let peer = Peer {
                        remote,
                        secured: true,
                        user,
                    };
                    http.serve(stream, watcher, permit, peer).await;
                }
                Err(rejected) => tell_rejected(name, remote, &rejected),
            }
        });
    }
}

/// How connections are served.
#[derive(Clone)]
struct Http {
    server: auto::Builder<TokioExecutor>,
    router: Router,
}

impl Http {
    fn serve(
        &self,
        stream: Stream,
        watcher: Watcher,
        permit: OwnedSemaphorePermit,
        peer: Peer,
    ) -> impl Future<Output = ()> + Send + use<> {
        let router = self.router.clone();
        let router = router.map_request(move |mut request: Request<Incoming>| {
            peer.put_into(request.extensions_mut());
            request
        });
        let service = TowerToHyperService::new(router);
        let (stream, writer) = coalesce::gather(stream);
        let connection = self
            .server
            .serve_connection_with_upgrades(TokioIo::new(stream), service)
            .into_owned();
        let connection = writer.serve(watcher.watch(connection));
        async move {
            if let Err(error) = connection.await {
                debug!(%error, "a connection ended");
            }
            drop(permit);
        }
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
struct Peer {
    /// `None` of a unix socket.
    remote: Option<SocketAddr>,
    /// Whether it speaks TLS.
    secured: bool,
    /// Whom its certificate names, if certificates name users.
    user: Option<CommonName>,
}

impl Peer {
    fn plain(remote: Option<SocketAddr>) -> Self {
        Self {
            remote,
            secured: false,
            user: None,
        }
    }

    fn put_into(&self, extensions: &mut Extensions) {
        if let Some(remote) = self.remote {
            extensions.insert(Remote(remote));
        }
        if self.secured {
            extensions.insert(Secured);
        }
        if let Some(user) = &self.user {
            extensions.insert(user.clone());
        }
    }
}

/// Waits until the server is told to stop, or its owner is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Whether TLS begins, on a port that takes both. Unix sockets are never both.
async fn begins_with_tls(stream: &Plain) -> bool {
    let Either::Left(stream) = stream else {
        return true;
    };
    let mut first = [0];
    let peeked = timeout(HEADER_TIMEOUT, stream.peek(&mut first)).await;
    matches!(peeked, Ok(Ok(1..))) && first[0] == TLS_HANDSHAKE
}

/// Says in etcd's words that a handshake failed.
fn tell_rejected(name: &str, remote: Option<SocketAddr>, rejected: &Rejected) {
    let remote = remote.map(|remote| remote.to_string()).unwrap_or_default();
    // Probes that only connect are no news.
    if *rejected == Rejected::Left {
        debug!("remote-addr" = remote, error = %rejected, "rejected connection on {name} endpoint");
    } else {
        warn!("remote-addr" = remote, error = %rejected, "rejected connection on {name} endpoint");
    }
}

/// What was accepted.
type Plain = Either<TcpStream, UnixStream>;
/// What HTTP is spoken on. Boxed where it is large, so that plain connections stay small.
type Stream = Either<Plain, Box<TlsStream<Plain>>>;

async fn accept(listener: &Bound) -> std::io::Result<(Plain, Option<SocketAddr>)> {
    match listener {
        Bound::Tcp(listener) => {
            let (stream, remote) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok((Either::Left(stream), Some(remote)))
        }
        Bound::Unix(listener) => Ok((Either::Right(listener.accept().await?.0), None)),
    }
}
