//! Connections to other members, plain or secured as their URL says.

use std::{
    error::Error,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use tls::Tls;
use tokio::{net::TcpStream, time::timeout};
use tower_service::Service;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(3);
/// How long it may take together with its handshake.
const SECURE: Duration = Duration::from_secs(10);

type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;
type Failed = Box<dyn Error + Send + Sync>;

/// Makes connections with the certificates of now.
#[derive(Clone)]
pub(crate) struct Connector {
    http: HttpConnector,
    tls: Arc<Tls>,
}

impl Connector {
    pub fn new(tls: Arc<Tls>) -> Self {
        let mut http = HttpConnector::new();
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT));
        // The scheme is looked at by what wraps this.
        http.enforce_http(false);
        Self { http, tls }
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = Failed;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, Failed>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        self.http.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        if uri.scheme_str() != Some("https") {
            let connecting = self.http.call(uri);
            return Box::pin(async move { Ok(MaybeHttpsStream::Http(connecting.await?)) });
        }
        let config = self.tls.client_config();
        let http = self.http.clone();
        Box::pin(async move {
            let connecting = HttpsConnector::from((http, config?)).call(uri);
            match timeout(SECURE, connecting).await {
                Ok(connected) => connected,
                Err(_) => Err("the TLS handshake took too long".into()),
            }
        })
    }
}
