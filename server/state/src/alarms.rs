//! Alarms: each a member and a type, kept in etcd's `alarm` bucket.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message;
use proto::etcdserverpb::{AlarmMember, AlarmType};

/// The alarms that are raised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alarms {
    raised: BTreeSet<(i32, u64)>,
}

impl Alarms {
    /// From the keys of the bucket.
    ///
    /// # Errors
    /// Which row is damaged.
    pub(crate) fn load(rows: impl Iterator<Item = Bytes>) -> Result<Self, String> {
        let mut alarms = Self::default();
        for row in rows {
            let alarm = AlarmMember::decode(row)
                .map_err(|error| format!("a row of family alarm: {error}"))?;
            alarms.raised.insert((alarm.alarm, alarm.member_id));
        }
        Ok(alarms)
    }

    /// Raises an alarm; one that is raised already stays.
    pub(crate) fn raise(&mut self, member_id: u64, alarm: AlarmType) -> AlarmMember {
        self.raised.insert((alarm as i32, member_id));
        alarm_member(member_id, alarm as i32)
    }

    /// Clears an alarm; `None` when it was not raised.
    pub(crate) fn clear(&mut self, member_id: u64, alarm: AlarmType) -> Option<AlarmMember> {
        let was = self.raised.remove(&(alarm as i32, member_id));
        was.then(|| alarm_member(member_id, alarm as i32))
    }

    /// The alarms of a type; of all types for `None`.
    pub fn of(&self, alarm: AlarmType) -> Vec<AlarmMember> {
        let wanted = |of: &&(i32, u64)| alarm == AlarmType::None || of.0 == alarm as i32;
        let raised = self.raised.iter().filter(wanted);
        raised
            .map(|(alarm, id)| alarm_member(*id, *alarm))
            .collect()
    }

    /// Whether an alarm of a type is raised by anyone.
    pub fn is_raised(&self, alarm: AlarmType) -> bool {
        self.raised.iter().any(|of| of.0 == alarm as i32)
    }
}

/// The row key of an alarm.
pub(crate) fn alarm_key(alarm: &AlarmMember) -> Bytes {
    alarm.encode_to_vec().into()
}

fn alarm_member(member_id: u64, alarm: i32) -> AlarmMember {
    AlarmMember { member_id, alarm }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_are_raised_once_and_found_by_type() {
        let mut alarms = Alarms::default();
        assert_eq!(alarms.clear(1, AlarmType::Nospace), None);
        let raised = alarms.raise(1, AlarmType::Nospace);
        assert_eq!(alarms.raise(1, AlarmType::Nospace), raised);
        alarms.raise(2, AlarmType::Corrupt);
        assert_eq!(alarms.of(AlarmType::Nospace), [raised]);
        assert_eq!(alarms.of(AlarmType::None).len(), 2);
        let rows = alarms.of(AlarmType::None).into_iter();
        let rows = rows.map(|alarm| alarm_key(&alarm));
        assert_eq!(Alarms::load(rows), Ok(alarms.clone()));
        assert_eq!(alarms.clear(1, AlarmType::Nospace), Some(raised));
        assert!(!alarms.is_raised(AlarmType::Nospace));
        assert!(alarms.is_raised(AlarmType::Corrupt));
        assert!(Alarms::load([Bytes::from_static(b"\xff")].into_iter()).is_err());
    }
}
