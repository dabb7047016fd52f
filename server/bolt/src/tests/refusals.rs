//! What no file can hold, and second passes that are not like the first.

use std::io::{self, Write};

use super::{Bucket, Content, bucket, many, plan, write, write_as};
use crate::{
    Error, MAX_BUCKETS, MAX_KEY_BYTES, MAX_ROW_BYTES, MAX_VALUE_BYTES, PAGE_BYTES, Planner, Writer,
};

fn said<T>(result: Result<T, Error>) -> String {
    result.err().unwrap().to_string()
}

#[test]
fn what_is_too_long_or_too_short_is_refused_at_once() {
    let mut planner = Planner::new();
    let refused = said(planner.row(b"k", 0));
    assert!(refused.contains("before any bucket"), "{refused}");
    assert!(planner.bucket(b"").is_err());
    assert!(planner.bucket(&[1; MAX_KEY_BYTES + 1]).is_err());
    planner.bucket(&[1; MAX_KEY_BYTES]).unwrap();
    assert!(planner.row(b"", 1).is_err());
    assert!(planner.row(&[1; MAX_KEY_BYTES + 1], 1).is_err());
    planner.row(&[1; MAX_KEY_BYTES], 0).unwrap();
    let refused = said(planner.row(b"k", MAX_VALUE_BYTES + 1));
    assert!(refused.contains("0 to 2147483646"), "{refused}");
    // bbolt takes a longer value, and then cannot read the page.
    assert!(planner.row(b"k", MAX_ROW_BYTES - 16).is_err());
    planner.row(b"k", MAX_ROW_BYTES - 17).unwrap();
    // What was refused left no trace: this plan is that of what was taken.
    let mut other = Planner::new();
    other.bucket(&[1; MAX_KEY_BYTES]).unwrap();
    other.row(&[1; MAX_KEY_BYTES], 0).unwrap();
    other.row(b"k", MAX_ROW_BYTES - 17).unwrap();
    assert_eq!(planner.finish().unwrap(), other.finish().unwrap());
}

#[test]
fn buckets_are_counted() {
    let mut planner = Planner::new();
    for i in 0..MAX_BUCKETS {
        planner.bucket(&i.to_be_bytes()).unwrap();
    }
    assert!(planner.bucket(b"one more").is_err());
}

/// With lengths only, a file longer than any disk is planned in no time.
#[test]
fn a_file_that_bbolt_cannot_map_is_refused() {
    let mut planner = Planner::new();
    planner.bucket(b"b").unwrap();
    let rows = (crate::MAX_FILE_BYTES >> 31) + 2;
    let failed = (0..rows).find_map(|_| planner.row(b"k", MAX_ROW_BYTES - 17).err());
    let failed = failed.unwrap().to_string();
    assert!(failed.contains("would be longer than"), "{failed}");
    assert!(matches!(planner.finish(), Err(Error::Failed)));
}

#[test]
fn what_is_not_in_order_is_refused() {
    let content = Content::from([(b"b".to_vec(), bucket([("b", "x"), ("c", "y")]))]);
    let begin = || {
        let mut writer = Writer::new(plan(&content), Vec::new()).unwrap();
        writer.bucket(b"b").unwrap();
        writer.row(b"b", b"x").unwrap();
        writer
    };
    let mut writer = begin();
    let refused = said(writer.row(b"a", b"y"));
    assert!(
        refused.contains(r#"the key "a" comes behind "b""#),
        "{refused}"
    );
    // And that was it.
    assert!(matches!(writer.row(b"c", b"y"), Err(Error::Failed)));
    assert!(matches!(writer.finish(), Err(Error::Failed)));
    let refused = said(begin().row(b"b", b"y"));
    assert!(refused.contains(r#"the key "b" comes twice"#), "{refused}");
    let refused = said(begin().bucket(b"a"));
    assert!(
        refused.contains(r#"the bucket "a" comes behind "b""#),
        "{refused}"
    );
    let refused = said(begin().bucket(b"b"));
    assert!(
        refused.contains(r#"the bucket "b" comes twice"#),
        "{refused}"
    );
    // Another bucket begins anew.
    let mut writer = begin();
    writer.bucket(b"c").unwrap();
    writer.row(b"a", b"").unwrap();
}

/// Never is a file complete that is not the planned one.
#[test]
fn a_second_pass_that_differs_is_refused_before_the_last_page() {
    let rows = many(300, 30);
    let planned = Content::from([
        (b"a".to_vec(), rows.clone()),
        (b"b".to_vec(), Bucket::new()),
        (b"c".to_vec(), bucket([("k", "v"), ("l", "v")])),
    ]);
    let other = |change: &dyn Fn(&mut Content)| {
        let mut content = planned.clone();
        change(&mut content);
        assert_ne!(content, planned);
        content
    };
    let rows = |name: &str, content: &mut Content, change: &dyn Fn(&mut Bucket)| {
        change(content.get_mut(name.as_bytes()).unwrap());
    };
    let put = |content: &mut Content, name: &str, key: &str, value: &str| {
        rows(name, content, &|rows| {
            rows.insert(key.into(), value.into());
        });
    };
    let others = [
        other(&|content| content.clear()),
        other(&|content| drop(content.remove(b"b".as_slice()))),
        other(&|content| drop(content.insert(b"bb".to_vec(), Bucket::new()))),
        other(&|content| rows("a", content, &|rows| drop(rows.pop_first()))),
        other(&|content| rows("a", content, &|rows| drop(rows.pop_last()))),
        other(&|content| put(content, "a", "z", "")),
        other(&|content| put(content, "a", "key000100", "shorter")),
        other(&|content| put(content, "a", "key000100", &"longer".repeat(10_000))),
        other(&|content| put(content, "c", "k", "")),
        other(&|content| put(content, "c", "k", "vv")),
        other(&|content| put(content, "b", "k", "")),
        // As many bytes, in another row.
        other(&|content| {
            put(content, "c", "k", "");
            put(content, "c", "l", "vv");
        }),
    ];
    for other in others {
        let mut file = Vec::new();
        let differs = write_as(plan(&planned), &other, &mut file).unwrap_err();
        assert!(matches!(differs, Error::PlanDiffers(_)), "{differs}");
        assert!(file.len() < write(&planned).len());
    }
}

/// Takes so many bytes and no more, like a disk that is full.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self
            .0
            .checked_sub(bytes.len())
            .ok_or(io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn after_a_failed_write_nothing_is_written() {
    let content = Content::from([(b"a".to_vec(), many(300, 100))]);
    let pages = write(&content).len() / PAGE_BYTES;
    for pages in 0..pages {
        let Ok(mut writer) = Writer::new(plan(&content), Full(pages * PAGE_BYTES)) else {
            assert!(pages < 3);
            continue;
        };
        writer.bucket(b"a").unwrap();
        let rows = content[b"a".as_slice()].iter();
        let failures = rows.filter_map(|(key, value)| writer.row(key, value).err());
        let failures: Vec<Error> = failures.collect();
        let mut failures = failures.iter();
        let first = failures.next();
        assert!(first.is_none_or(|first| matches!(first, Error::Io { .. })));
        assert!(failures.all(|failure| matches!(failure, Error::Failed)));
        assert!(writer.finish().is_err());
    }
}
