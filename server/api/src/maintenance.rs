//! The Maintenance service.

use proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, DowngradeRequest,
    DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest,
    MoveLeaderResponse, SnapshotRequest, StatusRequest, StatusResponse,
    maintenance_server::Maintenance,
};
use tonic::{Request, Response, Status};

use crate::{Backend, gate, snapshot, status};

pub(crate) struct MaintenanceService<B>(pub B);

#[tonic::async_trait]
impl<B: Backend> Maintenance for MaintenanceService<B> {
    async fn alarm(
        &self,
        request: Request<AlarmRequest>,
    ) -> Result<Response<AlarmResponse>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        let response = self.0.alarm(request.into_inner()).await;
        let mut response = response.map_err(status::of)?;
        status::fill(&self.0, &mut response.header);
        Ok(Response::new(response))
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        gate::pass(&self.0, request.metadata(), true)?;
        let mut response = self.0.status().await.map_err(status::of)?;
        status::fill(&self.0, &mut response.header);
        Ok(Response::new(response))
    }

    async fn defragment(
        &self,
        request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        self.0.defragment().await.map_err(status::of)?;
        Ok(Response::new(DefragmentResponse::default()))
    }

    async fn hash(&self, _: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        Err(status::not_yet("Hash; use HashKV"))
    }

    async fn hash_kv(
        &self,
        request: Request<HashKvRequest>,
    ) -> Result<Response<HashKvResponse>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        let response = self.0.hash_kv(request.into_inner()).await;
        let mut response = response.map_err(status::of)?;
        status::fill(&self.0, &mut response.header);
        Ok(Response::new(response))
    }

    type SnapshotStream = snapshot::Blobs;

    async fn snapshot(
        &self,
        request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        // Of a learner too, as in etcd.
        gate::pass(&self.0, request.metadata(), true)?;
        snapshot::open(&self.0).await
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        let target = request.into_inner().target_id;
        self.0.move_leader(target).await.map_err(status::of)?;
        Ok(Response::new(MoveLeaderResponse::default()))
    }

    async fn downgrade(
        &self,
        _request: Request<DowngradeRequest>,
    ) -> Result<Response<DowngradeResponse>, Status> {
        Err(status::not_yet("Downgrade"))
    }
}
