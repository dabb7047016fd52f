//! The order in which Go's `sort.Sort` leaves permissions of equal keys. It is not stable, etcd
//! stores what it leaves, and a grant replaces the first permission of its key: members that order
//! them in another way would permit other things.
//!
//! The algorithm is pattern-defeating quicksort with Go's constants, which decide about the result.

use proto::authpb::Permission;

/// Up to so many are sorted by insertion.
const INSERTION: usize = 12;
/// From so many on elements out of place are shifted, and pivots are medians of medians.
const LONG: usize = 50;
/// Elements out of place that are shifted, at most.
const SHIFTS: usize = 5;
/// Swaps of a choice of pivots in falling order.
const ALL_SWAPPED: usize = 12;

/// Sorts permissions by their keys as Go does.
pub(super) fn sort(permissions: &mut [Permission]) {
    let limit = usize::BITS - permissions.len().leading_zeros();
    Sort(permissions).quick(0, limit);
}

/// A part of what is sorted. The element in front of it, if there is one, is no greater than any in it.
struct Sort<'a>(&'a mut [Permission]);

impl Sort<'_> {
    fn less(&self, a: usize, b: usize) -> bool {
        self.0[a].key < self.0[b].key
    }

    /// Sorts what begins at `from`.
    fn quick(&mut self, mut from: usize, mut limit: u32) {
        let mut to = self.0.len();
        let (mut balanced, mut partitioned) = (true, true);
        loop {
            let length = to - from;
            if length <= INSERTION {
                return self.insertion(from, to);
            }
            if limit == 0 {
                return self.heap(from, to);
            }
            if !balanced {
                self.shuffle(from, length);
                limit -= 1;
            }
            let (mut pivot, swaps) = self.pivot(from, length);
            if swaps == ALL_SWAPPED {
                self.0[from..to].reverse();
                pivot = (to - 1) - (pivot - from);
            }
            let rising = swaps == 0 || swaps == ALL_SWAPPED;
            if balanced && partitioned && rising && self.shift(from, to) {
                return;
            }
            if from > 0 && !self.less(from - 1, pivot) {
                from = self.split_equal(from, to, pivot);
                continue;
            }
            let middle;
            (middle, partitioned) = self.split(from, to, pivot);
            let (left, right) = (middle - from, to - middle);
            balanced = left.min(right) >= length / 8;
            if left < right {
                Sort(&mut self.0[..middle]).quick(from, limit);
                from = middle + 1;
            } else {
                Sort(&mut self.0[..to]).quick(middle + 1, limit);
                to = middle;
            }
        }
    }

    fn insertion(&mut self, from: usize, to: usize) {
        for at in from + 1..to {
            self.sink(from, at);
        }
    }

    /// Moves an element to the left, past all that are greater.
    fn sink(&mut self, from: usize, mut at: usize) {
        while at > from && self.less(at, at - 1) {
            self.0.swap(at, at - 1);
            at -= 1;
        }
    }

    fn heap(&mut self, from: usize, to: usize) {
        let length = to - from;
        for at in (0..=(length - 1) / 2).rev() {
            self.sift(from, at, length);
        }
        for end in (0..length).rev() {
            self.0.swap(from, from + end);
            self.sift(from, 0, end);
        }
    }

    fn sift(&mut self, from: usize, mut root: usize, end: usize) {
        loop {
            let mut child = 2 * root + 1;
            if child >= end {
                return;
            }
            if child + 1 < end && self.less(from + child, from + child + 1) {
                child += 1;
            }
            if !self.less(from + root, from + child) {
                return;
            }
            self.0.swap(from + root, from + child);
            root = child;
        }
    }

    /// Swaps three in the middle with others, so that no pattern makes bad pivots for ever.
    fn shuffle(&mut self, from: usize, length: usize) {
        let mut random = length as u64;
        let modulus = 1_usize << (usize::BITS - length.leading_zeros());
        let middle = length / 4 * 2;
        for at in middle - 1..=middle + 1 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let mut other = random as usize & (modulus - 1);
            if other >= length {
                other -= length;
            }
            self.0.swap(from + at, from + other);
        }
    }

    /// A pivot, and how many of those looked at were out of order.
    fn pivot(&self, from: usize, length: usize) -> (usize, usize) {
        let mut swaps = 0;
        let mut at = [1, 2, 3].map(|quarter| from + length / 4 * quarter);
        if length >= LONG {
            at = at.map(|at| self.median([at - 1, at, at + 1], &mut swaps));
        }
        (self.median(at, &mut swaps), swaps)
    }

    fn median(&self, [mut a, mut b, mut c]: [usize; 3], swaps: &mut usize) -> usize {
        let mut order = |a: &mut usize, b: &mut usize| {
            if self.less(*b, *a) {
                *swaps += 1;
                std::mem::swap(a, b);
            }
        };
        order(&mut a, &mut b);
        order(&mut b, &mut c);
        order(&mut a, &mut b);
        b
    }

    /// Tries whether it is nearly sorted, and sorts it then. A short one must be sorted already.
    fn shift(&mut self, from: usize, to: usize) -> bool {
        let mut at = from + 1;
        for _ in 0..SHIFTS {
            while at < to && !self.less(at, at - 1) {
                at += 1;
            }
            if at == to {
                return true;
            }
            if to - from < LONG {
                return false;
            }
            self.0.swap(at, at - 1);
            if at - from >= 2 {
                self.sink(0, at - 1);
            }
            let mut next = at + 1;
            while next < to && self.less(next, next - 1) {
                self.0.swap(next, next - 1);
                next += 1;
            }
        }
        false
    }

    /// Puts what is less than the pivot in front of it. Returns its place, and whether that was so.
    fn split(&mut self, from: usize, to: usize, pivot: usize) -> (usize, bool) {
        self.0.swap(from, pivot);
        let (mut left, mut right) = (from + 1, to - 1);
        let mut swapped = false;
        loop {
            while left <= right && self.less(left, from) {
                left += 1;
            }
            while left <= right && !self.less(right, from) {
                right -= 1;
            }
            if left > right {
                self.0.swap(right, from);
                return (right, !swapped);
            }
            self.0.swap(left, right);
            swapped = true;
            left += 1;
            right -= 1;
        }
    }

    /// Puts what equals the pivot in front, when nothing is less. Returns where the rest begins.
    fn split_equal(&mut self, from: usize, to: usize, pivot: usize) -> usize {
        self.0.swap(from, pivot);
        let (mut left, mut right) = (from + 1, to - 1);
        loop {
            while left <= right && !self.less(from, left) {
                left += 1;
            }
            while left <= right && self.less(from, right) {
                right -= 1;
            }
            if left > right {
                return left;
            }
            self.0.swap(left, right);
            left += 1;
            right -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Permissions with these keys, each with its place as its range end.
    fn permissions(keys: impl Iterator<Item = u8>) -> Vec<Permission> {
        let of = |(place, key): (usize, u8)| Permission {
            perm_type: 0,
            key: vec![key].into(),
            range_end: (place as u32).to_be_bytes().to_vec().into(),
        };
        keys.enumerate().map(of).collect()
    }

    /// A hash of what [`sort`] leaves of many lists.
    struct Digest(u64);

    impl Digest {
        fn add(&mut self, mut permissions: Vec<Permission>) {
            sort(&mut permissions);
            assert!(permissions.is_sorted_by(|a, b| a.key <= b.key));
            for byte in permissions.iter().flat_map(|found| &found.range_end) {
                self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
    }

    #[test]
    fn equal_keys_are_left_as_gos_sort_leaves_them() {
        let mut digest = Digest(0xcbf2_9ce4_8422_2325);
        let mut random = 1_u64;
        for length in (0..80).chain([200, 1000]) {
            for kinds in [1, 2, 7, 200] {
                let keys = (0..length).map(|_| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005);
                    random = random.wrapping_add(1);
                    ((random >> 33) % kinds) as u8
                });
                digest.add(permissions(keys));
            }
        }
        // What Go 1.26 says of the same lists.
        assert_eq!(digest.0, 0x0ab8_cef4_b118_c0a1);
        // Sorted, with one more at the end, as a grant makes it.
        for length in 1..70 {
            for new in 0..length {
                let keys = (0..length - 1).chain([new]);
                digest.add(permissions(keys.map(|key| (key / 4) as u8)));
            }
        }
        assert_eq!(digest.0, 0x3144_ca33_ca64_7334);
    }

    #[test]
    fn few_and_many_keep_their_order_and_some_do_not() {
        let places = |length: usize, key: u8| {
            let keys = (0..length - 1).map(|at| (at / 4) as u8).chain([1]);
            let mut sorted = permissions(keys);
            sort(&mut sorted);
            let of_key = sorted.iter().filter(|found| found.key[..] == [key]);
            of_key.map(|found| found.range_end[3]).collect::<Vec<u8>>()
        };
        assert_eq!(places(12, 1), [4, 5, 6, 7, 11]);
        assert_eq!(places(60, 1), [4, 5, 6, 7, 59]);
        assert_eq!(places(20, 2), [10, 9, 11, 8]);
    }
}
