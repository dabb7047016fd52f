//! The CRDs as files: `crds/yaml` for who applies them by hand, and the operator chart's copy.

use kube::CustomResourceExt;

use crate::EtcdCluster;

/// Annotation with the schema's generation, an integer that grows with each change. The operator
/// does not start under a CRD with a lower one: fields that it relies on would be dropped.
pub const SCHEMA_ANNOTATION: &str = "cairn.dev/schema";
/// The generation of the schema in this crate.
pub const SCHEMA: u32 = 1;

/// One CRD file: its name and its content.
#[derive(Debug)]
pub struct Manifest {
    /// File name.
    pub file: &'static str,
    /// YAML.
    pub yaml: String,
}

/// Why a CRD could not be written as YAML.
#[derive(Debug)]
pub struct Unwritable(pub(crate) String);

impl std::fmt::Display for Unwritable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the CRD cannot be written as YAML: {}", self.0)
    }
}

impl std::error::Error for Unwritable {}

/// All CRDs of this crate.
pub fn all() -> Result<Vec<Manifest>, Unwritable> {
    let mut crd = EtcdCluster::crd();
    let annotations = crd.metadata.annotations.get_or_insert_default();
    annotations.insert(SCHEMA_ANNOTATION.into(), SCHEMA.to_string());
    // Through JSON, so that the order of keys is the alphabet's and does not depend on a library.
    let mut value = serde_json::to_value(&crd).map_err(|error| Unwritable(error.to_string()))?;
    let status = value
        .pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/status")
        .ok_or_else(|| Unwritable("it has no status".into()))?;
    // Who waits for a cluster, as `helm install --wait` does, would take one that no operator has
    // looked at yet for done.
    status["default"] = serde_json::json!({ "observedGeneration": -1 });
    let body = serde_saphyr::to_string(&value).map_err(|error| Unwritable(error.to_string()))?;
    let yaml = format!("# Written by `cargo run -p crds --bin crdgen`; a test compares.\n{body}");
    Ok(vec![Manifest {
        file: "etcdclusters.yaml",
        yaml,
    }])
}
