//! Handshakes of those who connect: bounded in time and number.

use std::{io::ErrorKind, net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{Tls, addresses, x509::X509};

/// How long a handshake may take, as in etcd.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes of one listener at once; who comes beyond is turned away. It bounds what those take
/// who connect and say nothing.
const MAX_HANDSHAKES: usize = 4096;

/// Why somebody was turned away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// They left before they said anything, as probes of the port do.
    #[error("EOF")]
    Left,
    /// They took too long.
    #[error("the handshake took too long")]
    Late,
    /// Too many others have not finished theirs.
    #[error("{MAX_HANDSHAKES} handshakes are under way")]
    Busy,
    /// There is nothing to show them.
    #[error("there is no certificate")]
    Bare,
    /// The handshake failed, or their certificate is not good for their address.
    #[error("{0}")]
    Failed(String),
}

/// Makes the handshakes of one listener.
#[derive(Clone, Debug)]
pub struct Acceptor {
    tls: Arc<Tls>,
    check_addresses: bool,
    names_users: bool,
    room: Arc<Semaphore>,
    limit: Duration,
}

impl Acceptor {
    /// For a listener that shows what `tls` has. If it is to `check_addresses`, a certificate with
    /// names must be good for the address that it comes from.
    pub fn new(tls: Arc<Tls>, check_addresses: bool) -> Self {
        Self {
            tls,
            check_addresses,
            names_users: false,
            room: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
            limit: HANDSHAKE,
        }
    }

    /// The same for certificates whose common names are those of users.
    pub fn naming_users(self, names_users: bool) -> Self {
        Self {
            names_users,
            ..self
        }
    }

    /// The common name of the certificate that was shown, empty when it has none; `None` when there
    /// is no certificate, or when it names no user.
    pub fn user_of<S>(&self, stream: &TlsStream<S>) -> Option<String> {
        let (_, connection) = stream.get_ref();
        let shown = connection.peer_certificates().unwrap_or_default();
        let certificate = shown.first().filter(|_| self.names_users)?;
        // It has passed the handshake, so it can be read.
        let certificate = X509::read(certificate).ok()?;
        Some(certificate.common_name().unwrap_or_default())
    }

    /// The same with another limit of time.
    #[cfg(test)]
    pub(crate) fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Makes a handshake with who connected from `remote`, with the certificates of now.
    ///
    /// # Errors
    /// Why they were turned away; the stream is closed then.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        remote: Option<IpAddr>,
    ) -> Result<TlsStream<S>, Rejected> {
        let Ok(_room) = self.room.try_acquire() else {
            return Err(Rejected::Busy);
        };
        let config = self.tls.server_config().ok_or(Rejected::Bare)?;
        let handshake = async {
            let stream = TlsAcceptor::from(config).accept(stream).await;
            let stream = stream.map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => Rejected::Left,
                _ => Rejected::Failed(error.to_string()),
            })?;
            if let (true, Some(remote)) = (self.check_addresses, remote) {
                let (_, connection) = stream.get_ref();
                let certificates = connection.peer_certificates().unwrap_or_default();
                if let Some(certificate) = certificates.first() {
                    let checked = addresses::check(certificate.clone(), remote).await;
                    checked.map_err(Rejected::Failed)?;
                }
            }
            Ok(stream)
        };
        match timeout(self.limit, handshake).await {
            Ok(made) => made,
            Err(_) => Err(Rejected::Late),
        }
    }
}
