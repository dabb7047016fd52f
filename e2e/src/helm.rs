//! helm, as `k8s/go.mod` pins it, in a home of its own.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

/// Runs helm and keeps what it caches to itself. Nothing here needs a Kubernetes; with one,
/// [`Kubernetes::helm`](crate::k8s::Kubernetes::helm) is used.
pub struct Helm {
    home: tempfile::TempDir,
}

/// What helm said.
#[derive(Debug)]
pub struct Said {
    /// Whether it succeeded.
    pub success: bool,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Helm {
    /// Builds helm, which Go's cache makes cheap after the first time.
    pub fn new() -> Self {
        binary();
        Self {
            home: tempfile::tempdir().unwrap(),
        }
    }

    /// Runs it, with the root of the tree as its working directory.
    pub fn run<I: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Said {
        let home = self.home.path();
        let output = Command::new(binary())
            .args(arguments)
            .current_dir(root())
            .env_clear()
            .env("HOME", home)
            .env("HELM_CACHE_HOME", home.join("cache"))
            .env("HELM_CONFIG_HOME", home.join("config"))
            .env("HELM_DATA_HOME", home.join("data"))
            // None: what needs a cluster fails instead of reaching one.
            .env("KUBECONFIG", home.join("none"))
            .output();
        said(output.unwrap())
    }
}

impl Default for Helm {
    fn default() -> Self {
        Self::new()
    }
}

fn said(output: Output) -> Said {
    Said {
        success: output.status.success(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The root of the tree.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| crate::k8s::helm().unwrap())
}
