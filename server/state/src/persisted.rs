//! What a crash at this moment would leave of the state, for whoever shortens the log.

use bytes::Bytes;
use mvcc::{Engine, Family};
use proto::raftpb::ConfState;
use serde::Deserialize;

use crate::{
    fatal::Fatal,
    machine::{Applied, CONF_STATE, CONSISTENT_INDEX, TERM, number},
};

/// The durable state's place in the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Persisted {
    /// The last entry in it.
    pub applied: Applied,
    /// The membership as of that entry.
    pub conf_state: ConfState,
}

/// The place in the log of what the engine has made durable; `None` before the first flush.
///
/// # Errors
/// The engine's, or damage.
pub fn persisted<E: Engine>(engine: &E) -> Result<Option<Persisted>, Fatal> {
    let row = |key| engine.persisted(Family::Meta, key);
    // Read one by one, so that a flush in between can mix two states; the index is in all of them.
    loop {
        let Some(index) = row(CONSISTENT_INDEX)? else {
            return Ok(None);
        };
        let (term, conf_state) = (row(TERM)?, row(CONF_STATE)?);
        if row(CONSISTENT_INDEX)?.as_ref() != Some(&index) {
            continue;
        }
        let conf_state = match conf_state {
            Some(json) => conf_state_of(&json)?,
            None => ConfState::default(),
        };
        let applied = Applied {
            index: number(CONSISTENT_INDEX, &index)?,
            term: number(TERM, &term.unwrap_or_default())?,
        };
        return Ok(Some(Persisted {
            applied,
            conf_state,
        }));
    }
}

/// The place in the log of etcd's rows of bucket `meta`; `None` when they do not say it.
pub fn applied_of(meta: &[(Bytes, Bytes)]) -> Option<Applied> {
    let row = |key: &[u8]| meta.iter().find(|(found, _)| *found == key);
    let number = |key| -> Option<u64> {
        let (_, row) = row(key)?;
        Some(u64::from_be_bytes(row[..].try_into().ok()?))
    };
    Some(Applied {
        index: number(CONSISTENT_INDEX)?,
        term: number(TERM).unwrap_or_default(),
    })
}

/// etcd's JSON form of raft's membership.
#[derive(Deserialize)]
struct Row {
    #[serde(default)]
    voters: Vec<u64>,
    #[serde(default)]
    learners: Vec<u64>,
}

fn conf_state_of(json: &[u8]) -> Result<ConfState, Fatal> {
    let row: Row = serde_json::from_slice(json)
        .map_err(|error| Fatal::Store(format!("the row confState of family meta: {error}")))?;
    Ok(ConfState {
        voters: row.voters,
        learners: row.learners,
        auto_leave: Some(false),
        ..ConfState::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcds_form_of_the_membership_is_read() {
        let json = br#"{"voters":[10276657743932975437,2],"learners":[3],"auto_leave":false}"#;
        let state = conf_state_of(json).unwrap();
        assert_eq!(state.voters, [10_276_657_743_932_975_437, 2]);
        assert_eq!(state.learners, [3]);
        assert!(conf_state_of(b"{").is_err());
    }
}
