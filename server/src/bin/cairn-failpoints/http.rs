//! gofail's protocol: `GET /` lists what is told as lines of `name=terms`, `GET /name` shows one
//! point, `GET /name/count` how often it acted, `PUT /name` tells it something, `PUT /failpoints`
//! several, `DELETE /name` ends it.

use std::{cell::Cell, convert::Infallible, io, net::TcpListener, rc::Rc, thread, time::Duration};

use failpoint::{Answering, Error};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::ALLOW,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, runtime, task::LocalSet};

/// The longest body that is read.
const MAX_BODY_BYTES: usize = 64 << 10;
/// How long a connection may take; one request each.
const CONNECTION: Duration = Duration::from_secs(10);

/// Serves on a thread of its own, since points make those of the server wait.
pub(crate) fn serve(address: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let accept = async move {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            // A connection that broke before it was taken is nobody's loss.
            if let Ok((stream, _)) = listener.accept().await {
                tokio::task::spawn_local(tokio::time::timeout(CONNECTION, answer(stream)));
            }
        }
    };
    thread::Builder::new()
        .name("failpoints".to_owned())
        .spawn(move || {
            let ended: io::Result<()> = LocalSet::new().block_on(&runtime, accept);
            if let Err(error) = ended {
                eprintln!("failpoints cannot be told anything any more: {error}");
            }
        })?;
    Ok(())
}

async fn answer(stream: TcpStream) {
    // Held until the answer has left: what it tells a point may end the process at once.
    let answering = Rc::new(Cell::new(None));
    let service = service_fn(|request| {
        let answering = Rc::clone(&answering);
        async move {
            let (method, name, body) = match read(request).await {
                Ok(request) => request,
                Err(answer) => return Ok(answer),
            };
            answering.set(Some(Answering::begin()));
            Ok::<_, Infallible>(handle(&method, &name, &body))
        }
    });
    let mut server = http1::Builder::new();
    // Whoever is gone needs no answer.
    let _ = server
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

type Answer = Response<Full<Bytes>>;

async fn read(request: Request<Incoming>) -> Result<(Method, String, String), Answer> {
    let (head, body) = request.into_parts();
    let name = head.uri.path().trim_start_matches('/').to_owned();
    let body = Limited::new(body, MAX_BODY_BYTES).collect().await;
    let body = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
    match body {
        Ok(body) => Ok((head.method, name, body)),
        Err(_) => Err(refused(StatusCode::BAD_REQUEST, "failed ReadAll in PUT")),
    }
}

fn handle(method: &Method, name: &str, body: &str) -> Answer {
    match *method {
        Method::PUT => put(name, body),
        Method::GET => get(name),
        Method::DELETE => match failpoint::forget(name) {
            Ok(()) => said(StatusCode::NO_CONTENT, String::new()),
            Err(error) => refused(
                StatusCode::BAD_REQUEST,
                &format!("failed to delete failpoint {error}"),
            ),
        },
        _ => {
            let mut answer = refused(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed");
            let allowed = hyper::header::HeaderValue::from_static("GET, PUT, DELETE");
            answer.headers_mut().insert(ALLOW, allowed);
            answer
        }
    }
}

fn put(name: &str, body: &str) -> Answer {
    let pairs = match name.eq_ignore_ascii_case("failpoints") {
        true => failpoint::split(body),
        false => Ok(vec![(name, body)]),
    };
    let pairs = match pairs {
        Ok(pairs) => pairs,
        Err(part) => {
            let text = format!("fail to parse failpoint: bad failpoint {part:?}");
            return refused(StatusCode::BAD_REQUEST, &text);
        }
    };
    for (name, terms) in pairs {
        if let Err(error) = failpoint::tell(name, terms) {
            let text = format!("fail to set failpoint: {error}");
            return refused(StatusCode::BAD_REQUEST, &text);
        }
    }
    said(StatusCode::NO_CONTENT, String::new())
}

fn get(name: &str) -> Answer {
    let refuse = |code, error: Error| refused(code, &format!("failed to GET: {error}"));
    if name.is_empty() {
        let mut names: Vec<_> = failpoint::ALL.iter().map(|point| point.name()).collect();
        names.sort_unstable();
        let line = |name: &str| {
            let terms = failpoint::status(name).map_or(String::new(), |(terms, _)| terms);
            format!("{name}={terms}\n")
        };
        return said(StatusCode::OK, names.into_iter().map(line).collect());
    }
    if let Some(name) = name.strip_suffix("/count") {
        return match failpoint::status(name) {
            Ok((_, count)) => said(StatusCode::OK, count.to_string()),
            Err(error @ Error::NotFound) => refuse(StatusCode::NOT_FOUND, error),
            Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error),
        };
    }
    match failpoint::status(name) {
        Ok((terms, _)) => said(StatusCode::OK, format!("{terms}\n")),
        Err(error) => refuse(StatusCode::NOT_FOUND, error),
    }
}

fn said(code: StatusCode, text: String) -> Answer {
    let mut answer = Response::new(Full::from(text));
    *answer.status_mut() = code;
    answer
}

/// As Go's `http.Error` says it.
fn refused(code: StatusCode, text: &str) -> Answer {
    said(code, format!("{text}\n"))
}
