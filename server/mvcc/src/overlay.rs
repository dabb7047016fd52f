//! The changes of a batch that is not written yet, laid over what is: the batch reads its own
//! writes.

use std::{collections::BTreeMap, ops::Bound};

use bytes::Bytes;

use crate::engine::{Cursor, Direction, EngineError, Family, Read, WriteBatch};

/// A changed row: what it becomes, or `None` when it is deleted.
type Change = Option<Bytes>;

/// The changes of a batch, by family and key.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    families: [BTreeMap<Bytes, Change>; Family::ALL.len()],
}

impl Overlay {
    pub fn put(&mut self, family: Family, key: Bytes, value: Bytes) {
        self.families[family as usize].insert(key, Some(value));
    }

    pub fn delete(&mut self, family: Family, key: Bytes) {
        self.families[family as usize].insert(key, None);
    }

    /// All changes as one batch, each family in the order of its keys.
    pub fn into_batch(self) -> WriteBatch {
        let mut batch = WriteBatch::default();
        for (family, changes) in Family::ALL.into_iter().zip(self.families) {
            for (key, change) in changes {
                match change {
                    Some(value) => batch.put(family, key, value),
                    None => batch.delete(family, key),
                }
            }
        }
        batch
    }
}

/// A state with the changes of a batch.
pub(crate) struct Overlaid<'a, R> {
    pub base: &'a R,
    pub overlay: &'a Overlay,
}

impl<R: Read> Read for Overlaid<'_, R> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        match self.overlay.families[family as usize].get(key) {
            Some(change) => Ok(change.clone()),
            None => self.base.get(family, key),
        }
    }

    fn scan<'a>(
        &'a self,
        family: Family,
        lower: &[u8],
        upper: Option<&[u8]>,
        direction: Direction,
    ) -> Result<Box<dyn Cursor + 'a>, EngineError> {
        let base = self.base.scan(family, lower, upper, direction)?;
        // BTreeMap panics on bounds that cross; they are an empty range.
        if upper.is_some_and(|upper| upper <= lower) {
            return Ok(base);
        }
        let bounds = (
            Bound::Included(lower),
            upper.map_or(Bound::Unbounded, Bound::Excluded),
        );
        let changes = self.overlay.families[family as usize].range::<[u8], _>(bounds);
        let mut changes: Box<dyn Iterator<Item = (&'a Bytes, &'a Change)> + 'a> = match direction {
            Direction::Ascending => Box::new(changes),
            Direction::Descending => Box::new(changes.rev()),
        };
        let Some(change) = changes.next() else {
            return Ok(base);
        };
        let mut merged = Merged {
            base,
            changes,
            change: Some(change),
            direction,
            at: At::End,
        };
        merged.settle()?;
        Ok(Box::new(merged))
    }
}

/// Which side of a merge the cursor stands on.
#[derive(Clone, Copy)]
enum At {
    Base,
    Change,
    End,
}

/// The rows of the state and the changes in one order; a change hides the row of its key.
struct Merged<'a> {
    base: Box<dyn Cursor + 'a>,
    changes: Box<dyn Iterator<Item = (&'a Bytes, &'a Change)> + 'a>,
    change: Option<(&'a Bytes, &'a Change)>,
    direction: Direction,
    at: At,
}

impl Merged<'_> {
    /// Finds the side that comes next, past deleted rows.
    fn settle(&mut self) -> Result<(), EngineError> {
        loop {
            let Some((key, change)) = self.change else {
                self.at = if self.base.valid() { At::Base } else { At::End };
                return Ok(());
            };
            if self.base.valid() {
                let base_first = match self.direction {
                    Direction::Ascending => self.base.key() < &key[..],
                    Direction::Descending => self.base.key() > &key[..],
                };
                if base_first {
                    self.at = At::Base;
                    return Ok(());
                }
                if self.base.key() == &key[..] {
                    self.base.next()?;
                }
            }
            if change.is_some() {
                self.at = At::Change;
                return Ok(());
            }
            self.change = self.changes.next();
        }
    }
}

impl Cursor for Merged<'_> {
    fn valid(&self) -> bool {
        !matches!(self.at, At::End)
    }

    fn key(&self) -> &[u8] {
        match (self.at, self.change) {
            (At::Base, _) => self.base.key(),
            (At::Change, Some((key, _))) => key,
            _ => &[],
        }
    }

    fn value(&self) -> &[u8] {
        match (self.at, self.change) {
            (At::Base, _) => self.base.value(),
            (At::Change, Some((_, Some(value)))) => value,
            _ => &[],
        }
    }

    fn next(&mut self) -> Result<(), EngineError> {
        match self.at {
            At::Base => self.base.next()?,
            At::Change => self.change = self.changes.next(),
            At::End => return Ok(()),
        }
        self.settle()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{engine::Engine, mem::MemEngine};

    #[test]
    fn reads_see_the_batch_over_the_state() {
        let engine = MemEngine::default();
        let mut batch = WriteBatch::default();
        for key in ["b", "d", "f"] {
            batch.put(Family::Cur, key, "old");
        }
        engine.write(&batch).unwrap();
        let mut overlay = Overlay::default();
        overlay.put(Family::Cur, "a".into(), "new".into());
        overlay.put(Family::Cur, "d".into(), "new".into());
        overlay.delete(Family::Cur, "f".into());
        overlay.delete(Family::Cur, "g".into());
        overlay.put(Family::Cur, "h".into(), "new".into());
        let read = Overlaid {
            base: &engine,
            overlay: &overlay,
        };
        let check = |lower: &str, upper: Option<&str>, expected: &str| {
            let upper = upper.map(str::as_bytes);
            let mut rows = Vec::new();
            for direction in [Direction::Ascending, Direction::Descending] {
                let mut found = Vec::new();
                let mut cursor = read
                    .scan(Family::Cur, lower.as_bytes(), upper, direction)
                    .unwrap();
                while cursor.valid() {
                    found.push(format!(
                        "{}={}",
                        String::from_utf8_lossy(cursor.key()),
                        String::from_utf8_lossy(cursor.value())
                    ));
                    cursor.next().unwrap();
                }
                if direction == Direction::Descending {
                    found.reverse();
                }
                rows.push(found.join(" "));
            }
            assert_eq!(rows, [expected, expected], "{lower} {upper:?}");
        };
        check("", None, "a=new b=old d=new h=new");
        check("b", Some("d"), "b=old");
        check("c", Some("h"), "d=new");
        check("e", Some("h"), "");
        check("h", Some("b"), "");
        assert_eq!(read.get(Family::Cur, b"f").unwrap(), None);
        assert_eq!(read.get(Family::Cur, b"b").unwrap().unwrap(), "old");
        assert_eq!(read.get(Family::Cur, b"d").unwrap().unwrap(), "new");
    }
}
