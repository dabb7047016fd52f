//! The Lease service.

use proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, lease_server::Lease,
};
use state::Error;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{Backend, caller::Caller, gate, status, stream::Leaderless};

/// Answers that may wait for a client that does not read them; then its requests wait too.
const WAITING_ANSWERS: usize = 16;

pub(crate) struct LeaseService<B>(pub B);

#[tonic::async_trait]
impl<B: Backend> Lease for LeaseService<B> {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        let caller = Caller::of(&self.0, &request);
        let response = self.0.lease_grant(&caller, request.into_inner()).await;
        let mut response = response.map_err(status::of)?;
        status::fill(&self.0, &mut response.header);
        Ok(Response::new(response))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        let caller = Caller::of(&self.0, &request);
        let response = self.0.lease_revoke(&caller, request.into_inner()).await;
        let mut response = response.map_err(status::of)?;
        status::fill(&self.0, &mut response.header);
        Ok(Response::new(response))
    }

    type LeaseKeepAliveStream = ReceiverStream<Result<LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        let leaderless = Leaderless::of(&self.0, request.metadata());
        let (answers, receiver) = mpsc::channel(WAITING_ANSWERS);
        let caller = Caller::of_stream(&request);
        let stream = keep_alive(
            self.0.clone(),
            caller,
            request.into_inner(),
            answers.clone(),
        );
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = stream => ended,
                ended = leaderless.wait() => Err(ended),
                () = answers.closed() => Ok(()),
            };
            if let Err(status) = ended {
                // A client that is gone needs no reason.
                let _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        let caller = Caller::of(&self.0, &request);
        let request = request.into_inner();
        let id = request.id;
        let mut response = match self.0.lease_time_to_live(&caller, request).await {
            Ok(response) => response,
            Err(Error::LeaseNotFound) => LeaseTimeToLiveResponse {
                id,
                ttl: -1,
                ..LeaseTimeToLiveResponse::default()
            },
            Err(error) => return Err(status::of(error)),
        };
        status::fill(&self.0, &mut response.header);
        Ok(Response::new(response))
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        let caller = Caller::of(&self.0, &request);
        let leases = self.0.lease_leases(&caller).await;
        let mut response = leases.map_err(status::of)?;
        status::fill(&self.0, &mut response.header);
        Ok(Response::new(response))
    }
}

/// Renews one lease after the other; one that does not exist is answered with no time left.
async fn keep_alive<B: Backend>(
    backend: B,
    caller: Caller,
    mut requests: Streaming<LeaseKeepAliveRequest>,
    answers: mpsc::Sender<Result<LeaseKeepAliveResponse, Status>>,
) -> Result<(), Status> {
    while let Some(request) = requests.message().await? {
        let mut response = LeaseKeepAliveResponse {
            id: request.id,
            ..LeaseKeepAliveResponse::default()
        };
        // As in etcd the header is of the time before the renewal.
        status::fill(&backend, &mut response.header);
        response.ttl = match backend.lease_keep_alive(&caller, request.id).await {
            Ok(ttl) => ttl,
            Err(Error::LeaseNotFound) => 0,
            Err(error) => return Err(status::of(error)),
        };
        if answers.send(Ok(response)).await.is_err() {
            break;
        }
    }
    Ok(())
}
