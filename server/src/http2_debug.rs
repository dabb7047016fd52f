//! What `GODEBUG=http2debug=2` shows of etcd's requests: each header as it was received, in the lines
//! of Go's HTTP/2 library. Off unless the variable asks for it; then for whoever looks for what a
//! client sends, as which host it takes this server for.

use std::io::Write;

use axum::{Router, extract::Request, http::Version, middleware::Next, response::Response};

/// The variable in which Go's runtime finds its settings, and the one that counts here.
const VARIABLE: &str = "GODEBUG";
const SETTING: &str = "http2debug=2";
/// Headers that let whoever knows them in.
const SECRET: [&str; 2] = ["token", "authorization"];

/// Has a router show what it is asked, if the environment says so.
pub(crate) fn wrap(router: Router) -> Router {
    let settings = std::env::var(VARIABLE).unwrap_or_default();
    match settings.split(',').any(|setting| setting == SETTING) {
        true => router.layer(axum::middleware::from_fn(show)),
        false => router,
    }
}

async fn show(request: Request, next: Next) -> Response {
    if request.version() == Version::HTTP_2 {
        let now = jiff::Zoned::now();
        let text = lines(&request, &now.strftime("%Y/%m/%d %H:%M:%S").to_string());
        // Nothing depends on who reads it.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
    next.run(request).await
}

fn lines<B>(request: &axum::http::Request<B>, time: &str) -> String {
    let uri = request.uri();
    let own = [
        (":method", request.method().as_str()),
        (":scheme", uri.scheme_str().unwrap_or_default()),
        (":path", uri.path()),
        (":authority", uri.authority().map_or("", |of| of.as_str())),
    ];
    let headers = request.headers().iter().map(|(name, value)| {
        let shown = match SECRET.contains(&name.as_str()) {
            true => "...",
            false => value.to_str().unwrap_or("..."),
        };
        (name.as_str(), shown)
    });
    let line = |(name, value): (&str, &str)| {
        format!("{time} http2: decoded hpack field header field {name:?} = {value:?}\n")
    };
    own.into_iter().chain(headers).map(line).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn headers_are_shown_as_go_shows_them_and_secrets_are_not() {
        let request = Request::post("http://localhost:20000/etcdserverpb.KV/Put")
            .header("te", "trailers")
            .header("token", "letters.7");
        let text = lines(&request.body(()).unwrap(), "2026/11/25 12:00:00");
        let of = "2026/11/25 12:00:00 http2: decoded hpack field header field ";
        let expected = [
            ":method\" = \"POST",
            ":scheme\" = \"http",
            ":path\" = \"/etcdserverpb.KV/Put",
            ":authority\" = \"localhost:20000",
            "te\" = \"trailers",
            "token\" = \"...",
        ];
        let expected: String = expected.map(|line| format!("{of}\"{line}\"\n")).concat();
        assert_eq!(text, expected);
    }
}
