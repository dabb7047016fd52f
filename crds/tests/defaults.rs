//! kube-apiserver refuses a CRD whose defaults break its own rules.

#![allow(clippy::unwrap_used)]

use crds::{EtcdCluster, EtcdClusterSpec};
use kube::CustomResourceExt;
use serde_json::{Value, json};

/// What a schema says against a value.
fn complaints(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    let number = value.as_f64();
    let broken = |rule: &str, test: fn(f64, f64) -> bool| {
        let limit = schema[rule].as_f64();
        limit
            .zip(number)
            .is_some_and(|(limit, number)| test(number, limit))
    };
    let listed = schema["enum"]
        .as_array()
        .is_none_or(|values| values.contains(value));
    if broken("minimum", |n, limit| n < limit) || broken("maximum", |n, limit| n > limit) || !listed
    {
        found.push(format!("{path}: {value}"));
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        complaints(
            &schema["properties"][name],
            value,
            &format!("{path}/{name}"),
            found,
        );
    }
}

/// Looks at each default in a schema.
fn defaults(schema: &Value, path: &str, found: &mut Vec<String>) {
    if let Some(default) = schema.get("default") {
        complaints(schema, default, path, found);
    }
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        defaults(schema, &format!("{path}/{name}"), found);
    }
}

#[test]
fn defaults_keep_the_rules() {
    let crd = serde_json::to_value(EtcdCluster::crd()).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let mut found = Vec::new();
    defaults(schema, "", &mut found);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn an_empty_spec_is_the_default_one() {
    let empty: EtcdClusterSpec = serde_json::from_value(json!({})).unwrap();
    assert_eq!(empty, EtcdClusterSpec::default());
    let pod: EtcdClusterSpec = serde_json::from_value(json!({"pod": {}})).unwrap();
    assert_eq!(pod, empty);
}

#[test]
fn a_default_below_its_minimum_is_noticed() {
    let schema = json!({"properties": {"a": {
        "default": {"b": 0},
        "properties": {"b": {"minimum": 5.0, "default": 6}},
    }}});
    let mut found = Vec::new();
    defaults(&schema, "", &mut found);
    assert_eq!(found, ["/a/b: 0"]);
}
