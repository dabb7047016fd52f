//! etcd's errors. Go clients recognise an error by its text and decide about a retry by its
//! code, so both are part of the interface, to the byte.

use std::fmt;

/// The gRPC status codes that etcd answers with, under gRPC's own numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The caller or the server gave the operation up.
    Canceled = 1,
    /// An error that has no code of its own on the wire.
    Unknown = 2,
    /// The request can never succeed as it stands.
    InvalidArgument = 3,
    /// The deadline passed; the outcome is unknown.
    DeadlineExceeded = 4,
    /// What the request names does not exist.
    NotFound = 5,
    /// The caller may not do this.
    PermissionDenied = 7,
    /// A quota is used up.
    ResourceExhausted = 8,
    /// The cluster's state does not allow it now.
    FailedPrecondition = 9,
    /// A revision or a number outside of what is kept or allowed.
    OutOfRange = 11,
    /// The service cannot answer now; another member may.
    Unavailable = 14,
    /// Members disagree about the data.
    DataLoss = 15,
    /// The token is missing, unknown or expired.
    Unauthenticated = 16,
}

macro_rules! errors {
    ($($name:ident, $code:ident, $text:literal;)*) => {
        /// Every error of etcd 3.7's public table, and those that it lets through beside; `Display`
        /// is the text on the wire.
        ///
        /// `MemberNotEnoughStarted` and `TooManyRequests` carry the code that etcd really sends,
        /// `Unknown`: its server maps these two to values that have no status of their own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Error {
            $(#[doc = concat!("`", $text, "`")] $name,)*
        }

        impl Error {
            /// All errors, in the table's order.
            pub const ALL: &[Error] = &[$(Error::$name),*];

            /// The gRPC code that etcd sends with it.
            pub fn code(self) -> Code {
                match self {
                    $(Error::$name => Code::$code,)*
                }
            }

            /// The text that etcd sends with it.
            pub fn text(self) -> &'static str {
                match self {
                    $(Error::$name => $text,)*
                }
            }
        }
    };
}

errors! {
    EmptyKey, InvalidArgument, "etcdserver: key is not provided";
    KeyNotFound, InvalidArgument, "etcdserver: key not found";
    ValueProvided, InvalidArgument, "etcdserver: value is provided";
    LeaseProvided, InvalidArgument, "etcdserver: lease is provided";
    TooManyOps, InvalidArgument, "etcdserver: too many operations in txn request";
    DuplicateKey, InvalidArgument, "etcdserver: duplicate key given in txn request";
    InvalidClientApiVersion, InvalidArgument, "etcdserver: invalid client api version";
    InvalidSortOption, InvalidArgument, "etcdserver: invalid sort option";
    MemberBadUrls, InvalidArgument, "etcdserver: given member URLs are invalid";
    RequestTooLarge, InvalidArgument, "etcdserver: request is too large";
    UserEmpty, InvalidArgument, "etcdserver: user name is empty";
    RoleEmpty, InvalidArgument, "etcdserver: role name is empty";
    AuthFailed, InvalidArgument, "etcdserver: authentication failed, invalid user ID or password";
    PermissionNotGiven, InvalidArgument, "etcdserver: permission not given";
    InvalidAuthMgmt, InvalidArgument, "etcdserver: invalid auth management";
    AuthOldRevision, InvalidArgument, "etcdserver: revision of auth store is old";
    WrongDowngradeVersionFormat, InvalidArgument, "etcdserver: wrong downgrade target version format";
    InvalidDowngradeTargetVersion, InvalidArgument, "etcdserver: invalid downgrade target version";
    Compacted, OutOfRange, "etcdserver: mvcc: required revision has been compacted";
    FutureRev, OutOfRange, "etcdserver: mvcc: required revision is a future revision";
    LeaseTtlTooLarge, OutOfRange, "etcdserver: too large lease TTL";
    NoSpace, ResourceExhausted, "etcdserver: mvcc: database space exceeded";
    LeaseNotFound, NotFound, "etcdserver: requested lease not found";
    MemberNotFound, NotFound, "etcdserver: member not found";
    LeaseExist, FailedPrecondition, "etcdserver: lease already exists";
    MemberExist, FailedPrecondition, "etcdserver: member ID already exist";
    PeerUrlExist, FailedPrecondition, "etcdserver: Peer URLs already exists";
    MemberNotLearner, FailedPrecondition, "etcdserver: can only promote a learner member";
    LearnerNotReady, FailedPrecondition, "etcdserver: can only promote a learner member which is in sync with leader";
    TooManyLearners, FailedPrecondition, "etcdserver: too many learner members in cluster";
    ClusterIdMismatch, FailedPrecondition, "etcdserver: cluster ID mismatch";
    RootUserNotExist, FailedPrecondition, "etcdserver: root user does not exist";
    RootRoleNotExist, FailedPrecondition, "etcdserver: root user does not have root role";
    UserAlreadyExist, FailedPrecondition, "etcdserver: user name already exists";
    UserNotFound, FailedPrecondition, "etcdserver: user name not found";
    RoleAlreadyExist, FailedPrecondition, "etcdserver: role name already exists";
    RoleNotFound, FailedPrecondition, "etcdserver: role name not found";
    RoleNotGranted, FailedPrecondition, "etcdserver: role is not granted to the user";
    PermissionNotGranted, FailedPrecondition, "etcdserver: permission is not granted to the role";
    AuthNotEnabled, FailedPrecondition, "etcdserver: authentication is not enabled";
    NotLeader, FailedPrecondition, "etcdserver: not leader";
    NotCapable, FailedPrecondition, "etcdserver: not capable";
    NotSupportedForLearner, FailedPrecondition, "etcdserver: rpc not supported for learner";
    BadLeaderTransferee, FailedPrecondition, "etcdserver: bad leader transferee";
    ClusterVersionUnavailable, FailedPrecondition, "etcdserver: cluster version not found during downgrade";
    DowngradeInProcess, FailedPrecondition, "etcdserver: cluster has a downgrade job in progress";
    NoInflightDowngrade, FailedPrecondition, "etcdserver: no inflight downgrade job";
    WatchCanceled, Canceled, "etcdserver: watch canceled";
    Canceled, Canceled, "etcdserver: request canceled";
    PermissionDenied, PermissionDenied, "etcdserver: permission denied";
    InvalidAuthToken, Unauthenticated, "etcdserver: invalid auth token";
    NoLeader, Unavailable, "etcdserver: no leader";
    LeaderChanged, Unavailable, "etcdserver: leader changed";
    Stopped, Unavailable, "etcdserver: server stopped";
    Timeout, Unavailable, "etcdserver: request timed out";
    TimeoutDueToLeaderFail, Unavailable, "etcdserver: request timed out, possibly due to previous leader failure";
    TimeoutDueToConnectionLost, Unavailable, "etcdserver: request timed out, possibly due to connection lost";
    TimeoutWaitAppliedIndex, Unavailable, "etcdserver: request timed out, waiting for the applied index took too long";
    Unhealthy, Unavailable, "etcdserver: unhealthy cluster";
    Corrupt, DataLoss, "etcdserver: corrupt cluster";
    DeadlineExceeded, DeadlineExceeded, "etcdserver: context deadline exceeded";
    MemberNotEnoughStarted, Unknown, "etcdserver: re-configuration failed due to not enough started members";
    TooManyRequests, Unknown, "etcdserver: too many requests";
    // Not in the table: what etcd's server sends as it stands in its own code.
    NoPasswordUser, Unknown, "auth: authentication failed, password was given for no password user";
    VerifyOnly, Unknown, "auth: token signing attempted with verify-only key";
    PasswordTooLong, Unknown, "bcrypt: password length exceeds 72 bytes";
}

impl Error {
    /// What a client is told of an error of the store; `None` when the process must end.
    pub fn of_store(error: &mvcc::Error) -> Option<Self> {
        match error {
            mvcc::Error::Compacted => Some(Self::Compacted),
            mvcc::Error::FutureRevision => Some(Self::FutureRev),
            mvcc::Error::LeaseNotFound => Some(Self::LeaseNotFound),
            mvcc::Error::KeyNotFound => Some(Self::KeyNotFound),
            mvcc::Error::Engine(_) | mvcc::Error::Damaged(_) | mvcc::Error::Foreign { .. } => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_table_is_whole_and_every_text_names_one_error() {
        let texts: HashSet<&str> = Error::ALL.iter().map(|error| error.text()).collect();
        assert_eq!(texts.len(), Error::ALL.len());
        let public = texts.iter().filter(|text| text.starts_with("etcdserver: "));
        assert_eq!(public.count(), 63);
        for error in Error::ALL {
            let public = error.text().starts_with("etcdserver: ");
            assert!(public || error.code() == Code::Unknown, "{error:?}");
        }
    }

    #[test]
    fn clients_find_the_texts_they_look_for() {
        let check = |error: Error, code: u8, text: &str| {
            assert_eq!(error.to_string(), text);
            assert_eq!(error.code() as u8, code, "{error:?}");
        };
        check(Error::EmptyKey, 3, "etcdserver: key is not provided");
        check(
            Error::Compacted,
            11,
            "etcdserver: mvcc: required revision has been compacted",
        );
        check(
            Error::NoSpace,
            8,
            "etcdserver: mvcc: database space exceeded",
        );
        check(
            Error::LeaseNotFound,
            5,
            "etcdserver: requested lease not found",
        );
        check(Error::NoLeader, 14, "etcdserver: no leader");
        check(Error::Corrupt, 15, "etcdserver: corrupt cluster");
        check(
            Error::InvalidAuthToken,
            16,
            "etcdserver: invalid auth token",
        );
        check(Error::TooManyRequests, 2, "etcdserver: too many requests");
    }
}
