//! Who makes a call: what the call says of it. Who that is, the backend finds out.

use std::{fmt, sync::Arc};

use tonic::{Request, metadata::MetadataMap};

use crate::Backend;

/// The keys under which a call brings its token; the first one counts.
const TOKEN_KEYS: [&str; 2] = ["token", "authorization"];
/// What some clients write before a token.
const BEARER: &str = "Bearer ";
/// A gateway brings this; its certificate is the server's own and names no user.
const OF_GATEWAY: &str = "grpcgateway-accept";

/// The common name of a verified client certificate. Whoever accepts connections puts it into the
/// extensions of their requests, if certificates are to name users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommonName(pub Arc<str>);

/// Who makes a call. Without authentication nothing is known of it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Caller {
    token: Option<Arc<str>>,
    common_name: Option<Arc<str>>,
    /// The server itself.
    internal: bool,
}

impl Caller {
    /// The server itself, with the rights of root.
    pub fn server() -> Self {
        Self {
            internal: true,
            ..Self::default()
        }
    }

    /// Who has only a token to show.
    pub fn with_token(token: &str) -> Self {
        let token = token.strip_prefix(BEARER).unwrap_or(token);
        Self {
            token: Some(token.into()),
            ..Self::default()
        }
    }

    /// Of a call that is answered now.
    pub(crate) fn of<B: Backend, T>(backend: &B, request: &Request<T>) -> Self {
        match backend.asks_who() {
            true => Self::of_stream(request),
            false => Self::default(),
        }
    }

    /// Of a stream, which may outlast that authentication is off.
    pub(crate) fn of_stream<T>(request: &Request<T>) -> Self {
        let metadata = request.metadata();
        let token = TOKEN_KEYS.iter().find_map(|&key| metadata.get(key));
        let mut caller = match token {
            Some(token) => Self::with_token(&String::from_utf8_lossy(token.as_bytes())),
            None => Self::default(),
        };
        caller.common_name = common_name(request, metadata);
        caller
    }

    /// The token that it shows.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// The common name of its certificate, if that counts.
    pub fn common_name(&self) -> Option<&str> {
        self.common_name.as_deref()
    }

    /// Whether it is the server itself.
    pub fn is_server(&self) -> bool {
        self.internal
    }
}

fn common_name<T>(request: &Request<T>, metadata: &MetadataMap) -> Option<Arc<str>> {
    let CommonName(name) = request.extensions().get()?;
    metadata.get(OF_GATEWAY).is_none().then(|| Arc::clone(name))
}

/// A token must not get into a log.
impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller")
            .field("token", &self.token.as_ref().map(|_| "..."))
            .field("common_name", &self.common_name)
            .field("internal", &self.internal)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_says_who_makes_it() {
        let mut request = Request::new(());
        assert_eq!(Caller::of_stream(&request), Caller::default());
        let name = CommonName("ann".into());
        request.extensions_mut().insert(name);
        assert_eq!(Caller::of_stream(&request).common_name(), Some("ann"));
        let metadata = request.metadata_mut();
        metadata.insert("authorization", "Bearer a.1".parse().unwrap());
        assert_eq!(Caller::of_stream(&request).token(), Some("a.1"));
        let metadata = request.metadata_mut();
        metadata.insert("token", "b.2".parse().unwrap());
        let caller = Caller::of_stream(&request);
        assert_eq!(caller.token(), Some("b.2"));
        assert!(!format!("{caller:?}").contains("b.2"));
        let metadata = request.metadata_mut();
        metadata.insert("grpcgateway-accept", "x".parse().unwrap());
        assert_eq!(Caller::of_stream(&request).common_name(), None);
    }
}
