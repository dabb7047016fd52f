//! Maintenance.Snapshot: the state as a database file of etcd's, piece by piece, and its SHA-256
//! behind it.

use std::io;

use bytes::Bytes;
use proto::etcdserverpb::SnapshotResponse;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use crate::{Backend, status};

/// Bytes of the file in one response, as in etcd: clients may have a limit for a message.
const BLOB_BYTES: usize = 32 << 10;
/// Responses that wait for the connection.
const WAITING: usize = 8;

/// A database file that is being made.
#[derive(Debug)]
pub struct SnapshotFile {
    /// Its length.
    pub bytes: u64,
    /// The storage version of what is in it.
    pub version: String,
    /// Its pieces; an error ends them.
    pub pieces: mpsc::Receiver<io::Result<Bytes>>,
}

pub(crate) type Blobs = ReceiverStream<Result<SnapshotResponse, Status>>;
type Sender = mpsc::Sender<Result<SnapshotResponse, Status>>;

/// Answers the call.
pub(crate) async fn open<B: Backend>(backend: &B) -> Result<Response<Blobs>, Status> {
    let file = backend.snapshot().await.map_err(status::of)?;
    let (blobs, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        if let Err(status) = serve(file, &blobs).await {
            // A client that is gone needs no reason.
            let _ = blobs.send(Err(status)).await;
        }
    });
    Ok(Response::new(ReceiverStream::new(receiver)))
}

async fn serve(mut file: SnapshotFile, blobs: &Sender) -> Result<(), Status> {
    let mut digest = Sha256::new();
    let mut left = file.bytes;
    while let Some(piece) = file.pieces.recv().await {
        let mut piece = piece.map_err(|error| Status::unavailable(error.to_string()))?;
        digest.update(&piece);
        while !piece.is_empty() {
            let blob = piece.split_to(piece.len().min(BLOB_BYTES));
            left = left.saturating_sub(blob.len() as u64);
            if !send(blobs, left, blob, &file.version).await {
                return Ok(());
            }
        }
    }
    if left > 0 {
        let text = format!("the snapshot lacks its last {left} bytes");
        return Err(Status::unavailable(text));
    }
    let digest = Bytes::copy_from_slice(&digest.finalize());
    send(blobs, 0, digest, &file.version).await;
    Ok(())
}

/// Whether the client is still there.
async fn send(blobs: &Sender, remaining_bytes: u64, blob: Bytes, version: &str) -> bool {
    let response = SnapshotResponse {
        header: None,
        remaining_bytes,
        blob,
        version: version.to_owned(),
    };
    blobs.send(Ok(response)).await.is_ok()
}
