//! Writes what is made from the kinds: the CRD files, into `crds/yaml` and the operator's chart, and
//! the schema of the cluster chart's values.

use std::{error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for folder in ["crds/yaml", "charts/cairn-operator/files/crds"] {
        let folder = root.join(folder);
        fs::create_dir_all(&folder)?;
        for manifest in crds::manifests::all()? {
            fs::write(folder.join(manifest.file), manifest.yaml)?;
        }
    }
    let schema = root.join("charts/cairn-cluster/values.schema.json");
    fs::write(schema, crds::values::schema()?)?;
    Ok(())
}
