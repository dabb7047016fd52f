package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/clientv3util"
	"go.etcd.io/etcd/client/v3/snapshot"
	"go.uber.org/zap"
)

func users(w *world) error {
	config := w.config
	config.Password = "wrong"
	_, err := clientv3.New(config)
	if err := refused("wrong password", err, rpctypes.ErrAuthFailed); err != nil {
		return err
	}
	config.TLS = nil
	config.DialTimeout = 2 * time.Second
	if _, err = clientv3.New(config); err == nil {
		return errors.New("connected without TLS")
	}
	_, err = w.app.Put(w.ctx, "other/a", "1")
	if err := refused("put", err, rpctypes.ErrPermissionDenied); err != nil {
		return err
	}
	_, err = w.app.Get(w.ctx, "app/", clientv3.WithFromKey())
	if err := refused("range", err, rpctypes.ErrPermissionDenied); err != nil {
		return err
	}
	_, err = w.app.UserList(w.ctx)
	if err := refused("list", err, rpctypes.ErrPermissionDenied); err != nil {
		return err
	}
	list, err := w.root.UserList(w.ctx)
	if err != nil {
		return err
	}
	role, err := w.root.RoleGet(w.ctx, "app")
	if err != nil {
		return err
	}
	return all(
		func() error { return want("users", list.Users, "[app root]") },
		func() error { return want("permitted", role.Perm[0].PermType, "READWRITE") },
		func() error { return want("from", string(role.Perm[0].Key), "app/") },
		func() error { return want("until", string(role.Perm[0].RangeEnd), "app0") },
	)
}

func keys(w *world) error {
	for n := range 5 {
		if _, err := w.app.Put(w.ctx, fmt.Sprintf("app/k/%d", n), fmt.Sprint(n*n)); err != nil {
			return err
		}
	}
	before, err := w.app.Put(w.ctx, "app/k/0", "zero", clientv3.WithPrevKV())
	if err != nil {
		return err
	}
	page, err := w.app.Get(w.ctx, "app/k/", clientv3.WithPrefix(), clientv3.WithLimit(2))
	if err != nil {
		return err
	}
	count, err := w.app.Get(w.ctx, "app/k/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return err
	}
	stream, err := w.app.GetStream(w.ctx, "app/k/", clientv3.WithPrefix())
	if err != nil {
		return err
	}
	streamed, err := pairs(clientv3.GetStreamToGetResponse(stream))
	if err != nil {
		return err
	}
	deleted, err := w.app.Delete(w.ctx, "app/k/2", clientv3.WithRange("app/k/4"), clientv3.WithPrevKV())
	if err != nil {
		return err
	}
	_, early := w.app.Get(w.ctx, "app/k/1", clientv3.WithRev(1<<40))
	return all(
		func() error { return want("before", string(before.PrevKv.Value), "0") },
		func() error { return want("more", page.More, true) },
		func() error { return want("of", page.Count, 5) },
		func() error { return want("count", count.Count, 5) },
		func() error {
			return want("streamed", streamed, "app/k/0=zero;app/k/1=1;app/k/2=4;app/k/3=9;app/k/4=16;")
		},
		func() error { return want("deleted", deleted.Deleted, 2) },
		func() error { return want("was", string(deleted.PrevKvs[1].Value), "9") },
		func() error { return refused("future", early, rpctypes.ErrFutureRev) },
		func() error {
			return holds(w, w.app, "app/k/", "app/k/4=16;app/k/1=1;app/k/0=zero;", clientv3.WithPrefix(),
				clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend))
		},
		func() error { return holds(w, w.app, "app/k/1", "app/k/1=1;", clientv3.WithSerializable()) },
		func() error {
			return holds(w, w.app, "app/k/0", "app/k/0=0;", clientv3.WithRev(before.PrevKv.ModRevision))
		},
	)
}

func transactions(w *world) error {
	create := func() (bool, error) {
		done, err := w.app.Txn(w.ctx).If(clientv3util.KeyMissing("app/t")).
			Then(clientv3.OpPut("app/t", "new"), clientv3.OpGet("app/t")).
			Else(clientv3.OpTxn(
				[]clientv3.Cmp{clientv3.Compare(clientv3.Value("app/t"), "=", "new")},
				[]clientv3.Op{clientv3.OpPut("app/t/inner", "seen")},
				nil,
			)).Commit()
		if err != nil {
			return false, err
		}
		return done.Succeeded, nil
	}
	first, err := create()
	if err != nil {
		return err
	}
	second, err := create()
	if err != nil {
		return err
	}
	_, twice := w.app.Txn(w.ctx).Then(clientv3.OpPut("app/t", "1"), clientv3.OpPut("app/t", "2")).Commit()
	_, outside := w.app.Txn(w.ctx).Then(clientv3.OpPut("app/t", "1"), clientv3.OpGet("other")).Commit()
	return all(
		func() error { return want("first", first, true) },
		func() error { return want("second", second, false) },
		func() error { return refused("twice", twice, rpctypes.ErrDuplicateKey) },
		func() error { return refused("outside", outside, rpctypes.ErrPermissionDenied) },
		func() error { return holds(w, w.app, "app/t", "app/t=new;app/t/inner=seen;", clientv3.WithPrefix()) },
	)
}

func watches(w *world) error {
	begin, err := w.app.Get(w.ctx, "app/w/")
	if err != nil {
		return err
	}
	from := begin.Header.Revision + 1
	for _, op := range []clientv3.Op{
		clientv3.OpPut("app/w/a", "1"), clientv3.OpPut("app/w/a", "2"),
		clientv3.OpDelete("app/w/a"), clientv3.OpPut("app/w/b", "3"),
	} {
		if _, err := w.app.Do(w.ctx, op); err != nil {
			return err
		}
	}
	text := func(channel clientv3.WatchChan, events int) (string, error) {
		said := ""
		for events > 0 {
			answer, err := next(w, channel)
			if err != nil {
				return "", err
			}
			if answer.Err() != nil {
				return "", answer.Err()
			}
			for _, event := range answer.Events {
				said += fmt.Sprintf("%s %s=%s", event.Type, event.Kv.Key, event.Kv.Value)
				if event.PrevKv != nil {
					said += fmt.Sprintf(" was %s", event.PrevKv.Value)
				}
				said += ";"
				events--
			}
		}
		return said, nil
	}
	full := w.app.Watch(w.ctx, "app/w/", clientv3.WithPrefix(), clientv3.WithRev(from), clientv3.WithPrevKV())
	said, err := text(full, 4)
	if err != nil {
		return err
	}
	deletes := w.app.Watch(w.ctx, "app/w/", clientv3.WithPrefix(), clientv3.WithRev(from), clientv3.WithFilterPut())
	deleted, err := text(deletes, 1)
	if err != nil {
		return err
	}
	created, err := next(w, w.app.Watch(w.ctx, "app/w/c", clientv3.WithCreatedNotify()))
	if err != nil {
		return err
	}
	if _, err := w.other.Put(w.ctx, "app/w/live", "now"); err != nil {
		return err
	}
	live, err := text(full, 1)
	if err != nil {
		return err
	}
	if err := w.app.RequestProgress(w.ctx); err != nil {
		return err
	}
	progress, err := next(w, full)
	if err != nil {
		return err
	}
	if _, err := w.root.Compact(w.ctx, from+1, clientv3.WithCompactPhysical()); err != nil {
		return err
	}
	late, err := next(w, w.app.Watch(w.ctx, "app/w/a", clientv3.WithRev(from)))
	if err != nil {
		return err
	}
	foreign, err := next(w, w.app.Watch(w.ctx, "other"))
	if err != nil {
		return err
	}
	return all(
		func() error {
			return want("events", said, "PUT app/w/a=1;PUT app/w/a=2 was 1;DELETE app/w/a= was 2;PUT app/w/b=3;")
		},
		func() error { return want("deletes", deleted, "DELETE app/w/a=;") },
		func() error { return want("created", created.Created, true) },
		func() error { return want("live", live, "PUT app/w/live=now;") },
		func() error { return want("progress", progress.IsProgressNotify(), true) },
		func() error { return refused("compacted", late.Err(), rpctypes.ErrCompacted) },
		func() error { return want("behind", late.CompactRevision-from, 1) },
		func() error { return want("canceled", foreign.Canceled, true) },
		func() error {
			return want("foreign", foreign.Err(),
				"rpc error: code = PermissionDenied desc = etcdserver: permission denied")
		},
	)
}

func leases(w *world) error {
	lease, err := w.app.Grant(w.ctx, 600)
	if err != nil {
		return err
	}
	if _, err := w.app.Put(w.ctx, "app/l/long", "v", clientv3.WithLease(lease.ID)); err != nil {
		return err
	}
	left, err := w.app.TimeToLive(w.ctx, lease.ID, clientv3.WithAttachedKeys())
	if err != nil {
		return err
	}
	once, err := w.app.KeepAliveOnce(w.ctx, lease.ID)
	if err != nil {
		return err
	}
	if _, err := w.other.Revoke(w.ctx, lease.ID); err != nil {
		return err
	}
	_, gone := w.app.KeepAliveOnce(w.ctx, lease.ID)
	_, unknown := w.app.Put(w.ctx, "app/l/none", "v", clientv3.WithLease(lease.ID))

	// One that is kept outlives one that is not.
	kept, err := w.app.Grant(w.ctx, 2)
	if err != nil {
		return err
	}
	alive, err := w.app.KeepAlive(w.ctx, kept.ID)
	if err != nil {
		return err
	}
	if _, err := w.app.Put(w.ctx, "app/l/kept", "v", clientv3.WithLease(kept.ID)); err != nil {
		return err
	}
	short, err := w.app.Grant(w.ctx, 1)
	if err != nil {
		return err
	}
	put, err := w.app.Put(w.ctx, "app/l/short", "v", clientv3.WithLease(short.ID))
	if err != nil {
		return err
	}
	expiry, err := next(w, w.app.Watch(w.ctx, "app/l/short", clientv3.WithRev(put.Header.Revision+1)))
	if err != nil {
		return err
	}
	if _, err := next(w, alive); err != nil {
		return err
	}
	if _, err := w.app.Revoke(w.ctx, kept.ID); err != nil {
		return err
	}
	return all(
		func() error { return want("granted", left.GrantedTTL, 600) },
		func() error { return want("keys", fmt.Sprintf("%s", left.Keys), "[app/l/long]") },
		func() error { return want("once", once.TTL, 600) },
		func() error { return refused("gone", gone, rpctypes.ErrLeaseNotFound) },
		func() error { return refused("unknown", unknown, rpctypes.ErrLeaseNotFound) },
		func() error { return want("expired", expiry.Events[0].Type, "DELETE") },
		func() error { return holds(w, w.app, "app/l/", "", clientv3.WithPrefix()) },
	)
}

func maintenance(w *world) error {
	members, err := w.app.MemberList(w.ctx)
	if err != nil {
		return err
	}
	status, err := w.root.Status(w.ctx, w.config.Endpoints[0])
	if err != nil {
		return err
	}
	_, denied := w.app.HashKV(w.ctx, w.config.Endpoints[0], 0)
	hash, err := w.root.HashKV(w.ctx, w.config.Endpoints[0], 0)
	if err != nil {
		return err
	}
	if _, err := w.root.Defragment(w.ctx, w.config.Endpoints[0]); err != nil {
		return err
	}
	config := w.config
	config.Username, config.Password = "root", w.root.Password
	path := filepath.Join(w.folder, "snapshot.db")
	version, err := snapshot.SaveWithVersion(w.ctx, zap.NewNop(), config, path)
	if err != nil {
		return err
	}
	file, err := os.Stat(path)
	if err != nil {
		return err
	}
	return all(
		func() error { return want("members", len(members.Members), 1) },
		func() error { return want("leads", status.Leader == members.Members[0].ID, true) },
		func() error { return want("version", status.Version, "3.7.3") },
		func() error { return want("errors", len(status.Errors), 0) },
		func() error { return refused("hash", denied, rpctypes.ErrPermissionDenied) },
		func() error { return want("hash", hash.HashRevision > 0, true) },
		func() error { return want("saved", version, "3.7.0") },
		func() error { return want("checksum", file.Size()%512, 32) },
	)
}
