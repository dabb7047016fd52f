"""The client `etcd3` of Python, as programs use it.

    main.py HOST:PORT CA_FILE NAME PASSWORD ROOT_PASSWORD FOLDER

The user NAME may read and write what begins with `app/`. It says what it did, without anything that
differs between two servers that answer alike, and exits with 1 at the first wrong answer.
"""

import os
import sys
import threading

import etcd3
import etcd3.locks
import grpc

# How long one call or wait may take on a busy machine, in seconds.
LIMIT = 60


def want(what, found, expected):
    print(f"{what}: {found}", flush=True)
    if found != expected:
        sys.exit(f"{what}: {found!r}, not {expected!r}")


def refused(what, call, code, details):
    """Says how a call ended, which must be that error."""
    try:
        call()
    except grpc.RpcError as error:
        want(what, (error.code().name, error.details()), (code, details))
        return
    sys.exit(f"{what}: not refused")


def values(found):
    return [(meta.key, value) for value, meta in found]


def users(connect, client):
    failed = "etcdserver: authentication failed, invalid user ID or password"
    denied = "etcdserver: permission denied"
    refused("wrong password", lambda: connect(password="wrong"), "INVALID_ARGUMENT", failed)
    refused("put", lambda: client.put("other", "1"), "PERMISSION_DENIED", denied)
    refused("all", lambda: list(client.get_all()), "PERMISSION_DENIED", denied)


def keys(client):
    for n in range(4):
        client.put(f"app/k/{n}", str(n * n))
    before = client.put("app/k/0", "zero", prev_kv=True)
    want("before", before.prev_kv.value, b"0")
    value, meta = client.get("app/k/0")
    want("get", (value, meta.version), (b"zero", 2))
    want("serializable", client.get("app/k/1", serializable=True)[0], b"1")
    found = client.get_prefix("app/k/", sort_order="descend")
    want("prefix", [key for key, _ in values(found)], [b"app/k/3", b"app/k/2", b"app/k/1", b"app/k/0"])
    found = client.get_range("app/k/1", "app/k/3")
    want("range", values(found), [(b"app/k/1", b"1"), (b"app/k/2", b"4")])
    want("delete", client.delete("app/k/1"), True)
    want("again", client.delete("app/k/1"), False)
    want("prefix", client.delete_prefix("app/k/").deleted, 3)
    want("gone", client.get("app/k/0"), (None, None))


def transactions(client):
    want("new", client.put_if_not_exists("app/t", "1"), True)
    want("there", client.put_if_not_exists("app/t", "2"), False)
    want("replace", client.replace("app/t", "1", "3"), True)
    t = client.transactions
    done, answers = client.transaction(
        compare=[t.value("app/t") == "3", t.version("app/t") > 1],
        success=[t.put("app/t/a", "4"), t.get("app/t"), t.delete("app/t")],
        failure=[t.get("app/t")],
    )
    want("done", done, True)
    want("read", [value for value, _ in answers[1]], [b"3"])
    done, answers = client.transaction(
        compare=[t.create("app/t/a") == 0],
        success=[],
        failure=[t.txn(compare=[t.mod("app/t/a") > 0], success=[t.get("app/t/a")], failure=[])],
    )
    want("else", done, False)
    twice = [t.put("app/t", "1"), t.put("app/t", "2")]
    refused(
        "twice",
        lambda: client.transaction(compare=[], success=twice, failure=[]),
        "INVALID_ARGUMENT",
        "etcdserver: duplicate key given in txn request",
    )


def watches(client, root):
    first = client.put("app/w/a", "1").header.revision
    client.put("app/w/a", "2")
    client.delete("app/w/a")
    events, cancel = client.watch_prefix("app/w/", start_revision=first, prev_kv=True)
    said = []
    for event in events:
        said.append((type(event).__name__, event.value, event.prev_value))
        if len(said) == 3:
            client.put("app/w/live", "now")
        if len(said) == 4:
            break
    cancel()
    want(
        "events",
        said,
        [
            ("PutEvent", b"1", b""),
            ("PutEvent", b"2", b"1"),
            ("DeleteEvent", b"", b"2"),
            ("PutEvent", b"now", b""),
        ],
    )
    root.compact(first + 1, physical=True)
    try:
        events, cancel = client.watch("app/w/a", start_revision=first)
        next(events)
        sys.exit("a compacted revision is watched")
    except etcd3.exceptions.RevisionCompactedError as error:
        want("compacted", error.compacted_revision - first, 1)


def leases(client):
    lease = client.lease(600)
    client.put("app/l/a", "v", lease=lease)
    want("granted", lease.granted_ttl, 600)
    want("keys", list(lease.keys), [b"app/l/a"])
    want("refreshed", [answer.TTL for answer in lease.refresh()], [600])
    lease.revoke()
    want("revoked", client.get("app/l/a"), (None, None))
    want("left", lease.remaining_ttl, -1)
    refused(
        "put",
        lambda: client.put("app/l/a", "v", lease=lease),
        "NOT_FOUND",
        "etcdserver: requested lease not found",
    )
    short = client.lease(1)
    begin = client.put("app/l/short", "v", lease=short).header.revision
    events, cancel = client.watch("app/l/short", start_revision=begin + 1)
    want("expired", type(next(events)).__name__, "DeleteEvent")
    cancel()


def locks(connect, client):
    etcd3.locks.Lock.lock_prefix = "app/locks/"
    number = [0]

    def add():
        own = connect()
        for _ in range(3):
            lock = own.lock("number", ttl=60)
            # It may miss that the lock is free, and then waits as long as it is told.
            while not lock.acquire(timeout=1):
                pass
            seen = number[0]
            own.put("app/number", str(seen))
            number[0] = seen + 1
            lock.release()

    threads = [threading.Thread(target=add) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    want("number", number[0], 9)
    with client.lock("held") as lock:
        want("held", lock.is_acquired(), True)
        want("other", client.lock("held").acquire(timeout=0), False)
    want("free", lock.is_acquired(), False)


def maintenance(client, root, folder):
    members = list(client.members)
    want("members", [member.name for member in members], ["m"])
    status = root.status()
    want("status", (status.version, status.leader.name), ("3.7.3", "m"))
    want("alarms", list(root.list_alarms()), [])
    root.defragment()
    path = os.path.join(folder, "python.db")
    with open(path, "wb") as file:
        root.snapshot(file)
    # Pages, and the checksum behind them.
    want("snapshot", os.path.getsize(path) % 512, 32)


def main():
    endpoint, ca, name, password, root_password, folder = sys.argv[1:]
    host, port = endpoint.split("://")[-1].rsplit(":", 1)

    def connect(user=name, password=password):
        return etcd3.client(
            host=host, port=int(port), ca_cert=ca, user=user, password=password, timeout=LIMIT
        )

    client, root = connect(), connect("root", root_password)
    for name, step in [
        ("users", lambda: users(connect, client)),
        ("keys", lambda: keys(client)),
        ("transactions", lambda: transactions(client)),
        ("watches", lambda: watches(client, root)),
        ("leases", lambda: leases(client)),
        ("locks", lambda: locks(connect, client)),
        ("maintenance", lambda: maintenance(client, root, folder)),
    ]:
        print("#", name, flush=True)
        step()
    # Its watches' thread waits for the server for ever.
    sys.stdout.flush()
    os._exit(0)


main()
