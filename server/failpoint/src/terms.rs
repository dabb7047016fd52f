//! gofail's terms: `<term> ("->" <term>)*`, each `(<float>"%" | <int>"*")* <act> ["("<value>")"]`.
//! The first term that its modifiers allow is done.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::{Act, die};

/// What a point was told.
pub(crate) struct Terms {
    text: String,
    state: Mutex<State>,
}

struct State {
    chain: Vec<Term>,
    /// How often a term was done.
    count: u64,
}

#[derive(Debug, PartialEq)]
struct Term {
    modifiers: Vec<Modifier>,
    action: Action,
    value: Value,
}

#[derive(Debug, PartialEq)]
enum Modifier {
    /// So many times more.
    Count(u64),
    /// With this probability, from 0 to 1.
    Chance(f64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Off,
    Return,
    Sleep,
    Panic,
    Print,
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    None,
    Text(String),
    Number(u64),
    Flag(bool),
}

/// gofail's actions but `break`, which would start a debugger.
const ACTIONS: [(&str, Action); 5] = [
    ("off", Action::Off),
    ("return", Action::Return),
    ("sleep", Action::Sleep),
    ("panic", Action::Panic),
    ("print", Action::Print),
];

impl Terms {
    pub fn parse(text: &str) -> Option<Self> {
        let mut chain = Vec::new();
        let mut rest = text;
        loop {
            let (term, after) = Term::parse(rest)?;
            chain.push(term);
            match after {
                "" => break,
                after => rest = after.strip_prefix("->")?,
            }
        }
        Some(Self {
            text: text.to_owned(),
            state: Mutex::new(State { chain, count: 0 }),
        })
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn count(&self) -> u64 {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .count
    }

    /// What is to be done now; a `panic` is done here.
    pub fn eval(&self, name: &str) -> Act {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(position) = state.chain.iter_mut().position(Term::allows) else {
            return Act::Nothing;
        };
        state.count += 1;
        state.chain[position].act(name)
    }
}

impl Term {
    fn parse(text: &str) -> Option<(Self, &str)> {
        let (modifiers, text) = modifiers(text);
        let (action, text) = ACTIONS
            .iter()
            .find_map(|(name, action)| Some((*action, text.strip_prefix(name)?)))?;
        let (value, text) = match text.strip_prefix('(') {
            Some(inner) => value(inner)?,
            None => (Value::None, text),
        };
        let term = Self {
            modifiers,
            action,
            value,
        };
        // gofail takes such a sleep and passes over it.
        let sleeps = term.action != Action::Sleep || term.duration().is_some();
        sleeps.then_some((term, text))
    }

    /// In turn, as gofail asks them: a count is used up before a chance behind it is drawn.
    fn allows(&mut self) -> bool {
        self.modifiers.iter_mut().all(|modifier| match modifier {
            Modifier::Count(0) => false,
            Modifier::Count(left) => {
                *left -= 1;
                true
            }
            Modifier::Chance(chance) => random() <= *chance,
        })
    }

    fn duration(&self) -> Option<Duration> {
        match &self.value {
            Value::Number(millis) => Some(Duration::from_millis(*millis)),
            Value::Text(text) => duration(text),
            Value::None | Value::Flag(_) => None,
        }
    }

    fn text(&self) -> Option<String> {
        match &self.value {
            Value::None => None,
            Value::Text(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Flag(flag) => Some(flag.to_string()),
        }
    }

    fn act(&self, name: &str) -> Act {
        match self.action {
            Action::Off => Act::Nothing,
            Action::Return => Act::Return(self.text()),
            Action::Sleep => self.duration().map_or(Act::Nothing, Act::Sleep),
            Action::Panic => die(name, self.text().as_deref()),
            Action::Print => {
                println!("failpoint print: {name}");
                Act::Nothing
            }
        }
    }
}

fn modifiers(mut text: &str) -> (Vec<Modifier>, &str) {
    let mut found = Vec::new();
    loop {
        let digits = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, rest) = text.split_at(digits);
        let modifier = match rest.chars().next() {
            Some('*') => number.parse().ok().map(Modifier::Count),
            // gofail takes a chance only with a point in it, and so do its users.
            Some('%') if number.contains('.') => {
                let percent = number.parse::<f64>().ok();
                percent.map(|percent| Modifier::Chance(percent / 100.0))
            }
            _ => None,
        };
        let Some(modifier) = modifier else {
            return (found, text);
        };
        found.push(modifier);
        text = &rest[1..];
    }
}

/// A value and what is behind its bracket.
fn value(text: &str) -> Option<(Value, &str)> {
    if let Some(quoted) = text.strip_prefix('"') {
        let (inner, rest) = quoted.split_once('"')?;
        return Some((Value::Text(inner.to_owned()), rest.strip_prefix(')')?));
    }
    let (inner, rest) = text.split_once(')')?;
    let value = match inner {
        "" => Value::None,
        "true" => Value::Flag(true),
        "false" => Value::Flag(false),
        number => Value::Number(number.parse().ok()?),
    };
    Some((value, rest))
}

/// A duration as Go writes it: `1m30s`, `1.5s`, `20ms`.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let scale = match &rest[..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds += number * scale;
        rest = &rest[unit..];
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(seconds).ok())?
}

/// From 0 up to 1. The standard library's own randomness is good enough for a coin.
fn random() -> f64 {
    let bits = RandomState::new().build_hasher().finish() >> 11;
    bits as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(text: &str) -> Option<Vec<Term>> {
        let terms = Terms::parse(text)?;
        Some(terms.state.into_inner().unwrap().chain)
    }

    #[test]
    fn terms_are_gofails() {
        let term = |modifiers, action, value| Term {
            modifiers,
            action,
            value,
        };
        assert_eq!(
            chain("panic"),
            Some(vec![term(vec![], Action::Panic, Value::None)])
        );
        assert_eq!(
            chain(r#"50.0%3*return("hello")->sleep(100)->off"#),
            Some(vec![
                term(
                    vec![Modifier::Chance(0.5), Modifier::Count(3)],
                    Action::Return,
                    Value::Text("hello".to_owned())
                ),
                term(vec![], Action::Sleep, Value::Number(100)),
                term(vec![], Action::Off, Value::None),
            ])
        );
        for good in [
            "return()",
            "return(true)",
            "return(7)",
            "print",
            r#"sleep("1m1.5s")"#,
        ] {
            assert!(chain(good).is_some(), "{good}");
        }
        for bad in [
            "",
            "nothing",
            "panic->",
            "->panic",
            "panic off",
            "3*",
            "50%panic",
            "sleep",
            r#"sleep("soon")"#,
            "return(",
            r#"return("x)"#,
            "return(x)",
            "break",
        ] {
            assert!(chain(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn counts_run_out_and_chances_are_drawn() {
        let terms = Terms::parse("2*return(1)->0.0%return(2)->100.0%return(3)").unwrap();
        let texts: Vec<_> = (0..4)
            .map(|_| match terms.eval("x") {
                Act::Return(text) => text.unwrap(),
                _ => String::new(),
            })
            .collect();
        assert_eq!(texts, ["1", "1", "3", "3"]);
        assert_eq!(terms.count(), 4);
        let terms = Terms::parse("50.0%return").unwrap();
        let returned = (0..1000).filter(|_| matches!(terms.eval("x"), Act::Return(_)));
        assert!((200..800).contains(&returned.count()));
    }

    #[test]
    fn durations_are_gos() {
        for (text, millis) in [
            ("5s", 5000),
            ("1h", 3_600_000),
            ("1m1.5s", 61_500),
            ("0", 0),
        ] {
            assert_eq!(
                duration(text),
                Some(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for bad in ["", "5", "s", "5 s", "-1s", "1d"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
