//! The JSON values of a body, one after the other, however its bytes come.

use bytes::{Buf, Bytes, BytesMut};

use crate::{
    Error,
    scan::{Fed, Scanner},
};

/// Values that are read from pieces. No more than `limit` bytes of one are kept.
pub(crate) struct Values {
    buffer: BytesMut,
    /// How much of the buffer the scanner has seen.
    scanned: usize,
    scanner: Scanner,
    limit: usize,
}

impl Values {
    pub fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            scanned: 0,
            scanner: Scanner::new(),
            limit,
        }
    }

    /// Takes a piece of the body.
    pub fn push(&mut self, piece: Bytes) {
        self.buffer.extend_from_slice(&piece);
    }

    /// The next value that is whole, without space around it.
    ///
    /// # Errors
    /// When what is there is no JSON, or too long; nothing can be read behind that.
    pub fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while let Some(&byte) = self.buffer.get(self.scanned) {
            if !self.scanner.began() && byte.is_ascii_whitespace() {
                // Space before a value takes no room. Other bytes than JSON's are refused below.
                self.scanner.feed(byte).map_err(Error::Syntax)?;
                self.buffer.advance(1);
                continue;
            }
            let fed = self.scanner.feed(byte).map_err(Error::Syntax)?;
            match fed {
                Fed::More => self.scanned += 1,
                Fed::Last => return Ok(Some(self.take(self.scanned + 1))),
                Fed::Behind => return Ok(Some(self.take(self.scanned))),
            }
        }
        match self.buffer.len() > self.limit {
            true => Err(Error::TooLong(self.limit)),
            false => Ok(None),
        }
    }

    /// The last value, when no more comes.
    ///
    /// # Errors
    /// When it is not whole.
    pub fn end(&mut self) -> Result<Option<Bytes>, Error> {
        if !self.scanner.began() {
            return Ok(None);
        }
        match self.scanner.may_end() {
            true => Ok(Some(self.take(self.scanned))),
            false => Err(Error::Syntax("unexpected EOF".to_owned())),
        }
    }

    fn take(&mut self, length: usize) -> Bytes {
        self.scanned = 0;
        self.scanner = Scanner::new();
        self.buffer.split_to(length).freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str, step: usize) -> Vec<String> {
        let mut values = Values::new(100);
        let mut found = Vec::new();
        for piece in text.as_bytes().chunks(step) {
            values.push(Bytes::copy_from_slice(piece));
            while let Some(value) = values.next().unwrap() {
                found.push(String::from_utf8(value.to_vec()).unwrap());
            }
        }
        let last = values.end().unwrap();
        found.extend(last.map(|value| String::from_utf8(value.to_vec()).unwrap()));
        found
    }

    #[test]
    fn values_are_found_in_any_pieces() {
        for step in 1..20 {
            let found = all("  {\"a\":1}\n{}[1]12 true \"x\"7", step);
            let expected = ["{\"a\":1}", "{}", "[1]", "12", "true", "\"x\"", "7"];
            assert_eq!(found, expected, "{step}");
        }
        assert!(all(" \n", 1).is_empty());
    }

    #[test]
    fn space_takes_no_room_and_a_value_has_its_bound() {
        let mut values = Values::new(100);
        for _ in 0..1000 {
            values.push(Bytes::from_static(b"   "));
            assert!(values.next().unwrap().is_none());
        }
        assert!(values.buffer.is_empty());
        values.push(Bytes::from(vec![b'['; 101]));
        assert!(matches!(values.next(), Err(Error::TooLong(100))));
    }
}
