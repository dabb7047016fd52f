package main

import (
	"errors"
	"fmt"
	"sync"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	recipe "go.etcd.io/etcd/client/v3/experimental/recipes"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/ordering"
)

func namespaces(w *world) error {
	kv := namespace.NewKV(w.app, "app/n/")
	watcher := namespace.NewWatcher(w.app, "app/n/")
	lessor := namespace.NewLease(w.app, "app/n/")
	lease, err := lessor.Grant(w.ctx, 600)
	if err != nil {
		return err
	}
	put, err := kv.Put(w.ctx, "a", "1", clientv3.WithLease(lease.ID))
	if err != nil {
		return err
	}
	event, err := next(w, watcher.Watch(w.ctx, "a", clientv3.WithRev(put.Header.Revision)))
	if err != nil {
		return err
	}
	left, err := lessor.TimeToLive(w.ctx, lease.ID, clientv3.WithAttachedKeys())
	if err != nil {
		return err
	}
	done, err := kv.Txn(w.ctx).If(clientv3.Compare(clientv3.Value("a"), "=", "1")).
		Then(clientv3.OpPut("b", "2")).Commit()
	if err != nil {
		return err
	}
	return all(
		func() error { return want("event", string(event.Events[0].Kv.Key), "a") },
		func() error { return want("keys", fmt.Sprintf("%s", left.Keys), "[a]") },
		func() error { return want("txn", done.Succeeded, true) },
		func() error { return holds(w, kv, "", "a=1;b=2;", clientv3.WithFromKey()) },
		func() error { return holds(w, w.app, "app/n/", "app/n/a=1;app/n/b=2;", clientv3.WithPrefix()) },
	)
}

func orders(w *world) error {
	kv := ordering.NewKV(w.app, ordering.NewOrderViolationSwitchEndpointClosure(w.app))
	for n := range 20 {
		value := fmt.Sprint(n)
		if _, err := w.other.Put(w.ctx, "app/o", value); err != nil {
			return err
		}
		for _, serializable := range []bool{false, true} {
			opts := []clientv3.OpOption{}
			if serializable {
				opts = append(opts, clientv3.WithSerializable())
			}
			found, err := pairs(kv.Get(w.ctx, "app/o", opts...))
			if err != nil {
				return err
			}
			if found != "app/o="+value+";" {
				return fmt.Errorf("%s, not %s", found, value)
			}
		}
	}
	done, err := kv.Txn(w.ctx).Then(clientv3.OpGet("app/o")).Commit()
	if err != nil {
		return err
	}
	return want("last", string(done.Responses[0].GetResponseRange().Kvs[0].Value), "19")
}

func leasings(w *world) error {
	kv, closeKV, err := leasing.NewKV(w.app, "app/leasing/")
	if err != nil {
		return err
	}
	defer closeKV()
	other, closeOther, err := leasing.NewKV(w.other, "app/leasing/")
	if err != nil {
		return err
	}
	defer closeOther()
	if _, err := kv.Put(w.ctx, "app/held", "1"); err != nil {
		return err
	}
	// The first read takes the key's lease, the second one asks nobody.
	first, err := kv.Get(w.ctx, "app/held")
	if err != nil {
		return err
	}
	if _, err := w.other.Put(w.ctx, "app/elsewhere", "moves the revision"); err != nil {
		return err
	}
	second, err := kv.Get(w.ctx, "app/held")
	if err != nil {
		return err
	}
	// Who writes past the lease's owner makes it give the lease up.
	if _, err := other.Put(w.ctx, "app/held", "2"); err != nil {
		return err
	}
	done, err := other.Txn(w.ctx).If(clientv3.Compare(clientv3.Value("app/held"), "=", "2")).
		Then(clientv3.OpPut("app/held", "3"), clientv3.OpPut("app/held/too", "4")).Commit()
	if err != nil {
		return err
	}
	if _, err := kv.Delete(w.ctx, "app/held/too"); err != nil {
		return err
	}
	return all(
		func() error { return want("cached", second.Header.Revision, first.Header.Revision) },
		func() error { return want("txn", done.Succeeded, true) },
		func() error { return holds(w, kv, "app/held", "app/held=3;") },
		func() error { return holds(w, other, "app/held/too", "") },
	)
}

func mirrors(w *world) error {
	// More than the syncer asks for at once.
	for n := range 12 {
		var puts []clientv3.Op
		for m := range 100 {
			puts = append(puts, clientv3.OpPut(fmt.Sprintf("app/m/%04d", n*100+m), "v"))
		}
		if _, err := w.app.Txn(w.ctx).Then(puts...).Commit(); err != nil {
			return err
		}
	}
	syncer := mirror.NewSyncer(w.app, "app/m/", 0)
	base, failed := syncer.SyncBase(w.ctx)
	keys, last := 0, ""
	for answer := range base {
		for _, kv := range answer.Kvs {
			keys, last = keys+1, string(kv.Key)
		}
	}
	if err := <-failed; err != nil {
		return err
	}
	updates := syncer.SyncUpdates(w.ctx)
	if _, err := w.other.Delete(w.ctx, "app/m/0000"); err != nil {
		return err
	}
	update, err := next(w, updates)
	if err != nil {
		return err
	}
	return all(
		func() error { return want("keys", keys, 1200) },
		func() error { return want("last", last, "app/m/1199") },
		func() error {
			return want("update", fmt.Sprintf("%s %s", update.Events[0].Type, update.Events[0].Kv.Key),
				"DELETE app/m/0000")
		},
	)
}

// sessions begins one session on each of two connections.
func sessions(w *world) (mine, theirs *concurrency.Session, err error) {
	if mine, err = concurrency.NewSession(w.app, concurrency.WithTTL(60)); err != nil {
		return nil, nil, err
	}
	if theirs, err = concurrency.NewSession(w.other, concurrency.WithTTL(60)); err != nil {
		mine.Close()
		return nil, nil, err
	}
	return mine, theirs, nil
}

func mutexes(w *world) error {
	mine, theirs, err := sessions(w)
	if err != nil {
		return err
	}
	defer mine.Close()
	lock, wanted := concurrency.NewMutex(mine, "app/lock"), concurrency.NewMutex(theirs, "app/lock")
	if err := lock.Lock(w.ctx); err != nil {
		return err
	}
	if err := refused("try", wanted.TryLock(w.ctx), concurrency.ErrLocked); err != nil {
		return err
	}
	owner, err := w.app.Txn(w.ctx).If(lock.IsOwner()).Then(clientv3.OpPut("app/guarded", "mine")).Commit()
	if err != nil {
		return err
	}
	got := make(chan error, 1)
	go func() { got <- wanted.Lock(w.ctx) }()
	if err := lock.Unlock(w.ctx); err != nil {
		return err
	}
	if err := <-got; err != nil {
		return err
	}
	// Who ends gives its locks up.
	go func() { got <- lock.Lock(w.ctx) }()
	if err := theirs.Close(); err != nil {
		return err
	}
	if err := <-got; err != nil {
		return err
	}
	if err := want("owner", owner.Succeeded, true); err != nil {
		return err
	}

	// Many who add to one number.
	if err := lock.Unlock(w.ctx); err != nil {
		return err
	}
	failed := make(chan error, 8)
	for range 8 {
		go func() {
			failed <- func() error {
				session, err := concurrency.NewSession(w.other)
				if err != nil {
					return err
				}
				defer session.Close()
				mutex := concurrency.NewMutex(session, "app/many")
				if err := mutex.Lock(w.ctx); err != nil {
					return err
				}
				found, err := w.other.Get(w.ctx, "app/number")
				if err != nil {
					return err
				}
				number := 0
				if len(found.Kvs) > 0 {
					if _, err := fmt.Sscan(string(found.Kvs[0].Value), &number); err != nil {
						return err
					}
				}
				if _, err := w.other.Put(w.ctx, "app/number", fmt.Sprint(number+1)); err != nil {
					return err
				}
				return mutex.Unlock(w.ctx)
			}()
		}()
	}
	for range 8 {
		if err := <-failed; err != nil {
			return err
		}
	}
	return holds(w, w.app, "app/number", "app/number=8;")
}

func elections(w *world) error {
	mine, theirs, err := sessions(w)
	if err != nil {
		return err
	}
	defer mine.Close()
	defer theirs.Close()
	first, second := concurrency.NewElection(mine, "app/e"), concurrency.NewElection(theirs, "app/e")
	_, nobody := first.Leader(w.ctx)
	if err := first.Campaign(w.ctx, "first"); err != nil {
		return err
	}
	observed := concurrency.NewElection(theirs, "app/e").Observe(w.ctx)
	elected := make(chan error, 1)
	if err := refused("nobody", nobody, concurrency.ErrElectionNoLeader); err != nil {
		return err
	}
	see := func(expected string) error {
		found, err := pairs(next(w, observed))
		if err != nil {
			return err
		}
		// The key ends with the session's lease.
		return want("observed", found[len(found)-len(expected)-2:], "="+expected+";")
	}
	if err := see("first"); err != nil {
		return err
	}
	if err := first.Proclaim(w.ctx, "changed"); err != nil {
		return err
	}
	if err := see("changed"); err != nil {
		return err
	}
	go func() { elected <- second.Campaign(w.ctx, "second") }()
	if err := first.Resign(w.ctx); err != nil {
		return err
	}
	if err := <-elected; err != nil {
		return err
	}
	if err := see("second"); err != nil {
		return err
	}
	leader, err := first.Leader(w.ctx)
	if err != nil {
		return err
	}
	resumed := concurrency.ResumeElection(theirs, "app/e", string(leader.Kvs[0].Key), leader.Kvs[0].CreateRevision)
	return all(
		func() error { return want("leader", string(leader.Kvs[0].Value), "second") },
		func() error { return resumed.Resign(w.ctx) },
		func() error { return holds(w, w.app, "app/e/", "", clientv3.WithPrefix()) },
	)
}

func memories(w *world) error {
	const accounts, transfers = 5, 20
	account := func(n int) string { return fmt.Sprintf("app/account/%d", n%accounts) }
	for n := range accounts {
		if _, err := w.app.Put(w.ctx, account(n), "100"); err != nil {
			return err
		}
	}
	number := func(text string) (n int) {
		// Not a number is nothing, which the sum shows.
		_, _ = fmt.Sscan(text, &n)
		return n
	}
	var group sync.WaitGroup
	failed := make(chan error, 4)
	for worker, level := range []concurrency.Isolation{
		concurrency.SerializableSnapshot, concurrency.Serializable,
		concurrency.SerializableSnapshot, concurrency.RepeatableReads,
	} {
		group.Go(func() {
			client := []*clientv3.Client{w.app, w.other}[worker%2]
			for n := range transfers {
				from, to := account(worker+n), account(worker+3*n+1)
				if from == to {
					continue
				}
				_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
					left, right := number(stm.Get(from)), number(stm.Get(to))
					stm.Put(from, fmt.Sprint(left-1))
					stm.Put(to, fmt.Sprint(right+1))
					return nil
				}, concurrency.WithIsolation(level), concurrency.WithAbortContext(w.ctx))
				if err != nil {
					failed <- err
					return
				}
			}
		})
	}
	group.Wait()
	select {
	case err := <-failed:
		return err
	default:
	}
	found, err := w.app.Get(w.ctx, "app/account/", clientv3.WithPrefix())
	if err != nil {
		return err
	}
	sum := 0
	for _, kv := range found.Kvs {
		sum += number(string(kv.Value))
	}
	stopped := errors.New("stopped")
	_, err = concurrency.NewSTM(w.app, func(stm concurrency.STM) error {
		stm.Put(account(0), "0")
		return stopped
	})
	return all(
		func() error { return want("sum", sum, accounts*100) },
		func() error { return refused("aborted", err, stopped) },
	)
}

func recipes(w *world) error {
	queue := recipe.NewQueue(w.app, "app/queue")
	for _, item := range []string{"one", "two"} {
		if err := queue.Enqueue(item); err != nil {
			return err
		}
	}
	one, err := recipe.NewQueue(w.other, "app/queue").Dequeue()
	if err != nil {
		return err
	}
	// These two keep their counters outside of the prefix.
	urgent := recipe.NewPriorityQueue(w.root, "app/urgent")
	for priority, item := range []string{"first", "later"} {
		if err := urgent.Enqueue(item, uint16(priority)); err != nil {
			return err
		}
	}
	first, err := urgent.Dequeue()
	if err != nil {
		return err
	}
	barrier := recipe.NewBarrier(w.app, "app/barrier")
	if err := barrier.Hold(); err != nil {
		return err
	}
	released := make(chan error, 1)
	go func() { released <- recipe.NewBarrier(w.other, "app/barrier").Wait() }()
	if err := barrier.Release(); err != nil {
		return err
	}
	if err := <-released; err != nil {
		return err
	}
	session, err := concurrency.NewSession(w.root)
	if err != nil {
		return err
	}
	defer session.Close()
	shared := recipe.NewRWMutex(session, "app/shared")
	return all(
		func() error { return want("dequeued", one, "one") },
		func() error { return want("urgent", first, "first") },
		shared.RLock, shared.RUnlock, shared.Lock, shared.Unlock,
	)
}

func discovery(w *world) error {
	manager, err := endpoints.NewManager(w.app, "app/service")
	if err != nil {
		return err
	}
	lease, err := w.app.Grant(w.ctx, 600)
	if err != nil {
		return err
	}
	endpoint := endpoints.Endpoint{Addr: "10.0.0.1:1", Metadata: "zone"}
	if err := manager.AddEndpoint(w.ctx, "app/service/a", endpoint, clientv3.WithLease(lease.ID)); err != nil {
		return err
	}
	updates, err := manager.NewWatchChannel(w.ctx)
	if err != nil {
		return err
	}
	found, err := next(w, (<-chan []*endpoints.Update)(updates))
	if err != nil {
		return err
	}
	if _, err := w.app.Revoke(w.ctx, lease.ID); err != nil {
		return err
	}
	gone, err := next(w, (<-chan []*endpoints.Update)(updates))
	if err != nil {
		return err
	}
	list, err := manager.List(w.ctx)
	if err != nil {
		return err
	}
	return all(
		func() error { return want("added", found[0].Endpoint, endpoint) },
		func() error { return want("deleted", gone[0].Key, "app/service/a") },
		func() error { return want("list", len(list), 0) },
	)
}

// What kube-apiserver calls.
func objects(w *world) error {
	client, err := kubernetes.New(w.config)
	if err != nil {
		return err
	}
	defer client.Close()
	api := client.Kubernetes
	put, err := api.OptimisticPut(w.ctx, "app/pods/a", []byte("1"), 0, kubernetes.PutOptions{})
	if err != nil {
		return err
	}
	late, err := api.OptimisticPut(w.ctx, "app/pods/a", []byte("2"), 1, kubernetes.PutOptions{GetOnFailure: true})
	if err != nil {
		return err
	}
	if _, err := api.OptimisticPut(w.ctx, "app/pods/b", []byte("3"), 0, kubernetes.PutOptions{}); err != nil {
		return err
	}
	page, err := api.List(w.ctx, "app/pods/", kubernetes.ListOptions{Limit: 1})
	if err != nil {
		return err
	}
	rest, err := api.List(w.ctx, "app/pods/", kubernetes.ListOptions{
		Limit: 1, Revision: page.Revision, Continue: string(page.Kvs[0].Key) + "\x00",
	})
	if err != nil {
		return err
	}
	count, err := api.Count(w.ctx, "app/pods/", kubernetes.CountOptions{})
	if err != nil {
		return err
	}
	deleted, err := api.OptimisticDelete(w.ctx, "app/pods/a", put.Revision, kubernetes.DeleteOptions{})
	if err != nil {
		return err
	}
	got, err := api.Get(w.ctx, "app/pods/a", kubernetes.GetOptions{})
	if err != nil {
		return err
	}
	_, outside := api.Get(w.ctx, "pods/a", kubernetes.GetOptions{})
	return all(
		func() error { return want("put", put.Succeeded, true) },
		func() error { return want("late", late.Succeeded, false) },
		func() error { return want("is", string(late.KV.Value), "1") },
		func() error { return want("page", page.Count, 2) },
		func() error { return want("rest", string(rest.Kvs[0].Key), "app/pods/b") },
		func() error { return want("count", count, 2) },
		func() error { return want("deleted", deleted.Succeeded, true) },
		func() error { return want("gone", got.KV == nil, true) },
		func() error { return refused("outside", outside, rpctypes.ErrPermissionDenied) },
	)
}
