//! What no etcd may do, planted one by one.

use super::honest::{Store, delete, get, key, operation, put, run};
use crate::{
    Event, EventKind, History, KeyRange, KeyValue, Operation, Outcome, Refusal, Request, Response,
    ResponseKind, Violation, WatchRecord, WatchReport, WatchResponse, check,
};

/// Clients one after the other: operation n from time 100 n to 100 n + 50.
fn steps(requests: &[Request]) -> History {
    let mut store = Store::new();
    let mut history = History::default();
    for (request, n) in requests.iter().zip(1..) {
        let response = store.do_it(request);
        history.operations.push(operation(
            request.clone(),
            n * 100,
            Some(n * 100 + 50),
            Outcome::Done(response),
        ));
    }
    history.log = store.log;
    check(&history).unwrap();
    history
}

fn response(history: &mut History, at: usize) -> &mut Response {
    match &mut history.operations[at].outcome {
        Outcome::Done(response) => response,
        other => panic!("{other:?}"),
    }
}

fn three_puts() -> History {
    steps(&[put("a", "1"), put("b", "2"), put("a", "3"), get("a")])
}

macro_rules! assert_found {
    ($history:expr, $pattern:pat) => {
        let found = check(&$history).unwrap_err();
        assert!(matches!(found, $pattern), "{found:?}");
    };
}

#[test]
fn a_lost_write() {
    let mut history = three_puts();
    history.operations.pop();
    history.log.pop();
    assert_found!(history, Violation::LostWrite { .. });
    // Another write stands where it should.
    let mut history = three_puts();
    history.operations.pop();
    history.log[2].kv.value = key("other");
    assert_found!(history, Violation::LostWrite { .. });
}

#[test]
fn a_stale_read() {
    let mut history = three_puts();
    let old = history.log[0].kv.clone();
    *response(&mut history, 3) = Response {
        revision: 3,
        kind: ResponseKind::Range {
            kvs: vec![old],
            more: false,
            count: 1,
        },
    };
    assert_found!(history, Violation::StaleRead { known: 4, .. });
    // The right revision with an older value.
    let mut history = three_puts();
    let old = history.log[0].kv.clone();
    let ResponseKind::Range { kvs, .. } = &mut response(&mut history, 3).kind else {
        panic!("a range")
    };
    kvs[0] = old;
    assert_found!(history, Violation::WrongAnswer { .. });
}

#[test]
fn a_reordered_write() {
    let mut history = steps(&[put("a", "1"), put("b", "2")]);
    // The second write was asked for and acknowledged before the first was asked for.
    (history.operations[1].start, history.operations[1].end) = (10, Some(20));
    assert_found!(history, Violation::ReorderedWrite { known: 3, .. });
}

#[test]
fn a_write_that_is_seen_before_it_is_asked_for() {
    let mut history = three_puts();
    history.operations[3].start = 210;
    history.operations[3].end = Some(220);
    assert_found!(history, Violation::VisibleEarly { .. });
    // Nobody was told that it is done, and it is seen before it is asked for.
    history.operations[2].outcome = Outcome::Unknown;
    history.operations[2].end = None;
    assert_found!(history, Violation::InventedWrite { revision: 4, .. });
}

#[test]
fn a_refused_write_that_is_there() {
    let mut history = three_puts();
    history.operations[1].outcome = Outcome::Refused(Refusal::Other);
    assert_found!(history, Violation::RefusedWriteApplied { revision: 3, .. });
}

#[test]
fn a_write_that_nobody_asked_for() {
    let mut history = three_puts();
    history.operations.remove(1);
    assert_found!(history, Violation::InventedWrite { revision: 3, .. });
}

#[test]
fn a_write_without_an_answer_that_is_done_twice() {
    let mut history = steps(&[put("a", "1"), put("a", "1")]);
    history.operations.pop();
    history.operations[0].outcome = Outcome::Unknown;
    assert_found!(history, Violation::InventedWrite { revision: 3, .. });
    // A second client may have done it.
    history
        .operations
        .push(operation(put("a", "1"), 200, None, Outcome::Unknown));
    assert_eq!(check(&history).unwrap().unknown_done, 2);
}

/// The wide operation is found first for what only the narrow one leaves to it.
#[test]
fn writes_without_an_answer_change_places() {
    let wide = Request::Delete {
        keys: KeyRange::all(),
        prev_kv: false,
    };
    let mut history = steps(&[
        put("a", "1"),
        delete("a"),
        put("b", "1"),
        put("c", "1"),
        wide,
    ]);
    for at in [1, 4] {
        history.operations[at].outcome = Outcome::Unknown;
        history.operations[at].start = 1;
    }
    history.operations.swap(1, 4);
    assert_eq!(check(&history).unwrap().unknown_done, 2);
}

#[test]
fn a_revision_given_twice() {
    let mut history = three_puts();
    let copy = history.operations[1].clone();
    history.operations.push(Operation { start: 201, ..copy });
    assert_found!(history, Violation::SharedRevision { revision: 3, .. });
}

#[test]
fn an_answer_from_a_revision_that_never_was() {
    let mut history = three_puts();
    response(&mut history, 3).revision = 9;
    assert_found!(
        history,
        Violation::NeverWas {
            revision: 9,
            last: 4,
            ..
        }
    );
}

#[test]
fn a_log_that_contradicts_itself() {
    let mut history = three_puts();
    history.log.remove(1);
    assert_found!(history, Violation::BrokenLog { revision: 4, .. });
    let mut history = three_puts();
    history.log[2].kv.version = 5;
    assert_found!(history, Violation::BrokenLog { revision: 4, .. });
}

#[test]
fn a_member_that_goes_back_in_time() {
    let serializable = Request::Range {
        keys: KeyRange::one(key("a")),
        limit: 0,
        revision: 0,
        serializable: true,
        count_only: false,
    };
    let mut history = steps(&[put("a", "1"), put("a", "2"), serializable]);
    let old = history.log[0].kv.clone();
    *response(&mut history, 2) = Response {
        revision: 2,
        kind: ResponseKind::Range {
            kvs: vec![old],
            more: false,
            count: 1,
        },
    };
    // Another member may lag.
    history.operations[2].member = 2;
    check(&history).unwrap();
    history.operations[2].member = 1;
    assert_found!(
        history,
        Violation::BackInTime {
            member: 1,
            known: 3,
            ..
        }
    );
}

#[test]
fn refusals_without_a_reason() {
    let refused = |revision, refusal| {
        let request = Request::Range {
            keys: KeyRange::all(),
            limit: 0,
            revision,
            serializable: false,
            count_only: false,
        };
        operation(request, 1000, Some(1010), Outcome::Refused(refusal))
    };
    let mut history = three_puts();
    history.operations.push(refused(2, Refusal::Compacted));
    assert_found!(history, Violation::FalseRefusal { .. });
    let compact = Request::Compact { revision: 3 };
    history
        .operations
        .push(operation(compact, 900, None, Outcome::Unknown));
    check(&history).unwrap();
    let mut history = three_puts();
    history.operations.push(refused(4, Refusal::FutureRevision));
    assert_found!(history, Violation::FalseRefusal { .. });
    history.operations.pop();
    history.operations.push(refused(5, Refusal::FutureRevision));
    check(&history).unwrap();
}

#[test]
fn a_read_of_what_is_compacted() {
    let old = Request::Range {
        keys: KeyRange::all(),
        limit: 0,
        revision: 2,
        serializable: false,
        count_only: false,
    };
    let mut history = steps(&[put("a", "1"), put("a", "2"), old]);
    let compact = Request::Compact { revision: 3 };
    let done = Outcome::Done(Response {
        revision: 3,
        kind: ResponseKind::Nothing,
    });
    history
        .operations
        .push(operation(compact, 260, Some(310), done));
    check(&history).unwrap();
    history.operations[3].end = Some(299);
    assert_found!(history, Violation::ReadOfCompacted { compacted: 3, .. });
}

#[test]
fn leases_end_in_time() {
    let mut history = steps(&[
        Request::LeaseGrant { id: 5, ttl: 1000 },
        Request::Put {
            key: key("a"),
            value: key("1"),
            lease: 5,
            prev_kv: false,
        },
        Request::LeaseRevoke { id: 5 },
        get("a"),
    ]);
    history.operations.remove(2);
    assert_found!(history, Violation::EarlyExpiry { lease: 5, .. });
    (history.operations[2].start, history.operations[2].end) = (1200, Some(1300));
    assert_eq!(check(&history).unwrap().expired, 1);
    history.operations.remove(0);
    assert_found!(history, Violation::InventedWrite { revision: 3, .. });
}

#[test]
fn a_lease_without_keys_takes_none_with_it() {
    let grant = Request::LeaseGrant { id: 5, ttl: 1 };
    let revoke = Request::LeaseRevoke { id: 5 };
    let mut history = steps(&[
        grant.clone(),
        Request::Put {
            key: key("a"),
            value: key("1"),
            lease: 5,
            prev_kv: false,
        },
        revoke.clone(),
        get("a"),
        grant,
        revoke,
    ]);
    // The first one ends by itself; the second revocation is told the revision of that.
    history.operations.remove(2);
    assert_eq!(check(&history).unwrap().expired, 1);
}

/// A watcher of all keys from revision 2 on that is told revision by revision.
fn watched() -> History {
    let mut history = run(11, 60);
    let log = history.log.clone();
    let last = log.last().unwrap().kv.mod_revision;
    let mut responses = vec![WatchResponse {
        at: 0,
        revision: 1,
        report: WatchReport::Created { from: 2 },
    }];
    let of_one = log.chunk_by(|one, other| one.kv.mod_revision == other.kv.mod_revision);
    responses.extend(of_one.map(|events| WatchResponse {
        at: 1_000_000,
        revision: events[0].kv.mod_revision,
        report: WatchReport::Events(events.to_vec()),
    }));
    history.watches = vec![WatchRecord {
        keys: KeyRange::all(),
        prev_kv: true,
        responses,
        reached: last,
    }];
    // What may be compacted may lack its previous state.
    history
        .operations
        .retain(|one| !matches!(one.request, Request::Compact { .. }));
    check(&history).unwrap();
    history
}

fn responses(history: &mut History) -> &mut Vec<WatchResponse> {
    &mut history.watches[0].responses
}

fn events(response: &mut WatchResponse) -> &mut Vec<Event> {
    match &mut response.report {
        WatchReport::Events(events) => events,
        other => panic!("{other:?}"),
    }
}

/// The place of a response with several events.
fn of_several(history: &mut History) -> usize {
    let found = responses(history).iter().position(
        |response| matches!(&response.report, WatchReport::Events(events) if events.len() > 1),
    );
    found.unwrap()
}

#[test]
fn an_event_told_twice() {
    let mut history = watched();
    let again = responses(&mut history)[4].clone();
    responses(&mut history).insert(6, again);
    assert_found!(history, Violation::WatchDuplicate { .. });
}

#[test]
fn an_event_not_told() {
    let mut history = watched();
    responses(&mut history).remove(4);
    assert_found!(history, Violation::WatchGap { .. });
    // Also the last one.
    let mut history = watched();
    responses(&mut history).pop();
    assert_found!(history, Violation::WatchGap { .. });
    // Also one within a revision.
    let mut history = watched();
    let at = of_several(&mut history);
    events(&mut responses(&mut history)[at]).remove(0);
    assert_found!(history, Violation::WatchGap { .. });
}

#[test]
fn events_out_of_order() {
    let mut history = watched();
    responses(&mut history).swap(4, 5);
    assert_found!(history, Violation::WatchDisorder { .. });
}

#[test]
fn a_revision_told_in_pieces() {
    let mut history = watched();
    let at = of_several(&mut history);
    let mut second = responses(&mut history)[at].clone();
    events(&mut second).remove(0);
    events(&mut responses(&mut history)[at]).truncate(1);
    responses(&mut history).insert(at + 1, second);
    assert_found!(history, Violation::WatchSplit { .. });
}

#[test]
fn progress_that_comes_too_early() {
    let mut history = watched();
    let progress = |revision| WatchResponse {
        at: 1_000_000,
        revision,
        report: WatchReport::Progress,
    };
    responses(&mut history).insert(4, progress(4));
    check(&history).unwrap();
    responses(&mut history)[4] = progress(5);
    assert_found!(history, Violation::WatchEarlyProgress { revision: 5, .. });
}

#[test]
fn a_wrong_previous_state() {
    let mut history = watched();
    let with_prev = |response: &WatchResponse| match &response.report {
        WatchReport::Events(events) => events[0].prev.is_some(),
        _ => false,
    };
    let at = responses(&mut history).iter().position(with_prev).unwrap();
    let event = &mut events(&mut responses(&mut history)[at])[0];
    event.prev.as_mut().unwrap().value = key("other");
    assert_found!(history, Violation::WatchWrongPrevious { .. });
    events(&mut responses(&mut history)[at])[0].prev = None;
    assert_found!(history, Violation::WatchWrongPrevious { .. });
    // Unless it is compacted.
    let revision = responses(&mut history)[at].revision;
    let compact = Request::Compact { revision };
    history
        .operations
        .push(operation(compact, 900_000, None, Outcome::Unknown));
    check(&history).unwrap();
}

#[test]
fn events_that_did_not_happen_or_were_not_asked_for() {
    let mut history = watched();
    events(&mut responses(&mut history)[3])[0].kv.value = key("other");
    assert_found!(history, Violation::WatchWrongEvent { .. });
    let mut history = watched();
    let invented = Event {
        kind: EventKind::Delete,
        kv: KeyValue {
            key: key("nobody"),
            mod_revision: 5,
            ..KeyValue::default()
        },
        prev: None,
    };
    events(&mut responses(&mut history)[3]).push(invented);
    assert_found!(history, Violation::WatchWrongEvent { .. });
    // A watcher that begins later is told what was before (etcd #20221).
    let mut history = watched();
    responses(&mut history)[0].report = WatchReport::Created { from: 4 };
    assert_found!(history, Violation::WatchUnwanted { .. });
}

#[test]
fn a_header_behind_its_events() {
    let mut history = watched();
    responses(&mut history)[3].revision = 2;
    assert_found!(history, Violation::WatchOldHeader { .. });
}

#[test]
fn a_watcher_that_goes_on_misses_nothing() {
    let mut history = watched();
    let ended = WatchResponse {
        at: 1_000_000,
        revision: 4,
        report: WatchReport::Ended,
    };
    let created = |from| WatchResponse {
        report: WatchReport::Created { from },
        ..ended.clone()
    };
    // The response at place n tells of revision n + 1.
    responses(&mut history).splice(4..4, [ended.clone(), created(5)]);
    check(&history).unwrap();
    responses(&mut history)[5] = created(4);
    assert_found!(history, Violation::WatchGap { .. });
}

#[test]
fn a_watcher_ended_as_compacted() {
    let mut history = watched();
    history.watches[0].reached = 0;
    let ended = WatchResponse {
        at: 1_000_000,
        revision: 10,
        report: WatchReport::Compacted {
            compact_revision: 8,
        },
    };
    responses(&mut history).truncate(4);
    responses(&mut history).push(ended);
    assert_found!(
        history,
        Violation::WatchFalseCompacted {
            next: 5,
            compacted: 8,
            ..
        }
    );
    let compact = Request::Compact { revision: 8 };
    history
        .operations
        .push(operation(compact, 900_000, None, Outcome::Unknown));
    check(&history).unwrap();
}
