//! Finds the watchers of a key.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::watcher::{Interest, Keys, WatcherKey};

/// Names an interest that synced watchers have; never used twice.
pub(crate) type InterestKey = u64;

/// Watchers by what they want. Those of equal interest are one entry, however many they are. A key
/// is found in constant time; of ranges all that begin before the key are looked at.
#[derive(Debug, Default)]
pub(crate) struct Index {
    next_key: InterestKey,
    interests: FxHashMap<Arc<Interest>, InterestKey>,
    groups: FxHashMap<InterestKey, Group>,
    keys: FxHashMap<Bytes, Vec<InterestKey>>,
    ranges: BTreeMap<Bytes, Vec<(InterestKey, Option<Bytes>)>>,
}

/// The watchers of one interest; never empty.
#[derive(Debug)]
pub(crate) struct Group {
    pub interest: Arc<Interest>,
    pub watchers: FxHashSet<WatcherKey>,
}

impl Index {
    pub fn insert(&mut self, watcher: WatcherKey, interest: &Arc<Interest>) {
        if let Some(group) = self.group_of(interest) {
            group.watchers.insert(watcher);
            return;
        }
        self.next_key += 1;
        let key = self.next_key;
        self.interests.insert(Arc::clone(interest), key);
        let group = Group {
            interest: Arc::clone(interest),
            watchers: std::iter::once(watcher).collect(),
        };
        self.groups.insert(key, group);
        match &interest.keys {
            Keys::One(one) => self.keys.entry(one.clone()).or_default().push(key),
            Keys::Range { lower, upper } => {
                let same_start = self.ranges.entry(lower.clone()).or_default();
                same_start.push((key, upper.clone()));
            }
        }
    }

    pub fn remove(&mut self, watcher: WatcherKey, interest: &Interest) {
        let Some(group) = self.group_of(interest) else {
            return;
        };
        group.watchers.remove(&watcher);
        if group.watchers.is_empty() {
            self.forget(interest);
        }
    }

    /// The watchers of an interest.
    pub fn group(&self, key: InterestKey) -> Option<&Group> {
        self.groups.get(&key)
    }

    /// Calls `found` with every interest in the key.
    pub fn find(&self, key: &Bytes, mut found: impl FnMut(InterestKey)) {
        for interest in self.keys.get(key).into_iter().flatten() {
            found(*interest);
        }
        for (_, same_start) in self.ranges.range::<Bytes, _>(..=key) {
            for (interest, upper) in same_start {
                if upper.as_ref().is_none_or(|upper| key < upper) {
                    found(*interest);
                }
            }
        }
    }

    fn group_of(&mut self, interest: &Interest) -> Option<&mut Group> {
        let key = self.interests.get(interest)?;
        self.groups.get_mut(key)
    }

    /// Drops an interest that nobody has any more.
    fn forget(&mut self, interest: &Interest) {
        let Some(key) = self.interests.remove(interest) else {
            return;
        };
        self.groups.remove(&key);
        match &interest.keys {
            Keys::One(one) => {
                if let Some(interests) = self.keys.get_mut(one) {
                    interests.retain(|other| *other != key);
                    if interests.is_empty() {
                        self.keys.remove(one);
                    }
                }
            }
            Keys::Range { lower, .. } => {
                if let Some(interests) = self.ranges.get_mut(lower) {
                    interests.retain(|(other, _)| *other != key);
                    if interests.is_empty() {
                        self.ranges.remove(lower);
                    }
                }
            }
        }
    }
}
