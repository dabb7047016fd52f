//! What was written is read again, what is damaged is refused. `e2e/tests/bolt.rs` has real bbolt on
//! the other side.

mod damage;
mod refusals;
mod round_trip;

use std::collections::BTreeMap;

use crate::{Database, Error, Plan, Planner, ReadAt, Writer};

/// Rows of one bucket.
type Bucket = BTreeMap<Vec<u8>, Vec<u8>>;
/// All of a file.
type Content = BTreeMap<Vec<u8>, Bucket>;

fn bucket<const N: usize>(rows: [(&str, &str); N]) -> Bucket {
    let row = |(key, value): (&str, &str)| (key.into(), value.into());
    rows.into_iter().map(row).collect()
}

/// So many rows, with values of that length.
fn many(rows: usize, value: usize) -> Bucket {
    let row = |i| (format!("key{i:06}").into_bytes(), vec![i as u8; value]);
    (0..rows).map(row).collect()
}

fn plan(content: &Content) -> Plan {
    let mut planner = Planner::new();
    for (name, rows) in content {
        planner.bucket(name).unwrap();
        for (key, value) in rows {
            planner.row(key, value.len()).unwrap();
        }
    }
    planner.finish().unwrap()
}

fn write_as(plan: Plan, content: &Content, out: &mut Vec<u8>) -> Result<(), Error> {
    let mut writer = Writer::new(plan, out)?;
    for (name, rows) in content {
        writer.bucket(name)?;
        for (key, value) in rows {
            writer.row(key, value)?;
        }
    }
    writer.finish().map(|_| ())
}

fn write(content: &Content) -> Vec<u8> {
    let plan = plan(content);
    let length = plan.file_bytes();
    let mut file = Vec::new();
    write_as(plan, content, &mut file).unwrap();
    assert_eq!(file.len() as u64, length);
    file
}

fn read<R: ReadAt>(database: &Database<R>) -> Result<Content, Error> {
    let mut content = Content::new();
    for name in database.buckets()? {
        let rows = database.rows(&name)?;
        let rows = rows.map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec())));
        let rows: Bucket = rows.collect::<Result<_, _>>()?;
        content.insert(name, rows);
    }
    Ok(content)
}
