// Command waltool opens write-ahead logs with etcd's own package, and writes some for Cairn to open.
//
//	waltool read DIR            prints what the log holds, as one JSON object
//	waltool write DIR ENTRIES   makes a log of so many entries
//
// It is a test's helper: it exits with 1 and etcd's error when etcd's package refuses.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "read":
		return read(args[1])
	case len(args) == 3 && args[0] == "write":
		n, err := strconv.ParseUint(args[2], 10, 64)
		if err != nil {
			return err
		}
		return write(args[1], n)
	}
	return fmt.Errorf("usage: waltool read DIR | write DIR ENTRIES")
}

// content is what both sides print and compare.
type content struct {
	NodeID    uint64  `json:"node_id"`
	ClusterID uint64  `json:"cluster_id"`
	Term      uint64  `json:"term"`
	Vote      uint64  `json:"vote"`
	Commit    uint64  `json:"commit"`
	Entries   []entry `json:"entries"`
	Marks     []mark  `json:"marks"`
}

type entry struct {
	Term  uint64 `json:"term"`
	Index uint64 `json:"index"`
	Data  string `json:"data"`
}

type mark struct {
	Index uint64 `json:"index"`
	Term  uint64 `json:"term"`
}

func read(dir string) error {
	log := zap.NewNop()
	start := &walpb.Snapshot{Index: new(uint64), Term: new(uint64)}
	if _, err := wal.Verify(log, dir, start); err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	marks, err := wal.ValidSnapshotEntries(log, dir)
	if err != nil {
		return fmt.Errorf("snapshot entries: %w", err)
	}
	w, err := wal.Open(log, dir, start)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer w.Close()
	metadata, state, entries, err := w.ReadAll()
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	var owner etcdserverpb.Metadata
	if err := proto.Unmarshal(metadata, &owner); err != nil {
		return fmt.Errorf("metadata: %w", err)
	}
	out := content{
		NodeID: owner.GetNodeID(), ClusterID: owner.GetClusterID(),
		Term: state.GetTerm(), Vote: state.GetVote(), Commit: state.GetCommit(),
		Entries: []entry{}, Marks: []mark{},
	}
	for _, e := range entries {
		out.Entries = append(out.Entries, entry{e.GetTerm(), e.GetIndex(), string(e.GetData())})
	}
	for _, m := range marks {
		out.Marks = append(out.Marks, mark{m.GetIndex(), m.GetTerm()})
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

// write makes entries of growing size, replaces the last third once, and cuts segments on the way.
func write(dir string, n uint64) error {
	wal.SegmentSizeBytes = 16 << 10
	owner := &etcdserverpb.Metadata{NodeID: proto.Uint64(7), ClusterID: proto.Uint64(9)}
	metadata, err := proto.Marshal(owner)
	if err != nil {
		return err
	}
	w, err := wal.Create(zap.NewNop(), dir, metadata)
	if err != nil {
		return err
	}
	save := func(index, term uint64) error {
		kind := raftpb.EntryNormal
		e := &raftpb.Entry{
			Type: &kind, Term: &term, Index: &index,
			Data: []byte(strings.Repeat(string(rune('a'+index%20)), int(index*3))),
		}
		state := &raftpb.HardState{Term: &term, Vote: proto.Uint64(7), Commit: proto.Uint64(index / 2)}
		return w.Save(state, []*raftpb.Entry{e})
	}
	for index := uint64(1); index <= n; index++ {
		if err := save(index, 1); err != nil {
			return err
		}
	}
	for index := n - n/3; index <= n; index++ {
		if err := save(index, 2); err != nil {
			return err
		}
	}
	return w.Close()
}
