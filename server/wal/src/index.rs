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

/// The entries that the log holds: `first..=last`, preceded by an entry of which only the term is
/// known, or not even that.
pub(crate) struct Index<F> {
    first: u64,
    last: u64,
    checkpoints: Vec<Checkpoint<F>>,
    /// (first index of the run, term), ascending; begins with the entry before `first` when its
    /// term is known.
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

    /// An empty log whose next entry is `index`, of which nothing is known before that.
    pub(crate) fn from(index: u64) -> Self {
        Self {
            first: index,
            last: index - 1,
            checkpoints: Vec::new(),
            terms: Vec::new(),
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

    /// The term of the entry before the first one, now that it is known.
    pub(crate) fn set_base(&mut self, term: u64) {
        if self.term(self.first - 1).is_none() {
            self.terms.insert(0, (self.first - 1, term));
        }
    }

    /// Forgets the entries below `index`, which is at most one past the last. The term of the one
    /// before it is kept.
    pub(crate) fn drop_before(&mut self, index: u64) {
        if index <= self.first {
            return;
        }
        self.first = index;
        // The checkpoint below it may be where it is read from.
        let covering = self.checkpoints.partition_point(|c| c.index <= index);
        let keep_from = match index > self.last {
            true => covering,
            false => covering.saturating_sub(1),
        };
        self.checkpoints.drain(..keep_from);
        let run = self.terms.partition_point(|(start, _)| *start < index);
        if let Some(run) = run.checked_sub(1) {
            self.terms.drain(..run);
            self.terms[0].0 = index - 1;
        }
    }

    /// Makes the entry (`index`, `term`) the one before the first, whatever was held up to it.
    pub(crate) fn rebase(&mut self, index: u64, term: u64) {
        self.drop_before(index + 1);
        let next = self.term(index + 1);
        self.terms.retain(|(start, _)| *start > index + 1);
        let next = next.map(|next| (index + 1, next));
        self.terms
            .splice(0..0, [(index, term)].into_iter().chain(next));
    }

    /// Lowest index from which on all entries lie in the last `bytes` of a log that ends at `end`,
    /// to the checkpoint above.
    pub(crate) fn within(&self, end: u64, bytes: u64) -> u64 {
        let fits = |c: &Checkpoint<F>| end - (c.segment.begin + c.offset) <= bytes;
        let at = self.checkpoints.partition_point(|c| !fits(c));
        self.checkpoints
            .get(at)
            .map_or(self.last + 1, |c| c.index.max(self.first))
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
            begin: seq * 1_000_000,
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
    fn entries_are_forgotten_from_the_front() {
        let (a, b) = (segment(0), segment(1));
        let mut index = Index::after(10, 3);
        for i in 11..=300 {
            let (segment, offset) = if i < 200 { (&a, i) } else { (&b, i - 200) };
            index.push(3 + i / 250, place(i, segment, offset));
        }
        index.drop_before(5);
        assert_eq!((index.first(), index.term(10)), (11, Some(3)));
        index.drop_before(210);
        assert_eq!((index.first(), index.last()), (210, 300));
        assert_eq!((index.term(208), index.term(209)), (None, Some(3)));
        assert_eq!((index.term(249), index.term(250)), (Some(3), Some(4)));
        assert!(index.locate(209).is_none());
        // Checkpoints: 200 and 264 in the second segment, the first of which still serves 210.
        assert_eq!(index.locate(210).unwrap().0.index, 200);
        assert_eq!(index.within(1_000_101, u64::MAX), 210);
        assert_eq!(index.within(1_000_101, 101), 210);
        assert_eq!(index.within(1_000_101, 100), 264);
        assert_eq!(index.within(1_000_101, 36), 301);
        index.drop_before(301);
        assert_eq!(
            (index.first(), index.last(), index.term(300)),
            (301, 300, Some(4))
        );
        assert!(index.checkpoints.is_empty());
        index.push(4, place(301, &b, 101));
        assert_eq!(index.locate(301).unwrap().0.index, 301);
        assert_eq!(index.term(300), Some(4));

        index.rebase(300, 2);
        assert_eq!((index.term(300), index.term(301)), (Some(2), Some(4)));

        // Nothing is known of what comes before.
        let mut index = Index::from(7);
        assert_eq!((index.first(), index.last(), index.term(6)), (7, 6, None));
        index.push(2, place(7, &a, 0));
        index.push(3, place(8, &a, 1));
        assert_eq!((index.term(6), index.term(7)), (None, Some(2)));
        index.drop_before(8);
        assert_eq!((index.term(7), index.term(8)), (Some(2), Some(3)));
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
