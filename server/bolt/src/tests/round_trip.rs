//! The reader finds what the writer wrote, in trees of all shapes.

use std::io::Write;

use proptest::{collection, prelude::*};

use super::{Bucket, Content, bucket, many, read, write};
use crate::{
    Database, PAGE_BYTES,
    format::{BUCKET_HEADER, BucketHeader},
    node::Node,
};

/// Reads a file, and looks at the shape of its trees.
fn check(file: &[u8], content: &Content) {
    let database = Database::open(file).unwrap();
    database.check().unwrap();
    assert_eq!(&read(&database).unwrap(), content);
    let mut seen = |node: &Node| {
        // bbolt panics when it shrinks the only child of a branch.
        assert!(!node.is_branch() || node.count() >= 2);
        Ok(())
    };
    let mut root = database.root(&mut seen).unwrap();
    while root.next(&mut seen).unwrap().is_some() {}
}

/// The number of levels below a bucket's header.
fn height(file: &[u8], name: &[u8]) -> usize {
    let database = Database::open(file).unwrap();
    let mut root = database.root(&mut |_: &Node| Ok(())).unwrap();
    loop {
        let row = root.next(&mut |_: &Node| Ok(())).unwrap().unwrap();
        if row.key == name {
            assert_eq!(row.value.len(), BUCKET_HEADER);
            let mut page = BucketHeader::get(&row.value).unwrap().root;
            let mut levels = 1;
            loop {
                let node = database.node(0, page).unwrap();
                if !node.is_branch() {
                    return levels;
                }
                assert!(node.count() >= 2);
                (page, levels) = (node.child(0), levels + 1);
            }
        }
    }
}

#[test]
fn a_file_without_buckets_is_one() {
    let file = write(&Content::new());
    assert_eq!(file.len(), 4 * PAGE_BYTES);
    check(&file, &Content::new());
}

#[test]
fn buckets_without_and_with_one_row() {
    let content = Content::from([
        (b"alarm".to_vec(), Bucket::new()),
        (b"auth".to_vec(), bucket([("k", "")])),
        (b"key".to_vec(), bucket([("", ""); 0])),
        (b"lease".to_vec(), bucket([("k", "v")])),
    ]);
    let file = write(&content);
    // Metas, freelist, two leaves, the root: what is empty has no page.
    assert_eq!(file.len(), 6 * PAGE_BYTES);
    check(&file, &content);
}

#[test]
fn no_rows_come_from_no_bucket() {
    let file = write(&Content::from([(b"b".to_vec(), bucket([("k", "v")]))]));
    let database = Database::open(file).unwrap();
    for name in ["a", "c", ""] {
        assert!(database.rows(name.as_bytes()).unwrap().next().is_none());
    }
}

#[test]
fn thousands_of_rows_make_three_levels() {
    let content = Content::from([(b"key".to_vec(), many(20_000, 100))]);
    let file = write(&content);
    check(&file, &content);
    assert_eq!(height(&file, b"key"), 3);
}

/// A leaf that is filled to its last byte, and one that would have one byte more.
#[test]
fn a_leaf_takes_a_whole_page() {
    // Header, two elements, two keys of one byte.
    let room = PAGE_BYTES - 16 - 2 * 16 - 2;
    for (more, leaves) in [(0, 1), (1, 2)] {
        let rows = [
            ("a", "x".repeat(1000)),
            ("b", "y".repeat(room - 1000 + more)),
        ];
        let rows = rows.map(|(key, value)| (key.into(), value.into()));
        let content = Content::from([(b"key".to_vec(), Bucket::from(rows))]);
        let file = write(&content);
        check(&file, &content);
        assert_eq!(height(&file, b"key"), leaves);
    }
}

/// Values of several pages, up to the last byte of one, between short ones.
#[test]
fn long_values_take_pages_of_their_own() {
    let mut rows = many(40, 50);
    for more in 0..4 {
        // Header, element, a key of nine bytes.
        let value = vec![7; 3 * PAGE_BYTES - 16 - 16 - 9 + more - 2];
        rows.insert(format!("key{:06}", more * 10).into_bytes(), value);
    }
    rows.insert(b"long".to_vec(), vec![9; 1 << 20]);
    let content = Content::from([(b"key".to_vec(), rows)]);
    check(&write(&content), &content);
}

/// Branches of such keys are longer than a page, and the tree is high.
#[test]
fn the_longest_keys_make_branches_beyond_a_page() {
    let rows = (0..40u8).map(|i| {
        let mut key = vec![b'k'; crate::MAX_KEY_BYTES];
        key[100] = i;
        (key, vec![i; 10])
    });
    let content = Content::from([(b"key".to_vec(), rows.collect())]);
    let file = write(&content);
    check(&file, &content);
    assert!(height(&file, b"key") >= 4);
}

#[test]
fn the_tree_of_buckets_has_levels_too() {
    let name = |i| format!("{i:04}{}", "n".repeat(200)).into_bytes();
    let content: Content = (0..crate::MAX_BUCKETS)
        .map(|i| (name(i), many(i % 3, 20)))
        .collect();
    check(&write(&content), &content);
}

#[test]
fn files_are_read_where_they_lie() {
    let content = Content::from([(b"key".to_vec(), many(500, 100))]);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&write(&content)).unwrap();
    // bbolt makes its files longer than they need be.
    file.write_all(&[1; 10_000]).unwrap();
    let database = Database::open(file).unwrap();
    database.check().unwrap();
    assert_eq!(read(&database).unwrap(), content);
}

fn any_key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => collection::vec(any::<u8>(), 1..20),
        2 => collection::vec(any::<u8>(), 500..2000),
        1 => (any::<u64>(), 4000..9000usize).prop_map(|(first, length)| {
            let mut key = first.to_be_bytes().to_vec();
            key.resize(length, 1);
            key
        }),
    ]
}

fn any_value() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![
        2 => Just(0),
        8 => 1..200usize,
        2 => 200..4096usize,
        1 => 4000..20_000usize,
    ];
    (any::<u8>(), length).prop_map(|(byte, length)| vec![byte; length])
}

fn any_content() -> impl Strategy<Value = Content> {
    let rows = prop_oneof![
        collection::btree_map(any_key(), any_value(), 0..4),
        collection::btree_map(any_key(), any_value(), 0..120),
    ];
    collection::btree_map(collection::vec(any::<u8>(), 1..30), rows, 0..6)
}

proptest! {
    #[test]
    fn what_was_written_is_read(content in any_content()) {
        check(&write(&content), &content);
    }
}
