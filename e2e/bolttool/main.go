// Command bolttool opens bbolt files with bbolt itself, and makes some for Cairn to open.
//
//	bolttool read FILE                                   checks every page, prints all rows as one JSON object
//	bolttool change FILE SEED TRANSACTIONS               puts and deletes at random, and checks after each transaction
//	bolttool write FILE SEED TRANSACTIONS PAGE_BYTES OPTION...   makes such a file
//	bolttool replace FILE BUCKET OLD NEW                 puts NEW where OLD stands in values of a bucket
//
// Options are `unsynced` (the freelist is not kept in the file, as etcd has it), `nested` (one bucket
// holds another) and `longfree` (more free pages than a page header can count).
//
// It is a test's helper: it exits with 1 and bbolt's error when bbolt refuses.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"slices"
	"strconv"

	bolt "go.etcd.io/bbolt"
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
	case len(args) == 4 && args[0] == "change":
		numbers, err := parse(args[2:])
		if err != nil {
			return err
		}
		return change(args[1], numbers[0], numbers[1])
	case len(args) == 5 && args[0] == "replace":
		return replace(args[1], args[2], args[3], args[4])
	case len(args) >= 5 && args[0] == "write":
		numbers, err := parse(args[2:5])
		if err != nil {
			return err
		}
		return write(args[1], numbers[0], numbers[1], numbers[2], args[5:])
	}
	return errors.New("usage: bolttool read FILE | change FILE SEED TRANSACTIONS | " +
		"replace FILE BUCKET OLD NEW | " +
		"write FILE SEED TRANSACTIONS PAGE_BYTES [unsynced] [nested] [longfree]")
}

func parse(args []string) (numbers []int, err error) {
	for _, arg := range args {
		n, err := strconv.Atoi(arg)
		if err != nil {
			return nil, err
		}
		numbers = append(numbers, n)
	}
	return numbers, nil
}

// content is what both sides print and compare. JSON has bytes as base64.
type content struct {
	PageBytes int      `json:"page_bytes"`
	FreePages int      `json:"free_pages"`
	Buckets   []bucket `json:"buckets"`
}

type bucket struct {
	Name []byte `json:"name"`
	Rows []row  `json:"rows"`
}

type row struct {
	Key   []byte `json:"key"`
	Value []byte `json:"value"`
}

func read(path string) error {
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, PreLoadFreelist: true})
	if err != nil {
		return err
	}
	defer db.Close()
	if err := check(db); err != nil {
		return err
	}
	out := content{
		PageBytes: db.Info().PageSize,
		FreePages: db.Stats().FreePageN,
		Buckets:   []bucket{},
	}
	err = db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bolt.Bucket) error {
			found := bucket{Name: slices.Clone(name), Rows: []row{}}
			err := b.ForEach(func(key, value []byte) error {
				found.Rows = append(found.Rows, row{slices.Clone(key), append([]byte{}, value...)})
				return nil
			})
			out.Buckets = append(out.Buckets, found)
			return err
		})
	})
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

// check has bbolt look at every page.
func check(db *bolt.DB) error {
	return db.View(func(tx *bolt.Tx) error {
		var all error
		for err := range tx.Check() {
			all = errors.Join(all, err)
		}
		return all
	})
}

// change also deletes whole buckets of what is there, down to their last row, so that no page is
// left that bbolt has not rewritten, merged or freed.
func change(path string, seed, transactions int) error {
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoSync: true})
	if err != nil {
		return err
	}
	if err := transact(db, seed, transactions, check); err != nil {
		return err
	}
	return db.Close()
}

func write(path string, seed, transactions, pageBytes int, options []string) error {
	if _, err := os.Stat(path); err == nil {
		return fmt.Errorf("%s is there already", path)
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		NoSync:         true,
		PageSize:       pageBytes,
		NoFreelistSync: slices.Contains(options, "unsynced"),
		FreelistType:   bolt.FreelistMapType,
	})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range []string{"first", "second", "third", "empty"} {
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	none := func(*bolt.DB) error { return nil }
	if err := transact(db, seed, transactions, none); err != nil {
		return err
	}
	if slices.Contains(options, "nested") {
		if err := db.Update(nest); err != nil {
			return err
		}
	}
	if slices.Contains(options, "longfree") {
		if err := free(db); err != nil {
			return err
		}
	}
	return db.Close()
}

// replace gives rows other contents, as no member of a cluster does by itself.
func replace(path, name, old, new string) error {
	if len(old) != len(new) {
		return errors.New("both must have the same length, or the rows would not be read any more")
	}
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		return err
	}
	replaced := 0
	err = db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte(name))
		if b == nil {
			return fmt.Errorf("there is no bucket %s", name)
		}
		cursor := b.Cursor()
		for key, value := cursor.First(); key != nil; key, value = cursor.Next() {
			if !bytes.Contains(value, []byte(old)) {
				continue
			}
			replaced++
			changed := bytes.ReplaceAll(value, []byte(old), []byte(new))
			if err := b.Put(slices.Clone(key), changed); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && replaced == 0 {
		err = fmt.Errorf("no row of %s has %q", name, old)
	}
	return errors.Join(err, db.Close())
}

// transact runs random transactions, and after each of them what is to follow it.
func transact(db *bolt.DB, seed, transactions int, after func(*bolt.DB) error) error {
	random := rand.New(rand.NewSource(int64(seed)))
	for range transactions {
		if err := db.Update(func(tx *bolt.Tx) error { return transaction(tx, random) }); err != nil {
			return err
		}
		if err := after(db); err != nil {
			return err
		}
	}
	return nil
}

// transaction puts, overwrites and deletes, now and then whole runs of keys.
func transaction(tx *bolt.Tx, random *rand.Rand) error {
	names := [][]byte{}
	err := tx.ForEach(func(name []byte, _ *bolt.Bucket) error {
		if string(name) != "empty" {
			names = append(names, slices.Clone(name))
		}
		return nil
	})
	if err != nil || len(names) == 0 {
		return err
	}
	for range random.Intn(300) {
		b := tx.Bucket(names[random.Intn(len(names))])
		key := []byte(fmt.Sprintf("key%04d", random.Intn(2000)))
		if random.Intn(40) == 0 {
			// Long ones, so that branches are of few children.
			key = append(key, make([]byte, random.Intn(3000))...)
		}
		switch {
		case random.Intn(60) == 0:
			if err := deleteFrom(b, key, random.Intn(600)); err != nil {
				return err
			}
		case random.Intn(3) == 0:
			if err := b.Delete(key); err != nil {
				return err
			}
		default:
			if err := b.Put(key, value(random)); err != nil {
				return err
			}
		}
	}
	if random.Intn(8) == 0 {
		return deleteFrom(tx.Bucket(names[random.Intn(len(names))]), []byte{0}, 1<<20)
	}
	return nil
}

// deleteFrom deletes so many rows from the key on.
func deleteFrom(b *bolt.Bucket, key []byte, rows int) error {
	keys := [][]byte{}
	cursor := b.Cursor()
	for k, _ := cursor.Seek(key); k != nil && len(keys) < rows; k, _ = cursor.Next() {
		keys = append(keys, slices.Clone(k))
	}
	for _, k := range keys {
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

func value(random *rand.Rand) []byte {
	length := random.Intn(200)
	switch random.Intn(20) {
	case 0:
		length = 0
	case 1:
		length = random.Intn(20_000)
	}
	bytes := make([]byte, length)
	random.Read(bytes)
	return bytes
}

// nest makes two buckets in a bucket, one of them inline.
func nest(tx *bolt.Tx) error {
	outer, err := tx.CreateBucket([]byte("outer"))
	if err != nil {
		return err
	}
	for name, rows := range map[string]int{"inline": 1, "long": 1000} {
		inner, err := outer.CreateBucket([]byte(name))
		if err != nil {
			return err
		}
		for i := range rows {
			if err := inner.Put([]byte(fmt.Sprintf("key%04d", i)), make([]byte, 100)); err != nil {
				return err
			}
		}
	}
	return nil
}

// free fills more pages than 16 bits count, and frees them.
func free(db *bolt.DB) error {
	pageBytes := db.Info().PageSize
	err := db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucket([]byte("freed"))
		if err != nil {
			return err
		}
		// Each of these values takes a hundred pages.
		for i := range 700 {
			if err := b.Put([]byte(fmt.Sprintf("key%04d", i)), make([]byte, 100*pageBytes-100)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return db.Update(func(tx *bolt.Tx) error { return tx.DeleteBucket([]byte("freed")) })
}
