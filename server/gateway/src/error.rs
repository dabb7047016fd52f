//! What is wrong with a request.

use prost_reflect::DescriptorError;
use tonic::Status;

/// Why there is no gateway, or no answer of a service.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The compiled .proto files cannot be read.
    #[error("the compiled .proto files cannot be read: {0}")]
    Descriptors(DescriptorError),
    /// A path names a method that no .proto file has.
    #[error("no .proto file has the method {0}")]
    NoMethod(&'static str),
    /// What came is no JSON, in the words of Go's encoding/json.
    #[error("{0}")]
    Syntax(String),
    /// It is JSON and not the message, in the words of Go's protojson.
    #[error("proto: {0}")]
    Message(String),
    /// It is longer than any message that would be taken.
    #[error("grpc: received message larger than max (more than {0} bytes of JSON)")]
    TooLong(usize),
}

impl Error {
    /// As clients are told.
    pub(crate) fn status(&self) -> Status {
        match self {
            Self::TooLong(_) => Status::resource_exhausted(self.to_string()),
            Self::Syntax(_) | Self::Message(_) => Status::invalid_argument(self.to_string()),
            Self::Descriptors(_) | Self::NoMethod(_) => Status::internal(self.to_string()),
        }
    }
}
