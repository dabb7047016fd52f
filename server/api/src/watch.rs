//! The Watch service: requests of a stream go to its handle, responses of the handle to the
//! client.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    vec,
};

use proto::{
    etcdserverpb::{
        WatchCreateRequest, WatchRequest, watch_request::RequestUnion, watch_server::Watch,
    },
    framed::WatchResponse,
};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use crate::{Backend, backend::WatchHandle, caller::Caller, gate, status, stream::Leaderless};
use state::Error;

/// Batches of responses between the hub and the connection. More wait in the hub, which bounds
/// them and the batches.
const WAITING_BATCHES: usize = 1;

/// Responses that leave the hub together.
type Batch = Result<Vec<WatchResponse>, Status>;

pub(crate) struct WatchService<B>(pub B);

#[tonic::async_trait]
impl<B: Backend> Watch for WatchService<B> {
    type WatchStream = Responses;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        let leaderless = Leaderless::of(&self.0, request.metadata());
        let (responses, receiver) = mpsc::channel(WAITING_BATCHES);
        let caller = Caller::of_stream(&request);
        let stream = serve(
            self.0.clone(),
            caller,
            request.into_inner(),
            responses.clone(),
        );
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = stream => ended,
                ended = leaderless.wait() => Err(ended),
                () = responses.closed() => Ok(()),
            };
            if let Err(status) = ended {
                // A client that is gone needs no reason.
                let _ = responses.send(Err(status)).await;
            }
        });
        Ok(Response::new(Responses {
            batches: receiver,
            batch: Vec::new().into_iter(),
        }))
    }
}

/// The responses of a stream, one by one: those that are there at once share a frame.
pub(crate) struct Responses {
    batches: mpsc::Receiver<Batch>,
    batch: vec::IntoIter<WatchResponse>,
}

impl Stream for Responses {
    type Item = Result<WatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(response) = self.batch.next() {
                return Poll::Ready(Some(Ok(response)));
            }
            match ready!(self.batches.poll_recv(cx)) {
                Some(Ok(batch)) => self.batch = batch.into_iter(),
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None => return Poll::Ready(None),
            }
        }
    }
}

/// Serves a stream until the client or the server ends it. Requests are taken at all times, also
/// while the client does not read: unread requests would use up the connection's window.
async fn serve<B: Backend>(
    backend: B,
    caller: Caller,
    mut requests: Streaming<WatchRequest>,
    responses: mpsc::Sender<Batch>,
) -> Result<(), Status> {
    let mut watch = backend.watch();
    // As in etcd a stream goes on when nothing more is asked of it.
    let mut asked = true;
    loop {
        let next = async {
            // The room first: what has been taken must be sent.
            let room = responses.reserve().await;
            (room, watch.next().await)
        };
        tokio::select! {
            request = requests.message(), if asked => match request? {
                Some(request) => handle(&backend, &caller, &mut watch, request).await,
                None => asked = false,
            },
            (room, batch) = next => match (room, batch) {
                (Ok(room), Some(mut batch)) => {
                    let headers = batch.iter_mut().map(|r| r.header.get_or_insert_default());
                    status::complete_all(&backend, headers);
                    if let Some(pause) = failpoint::BEFORE_SEND_WATCH_RESPONSE.pause() {
                        tokio::time::sleep(pause).await;
                    }
                    room.send(Ok(batch));
                }
                (Ok(_), None) => return Err(status::of(state::Error::Stopped)),
                (Err(_), _) => return Ok(()),
            },
        }
    }
}

/// A request that is none of these is ignored, as in etcd.
async fn handle<B: Backend>(
    backend: &B,
    caller: &Caller,
    watch: &mut B::Watch,
    request: WatchRequest,
) {
    match request.request_union {
        Some(RequestUnion::CreateRequest(r)) => {
            // As in etcd what cannot be is said first.
            let refusal = match r.start_revision < 0 {
                true => None,
                false => refusal(backend, caller, &r).await,
            };
            match refusal {
                Some(reason) => watch.refuse(reason),
                None => watch.create(r),
            }
        }
        Some(RequestUnion::CancelRequest(r)) => watch.cancel(r.watch_id),
        Some(RequestUnion::ProgressRequest(_)) => watch.progress(),
        None => {}
    }
}

/// Why a watcher may not be, in the form of Go's gRPC errors.
async fn refusal<B: Backend>(
    backend: &B,
    caller: &Caller,
    r: &WatchCreateRequest,
) -> Option<&'static str> {
    let key: &[u8] = match &r.key[..] {
        // The smallest key, as for any watcher.
        b"" => b"\0",
        key => key,
    };
    match backend.permit_read(caller, key, &r.range_end).await {
        Ok(_) => None,
        Err(Error::InvalidAuthToken) => {
            Some("rpc error: code = Unauthenticated desc = etcdserver: invalid auth token")
        }
        Err(Error::AuthOldRevision) => Some(
            "rpc error: code = InvalidArgument desc = etcdserver: revision of auth store is old",
        ),
        Err(Error::UserEmpty) => {
            Some("rpc error: code = InvalidArgument desc = etcdserver: user name is empty")
        }
        Err(_) => Some("rpc error: code = PermissionDenied desc = etcdserver: permission denied"),
    }
}
