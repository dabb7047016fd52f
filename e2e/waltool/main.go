// Command waltool opens write-ahead logs with etcd's own package, and writes some for Cairn to open.
//
//	waltool read DIR [INDEX TERM]             prints what the log holds from that snapshot record on,
//	                                          as one JSON object
//	waltool write DIR ENTRIES                 makes a log of so many entries
//	waltool append DIR INDEX TERM ENTRIES     opens a log at that snapshot record and goes on in it
//	waltool truncate DIR ENTRIES              makes one, with snapshots, and purges what they cover
//	waltool receive DIR ENTRIES INDEX TERM N  makes one that a snapshot of another member ends, and
//	                                          N entries behind it
//
// It is a test's helper: it exits with 1 and etcd's error when etcd's package refuses.
package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/fileutil"
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
	usage := fmt.Errorf("usage: waltool read|write|append|truncate|receive DIR NUMBERS")
	if len(args) < 2 {
		return usage
	}
	var n []uint64
	for _, arg := range args[2:] {
		number, err := strconv.ParseUint(arg, 10, 64)
		if err != nil {
			return err
		}
		n = append(n, number)
	}
	wal.SegmentSizeBytes = 16 << 10
	dir := args[1]
	switch {
	case args[0] == "read" && len(n) == 0:
		return read(dir, 0, 0)
	case args[0] == "read" && len(n) == 2:
		return read(dir, n[0], n[1])
	case args[0] == "write" && len(n) == 1:
		return write(dir, n[0])
	case args[0] == "append" && len(n) == 3:
		return appendTo(dir, n[0], n[1], n[2])
	case args[0] == "truncate" && len(n) == 1:
		return truncate(dir, n[0])
	case args[0] == "receive" && len(n) == 4:
		return receive(dir, n[0], n[1], n[2], n[3])
	}
	return usage
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
	Size  int    `json:"size"`
	Sum   string `json:"sum"`
}

type mark struct {
	Index uint64 `json:"index"`
	Term  uint64 `json:"term"`
}

func read(dir string, index, term uint64) error {
	log := zap.NewNop()
	start := &walpb.Snapshot{Index: &index, Term: &term}
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
		sum := fmt.Sprintf("%x", sha256.Sum256(e.GetData()))
		out.Entries = append(out.Entries, entry{e.GetTerm(), e.GetIndex(), len(e.GetData()), sum})
	}
	for _, m := range marks {
		if m.GetIndex() < index {
			continue
		}
		out.Marks = append(out.Marks, mark{m.GetIndex(), m.GetTerm()})
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

func create(dir string) (*wal.WAL, error) {
	owner := &etcdserverpb.Metadata{NodeID: proto.Uint64(7), ClusterID: proto.Uint64(9)}
	metadata, err := proto.Marshal(owner)
	if err != nil {
		return nil, err
	}
	return wal.Create(zap.NewNop(), dir, metadata)
}

// save writes entries from..=to, which grow with their index, and a state that commits so much.
func save(w *wal.WAL, from, to, term, commit uint64) error {
	for index := from; index <= to; index++ {
		kind := raftpb.EntryNormal
		e := &raftpb.Entry{
			Type: &kind, Term: &term, Index: &index,
			Data: []byte(strings.Repeat(string(rune('a'+index%20)), int(index*3))),
		}
		state := &raftpb.HardState{Term: &term, Vote: proto.Uint64(7), Commit: &commit}
		if err := w.Save(state, []*raftpb.Entry{e}); err != nil {
			return err
		}
	}
	return nil
}

func snapshot(w *wal.WAL, index, term uint64) error {
	members := &raftpb.ConfState{Voters: []uint64{7, index}, AutoLeave: proto.Bool(false)}
	return w.SaveSnapshot(&walpb.Snapshot{Index: &index, Term: &term, ConfState: members})
}

// purge removes the segments that the log has let go of, as etcd's purger does.
func purge(dir string) error {
	names, err := fileutil.ReadDir(dir, fileutil.WithExt(".wal"))
	if err != nil {
		return err
	}
	for _, name := range names {
		path := filepath.Join(dir, name)
		l, err := fileutil.TryLockFile(path, os.O_WRONLY, fileutil.PrivateFileMode)
		if err != nil {
			return nil
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		l.Close()
	}
	return nil
}

// write makes entries of growing size, replaces the last third once, and cuts segments on the way.
func write(dir string, n uint64) error {
	w, err := create(dir)
	if err != nil {
		return err
	}
	for index := uint64(1); index <= n; index++ {
		if err := save(w, index, index, 1, index/2); err != nil {
			return err
		}
	}
	for index := n - n/3; index <= n; index++ {
		if err := save(w, index, index, 2, index/2); err != nil {
			return err
		}
	}
	return w.Close()
}

func appendTo(dir string, index, term, n uint64) error {
	w, err := wal.Open(zap.NewNop(), dir, &walpb.Snapshot{Index: &index, Term: &term})
	if err != nil {
		return err
	}
	_, state, entries, err := w.ReadAll()
	if err != nil {
		return err
	}
	last := index
	if len(entries) > 0 {
		last = entries[len(entries)-1].GetIndex()
	}
	if err := save(w, last+1, last+n, state.GetTerm(), last); err != nil {
		return err
	}
	return w.Close()
}

// truncate takes a snapshot every 20 entries. The last record is of a snapshot far ahead, whose state
// a crash prevented: etcd takes no notice of it.
func truncate(dir string, n uint64) error {
	w, err := create(dir)
	if err != nil {
		return err
	}
	for index := uint64(1); index <= n; index++ {
		if err := save(w, index, index, 1+index/50, index-1); err != nil {
			return err
		}
		if index%20 != 0 {
			continue
		}
		at := index - 5
		if err := snapshot(w, at, 1+at/50); err != nil {
			return err
		}
		if err := w.ReleaseLockTo(at); err != nil {
			return err
		}
		if err := purge(dir); err != nil {
			return err
		}
	}
	if err := snapshot(w, n*10, 99); err != nil {
		return err
	}
	return w.Close()
}

// receive does what etcd does with a snapshot that its leader sent.
func receive(dir string, n, index, term, more uint64) error {
	w, err := create(dir)
	if err != nil {
		return err
	}
	if err := save(w, 1, n, 1, n/2); err != nil {
		return err
	}
	if err := snapshot(w, index, term); err != nil {
		return err
	}
	if more == 0 {
		state := &raftpb.HardState{Term: &term, Vote: proto.Uint64(0), Commit: &index}
		if err := w.Save(state, nil); err != nil {
			return err
		}
	}
	if err := save(w, index+1, index+more, term, index); err != nil {
		return err
	}
	return w.Close()
}
