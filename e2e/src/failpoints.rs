//! Tells a server's failpoints what to do, over gofail's protocol.

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    time::Duration,
};

use crate::server::{free_port, target_folder};

/// How long an answer may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);
/// What the server says before a point ends it.
const DYING: &str = "failpoint panic: ";

/// The server whose failpoints can be told what to do.
pub fn program() -> PathBuf {
    target_folder().join("cairn-failpoints")
}

/// The failpoints of one server.
pub struct Failpoints {
    port: u16,
    /// What they are told at the next starts.
    at_start: String,
}

impl Failpoints {
    /// With a port of their own, and with what they are told at the start.
    pub fn new(at_start: &str) -> Self {
        Self {
            port: free_port(),
            at_start: at_start.to_owned(),
        }
    }

    /// Variables for the server.
    pub fn environment(&self) -> [(&'static str, String); 2] {
        [
            ("GOFAIL_HTTP", format!("127.0.0.1:{}", self.port)),
            ("GOFAIL_FAILPOINTS", self.at_start.clone()),
        ]
    }

    /// What they are told at the next starts, as `name=terms;name=terms`.
    pub fn at_start(&mut self, terms: &str) {
        terms.clone_into(&mut self.at_start);
    }

    /// All names.
    pub fn names(&self) -> Vec<String> {
        let (_, list) = self.ask("GET", "", "").unwrap();
        let names = list.lines().filter_map(|line| line.split_once('='));
        names.map(|(name, _)| name.to_owned()).collect()
    }

    /// Tells a point something; `false` when the server is not there.
    ///
    /// # Panics
    /// When the server does not take it.
    pub fn tell(&self, name: &str, terms: &str) -> bool {
        match self.ask("PUT", name, terms) {
            Some((code, text)) => {
                assert_eq!(code, 204, "{name}={terms}: {text}");
                true
            }
            None => false,
        }
    }

    /// Lets a point do nothing; whether it was told something.
    pub fn forget(&self, name: &str) -> bool {
        matches!(self.ask("DELETE", name, ""), Some((204, _)))
    }

    /// One request and its answer; `None` when nobody answers.
    pub fn ask(&self, method: &str, name: &str, body: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(LIMIT)).ok()?;
        let length = body.len();
        write!(
            stream,
            "{method} /{name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let code = head.split(' ').nth(1)?.parse().ok()?;
        Some((code, body.to_owned()))
    }
}

/// The point that ended a server, by what it wrote.
pub fn died_at(log: &str) -> Option<&str> {
    log.lines().rev().find_map(|line| line.strip_prefix(DYING))
}
