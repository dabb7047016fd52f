// Package suite pins etcd's own client suite, which the test etcd_suite builds and runs.
package suite

import (
	// Keeps the module of the suite required.
	_ "go.etcd.io/etcd/tests/v3/framework"
)
