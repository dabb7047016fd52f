//! The network between members: who reaches whom, how fast, and what is lost.

use std::collections::{BTreeMap, BTreeSet};

use proto::raftpb::{Message, MessageType};
use rand::{Rng, rngs::StdRng};

use crate::world::{MICRO, MILLI, Time};

/// How links behave.
#[derive(Debug, Default)]
pub(crate) struct Network {
    /// Directions in which nothing arrives.
    pub cut: BTreeSet<(u64, u64)>,
    /// Directions in which everything waits until a time, and arrives at once then.
    pub clogged: BTreeMap<(u64, u64), Time>,
    /// Of a thousand messages so many are lost.
    pub lost: u32,
    /// Of a thousand so many come twice.
    pub doubled: u32,
    /// Added to the time that a message takes, at most.
    pub slow: Time,
}

/// What becomes of a message.
pub(crate) enum Fate {
    Lost,
    /// It arrives after these times, once or twice.
    Arrives(Time, Option<Time>),
}

impl Network {
    /// A network without faults.
    pub fn heal(&mut self) {
        *self = Self::default();
    }

    /// What becomes of a message that is sent now.
    pub fn fate(&self, rng: &mut StdRng, message: &Message, now: Time) -> Fate {
        let link = (message.from(), message.to());
        if self.cut.contains(&link) || rng.random_range(0..1000) < self.lost {
            return Fate::Lost;
        }
        let delay = self.delay(rng, link, now);
        // A connection delivers once; raft copes with all doubles but those of proposals.
        let may_double = message.r#type() != MessageType::MsgProp;
        let twice = may_double && rng.random_range(0..1000) < self.doubled;
        let again = twice.then(|| delay + rng.random_range(0..50 * MILLI));
        Fate::Arrives(delay, again)
    }

    fn delay(&self, rng: &mut StdRng, link: (u64, u64), now: Time) -> Time {
        let slow = match self.slow {
            0 => 0,
            slow => rng.random_range(0..slow),
        };
        let clogged = self
            .clogged
            .get(&link)
            .map_or(0, |end| end.saturating_sub(now));
        clogged + slow + rng.random_range(100 * MICRO..2 * MILLI)
    }

    /// Cuts a member off, in one direction or both.
    pub fn isolate(&mut self, id: u64, others: &[u64], from: bool, to: bool) {
        for other in others {
            if from {
                self.cut.insert((id, *other));
            }
            if to {
                self.cut.insert((*other, id));
            }
        }
    }
}
