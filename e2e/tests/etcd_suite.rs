//! A part of etcd's own client suite on Cairn, on clusters of one member and of three with certificates.
//! `make etcd-suite` runs all of it, in all shapes.

#![allow(clippy::unwrap_used)]

use e2e::{
    Kind,
    suite::{EXCUSED, Ended, Suite},
};

/// What takes longest, and is left to the whole.
const LONG: &[&str] = &[
    "TestAuthority",
    "TestMemberAdd",
    "TestMemberRemove",
    "TestVerifyHashKVAfterCompact",
];

#[test]
fn etcds_own_tests_pass() {
    let suite = Suite::new(Kind::Cairn, true);
    let excused = |name: &str| EXCUSED.iter().any(|(test, _)| *test == name);
    let mut tests = suite.tests();
    let all = tests.len();
    assert!(
        LONG.iter()
            .all(|long| tests.iter().any(|test| test == long))
    );
    tests.retain(|test| !LONG.contains(&test.as_str()) && !excused(test));
    println!("{} of {all} tests", tests.len());
    let outcomes = suite.run(tests, |outcome| println!("{}", outcome.line()));
    let failed = outcomes
        .iter()
        .filter(|outcome| outcome.ended == Ended::Failed);
    let failed: Vec<String> = failed
        .map(|outcome| format!("{}\n{}", outcome.line(), outcome.words))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
