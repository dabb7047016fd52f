//! The Lock service: locks that the server takes for clients without etcd's Go package.

use bytes::Bytes;
use proto::{
    etcdserverpb::DeleteRangeRequest,
    v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse, lock_server::Lock},
};
use tonic::{Request, Response, Status};

use crate::{
    Backend,
    caller::Caller,
    checks,
    concurrency::{
        Client, Place, first, get, get_op, key_of, prefix_of, put_op, range_of, revision_of, told,
    },
    gate, status,
};

/// In the words of etcd's Go package.
const SESSION_EXPIRED: &str = "mutex: session is expired";

pub(crate) struct LockService<B>(pub B);

#[tonic::async_trait]
impl<B: Backend> Lock for LockService<B> {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        let client = Client {
            backend: self.0.clone(),
            // It may wait for long.
            caller: Caller::of_stream(&request),
        };
        let request = request.into_inner();
        let lease = client.lease(request.lease).await.map_err(told)?;
        let prefix = prefix_of(&request.name);
        let key = key_of(&prefix, lease);
        let owner = get_op(first(&prefix));
        // A session that has the lock keeps it.
        let taken = client.txn(
            &key,
            0,
            vec![put_op(&key, &Bytes::new(), lease), owner.clone()],
            vec![get_op(get(&key)), owner],
        );
        let taken = taken.await.map_err(told)?;
        let created = match (taken.succeeded, range_of(&taken, 0).first()) {
            (false, Some(own)) => own.create_revision,
            _ => revision_of(taken.header.as_ref()),
        };
        let owner = range_of(&taken, 1).first();
        if owner.is_none_or(|owner| owner.create_revision == created) {
            let header = taken.header;
            return Ok(Response::new(LockResponse { header, key }));
        }
        let mut place = Place::new(client.clone(), prefix, key.clone(), created);
        place.wait_turn().await.map_err(told)?;
        // The lease may have ended meanwhile, and the key with it.
        let own = client.range(get(&key)).await.map_err(told)?;
        if own.kvs.is_empty() {
            return Err(Status::unknown(SESSION_EXPIRED));
        }
        place.keep();
        let header = own.header;
        Ok(Response::new(LockResponse { header, key }))
    }

    async fn unlock(
        &self,
        request: Request<UnlockRequest>,
    ) -> Result<Response<UnlockResponse>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        let caller = Caller::of(&self.0, &request);
        let request = DeleteRangeRequest {
            key: request.into_inner().key,
            ..DeleteRangeRequest::default()
        };
        checks::delete_range(&request).map_err(told)?;
        let deleted = self.0.delete_range(&caller, request).await;
        let mut header = deleted.map_err(told)?.header;
        status::fill(&self.0, &mut header);
        Ok(Response::new(UnlockResponse { header }))
    }
}
