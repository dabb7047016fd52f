import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.Client;
import io.etcd.jetcd.Election;
import io.etcd.jetcd.KV;
import io.etcd.jetcd.Lease;
import io.etcd.jetcd.Watch;
import io.etcd.jetcd.auth.Permission;
import io.etcd.jetcd.election.LeaderKey;
import io.etcd.jetcd.election.LeaderResponse;
import io.etcd.jetcd.kv.TxnResponse;
import io.etcd.jetcd.lease.LeaseKeepAliveResponse;
import io.etcd.jetcd.lock.LockResponse;
import io.etcd.jetcd.op.Cmp;
import io.etcd.jetcd.op.CmpTarget;
import io.etcd.jetcd.op.Op;
import io.etcd.jetcd.options.CompactOption;
import io.etcd.jetcd.options.DeleteOption;
import io.etcd.jetcd.options.GetOption;
import io.etcd.jetcd.options.LeaseOption;
import io.etcd.jetcd.options.PutOption;
import io.etcd.jetcd.options.WatchOption;
import io.etcd.jetcd.watch.WatchEvent;
import io.grpc.stub.StreamObserver;
import java.io.File;
import java.io.FileOutputStream;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/**
 * The client {@code jetcd} of Java, as programs use it.
 *
 * <p>{@code Main ENDPOINT CA_FILE NAME PASSWORD ROOT_PASSWORD FOLDER}
 *
 * <p>The user NAME may read and write what begins with {@code app/}. It says what it did, without
 * anything that differs between two servers that answer alike, and exits with 1 at the first wrong
 * answer.
 */
public final class Main {
    /** How long one call or wait may take on a busy machine, in seconds. */
    private static final long LIMIT = 60;

    private final String endpoint;
    private final File ca;
    private final File folder;
    private final Client app;
    private final Client root;

    private Main(String[] args) throws Exception {
        endpoint = args[0];
        ca = new File(args[1]);
        folder = new File(args[5]);
        app = connect(args[2], args[3]);
        root = connect("root", args[4]);
    }

    public static void main(String[] args) {
        int code = 0;
        try {
            new Main(args).run();
        } catch (Throwable error) {
            error.printStackTrace();
            code = 1;
        }
        // The client's threads need not end.
        System.out.flush();
        System.exit(code);
    }

    private void run() throws Exception {
        step("users", this::users);
        step("keys", this::keys);
        step("transactions", this::transactions);
        step("watches", this::watches);
        step("leases", this::leases);
        step("locks", this::locks);
        step("elections", this::elections);
        step("maintenance", this::maintenance);
    }

    private interface Step {
        void run() throws Exception;
    }

    private static void step(String name, Step step) throws Exception {
        System.out.println("# " + name);
        step.run();
    }

    private Client connect(String name, String password) throws Exception {
        return Client.builder()
                .endpoints(endpoint)
                .user(bytes(name))
                .password(bytes(password))
                .sslContext(builder -> builder.trustManager(ca))
                .build();
    }

    private static ByteSequence bytes(String text) {
        return ByteSequence.from(text, StandardCharsets.UTF_8);
    }

    private static <T> T get(CompletableFuture<T> future) throws Exception {
        return future.get(LIMIT, TimeUnit.SECONDS);
    }

    private static <T> T next(BlockingQueue<T> queue) throws Exception {
        T item = queue.poll(LIMIT, TimeUnit.SECONDS);
        if (item == null) {
            throw new IllegalStateException("nothing came");
        }
        return item;
    }

    private static void want(String what, Object found, Object expected) {
        System.out.println(what + ": " + found);
        if (!String.valueOf(found).equals(String.valueOf(expected))) {
            throw new IllegalStateException(what + ": " + found + ", not " + expected);
        }
    }

    /** Says how a call ended, which must be that error. */
    private static void refused(String what, CompletableFuture<?> call, String expected)
            throws Exception {
        try {
            get(call);
        } catch (ExecutionException error) {
            Throwable cause = error.getCause();
            while (cause.getCause() != null) {
                cause = cause.getCause();
            }
            String told = cause.getMessage();
            want(what, told != null ? told : cause.getClass().getSimpleName(), expected);
            return;
        }
        throw new IllegalStateException(what + ": not refused");
    }

    /** What is below a prefix, in its order. */
    private String below(String prefix) throws Exception {
        StringBuilder text = new StringBuilder();
        GetOption option = GetOption.builder().isPrefix(true).build();
        get(app.getKVClient().get(bytes(prefix), option))
                .getKvs()
                .forEach(kv -> text.append(kv.getKey() + "=" + kv.getValue() + ";"));
        return text.toString();
    }

    private void users() throws Exception {
        try (Client wrong = connect("app", "wrong")) {
            refused(
                    "wrong password",
                    wrong.getKVClient().get(bytes("app/a")),
                    "INVALID_ARGUMENT: etcdserver: authentication failed, invalid user ID or password");
        }
        String denied = "PERMISSION_DENIED: etcdserver: permission denied";
        refused("put", app.getKVClient().put(bytes("other"), bytes("1")), denied);
        refused("list", app.getAuthClient().userList(), "etcdserver: permission denied");
        want("users", get(root.getAuthClient().userList()).getUsers(), "[app, root]");
        ByteSequence name = bytes("java");
        get(root.getAuthClient().userAdd(name, bytes("secret")));
        get(root.getAuthClient().roleAdd(name));
        get(root.getAuthClient()
                .roleGrantPermission(name, bytes("java/"), bytes("java0"), Permission.Type.READ));
        get(root.getAuthClient().userGrantRole(name, name));
        try (Client own = connect("java", "secret")) {
            want("own", get(own.getKVClient().get(bytes("java/a"))).getCount(), 0);
            refused("write", own.getKVClient().put(bytes("java/a"), bytes("1")), denied);
        }
        get(root.getAuthClient().userDelete(name));
        get(root.getAuthClient().roleDelete(name));
    }

    private void keys() throws Exception {
        KV kv = app.getKVClient();
        for (int n = 0; n < 4; n++) {
            get(kv.put(bytes("app/k/" + n), bytes("" + n * n)));
        }
        PutOption previous = PutOption.builder().withPrevKV().build();
        want(
                "before",
                get(kv.put(bytes("app/k/0"), bytes("zero"), previous)).getPrevKv().getValue(),
                "0");
        want("prefix", below("app/k/"), "app/k/0=zero;app/k/1=1;app/k/2=4;app/k/3=9;");
        GetOption newest = GetOption.builder()
                .isPrefix(true)
                .withSortField(GetOption.SortTarget.MOD)
                .withSortOrder(GetOption.SortOrder.DESCEND)
                .withLimit(1)
                .build();
        want("newest", get(kv.get(bytes("app/k/"), newest)).getKvs().get(0).getKey(), "app/k/0");
        DeleteOption all = DeleteOption.builder().isPrefix(true).withPrevKV(true).build();
        want("deleted", get(kv.delete(bytes("app/k/"), all)).getDeleted(), 4);
        want("left", below("app/k/"), "");
    }

    private TxnResponse create() throws Exception {
        ByteSequence key = bytes("app/t");
        return get(app.getKVClient()
                .txn()
                .If(new Cmp(key, Cmp.Op.EQUAL, CmpTarget.createRevision(0)))
                .Then(
                        Op.put(key, bytes("1"), PutOption.DEFAULT),
                        Op.get(key, GetOption.DEFAULT))
                .Else(Op.txn(
                        new Cmp[] {new Cmp(key, Cmp.Op.EQUAL, CmpTarget.value(bytes("1")))},
                        new Op[] {Op.put(bytes("app/t/in"), bytes("2"), PutOption.DEFAULT)},
                        new Op[] {}))
                .commit());
    }

    private void transactions() throws Exception {
        want("first", create().isSucceeded(), true);
        TxnResponse second = create();
        want("second", second.isSucceeded(), false);
        want("inner", second.getTxnResponses().get(0).isSucceeded(), true);
        want("both", below("app/t"), "app/t=1;app/t/in=2;");
        Op put = Op.put(bytes("app/t"), bytes("3"), PutOption.DEFAULT);
        refused(
                "twice",
                app.getKVClient().txn().Then(put, put).commit(),
                "INVALID_ARGUMENT: etcdserver: duplicate key given in txn request");
    }

    private void watches() throws Exception {
        KV kv = app.getKVClient();
        ByteSequence key = bytes("app/w/a");
        long begin = get(kv.put(key, bytes("1"))).getHeader().getRevision();
        get(kv.put(key, bytes("2")));
        get(kv.delete(key));
        BlockingQueue<String> said = new LinkedBlockingQueue<>();
        WatchOption option = WatchOption.builder()
                .isPrefix(true)
                .withPrevKV(true)
                .withRevision(begin)
                .build();
        try (Watch.Watcher watcher = app.getWatchClient().watch(bytes("app/w/"), option, answer -> {
            for (WatchEvent event : answer.getEvents()) {
                said.add(event.getEventType() + " " + event.getKeyValue().getKey() + "="
                        + event.getKeyValue().getValue() + " was " + event.getPrevKV().getValue());
            }
        })) {
            want("event", next(said), "PUT app/w/a=1 was ");
            want("event", next(said), "PUT app/w/a=2 was 1");
            want("event", next(said), "DELETE app/w/a= was 2");
            get(kv.put(bytes("app/w/live"), bytes("now")));
            want("event", next(said), "PUT app/w/live=now was ");
        }
        get(root.getKVClient()
                .compact(begin + 1, CompactOption.builder().withCompactPhysical(true).build()));
        BlockingQueue<String> errors = new LinkedBlockingQueue<>();
        WatchOption late = WatchOption.builder().withRevision(begin).build();
        try (Watch.Watcher watcher = app.getWatchClient().watch(key, late, answer -> {}, error -> {
            errors.add(error.getMessage());
        })) {
            want(
                    "compacted",
                    next(errors),
                    "etcdserver: mvcc: required revision has been compacted");
        }
    }

    private void leases() throws Exception {
        Lease leases = app.getLeaseClient();
        KV kv = app.getKVClient();
        long id = get(leases.grant(600)).getID();
        get(kv.put(bytes("app/l/a"), bytes("v"), PutOption.builder().withLeaseId(id).build()));
        LeaseOption attached = LeaseOption.builder().withAttachedKeys().build();
        want("keys", get(leases.timeToLive(id, attached)).getKeys(), "[app/l/a]");
        want("once", get(leases.keepAliveOnce(id)).getTTL(), 600);
        BlockingQueue<Long> kept = new LinkedBlockingQueue<>();
        try (var alive = leases.keepAlive(id, new StreamObserver<LeaseKeepAliveResponse>() {
            @Override
            public void onNext(LeaseKeepAliveResponse answer) {
                kept.add(answer.getTTL());
            }

            @Override
            public void onError(Throwable error) {}

            @Override
            public void onCompleted() {}
        })) {
            want("kept", next(kept), 600);
        }
        get(leases.revoke(id));
        want("revoked", below("app/l/"), "");
        refused(
                "unknown",
                kv.put(bytes("app/l/a"), bytes("v"), PutOption.builder().withLeaseId(id).build()),
                "NOT_FOUND: etcdserver: requested lease not found");
        BlockingQueue<String> gone = new LinkedBlockingQueue<>();
        WatchOption deletes = WatchOption.builder().withNoPut(true).build();
        try (Watch.Watcher watcher = app.getWatchClient()
                .watch(bytes("app/l/short"), deletes, answer -> answer.getEvents()
                        .forEach(event -> gone.add(event.getEventType().toString())))) {
            long brief = get(leases.grant(1)).getID();
            PutOption with = PutOption.builder().withLeaseId(brief).build();
            get(kv.put(bytes("app/l/short"), bytes("v"), with));
            want("expired", next(gone), "DELETE");
        }
    }

    private long lease() throws Exception {
        return get(app.getLeaseClient().grant(600)).getID();
    }

    /** The server keeps the queue of those who wait. */
    private void locks() throws Exception {
        ByteSequence name = bytes("app/lock");
        long first = lease();
        ByteSequence held = get(app.getLockClient().lock(name, first)).getKey();
        want("held", held.toString().startsWith("app/lock/"), true);
        CompletableFuture<LockResponse> second = app.getLockClient().lock(name, lease());
        want("waits", second.isDone(), false);
        get(app.getLockClient().unlock(held));
        ByteSequence mine = get(second).getKey();
        want("other", mine.equals(held), false);
        // A lease that ends gives its lock up.
        long last = lease();
        CompletableFuture<LockResponse> third = app.getLockClient().lock(name, last);
        get(app.getKVClient().delete(mine));
        ByteSequence key = get(third).getKey();
        get(app.getLeaseClient().revoke(last));
        want("gone", get(app.getKVClient().get(key)).getCount(), 0);
    }

    private void elections() throws Exception {
        Election election = app.getElectionClient();
        ByteSequence name = bytes("app/e");
        refused("nobody", election.leader(name), "NoLeaderException");
        LeaderKey first = get(election.campaign(name, lease(), bytes("first"))).getLeader();
        BlockingQueue<String> seen = new LinkedBlockingQueue<>();
        election.observe(name, new Election.Listener() {
            @Override
            public void onNext(LeaderResponse answer) {
                seen.add(answer.getKv().getValue().toString());
            }

            @Override
            public void onError(Throwable error) {
                seen.add(error.toString());
            }

            @Override
            public void onCompleted() {}
        });
        want("observed", next(seen), "first");
        get(election.proclaim(first, bytes("changed")));
        want("observed", next(seen), "changed");
        var second = election.campaign(name, lease(), bytes("second"));
        get(election.resign(first));
        LeaderKey leader = get(second).getLeader();
        want("observed", next(seen), "second");
        want("leader", get(election.leader(name)).getKv().getValue(), "second");
        want("name", leader.getName(), "app/e");
        get(election.resign(leader));
    }

    private void maintenance() throws Exception {
        var members = get(app.getClusterClient().listMember()).getMembers();
        var status = get(root.getMaintenanceClient().statusMember(endpoint));
        want("version", status.getVersion(), "3.7.3");
        want("leads", status.getLeader() == members.get(0).getId(), true);
        want("alarms", get(root.getMaintenanceClient().listAlarms()).getAlarms(), "[]");
        get(root.getMaintenanceClient().defragmentMember(endpoint));
        File file = new File(folder, "java.db");
        try (OutputStream output = new FileOutputStream(file)) {
            get(root.getMaintenanceClient().snapshot(output));
        }
        // Pages, and the checksum behind them.
        want("snapshot", file.length() % 512, 32);
    }
}
