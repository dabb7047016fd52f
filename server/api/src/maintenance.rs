//! The Maintenance service.

use proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, DowngradeRequest,
    DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest,
    MoveLeaderResponse, SnapshotRequest, StatusRequest, StatusResponse, alarm_request::AlarmAction,
    downgrade_request::DowngradeAction, maintenance_server::Maintenance,
};
use tonic::{Request, Response, Status};

use crate::{Backend, caller::Caller, gate, snapshot, status};

/// In etcd's words.
const UNKNOWN_METHOD: &str = "etcdserver: unknown method";

pub(crate) struct MaintenanceService<B>(pub B);

impl<B: Backend> MaintenanceService<B> {
    async fn require_root<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let caller = Caller::of(&self.0, request);
        self.0.require_root(&caller).await.map_err(status::of)
    }
}

#[tonic::async_trait]
impl<B: Backend> Maintenance for MaintenanceService<B> {
    async fn alarm(
        &self,
        request: Request<AlarmRequest>,
    ) -> Result<Response<AlarmResponse>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        let caller = Caller::of(&self.0, &request);
        let request = request.into_inner();
        let may = match request.action() {
            AlarmAction::Get => self.0.require_user(&caller).await,
            _ => self.0.require_root(&caller).await,
        };
        may.map_err(status::of)?;
        let response = self.0.alarm(&caller, request).await;
        let mut response = response.map_err(status::of)?;
        status::fill(&self.0, &mut response.header);
        Ok(Response::new(response))
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        gate::pass(&self.0, request.metadata(), true)?;
        let caller = Caller::of(&self.0, &request);
        self.0.require_user(&caller).await.map_err(status::of)?;
        let mut response = self.0.status().await.map_err(status::of)?;
        status::fill(&self.0, &mut response.header);
        Ok(Response::new(response))
    }

    async fn defragment(
        &self,
        request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        self.require_root(&request).await?;
        self.0.defragment().await.map_err(status::of)?;
        Ok(Response::new(DefragmentResponse::default()))
    }

    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        self.require_root(&request).await?;
        Err(status::not_yet("Hash; use HashKV"))
    }

    async fn hash_kv(
        &self,
        request: Request<HashKvRequest>,
    ) -> Result<Response<HashKvResponse>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        self.require_root(&request).await?;
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
        self.require_root(&request).await?;
        snapshot::open(&self.0).await
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        self.require_root(&request).await?;
        let target = request.into_inner().target_id;
        self.0.move_leader(target).await.map_err(status::of)?;
        Ok(Response::new(MoveLeaderResponse::default()))
    }

    async fn downgrade(
        &self,
        request: Request<DowngradeRequest>,
    ) -> Result<Response<DowngradeResponse>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        self.require_root(&request).await?;
        let request = request.into_inner();
        if DowngradeAction::try_from(request.action).is_err() {
            return Err(Status::unknown(UNKNOWN_METHOD));
        }
        let version = self.0.downgrade(request).await.map_err(status::of)?;
        let mut response = DowngradeResponse {
            version,
            header: None,
        };
        status::fill(&self.0, &mut response.header);
        Ok(Response::new(response))
    }
}
