//! Where a JSON value ends, byte by byte, by the rules and in the words of Go's encoding/json: that
//! is what reads request bodies in etcd.

/// Containers within each other, at most, as in Go.
const MAX_DEPTH: usize = 10_000;

/// What a byte did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fed {
    /// The value goes on.
    More,
    /// The value ended with this byte.
    Last,
    /// The value ended before this byte, which is none of it.
    Behind,
}

/// What a container is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Within {
    Key,
    Value,
    Element,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Value,
    /// Behind `[`.
    FirstElement,
    Key,
    /// Behind `{`.
    FirstKey,
    /// Behind a value.
    Done,
    Text,
    Escape,
    /// In `\u`, with this many digits to come.
    Hex(u8),
    /// Behind a number's `-`.
    Minus,
    /// Behind a number's leading zero.
    Zero,
    Digits,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
    /// In a word, with this many letters of it seen.
    Word(&'static str, u8),
}

/// Follows one value. It takes a constant amount of work for each byte.
#[derive(Debug)]
pub(crate) struct Scanner {
    state: State,
    within: Vec<Within>,
}

impl Scanner {
    pub fn new() -> Self {
        Self {
            state: State::Value,
            within: Vec::new(),
        }
    }

    /// Whether the value has begun: whether there was anything but white space.
    pub fn began(&self) -> bool {
        self.state != State::Value || !self.within.is_empty()
    }

    /// Whether the value is whole if nothing more comes.
    pub fn may_end(&self) -> bool {
        let number = matches!(
            self.state,
            State::Zero | State::Digits | State::Fraction | State::ExponentDigits | State::Done
        );
        number && self.within.is_empty()
    }

    /// Takes a byte.
    ///
    /// # Errors
    /// What Go says when the byte may not come here.
    pub fn feed(&mut self, byte: u8) -> Result<Fed, String> {
        let next = match self.state {
            State::Value | State::FirstElement | State::Key | State::FirstKey | State::Done
                if is_space(byte) =>
            {
                return match self.state == State::Done && self.within.is_empty() {
                    true => Ok(Fed::Behind),
                    false => Ok(Fed::More),
                };
            }
            State::FirstElement if byte == b']' => return self.done(byte),
            State::Value | State::FirstElement => self.begin(byte)?,
            State::FirstKey if byte == b'}' => {
                self.now(Within::Value);
                return self.done(byte);
            }
            State::Key | State::FirstKey if byte == b'"' => State::Text,
            State::Key | State::FirstKey => {
                return Err(wrong(byte, "looking for beginning of object key string"));
            }
            State::Done => return self.done(byte),
            State::Text => match byte {
                b'"' => State::Done,
                b'\\' => State::Escape,
                0..0x20 => return Err(wrong(byte, "in string literal")),
                _ => State::Text,
            },
            State::Escape => match byte {
                b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => State::Text,
                b'u' => State::Hex(4),
                _ => return Err(wrong(byte, "in string escape code")),
            },
            State::Hex(left) => match (byte.is_ascii_hexdigit(), left) {
                (false, _) => return Err(wrong(byte, "in \\u hexadecimal character escape")),
                (true, 1) => State::Text,
                (true, left) => State::Hex(left - 1),
            },
            State::Minus => match byte {
                b'0' => State::Zero,
                b'1'..=b'9' => State::Digits,
                _ => return Err(wrong(byte, "in numeric literal")),
            },
            State::Digits if byte.is_ascii_digit() => State::Digits,
            State::Zero | State::Digits => match byte {
                b'.' => State::Point,
                b'e' | b'E' => State::Exponent,
                _ => return self.done(byte),
            },
            State::Point if byte.is_ascii_digit() => State::Fraction,
            State::Point => return Err(wrong(byte, "after decimal point in numeric literal")),
            State::Fraction => match byte {
                b'0'..=b'9' => State::Fraction,
                b'e' | b'E' => State::Exponent,
                _ => return self.done(byte),
            },
            State::Exponent if matches!(byte, b'+' | b'-') => State::ExponentSign,
            State::Exponent | State::ExponentSign if byte.is_ascii_digit() => State::ExponentDigits,
            State::Exponent | State::ExponentSign => {
                return Err(wrong(byte, "in exponent of numeric literal"));
            }
            State::ExponentDigits if byte.is_ascii_digit() => State::ExponentDigits,
            State::ExponentDigits => return self.done(byte),
            State::Word(word, seen) => {
                let expected = word.as_bytes()[usize::from(seen)];
                if byte != expected {
                    let expected = char::from(expected);
                    let place = format!("in literal {word} (expecting '{expected}')");
                    return Err(wrong(byte, &place));
                }
                match usize::from(seen) + 1 == word.len() {
                    true => State::Done,
                    false => State::Word(word, seen + 1),
                }
            }
        };
        self.state = next;
        Ok(Fed::More)
    }

    fn begin(&mut self, byte: u8) -> Result<State, String> {
        Ok(match byte {
            b'{' => self.enter(byte, Within::Key, State::FirstKey)?,
            b'[' => self.enter(byte, Within::Element, State::FirstElement)?,
            b'"' => State::Text,
            b'-' => State::Minus,
            b'0' => State::Zero,
            b'1'..=b'9' => State::Digits,
            b't' => State::Word("true", 1),
            b'f' => State::Word("false", 1),
            b'n' => State::Word("null", 1),
            _ => return Err(wrong(byte, "looking for beginning of value")),
        })
    }

    fn enter(&mut self, byte: u8, within: Within, next: State) -> Result<State, String> {
        if self.within.len() == MAX_DEPTH {
            return Err(wrong(byte, "exceeded max depth"));
        }
        self.within.push(within);
        Ok(next)
    }

    /// What the innermost container waits for from now on.
    fn now(&mut self, within: Within) {
        if let Some(last) = self.within.last_mut() {
            *last = within;
        }
    }

    /// A byte behind a value.
    fn done(&mut self, byte: u8) -> Result<Fed, String> {
        self.state = State::Done;
        if is_space(byte) && !self.within.is_empty() {
            return Ok(Fed::More);
        }
        match (self.within.last(), byte) {
            (None, _) => return Ok(Fed::Behind),
            (Some(Within::Key), b':') => {
                self.now(Within::Value);
                self.state = State::Value;
            }
            (Some(Within::Key), _) => return Err(wrong(byte, "after object key")),
            (Some(Within::Value), b',') => {
                self.now(Within::Key);
                self.state = State::Key;
            }
            (Some(Within::Element), b',') => self.state = State::Value,
            (Some(Within::Value), b'}') | (Some(Within::Element), b']') => {
                self.within.pop();
                if self.within.is_empty() {
                    return Ok(Fed::Last);
                }
            }
            (Some(Within::Value), _) => return Err(wrong(byte, "after object key:value pair")),
            (Some(Within::Element), _) => return Err(wrong(byte, "after array element")),
        }
        Ok(Fed::More)
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

fn wrong(byte: u8, place: &str) -> String {
    format!("invalid character '{}' {place}", quoted(byte))
}

/// A byte as Go's strconv.Quote writes the character of that number.
fn quoted(byte: u8) -> String {
    match byte {
        b'\'' => "\\'".to_owned(),
        b'\\' => "\\\\".to_owned(),
        0x07 => "\\a".to_owned(),
        0x08 => "\\b".to_owned(),
        0x0c => "\\f".to_owned(),
        b'\n' => "\\n".to_owned(),
        b'\r' => "\\r".to_owned(),
        b'\t' => "\\t".to_owned(),
        0x0b => "\\v".to_owned(),
        0..0x20 | 0x7f => format!("\\x{byte:02x}"),
        // Not printable by Go's rules.
        0x80..=0xa0 | 0xad => format!("\\u{byte:04x}"),
        byte => char::from(byte).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left behind the first value, or what is wrong.
    fn first(text: &[u8]) -> Result<&[u8], String> {
        let mut scanner = Scanner::new();
        for (at, &byte) in text.iter().enumerate() {
            match scanner.feed(byte)? {
                Fed::More => {}
                Fed::Last => return Ok(&text[at + 1..]),
                Fed::Behind => return Ok(&text[at..]),
            }
        }
        match scanner.may_end() {
            true => Ok(b""),
            false => Err("unexpected EOF".to_owned()),
        }
    }

    #[test]
    fn a_value_ends_where_it_ends() {
        for (text, left) in [
            ("{}{}", "{}"),
            (r#" {"a":[1,{"b":"]}\""}],"c":null} x"#, " x"),
            ("12 3", " 3"),
            ("-0.5e+3,", ","),
            ("\"a\"\"b\"", "\"b\""),
            ("true", ""),
            ("[] ", " "),
            ("[ 1 , 2 ]", ""),
            ("0", ""),
        ] {
            assert_eq!(first(text.as_bytes()), Ok(left.as_bytes()), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_in_gos_words() {
        for (text, said) in [
            ("x", "invalid character 'x' looking for beginning of value"),
            (
                "{a",
                "invalid character 'a' looking for beginning of object key string",
            ),
            (
                "{\"a\":1,}",
                "invalid character '}' looking for beginning of object key string",
            ),
            ("{\"a\"1", "invalid character '1' after object key"),
            (
                "{\"a\":1 \"b\"",
                "invalid character '\"' after object key:value pair",
            ),
            ("[1 2]", "invalid character '2' after array element"),
            ("[1}", "invalid character '}' after array element"),
            ("\"\n\"", "invalid character '\\n' in string literal"),
            ("\"\\x\"", "invalid character 'x' in string escape code"),
            (
                "\"\\u12g",
                "invalid character 'g' in \\u hexadecimal character escape",
            ),
            ("-a", "invalid character 'a' in numeric literal"),
            (
                "1.x",
                "invalid character 'x' after decimal point in numeric literal",
            ),
            (
                "1ex",
                "invalid character 'x' in exponent of numeric literal",
            ),
            (
                "nul!",
                "invalid character '!' in literal null (expecting 'l')",
            ),
            ("tru", "unexpected EOF"),
            ("{", "unexpected EOF"),
            (
                "\u{7f}",
                "invalid character '\\x7f' looking for beginning of value",
            ),
            (
                "'",
                "invalid character '\\'' looking for beginning of value",
            ),
            ("é", "invalid character 'Ã' looking for beginning of value"),
        ] {
            assert_eq!(first(text.as_bytes()), Err(said.to_owned()), "{text}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let deep = vec![b'['; MAX_DEPTH + 1];
        assert_eq!(
            first(&deep),
            Err("invalid character '[' exceeded max depth".to_owned())
        );
    }

    proptest::proptest! {
        #[test]
        fn it_takes_what_a_json_library_takes(text in "[\\[\\]{}:,\" 0-9.eE+\\-a-z\\\\]{0,24}") {
            let whole = first(text.as_bytes()).is_ok_and(|left| {
                left.iter().all(|byte| is_space(*byte))
            });
            let taken = serde_json::from_str::<serde_json::Value>(&text);
            // serde_json alone refuses numbers that no f64 can hold, and lone surrogates.
            let out_of_range = taken.as_ref().is_err_and(|error| {
                let said = error.to_string();
                said.contains("out of range") || said.contains("surrogate")
                    || said.contains("unexpected end of hex escape")
            });
            proptest::prop_assert!(out_of_range || taken.is_ok() == whole, "{text}");
        }
    }
}
