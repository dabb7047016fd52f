//! Values of flags as Go writes them.

use std::time::Duration;

use url::Url;

use crate::flags::Kind;

/// Reads a boolean as Go does.
pub fn bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Reads a duration as Go does: numbers with units, as `1h30m` or `1.5s`, or `0`.
pub fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut nanos = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, tail) = tail.split_at(unit.unwrap_or(tail.len()));
        let scale = match unit {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        nanos += number.parse::<f64>().ok()? * scale;
        rest = tail;
    }
    let fits = !text.is_empty() && nanos <= i64::MAX as f64;
    fits.then(|| Duration::from_nanos(nanos as u64))
}

/// Reads URLs separated by commas: http, https or unix, with host and port and nothing behind.
///
/// # Errors
/// What is wrong, in etcd's words.
pub fn urls(text: &str) -> Result<Vec<Url>, String> {
    let mut found = Vec::new();
    for text in text
        .split(',')
        .map(str::trim)
        .filter(|text| !text.is_empty())
    {
        let url = Url::parse(text).map_err(|error| format!("parse {text:?}: {error}"))?;
        match url.scheme() {
            "http" | "https" => {
                if !has_port(text) || url.host_str().is_none() {
                    return Err(format!(
                        "URL address does not have the form \"host:port\": {text}"
                    ));
                }
                if !matches!(url.path(), "" | "/") {
                    return Err(format!("URL must not contain a path: {text}"));
                }
            }
            "unix" | "unixs" => {}
            _ => {
                return Err(format!(
                    "URL scheme must be http, https, unix, or unixs: {text}"
                ));
            }
        }
        found.push(url);
    }
    Ok(found)
}

/// Whether a URL names its port. The parser drops one that is its scheme's own.
fn has_port(url: &str) -> bool {
    let authority = url.split("://").nth(1).unwrap_or_default();
    let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
    let port = authority.rsplit_once(':').map(|(_, port)| port);
    port.is_some_and(|port| port.parse::<u16>().is_ok())
}

/// Gates that set all others of a stage that are not set by themselves.
const ALL_ALPHA: &str = "AllAlpha";
const ALL_BETA: &str = "AllBeta";
const ALPHA: &str = "ALPHA";
const BETA: &str = "BETA";
/// Members compare their keys with others' before they serve.
pub(crate) const INITIAL_CORRUPT_CHECK: &str = "InitialCorruptCheck";
/// The leader tells others what is left of leases.
pub(crate) const LEASE_CHECKPOINT: &str = "LeaseCheckpoint";
/// The leader compares what members keep of compactions.
pub(crate) const COMPACT_HASH_CHECK: &str = "CompactHashCheck";

/// A feature gate of etcd's.
pub(crate) struct Gate {
    pub name: &'static str,
    /// Beta gates are on by default, and alpha gates off.
    is_beta: bool,
    /// Whether it does anything here.
    pub works: bool,
}

const fn gate(name: &'static str, is_beta: bool, works: bool) -> Gate {
    Gate {
        name,
        is_beta,
        works,
    }
}

/// etcd's feature gates, besides those that stand for many.
pub(crate) const GATES: &[Gate] = &[
    gate(COMPACT_HASH_CHECK, false, true),
    gate("FastLeaseKeepAlive", true, false),
    gate(INITIAL_CORRUPT_CHECK, false, true),
    gate(LEASE_CHECKPOINT, false, true),
    gate("LeaseCheckpointPersist", false, false),
    gate("PriorityRequest", false, false),
    gate("SetMemberLocalAddr", false, false),
    gate("StopGRPCServiceOnDefrag", false, false),
    gate("TxnModeWriteWithSharedBuffer", true, false),
];

/// Whether a gate is open, by a list that [`problem`] has passed. One that is named is not changed
/// by those that stand for many.
pub(crate) fn is_open(gates: &str, gate: &Gate) -> bool {
    let stage = if gate.is_beta { ALL_BETA } else { ALL_ALPHA };
    let own = set(gates, gate.name);
    own.or_else(|| set(gates, stage)).unwrap_or(gate.is_beta)
}

/// What a list sets a name to; of one that comes twice the last counts.
fn set(gates: &str, name: &str) -> Option<bool> {
    let pairs = gates.split(',').filter_map(|pair| pair.split_once('='));
    let last = pairs.rev().find(|(found, _)| found.trim() == name);
    last.and_then(|(_, value)| bool(value.trim()))
}

/// All gates, those that stand for many among them: name, stage, whether it is open.
pub(crate) fn all_gates(gates: &str) -> Vec<(&'static str, &'static str, bool)> {
    // These follow nobody.
    let many = [(ALL_ALPHA, ALPHA), (ALL_BETA, BETA)];
    let many = many.map(|(name, stage)| (name, stage, set(gates, name) == Some(true)));
    let each = GATES.iter().map(|gate| {
        let stage = if gate.is_beta { BETA } else { ALPHA };
        (gate.name, stage, is_open(gates, gate))
    });
    many.into_iter().chain(each).collect()
}

/// Whether a gate is open when nobody says anything.
pub(crate) fn is_open_by_default(gate: &Gate) -> bool {
    gate.is_beta
}

/// What is wrong with a list of gates, as `Name=true,Other=false`.
fn gates_problem(text: &str) -> Option<String> {
    let pairs = text
        .split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty());
    for pair in pairs {
        let Some((name, value)) = pair.split_once('=') else {
            return Some(format!("missing bool value for {pair}"));
        };
        let known = GATES.iter().map(|gate| gate.name);
        if !known
            .chain([ALL_ALPHA, ALL_BETA])
            .any(|known| known == name.trim())
        {
            return Some(format!("unrecognized feature gate: {}", name.trim()));
        }
        if bool(value.trim()).is_none() {
            return Some(format!("invalid value of {name}={value}: parse error"));
        }
    }
    None
}

/// What is wrong with a value of a kind, in Go's words; `None` when nothing is.
pub(crate) fn problem(kind: Kind, value: &str) -> Option<String> {
    let parse_error = || "parse error".to_owned();
    match kind {
        Kind::Text => None,
        Kind::Bool => bool(value).is_none().then(parse_error),
        Kind::Int => value.parse::<i64>().is_err().then(parse_error),
        Kind::Uint => value.parse::<u64>().is_err().then(parse_error),
        Kind::Duration => duration(value).is_none().then(parse_error),
        Kind::Urls => urls(value).err(),
        Kind::Origins if value == "*" => None,
        Kind::Origins if value.is_empty() => {
            Some("URL scheme must be http, https, unix, or unixs: ; give * to allow all".to_owned())
        }
        Kind::Origins => urls(value).err(),
        Kind::Gates => gates_problem(value),
        Kind::OneOf(words) => (!words.contains(&value)).then(|| {
            let words: Vec<&str> = words.iter().copied().filter(|w| !w.is_empty()).collect();
            format!(
                "invalid value {value:?}, expected one of: {}",
                words.join(", ")
            )
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(
                duration(text),
                expected.map(Duration::from_millis),
                "{text}"
            );
        };
        check("100ms", Some(100));
        check("1h30m", Some(5_400_000));
        check("1.5s", Some(1500));
        check("10m0s", Some(600_000));
        check("0", Some(0));
        check("0s", Some(0));
        for bad in ["", "5", "5x", "-1s", "s", "1s5", "99999999h"] {
            check(bad, None);
        }
    }

    #[test]
    fn gates_are_etcds() {
        assert_eq!(
            gates_problem("InitialCorruptCheck=true, AllBeta=false"),
            None
        );
        for bad in ["Nothing=true", "AllBeta", "AllBeta=maybe"] {
            assert!(gates_problem(bad).is_some(), "{bad}");
        }
        let check = |gates: &str, name: &str, expected: bool| {
            let gate = GATES.iter().find(|gate| gate.name == name).unwrap();
            assert_eq!(is_open(gates, gate), expected, "{gates} {name}");
        };
        let all = all_gates("AllAlpha=true,InitialCorruptCheck=false");
        assert_eq!(all.len(), GATES.len() + 2);
        for expected in [
            ("AllAlpha", "ALPHA", true),
            ("AllBeta", "BETA", false),
            ("InitialCorruptCheck", "ALPHA", false),
            ("PriorityRequest", "ALPHA", true),
            ("FastLeaseKeepAlive", "BETA", true),
        ] {
            assert!(all.contains(&expected), "{expected:?}");
        }
        check("", "InitialCorruptCheck", false);
        check("", "FastLeaseKeepAlive", true);
        check("InitialCorruptCheck=true", "InitialCorruptCheck", true);
        check("InitialCorruptCheck=true", "CompactHashCheck", false);
        check("AllAlpha=true", "CompactHashCheck", true);
        check("AllAlpha=true", "FastLeaseKeepAlive", true);
        check("AllBeta=false", "FastLeaseKeepAlive", false);
        for both in [
            "AllAlpha=true, CompactHashCheck=false",
            "CompactHashCheck=f,AllAlpha=1",
        ] {
            check(both, "CompactHashCheck", false);
            check(both, "InitialCorruptCheck", true);
        }
    }

    #[test]
    fn urls_are_checked() {
        assert_eq!(urls("http://a:1,https://b:2").unwrap().len(), 2);
        assert_eq!(urls("").unwrap(), []);
        assert!(urls("https://a:443,http://[::1]:80").is_ok());
        for bad in [
            "a:1",
            "ftp://a:1",
            "http://a:1/path",
            "http://",
            "http://a",
            "http://[::1]",
            "http://a:99999",
        ] {
            assert!(urls(bad).is_err(), "{bad}");
        }
    }
}
