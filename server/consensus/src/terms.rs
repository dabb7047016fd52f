//! The terms of all entries, as runs: a term changes with an election, not with an entry.

/// Entries from `first` on have this term, up to the next run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermRun {
    /// Index of the run's first entry.
    pub first: u64,
    /// Its term.
    pub term: u64,
}

/// The runs of the entries `first..=last`, from a way to ask for the term of one. `None` when an
/// entry has no term. Asks about log2(entries) times for each run.
pub fn term_runs(first: u64, last: u64, term: impl Fn(u64) -> Option<u64>) -> Option<Vec<TermRun>> {
    let mut runs = Vec::new();
    let mut next = first;
    while next <= last {
        let current = term(next)?;
        runs.push(TermRun {
            first: next,
            term: current,
        });
        let (mut known, mut beyond) = (next, last + 1);
        while beyond - known > 1 {
            let middle = known + (beyond - known) / 2;
            match term(middle)? == current {
                true => known = middle,
                false => beyond = middle,
            }
        }
        next = beyond;
    }
    Some(runs)
}

/// The terms of the entries from a first index on.
#[derive(Debug, Default)]
pub(crate) struct Terms {
    runs: Vec<TermRun>,
}

impl Terms {
    pub(crate) fn new(runs: Vec<TermRun>) -> Self {
        let mut terms = Self::default();
        for run in runs {
            terms.push(run.first, run.term);
        }
        terms
    }

    /// The caller keeps to the indices that the log holds.
    pub(crate) fn get(&self, index: u64) -> Option<u64> {
        let after = self.runs.partition_point(|run| run.first <= index);
        Some(self.runs.get(after.checked_sub(1)?)?.term)
    }

    pub(crate) fn push(&mut self, index: u64, term: u64) {
        if self.runs.last().is_none_or(|run| run.term != term) {
            self.runs.push(TermRun { first: index, term });
        }
    }

    /// Forgets runs that end before `index`.
    pub(crate) fn compact(&mut self, index: u64) {
        let begun = self.runs.partition_point(|run| run.first <= index);
        self.runs.drain(..begun.saturating_sub(1));
    }

    /// Forgets the entries from `index` on.
    pub(crate) fn truncate(&mut self, index: u64) {
        let kept = self.runs.partition_point(|run| run.first < index);
        self.runs.truncate(kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_without_asking_for_every_entry() {
        let terms = [1, 1, 1, 1, 3, 3, 4, 9, 9, 9];
        let asked = std::cell::Cell::new(0);
        let runs = term_runs(5, 14, |index| {
            asked.set(asked.get() + 1);
            terms.get(index as usize - 5).copied()
        })
        .unwrap();
        let found = Terms::new(runs.clone());
        for (i, term) in terms.iter().enumerate() {
            assert_eq!(found.get(5 + i as u64), Some(*term));
        }
        assert_eq!(found.get(4), None);
        assert_eq!(runs.len(), 4);
        assert_eq!(
            term_runs(5, 15, |i| terms.get(i as usize - 5).copied()),
            None
        );
        assert_eq!(term_runs(1, 0, |_| None), Some(vec![]));
        let long = term_runs(1, 1 << 40, |i| Some(1 + i / (1 << 39))).unwrap();
        assert_eq!(long.len(), 3);
    }

    #[test]
    fn a_replaced_tail_takes_its_terms_with_it() {
        let mut terms = Terms::default();
        for (index, term) in [(1, 1), (2, 1), (3, 2), (4, 2)] {
            terms.push(index, term);
        }
        terms.truncate(4);
        assert_eq!(terms.get(3), Some(2));
        terms.push(4, 5);
        assert_eq!((terms.get(3), terms.get(4)), (Some(2), Some(5)));
        terms.truncate(2);
        terms.push(2, 5);
        assert_eq!((terms.get(1), terms.get(9)), (Some(1), Some(5)));
        terms.push(3, 6);
        terms.compact(2);
        assert_eq!(
            (terms.get(1), terms.get(2), terms.get(3)),
            (None, Some(5), Some(6))
        );
        terms.compact(7);
        assert_eq!((terms.get(2), terms.get(7)), (None, Some(6)));
    }
}
