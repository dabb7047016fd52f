//! `cairn-operator probe`: shows that a cluster stores and returns what it is given.

use std::time::Duration;

use proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, kv_client::KvClient};
use tonic::transport::{Channel, Endpoint};

/// Between two tries of an endpoint that does not answer yet.
const AGAIN: Duration = Duration::from_millis(500);
/// How long one request may take.
const CALL: Duration = Duration::from_secs(5);

/// Puts, reads back and deletes one key of its own. Says what it did.
///
/// # Errors
/// What failed last, when nothing succeeded in time.
pub async fn probe(endpoint: &str, limit: Duration) -> Result<String, String> {
    if !endpoint.starts_with("http://") {
        return Err(format!(
            "--endpoint {endpoint}: it has to be a URL like http://db-client.default.svc:2379; TLS is \
             not possible yet"
        ));
    }
    let channel = Endpoint::from_shared(endpoint.to_owned());
    let channel = channel.map_err(|error| format!("--endpoint {endpoint}: {error}"))?;
    let channel = channel.connect_timeout(CALL).timeout(CALL);
    let mut failed = "nothing was tried".to_owned();
    let tries = async {
        loop {
            match once(&channel).await {
                Ok(said) => return said,
                Err(error) => failed = error,
            }
            tokio::time::sleep(AGAIN).await;
        }
    };
    match tokio::time::timeout(limit, tries).await {
        Ok(said) => Ok(format!("{endpoint}: {said}")),
        Err(_) => Err(format!(
            "{endpoint}: no success within {limit:?}; the last try: {failed}"
        )),
    }
}

async fn once(endpoint: &Endpoint) -> Result<String, String> {
    let channel = endpoint
        .connect()
        .await
        .map_err(|error| format!("cannot connect: {error}"))?;
    let mut kv: KvClient<Channel> = KvClient::new(channel);
    // Nobody else's: two probes at once do not meet.
    let key = format!("cairn.dev/probe/{:016x}", rand::random::<u64>()).into_bytes();
    let value = rand::random::<u64>().to_string().into_bytes();
    let refused =
        |what: &'static str| move |status: tonic::Status| format!("{what}: {}", status.message());
    let put = PutRequest {
        key: key.clone().into(),
        value: value.clone().into(),
        ..PutRequest::default()
    };
    kv.put(put).await.map_err(refused("put"))?;
    let range = RangeRequest {
        key: key.clone().into(),
        ..RangeRequest::default()
    };
    let read = kv.range(range).await.map_err(refused("get"))?.into_inner();
    let delete = DeleteRangeRequest {
        key: key.into(),
        ..DeleteRangeRequest::default()
    };
    let deleted = kv
        .delete_range(delete)
        .await
        .map_err(refused("delete"))?
        .into_inner();
    match read.kvs.first() {
        Some(found) if found.value[..] == value[..] && deleted.deleted == 1 => {
            Ok("put a key, read it back and deleted it".to_owned())
        }
        Some(_) => Err("the key read back has another value or was not deleted".to_owned()),
        None => Err("the key that was put is not there".to_owned()),
    }
}
