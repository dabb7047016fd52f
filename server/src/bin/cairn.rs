//! The server.

use std::process::ExitCode;

fn main() -> ExitCode {
    cairn::main()
}
