//! An HTTP/1.1 client that shows what is on the wire: each piece of a stream when it comes.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};

/// How long anything may take on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);

/// One request.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
    pub body: &'a str,
}

impl<'a> Ask<'a> {
    pub fn post(path: &'a str, body: &'a str) -> Self {
        Self {
            method: "POST",
            path,
            headers: &[],
            body,
        }
    }

    pub fn of(method: &'a str, path: &'a str) -> Self {
        Self {
            method,
            path,
            headers: &[],
            body: "",
        }
    }

    pub fn with(mut self, headers: &'a [(&'a str, &'a str)]) -> Self {
        self.headers = headers;
        self
    }

    fn head(&self, port: u16) -> String {
        let Self { method, path, .. } = self;
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !self.headers.iter().any(|(name, _)| *name == "Host") {
            head += &format!("Host: 127.0.0.1:{port}\r\n");
        }
        for (name, value) in self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head
    }

    /// Asks and reads the whole answer.
    pub fn send(&self, port: u16) -> Answer {
        self.open(port).whole()
    }

    /// Asks and reads the head of the answer.
    pub fn open(&self, port: u16) -> Stream {
        let mut open = Open::new(self, port, Some(self.body.len()));
        open.send(self.body);
        open.answer()
    }

    /// Asks with a body that comes in pieces.
    pub fn begin(&self, port: u16) -> Open {
        Open::new(self, port, None)
    }
}

/// A request whose body is not at its end.
pub struct Open {
    stream: TcpStream,
    chunked: bool,
    without_body: bool,
}

impl Open {
    fn new(ask: &Ask<'_>, port: u16, length: Option<usize>) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        let length_line = match length {
            Some(0) if ask.method != "POST" => String::new(),
            Some(length) => format!("Content-Length: {length}\r\n"),
            None => "Transfer-Encoding: chunked\r\n".to_owned(),
        };
        let head = ask.head(port);
        write!(stream, "{head}{length_line}\r\n").unwrap();
        Self {
            stream,
            chunked: length.is_none(),
            without_body: ask.method == "HEAD",
        }
    }

    /// Sends a piece of the body.
    pub fn send(&mut self, piece: &str) {
        let sent = match self.chunked {
            true => write!(self.stream, "{:x}\r\n{piece}\r\n", piece.len()),
            false => write!(self.stream, "{piece}"),
        };
        // A server that refuses a request need not read all of it.
        let _ = sent;
    }

    /// Reads the head of the answer; more of the body may follow.
    pub fn answer(&self) -> Stream {
        let mut reader = BufReader::new(self.stream.try_clone().unwrap());
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1);
        let status = status.unwrap_or_else(|| panic!("no answer: {line:?}"));
        let status = status.parse().unwrap();
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            let name = name.to_ascii_lowercase();
            headers.insert(name, value.trim().to_owned());
        }
        let length = headers.get("content-length");
        let length = length.map(|length| length.parse().unwrap());
        Stream {
            status,
            chunked: headers.contains_key("transfer-encoding"),
            length: if self.without_body { Some(0) } else { length },
            headers,
            reader,
            rest: Vec::new(),
        }
    }
}

/// An answer that is not at its end.
pub struct Stream {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    reader: BufReader<TcpStream>,
    chunked: bool,
    length: Option<usize>,
    rest: Vec<u8>,
}

impl Stream {
    /// The next piece; empty at the end.
    fn piece(&mut self) -> Vec<u8> {
        if !self.chunked {
            let mut body = vec![0; self.length.take().unwrap_or_default()];
            self.reader.read_exact(&mut body).unwrap();
            return body;
        }
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        let length = usize::from_str_radix(line.trim_end(), 16);
        let length = length.unwrap_or_else(|_| panic!("broken off: {line:?}"));
        let mut piece = vec![0; length];
        self.reader.read_exact(&mut piece).unwrap();
        let mut end = String::new();
        self.reader.read_line(&mut end).unwrap();
        piece
    }

    /// The next line; `None` at the end.
    pub fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                let line = String::from_utf8(line).unwrap();
                return Some(line.trim_end().to_owned());
            }
            let piece = self.piece();
            if piece.is_empty() {
                assert!(self.rest.is_empty(), "ends within a line");
                return None;
            }
            self.rest.extend(piece);
        }
    }

    /// The head, and the whole body.
    pub fn bytes(mut self) -> (BTreeMap<String, String>, Vec<u8>) {
        let mut body = Vec::new();
        loop {
            let piece = self.piece();
            if piece.is_empty() {
                break;
            }
            body.extend(piece);
        }
        (self.headers, body)
    }

    fn whole(self) -> Answer {
        let status = self.status;
        let (headers, body) = self.bytes();
        Answer {
            status,
            headers,
            body: String::from_utf8(body).unwrap(),
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Answer {
    /// What must be equal: without the time, and without how the body's length is told.
    pub fn comparable(mut self) -> Self {
        for name in ["date", "content-length", "transfer-encoding", "connection"] {
            self.headers.remove(name);
        }
        self.body = comparable(&self.body);
        self
    }
}

/// JSON without what means nothing. Go's protojson puts spaces behind commas, or not, by chance of
/// the build, and likewise which space stands behind `proto:`.
pub fn comparable(text: &str) -> String {
    let mut out = String::new();
    let (mut quoted, mut escaped) = (false, false);
    for character in text.chars() {
        match (quoted, character) {
            (false, ' ') if text.starts_with('{') => continue,
            (_, '\u{a0}') => out.push(' '),
            _ => out.push(character),
        }
        quoted ^= character == '"' && !escaped;
        escaped = character == '\\' && !escaped;
    }
    masked(&out)
}

/// Without what is not the same in two clusters with one history.
fn masked(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("\"raft_term\":\"") {
        let (_, behind) = behind.split_once('"').unwrap();
        out += before;
        out += "\"raft_term\":\"\"";
        rest = behind;
    }
    out + rest
}
