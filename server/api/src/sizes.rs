//! A request that is too long, in grpc-go's words: tools tell it by them.

use axum::response::Response;
use http::HeaderValue;

/// How tonic begins to say it, percent-encoded as it is on the wire.
const TOO_LONG: &str = "Error, decoded message length too large: found ";

/// Rewrites tonic's refusal of a request that is longer than the limit.
pub(crate) fn in_gos_words(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let message = headers
        .get("grpc-message")
        .and_then(|value| value.to_str().ok());
    let Some((found, limit)) = message.and_then(lengths) else {
        return response;
    };
    let text = format!("grpc: received message larger than max ({found} vs. {limit})");
    if let Ok(text) = HeaderValue::from_str(&text) {
        headers.insert("grpc-message", text);
        // RESOURCE_EXHAUSTED; tonic says OUT_OF_RANGE.
        headers.insert("grpc-status", HeaderValue::from_static("8"));
    }
    response
}

/// The length found and the limit, from tonic's text.
fn lengths(message: &str) -> Option<(u64, u64)> {
    let message = message.replace("%20", " ").replace("%2C", ",");
    let rest = message.strip_prefix(TOO_LONG)?;
    let (found, rest) = rest.split_once(" bytes, the limit is: ")?;
    let limit = rest.strip_suffix(" bytes")?;
    Some((found.parse().ok()?, limit.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tonics_refusal_is_rewritten() {
        let text = "Error,%20decoded%20message%20length%20too%20large:%20found%209%20bytes,%20the\
                    %20limit%20is:%205%20bytes";
        assert_eq!(lengths(text), Some((9, 5)));
        assert_eq!(lengths("etcdserver: no leader"), None);
    }
}
