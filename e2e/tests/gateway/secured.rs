//! The gateway over TLS: HTTP/1.1 and HTTP/2, and certificates that name somebody.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use e2e::{Authority, Issue, KeyFiles, Kind, Member, replace};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tls::{Options, Pair, Tls};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream, rustls::pki_types::ServerName};

use super::http::{LIMIT, comparable};

/// A connection of whoever has a certificate.
async fn connect(ca: &Path, shown: &KeyFiles, port: u16, alpn: &str) -> TlsStream<TcpStream> {
    let options = Options {
        certificate: Some(Pair {
            certificate: shown.certificate.clone(),
            key: shown.key.clone(),
        }),
        trusted_ca: Some(ca.to_owned()),
        ..Options::default()
    };
    let tls = Tls::load("test", options).unwrap();
    let mut config = (*tls.client_config().unwrap()).clone();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await.unwrap()
}

/// Posts and returns the code and the JSON, or the text.
async fn post(stream: TlsStream<TcpStream>, alpn: &str, path: &str, body: &str) -> (u16, String) {
    let request = hyper::Request::post(format!("https://127.0.0.1{path}"))
        .header("host", "127.0.0.1")
        // Without it etcd takes its own certificate for that of the client.
        .header("accept", "*/*")
        .body(Full::new(Bytes::from(body.to_owned())))
        .unwrap();
    let io = TokioIo::new(stream);
    let response = match alpn {
        "h2" => {
            let made = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
            let (mut sender, connection) = made.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await
        }
        _ => {
            let made = hyper::client::conn::http1::handshake(io).await;
            let (mut sender, connection) = made.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await
        }
    };
    let response = response.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, comparable(std::str::from_utf8(&body).unwrap()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificates_name_does_not_pass_the_gateway() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Authority::new("ca");
    let bundle = folder.path().join("ca.crt");
    replace(&bundle, ca.pem().as_bytes());
    let shown = ca.issue(folder.path(), "member", &Issue::default());
    let root = Issue {
        name: "root",
        ..Issue::default()
    };
    let root = ca.issue(folder.path(), "root", &root);
    let nobody = Issue {
        name: "",
        ..Issue::default()
    };
    let nobody = ca.issue(folder.path(), "nobody", &nobody);
    let flags = |prefix: &str| {
        let path = |path: &Path| path.display().to_string();
        [
            format!("--{prefix}cert-file={}", path(&shown.certificate)),
            format!("--{prefix}key-file={}", path(&shown.key)),
            format!("--{prefix}trusted-ca-file={}", path(&bundle)),
            format!("--{prefix}client-cert-auth"),
        ]
    };
    let mut said = Vec::new();
    for kind in [Kind::Etcd, Kind::Cairn] {
        let all = [flags(""), flags("peer-")].concat();
        let member = Member::new(kind, &format!("{kind:?}")).with_tls(all);
        let mut server = member.launch(folder.path(), &[&member], "new");
        server.wait_ready();
        let port = server.url().rsplit_once(':').unwrap().1.parse().unwrap();
        let mut answers = Vec::new();
        let mut ask = async |who: &KeyFiles, alpn: &str, path: &str, body: &str| {
            let asked = async {
                let stream = connect(&bundle, who, port, alpn).await;
                post(stream, alpn, path, body).await
            };
            let (status, text) = tokio::time::timeout(LIMIT, asked).await.unwrap();
            // Where the IDs of both differ only the code and what is wrong are compared.
            let text = if status == 200 { String::new() } else { text };
            answers.push((path.to_owned(), alpn.to_owned(), status, text));
        };
        let put = r#"{"key":"Zm9v","value":"YmFy"}"#;
        for alpn in ["h2", "http/1.1"] {
            ask(&root, alpn, "/v3/kv/put", put).await;
            ask(&root, alpn, "/v3beta/kv/put", put).await;
            ask(&root, alpn, "/v3/kv/put", "{").await;
        }
        for (path, body) in [
            ("/v3/auth/user/add", r#"{"name":"root","password":"r"}"#),
            ("/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#),
            ("/v3/auth/enable", "{}"),
        ] {
            ask(&root, "h2", path, body).await;
        }
        for alpn in ["h2", "http/1.1"] {
            for who in [&root, &nobody] {
                ask(who, alpn, "/v3/kv/put", put).await;
                ask(who, alpn, "/v3beta/kv/put", put).await;
                ask(who, alpn, "/version", "").await;
            }
        }
        said.push(answers);
    }
    assert_eq!(said[1], said[0]);
    let refused = said[1]
        .iter()
        .filter(|(_, _, status, text)| *status == 400 && text.starts_with("CommonName of client"));
    assert_eq!(refused.count(), 4, "{:?}", said[1]);
}
