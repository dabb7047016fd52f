//! The Watch service: requests of a stream go to its handle, responses of the handle to the
//! client.

use proto::etcdserverpb::{
    WatchRequest, WatchResponse, watch_request::RequestUnion, watch_server::Watch,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{Backend, backend::WatchHandle, gate, status, stream::Leaderless};

/// Responses between the hub and the connection. More wait in the hub, which bounds them.
const WAITING_RESPONSES: usize = 2;

pub(crate) struct WatchService<B>(pub B);

#[tonic::async_trait]
impl<B: Backend> Watch for WatchService<B> {
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        let leaderless = Leaderless::of(&self.0, request.metadata());
        let (responses, receiver) = mpsc::channel(WAITING_RESPONSES);
        let stream = serve(self.0.clone(), request.into_inner(), responses.clone());
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
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Serves a stream until the client or the server ends it. Requests are taken at all times, also
/// while the client does not read: unread requests would use up the connection's window.
async fn serve<B: Backend>(
    backend: B,
    mut requests: Streaming<WatchRequest>,
    responses: mpsc::Sender<Result<WatchResponse, Status>>,
) -> Result<(), Status> {
    let mut watch = backend.watch();
    loop {
        let next = async {
            // The room first: a response that has been taken must be sent.
            let room = responses.reserve().await;
            (room, watch.next().await)
        };
        tokio::select! {
            request = requests.message() => match request? {
                Some(request) => handle(&mut watch, request),
                None => return Ok(()),
            },
            (room, response) = next => match (room, response) {
                (Ok(room), Some(mut response)) => {
                    status::complete(&backend, response.header.get_or_insert_default());
                    room.send(Ok(response));
                }
                (Ok(_), None) => return Err(status::of(state::Error::Stopped)),
                (Err(_), _) => return Ok(()),
            },
        }
    }
}

/// A request that is none of these is ignored, as in etcd.
fn handle<W: WatchHandle>(watch: &mut W, request: WatchRequest) {
    match request.request_union {
        Some(RequestUnion::CreateRequest(r)) => watch.create(r),
        Some(RequestUnion::CancelRequest(r)) => watch.cancel(r.watch_id),
        Some(RequestUnion::ProgressRequest(_)) => watch.progress(),
        None => {}
    }
}
