//! What the metrics port serves before there is a node to ask, and afterwards.
//!
//! A member that waits for its record, or replays its log, is alive and not ready; a probe that
//! got no answer would have it killed.

use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use axum::{
    Router,
    extract::Request,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::json;
use tower::ServiceExt;

/// The router of the metrics port, which changes when the node is there. Clones are one.
#[derive(Clone)]
pub(crate) struct Front {
    node: Arc<ArcSwapOption<Router>>,
    waits: Arc<ArcSwap<String>>,
}

impl Front {
    /// A front of a server that starts.
    pub fn new() -> Self {
        Self {
            node: Arc::default(),
            waits: Arc::new(ArcSwap::from_pointee("the server is starting".to_owned())),
        }
    }

    /// Says why the member is not ready yet.
    pub fn waits(&self, why: &str) {
        self.waits.store(Arc::new(why.to_owned()));
    }

    /// From now on this is served.
    pub fn open(&self, router: Router) {
        self.node.store(Some(Arc::new(router)));
    }

    /// A router for the port.
    pub fn router(&self) -> Router {
        let front = self.clone();
        Router::new().fallback(move |request: Request| async move {
            match front.node.load_full() {
                Some(router) => {
                    let router = Router::clone(&router);
                    let served = router.oneshot(request).await;
                    served.unwrap_or_else(|never| match never {})
                }
                None => front.waiting(request.uri().path()),
            }
        })
    }

    fn waiting(&self, path: &str) -> Response {
        let why = self.waits.load();
        let body = match path {
            "/livez" => return "ok\n".into_response(),
            "/health" => format!("{{\"health\":\"false\",\"reason\":{}}}\n", json!(**why)),
            // The form of etcd's checks.
            "/readyz" => format!("[-]started failed: {why}\n\n"),
            _ => format!("{why}\n"),
        };
        (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
    }
}
