//! The program as a person meets it: what it says to wrong input, and what `probe` does.

#![allow(clippy::unwrap_used, missing_docs)]

use std::process::{Command, Output};

fn operator(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cairn-operator"))
        .args(arguments)
        .env_clear()
        .env("KUBECONFIG", "/nonexistent/kubeconfig")
        .output()
        .unwrap()
}

#[test]
fn it_says_its_version() {
    let output = operator(&["--version"]);
    assert!(output.status.success());
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        said.trim(),
        concat!("cairn-operator ", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn wrong_input_is_told_with_what_to_do() {
    let cases: &[(&[&str], &str)] = &[
        (&["--frobnicate"], "unexpected argument '--frobnicate'"),
        (&["run", "--concurrency=0"], "0 is not in 1..=256"),
        (&["--metrics-address=nowhere"], "invalid socket address"),
        (&["--log-format=xml"], "[possible values: json, console]"),
        (
            &["--metrics-address=127.0.0.1:0", "--log-level=[loud"],
            "use error, warn, info",
        ),
        (
            &["--metrics-address=127.0.0.1:0"],
            "set KUBECONFIG to a kubeconfig file",
        ),
        (&["probe"], "--endpoint"),
        (
            &["probe", "--endpoint=db-client:2379"],
            "it has to be a URL like http://",
        ),
        (
            &["probe", "--endpoint=http://127.0.0.1:1", "--timeout=soon"],
            "a time such as 500ms",
        ),
        (
            &["probe", "--endpoint=http://127.0.0.1:1", "--timeout=300ms"],
            "cannot connect",
        ),
    ];
    for (arguments, message) in cases {
        let output = operator(arguments);
        assert!(!output.status.success(), "{arguments:?} succeeded");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(message), "{arguments:?}: {said}");
    }
}
