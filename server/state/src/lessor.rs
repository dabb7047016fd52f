//! Leases and when they end. What is granted is replicated; deadlines are the leader's alone, in
//! memory, and start anew with each leader.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use bytes::Bytes;
use prost::Message;
use proto::leasepb;

use crate::error::Error;

/// The longest time to live, in seconds.
pub const MAX_TTL: i64 = 9_000_000_000;
/// Expired leases that are revoked in one go, at most.
pub const REVOKES_PER_SCAN: usize = 500;
/// Leases that may end within one second after a change of leader.
const EXPIRIES_PER_SECOND: u32 = 750;
/// Up to so many leases are not spread after a change of leader.
const SPREAD_FROM: usize = 1000;
/// How often what is left of a lease is told to all members, when that is asked for.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(300);
/// Leases of one checkpoint, at most.
pub const CHECKPOINTS_PER_ENTRY: usize = 1000;
/// How long a proposed revocation may take before it is proposed again.
const REVOKE_RETRY: Duration = Duration::from_secs(3);

/// What is known of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lease {
    /// The granted time to live, in seconds.
    ttl: i64,
    /// What was left at the last checkpoint, in seconds; 0 without one.
    remaining_ttl: i64,
    /// When it ends, on the leader.
    expiry: Option<Duration>,
    /// Its place in the queue of expiries.
    queued: Option<Duration>,
    /// Its place in the queue of checkpoints.
    checkpoint: Option<Duration>,
}

impl Lease {
    fn new(ttl: i64, remaining_ttl: i64) -> Self {
        Self {
            ttl,
            remaining_ttl,
            expiry: None,
            queued: None,
            checkpoint: None,
        }
    }

    /// For how long it lives when a leader begins to count.
    fn lives(&self) -> Duration {
        let ttl = match self.remaining_ttl {
            0 => self.ttl,
            remaining => remaining,
        };
        Duration::from_secs(ttl.max(0) as u64)
    }
}

/// What is left of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeToLive {
    /// The granted time to live, in seconds.
    pub granted: i64,
    /// Whole seconds left, rounded down; negative when it has ended.
    pub remaining: i64,
}

/// All leases. `now` is time since any fixed origin, always the same one.
#[derive(Debug, Default)]
pub struct Lessor {
    leases: HashMap<i64, Lease>,
    /// Expiries, soonest first; only on the leader.
    queue: BTreeSet<(Duration, i64)>,
    /// When what is left of a lease is to be told, soonest first; only on the leader.
    checkpoints: BTreeSet<(Duration, i64)>,
    /// Whether that is done.
    checkpointing: bool,
    primary: bool,
    min_ttl: i64,
}

impl Lessor {
    /// A lessor that grants no less than `min_ttl` seconds.
    pub fn new(min_ttl: i64) -> Self {
        Self {
            min_ttl,
            ..Self::default()
        }
    }

    /// Takes a lease from its row of the `lease` bucket.
    ///
    /// # Errors
    /// When the row is damaged.
    pub(crate) fn load(&mut self, row: &[u8]) -> Result<(), String> {
        let lease = leasepb::Lease::decode(row)
            .map_err(|error| format!("a row of family lease: {error}"))?;
        self.leases.insert(
            lease.id,
            Lease::new(lease.ttl.max(self.min_ttl), lease.remaining_ttl),
        );
        Ok(())
    }

    /// Takes all leases from their rows in place of those there are. On the leader they live for
    /// their whole time again.
    ///
    /// # Errors
    /// When a row is damaged; nothing has changed then.
    pub(crate) fn replace(&mut self, rows: &[Bytes], now: Duration) -> Result<(), String> {
        let mut next = Self::new(self.min_ttl);
        next.checkpointing = self.checkpointing;
        for row in rows {
            next.load(row)?;
        }
        if self.primary {
            next.promote(now, Duration::ZERO);
        }
        *self = next;
        Ok(())
    }

    /// Grants a lease and returns the time to live it got, in seconds.
    ///
    /// # Errors
    /// As etcd's: no ID, an ID in use, a time to live beyond [`MAX_TTL`].
    pub(crate) fn grant(&mut self, id: i64, ttl: i64, now: Duration) -> Result<i64, Error> {
        if id == 0 {
            return Err(Error::LeaseNotFound);
        }
        if ttl > MAX_TTL {
            return Err(Error::LeaseTtlTooLarge);
        }
        if self.leases.contains_key(&id) {
            return Err(Error::LeaseExist);
        }
        let ttl = ttl.max(self.min_ttl);
        self.leases.insert(id, Lease::new(ttl, 0));
        if self.primary {
            self.refresh(id, now, Duration::ZERO);
            self.plan_checkpoint(id, now);
        }
        Ok(ttl)
    }

    /// Forgets a lease.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn revoke(&mut self, id: i64) -> Result<(), Error> {
        let lease = self.leases.remove(&id).ok_or(Error::LeaseNotFound)?;
        if let Some(at) = lease.queued {
            self.queue.remove(&(at, id));
        }
        if let Some(at) = lease.checkpoint {
            self.checkpoints.remove(&(at, id));
        }
        Ok(())
    }

    /// Notes what the leader said was left of a lease. Returns whether there is such a lease.
    pub(crate) fn checkpoint(&mut self, id: i64, remaining_ttl: i64, now: Duration) -> bool {
        let Some(lease) = self.leases.get_mut(&id) else {
            return false;
        };
        lease.remaining_ttl = remaining_ttl;
        if self.primary {
            self.plan_checkpoint(id, now);
        }
        true
    }

    /// From now on the leader tells others what is left of long leases, so that the next one does not
    /// give them their whole time again.
    pub fn enable_checkpoints(&mut self) {
        self.checkpointing = true;
    }

    /// Of which leases others are to be told what is left, in seconds; at most `limit`.
    pub fn due_checkpoints(&mut self, now: Duration, limit: usize) -> Vec<(i64, i64)> {
        let mut due = Vec::new();
        while due.len() < limit {
            match self.checkpoints.first() {
                Some(&(at, id)) if at <= now => {
                    self.checkpoints.pop_first();
                    due.extend(self.left_at_checkpoint(id, now).map(|left| (id, left)));
                }
                _ => break,
            }
        }
        due
    }

    /// What is left of a lease, in seconds, rounded up. One that has its whole time needs no telling
    /// now, and one that has ended no more.
    fn left_at_checkpoint(&mut self, id: i64, now: Duration) -> Option<i64> {
        let lease = self.leases.get_mut(&id)?;
        lease.checkpoint = None;
        let left = lease.expiry?.checked_sub(now)?;
        let left = (left.as_secs() + u64::from(left.subsec_nanos() > 0)) as i64;
        let told = (1..lease.ttl).contains(&left);
        // Also if it does not get through the log.
        self.plan_checkpoint(id, now);
        told.then_some(left)
    }

    /// Whether others must forget what was told of a lease before it is renewed.
    pub fn must_forget_checkpoint(&self, id: i64) -> bool {
        let told = |lease: &Lease| lease.remaining_ttl > 0;
        self.checkpointing && self.leases.get(&id).is_some_and(told)
    }

    /// What lives no longer than an interval ends before it would be told of.
    fn plan_checkpoint(&mut self, id: i64, now: Duration) {
        let Some(lease) = self.leases.get_mut(&id).filter(|_| self.checkpointing) else {
            return;
        };
        let at = now + CHECKPOINT_INTERVAL;
        let long = lease.lives() > CHECKPOINT_INTERVAL;
        let before = std::mem::replace(&mut lease.checkpoint, long.then_some(at));
        if let Some(before) = before {
            self.checkpoints.remove(&(before, id));
        }
        if long {
            self.checkpoints.insert((at, id));
        }
    }

    /// The row of a lease.
    pub(crate) fn row(&self, id: i64) -> Option<Bytes> {
        let lease = self.leases.get(&id)?;
        let row = leasepb::Lease {
            id,
            ttl: lease.ttl,
            remaining_ttl: lease.remaining_ttl,
        };
        Some(row.encode_to_vec().into())
    }

    /// Whether there is such a lease.
    pub fn contains(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    /// How many leases there are.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// Whether this member decides when leases end.
    pub fn is_primary(&self) -> bool {
        self.primary
    }

    /// Starts a lease anew; returns its time to live in seconds. `Ok(None)` when it has ended and
    /// is about to be revoked: its end cannot be taken back, the caller waits for it.
    ///
    /// # Errors
    /// When there is none.
    pub fn renew(&mut self, id: i64, now: Duration) -> Result<Option<i64>, Error> {
        let lease = self.leases.get_mut(&id).ok_or(Error::LeaseNotFound)?;
        if lease.expiry.is_some_and(|expiry| expiry <= now) {
            return Ok(None);
        }
        lease.remaining_ttl = 0;
        let ttl = lease.ttl;
        self.refresh(id, now, Duration::ZERO);
        Ok(Some(ttl))
    }

    /// What is left of a lease.
    pub fn time_to_live(&self, id: i64, now: Duration) -> Option<TimeToLive> {
        let lease = self.leases.get(&id)?;
        let remaining = match lease.expiry {
            Some(expiry) if expiry >= now => (expiry - now).as_secs() as i64,
            // Go rounds a negative duration towards zero; what has ended is reported as -1.
            Some(_) => -1,
            None => lease.ttl,
        };
        Some(TimeToLive {
            granted: lease.ttl,
            remaining,
        })
    }

    /// All leases, the one that ends first in front.
    pub fn ids(&self) -> Vec<i64> {
        let mut ids: Vec<i64> = self.leases.keys().copied().collect();
        ids.sort_by_key(|id| {
            let expiry = self.leases.get(id).and_then(|lease| lease.expiry);
            (expiry.unwrap_or(Duration::MAX), *id)
        });
        ids
    }

    /// Leases that have ended, at most `limit`. Each comes again when it has not been revoked
    /// after a while.
    pub fn expired(&mut self, now: Duration, limit: usize) -> Vec<i64> {
        let mut ended = Vec::new();
        while ended.len() < limit {
            match self.queue.first() {
                Some(&(at, id)) if at <= now => {
                    self.enqueue(id, now + REVOKE_RETRY);
                    ended.push(id);
                }
                _ => break,
            }
        }
        ended
    }

    /// This member now leads: every lease lives for its whole time again, and `extend` longer.
    /// When many would end together, they are spread.
    pub fn promote(&mut self, now: Duration, extend: Duration) {
        self.primary = true;
        let ids: Vec<i64> = self.leases.keys().copied().collect();
        for id in ids {
            self.refresh(id, now, extend);
            self.plan_checkpoint(id, now);
        }
        if self.leases.len() >= SPREAD_FROM {
            self.spread(now, extend);
        }
    }

    /// This member no longer leads: nothing ends by its clock.
    pub fn demote(&mut self) {
        self.primary = false;
        self.queue.clear();
        self.checkpoints.clear();
        for lease in self.leases.values_mut() {
            lease.expiry = None;
            lease.queued = None;
            lease.checkpoint = None;
        }
    }

    /// The clock stood still for `pause` while leases could not be renewed: they get it back.
    pub fn forgive(&mut self, pause: Duration) {
        let queue = std::mem::take(&mut self.queue);
        for (at, id) in queue {
            if let Some(lease) = self.leases.get_mut(&id) {
                lease.expiry = lease.expiry.map(|expiry| expiry + pause);
                lease.queued = Some(at + pause);
                self.queue.insert((at + pause, id));
            }
        }
    }

    fn refresh(&mut self, id: i64, now: Duration, extend: Duration) {
        if let Some(lease) = self.leases.get_mut(&id) {
            let expiry = now + extend + lease.lives();
            lease.expiry = Some(expiry);
            self.enqueue(id, expiry);
        }
    }

    fn enqueue(&mut self, id: i64, at: Duration) {
        if let Some(lease) = self.leases.get_mut(&id) {
            if let Some(old) = lease.queued.replace(at) {
                self.queue.remove(&(old, id));
            }
            self.queue.insert((at, id));
        }
    }

    /// Lets at most [`EXPIRIES_PER_SECOND`] leases end within a second.
    fn spread(&mut self, now: Duration, extend: Duration) {
        let remaining = |lessor: &Self, id: i64| {
            let lease = lessor.leases.get(&id);
            let expiry = lease.and_then(|lease| lease.expiry).unwrap_or(now);
            expiry.saturating_sub(now)
        };
        let ids = self.ids();
        let Some(first) = ids.first() else { return };
        let mut base = remaining(self, *first);
        let mut next = base + Duration::from_secs(1);
        let mut expires = 0;
        for id in ids {
            let left = remaining(self, id);
            if left > next {
                base = left;
                next = base + Duration::from_secs(1);
                expires = 1;
                continue;
            }
            expires += 1;
            if expires <= EXPIRIES_PER_SECOND {
                continue;
            }
            let rate = Duration::from_secs(1) * expires / EXPIRIES_PER_SECOND;
            let delay = rate.saturating_sub(left - base);
            next = base + delay;
            self.refresh(id, now, delay + extend);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn leader() -> Lessor {
        let mut lessor = Lessor::new(2);
        lessor.promote(at(0), at(1));
        lessor
    }

    #[test]
    fn grants_follow_etcds_rules() {
        let mut lessor = leader();
        assert_eq!(lessor.grant(0, 5, at(0)), Err(Error::LeaseNotFound));
        assert_eq!(
            lessor.grant(1, MAX_TTL + 1, at(0)),
            Err(Error::LeaseTtlTooLarge)
        );
        assert_eq!(lessor.grant(1, 0, at(0)), Ok(2));
        assert_eq!(lessor.grant(1, 5, at(0)), Err(Error::LeaseExist));
        assert_eq!(lessor.grant(2, MAX_TTL, at(0)), Ok(MAX_TTL));
        assert_eq!(lessor.revoke(3), Err(Error::LeaseNotFound));
        assert_eq!(lessor.revoke(1), Ok(()));
        assert_eq!(lessor.ids(), [2]);
    }

    #[test]
    fn a_lease_ends_in_time_and_is_named_again_until_it_is_revoked() {
        let mut lessor = leader();
        lessor.grant(1, 5, at(0)).unwrap();
        lessor.grant(2, 10, at(0)).unwrap();
        assert!(lessor.expired(at(4), 9).is_empty());
        assert_eq!(lessor.renew(2, at(4)), Ok(Some(10)));
        assert_eq!(lessor.expired(at(5), 9), [1]);
        assert_eq!(lessor.renew(1, at(5)), Ok(None));
        assert!(lessor.expired(at(6), 9).is_empty());
        assert_eq!(lessor.expired(at(8), 9), [1]);
        lessor.revoke(1).unwrap();
        assert_eq!(lessor.renew(1, at(8)), Err(Error::LeaseNotFound));
        assert!(lessor.expired(at(13), 9).is_empty());
        assert_eq!(lessor.expired(at(14), 9), [2]);
    }

    #[test]
    fn a_new_leader_gives_every_lease_its_whole_time() {
        let mut lessor = leader();
        lessor.grant(1, 5, at(0)).unwrap();
        lessor.demote();
        assert!(lessor.expired(at(100), 9).is_empty());
        assert_eq!(lessor.time_to_live(1, at(100)).unwrap().remaining, 5);
        lessor.promote(at(100), at(1));
        assert_eq!(lessor.time_to_live(1, at(100)).unwrap().remaining, 6);
        assert!(lessor.checkpoint(1, 3, at(100)));
        lessor.promote(at(100), at(1));
        assert!(lessor.expired(at(103), 9).is_empty());
        assert_eq!(lessor.expired(at(104), 9), [1]);
        assert_eq!(lessor.time_to_live(2, at(0)), None);
    }

    #[test]
    fn a_pause_is_given_back() {
        let mut lessor = leader();
        lessor.grant(1, 5, at(0)).unwrap();
        lessor.forgive(at(60));
        assert!(lessor.expired(at(64), 9).is_empty());
        assert_eq!(lessor.renew(1, at(64)), Ok(Some(5)));
    }

    #[test]
    fn many_leases_end_spread_after_a_change_of_leader() {
        let mut lessor = Lessor::new(2);
        for id in 1..=5000 {
            lessor.grant(id, 10, at(0)).unwrap();
        }
        lessor.promote(at(0), at(0));
        let soon = lessor.expired(at(11), usize::MAX).len();
        assert!(soon < 2500, "{soon}");
        assert_eq!(lessor.expired(at(60), usize::MAX).len(), 5000);
    }

    #[test]
    fn leases_are_replaced_and_begin_anew_on_the_leader_alone() {
        let mut other = leader();
        other.grant(2, 10, at(0)).unwrap();
        other.grant(3, 20, at(0)).unwrap();
        other.checkpoint(3, 7, at(0));
        let rows = [2, 3].map(|id| other.row(id).unwrap());
        let mut lessor = leader();
        lessor.grant(1, 5, at(0)).unwrap();
        assert!(
            lessor
                .replace(&[Bytes::from_static(b"\xff")], at(9))
                .is_err()
        );
        assert!(lessor.contains(1));
        lessor.replace(&rows, at(100)).unwrap();
        assert_eq!(lessor.ids(), [3, 2]);
        assert!(lessor.expired(at(106), 9).is_empty());
        assert_eq!(lessor.expired(at(107), 9), [3]);
        let mut follower = Lessor::new(2);
        follower.grant(1, 5, at(0)).unwrap();
        follower.replace(&rows, at(100)).unwrap();
        assert!(!follower.contains(1) && !follower.is_primary());
        assert!(follower.expired(at(1000), 9).is_empty());
        assert_eq!(follower.row(3), Some(rows[1].clone()));
    }

    #[test]
    fn what_is_left_of_long_leases_is_told_at_intervals() {
        let mut lessor = Lessor::new(2);
        lessor.enable_checkpoints();
        lessor.grant(1, 1000, at(0)).unwrap();
        lessor.promote(at(0), at(0));
        lessor.grant(2, 300, at(0)).unwrap();
        lessor.grant(3, 2000, at(0)).unwrap();
        lessor.grant(4, 2000, at(0)).unwrap();
        lessor.revoke(4).unwrap();
        assert!(lessor.due_checkpoints(at(299), 9).is_empty());
        assert_eq!(lessor.due_checkpoints(at(300), 1), [(1, 700)]);
        assert_eq!(lessor.due_checkpoints(at(300), 9), [(3, 1700)]);
        assert!(lessor.due_checkpoints(at(599), 9).is_empty());
        // Once it is through the log, the next one is planned from then on.
        for (id, left) in [(1, 700), (3, 1700)] {
            assert!(lessor.checkpoint(id, left, at(301)));
            assert!(lessor.must_forget_checkpoint(id));
        }
        assert_eq!(lessor.renew(3, at(600)), Ok(Some(2000)));
        assert!(!lessor.must_forget_checkpoint(3));
        assert_eq!(lessor.due_checkpoints(at(601), 9), [(1, 399), (3, 1999)]);
        // The next leader begins with what it was told, and nothing is due on a follower.
        lessor.checkpoint(1, 399, at(601));
        lessor.demote();
        assert!(lessor.due_checkpoints(at(5000), 9).is_empty());
        lessor.promote(at(5000), at(1));
        assert_eq!(lessor.time_to_live(1, at(5000)).unwrap().remaining, 400);
        assert_eq!(lessor.time_to_live(3, at(5000)).unwrap().remaining, 2001);
    }

    #[test]
    fn nothing_is_told_unless_it_is_asked_for() {
        let mut lessor = leader();
        lessor.grant(1, 1000, at(0)).unwrap();
        lessor.checkpoint(1, 700, at(0));
        assert!(lessor.due_checkpoints(at(900), 9).is_empty());
        assert!(!lessor.must_forget_checkpoint(1));
    }

    #[test]
    fn a_lease_with_its_whole_time_is_told_of_later() {
        let mut lessor = Lessor::new(2);
        lessor.enable_checkpoints();
        lessor.grant(1, 1000, at(0)).unwrap();
        lessor.promote(at(0), at(400));
        assert!(lessor.due_checkpoints(at(300), 9).is_empty());
        assert_eq!(lessor.due_checkpoints(at(600), 9), [(1, 800)]);
    }

    #[test]
    fn a_row_is_read_as_it_was_written() {
        let mut lessor = leader();
        lessor.grant(-7, 60, at(0)).unwrap();
        lessor.checkpoint(-7, 30, at(0));
        let row = lessor.row(-7).unwrap();
        let mut other = Lessor::new(2);
        other.load(&row).unwrap();
        assert_eq!(other.row(-7), Some(row));
        assert!(other.load(b"\xff").is_err());
    }
}
