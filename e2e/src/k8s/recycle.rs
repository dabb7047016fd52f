//! Empties volumes whose claim is gone and offers them again, as a provisioner would.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::Stdio,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::k8s::{
    layout::Layout,
    process::{command, run},
};

/// Pause before watching again; kube-apiserver ends each watch after a while.
const PAUSE: Duration = Duration::from_secs(1);
/// What is printed of each volume: its name, phase, the claim that has it, and its path.
const COLUMNS: &str = concat!(
    r#"jsonpath={.metadata.name}{" "}{.status.phase}{" "}{.spec.claimRef.uid}{" "}"#,
    r#"{.spec.local.path}{"\n"}"#
);
/// Makes a volume available again.
const PATCH: &str = r#"[{"op": "remove", "path": "/spec/claimRef"}]"#;

/// Works for the instance in `root` until it is ended.
pub fn recycle(root: &Path) -> Result<()> {
    let layout = Layout::new(root)?;
    let mut done = BTreeMap::new();
    loop {
        if let Err(error) = watch(&layout, &mut done) {
            eprintln!("{error:#}");
        }
        thread::sleep(PAUSE);
    }
}

/// `done` holds the last claim of each volume. An event that is seen late or twice must not empty
/// a volume that has its next claim already.
fn watch(layout: &Layout, done: &mut BTreeMap<String, String>) -> Result<()> {
    let program = layout.program("kubectl").display().to_string();
    let kubeconfig = format!("--kubeconfig={}", layout.kubeconfig().display());
    let mut child = command(&program)
        .args([&kubeconfig, "get", "pv", "--watch", "--output", COLUMNS])
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().context("kubectl has an output")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        let fields: Vec<&str> = line.splitn(4, ' ').collect();
        let [name, "Released", claim, path] = fields[..] else {
            continue;
        };
        // Only what the launcher made: people may add volumes of their own.
        let ours = Path::new(path).starts_with(layout.root());
        if !ours || done.get(name).is_some_and(|last| last == claim) {
            continue;
        }
        empty(Path::new(path)).with_context(|| format!("could not empty {path}"))?;
        run(
            &program,
            &[
                &kubeconfig,
                "patch",
                "pv",
                name,
                "--type=json",
                "--patch",
                PATCH,
            ],
        )?;
        done.insert(name.to_owned(), claim.to_owned());
        println!("{name} is empty and available again");
    }
    child.wait()?;
    Ok(())
}

fn empty(path: &Path) -> Result<()> {
    fs::remove_dir_all(path)?;
    Ok(fs::create_dir(path)?)
}
