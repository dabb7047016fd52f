//! The engine in memory: what the simulator and the tests of the core run on. It is no toy where
//! it counts: its snapshots stay, and a crash leaves what a crash of RocksDB without a log leaves,
//! a prefix of the batches that holds at least everything flushed.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use bytes::Bytes;
use parking_lot::RwLock;

use crate::engine::{Cursor, Direction, Engine, EngineError, Family, Op, Read, WriteBatch};

type Rows = BTreeMap<Bytes, Bytes>;
type Row = (Bytes, Bytes);

/// All families at one moment. A clone shares the rows; the first write after a clone copies the
/// families that it touches, which is fine at the sizes of tests.
#[derive(Clone, Debug, Default)]
pub struct MemSnapshot {
    families: [Arc<Rows>; Family::ALL.len()],
}

impl MemSnapshot {
    fn rows(&self, family: Family) -> &Rows {
        &self.families[family as usize]
    }

    fn range<'a>(
        &'a self,
        family: Family,
        lower: &[u8],
        upper: Option<&[u8]>,
        direction: Direction,
    ) -> Box<dyn Iterator<Item = Row> + 'a> {
        // BTreeMap panics on bounds that cross; here they are an empty range.
        let crossed = upper.is_some_and(|upper| upper <= lower);
        let bounds = if crossed {
            (Bound::Excluded(lower), Bound::Included(lower))
        } else {
            (
                Bound::Included(lower),
                upper.map_or(Bound::Unbounded, Bound::Excluded),
            )
        };
        let range = self.rows(family).range::<[u8], _>(bounds);
        let range = range.map(|(key, value)| (key.clone(), value.clone()));
        match direction {
            Direction::Ascending => Box::new(range),
            Direction::Descending => Box::new(range.rev()),
        }
    }

    fn apply(&mut self, batch: &WriteBatch) {
        for op in &batch.ops {
            match op {
                Op::Put { family, key, value } => {
                    let rows = Arc::make_mut(&mut self.families[*family as usize]);
                    rows.insert(key.clone(), value.clone());
                }
                Op::Delete { family, key } => {
                    Arc::make_mut(&mut self.families[*family as usize]).remove(key);
                }
            }
        }
    }

    fn bytes(&self) -> u64 {
        let rows = self.families.iter().flat_map(|rows| rows.iter());
        rows.map(|(key, value)| (key.len() + value.len()) as u64)
            .sum()
    }
}

impl Read for MemSnapshot {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.rows(family).get(key).cloned())
    }

    fn scan<'a>(
        &'a self,
        family: Family,
        lower: &[u8],
        upper: Option<&[u8]>,
        direction: Direction,
    ) -> Result<Box<dyn Cursor + 'a>, EngineError> {
        let rows = self.range(family, lower, upper, direction);
        Ok(MemCursor::boxed(rows))
    }
}

/// Rows are cloned as they pass: they share their bytes.
struct MemCursor<'a> {
    rows: Box<dyn Iterator<Item = Row> + 'a>,
    at: Option<Row>,
}

impl<'a> MemCursor<'a> {
    fn boxed(mut rows: Box<dyn Iterator<Item = Row> + 'a>) -> Box<dyn Cursor + 'a> {
        let at = rows.next();
        Box::new(Self { rows, at })
    }
}

impl Cursor for MemCursor<'_> {
    fn valid(&self) -> bool {
        self.at.is_some()
    }

    fn key(&self) -> &[u8] {
        self.at.as_ref().map_or(&[], |(key, _)| key)
    }

    fn value(&self) -> &[u8] {
        self.at.as_ref().map_or(&[], |(_, value)| value)
    }

    fn next(&mut self) -> Result<(), EngineError> {
        self.at = self.rows.next();
        Ok(())
    }
}

#[derive(Debug, Default)]
struct State {
    now: MemSnapshot,
    durable: MemSnapshot,
    /// Written since the last flush, in order: what a crash may take, from the end.
    unflushed: Vec<WriteBatch>,
}

/// An [`Engine`] that keeps everything in memory.
#[derive(Debug, Default)]
pub struct MemEngine {
    state: RwLock<State>,
}

impl MemEngine {
    /// An empty engine.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many batches were written since the last flush.
    pub fn unflushed_batches(&self) -> usize {
        self.state.read().unflushed.len()
    }

    /// One step of [`Engine::defragment`]: a family is written anew. As in RocksDB its rows that
    /// were not flushed are flushed before, and with them those of all other families: a crash
    /// between two steps must not find one batch in some families only.
    ///
    /// # Errors
    /// None.
    pub fn rewrite(&self, family: Family) -> Result<(), EngineError> {
        self.flush_all(true)?;
        let mut state = self.state.write();
        let rows = Rows::clone(state.durable.rows(family));
        state.durable.families[family as usize] = Arc::new(rows);
        Ok(())
    }

    /// The engine as it is found after a crash that `kept` of the unflushed batches survived, the
    /// oldest ones. More than there are means all.
    #[must_use]
    pub fn crash(&self, kept: usize) -> Self {
        let state = self.state.read();
        let mut durable = state.durable.clone();
        for batch in state.unflushed.iter().take(kept) {
            durable.apply(batch);
        }
        Self {
            state: RwLock::new(State {
                now: durable.clone(),
                durable,
                unflushed: Vec::new(),
            }),
        }
    }
}

impl Read for MemEngine {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.state.read().now.get(family, key)
    }

    fn scan<'a>(
        &'a self,
        family: Family,
        lower: &[u8],
        upper: Option<&[u8]>,
        direction: Direction,
    ) -> Result<Box<dyn Cursor + 'a>, EngineError> {
        // A scan of the engine is a scan of its state at this moment, as RocksDB's iterators are.
        let state = self.state.read();
        let rows: Vec<_> = state.now.range(family, lower, upper, direction).collect();
        Ok(MemCursor::boxed(Box::new(rows.into_iter())))
    }
}

impl Engine for MemEngine {
    type Snapshot = MemSnapshot;

    fn snapshot(&self) -> Result<MemSnapshot, EngineError> {
        Ok(self.state.read().now.clone())
    }

    fn write(&self, batch: &WriteBatch) -> Result<(), EngineError> {
        let mut state = self.state.write();
        state.now.apply(batch);
        state.unflushed.push(batch.clone());
        Ok(())
    }

    fn flush_all(&self, _wait: bool) -> Result<(), EngineError> {
        let mut state = self.state.write();
        state.durable = state.now.clone();
        state.unflushed.clear();
        Ok(())
    }

    fn persisted(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.state.read().durable.get(family, key)
    }

    fn unflushed_bytes(&self) -> u64 {
        let state = self.state.read();
        let ops = state.unflushed.iter().flat_map(|batch| &batch.ops);
        ops.map(|op| match op {
            Op::Put { key, value, .. } => (key.len() + value.len()) as u64,
            Op::Delete { key, .. } => key.len() as u64,
        })
        .sum()
    }

    fn disk_bytes(&self) -> u64 {
        self.state.read().durable.bytes()
    }

    fn defragment(&self) -> Result<(), EngineError> {
        Family::ALL
            .into_iter()
            .try_for_each(|family| self.rewrite(family))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{self, Bench};

    struct InMemory {
        /// How many of the unflushed batches each crash leaves, in turn.
        kept: usize,
    }

    impl Bench for InMemory {
        type Engine = MemEngine;

        fn open(&mut self) -> MemEngine {
            MemEngine::new()
        }

        fn crash(&mut self, engine: MemEngine) -> MemEngine {
            engine.crash(self.kept)
        }
    }

    #[test]
    fn the_engine_in_memory_conforms_whatever_a_crash_leaves() {
        for kept in 0..4 {
            conformance::check(&mut InMemory { kept });
        }
    }

    /// The suite must notice an engine that loses a flushed batch, or it proves nothing.
    #[test]
    #[should_panic(expected = "lost a flushed batch")]
    fn the_suite_notices_a_lost_flush() {
        struct Forgetful;
        impl Bench for Forgetful {
            type Engine = MemEngine;
            fn open(&mut self) -> MemEngine {
                MemEngine::new()
            }
            fn crash(&mut self, _: MemEngine) -> MemEngine {
                MemEngine::new()
            }
        }
        conformance::check(&mut Forgetful);
    }

    /// It must notice a torn batch too.
    #[test]
    #[should_panic(expected = "a part of a batch")]
    fn the_suite_notices_a_torn_batch() {
        struct Tearing;
        impl Bench for Tearing {
            type Engine = MemEngine;
            fn open(&mut self) -> MemEngine {
                MemEngine::new()
            }
            fn crash(&mut self, engine: MemEngine) -> MemEngine {
                {
                    let mut state = engine.state.write();
                    if let Some(batch) = state.unflushed.last_mut() {
                        batch.ops.truncate(1);
                    }
                }
                engine.crash(usize::MAX)
            }
        }
        conformance::check(&mut Tearing);
    }
}
