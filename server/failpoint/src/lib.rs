//! Named places in the server where a test makes it die, wait or fail, told as etcd's gofail is told.
//!
//! Owns: the table of all points, what a point was told to do, and the doing.
//!
//! Must never know: what happens at a point, HTTP, runtimes, the disk. Who switches points on is one
//! program, `cairn-failpoints`, which tests run; without [`enable`] a point is one relaxed load of a
//! flag that nothing ever sets, so the ordinary server has no way to be told anything.
//!
//! Start reading in `points.rs`, the table; `terms.rs` is gofail's little language.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod points;
mod terms;

use std::{
    fmt, io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

pub use points::*;
use terms::Terms;

/// How long a point waits for an answer that is on its way before it ends the process.
const ANSWERS: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(1);

/// Set by the test program alone.
static ENABLED: AtomicBool = AtomicBool::new(false);
/// Answers on their way to whoever tells points what to do.
static ANSWERING: AtomicUsize = AtomicUsize::new(0);

/// Why a point could not be told something. The words are gofail's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// There is no point of this name.
    NotFound,
    /// The point does nothing, so there is nothing to show or to end.
    Disabled,
    /// The terms are not understood.
    BadParse,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "failpoint: failpoint does not exist",
            Self::Disabled => "failpoint: failpoint is disabled",
            Self::BadParse => "failpoint: could not parse terms",
        })
    }
}

impl std::error::Error for Error {}

/// A named place in the server.
pub struct Point {
    name: &'static str,
    terms: Mutex<Option<Arc<Terms>>>,
}

/// What a point does, apart from ending the process.
enum Act {
    Nothing,
    Sleep(Duration),
    Return(Option<String>),
}

impl Point {
    const fn new(name: &'static str) -> Self {
        Self {
            name,
            terms: Mutex::new(None),
        }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The place itself: dies or waits here, if it was told to.
    #[inline]
    pub fn hit(&self) {
        if ENABLED.load(Ordering::Relaxed) {
            let _ = self.act();
        }
    }

    /// The same for a place where an error can happen: that of `return("text")`.
    ///
    /// # Errors
    /// When it was told so.
    #[inline]
    pub fn fail(&self) -> io::Result<()> {
        if ENABLED.load(Ordering::Relaxed) {
            return self
                .act()
                .map_or(Ok(()), |text| Err(io::Error::other(text)));
        }
        Ok(())
    }

    /// The same for a place that can be skipped: whether it was told `return`.
    #[inline]
    pub fn skips(&self) -> bool {
        ENABLED.load(Ordering::Relaxed) && self.act().is_some()
    }

    /// The same for a task, which must not hold up its thread: how long it is to wait, if at all.
    #[inline]
    pub fn pause(&self) -> Option<Duration> {
        if !ENABLED.load(Ordering::Relaxed) {
            return None;
        }
        match self.told()? {
            Act::Sleep(time) => Some(time),
            Act::Nothing | Act::Return(_) => None,
        }
    }

    #[cold]
    fn act(&self) -> Option<String> {
        match self.told()? {
            Act::Nothing => None,
            Act::Sleep(time) => {
                thread::sleep(time);
                None
            }
            Act::Return(text) => Some(text.unwrap_or_else(|| format!("failpoint {}", self.name))),
        }
    }

    /// What it is to do now. Who is told to end the process does not come back.
    fn told(&self) -> Option<Act> {
        let terms = self.lock().clone()?;
        Some(terms.eval(self.name))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Terms>>> {
        self.terms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Switches the points on, for good. Only the test program calls this, before anything else runs.
pub fn enable() {
    ENABLED.store(true, Ordering::Relaxed);
}

fn find(name: &str) -> Result<&'static Point, Error> {
    let found = ALL.iter().find(|point| point.name == name);
    found.copied().ok_or(Error::NotFound)
}

/// Tells a point what to do from now on, as `panic` or `2*off->sleep("5s")`.
///
/// # Errors
/// A name or terms that are not known.
pub fn tell(name: &str, terms: &str) -> Result<(), Error> {
    let point = find(name)?;
    let terms = Terms::parse(terms).ok_or(Error::BadParse)?;
    *point.lock() = Some(Arc::new(terms));
    Ok(())
}

/// Lets a point do nothing again.
///
/// # Errors
/// A name that is not known, and a point that does nothing.
pub fn forget(name: &str) -> Result<(), Error> {
    find(name)?.lock().take().map(drop).ok_or(Error::Disabled)
}

/// What a point was told, and how often it did some of it.
///
/// # Errors
/// A name that is not known, and a point that does nothing.
pub fn status(name: &str) -> Result<(String, u64), Error> {
    let terms = find(name)?.lock().clone().ok_or(Error::Disabled)?;
    Ok((terms.text().to_owned(), terms.count()))
}

/// Splits `name=terms;name=terms`, as the environment and one request have it.
///
/// # Errors
/// The part that is none.
pub fn split(text: &str) -> Result<Vec<(&str, &str)>, &str> {
    let parts = text.split(';').filter(|part| !part.is_empty());
    let pairs = parts.map(|part| match part.split_once('=') {
        Some((name, terms)) if !terms.contains('=') => Ok((name, terms)),
        _ => Err(part),
    });
    pairs.collect()
}

/// While one lives, no point ends the process: the answer to who told it so has to arrive.
pub struct Answering(());

impl Answering {
    /// Until this is dropped.
    pub fn begin() -> Self {
        ANSWERING.fetch_add(1, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        ANSWERING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Ends the process at once: nothing is flushed, no destructor runs, no other thread goes on for
/// longer than the kernel takes.
fn die(name: &str, text: Option<&str>) -> ! {
    let began = Instant::now();
    while ANSWERING.load(Ordering::SeqCst) > 0 && began.elapsed() < ANSWERS {
        thread::sleep(POLL);
    }
    eprintln!("failpoint panic: {}", text.unwrap_or(name));
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_fit_a_url() {
        let names: BTreeSet<_> = ALL.iter().map(|point| point.name).collect();
        assert_eq!(names.len(), ALL.len());
        for name in names {
            assert!(
                name.bytes().all(|byte| byte.is_ascii_alphanumeric()),
                "{name}"
            );
        }
    }

    /// One test, since the flag is one for the process.
    #[test]
    fn a_point_does_what_it_is_told_and_only_when_it_is_enabled() {
        let point = &SNAP_DB_DIR_SYNC_ERROR;
        let name = point.name();
        assert_eq!(tell("nothing", "off"), Err(Error::NotFound));
        assert_eq!(tell(name, "nothing"), Err(Error::BadParse));
        assert_eq!(status(name), Err(Error::Disabled));
        assert_eq!(forget(name), Err(Error::Disabled));
        tell(name, r#"1*off->1*return("full")->return"#).unwrap();
        point.fail().unwrap();
        assert_eq!(
            status(name).unwrap().1,
            0,
            "it did something while disabled"
        );
        enable();
        point.fail().unwrap();
        assert_eq!(point.fail().unwrap_err().to_string(), "full");
        assert!(point.skips() && point.skips());
        assert_eq!(
            status(name),
            Ok((r#"1*off->1*return("full")->return"#.to_owned(), 4))
        );
        tell(name, "sleep(20)").unwrap();
        let began = Instant::now();
        point.hit();
        assert!(began.elapsed() >= Duration::from_millis(20));
        tell(name, r#"sleep("1h")"#).unwrap();
        assert_eq!(point.pause(), Some(Duration::from_secs(3600)));
        forget(name).unwrap();
        assert!(!point.skips() && point.pause().is_none());
    }

    #[test]
    fn the_environment_is_split_as_gofail_splits_it() {
        assert_eq!(
            split("a=panic;;b=2*off;"),
            Ok(vec![("a", "panic"), ("b", "2*off")])
        );
        assert_eq!(split(""), Ok(vec![]));
        assert_eq!(split("a=b;c"), Err("c"));
        assert_eq!(split("a=b=c"), Err("a=b=c"));
    }
}
