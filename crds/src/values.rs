//! The values schema of the chart `cairn-cluster`, made from the CRD: the chart takes every field
//! of the spec, and no field can be forgotten or be typed otherwise there.

use serde_json::{Map, Value, json};

use crate::{EtcdCluster, manifests::Unwritable};

/// The keywords that mean in JSON Schema what they mean in a CRD; what else a CRD has, the API
/// server checks.
const KEPT: &[&str] = &[
    "type",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "required",
    "default",
];
/// Sizes and amounts as Kubernetes writes them.
const QUANTITY: &str = "^[0-9]+([.][0-9]+)?([numkMGTPE]|[KMGTPE]i|[eE][0-9]+)?$";

/// The file's content.
pub fn schema() -> Result<String, Unwritable> {
    let mut spec = closed(&spec_of_the_crd()?);
    // A rule of the CRD that JSON Schema can say too, and the one that is broken most.
    let odd: Vec<i32> = (1..=9).step_by(2).collect();
    spec["properties"]["replicas"]["enum"] = json!(odd);
    let mut text = serde_json::to_string_pretty(&whole(&spec))
        .map_err(|error| Unwritable(error.to_string()))?;
    text.push('\n');
    Ok(text)
}

fn spec_of_the_crd() -> Result<Value, Unwritable> {
    use kube::CustomResourceExt;
    let crd = serde_json::to_value(EtcdCluster::crd());
    let mut crd = crd.map_err(|error| Unwritable(error.to_string()))?;
    let spec = crd
        .pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/spec")
        .ok_or_else(|| Unwritable("it has no spec".into()))?;
    Ok(spec.take())
}

fn whole(spec: &Value) -> Value {
    let strings = json!({ "type": "object", "additionalProperties": { "type": "string" } });
    let tag = "^([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$";
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$comment": "Written by `cargo run -p crds --bin crdgen`; a test compares.",
        "title": "Values of cairn-cluster",
        "type": "object",
        "additionalProperties": false,
        "required": ["spec", "test"],
        "properties": {
            "global": {
                "type": "object",
                "description": "Of a chart that has this one inside; not read.",
            },
            "name": {
                "type": "string",
                "description": "Name of the EtcdCluster; the release's when empty.",
                "maxLength": crate::cluster::MAX_NAME_BYTES,
                "pattern": "^([a-z]([-a-z0-9]*[a-z0-9])?)?$",
            },
            "labels": strings,
            "annotations": strings,
            "spec": spec,
            "test": {
                "type": "object",
                "additionalProperties": false,
                "required": ["image", "timeoutSeconds"],
                "properties": {
                    "enabled": { "type": "boolean" },
                    "image": {
                        "type": "object",
                        "additionalProperties": false,
                        "required": ["repository"],
                        "properties": {
                            "registry": {
                                "type": "string",
                                "pattern": "^([A-Za-z0-9][A-Za-z0-9._-]*(:[0-9]+)?(/[A-Za-z0-9._/-]*)?)?$",
                            },
                            "repository": {
                                "type": "string",
                                "maxLength": 255,
                                "pattern": "^[a-z0-9][a-z0-9./_-]*$",
                            },
                            "tag": { "type": "string", "pattern": tag },
                            "digest": {
                                "type": "string",
                                "pattern": "^(sha256:[0-9a-f]{64})?$",
                            },
                            "pullPolicy": { "enum": ["Always", "IfNotPresent", "Never"] },
                        },
                    },
                    "imagePullSecrets": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "additionalProperties": false,
                            "required": ["name"],
                            "properties": { "name": { "type": "string", "minLength": 1 } },
                        },
                    },
                    "timeoutSeconds": { "type": "integer", "minimum": 10, "maximum": 3600 },
                },
            },
        },
    })
}

/// A CRD's schema as JSON Schema, in which an object has no other fields than those named: what
/// the API server would drop without a word is refused.
fn closed(schema: &Value) -> Value {
    let Value::Object(fields) = schema else {
        return schema.clone();
    };
    let mut out = Map::new();
    if fields.contains_key("x-kubernetes-int-or-string") {
        let forms =
            json!([{ "type": "string", "pattern": QUANTITY }, { "type": "number", "minimum": 0 }]);
        out.insert("anyOf".into(), forms);
    }
    for (name, value) in fields {
        match name.as_str() {
            // The first paragraph; Kubernetes' own have pages.
            "description" => {
                let text = value.as_str().unwrap_or_default();
                let first = text.split("\n\n").next().unwrap_or_default();
                out.insert(name.clone(), first.into());
            }
            "properties" => {
                let properties = value.as_object().into_iter().flatten();
                let properties = properties.map(|(name, schema)| (name.clone(), closed(schema)));
                out.insert(name.clone(), Value::Object(properties.collect()));
            }
            "items" | "additionalProperties" => {
                out.insert(name.clone(), closed(value));
            }
            kept if KEPT.contains(&kept) => {
                out.insert(name.clone(), value.clone());
            }
            _ => {}
        }
    }
    if out.contains_key("properties") && !out.contains_key("additionalProperties") {
        out.insert("additionalProperties".into(), false.into());
    }
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn the_chart_has_the_schema_of_this_crate() {
        let file = "../charts/cairn-cluster/values.schema.json";
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let there = fs::read_to_string(file).unwrap();
        let same = there == schema().unwrap();
        assert!(same, "run `cargo run -p crds --bin crdgen`");
    }

    #[test]
    fn objects_are_closed_and_rules_of_the_server_left_out() {
        let closed = closed(&json!({
            "type": "object",
            "description": "First.\n\nSecond.",
            "nullable": true,
            "x-kubernetes-validations": [],
            "properties": {
                "size": { "x-kubernetes-int-or-string": true, "format": "int64" },
                "labels": { "type": "object", "additionalProperties": { "type": "string" } },
            },
        }));
        let size = &closed["properties"]["size"]["anyOf"];
        assert_eq!(size[1]["type"], "number");
        assert_eq!(closed["additionalProperties"], false);
        assert_eq!(
            closed["properties"]["labels"]["additionalProperties"]["type"],
            "string"
        );
        assert_eq!(closed["description"], "First.");
        assert!(closed.get("nullable").is_none());
        assert!(closed.get("x-kubernetes-validations").is_none());
    }
}
