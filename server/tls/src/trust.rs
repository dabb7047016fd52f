//! Who is believed: the verifiers of both ends.
//!
//! As in Go, a certificate that itself stands in the CA file is believed without a CA; as in etcd,
//! a revocation list speaks of serial numbers alone, and who is allowed is asked of clients'
//! certificates and of those that calls meet.

use std::{fmt, sync::Arc, time::Duration};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    },
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::{
    files::{Anchors, Revoked},
    x509::{Usage, X509},
};

/// Who is believed, of those whose certificate is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Allowed {
    /// All.
    #[default]
    All,
    /// Those with one of these common names.
    CommonNames(Vec<String>),
    /// Those whose certificate is good for one of these host names or addresses.
    Hostnames(Vec<String>),
}

/// etcd's words for a certificate that is good and not allowed.
#[derive(thiserror::Error)]
#[error("client certificate authentication failed")]
struct NotAllowed;

/// The TLS library shows errors of others in this form only.
impl fmt::Debug for NotAllowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Allowed {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let allowed = match self {
            Self::All => true,
            Self::CommonNames(names) => {
                let name = parse(certificate)?.common_name();
                name.is_some_and(|name| names.contains(&name))
            }
            Self::Hostnames(names) => {
                let certificate = ParsedCertificate::try_from(certificate)?;
                names.iter().any(|name| {
                    let name = ServerName::try_from(name.as_str());
                    name.is_ok_and(|name| verify_server_name(&certificate, &name).is_ok())
                })
            }
        };
        match allowed {
            true => Ok(()),
            false => Err(other(NotAllowed)),
        }
    }
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

fn parse(certificate: &CertificateDer<'_>) -> Result<X509, Error> {
    let parsed = X509::read(certificate);
    parsed.map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))
}

/// Whether a certificate itself stands in the CA file and is good now; `None` when it does not
/// stand there.
fn exact(
    anchors: &Anchors,
    certificate: &CertificateDer<'_>,
    usage: Usage,
    now: UnixTime,
) -> Option<Result<(), Error>> {
    if !anchors.exact.contains(certificate) {
        return None;
    }
    Some(parse(certificate).and_then(|parsed| good_for(&parsed, usage, now)))
}

fn good_for(certificate: &X509, usage: Usage, now: UnixTime) -> Result<(), Error> {
    let now = Duration::from_secs(now.as_secs());
    let (not_before, not_after) = certificate.validity();
    let error = if now < not_before {
        CertificateError::NotValidYet
    } else if now > not_after {
        CertificateError::Expired
    } else if !certificate.is_for(usage) {
        CertificateError::InvalidPurpose
    } else {
        return Ok(());
    };
    Err(Error::InvalidCertificate(error))
}

/// Verifies those who connect.
#[derive(Debug)]
pub(crate) struct Clients {
    anchors: Arc<Anchors>,
    /// `None` when no certificate of the CA file may sign.
    signed: Option<Arc<dyn ClientCertVerifier>>,
    hints: Vec<DistinguishedName>,
    revoked: Option<Arc<Revoked>>,
    allowed: Allowed,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Clients {
    pub fn new(
        anchors: Arc<Anchors>,
        revoked: Option<Arc<Revoked>>,
        allowed: Allowed,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<Self>, crate::Error> {
        let signed = match anchors.roots.is_empty() {
            true => None,
            false => {
                let roots = Arc::clone(&anchors.roots);
                let builder =
                    WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
                let verifier = builder.build();
                Some(verifier.map_err(|error| crate::Error::Settings(error.to_string()))?)
            }
        };
        Ok(Arc::new(Self {
            signed,
            hints: anchors.hints.subjects(),
            anchors,
            revoked,
            allowed,
            algorithms: provider.signature_verification_algorithms,
        }))
    }

    fn not_revoked(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let Some(revoked) = &self.revoked else {
            return Ok(());
        };
        match revoked.contains(parse(certificate)?.serial()) {
            true => Err(Error::InvalidCertificate(CertificateError::Revoked)),
            false => Ok(()),
        }
    }
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match (
            exact(&self.anchors, end_entity, Usage::Client, now),
            &self.signed,
        ) {
            (Some(verified), _) => verified?,
            (None, Some(signed)) => {
                signed.verify_client_cert(end_entity, intermediates, now)?;
            }
            (None, None) => {
                let unknown = CertificateError::UnknownIssuer;
                return Err(Error::InvalidCertificate(unknown));
            }
        }
        self.allowed.check(end_entity)?;
        self.not_revoked(end_entity)?;
        for certificate in intermediates {
            self.not_revoked(certificate)?;
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Verifies those who are called. Without anchors everybody is believed: they made their own
/// certificates, and only the connection is kept secret.
#[derive(Debug)]
pub(crate) struct Servers {
    pub anchors: Option<Arc<Anchors>>,
    pub allowed: Allowed,
    pub algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(anchors) = &self.anchors else {
            return Ok(ServerCertVerified::assertion());
        };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        match exact(anchors, end_entity, Usage::Server, now) {
            Some(verified) => verified?,
            None => verify_server_cert_signed_by_trust_anchor(
                &certificate,
                &anchors.roots,
                intermediates,
                now,
                self.algorithms.all,
            )?,
        }
        verify_server_name(&certificate, server_name)?;
        self.allowed.check(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
