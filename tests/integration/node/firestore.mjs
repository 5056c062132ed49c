// What the Firestore stand-in must do for the Node client, which the website uses. Prints TAP; run with FIRESTORE_EMULATOR_HOST set.

import assert from 'node:assert/strict';
import {after, test} from 'node:test';
import {AggregateField, FieldPath, FieldValue, Filter, Firestore, Timestamp} from '@google-cloud/firestore';

const clients = [];
let projects = 0;

function connect(projectId) {
  const client = new Firestore({projectId});
  clients.push(client);
  return client;
}

const fresh = () => connect(`node-${projects++}`);
const ids = snapshot => snapshot.docs.map(doc => doc.id);
const GRPC = {invalid: 3, notFound: 5, alreadyExists: 6, failedPrecondition: 9};

// Waits for snapshots one by one.
function watching(target) {
  const seen = [];
  const waiting = [];
  const stop = target.onSnapshot(
    snapshot => (waiting.length ? waiting.shift().resolve(snapshot) : seen.push(snapshot)),
    error => waiting.shift()?.reject(error)
  );
  const next = () =>
    seen.length
      ? Promise.resolve(seen.shift())
      : new Promise((resolve, reject) => waiting.push({resolve, reject}));
  return {next, stop};
}

after(() => Promise.all(clients.map(client => client.terminate())));

test('set, merge, update and delete fields', async () => {
  const exam = fresh().doc('exams/a');
  await exam.set({old: 1, both: {x: 1, y: 2}});
  await exam.set({both: {x: 3, 'd.t': 1}});
  await exam.set({both: {y: 4}}, {merge: true});
  await exam.update('both.x', 5, new FieldPath('both', 'd.t'), 6, 'gone', FieldValue.delete());
  assert.deepEqual((await exam.get()).data(), {both: {x: 5, y: 4, 'd.t': 6}});
  await exam.set({a: 1, both: {x: FieldValue.delete()}}, {merge: true});
  assert.deepEqual((await exam.get()).data(), {a: 1, both: {y: 4, 'd.t': 6}});
});

test('transforms', async () => {
  const exam = fresh().doc('exams/a');
  await exam.set({n: 1, list: [1, 2]});
  await exam.update({
    n: FieldValue.increment(2.5),
    list: FieldValue.arrayUnion(2, 3),
    time: FieldValue.serverTimestamp(),
  });
  await exam.update({list: FieldValue.arrayRemove(1)});
  const data = (await exam.get()).data();
  assert.equal(data.n, 3.5);
  assert.deepEqual(data.list, [2, 3]);
  assert.ok(data.time instanceof Timestamp);
});

test('errors carry their codes', async () => {
  const db = fresh();
  const exam = db.doc('exams/a');
  await assert.rejects(exam.update({a: 1}), {code: GRPC.notFound, message: /No document to update/});
  const {writeTime} = await exam.create({a: 1});
  await assert.rejects(exam.create({}), {code: GRPC.alreadyExists});
  await exam.update({a: 2});
  await assert.rejects(exam.update({a: 3}, {lastUpdateTime: writeTime}), {
    code: GRPC.failedPrecondition,
    message: /does not match the required base version/,
  });
  await assert.rejects(db.collection('exams').doc('__x__').set({}), {code: GRPC.invalid});
  await assert.rejects(exam.set({a: 'x'.repeat(1_048_480), b: 'x'.repeat(100)}), {code: GRPC.invalid});
});

test('a failing batch does nothing', async () => {
  const db = fresh();
  const batch = db.batch().set(db.doc('exams/a'), {}).update(db.doc('exams/missing'), {a: 1});
  await assert.rejects(batch.commit(), {code: GRPC.notFound});
  assert.equal((await db.doc('exams/a').get()).exists, false);
});

test('bulk writer', async () => {
  const db = fresh();
  const writer = db.bulkWriter();
  const failed = [];
  writer.onWriteError(error => {
    failed.push([error.documentRef.id, error.code]);
    return false;
  });
  for (let number = 0; number < 100; number++) writer.set(db.doc(`exams/${number}`), {number});
  writer.update(db.doc('exams/missing'), {a: 1}).catch(() => {});
  await writer.close();
  assert.deepEqual(failed, [['missing', GRPC.notFound]]);
  assert.equal((await db.collection('exams').count().get()).data().count, 100);
});

test('queries', async () => {
  const db = fresh();
  const exams = db.collection('exams');
  const batch = db.batch();
  [1, 2, 3, null, 'x'].forEach((n, index) => batch.set(exams.doc('abcde'[index]), {n, tags: [n], even: n === 2}));
  await batch.commit();
  assert.deepEqual(ids(await exams.where('n', '>', 1).get()), ['b', 'c']);
  assert.deepEqual(ids(await exams.where('n', 'in', [1, 'x']).get()), ['a', 'e']);
  assert.deepEqual(ids(await exams.where('n', '!=', 2).orderBy('n', 'desc').get()), ['e', 'c', 'a']);
  assert.deepEqual(ids(await exams.where('tags', 'array-contains', 3).get()), ['c']);
  const either = Filter.or(Filter.where('even', '==', true), Filter.where('n', '==', null));
  assert.deepEqual(ids(await exams.where(either).get()), ['b', 'd']);
  assert.deepEqual(ids(await exams.orderBy('n').startAfter(1).endAt(3).get()), ['b', 'c']);
  assert.deepEqual(ids(await exams.orderBy(FieldPath.documentId()).startAfter('c').limit(1).get()), ['d']);
  assert.deepEqual(ids(await exams.orderBy('n').limitToLast(2).get()), ['c', 'e']);
  assert.deepEqual((await exams.select('even').limit(1).get()).docs[0].data(), {even: false});
  const totals = exams.aggregate({sum: AggregateField.sum('n'), mean: AggregateField.average('n'), count: AggregateField.count()});
  assert.deepEqual((await totals.get()).data(), {sum: 6, mean: 2, count: 5});
});

test('reading many, listing, collection groups', async () => {
  const db = fresh();
  for (const path of ['exams/a', 'exams/b/questions/1', 'exams/c/questions/2', 'questions/3']) await db.doc(path).set({});
  const found = await db.getAll(db.doc('exams/a'), db.doc('exams/b'));
  assert.deepEqual(found.map(doc => doc.exists), [true, false]);
  assert.deepEqual((await db.collection('exams').listDocuments()).map(doc => doc.id), ['a', 'b', 'c']);
  assert.deepEqual((await db.listCollections()).map(collection => collection.id), ['exams', 'questions']);
  assert.deepEqual(ids(await db.collectionGroup('questions').get()), ['1', '2', '3']);
});

test('recursive delete', async () => {
  const db = fresh();
  for (const path of ['exams/a', 'exams/a/questions/1', 'exams/a/questions/1/notes/2', 'exams/b']) await db.doc(path).set({});
  await db.recursiveDelete(db.doc('exams/a'));
  assert.deepEqual((await db.collection('exams').listDocuments()).map(doc => doc.id), ['b']);
  await db.recursiveDelete(db.collection('exams'));
  assert.deepEqual(await db.listCollections(), []);
});

test('conflicting transactions are serialised', async () => {
  const [one, two] = [connect('node-conflict'), connect('node-conflict')];
  await one.doc('exams/a').set({n: 0});
  const add = client =>
    client.runTransaction(async transaction => {
      const exam = client.doc('exams/a');
      const {n} = (await transaction.get(exam)).data();
      transaction.update(exam, {n: n + 1});
    });
  await Promise.all([add(one), add(two), add(one), add(two)]);
  assert.deepEqual((await one.doc('exams/a').get()).data(), {n: 4});
});

test('a transaction that read stale data runs again', async () => {
  const db = fresh();
  const exam = db.doc('exams/a');
  await exam.set({n: 1});
  const seen = [];
  await db.runTransaction(async transaction => {
    const found = await transaction.get(db.collection('exams').where('n', '>', 0));
    seen.push(found.docs[0].get('n'));
    if (seen.length === 1) await exam.update({n: 5});
    transaction.set(db.doc('exams/b'), {sum: found.docs[0].get('n')});
  });
  assert.deepEqual(seen, [1, 5]);
  assert.deepEqual((await db.doc('exams/b').get()).data(), {sum: 5});
});

test('read-only transaction', async () => {
  const db = fresh();
  await db.doc('exams/a').set({n: 1});
  const n = await db.runTransaction(async t => (await t.get(db.doc('exams/a'))).get('n'), {readOnly: true});
  assert.equal(n, 1);
});

test('document snapshots', async () => {
  const exam = fresh().doc('exams/a');
  const {next, stop} = watching(exam);
  assert.equal((await next()).exists, false);
  await exam.set({status: 'processing'});
  assert.deepEqual((await next()).data(), {status: 'processing'});
  await exam.update({status: 'ready'});
  assert.deepEqual((await next()).data(), {status: 'ready'});
  await exam.delete();
  assert.equal((await next()).exists, false);
  stop();
});

test('query snapshots', async () => {
  const db = fresh();
  const exams = db.collection('exams');
  await exams.doc('a').set({n: 1});
  const {next, stop} = watching(exams.where('n', '>', 0).orderBy('n', 'desc').limit(2));
  const changes = async () => {
    const snapshot = await next();
    return [ids(snapshot), snapshot.docChanges().map(change => `${change.type} ${change.doc.id}`)];
  };
  assert.deepEqual(await changes(), [['a'], ['added a']]);
  await db.batch().set(exams.doc('b'), {n: 2}).set(exams.doc('c'), {n: 3}).commit();
  assert.deepEqual(await changes(), [['c', 'b'], ['removed a', 'added c', 'added b']]);
  await exams.doc('b').update({n: 4});
  assert.deepEqual(await changes(), [['b', 'c'], ['modified b']]);
  await exams.doc('c').update({n: 0});
  assert.deepEqual(await changes(), [['b', 'a'], ['removed c', 'added a']]);
  stop();
});
