//! The same server with its failpoints switched on, for tests. Never ship it: who reaches the port
//! that `GOFAIL_HTTP` names can end it.
//!
//! As in a build of etcd with gofail: `GOFAIL_FAILPOINTS` holds `name=terms;name=terms` to begin
//! with, `GOFAIL_HTTP` the address where points are told what to do.

mod http;

use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, setrlimit};

/// gofail's exit code for what it does not understand.
const FAILED: u8 = 1;

fn main() -> ExitCode {
    failpoint::enable();
    // A point that ends the process is no bug whose memory somebody wants to look at.
    let no_core = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    // Without it a core file may be left, nothing more.
    let _ = setrlimit(Resource::Core, no_core);
    if let Err(problem) = listen() {
        eprintln!("cairn-failpoints cannot start: {problem}");
        return ExitCode::from(FAILED);
    }
    cairn::main()
}

/// Does what the environment says.
fn listen() -> Result<(), String> {
    if let Ok(text) = std::env::var("GOFAIL_FAILPOINTS") {
        let pairs = failpoint::split(&text);
        let pairs = pairs.map_err(|part| format!("GOFAIL_FAILPOINTS: bad failpoint {part:?}"))?;
        for (name, terms) in pairs {
            let told = failpoint::tell(name, terms);
            told.map_err(|error| format!("GOFAIL_FAILPOINTS: {name}={terms}: {error}"))?;
        }
    }
    match std::env::var("GOFAIL_HTTP") {
        Ok(address) if !address.is_empty() => http::serve(&address)
            .map_err(|error| format!("GOFAIL_HTTP: could not listen on {address}: {error}")),
        _ => Ok(()),
    }
}
