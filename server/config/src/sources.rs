//! Where values come from: the command line, the environment, or a file alone.

use std::collections::BTreeMap;

use crate::{
    Error,
    flags::{Flag, IGNORED, Kind, all, find},
    values,
};

/// The prefix of the variables of etcd's flags.
const PREFIX: &str = "ETCD_";
/// Variables that are no flags and yet known.
const KNOWN_VARIABLES: &[&str] = &["ETCD_CONFIG_FILE", "ETCD_UNSUPPORTED_ARCH", "ETCD_VERIFY"];

/// What was given on the command line.
#[derive(Debug, Default)]
pub(crate) struct CommandLine {
    pub values: BTreeMap<&'static str, String>,
    pub config_file: Option<String>,
    pub version: bool,
    pub help: bool,
}

/// Reads the command line as Go's flag package does: one dash or two, `-x=v` or `-x v`.
pub(crate) fn command_line(args: impl Iterator<Item = String>) -> Result<CommandLine, Error> {
    let mut line = CommandLine::default();
    let mut args = args.peekable();
    while let Some(arg) = args.next() {
        let name = match arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) {
            Some("") | None => return Err(Error::Invalid(format!("{arg:?} is not a valid flag"))),
            Some(name) => name,
        };
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (name, None),
        };
        let boolean = |value: Option<String>| {
            let value = value.unwrap_or_else(|| "true".to_owned());
            values::bool(&value).ok_or_else(|| {
                let text = format!("invalid boolean value {value:?} for -{name}: parse error");
                Error::Usage(text)
            })
        };
        match name {
            "version" => line.version = boolean(value)?,
            "h" | "help" => line.help = boolean(value)?,
            "config-file" => {
                let missing = || Error::Usage("flag needs an argument: -config-file".to_owned());
                line.config_file = Some(value.or_else(|| args.next()).ok_or_else(missing)?);
            }
            ignored if IGNORED.contains(&ignored) => {
                // Such a flag takes a value, but as a switch it may also come without.
                if value.is_none() && args.peek().is_some_and(|next| !next.starts_with('-')) {
                    args.next();
                }
            }
            name => {
                let flag = find(name).ok_or_else(|| {
                    Error::Usage(format!("flag provided but not defined: -{name}"))
                })?;
                let value = match (flag.kind, value) {
                    (_, Some(value)) => value,
                    (Kind::Bool, None) => "true".to_owned(),
                    (_, None) => args
                        .next()
                        .ok_or_else(|| Error::Usage(format!("flag needs an argument: -{name}")))?,
                };
                check(flag, &value)?;
                line.values.insert(flag.name, value);
            }
        }
    }
    Ok(line)
}

fn check(flag: &Flag, value: &str) -> Result<(), Error> {
    match values::problem(flag.kind, value) {
        None => Ok(()),
        // etcd takes any text for these at first, and looks at it later.
        Some(_) if flag.name == "log-format" => Err(Error::Invalid(format!(
            "unknown log format: {value}, supported values json, console"
        ))),
        Some(_) if flag.name == "auto-compaction-mode" => Err(Error::Invalid(format!(
            "unknown auto-compaction-mode {value:?}"
        ))),
        Some(problem) if flag.kind == Kind::Bool => Err(Error::Usage(format!(
            "invalid boolean value {value:?} for -{}: {problem}",
            flag.name
        ))),
        Some(problem) => Err(Error::Usage(format!(
            "invalid value {value:?} for flag -{}: {problem}",
            flag.name
        ))),
    }
}

/// The variable of a flag.
pub(crate) fn variable(flag: &str) -> String {
    let name = flag.to_uppercase().replace('-', "_");
    match flag.starts_with("cairn-") {
        true => name,
        false => format!("{PREFIX}{name}"),
    }
}

/// Adds what the environment says. A flag and its variable together are refused: one of them was
/// meant to be gone.
pub(crate) fn environment(
    line: &mut CommandLine,
    env: &BTreeMap<String, String>,
    warnings: &mut Vec<String>,
) -> Result<(), Error> {
    for flag in all() {
        let name = variable(flag.name);
        let Some(value) = env.get(&name).filter(|value| !value.is_empty()) else {
            continue;
        };
        if line.values.contains_key(flag.name) {
            return Err(Error::Invalid(format!(
                "conflicting environment variable {name:?} is shadowed by corresponding \
                 command-line flag (either unset environment variable or disable flag)"
            )));
        }
        if let Some(problem) = values::problem(flag.kind, value) {
            return Err(Error::Invalid(format!(
                "invalid value {value:?} for {name}: {problem}"
            )));
        }
        line.values.insert(flag.name, value.clone());
    }
    for name in env.keys().filter(|name| name.starts_with(PREFIX)) {
        let known = all().any(|flag| variable(flag.name) == *name);
        if !known && !KNOWN_VARIABLES.contains(&name.as_str()) {
            warnings.push(format!("unrecognized environment variable {name}"));
        }
    }
    Ok(())
}

/// Sections of the file whose keys are flags under other names.
const CLIENT_TLS: &str = "client-transport-security";
const PEER_TLS: &str = "peer-transport-security";

/// Reads a config file: YAML, or JSON, which is YAML too. Keys are the names of flags.
pub(crate) fn file(
    text: &str,
    warnings: &mut Vec<String>,
) -> Result<BTreeMap<&'static str, String>, Error> {
    let bad = |problem: String| Error::Invalid(format!("the config file: {problem}"));
    let parsed: Option<serde_json::Map<String, serde_json::Value>> =
        serde_saphyr::from_str(text).map_err(|error| bad(error.to_string()))?;
    let mut found = BTreeMap::new();
    let mut put = |key: &str, value: &serde_json::Value| {
        let Some(flag) = find(key) else {
            warnings.push(format!("unrecognized key {key:?} in the config file"));
            return Ok(());
        };
        let value = scalar(flag.kind, value)
            .ok_or_else(|| bad(format!("the value of {key:?}: {value}")))?;
        if let Some(problem) = values::problem(flag.kind, &value) {
            return Err(bad(format!("the value of {key:?}: {problem}")));
        }
        found.insert(flag.name, value);
        Ok(())
    };
    for (key, value) in parsed.unwrap_or_default() {
        let prefix = match key.as_str() {
            CLIENT_TLS => "",
            PEER_TLS => "peer-",
            _ => {
                if !value.is_null() {
                    put(&key, &value)?;
                }
                continue;
            }
        };
        for (key, value) in value.as_object().into_iter().flatten() {
            if (prefix, key.as_str()) == ("", "allowed-cn") && !is_empty(value) {
                // Left out it would let in more than was meant.
                let problem = format!("{CLIENT_TLS}.allowed-cn is not there yet: leave it out");
                return Err(bad(problem));
            }
            let key = match (prefix, key.as_str()) {
                ("peer-", "allowed-cn") => "peer-cert-allowed-cn".to_owned(),
                ("peer-", "allowed-hostname") => "peer-cert-allowed-hostname".to_owned(),
                ("", "allowed-hostname") => "client-cert-allowed-hostname".to_owned(),
                (prefix, key) => format!("{prefix}{key}"),
            };
            if !value.is_null() {
                put(&key, value)?;
            }
        }
    }
    Ok(found)
}

/// Whether a list in the file says nothing.
fn is_empty(value: &serde_json::Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

/// A value of the file in the notation of the command line. Durations may be nanoseconds there.
fn scalar(kind: Kind, value: &serde_json::Value) -> Option<String> {
    use serde_json::Value;
    match (kind, value) {
        (Kind::Duration, Value::Number(nanos)) => Some(format!("{nanos}ns")),
        (_, Value::String(text)) => Some(text.clone()),
        (_, Value::Bool(value)) => Some(value.to_string()),
        (_, Value::Number(number)) => Some(number.to_string()),
        (_, Value::Array(list)) => {
            let list: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
            Some(list?.join(","))
        }
        _ => None,
    }
}
