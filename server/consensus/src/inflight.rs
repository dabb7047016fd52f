//! Writes of the log that are not durable yet.

use std::collections::VecDeque;

#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) number: u64,
    /// First and last index, when it holds entries. A snapshot's first is 0: it replaces all.
    pub(crate) range: Option<(u64, u64)>,
    /// The term of the state that it holds, if it does.
    pub(crate) term: Option<u64>,
    pub(crate) bytes: usize,
}

/// What [`Inflight::finish`] learned.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Finished {
    /// Up to which number raft may be told, if any.
    pub(crate) number: Option<u64>,
    /// The newest durable term, if one became durable.
    pub(crate) term: Option<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct Inflight {
    writes: VecDeque<Write>,
    /// Of these, the first so many are durable and held back.
    durable: usize,
    bytes: usize,
}

impl Inflight {
    pub(crate) fn push(&mut self, write: Write) {
        self.bytes += write.bytes;
        self.writes.push_back(write);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// All writes up to `number` are durable.
    ///
    /// raft is not told about a write whose entries a later one replaces, until that one is durable
    /// too. raft-rs compares index and term only: were the entries replaced twice, the second time
    /// by the same ones, it would take the first write for the third.
    pub(crate) fn finish(&mut self, number: u64) -> Finished {
        let mut finished = Finished::default();
        while let Some(write) = self.writes.get(self.durable) {
            if write.number > number {
                break;
            }
            finished.term = write.term.or(finished.term);
            self.durable += 1;
        }
        let undurable = self.writes.range(self.durable..);
        let replaced_from = undurable
            .filter_map(|write| write.range)
            .map(|(first, _)| first)
            .min();
        let replaced_from = replaced_from.unwrap_or(u64::MAX);
        for write in self.writes.drain(..self.releasable(replaced_from)) {
            finished.number = Some(write.number);
            self.bytes -= write.bytes;
            self.durable -= 1;
        }
        finished
    }

    /// How many of the durable writes raft may be told about. What came before a snapshot among
    /// them counts for nothing.
    fn releasable(&self, replaced_from: u64) -> usize {
        let (mut count, mut held) = (0, false);
        for (write, position) in self.writes.range(..self.durable).zip(1..) {
            let stands = write.range.is_none_or(|(_, last)| last < replaced_from);
            let is_snapshot = write.range.is_some_and(|(first, _)| first == 0);
            held = !stands || (held && !is_snapshot);
            if !held {
                count = position;
            }
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inflight(writes: &[(u64, Option<(u64, u64)>)]) -> Inflight {
        let mut all = Inflight::default();
        for &(number, range) in writes {
            all.push(Write {
                number,
                range,
                term: Some(number * 10),
                bytes: 1,
            });
        }
        all
    }

    fn finished(number: Option<u64>, term: Option<u64>) -> Finished {
        Finished { number, term }
    }

    #[test]
    fn a_number_stands_for_all_before_it() {
        let mut all = inflight(&[(1, Some((1, 3))), (2, None), (5, Some((4, 4)))]);
        assert_eq!(all.finish(0), finished(None, None));
        assert_eq!(all.finish(3), finished(Some(2), Some(20)));
        assert_eq!(all.bytes(), 1);
        assert_eq!(all.finish(9), finished(Some(5), Some(50)));
        assert!(all.is_empty());
        assert_eq!(all.finish(9), finished(None, None));
    }

    #[test]
    fn what_a_snapshot_replaces_waits_for_it() {
        let mut all = inflight(&[(1, Some((8, 15))), (2, Some((0, 10))), (3, Some((11, 15)))]);
        assert_eq!(all.finish(1), finished(None, Some(10)));
        assert_eq!(all.finish(2), finished(Some(2), Some(20)));
        assert_eq!(all.finish(3), finished(Some(3), Some(30)));
        let mut all = inflight(&[(1, Some((0, 10))), (2, Some((0, 20)))]);
        assert_eq!(all.finish(1), finished(None, Some(10)));
        assert_eq!(all.finish(2), finished(Some(2), Some(20)));
    }

    #[test]
    fn a_replaced_write_waits_for_the_one_that_replaces_it() {
        let mut all = inflight(&[(1, Some((5, 6))), (2, Some((5, 5))), (3, Some((5, 6)))]);
        assert_eq!(all.finish(1), finished(None, Some(10)));
        assert_eq!(all.finish(2), finished(None, Some(20)));
        assert_eq!(all.finish(3), finished(Some(3), Some(30)));
        assert!(all.is_empty());
    }
}
