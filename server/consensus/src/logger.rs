//! raft-rs logs with slog; the rest of the tree with tracing.

use slog::{Drain, KV, Key, Level, Logger, Never, OwnedKVList, Record, Serializer};
use std::fmt::{Arguments, Write};

/// A logger that hands raft's elections, refusals and panics on. What it says about each message
/// is dropped unformatted.
pub(crate) fn logger() -> Logger {
    Logger::root(Tracing, slog::o!())
}

struct Tracing;

impl Drain for Tracing {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _values: &OwnedKVList) -> Result<(), Never> {
        if !record.level().is_at_least(Level::Info) {
            return Ok(());
        }
        let mut text = Text(record.msg().to_string());
        // Formatting into a string cannot fail.
        let _ = record.kv().serialize(record, &mut text);
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "raft", "{}", text.0),
            Level::Warning => tracing::warn!(target: "raft", "{}", text.0),
            _ => tracing::info!(target: "raft", "{}", text.0),
        }
        Ok(())
    }
}

struct Text(String);

impl Serializer for Text {
    fn emit_arguments(&mut self, key: Key, value: &Arguments<'_>) -> slog::Result {
        write!(self.0, ", {key}: {value}").map_err(slog::Error::Fmt)
    }
}
