//! What of a request's headers goes on to the services, as grpc-gateway does it.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Version, header};
use http_body::Body as HttpBody;
use tonic::Status;

/// Headers with this before their name are metadata.
const METADATA: &str = "grpc-metadata-";
/// What is put before the names of the headers below.
const PERMANENT: &str = "grpcgateway-";
/// Headers that go on under another name.
const FORWARDED: &[HeaderName] = &[
    header::ACCEPT,
    header::ACCEPT_CHARSET,
    header::ACCEPT_LANGUAGE,
    header::ACCEPT_RANGES,
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONTENT_TYPE,
    header::COOKIE,
    header::DATE,
    header::EXPECT,
    header::FROM,
    header::HOST,
    header::IF_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_NONE_MATCH,
    header::IF_UNMODIFIED_SINCE,
    header::MAX_FORWARDS,
    header::ORIGIN,
    header::PRAGMA,
    header::REFERER,
    header::USER_AGENT,
    header::VIA,
    header::WARNING,
];
/// Names that gRPC keeps for itself.
const RESERVED: &[&str] = &["content-type", "te", "user-agent", "connection", "host"];
const TIMEOUT: &str = "grpc-timeout";

/// What a request says besides its body.
pub(crate) struct Metadata {
    headers: HeaderMap,
    /// How long the call may take.
    pub deadline: Option<Duration>,
}

impl Metadata {
    /// # Errors
    /// When the time that the call may take is none.
    pub fn of(headers: &HeaderMap) -> Result<Self, Status> {
        let deadline = match headers.get(TIMEOUT) {
            Some(text) => Some(timeout(text)?),
            None => None,
        };
        let mut metadata = HeaderMap::new();
        for (name, value) in headers {
            if value.to_str().is_err() {
                continue;
            }
            if name == header::AUTHORIZATION {
                metadata.append(name.clone(), value.clone());
            }
            let forwarded = match name.as_str().strip_prefix(METADATA) {
                Some(name) if reserved(name) => continue,
                Some(name) => name.parse(),
                None if FORWARDED.contains(name) => format!("{PERMANENT}{name}").parse(),
                None => continue,
            };
            if let Ok(forwarded) = forwarded {
                let forwarded: HeaderName = forwarded;
                metadata.append(forwarded, value.clone());
            }
        }
        Ok(Self {
            headers: metadata,
            deadline,
        })
    }

    /// A call of a method. No certificate comes with it: in etcd the gateway is the client.
    pub fn request<B>(&self, path: &str, body: B) -> Request<Body>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<axum::BoxError>,
    {
        let mut request = Request::new(Body::new(body));
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        // The paths are made of names of methods.
        *request.uri_mut() = path.parse().unwrap_or_default();
        let headers = request.headers_mut();
        *headers = self.headers.clone();
        let grpc = HeaderValue::from_static("application/grpc");
        headers.insert(header::CONTENT_TYPE, grpc);
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        request
    }
}

fn reserved(name: &str) -> bool {
    name.starts_with("grpc-") || RESERVED.contains(&name)
}

/// gRPC's form: a number, and one letter for the unit.
fn timeout(text: &HeaderValue) -> Result<Duration, Status> {
    let text = text.to_str().unwrap_or_default();
    let wrong = || Status::invalid_argument(format!("invalid grpc-timeout: {text}"));
    let (at, unit) = text.char_indices().next_back().ok_or_else(wrong)?;
    let number: u64 = text[..at].parse().map_err(|_| wrong())?;
    let seconds = |each: u64| number.checked_mul(each).map(Duration::from_secs);
    let duration = match unit {
        'H' => seconds(3600),
        'M' => seconds(60),
        'S' => seconds(1),
        'm' => Some(Duration::from_millis(number)),
        'u' => Some(Duration::from_micros(number)),
        'n' => Some(Duration::from_nanos(number)),
        _ => None,
    };
    duration.ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = of.iter().map(|&(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        pairs.collect()
    }

    #[test]
    fn tokens_and_metadata_go_on() {
        let given = headers(&[
            ("authorization", "abc.1"),
            ("accept", "*/*"),
            ("grpc-metadata-hasleader", "true"),
            ("grpc-metadata-content-type", "text/plain"),
            ("grpc-metadata-grpc-status", "0"),
            ("x-other", "1"),
            ("transfer-encoding", "chunked"),
        ]);
        let metadata = Metadata::of(&given).unwrap();
        let request = metadata.request("/a.B/C", Body::empty());
        let headers = request.headers();
        assert_eq!(headers["authorization"], "abc.1");
        assert_eq!(headers["grpcgateway-authorization"], "abc.1");
        assert_eq!(headers["grpcgateway-accept"], "*/*");
        assert_eq!(headers["hasleader"], "true");
        assert_eq!(headers["content-type"], "application/grpc");
        assert_eq!(headers.len(), 6, "{headers:?}");
        assert_eq!(request.uri().path(), "/a.B/C");
    }

    #[test]
    fn a_time_limit_is_read() {
        for (text, expected) in [
            ("1S", Some(Duration::from_secs(1))),
            ("2H", Some(Duration::from_secs(7200))),
            ("15m", Some(Duration::from_millis(15))),
            ("", None),
            ("S", None),
            ("1", None),
            ("-1S", None),
            ("99999999999999999999S", None),
            ("9999999999999999999H", None),
        ] {
            let read = timeout(&HeaderValue::from_str(text).unwrap());
            assert_eq!(read.ok(), expected, "{text}");
        }
    }
}
