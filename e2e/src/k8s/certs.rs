//! The instance's own authority and what it signs. Keys are thrown away with the instance.

use std::{fs, net::IpAddr};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};

use crate::k8s::layout::{CONTROL, FIRST_SERVICE, Layout, node_address, node_name};

/// Writes the authority, the certificates of all parts, and the key of service accounts.
pub fn write(layout: &Layout, nodes: usize) -> Result<()> {
    let key = KeyPair::generate()?;
    let mut authority = CertificateParams::default();
    authority.distinguished_name = name("cairn-test-ca", None);
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = authority.self_signed(&key)?;
    fs::write(layout.pki("ca", "crt"), certificate.pem())?;
    fs::write(layout.pki("ca", "key"), key.serialize_pem())?;
    let issuer = Issuer::new(authority, key);

    let api = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
        CONTROL,
        FIRST_SERVICE,
        "127.0.0.1",
    ];
    let masters = Some("system:masters");
    sign(layout, &issuer, "apiserver", ("kube-apiserver", None), &api)?;
    sign(
        layout,
        &issuer,
        "kubelet-client",
        ("kube-apiserver", masters),
        &[],
    )?;
    sign(layout, &issuer, "admin", ("kubernetes-admin", masters), &[])?;
    for part in ["kube-controller-manager", "kube-scheduler", "kube-proxy"] {
        let user = format!("system:{part}");
        sign(layout, &issuer, part, (&user, None), &[])?;
    }
    sign(layout, &issuer, "coredns", ("coredns", None), &[])?;
    for number in 1..=nodes {
        let (name, address) = (node_name(number), node_address(number));
        let user = format!("system:node:{name}");
        let names = [name.as_str(), address.as_str()];
        sign(
            layout,
            &issuer,
            &name,
            (&user, Some("system:nodes")),
            &names,
        )?;
    }

    let accounts = KeyPair::generate()?;
    fs::write(layout.pki("sa", "key"), accounts.serialize_pem())?;
    fs::write(layout.pki("sa", "pub"), accounts.public_key_pem())?;
    Ok(())
}

fn name(common: &str, group: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    name
}

/// A certificate in `file` for a user and its group, and for a server under `names`.
fn sign(
    layout: &Layout,
    issuer: &Issuer<'_, KeyPair>,
    file: &str,
    (user, group): (&str, Option<&str>),
    names: &[&str],
) -> Result<()> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = name(user, group);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    for name in names {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName((*name).try_into()?),
        });
    }
    let certificate = params.signed_by(&key, issuer)?;
    fs::write(layout.pki(file, "crt"), certificate.pem())?;
    fs::write(layout.pki(file, "key"), key.serialize_pem())?;
    Ok(())
}
