//! Finds the watchers of a key.

use std::collections::BTreeMap;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use crate::watcher::{Keys, WatcherKey};

/// Watchers by what they watch. A key is found in constant time; of ranges all that begin before
/// the key are looked at.
#[derive(Debug, Default)]
pub(crate) struct Index {
    keys: FxHashMap<Bytes, Vec<WatcherKey>>,
    ranges: BTreeMap<Bytes, Vec<(WatcherKey, Option<Bytes>)>>,
}

impl Index {
    pub fn insert(&mut self, watcher: WatcherKey, keys: &Keys) {
        match keys {
            Keys::One(key) => self.keys.entry(key.clone()).or_default().push(watcher),
            Keys::Range { lower, upper } => {
                let same_start = self.ranges.entry(lower.clone()).or_default();
                same_start.push((watcher, upper.clone()));
            }
        }
    }

    pub fn remove(&mut self, watcher: WatcherKey, keys: &Keys) {
        match keys {
            Keys::One(key) => {
                if let Some(watchers) = self.keys.get_mut(key) {
                    watchers.retain(|other| *other != watcher);
                    if watchers.is_empty() {
                        self.keys.remove(key);
                    }
                }
            }
            Keys::Range { lower, .. } => {
                if let Some(watchers) = self.ranges.get_mut(lower) {
                    watchers.retain(|(other, _)| *other != watcher);
                    if watchers.is_empty() {
                        self.ranges.remove(lower);
                    }
                }
            }
        }
    }

    /// Calls `found` with every watcher of the key.
    pub fn find(&self, key: &Bytes, mut found: impl FnMut(WatcherKey)) {
        for watcher in self.keys.get(key).into_iter().flatten() {
            found(*watcher);
        }
        for (_, same_start) in self.ranges.range::<Bytes, _>(..=key) {
            for (watcher, upper) in same_start {
                if upper.as_ref().is_none_or(|upper| key < upper) {
                    found(*watcher);
                }
            }
        }
    }
}
