//! The shape of etcd's interval tree. What a range that ends before it begins may touch depends on
//! it, and members of both kinds must decide alike, also about what makes no sense.

use bytes::Bytes;

use super::permissions::End;

/// No node.
const NONE: usize = usize::MAX;
const LEFT: usize = 0;
const RIGHT: usize = 1;

/// A red-black tree of ranges, in the order of their begins, then of their ends.
pub(super) struct Tree<'a> {
    nodes: Vec<Node<'a>>,
    root: usize,
}

struct Node<'a> {
    begin: &'a [u8],
    end: End<'a>,
    /// The greatest end in the subtree.
    greatest: End<'a>,
    children: [usize; 2],
    parent: usize,
    red: bool,
}

impl<'a> Tree<'a> {
    /// Ranges one by one, as a textbook has it. Their order decides about the shape.
    pub fn of(ranges: &'a [(Bytes, Option<Bytes>)]) -> Self {
        let mut tree = Self {
            nodes: Vec::with_capacity(ranges.len()),
            root: NONE,
        };
        for (begin, end) in ranges {
            tree.insert(begin, End::of(end.as_ref()));
        }
        tree.measure(tree.root);
        tree
    }

    fn insert(&mut self, begin: &'a [u8], end: End<'a>) {
        let new = self.nodes.len();
        let (mut parent, mut at, mut side) = (NONE, self.root, LEFT);
        while let Some(node) = self.nodes.get(at) {
            parent = at;
            side = usize::from((begin, end) >= (node.begin, node.end));
            at = node.children[side];
        }
        self.nodes.push(Node {
            begin,
            end,
            greatest: end,
            children: [NONE; 2],
            parent,
            red: true,
        });
        match parent {
            NONE => self.root = new,
            parent => self.nodes[parent].children[side] = new,
        }
        self.recolour(new);
    }

    fn is_red(&self, at: usize) -> bool {
        self.nodes.get(at).is_some_and(|node| node.red)
    }

    fn recolour(&mut self, mut at: usize) {
        while self.is_red(self.nodes[at].parent) {
            let parent = self.nodes[at].parent;
            // A red node is never the root.
            let grandparent = self.nodes[parent].parent;
            let side = usize::from(self.nodes[grandparent].children[RIGHT] == parent);
            let uncle = self.nodes[grandparent].children[1 - side];
            if self.is_red(uncle) {
                self.nodes[parent].red = false;
                self.nodes[uncle].red = false;
                self.nodes[grandparent].red = true;
                at = grandparent;
                continue;
            }
            if self.nodes[parent].children[1 - side] == at {
                at = parent;
                self.rotate(at, side);
            }
            let parent = self.nodes[at].parent;
            self.nodes[parent].red = false;
            self.nodes[grandparent].red = true;
            self.rotate(grandparent, 1 - side);
        }
        let root = self.root;
        self.nodes[root].red = false;
    }

    /// Moves a node down to `side`; its other child takes its place.
    fn rotate(&mut self, at: usize, side: usize) {
        let up = self.nodes[at].children[1 - side];
        let between = self.nodes[up].children[side];
        let parent = self.nodes[at].parent;
        self.nodes[at].children[1 - side] = between;
        if between != NONE {
            self.nodes[between].parent = at;
        }
        self.nodes[up].parent = parent;
        match parent {
            NONE => self.root = up,
            parent => {
                let of = usize::from(self.nodes[parent].children[RIGHT] == at);
                self.nodes[parent].children[of] = up;
            }
        }
        self.nodes[up].children[side] = at;
        self.nodes[at].parent = up;
    }

    /// The depth is bounded by the tree's balance.
    fn measure(&mut self, at: usize) -> Option<End<'a>> {
        let node = self.nodes.get(at)?;
        let (end, [left, right]) = (node.end, node.children);
        let below = self.measure(left).max(self.measure(right));
        let greatest = below.map_or(end, |below| below.max(end));
        self.nodes[at].greatest = greatest;
        Some(greatest)
    }

    /// Whether a walk for `[key, end)`, which ends before it begins, comes to a range that holds
    /// its key.
    pub fn finds(&self, key: &[u8], end: End<'_>) -> bool {
        self.walk(self.root, key, end)
    }

    fn walk(&self, at: usize, key: &[u8], end: End<'_>) -> bool {
        let Some(node) = self.nodes.get(at) else {
            return false;
        };
        let [left, right] = node.children;
        let begin = End::Before(node.begin);
        if key < node.begin {
            self.walk(left, key, end)
        } else if End::Before(key) < node.end {
            true
        } else if node.greatest <= End::Before(key) || begin >= end {
            // Where a range in its order would find nothing below.
            false
        } else {
            self.walk(left, key, end) || self.walk(right, key, end)
        }
    }
}
