//! Who may ask over HTTP: what etcd checks before its endpoints and its JSON gateway, and what it
//! tells browsers. gRPC calls pass none of it.

use std::{collections::HashSet, sync::Arc};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use tracing::warn;

use crate::{Backend, CommonName, endpoints, is_grpc};

/// What stands for all origins, or for all hosts.
const ALL: &str = "*";

/// Marks the requests of connections with TLS. Whoever accepts connections puts it into the
/// extensions of their requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Secured;

/// The origins that pages may be from, and the hosts that plain requests may be sent to. Empty sets
/// allow all, as one that holds `*` does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// As browsers write them: `http://host:port`.
    pub origins: HashSet<String>,
    /// Names and addresses without ports.
    pub hosts: HashSet<String>,
}

impl Access {
    /// Puts the checks before a router, which has a `gateway` or not.
    pub(crate) fn guard<B: Backend>(&self, router: Router, backend: B, gateway: bool) -> Router {
        let guard = Guard {
            access: Arc::new(self.clone()),
            backend,
            gateway,
        };
        router.layer(from_fn_with_state(guard, check::<B>))
    }
}

#[derive(Clone)]
struct Guard<B> {
    access: Arc<Access>,
    backend: B,
    gateway: bool,
}

async fn check<B: Backend>(
    State(guard): State<Guard<B>>,
    request: Request,
    next: Next,
) -> Response {
    if is_grpc(&request) {
        return next.run(request).await;
    }
    if request.extensions().get::<Secured>().is_none() {
        let host = host_of(&request);
        if !allows(&guard.access.hosts, &host) {
            warn!(
                host,
                "rejecting HTTP request to prevent DNS rebinding attacks"
            );
            return endpoints::failed(StatusCode::MISDIRECTED_REQUEST, unknown_host(&host));
        }
    } else if guard.gateway
        && has_name(&request)
        && guard.backend.asks_who()
        && to_gateway(&request)
    {
        let problem = "CommonName of client sending a request against gateway will be ignored and \
                       not used as expected";
        return endpoints::failed(StatusCode::BAD_REQUEST, problem.to_owned());
    }
    let origin = allowed_origin(&guard.access.origins, request.headers());
    let mut response = match request.method() == Method::OPTIONS {
        true => StatusCode::OK.into_response(),
        false => match cleaned(request.uri().path(), guard.gateway) {
            None => next.run(request).await,
            Some(path) => moved(&request, &path),
        },
    };
    if let Some(origin) = origin {
        let headers = response.headers_mut();
        let methods = HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE");
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let names = HeaderValue::from_static("accept, content-type, authorization");
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names);
    }
    response
}

fn allows(set: &HashSet<String>, one: &str) -> bool {
    set.is_empty() || set.contains(ALL) || set.contains(one)
}

/// What a browser is told about a page's origin.
fn allowed_origin(origins: &HashSet<String>, headers: &HeaderMap) -> Option<HeaderValue> {
    if allows(origins, ALL) {
        return Some(HeaderValue::from_static(ALL));
    }
    let origin = headers.get(header::ORIGIN)?;
    let text = origin.to_str().ok()?;
    allows(origins, text).then(|| origin.clone())
}

/// The host that a request is sent to, without its port.
fn host_of(request: &Request) -> String {
    let header = request.headers().get(header::HOST);
    let authority = match request.uri().authority() {
        Some(authority) => authority.as_str(),
        None => header
            .and_then(|host| host.to_str().ok())
            .unwrap_or_default(),
    };
    // By the rules of Go's net.SplitHostPort; what it refuses stays as it is.
    let split = authority.rsplit_once(':');
    let host = split.and_then(|(host, _)| {
        match host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
        {
            Some(address) => Some(address),
            None => (!host.contains([':', '[', ']'])).then_some(host),
        }
    });
    host.unwrap_or(authority).to_owned()
}

/// Whether a certificate with a name stands behind a request. Listeners tell the name where
/// certificates are to name users.
fn has_name(request: &Request) -> bool {
    let name = request.extensions().get::<CommonName>();
    name.is_some_and(|CommonName(name)| !name.is_empty())
}

fn to_gateway(request: &Request) -> bool {
    let path = request.uri().path();
    path.starts_with("/v3/") || path.starts_with("/v3beta/")
}

/// The path that is meant, if it is written in another way, by the rules of Go's ServeMux.
fn cleaned(path: &str, gateway: bool) -> Option<String> {
    if gateway && path == "/v3" {
        return Some("/v3/".to_owned());
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let mut clean = format!("/{}", parts.join("/"));
    if path.ends_with('/') && clean != "/" {
        clean.push('/');
    }
    (clean != path && path.starts_with('/')).then_some(clean)
}

fn moved(request: &Request, path: &str) -> Response {
    let location = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let Ok(location_header) = HeaderValue::from_str(&location) else {
        return endpoints::not_found();
    };
    let status = StatusCode::TEMPORARY_REDIRECT;
    let location_header = [(header::LOCATION, location_header)];
    match *request.method() {
        Method::GET | Method::HEAD => {
            let kind = [(header::CONTENT_TYPE, "text/html; charset=utf-8")];
            let escaped = location
                .replace('&', "&amp;")
                .replace('<', "&lt;")
                .replace('>', "&gt;")
                .replace('"', "&#34;");
            let body = format!("<a href=\"{escaped}\">Temporary Redirect</a>.\n\n");
            (status, location_header, kind, body).into_response()
        }
        _ => (status, location_header).into_response(),
    }
}

/// The words are etcd's, for those who look for them.
fn unknown_host(host: &str) -> String {
    format!(
        "\netcd received your request, but the Host header was unrecognized.\n\n\
         To fix this, choose one of the following options:\n\
         - Enable TLS, then any HTTPS request will be allowed.\n\
         - Add the hostname you want to use to the whitelist in settings.\n  \
         - e.g. etcd --host-whitelist {host:?}\n\n\
         This requirement has been added to help prevent \"DNS Rebinding\" attacks \
         (CVE-2018-5702).\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(host: &str) -> Request {
        let mut request = Request::default();
        let host = HeaderValue::from_str(host).unwrap();
        request.headers_mut().insert(header::HOST, host);
        request
    }

    #[test]
    fn the_host_is_without_its_port() {
        for (text, host) in [
            ("localhost:2379", "localhost"),
            ("localhost", "localhost"),
            ("[::1]:2379", "::1"),
            ("[::1]", "[::1]"),
            ("a:b:c", "a:b:c"),
            ("", ""),
        ] {
            assert_eq!(host_of(&request(text)), host, "{text}");
        }
    }

    #[test]
    fn paths_are_cleaned_as_gos_mux_does() {
        for (path, clean) in [
            ("/", None),
            ("/health", None),
            ("/v3/kv/range", None),
            ("/v3", Some("/v3/")),
            ("//v3/kv/range", Some("/v3/kv/range")),
            ("/v3//kv/./range/../put", Some("/v3/kv/put")),
            ("/..", Some("/")),
            ("/livez/", None),
            ("//livez//", Some("/livez/")),
            ("*", None),
        ] {
            assert_eq!(cleaned(path, true).as_deref(), clean, "{path}");
        }
        assert_eq!(cleaned("/v3", false), None);
    }

    #[test]
    fn origins_are_all_or_named() {
        let mut headers = HeaderMap::new();
        let named = HashSet::from(["http://a:1".to_owned()]);
        let all = HashSet::from([ALL.to_owned()]);
        assert_eq!(allowed_origin(&HashSet::new(), &headers).unwrap(), ALL);
        assert_eq!(allowed_origin(&all, &headers).unwrap(), ALL);
        assert_eq!(allowed_origin(&named, &headers), None);
        headers.insert(header::ORIGIN, HeaderValue::from_static("http://b:1"));
        assert_eq!(allowed_origin(&named, &headers), None);
        headers.insert(header::ORIGIN, HeaderValue::from_static("http://a:1"));
        assert_eq!(allowed_origin(&named, &headers).unwrap(), "http://a:1");
    }
}
