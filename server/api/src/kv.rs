//! The KV service.

use proto::{
    etcdserverpb::{
        CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
        PutResponse, RangeRequest, TxnRequest, TxnResponse, kv_server::Kv,
    },
    framed::RangeResponse,
};
use tonic::{Request, Response, Status};

use crate::{Backend, caller::Caller, checks, gate, range_stream, slow, status};

pub(crate) struct KvService<B>(pub B);

#[tonic::async_trait]
impl<B: Backend> Kv for KvService<B> {
    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        slow::timed(self.0.limits().slow, request, |request| {
            self.range_now(request)
        })
        .await
    }

    type RangeStreamStream = range_stream::Pieces;

    async fn range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        range_stream::open(&self.0, request).await
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        slow::timed(self.0.limits().slow, request, |request| {
            self.put_now(request)
        })
        .await
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        slow::timed(self.0.limits().slow, request, |request| {
            self.delete_range_now(request)
        })
        .await
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        slow::timed(self.0.limits().slow, request, |request| {
            self.txn_now(request)
        })
        .await
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        let caller = Caller::of(&self.0, &request);
        self.0.require_root(&caller).await.map_err(status::of)?;
        let response = self.0.compact(&caller, request.into_inner()).await;
        let mut response = response.map_err(status::of)?;
        status::fill(&self.0, &mut response.header);
        Ok(Response::new(response))
    }
}

impl<B: Backend> KvService<B> {
    async fn range_now(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let serializable = request.get_ref().serializable;
        gate::pass(&self.0, request.metadata(), serializable)?;
        let caller = Caller::of(&self.0, &request);
        let request = request.into_inner();
        checks::range(&request).map_err(status::of)?;
        let mut response = self.0.range(&caller, request).await.map_err(status::of)?;
        status::fill(&self.0, &mut response.header);
        Ok(Response::new(response))
    }

    async fn put_now(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        let caller = Caller::of(&self.0, &request);
        let request = request.into_inner();
        checks::put(&request).map_err(status::of)?;
        let mut response = self.0.put(&caller, request).await.map_err(status::of)?;
        status::fill(&self.0, &mut response.header);
        Ok(Response::new(response))
    }

    async fn delete_range_now(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        let caller = Caller::of(&self.0, &request);
        let request = request.into_inner();
        checks::delete_range(&request).map_err(status::of)?;
        let mut response = self
            .0
            .delete_range(&caller, request)
            .await
            .map_err(status::of)?;
        status::fill(&self.0, &mut response.header);
        Ok(Response::new(response))
    }

    async fn txn_now(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        let caller = Caller::of(&self.0, &request);
        let request = request.into_inner();
        checks::txn(&request, self.0.limits().max_txn_ops).map_err(status::of)?;
        let mut response = self.0.txn(&caller, request).await.map_err(status::of)?;
        status::fill(&self.0, &mut response.header);
        Ok(Response::new(response))
    }
}
