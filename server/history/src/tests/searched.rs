//! The search without a log.

use super::honest::{Dice, Store, delete, get, key, operation, put};
use crate::{
    Compare, Comparison, KeyRange, Operation, Outcome, Request, Response, ResponseKind, Target,
    Txn, TxnOp, TxnResult, Violation, check_keys,
};

/// Operations on a few keys that overlap; of some nobody hears, done or not.
fn run(seed: u64) -> Vec<Operation> {
    let mut dice = Dice(seed);
    let mut store = Store::new();
    let mut operations = Vec::new();
    for n in 0..200 {
        let now = 1000 + n * 100;
        let name = format!("k{}", dice.below(3));
        let request = match dice.below(4) {
            0 => put(&name, &format!("v{n}")),
            1 => delete(&name),
            _ => get(&name),
        };
        let start = now - dice.below(400);
        let end = now + 1 + dice.below(400);
        operations.push(match dice.below(30) {
            0 => operation(request, start, None, Outcome::Unknown),
            1 => {
                store.do_it(&request);
                operation(request, start, None, Outcome::Unknown)
            }
            _ => {
                let outcome = Outcome::Done(store.do_it(&request));
                operation(request, start, Some(end), outcome)
            }
        });
    }
    operations
}

fn read(value: Option<(&str, i64)>) -> Outcome {
    let kvs = value.map(|(value, version)| crate::KeyValue {
        key: key("a"),
        value: key(value),
        version,
        ..crate::KeyValue::default()
    });
    done(ResponseKind::Range {
        count: i64::from(kvs.is_some()),
        kvs: kvs.into_iter().collect(),
        more: false,
    })
}

fn done(kind: ResponseKind) -> Outcome {
    Outcome::Done(Response { revision: 0, kind })
}

fn written() -> Outcome {
    done(ResponseKind::Put { prev: None })
}

fn is_found(operations: &[Operation]) -> bool {
    matches!(
        check_keys(operations),
        Err(Violation::NotLinearizable { .. })
    )
}

#[test]
fn honest_histories_have_an_order() {
    for seed in 0..50 {
        assert_eq!(check_keys(&run(seed)).unwrap(), 200, "seed {seed}");
    }
}

#[test]
fn changed_answers_are_found() {
    let mut found = 0;
    for seed in 0..50 {
        let mut operations = run(seed);
        let reads = operations
            .iter_mut()
            .filter_map(|one| match &mut one.outcome {
                Outcome::Done(Response {
                    kind: ResponseKind::Range { kvs, .. },
                    ..
                }) => kvs.first_mut(),
                _ => None,
            });
        let read = reads.last().unwrap();
        read.value = key("v0");
        found += usize::from(is_found(&operations));
    }
    assert_eq!(found, 50);
}

#[test]
fn a_stale_read_has_no_order() {
    let mut operations = vec![
        operation(put("a", "1"), 0, Some(10), written()),
        operation(put("a", "2"), 20, Some(30), written()),
        operation(get("a"), 40, Some(50), read(Some(("1", 1)))),
    ];
    assert!(is_found(&operations));
    // While the second write is under way both may be read, though not first the new one.
    operations[2].start = 25;
    check_keys(&operations).unwrap();
    operations.push(operation(get("a"), 22, Some(23), read(Some(("2", 2)))));
    assert!(is_found(&operations));
}

#[test]
fn a_write_without_an_answer_is_done_at_most_once_and_after_it_began() {
    let unknown = operation(put("a", "2"), 20, None, Outcome::Unknown);
    let after = |outcome| {
        vec![
            operation(put("a", "1"), 0, Some(10), written()),
            unknown.clone(),
            operation(get("a"), 40, Some(50), outcome),
        ]
    };
    check_keys(&after(read(Some(("1", 1))))).unwrap();
    check_keys(&after(read(Some(("2", 2))))).unwrap();
    assert!(is_found(&after(read(Some(("2", 3))))));
    let mut early = after(read(Some(("2", 2))));
    early[1].start = 60;
    assert!(is_found(&early));
}

#[test]
fn transactions_compare_what_is_there() {
    let create = |value: &str| {
        Request::Txn(Txn {
            compares: vec![Compare {
                keys: KeyRange::one(key("a")),
                comparison: Comparison::Equal,
                target: Target::CreateRevision(0),
            }],
            then: vec![TxnOp::Put {
                key: key("a"),
                value: key(value),
                lease: 0,
                prev_kv: false,
            }],
            otherwise: Vec::new(),
        })
    };
    let succeeded = |succeeded| {
        let put = ResponseKind::Put { prev: None };
        done(ResponseKind::Txn(TxnResult {
            succeeded,
            responses: succeeded.then_some(put).into_iter().collect(),
        }))
    };
    let mut operations = vec![
        operation(create("1"), 0, Some(100), succeeded(false)),
        operation(create("2"), 0, Some(100), succeeded(true)),
    ];
    check_keys(&operations).unwrap();
    operations[0].outcome = succeeded(true);
    assert!(is_found(&operations));
}

#[test]
fn what_it_cannot_judge_is_said() {
    let all = Request::Delete {
        keys: KeyRange::all(),
        prev_kv: false,
    };
    let operations = [operation(all, 0, None, Outcome::Unknown)];
    let found = check_keys(&operations).unwrap_err();
    assert!(matches!(found, Violation::Unsuited { .. }), "{found:?}");
}
