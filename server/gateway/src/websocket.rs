//! Websockets, as etcd's wsproxy serves them: what a client sends is the body of a POST, a line for
//! each of its messages; each line of the answer is a message to it.

use axum::{
    body::Body,
    extract::{
        FromRequestParts, Request,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use http::{HeaderMap, HeaderValue, Method, header};
use http_body_util::BodyExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::Gateway;

/// What the token is written behind, in the list of protocols and in the header.
const BEARER: &str = "Bearer";
/// The cookie that may hold the token.
const TOKEN_COOKIE: &str = "token";
/// Messages of a client that wait until the call takes them; then the client waits.
const WAITING_MESSAGES: usize = 1;

/// Whether a request asks for a websocket.
pub(crate) fn asked_for(request: &Request) -> bool {
    let has = |name, word: &str| {
        let values = request.headers().get_all(name).iter();
        let mut words = values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','));
        words.any(|value| value.trim().eq_ignore_ascii_case(word))
    };
    has(header::CONNECTION, "upgrade") && has(header::UPGRADE, "websocket")
}

/// Accepts a websocket and serves it in a task of its own.
pub(crate) async fn serve(gateway: Gateway, request: Request) -> Response {
    let (mut parts, _) = request.into_parts();
    let upgrade = match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
        Ok(upgrade) => upgrade,
        Err(rejected) => return rejected.into_response(),
    };
    let mut call = Request::new(());
    *call.method_mut() = Method::POST;
    *call.uri_mut() = parts.uri;
    *call.headers_mut() = headers(&parts.headers);
    let longest = gateway.0.max_json_bytes;
    upgrade
        .protocols([BEARER])
        .max_message_size(longest)
        .max_frame_size(longest)
        .on_upgrade(move |socket| proxy(gateway, call, socket))
}

/// What of the headers counts for the call.
fn headers(given: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for name in [header::ORIGIN, header::REFERER] {
        if let Some(value) = given.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    let token = cookie(given).or_else(|| protocol(given));
    let token = token.and_then(|token| HeaderValue::from_str(&format!("{BEARER} {token}")).ok());
    if let Some(token) = token {
        headers.insert(header::AUTHORIZATION, token);
    }
    headers
}

/// The token in `Sec-WebSocket-Protocol: Bearer, token`.
fn protocol(given: &HeaderMap) -> Option<String> {
    let protocols = given.get(header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    let (_, token) = protocols.split_once("Bearer,")?;
    Some(token.trim().to_owned())
}

fn cookie(given: &HeaderMap) -> Option<String> {
    let cookies = given.get_all(header::COOKIE).iter();
    let mut pairs = cookies
        .filter_map(|cookies| cookies.to_str().ok())
        .flat_map(|cookies| cookies.split(';'))
        .filter_map(|cookie| cookie.trim().split_once('='));
    let token = pairs.find(|(name, _)| *name == TOKEN_COOKIE);
    token.map(|(_, value)| value.to_owned())
}

/// Joins a socket and a call until either ends.
async fn proxy(gateway: Gateway, call: Request<()>, socket: WebSocket) {
    let (mut to_client, from_client) = socket.split();
    let (lines, body) = mpsc::channel(WAITING_MESSAGES);
    let body = Body::from_stream(ReceiverStream::new(body).map(Ok::<_, std::io::Error>));
    tokio::select! {
        () = read(from_client, lines) => {}
        () = async {
            let response = gateway.call(call.map(|()| body), false).await;
            write(response.into_body(), &mut to_client).await;
        } => {}
    }
    // Both sides may be gone already.
    let _ = to_client.close().await;
}

/// Takes messages until the client closes.
async fn read(mut from_client: SplitStream<WebSocket>, lines: mpsc::Sender<Bytes>) {
    while let Some(Ok(message)) = from_client.next().await {
        let payload = match message {
            Message::Text(text) => Bytes::from(text),
            Message::Binary(bytes) => bytes,
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => return,
        };
        let mut line = BytesMut::from(&payload[..]);
        line.extend_from_slice(b"\n");
        if lines.send(line.freeze()).await.is_err() {
            // The call takes no more, and may still have something to say.
            break;
        }
    }
    // What comes behind is read and dropped, so that it is seen when the client closes.
    while let Some(Ok(message)) = from_client.next().await {
        if matches!(message, Message::Close(_)) {
            return;
        }
    }
}

/// Sends each line of the answer.
async fn write(mut body: Body, to_client: &mut SplitSink<WebSocket, Message>) {
    let mut rest = BytesMut::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else {
            continue;
        };
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line = rest.split_to(end + 1);
            if !send(&line[..end], to_client).await {
                return;
            }
        }
    }
    send(&rest, to_client).await;
}

async fn send(line: &[u8], to_client: &mut SplitSink<WebSocket, Message>) -> bool {
    if line.is_empty() {
        return true;
    }
    let text = String::from_utf8_lossy(line).into_owned();
    to_client.send(Message::Text(text.into())).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_in_a_protocol_or_a_cookie() {
        let mut given = HeaderMap::new();
        assert!(headers(&given).is_empty());
        let protocols = HeaderValue::from_static("Bearer, abc.1");
        given.insert(header::SEC_WEBSOCKET_PROTOCOL, protocols);
        given.insert(header::ORIGIN, HeaderValue::from_static("http://a"));
        assert_eq!(headers(&given)["authorization"], "Bearer abc.1");
        assert_eq!(headers(&given)["origin"], "http://a");
        let cookies = HeaderValue::from_static("a=b; token=def.2; c=d");
        given.insert(header::COOKIE, cookies);
        assert_eq!(headers(&given)["authorization"], "Bearer def.2");
    }
}
