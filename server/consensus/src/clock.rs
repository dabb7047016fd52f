//! When elections begin.
//!
//! raft-rs draws its timeouts from the thread's random numbers. So that a run can be repeated, its
//! draw is pinned to one value, the largest, and this clock lets it pass earlier.

/// Of the ticks between two polls, this share of an election timeout counts: after a pause of the
/// process the caller's ticks come in a burst, before the messages that waited.
const BURST_DIVISOR: usize = 2;

#[derive(Debug)]
pub(crate) struct Clock {
    election_ticks: usize,
    timeout: usize,
    random: u64,
    burst: usize,
}

impl Clock {
    pub(crate) fn new(election_ticks: usize, seed: u64) -> Self {
        let mut clock = Self {
            election_ticks,
            timeout: election_ticks,
            random: seed,
            burst: 0,
        };
        clock.draw();
        clock
    }

    /// What raft-rs is told: its own timeout is always this, and never earlier than ours.
    pub(crate) fn pinned(election_ticks: usize) -> usize {
        2 * election_ticks - 1
    }

    /// Whether this tick counts.
    pub(crate) fn admits(&mut self) -> bool {
        self.burst += 1;
        self.burst <= (self.election_ticks / BURST_DIVISOR).max(1)
    }

    pub(crate) fn polled(&mut self) {
        self.burst = 0;
    }

    /// Whether a member that has waited for `elapsed` ticks stands for election with the next one.
    /// `alone` is a member whose own vote is a majority: nobody is worth waiting for.
    pub(crate) fn runs_out(&self, elapsed: usize, alone: bool) -> bool {
        alone || elapsed + 1 >= self.timeout
    }

    /// The next wait, from one up to two election timeouts, exclusively.
    pub(crate) fn draw(&mut self) {
        // splitmix64: one multiplication chain, good enough to spread members.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let spread = (z ^ (z >> 31)) % self.election_ticks as u64;
        self.timeout = self.election_ticks + spread as usize;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_spread_over_one_to_two_elections_and_repeat_with_the_seed() {
        let draws = |seed| {
            let mut clock = Clock::new(10, seed);
            let mut all = Vec::new();
            for _ in 0..200 {
                clock.draw();
                all.push(clock.timeout);
            }
            all
        };
        assert_eq!(draws(7), draws(7));
        assert_ne!(draws(7), draws(8));
        let all = draws(7);
        assert!(all.iter().all(|timeout| (10..20).contains(timeout)));
        assert!((10..20).all(|timeout| all.contains(&timeout)));
        assert_eq!(Clock::pinned(10), 19);
    }

    #[test]
    fn a_burst_of_ticks_counts_for_half_an_election() {
        let mut clock = Clock::new(10, 1);
        let counted = (0..1000).filter(|_| clock.admits()).count();
        assert_eq!(counted, 5);
        clock.polled();
        assert!(clock.admits());
    }
}
