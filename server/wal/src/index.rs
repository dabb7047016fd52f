//! Where each entry of the log lies, in little memory: one checkpoint for many entries, and terms
//! as runs.

use std::sync::Arc;

use crate::segment::Segment;

/// Entries between two checkpoints at most.
const CHECKPOINT_ENTRIES: u64 = 64;
/// Bytes between two checkpoints at most (plus one entry).
const CHECKPOINT_BYTES: u64 = 64 << 10;

/// A place from which entries `index`, `index + 1`, … lie in one segment in order, up to the
/// next checkpoint's index.
pub(crate) struct Checkpoint<F> {
    pub index: u64,
    pub segment: Arc<Segment<F>>,
    pub offset: u64,
    /// The CRC chain before the frame at `offset`.
    pub chain: u32,
}

impl<F> Clone for Checkpoint<F> {
    fn clone(&self) -> Self {
        Self {
            index: self.index,
            segment: Arc::clone(&self.segment),
            offset: self.offset,
            chain: self.chain,
        }
    }
}

/// The entries that the log holds: `first..=last`, preceded by the entry (`first - 1`, `term`)
/// that a snapshot stands for.
pub(crate) struct Index<F> {
    first: u64,
    last: u64,
    checkpoints: Vec<Checkpoint<F>>,
    /// (first index of the run, term), ascending; begins with the entry before `first`.
    terms: Vec<(u64, u64)>,
}

impl<F> Index<F> {
    /// An empty log after the entry (`index`, `term`).
    pub(crate) fn after(index: u64, term: u64) -> Self {
        Self {
            first: index + 1,
            last: index,
            checkpoints: Vec::new(),
            terms: vec![(index, term)],
        }
    }

    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// Term of the entry at `index`, known for `first - 1 ..= last`.
    pub(crate) fn term(&self, index: u64) -> Option<u64> {
        if index + 1 < self.first || index > self.last {
            return None;
        }
        let run = self.terms.partition_point(|(start, _)| *start <= index);
        self.terms.get(run.checked_sub(1)?).map(|(_, term)| *term)
    }

    /// Adds the entry whose frame is `place`; entries from its index on are replaced. The caller
    /// sees to it that there is no gap.
    pub(crate) fn push(&mut self, term: u64, place: Checkpoint<F>) {
        let index = place.index;
        let replaces = index <= self.last;
        if replaces {
            self.truncate_after(index - 1);
        }
        let needs_checkpoint = replaces
            || self.checkpoints.last().is_none_or(|c| {
                !Arc::ptr_eq(&c.segment, &place.segment)
                    || index - c.index >= CHECKPOINT_ENTRIES
                    || place.offset - c.offset >= CHECKPOINT_BYTES
            });
        if needs_checkpoint {
            self.checkpoints.push(place);
        }
        if self.terms.last().is_none_or(|(_, t)| *t != term) {
            self.terms.push((index, term));
        }
        self.last = index;
    }

    /// Forgets the entries above `index`.
    pub(crate) fn truncate_after(&mut self, index: u64) {
        if index >= self.last {
            return;
        }
        self.last = index;
        let keep = self.checkpoints.partition_point(|c| c.index <= index);
        self.checkpoints.truncate(keep);
        let keep = self.terms.partition_point(|(start, _)| *start <= index);
        self.terms.truncate(keep);
        if self.first > index + 1 {
            self.first = index + 1;
        }
    }

    /// The checkpoint to start from for `index`, and the index at which it ends.
    pub(crate) fn locate(&self, index: u64) -> Option<(Checkpoint<F>, u64)> {
        if index < self.first || index > self.last {
            return None;
        }
        let next = self.checkpoints.partition_point(|c| c.index <= index);
        let from = self.checkpoints.get(next.checked_sub(1)?)?.clone();
        let end = self
            .checkpoints
            .get(next)
            .map_or(self.last + 1, |c| c.index);
        Some((from, end))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::segment::Name;

    fn segment(seq: u64) -> Arc<Segment<()>> {
        Arc::new(Segment {
            name: Name { seq, index: 0 },
            path: PathBuf::new(),
            file: (),
        })
    }

    fn place(index: u64, segment: &Arc<Segment<()>>, offset: u64) -> Checkpoint<()> {
        Checkpoint {
            index,
            segment: Arc::clone(segment),
            offset,
            chain: 0,
        }
    }

    #[test]
    fn terms_and_places_follow_replacement() {
        let (a, b) = (segment(0), segment(1));
        let mut index = Index::after(10, 3);
        assert_eq!((index.first(), index.last()), (11, 10));
        assert_eq!(index.term(10), Some(3));
        assert_eq!(index.term(9), None);
        for i in 11..=300 {
            index.push(if i < 200 { 3 } else { 4 }, place(i, &a, i * 8));
        }
        assert_eq!(
            (index.term(199), index.term(200), index.term(301)),
            (Some(3), Some(4), None)
        );
        let (from, end) = index.locate(100).unwrap();
        assert_eq!((from.index, from.offset, end), (75, 600, 139));
        // Replaced from 150 on, in the next segment.
        for i in 150..=160 {
            index.push(5, place(i, &b, i));
        }
        assert_eq!(
            (index.last(), index.term(149), index.term(150)),
            (160, Some(3), Some(5))
        );
        assert_eq!(index.locate(149).unwrap().1, 150);
        assert_eq!(index.locate(150).unwrap().0.offset, 150);
        assert!(index.locate(161).is_none());
    }

    #[test]
    fn many_small_entries_take_few_checkpoints() {
        let a = segment(0);
        let mut index = Index::after(0, 0);
        for i in 1..=64_000 {
            index.push(1, place(i, &a, i * 8));
        }
        assert_eq!(index.checkpoints.len(), 1000);
        assert_eq!(index.terms.len(), 2);
    }
}
