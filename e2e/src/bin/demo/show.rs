//! What the demo looks like: a numbered line for each step, below it what happens, each with the
//! seconds since the step began.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Instant,
};

/// A step that is under way.
pub struct Step {
    began: Instant,
}

impl Step {
    /// Says what comes next.
    pub fn begin(what: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        println!("{}. {what}", NUMBER.fetch_add(1, Ordering::Relaxed));
        Self {
            began: Instant::now(),
        }
    }

    /// Says what happens.
    pub fn say(&self, what: &str) {
        println!(
            "   {:>4} s  {}",
            self.began.elapsed().as_secs(),
            what.trim_end()
        );
    }

    /// Shows a command and what it printed.
    pub fn run(&self, command: &str, output: &str) {
        self.say(&format!("$ {command}"));
        self.quote(output);
    }

    /// Shows a text as it is.
    pub fn quote(&self, text: &str) {
        for line in text.trim_end().lines() {
            println!("           {line}");
        }
    }

    /// Says how it ended.
    pub fn end(self, how: &str) {
        self.say(how);
        println!();
    }
}
