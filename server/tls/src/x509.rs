//! What is read from certificates besides what the TLS library reads.

use std::{collections::BTreeSet, time::Duration};

use rustls_pki_types::CertificateDer;
use x509_cert::{
    Certificate, Version,
    crl::CertificateList,
    der::{self, Decode, asn1::ObjectIdentifier},
    ext::pkix::{
        BasicConstraints, ExtendedKeyUsage, SubjectAltName,
        name::{DirectoryString, GeneralName},
    },
};

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const ANY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");
const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const CLIENT_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");

/// What a certificate is shown for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usage {
    Client,
    Server,
}

/// A certificate, read.
pub(crate) struct X509(Certificate);

impl X509 {
    pub fn read(certificate: &CertificateDer<'_>) -> der::Result<Self> {
        Certificate::from_der(certificate).map(Self)
    }

    /// From when and until when it is good, since 1970.
    pub fn validity(&self) -> (Duration, Duration) {
        let validity = self.0.tbs_certificate().validity();
        let (from, until) = (validity.not_before, validity.not_after);
        (from.to_unix_duration(), until.to_unix_duration())
    }

    /// Its serial number, without leading zeros.
    pub fn serial(&self) -> &[u8] {
        plain(self.0.tbs_certificate().serial_number().as_bytes())
    }

    /// Its common name; the last one of several, as Go takes it.
    pub fn common_name(&self) -> Option<String> {
        let subject = self.0.tbs_certificate().subject();
        let names = subject.iter().filter(|name| name.oid == COMMON_NAME);
        let name = DirectoryString::try_from(&names.last()?.value).ok()?;
        Some(name.value().into_owned())
    }

    /// Whether it may sign others, as Go sees it. The TLS library takes each anchor for one that
    /// may; but who trusts one server's certificate must not trust what that server signs.
    pub fn may_sign(&self) -> bool {
        let tbs = self.0.tbs_certificate();
        match tbs.get_extension::<BasicConstraints>() {
            Ok(Some((_, constraints))) => constraints.ca,
            Ok(None) => tbs.version() != Version::V3,
            Err(_) => false,
        }
    }

    /// Whether it may be shown for a purpose. One that names none is for all.
    pub fn is_for(&self, usage: Usage) -> bool {
        let own = match usage {
            Usage::Client => CLIENT_AUTH,
            Usage::Server => SERVER_AUTH,
        };
        let tbs = self.0.tbs_certificate();
        match tbs.get_extension::<ExtendedKeyUsage>() {
            Ok(Some((_, usages))) => usages
                .0
                .iter()
                .any(|usage| [ANY_USAGE, own].contains(usage)),
            Ok(None) => true,
            Err(_) => false,
        }
    }

    /// Its host names, and whether it names addresses too.
    pub fn names(&self) -> der::Result<(BTreeSet<String>, bool)> {
        let names = self.0.tbs_certificate().get_extension::<SubjectAltName>()?;
        let names = names.map(|(_, names)| names.0).unwrap_or_default();
        let addresses = names
            .iter()
            .any(|name| matches!(name, GeneralName::IpAddress(_)));
        let hosts = names.iter().filter_map(|name| match name {
            GeneralName::DnsName(name) => Some(name.to_string()),
            _ => None,
        });
        Ok((hosts.collect(), addresses))
    }
}

/// The serial numbers of a revocation list in DER, without leading zeros.
pub(crate) fn revoked(list: &[u8]) -> der::Result<Vec<Vec<u8>>> {
    let list: CertificateList = CertificateList::from_der(list)?;
    let rows = list.tbs_cert_list.revoked_certificates.unwrap_or_default();
    let serials = rows.iter().map(|row| plain(row.serial_number.as_bytes()));
    Ok(serials.map(<[u8]>::to_vec).collect())
}

/// A number without the zeros that DER puts before some.
fn plain(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    &serial[zeros..]
}
