//! The few calls that most tests make, repeated until a member answers.

use std::time::{Duration, Instant};

use proto::etcdserverpb::{
    PutRequest, RangeRequest, StatusRequest, StatusResponse, kv_client::KvClient,
    maintenance_client::MaintenanceClient,
};
use tonic::transport::{Channel, Endpoint};

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(2);
const CALL: Duration = Duration::from_secs(8);

/// A connection that is made when it is used.
pub fn channel(url: &str) -> Channel {
    let endpoint = Endpoint::from_shared(url.to_owned()).unwrap();
    endpoint
        .connect_timeout(CONNECT)
        .timeout(CALL)
        .connect_lazy()
}

/// Calls again until it is answered.
pub async fn eventually<T, E: std::fmt::Debug>(
    what: &str,
    mut call: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let began = Instant::now();
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(error) => assert!(began.elapsed() < LIMIT, "{what}: {error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Writes a key.
pub async fn put(url: &str, key: &str, value: &str) {
    let request = PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..PutRequest::default()
    };
    let mut kv = KvClient::new(channel(url));
    eventually("put", async || kv.put(request.clone()).await).await;
}

/// Reads a key; from this member alone when `serializable`.
pub async fn get(url: &str, key: &str, serializable: bool) -> Option<String> {
    let request = RangeRequest {
        key: key.to_owned().into(),
        serializable,
        ..RangeRequest::default()
    };
    let mut kv = KvClient::new(channel(url));
    let found = eventually("get", async || kv.range(request.clone()).await).await;
    let kv = found.into_inner().kvs.into_iter().next();
    kv.map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
}

/// What a member says of itself.
pub async fn status(url: &str) -> StatusResponse {
    let mut client = MaintenanceClient::new(channel(url));
    let status = eventually("status", async || client.status(StatusRequest {}).await).await;
    status.into_inner()
}
