//! The schema as the API server will see it: the files are what the types say, defaults satisfy
//! their own bounds, and the rules let through and refuse what they should.

#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use crds::{EtcdCluster, EtcdClusterSpec, cluster::OPERATOR_FLAGS, manifests};
use kube::{
    CustomResourceExt,
    core::cel::{validate_cel, validate_cel_update},
};
use serde_json::{Value, json};

#[test]
fn the_files_are_what_the_types_say() {
    for manifest in manifests::all().unwrap() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("yaml")
            .join(manifest.file);
        let there = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            there == manifest.yaml,
            "{} is out of date: cargo run -p crds --bin crdgen",
            path.display()
        );
    }
}

/// A cluster from its spec as a user writes it, with the defaults that the types give.
fn cluster(name: &str, spec: Value) -> EtcdCluster {
    let spec: EtcdClusterSpec = serde_json::from_value(spec).unwrap();
    EtcdCluster::new(name, spec)
}

fn refusals(cluster: &EtcdCluster) -> String {
    match validate_cel(cluster) {
        Ok(()) => String::new(),
        Err(errors) => format!("{errors}"),
    }
}

#[test]
fn what_may_be_created() {
    for (name, spec) in [
        ("db", json!({})),
        ("db", json!({ "replicas": 1 })),
        (
            "a-very-long-name-that-is-just-short-enough",
            json!({ "replicas": 9 }),
        ),
        (
            "db",
            json!({ "storage": { "size": "1.5Gi", "storageClassName": "fast" } }),
        ),
        ("db", json!({ "etcd": { "quotaBackendBytes": "8Gi" } })),
        (
            "db",
            json!({ "etcd": { "extraArgs": [{ "name": "snapshot-count", "value": "1" }] } }),
        ),
        (
            "db",
            json!({ "etcd": { "heartbeatInterval": 200, "electionTimeout": 1000 } }),
        ),
        ("db", json!({ "etcd": { "electionTimeout": 500 } })),
    ] {
        assert_eq!(refusals(&cluster(name, spec.clone())), "", "{name} {spec}");
    }
}

#[test]
fn what_may_not_be_created() {
    let argument = |name: &str| json!({ "name": name, "value": "x" });
    let mut cases = vec![
        ("db", json!({ "replicas": 2 }), "replicas is odd"),
        ("db", json!({ "replicas": 4 }), "replicas is odd"),
        (
            "a-very-long-name-that-is-one-character-too-l",
            json!({}),
            "at most 42 characters",
        ),
        ("1db", json!({}), "starts with a letter"),
        ("my.db", json!({}), "starts with a letter"),
        (
            "db",
            json!({ "storage": { "size": "0" } }),
            "size is a positive size",
        ),
        (
            "db",
            json!({ "etcd": { "quotaBackendBytes": "0" } }),
            "quotaBackendBytes is a positive",
        ),
        (
            "db",
            json!({ "etcd": { "heartbeatInterval": 201 } }),
            "at least five times heartbeatInterval",
        ),
        (
            "db",
            json!({ "etcd": { "electionTimeout": 499 } }),
            "at least five times heartbeatInterval",
        ),
        (
            "db",
            json!({ "etcd": { "extraArgs": [argument("pre-vote"), argument("pre-vote")] } }),
            "names a flag twice",
        ),
        (
            "db",
            json!({ "etcd": { "extraArgs": [argument("cairn-pod-uid")] } }),
            "may not name a flag that the operator sets",
        ),
    ];
    for flag in OPERATOR_FLAGS {
        cases.push((
            "db",
            json!({ "etcd": { "extraArgs": [argument(flag)] } }),
            "may not name a flag that the operator sets",
        ));
    }
    for (name, spec, message) in cases {
        let said = refusals(&cluster(name, spec.clone()));
        assert!(said.contains(message), "{name} {spec}: {said}");
    }
}

#[test]
fn what_may_be_changed() {
    let old = json!({ "storage": { "size": "8Gi", "storageClassName": "fast" } });
    for (new, message) in [
        (
            json!({ "storage": { "size": "16Gi", "storageClassName": "fast" } }),
            None,
        ),
        (
            json!({ "replicas": 5, "storage": { "size": "8192Mi", "storageClassName": "fast" } }),
            None,
        ),
        (
            json!({ "storage": { "size": "4Gi", "storageClassName": "fast" } }),
            Some("storage can only grow"),
        ),
        (
            json!({ "storage": { "size": "8Gi", "storageClassName": "slow" } }),
            Some("storageClassName cannot be changed"),
        ),
        (
            json!({ "storage": { "size": "8Gi" } }),
            Some("storageClassName cannot be changed"),
        ),
        (
            json!({ "replicas": 2, "storage": { "size": "8Gi", "storageClassName": "fast" } }),
            Some("replicas is odd"),
        ),
    ] {
        let result = validate_cel_update(&cluster("db", new.clone()), &cluster("db", old.clone()));
        let said = result.map_or_else(|errors| errors.to_string(), |()| String::new());
        match message {
            Some(message) => assert!(said.contains(message), "{new}: {said}"),
            None => assert_eq!(said, "", "{new}"),
        }
    }
}

/// The API server refuses a CRD whose defaults break its own bounds.
#[test]
fn defaults_keep_within_bounds() {
    let crd = serde_json::to_value(EtcdCluster::crd()).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let mut seen = 0;
    bounds(schema, None, "", &mut seen);
    assert!(seen > 5, "only {seen} defaults were looked at");
}

/// Checks each default, and each field of the defaults of the objects above.
fn bounds(schema: &Value, above: Option<&Value>, path: &str, seen: &mut u32) {
    let defaults = [schema.get("default"), above];
    for default in defaults.into_iter().flatten() {
        *seen += 1;
        if let Some(number) = default.as_f64() {
            let least = schema["minimum"].as_f64().unwrap_or(f64::MIN);
            let most = schema["maximum"].as_f64().unwrap_or(f64::MAX);
            assert!(
                (least..=most).contains(&number),
                "{path}: the default {number} is out of bounds"
            );
        }
        if let Some(allowed) = schema["enum"].as_array() {
            assert!(
                allowed.contains(default),
                "{path}: the default {default} is none of {allowed:?}"
            );
        }
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let own = schema.get("default").and_then(|default| default.get(name));
        let above = own.or_else(|| above.and_then(|above| above.get(name)));
        bounds(field, above, &format!("{path}.{name}"), seen);
    }
}

#[test]
fn the_scale_subresource_and_the_columns_are_there() {
    let crd = serde_json::to_value(EtcdCluster::crd()).unwrap();
    let version = &crd["spec"]["versions"][0];
    assert_eq!(
        version["subresources"]["scale"]["specReplicasPath"],
        ".spec.replicas"
    );
    assert_eq!(
        version["subresources"]["scale"]["labelSelectorPath"],
        ".status.selector"
    );
    let columns = version["additionalPrinterColumns"].as_array().unwrap();
    let names: Vec<&str> = columns
        .iter()
        .filter_map(|column| column["name"].as_str())
        .collect();
    assert_eq!(
        names,
        [
            "Ready", "Status", "Leader", "Version", "DB Size", "Age", "Message"
        ]
    );
}
