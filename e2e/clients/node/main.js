// The client `etcd3` of Node, as programs use it.
//
//   node main.js ENDPOINT CA_FILE NAME PASSWORD ROOT_PASSWORD FOLDER
//
// The user NAME may read and write what begins with `app/`. It says what it did, without anything that
// differs between two servers that answer alike, and exits with 1 at the first wrong answer.
'use strict';

const fs = require('fs');
const { once } = require('events');
const { Etcd3 } = require('etcd3');

// How long all of it may take on a busy machine, in milliseconds.
const LIMIT = 180_000;
// The client names it only for TypeScript.
const SERIALIZABLE_SNAPSHOT = 0;

function want(what, found, expected) {
  const [text, right] = [found, expected].map((of) => JSON.stringify(of));
  console.log(`${what}: ${text}`);
  if (text !== right) throw new Error(`${what}: ${text}, not ${right}`);
}

/** Says how a call ended, which must be that error. */
async function refused(what, call, name) {
  const error = await call().then(
    () => undefined,
    (error) => error,
  );
  want(what, error && error.constructor.name, name);
}

async function users(connect, client, root) {
  const wrong = connect(undefined, 'wrong');
  await refused('wrong password', () => wrong.get('app/a').string(), 'EtcdAuthenticationFailedError');
  wrong.close();
  await refused('put', () => client.put('other').value('1'), 'EtcdPermissionDeniedError');
  await refused('all', () => client.getAll().all().strings(), 'EtcdPermissionDeniedError');
  want('roles', (await root.getRoles()).map((role) => role.name), ['app']);
  const role = root.role('node');
  await role.create();
  await role.grant({ permission: 'Read', range: root.range({ prefix: 'node/' }) });
  const user = root.user('node');
  await user.create('secret');
  await user.addRole('node');
  const own = connect('node', 'secret');
  want('own', await own.get('node/a').string(), null);
  await refused('write', () => own.put('node/a').value('1'), 'EtcdPermissionDeniedError');
  own.close();
  await user.delete();
  await role.delete();
}

async function keys(app) {
  for (let n = 0; n < 4; n++) await app.put(`k/${n}`).value(n * n);
  want('number', await app.get('k/3').number(), 9);
  want('all', await app.getAll().prefix('k/').strings(), { 'k/0': '0', 'k/1': '1', 'k/2': '4', 'k/3': '9' });
  want('sorted', await app.getAll().prefix('k/').sort('Key', 'Descend').limit(2).keys(), ['k/3', 'k/2']);
  want('count', await app.getAll().prefix('k/').count(), 4);
  const put = await app.put('k/0').value('zero').getPrevious();
  want('before', put.value.toString(), '0');
  want('deleted', (await app.delete().prefix('k/')).deleted, '4');
  want('gone', await app.get('k/0').exists(), false);
}

async function transactions(app) {
  const create = () =>
    app
      .if('t', 'Create', '==', 0)
      .then(app.put('t').value('1'), app.get('t'))
      .else(app.get('t'))
      .commit();
  want('first', (await create()).succeeded, true);
  const second = await create();
  want('second', second.succeeded, false);
  want('else', second.responses[0].response_range.kvs[0].value.toString(), '1');
  await app.put('sum').value(0);
  const add = () =>
    app.stm({ retries: 100, isolation: SERIALIZABLE_SNAPSHOT }).transact(async (tx) => {
      await tx.put('sum').value((await tx.get('sum').number()) + 1);
    });
  await Promise.all([add(), add(), add(), add()]);
  want('sum', await app.get('sum').number(), 4);
}

async function watches(app) {
  const begin = await app.put('w/a').value('1');
  await app.put('w/a').value('2');
  await app.delete().key('w/a');
  const watcher = await app
    .watch()
    .prefix('w/')
    .startRevision(begin.header.revision)
    .withPreviousKV()
    .create();
  const said = [];
  const done = new Promise((resolve) => {
    const see = (kind) => (kv, before) => {
      said.push(`${kind} ${kv.key}=${kv.value} was ${before ? before.value : ''}`);
      if (said.length === 4) resolve();
    };
    watcher.on('put', see('put')).on('delete', see('delete'));
  });
  await app.put('w/live').value('now');
  await done;
  await watcher.cancel();
  want('events', said, ['put w/a=1 was ', 'put w/a=2 was 1', 'delete w/a= was 2', 'put w/live=now was ']);
}

async function leases(app) {
  const lease = app.lease(600, { autoKeepAlive: false });
  await lease.put('l/a').value('v');
  want('kept', (await lease.keepaliveOnce()).TTL, '600');
  await lease.revoke();
  want('revoked', await app.get('l/a').string(), null);
  await refused('after', () => lease.put('l/a').value('v').exec(), 'EtcdLeaseInvalidError');
  const watcher = await app.watch().key('l/short').only('delete').create();
  const gone = once(watcher, 'delete');
  const short = app.lease(1, { autoKeepAlive: false });
  await short.put('l/short').value('v');
  const [kv] = await gone;
  want('expired', kv.key.toString(), 'l/short');
  await watcher.cancel();
  short.release();
}

async function locks(app) {
  const lock = await app.lock('lock').ttl(60).acquire();
  await refused('other', () => app.lock('lock').acquire(), 'EtcdLockFailedError');
  await lock.release();
  want('free', await app.lock('lock').do(() => 'done'), 'done');
}

async function elections(app) {
  const election = app.election('e', 60);
  const first = election.campaign('first');
  await first.wait();
  const observer = await election.observe();
  want('leader', observer.leader(), 'first');
  const changed = async (value) => {
    while (observer.leader() !== value) await once(observer, 'change');
    want('leader', observer.leader(), value);
  };
  await first.proclaim('changed');
  await changed('changed');
  const second = app.election('e', 60).campaign('second');
  const elected = second.wait();
  await first.resign();
  await elected;
  await changed('second');
  await observer.cancel();
  await second.resign();
}

async function main([endpoint, ca, name, password, rootPassword, folder]) {
  const rootCertificate = fs.readFileSync(ca);
  const connect = (username = name, secret = password) =>
    new Etcd3({
      hosts: endpoint,
      credentials: { rootCertificate },
      auth: { username, password: secret },
    });
  const client = connect();
  const root = connect('root', rootPassword);
  const app = client.namespace('app/');
  const steps = {
    users: () => users(connect, client, root),
    keys: () => keys(app),
    transactions: () => transactions(app),
    watches: () => watches(app),
    leases: () => leases(app),
    locks: () => locks(app),
    elections: () => elections(app),
    maintenance: async () => {
      const status = await root.maintenance.status();
      want('version', status.version, '3.7.3');
      const members = await client.cluster.memberList({});
      want('leads', members.members[0].ID === status.leader, true);
    },
  };
  for (const [name, step] of Object.entries(steps)) {
    console.log('#', name);
    await step();
  }
  client.close();
  root.close();
}

const late = setTimeout(() => {
  console.error('not done in time');
  process.exit(1);
}, LIMIT);
main(process.argv.slice(2)).then(
  () => clearTimeout(late),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
