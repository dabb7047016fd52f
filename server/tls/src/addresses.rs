//! Whether a certificate is that of the address it came from: etcd's check of other members.

use std::{
    collections::BTreeSet,
    net::{IpAddr, ToSocketAddrs},
};

use rustls::{client::verify_server_name, server::ParsedCertificate};
use rustls_pki_types::{CertificateDer, ServerName};

use crate::x509::X509;

/// Checks the names of a certificate against the address of who showed it. A certificate without
/// names passes. Host names are looked up both ways.
///
/// # Errors
/// What does not fit, in etcd's words.
pub(crate) async fn check(
    certificate: CertificateDer<'static>,
    remote: IpAddr,
) -> Result<(), String> {
    let remote = remote.to_canonical();
    let names = X509::read(&certificate).and_then(|certificate| certificate.names());
    let (hosts, addresses) = names.map_err(|error| error.to_string())?;
    if !addresses && hosts.is_empty() {
        return Ok(());
    }
    if addresses {
        let parsed =
            ParsedCertificate::try_from(&certificate).map_err(|error| error.to_string())?;
        if verify_server_name(&parsed, &ServerName::from(remote)).is_ok() {
            return Ok(());
        }
        if hosts.is_empty() {
            return Err(format!("x509: certificate is not valid for {remote}"));
        }
    }
    let looked_up = hosts.clone();
    // Both look-ups may take seconds; the handshake's deadline ends the wait.
    let found = tokio::task::spawn_blocking(move || is_host(remote, &looked_up)).await;
    match found {
        Ok(true) => Ok(()),
        _ => Err(format!(
            "tls: {:?} does not match any of DNSNames {:?}",
            remote.to_string(),
            hosts
        )),
    }
}

/// Whether an address belongs to one of several host names: by its own name first, which may fit a
/// wildcard, then by theirs.
fn is_host(remote: IpAddr, hosts: &BTreeSet<String>) -> bool {
    let own = dns_lookup::lookup_addr(&remote).unwrap_or_default();
    // The system answers with the address itself when it knows no name.
    let own = own.trim_end_matches('.');
    if !own.is_empty() && own.parse::<IpAddr>().is_err() {
        let fits = |host: &String| match host.strip_prefix('*') {
            Some(end) if end.starts_with('.') => own.ends_with(end),
            _ => host == own,
        };
        if hosts.iter().any(fits) {
            return true;
        }
    }
    let plain = hosts.iter().filter(|host| !host.starts_with("*."));
    plain.into_iter().any(|host| {
        let found = (host.as_str(), 0).to_socket_addrs();
        found.is_ok_and(|mut found| found.any(|found| found.ip().to_canonical() == remote))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(names: &[&str]) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(names).unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    #[tokio::test]
    async fn a_certificate_is_that_of_its_addresses() {
        let here = IpAddr::from([127, 0, 0, 1]);
        let check = |names: &[&str]| check(certificate(names), here);
        assert_eq!(check(&[]).await, Ok(()));
        assert_eq!(check(&["127.0.0.1"]).await, Ok(()));
        assert_eq!(check(&["localhost"]).await, Ok(()));
        assert_eq!(check(&["10.0.0.1", "localhost"]).await, Ok(()));
        let refused = check(&["10.0.0.1"]).await.unwrap_err();
        assert_eq!(refused, "x509: certificate is not valid for 127.0.0.1");
        let refused = check(&["nowhere.invalid"]).await.unwrap_err();
        assert!(
            refused.contains("does not match any of DNSNames"),
            "{refused}"
        );
    }
}
