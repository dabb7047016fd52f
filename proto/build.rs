//! Compiles the .proto files with protox, so that no machine needs protoc.

use std::{env, error::Error, fs, path::Path};

use prost::Message;

/// The roots; what they import is compiled with them.
const FILES: &[&str] = &[
    "etcdserverpb/etcdserver.proto",
    "etcdserverpb/raft_internal.proto",
    "leasepb/lease.proto",
    "snappb/snap.proto",
    "v3electionpb/v3election.proto",
    "v3lockpb/v3lock.proto",
    "walpb/record.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let compiled = Path::new(&env::var("OUT_DIR")?).join("descriptors.bin");
    fs::write(compiled, descriptors.encode_to_vec())?;
    let mut messages = prost_build::Config::new();
    // Bytes fields share the receive buffer instead of copying out of it.
    messages.bytes(["."]);
    if env::var_os("CARGO_FEATURE_GRPC").is_some() {
        tonic_prost_build::configure().compile_fds_with_config(descriptors, messages)?;
    } else {
        messages.compile_fds(descriptors)?;
    }
    Ok(())
}
