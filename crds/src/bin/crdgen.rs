//! Writes the CRD files: into `crds/yaml`, and the copy that the operator's chart holds.

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
    Ok(())
}
