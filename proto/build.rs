//! Compiles the .proto files with protox, so that no machine needs protoc.

use std::{env, error::Error, fs, path::Path};

use prost::Message;
use prost_build::{Service, ServiceGenerator};

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

/// What servers answer with instead: the same bytes, partly encoded already.
const FRAMED: &[(&str, &str)] = &[
    (
        ".etcdserverpb.RangeResponse",
        "crate::framed::RangeResponse",
    ),
    (
        ".etcdserverpb.WatchResponse",
        "crate::framed::WatchResponse",
    ),
];

/// Generates clients and servers; these differ in the types of [`FRAMED`].
struct Services {
    clients: Box<dyn ServiceGenerator>,
    servers: Box<dyn ServiceGenerator>,
}

impl ServiceGenerator for Services {
    fn generate(&mut self, mut service: Service, code: &mut String) {
        self.clients.generate(service.clone(), code);
        for method in &mut service.methods {
            let output = &method.output_proto_type;
            if let Some((_, framed)) = FRAMED.iter().find(|(plain, _)| plain == output) {
                method.output_type = (*framed).to_owned();
            }
        }
        self.servers.generate(service, code);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let compiled = Path::new(&env::var("OUT_DIR")?).join("descriptors.bin");
    fs::write(compiled, descriptors.encode_to_vec())?;
    let mut messages = prost_build::Config::new();
    // Bytes fields share the receive buffer instead of copying out of it.
    messages.bytes(["."]);
    if env::var_os("CARGO_FEATURE_GRPC").is_some() {
        let clients = tonic_prost_build::configure().build_server(false);
        let servers = tonic_prost_build::configure().build_client(false);
        messages.service_generator(Box::new(Services {
            clients: clients.service_generator(),
            servers: servers.service_generator(),
        }));
    }
    messages.compile_fds(descriptors)?;
    Ok(())
}
