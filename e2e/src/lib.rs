//! Tests of the tree as a whole, and of its formats beside real etcd. It owns no behaviour and
//! nothing may depend on it; start reading in `tests/direction.rs`, then `tests/wal.rs`. The Go
//! side is in `waltool/`, with etcd pinned in `go.mod`.
