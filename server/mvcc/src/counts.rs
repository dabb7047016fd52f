//! How many keys there are in any range, without looking at them.
//!
//! The live keys are cut into buckets of adjacent keys; family `count` has a row for each, its
//! first key and how many keys it holds. The first keys and counts are in memory, a few thousand
//! times less than the keys themselves, in chunks that a published view shares with the store:
//! a change copies one chunk.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    engine::{Direction, Family, Read},
    error::Error,
    overlay::{Overlaid, Overlay},
};

/// A bucket with more keys is split in two.
const BUCKET_KEYS: u32 = 512;
/// A bucket with fewer keys joins a neighbour, if together they have room for more.
const SPARSE_KEYS: u32 = 64;
/// Two buckets with at most so many keys together may become one.
const JOINED_KEYS: u32 = 256;
/// How many keys a bucket of an imported store begins with: room for some more, and few buckets.
pub(crate) const IMPORTED_KEYS: u32 = BUCKET_KEYS / 4 * 3;
/// A chunk with more buckets is split in two.
const CHUNK_BUCKETS: usize = 256;

/// The first key of a bucket, up to the next bucket's, and how many keys it holds.
type Bucket = (Bytes, u32);

#[derive(Clone, Debug, Default)]
struct Chunk {
    buckets: Vec<Bucket>,
    keys: u64,
}

/// All buckets. The first one begins at the empty key, so every key has its bucket.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    chunks: Arc<Vec<Arc<Chunk>>>,
}

/// The place of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    chunk: usize,
    bucket: usize,
}

impl Counts {
    /// Reads the rows of family `count`.
    pub fn load<R: Read>(rows: &R) -> Result<Self, Error> {
        let mut buckets = Vec::new();
        let mut cursor = rows.scan(Family::Count, b"", None, Direction::Ascending)?;
        while cursor.valid() {
            let count: [u8; 4] = cursor.value().try_into().map_err(|_| {
                Error::Damaged(format!("a row of family count: {:02x?}", cursor.value()))
            })?;
            let first = Bytes::copy_from_slice(cursor.key());
            buckets.push((first, u32::from_be_bytes(count)));
            cursor.next()?;
        }
        if buckets.first().is_none_or(|(first, _)| !first.is_empty()) {
            buckets.insert(0, (Bytes::new(), 0));
        }
        let chunks = buckets.chunks(CHUNK_BUCKETS / 2);
        let chunks = chunks.map(|buckets| Arc::new(Chunk::of(buckets.to_vec())));
        Ok(Self {
            chunks: Arc::new(chunks.collect()),
        })
    }

    /// The buckets, in order: the first key of each, and how many keys it holds.
    pub fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        self.chunks.iter().flat_map(|chunk| &chunk.buckets)
    }

    /// All live keys.
    pub fn total(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.keys).sum()
    }

    /// The live keys with `lower <= key < upper`. `rows` is the state that these counts are of.
    pub fn count<R: Read>(
        &self,
        rows: &R,
        lower: &[u8],
        upper: Option<&[u8]>,
    ) -> Result<u64, Error> {
        if upper.is_some_and(|upper| upper <= lower) {
            return Ok(0);
        }
        let first = self.place(lower);
        let Some(upper) = upper else {
            return Ok(self.total() - self.rank(rows, first, lower)?);
        };
        let last = self.place(upper);
        if first == last {
            return scan_count(rows, lower, upper);
        }
        Ok(self.rank(rows, last, upper)? - self.rank(rows, first, lower)?)
    }

    /// The live keys before `key`, whose bucket is at `place`.
    fn rank<R: Read>(&self, rows: &R, place: Place, key: &[u8]) -> Result<u64, Error> {
        let chunk = &self.chunks[place.chunk];
        let chunks = self.chunks[..place.chunk].iter().map(|chunk| chunk.keys);
        let buckets = chunk.buckets[..place.bucket].iter();
        let before = chunks.sum::<u64>() + buckets.map(|(_, keys)| u64::from(*keys)).sum::<u64>();
        let first = &chunk.buckets[place.bucket].0;
        Ok(before + scan_count(rows, first, key)?)
    }

    fn place(&self, key: &[u8]) -> Place {
        let after = |chunk: &Arc<Chunk>| chunk.buckets.first().is_some_and(|(at, _)| at <= key);
        let chunk = self.chunks.partition_point(after).saturating_sub(1);
        let buckets = &self.chunks[chunk].buckets;
        let bucket = buckets.partition_point(|(first, _)| first <= key);
        Place {
            chunk,
            bucket: bucket.saturating_sub(1),
        }
    }

    /// The key of this place's successor; `None` at the end.
    fn next(&self, place: Place) -> Option<Place> {
        if place.bucket + 1 < self.chunks[place.chunk].buckets.len() {
            return Some(Place {
                bucket: place.bucket + 1,
                ..place
            });
        }
        (place.chunk + 1 < self.chunks.len()).then_some(Place {
            chunk: place.chunk + 1,
            bucket: 0,
        })
    }

    fn bucket(&self, place: Place) -> &Bucket {
        &self.chunks[place.chunk].buckets[place.bucket]
    }

    /// Accounts for a key that came to be. The overlay must have its row in `cur` already.
    pub fn created<R: Read>(
        &mut self,
        base: &R,
        overlay: &mut Overlay,
        key: &[u8],
    ) -> Result<(), Error> {
        let place = self.place(key);
        let keys = self.bucket(place).1 + 1;
        if keys <= BUCKET_KEYS {
            self.set(place, keys, overlay);
            return Ok(());
        }
        let first = self.bucket(place).0.clone();
        let end = self.next(place).map(|next| self.bucket(next).0.clone());
        let half = keys / 2;
        let rows = Overlaid { base, overlay };
        let middle = nth(&rows, &first, end.as_deref(), half)?;
        self.set(place, half, overlay);
        self.insert(place, (middle, keys - half), overlay);
        Ok(())
    }

    /// Accounts for a key that is gone.
    pub fn deleted(&mut self, overlay: &mut Overlay, key: &[u8]) -> Result<(), Error> {
        let place = self.place(key);
        let keys = self.bucket(place).1.checked_sub(1).ok_or_else(|| {
            Error::Damaged("a bucket of family count holds fewer keys than there are".to_owned())
        })?;
        self.set(place, keys, overlay);
        if keys >= SPARSE_KEYS {
            return Ok(());
        }
        if let Some(next) = self.next(place) {
            let joined = keys + self.bucket(next).1;
            if joined <= JOINED_KEYS {
                self.remove(next, overlay);
                self.set(place, joined, overlay);
            }
        }
        Ok(())
    }

    fn chunk_mut(&mut self, at: usize) -> &mut Chunk {
        Arc::make_mut(&mut Arc::make_mut(&mut self.chunks)[at])
    }

    fn set(&mut self, place: Place, keys: u32, overlay: &mut Overlay) {
        let chunk = self.chunk_mut(place.chunk);
        let bucket = &mut chunk.buckets[place.bucket];
        chunk.keys = chunk.keys - u64::from(bucket.1) + u64::from(keys);
        bucket.1 = keys;
        let first = bucket.0.clone();
        overlay.put(Family::Count, first, encode(keys));
    }

    fn insert(&mut self, behind: Place, bucket: Bucket, overlay: &mut Overlay) {
        overlay.put(Family::Count, bucket.0.clone(), encode(bucket.1));
        let chunk = self.chunk_mut(behind.chunk);
        chunk.keys += u64::from(bucket.1);
        chunk.buckets.insert(behind.bucket + 1, bucket);
        if chunk.buckets.len() > CHUNK_BUCKETS {
            let tail = Chunk::of(chunk.buckets.split_off(CHUNK_BUCKETS / 2));
            chunk.keys -= tail.keys;
            Arc::make_mut(&mut self.chunks).insert(behind.chunk + 1, Arc::new(tail));
        }
    }

    fn remove(&mut self, place: Place, overlay: &mut Overlay) {
        let chunk = self.chunk_mut(place.chunk);
        let (first, keys) = chunk.buckets.remove(place.bucket);
        chunk.keys -= u64::from(keys);
        let empty = chunk.buckets.is_empty();
        overlay.delete(Family::Count, first);
        if empty {
            Arc::make_mut(&mut self.chunks).remove(place.chunk);
        }
    }
}

impl Chunk {
    fn of(buckets: Vec<Bucket>) -> Self {
        let keys = buckets.iter().map(|(_, keys)| u64::from(*keys)).sum();
        Self { buckets, keys }
    }
}

/// The value of a row.
pub(crate) fn encode(keys: u32) -> Bytes {
    Bytes::copy_from_slice(&keys.to_be_bytes())
}

fn scan_count<R: Read>(rows: &R, lower: &[u8], upper: &[u8]) -> Result<u64, Error> {
    if lower == upper {
        return Ok(0);
    }
    let mut keys = 0;
    let mut cursor = rows.scan(Family::Cur, lower, Some(upper), Direction::Ascending)?;
    while cursor.valid() {
        keys += 1;
        cursor.next()?;
    }
    Ok(keys)
}

/// The key that has `n` keys before it in the range.
fn nth<R: Read>(rows: &R, lower: &[u8], upper: Option<&[u8]>, n: u32) -> Result<Bytes, Error> {
    let mut cursor = rows.scan(Family::Cur, lower, upper, Direction::Ascending)?;
    for _ in 0..n {
        cursor.next()?;
    }
    if !cursor.valid() {
        let what = "a bucket of family count says more keys than there are";
        return Err(Error::Damaged(what.to_owned()));
    }
    Ok(Bytes::copy_from_slice(cursor.key()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{engine::Engine, mem::MemEngine};

    fn key(n: u32) -> Vec<u8> {
        format!("k{n:05}").into_bytes()
    }

    #[test]
    fn counts_are_those_of_a_set_through_growth_shrinking_and_restart() {
        let engine = MemEngine::default();
        let mut counts = Counts::load(&engine).unwrap();
        let mut set = BTreeSet::new();
        let mut rng = StdRng::seed_from_u64(7);
        // Grows to where buckets and chunks have split, then shrinks to where they have joined.
        for round in 0..180 {
            let grow = if round < 60 { 0.9 } else { 0.02 };
            let mut overlay = Overlay::default();
            for _ in 0..4000 {
                let key = key(rng.random_range(0..80_000));
                if rng.random_bool(grow) {
                    if set.insert(key.clone()) {
                        overlay.put(Family::Cur, key.clone().into(), Bytes::new());
                        counts.created(&engine, &mut overlay, &key).unwrap();
                    }
                } else if set.remove(&key) {
                    overlay.delete(Family::Cur, key.clone().into());
                    counts.deleted(&mut overlay, &key).unwrap();
                }
            }
            engine.write(&overlay.into_batch()).unwrap();
            if round % 7 == 0 {
                counts = Counts::load(&engine).unwrap();
            }
            assert_eq!(counts.total(), set.len() as u64);
            for _ in 0..5 {
                let (a, b) = (rng.random_range(0..80_000), rng.random_range(0..80_000));
                let (lower, upper) = (key(a), key(b));
                let expected = if a < b {
                    set.range(lower.clone()..upper.clone()).count()
                } else {
                    0
                };
                let counted = counts.count(&engine, &lower, Some(&upper)).unwrap();
                assert_eq!(counted, expected as u64);
                let counted = counts.count(&engine, &lower, None).unwrap();
                assert_eq!(counted, set.range(lower..).count() as u64);
            }
        }
        assert!(set.len() < 8000);
        let buckets: usize = counts.chunks.iter().map(|chunk| chunk.buckets.len()).sum();
        assert!(buckets < 200, "{buckets} buckets for {} keys", set.len());
    }
}
