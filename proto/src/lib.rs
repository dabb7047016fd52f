//! etcd's messages: the client API, raft, the write-ahead log, membership, and what a raft entry
//! holds. The `.proto` files are ours; packages, names, types and field numbers are etcd's.
//!
//! Owns: the wire form of everything that crosses a process boundary or lies in the log.
//!
//! Must never know: what any message means. It has no logic, and no tonic unless the feature
//! `grpc` asks for clients and servers.
//!
//! Start reading in `proto/etcdserverpb/rpc.proto`, then `raft_internal.proto`. `framed.rs` has the
//! two answers that servers send without taking them apart, `text.rs` what logs say of requests.

pub mod framed;
pub mod text;

// Generated items carry no text of ours; the .proto files hold what there is to say.
macro_rules! package {
    ($name:ident, $doc:literal) => {
        #[doc = $doc]
        #[allow(missing_docs, clippy::all)]
        pub mod $name {
            include!(concat!(env!("OUT_DIR"), "/", stringify!($name), ".rs"));
        }
    };
}

package!(authpb, "Users, roles and permissions.");
package!(
    etcdserverpb,
    "The client API and the content of raft entries."
);
package!(leasepb, "Leases as the store keeps them.");
package!(membershippb, "Membership as it goes through the log.");
package!(mvccpb, "Keys with their revisions, and events.");
package!(raftpb, "Raft messages, entries and states.");
package!(snappb, "The frame of a `.snap` file.");
package!(
    v3electionpb,
    "Elections that the server runs for the client."
);
package!(v3lockpb, "Locks that the server takes for the client.");
package!(walpb, "Records of the write-ahead log.");

/// The compiled `.proto` files: an encoded `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use prost::Message;

    use super::*;

    fn check<M: Message + Default + PartialEq + std::fmt::Debug>(message: &M, expected: &[u8]) {
        assert_eq!(message.encode_to_vec(), expected);
        assert_eq!(&M::decode(expected).unwrap(), message);
    }

    #[test]
    fn a_key_value_has_etcds_bytes() {
        let kv = mvccpb::KeyValue {
            key: "foo".into(),
            create_revision: 2,
            mod_revision: 3,
            version: 2,
            value: "bar".into(),
            lease: 0,
        };
        check(&kv, b"\x0a\x03foo\x10\x02\x18\x03\x20\x02\x2a\x03bar");
    }

    #[test]
    fn a_put_entry_has_etcds_field_numbers() {
        let entry = etcdserverpb::InternalRaftRequest {
            header: Some(etcdserverpb::RequestHeader {
                id: 7,
                ..Default::default()
            }),
            put: Some(etcdserverpb::PutRequest {
                key: "k".into(),
                value: "v".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        // Field 4 is the put, field 100 the header.
        check(&entry, b"\x22\x06\x0a\x01k\x12\x01v\xa2\x06\x02\x08\x07");
    }

    #[test]
    fn raft_messages_can_write_explicit_zeros() {
        let state = raftpb::HardState {
            term: Some(1),
            vote: Some(0),
            commit: Some(0),
        };
        check(&state, b"\x08\x01\x10\x00\x18\x00");
    }

    #[test]
    fn the_link_heartbeat_is_two_bytes() {
        let heartbeat = raftpb::Message {
            r#type: Some(raftpb::MessageType::MsgHeartbeat as i32),
            ..Default::default()
        };
        check(&heartbeat, b"\x08\x08");
    }

    #[test]
    fn a_learner_is_added_under_etcds_number() {
        assert_eq!(raftpb::ConfChangeType::ConfChangeAddLearnerNode as i32, 3);
        assert_eq!(raftpb::ConfChangeType::ConfChangeUpdateNode as i32, 2);
    }

    #[test]
    fn garbage_is_an_error_and_not_a_panic() {
        for bytes in [&b"\xff\xff\xff"[..], b"\x0a\x7f", b"\x08"] {
            assert!(etcdserverpb::InternalRaftRequest::decode(bytes).is_err());
            assert!(raftpb::Message::decode(bytes).is_err());
        }
    }
}
