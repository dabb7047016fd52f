// Command go is etcd's own Go client, with all packages that come with it, as programs use it.
//
//	go ENDPOINT CA_FILE NAME PASSWORD ROOT_PASSWORD FOLDER
//
// The user NAME may read and write what begins with `app/`. It says what it did, without anything
// that differs between two servers that answer alike, and exits with 1 at the first wrong answer.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// How long all of it may take on a busy machine.
const limit = 3 * time.Minute

// What every step has.
type world struct {
	ctx    context.Context
	config clientv3.Config
	// The user that may do what `app/` needs.
	app *clientv3.Client
	// A second connection of the same user: another process, as it were.
	other *clientv3.Client
	root  *clientv3.Client
	// For files.
	folder string
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 6 {
		return errors.New("usage: go ENDPOINT CA_FILE NAME PASSWORD ROOT_PASSWORD FOLDER")
	}
	pem, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s holds no certificate", args[1])
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	w := &world{ctx: ctx, folder: args[5], config: clientv3.Config{
		Endpoints:   []string{args[0]},
		DialTimeout: time.Minute,
		TLS:         &tls.Config{RootCAs: pool},
		Username:    args[2],
		Password:    args[3],
		Logger:      zap.NewNop(),
	}}
	for _, connection := range []struct {
		client         **clientv3.Client
		name, password string
	}{{&w.app, args[2], args[3]}, {&w.other, args[2], args[3]}, {&w.root, "root", args[4]}} {
		config := w.config
		config.Username, config.Password = connection.name, connection.password
		client, err := clientv3.New(config)
		if err != nil {
			return fmt.Errorf("connect as %s: %w", connection.name, err)
		}
		defer client.Close()
		*connection.client = client
	}
	for _, step := range []struct {
		name string
		do   func(*world) error
	}{
		{"users", users}, {"keys", keys}, {"transactions", transactions}, {"watches", watches},
		{"leases", leases}, {"namespace", namespaces}, {"ordering", orders},
		{"leasing", leasings}, {"mirror", mirrors}, {"mutex", mutexes}, {"election", elections},
		{"stm", memories}, {"recipes", recipes}, {"endpoints", discovery},
		{"kubernetes", objects}, {"maintenance", maintenance},
	} {
		fmt.Println("#", step.name)
		if err := step.do(w); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// Says what was found, and whether it is what it should be.
func want(what string, found, expected any) error {
	fmt.Printf("%s: %v\n", what, found)
	if got, want := fmt.Sprint(found), fmt.Sprint(expected); got != want {
		return fmt.Errorf("%s: %s, not %s", what, got, want)
	}
	return nil
}

// Says which error came, and whether it is that one.
func refused(what string, err, expected error) error {
	fmt.Printf("%s: %v\n", what, err)
	if !errors.Is(err, expected) {
		return fmt.Errorf("%s: %v, not %v", what, err, expected)
	}
	return nil
}

// What a range holds, in its order.
func pairs(found *clientv3.GetResponse, err error) (string, error) {
	if err != nil {
		return "", err
	}
	text := ""
	for _, kv := range found.Kvs {
		text += fmt.Sprintf("%s=%s;", kv.Key, kv.Value)
	}
	return text, nil
}

// Says what a range holds, and whether it is that.
func holds(w *world, kv clientv3.KV, key, expected string, opts ...clientv3.OpOption) error {
	found, err := pairs(kv.Get(w.ctx, key, opts...))
	if err != nil {
		return fmt.Errorf("get %s: %w", key, err)
	}
	return want(key, found, expected)
}

// The next of a channel, unless it is closed or the time is over.
func next[T any](w *world, from <-chan T) (T, error) {
	select {
	case item, ok := <-from:
		if !ok {
			return item, errors.New("closed")
		}
		return item, nil
	case <-w.ctx.Done():
		var none T
		return none, w.ctx.Err()
	}
}

// Runs steps until one fails.
func all(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
