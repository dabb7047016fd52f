//! etcd's errors as gRPC statuses, and what every response header holds.

use proto::etcdserverpb::ResponseHeader;
use state::{Code, Error};
use tonic::Status;

use crate::Backend;

/// The status that etcd sends for an error.
pub(crate) fn of(error: Error) -> Status {
    let code = match error.code() {
        Code::Canceled => tonic::Code::Cancelled,
        Code::Unknown => tonic::Code::Unknown,
        Code::InvalidArgument => tonic::Code::InvalidArgument,
        Code::DeadlineExceeded => tonic::Code::DeadlineExceeded,
        Code::NotFound => tonic::Code::NotFound,
        Code::PermissionDenied => tonic::Code::PermissionDenied,
        Code::ResourceExhausted => tonic::Code::ResourceExhausted,
        Code::FailedPrecondition => tonic::Code::FailedPrecondition,
        Code::OutOfRange => tonic::Code::OutOfRange,
        Code::Unavailable => tonic::Code::Unavailable,
        Code::DataLoss => tonic::Code::DataLoss,
        Code::Unauthenticated => tonic::Code::Unauthenticated,
    };
    Status::new(code, error.text())
}

/// What is not there yet.
pub(crate) fn not_yet(what: &str) -> Status {
    Status::unimplemented(format!("this version of cairn has no {what} yet"))
}

/// Completes a header with who answers; the revision is the current one where there is none yet.
pub(crate) fn fill<B: Backend>(backend: &B, header: &mut Option<ResponseHeader>) {
    let header = header.get_or_insert_default();
    complete(backend, header);
    if header.revision == 0 {
        header.revision = backend.standing().revision;
    }
}

/// A header without a revision, as the Cluster service sends it.
pub(crate) fn header<B: Backend>(backend: &B) -> Option<ResponseHeader> {
    let mut header = ResponseHeader::default();
    complete(backend, &mut header);
    Some(header)
}

/// Writes who answers, and in which term.
pub(crate) fn complete<B: Backend>(backend: &B, header: &mut ResponseHeader) {
    complete_all(backend, std::iter::once(header));
}

/// The same for answers that go out together.
pub(crate) fn complete_all<'a, B: Backend>(
    backend: &B,
    headers: impl Iterator<Item = &'a mut ResponseHeader>,
) {
    let identity = backend.identity();
    let term = backend.standing().term;
    for header in headers {
        header.cluster_id = identity.cluster_id;
        header.member_id = identity.member_id;
        header.raft_term = term;
    }
}
