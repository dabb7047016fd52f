//! Our .proto files against the descriptors in etcd's own generated code: every message, field
//! number, type, enum value and RPC. `prototool` beside this folder holds the Go side.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, process::Command};

use prost_reflect::{Cardinality, DescriptorPool, Kind};

/// What etcd has and we do not, with the reason.
const NOT_OURS: &[(&str, &str)] = &[
    ("raftpb.ConfChangeV2", NO_JOINT_CHANGES),
    ("raftpb.ConfChangeSingle", NO_JOINT_CHANGES),
    ("raftpb.ConfChangeTransition", NO_JOINT_CHANGES),
];
const NO_JOINT_CHANGES: &str =
    "a joint change kills real etcd members: none is ever written or accepted";

fn etcds() -> BTreeSet<String> {
    let output = Command::new("go")
        .args(["run", "-trimpath", "./prototool"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn ours() -> BTreeSet<String> {
    let pool = DescriptorPool::decode(proto::DESCRIPTORS).unwrap();
    let mut lines = BTreeSet::new();
    for message in pool
        .all_messages()
        .filter(|message| !message.is_map_entry())
    {
        lines.insert(format!("message {}", message.full_name()));
        for field in message.fields() {
            let cardinality = match field.cardinality() {
                Cardinality::Optional => "optional",
                Cardinality::Required => "required",
                Cardinality::Repeated => "repeated",
            };
            let kind = match field.kind() {
                Kind::Message(message) => message.full_name().to_owned(),
                Kind::Enum(values) => values.full_name().to_owned(),
                scalar => format!("{scalar:?}").to_lowercase(),
            };
            let (name, number) = (field.full_name(), field.number());
            lines.insert(format!("field {name} {number} {cardinality} {kind}"));
        }
    }
    for values in pool.all_enums() {
        for value in values.values() {
            let (name, number) = (value.name(), value.number());
            lines.insert(format!("value {} {name} {number}", values.full_name()));
        }
    }
    for method in pool
        .services()
        .flat_map(|service| service.methods().collect::<Vec<_>>())
    {
        lines.insert(format!(
            "rpc {} {} {} {} {}",
            method.full_name(),
            method.input().full_name(),
            method.is_client_streaming(),
            method.output().full_name(),
            method.is_server_streaming()
        ));
    }
    lines.retain(|line| !line.contains("google.protobuf."));
    lines
}

#[test]
fn our_protos_are_etcds() {
    let (etcds, ours) = (etcds(), ours());
    assert!(etcds.len() > 400, "etcd's side names only {}", etcds.len());
    let excused = |line: &&String| !NOT_OURS.iter().any(|(what, _)| line.contains(what));
    let missing: Vec<_> = etcds.difference(&ours).filter(excused).collect();
    let invented: Vec<_> = ours.difference(&etcds).collect();
    assert!(missing.is_empty(), "etcd has, and we do not: {missing:#?}");
    assert!(
        invented.is_empty(),
        "we have, and etcd does not: {invented:#?}"
    );
    for (what, why) in NOT_OURS {
        let used = etcds.iter().any(|line| line.contains(what));
        assert!(used, "{what} is excused ({why}) and etcd does not have it");
    }
}
