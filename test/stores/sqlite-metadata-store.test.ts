import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statfsSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import t, { type Test } from 'tap'
import { digestOf } from '../../src/oci/digest.js'
import { parseReference, parseRepositoryName, parseTag } from '../../src/oci/reference.js'
import type { MetadataStore, NewManifest } from '../../storage/metadata-store.js'
import { NewerSchemaError, schemaVersion } from '../../storage/migrations.js'
import { openDatabase } from '../../storage/sqlite-connection.js'
import { openSqliteStores, prepareSqlite } from '../../storage/sqlite-metadata-store.js'
import { eventually, pause, scratchDir, within } from '../harness.js'
import { testMetadataStore } from './metadata-store-suite.js'
import { mountSmallDisk, noMounting, noTracing, startChild } from './processes.js'
import { refusalOf, refuses } from './refusals.js'
import { Trace, tracing } from './trace.js'

const mebibyte = 1024 * 1024
const cannotTrace = noTracing() ?? false
const cannotMount = noMounting() ?? false
const repository = parseRepositoryName('team/app')

/** Where a new database is to be. */
function newPath(t: Test): string {
  return join(scratchDir(t), 'boathouse.db')
}

/** A store whose failures that only a restart can mend are recorded; closed with the test. */
async function openStore(t: Test, path: string): Promise<{ store: MetadataStore; fatal: Error[] }> {
  const fatal: Error[] = []
  const { metadata } = await openSqliteStores({ path, onFatal: (error) => fatal.push(error) })
  t.teardown(() => metadata.close())
  return { store: metadata, fatal }
}

async function newStore(t: Test, path = newPath(t)) {
  prepareSqlite(path)
  return { path, ...(await openStore(t, path)) }
}

function manifest(bytes: Buffer, tag: string): NewManifest {
  return {
    repository,
    digest: digestOf(bytes),
    mediaType: 'application/vnd.oci.image.manifest.v1+json',
    bytes,
    children: [],
    subject: undefined,
    artifactType: undefined,
    annotations: undefined,
    tags: [parseTag(tag)],
    sparse: false,
    immutable: [],
    condition: undefined,
    now: 1,
  }
}

function startUpload(store: MetadataStore, id: string): ReturnType<MetadataStore['startUpload']> {
  return store.startUpload({ id, repository, owner: '', algorithm: 'sha256' }, 1_000_000, 1)
}

/** Asserts that SQLite finds no fault in the file. */
function isSound(t: Test, path: string): void {
  const db = new Database(path)
  t.equal(db.pragma('integrity_check', { simple: true }), 'ok', 'the database is sound')
  t.strictSame(db.pragma('foreign_key_check'), [], 'and no row points at nothing')
  db.close()
}

/** Empties a database that stores may have open, but for the rows that each database has. */
function empty(path: string): void {
  const db = new Database(path)
  const always = ['total', 'access_state', 'probe', 'collection', 'service']
  const tables = db.prepare<[], string>("SELECT name FROM sqlite_schema WHERE type = 'table'").pluck().all()
  db.pragma('foreign_keys = OFF')
  db.transaction(() => {
    // Twice: triggers write down what a deletion leaves behind.
    for (const table of [...tables, ...tables]) if (!always.includes(table)) db.exec(`DELETE FROM ${table}`)
  }).immediate()
  db.close()
}

t.test('the suite of all drivers', async (t) => {
  // Stores that a test leaves open serve the next one: each has a thread, which takes longer than most tests.
  const path = newPath(t)
  prepareSqlite(path)
  const idle: MetadataStore[] = []
  t.teardown(() => Promise.all(idle.map((store) => store.close())))
  testMetadataStore(t, async (t) => {
    empty(path)
    const onFatal = (error: Error) => t.fail(error)
    return {
      open: async () => idle.pop() ?? (await openSqliteStores({ path, onFatal })).metadata,
      release: async (store) => {
        idle.push(store)
      },
    }
  })
})

t.test('R55: settings: what the promises rest on', async (t) => {
  const path = newPath(t)
  prepareSqlite(path)
  for (const role of ['writer', 'reader'] as const) {
    const db = openDatabase(path, role)
    const setting = (name: string) => db.pragma(name, { simple: true })
    t.equal(setting('journal_mode'), 'wal', `${role}: a write-ahead log`)
    t.equal(setting('synchronous'), 2, `${role}: every commit is synced`)
    t.equal(setting('foreign_keys'), 1, `${role}: foreign keys are kept`)
    t.equal(setting('trusted_schema'), 0, `${role}: the schema is not trusted`)
    t.equal(setting('mmap_size'), 0, `${role}: no memory map, which would spread a bug into the file`)
    t.ok(Number(setting('journal_size_limit')) > 0, `${role}: the log does not stay large`)
    t.ok(Number(setting('busy_timeout')) >= 3000, `${role}: it waits for other processes`)
    const version = String(db.prepare('SELECT sqlite_version()').pluck().get())
    const [major = 0, minor = 0, patch = 0] = version.split('.').map(Number)
    t.ok(major * 1_000_000 + minor * 1000 + patch >= 3_051_003, `${role}: SQLite ${version}, 3.51.3 or newer`)
    db.close()
  }
  const reader = openDatabase(path, 'reader')
  t.throws(() => reader.exec('DELETE FROM tag'), { code: 'SQLITE_READONLY' }, 'a reader cannot write')
  reader.close()
})

t.test('settings: a database that does not keep them is refused', async (t) => {
  t.throws(
    () => openDatabase(':memory:', 'writer'),
    { message: /does not keep the settings/ },
    'no log in memory',
  )
})

t.test('schema: a newer one is refused with both versions named, and nothing is changed', async (t) => {
  const path = newPath(t)
  prepareSqlite(path)
  const db = new Database(path)
  db.pragma(`user_version = ${schemaVersion + 7}`)
  db.close()
  const before = readFileSync(path)
  const newer = new RegExp(`version ${schemaVersion + 7}\\b.* up to ${schemaVersion}\\b`)
  t.throws(() => prepareSqlite(path), { name: 'NewerSchemaError', message: newer }, 'refused')
  t.ok(readFileSync(path).equals(before), 'the file has the same bytes')
  // SQLite cannot look into a file with a log without its own files beside it; what they may hold is nothing.
  const beside = readdirSync(scratchDir(t)).filter((name) => !/^boathouse\.db(?:-wal|-shm)?$/.test(name))
  t.strictSame(beside, [], 'there is nothing else in the folder')
  const log = `${path}-wal`
  t.ok(!existsSync(log) || statSync(log).size === 0, 'and nothing in a log')
})

t.test('schema: a newer one that was killed is left as it is, its log included', async (t) => {
  const running = join(scratchDir(t), 'running.db')
  prepareSqlite(running)
  const db = openDatabase(running, 'writer')
  db.pragma(`user_version = ${schemaVersion + 1}`)
  const path = newPath(t)
  for (const suffix of ['', '-wal']) copyFileSync(`${running}${suffix}`, `${path}${suffix}`)
  db.close()
  const before = [readFileSync(path), readFileSync(`${path}-wal`)] as const
  t.throws(() => prepareSqlite(path), NewerSchemaError, 'refused')
  const after = new Set(readdirSync(scratchDir(t)))
  t.ok(after.has('boathouse.db-wal') && readFileSync(`${path}-wal`).equals(before[1]), 'its log is as it was')
  t.ok(readFileSync(path).equals(before[0]), 'and so is the file')
})

t.test('schema: preparing again keeps what is stored', async (t) => {
  const path = newPath(t)
  prepareSqlite(path)
  const first = await openSqliteStores({ path, onFatal: (error) => t.fail(error) })
  await first.metadata.putManifest(manifest(Buffer.from('kept'), 'latest'))
  await first.metadata.close()
  prepareSqlite(path)
  const { store } = await openStore(t, path)
  t.strictSame((await store.listTags(repository, '', 9)).names, ['latest'])
  const db = new Database(path, { readonly: true })
  t.equal(db.pragma('user_version', { simple: true }), schemaVersion, 'the version is the current one')
  db.close()
})

t.test('a file that is no database is refused and left as it is', async (t) => {
  const path = newPath(t)
  const before = Buffer.alloc(20_000, 'not a database ')
  writeFileSync(path, before)
  t.throws(() => prepareSqlite(path), { code: 'SQLITE_NOTADB' }, 'prepare')
  const opening = openSqliteStores({ path, onFatal: () => undefined })
  await t.rejects(opening, { message: /not a database/ }, 'open')
  t.ok(readFileSync(path).equals(before), 'the file has the same bytes')
})

t.test('a data folder may have any name', async (t) => {
  const name = `a?b#c&d %20'";`
  mkdirSync(join(scratchDir(t), name))
  const { store, path } = await newStore(t, join(scratchDir(t), name, 'boathouse.db'))
  await store.putManifest(manifest(Buffer.from('m'), 'latest'))
  t.strictSame((await store.listTags(repository, '', 9)).names, ['latest'], 'what is stored can be read')
  t.strictSame(readdirSync(scratchDir(t)), [name], 'nothing lies beside the folder')
  t.ok(readdirSync(join(path, '..')).includes('boathouse.db'), 'the database is in it')
})

t.test('one operation that fails does not undo those committed with it', async (t) => {
  const { store, path } = await newStore(t)
  await startUpload(store, 'taken')
  const ids = Array.from({ length: 200 }, (_, number) => (number % 10 === 5 ? 'taken' : `id-${number}`))
  const outcomes = await Promise.all(ids.map((id) => refusalOf(startUpload(store, id))))
  for (const [at, id] of ids.entries()) {
    if (outcomes[at] !== (id === 'taken' ? 'UNAVAILABLE' : 'nothing')) t.fail(`${id}: ${outcomes[at]}`)
  }
  t.equal((await store.totals()).openUploads, 181, 'all the others are there')
  isSound(t, path)
})

t.test('closing waits for what was asked before', async (t) => {
  const path = newPath(t)
  prepareSqlite(path)
  const { metadata } = await openSqliteStores({ path, onFatal: (error) => t.fail(error) })
  const writing = Array.from({ length: 500 }, (_, number) =>
    metadata.putManifest(manifest(Buffer.from(`${number}`), `t${number}`)),
  )
  await within(20_000, 'closing', metadata.close())
  const results = await Promise.all(writing)
  t.ok(
    results.every(({ outcome }) => outcome === 'stored'),
    'every one is told',
  )
  const { store } = await openStore(t, path)
  t.equal((await store.listTags(repository, '', 1000)).names.length, 500, 'and is there')
})

t.test('two processes: each sees the other’s sessions, and one of them gets each turn', async (t) => {
  const { store, path } = await newStore(t)
  const ids = Array.from({ length: 300 }, (_, number) => `id-${number}`)
  await Promise.all(ids.map((id) => startUpload(store, id)))
  const children = ['one', 'two'].map((name) => startChild(t, 'compete', { path, name, ids }))
  await Promise.all(children.map((child) => child.hears(1)))
  for (const child of children) child.go()
  const own = ids.map((id) => store.takeTurn(id, 'three'))
  const won = (await Promise.all(own)).flatMap((taken) => (typeof taken === 'object' ? [taken.id] : []))
  for (const child of children) {
    const [, told] = (await child.ended()) as [unknown, { won: string[] }]
    won.push(...told.won)
  }
  t.strictSame(won.sort(), [...ids].sort(), 'every turn was given once')
  for (const name of ['one', 'two']) {
    const seen = await Promise.all(ids.map((id) => store.findUpload(`${name}-${id}`)))
    t.ok(
      seen.every((upload) => upload?.owner === name),
      `all that process ${name} has opened are seen here`,
    )
  }
  isSound(t, path)
})

t.test(
  'a lock of three seconds from outside: writes wait, reads do not, and nothing else goes wrong',
  async (t) => {
    const { store, path, fatal } = await newStore(t)
    await startUpload(store, 'before')
    const child = startChild(t, 'lock', { path })
    await child.hears(1)
    const outcomes = new Map<string, Promise<string>>()
    for (let number = 0; number < 300; number++) {
      const put = store.putManifest(manifest(Buffer.from(`${number}`), `t${number}`))
      outcomes.set(`t${number}`, refusalOf(put))
    }
    let isWritten = false
    void outcomes.get('t0')?.then(() => {
      isWritten = true
    })
    const until = Date.now() + 3000
    while (Date.now() < until) {
      const found = await within(1000, 'a read under the lock', store.findUpload('before'))
      if (found === undefined) t.fail('a read under the lock finds what is there')
      await pause(50)
    }
    t.equal(isWritten, false, 'nothing is written under the lock')
    child.go()
    await child.ended()
    const stored = new Set(
      (await Promise.all(outcomes.values())) && (await store.listTags(repository, '', 1000)).names,
    )
    for (const [tag, outcome] of outcomes) {
      const how = await outcome
      if (how !== 'nothing' && how !== 'UNAVAILABLE') t.fail(`${tag} failed in another way: ${how}`)
      if (stored.has(tag) !== (how === 'nothing'))
        t.fail(`${tag} was told ${how}, but is${stored.has(tag) ? '' : ' not'} there`)
    }
    t.strictSame(fatal, [], 'no restart is asked for')
  },
)

t.test('a lock that stays: writes are refused, and did not happen', { timeout: 60_000 }, async (t) => {
  const { store, path, fatal } = await newStore(t)
  const child = startChild(t, 'lock', { path })
  await child.hears(1)
  const put = store.putManifest(manifest(Buffer.from('m'), 'latest'))
  await refuses(t, within(30_000, 'the refusal', put), 'UNAVAILABLE', 'under the lock')
  t.equal(await store.hasRepository(repository), false, 'nothing is stored')
  t.strictSame(fatal, [], 'no restart is asked for')
  child.go()
  await child.ended()
  t.equal(
    (await store.putManifest(manifest(Buffer.from('m'), 'latest'))).outcome,
    'stored',
    'afterwards it is',
  )
})

t.test('the queue has an end: what is too much is refused at once, the rest is done', async (t) => {
  const { store, path, fatal } = await newStore(t)
  const child = startChild(t, 'lock', { path })
  await child.hears(1)
  let refused = 0
  const asked = 10_500
  const tries = Array.from({ length: asked }, async (_, number) => {
    const how = await refusalOf(store.removeUpload(`${number}`, 'nobody'))
    if (how === 'UNAVAILABLE') refused++
    return how
  })
  const now = await eventually('refusals', () => refused > 0 && refused)
  t.ok(now >= 100 && now < 1000, `${now} of ${asked} are refused while the writer stands still`)
  child.go()
  await child.ended()
  const outcomes = await Promise.all(tries)
  // One was with the writer all the while: its patience may have ended before the lock did.
  t.ok(refused - now <= 1, 'the others are done when it goes on')
  t.ok(
    outcomes.every((how) => how === 'nothing' || how === 'UNAVAILABLE'),
    'none fails in another way',
  )
  t.strictSame(fatal, [], 'no restart is asked for')
})

t.test(
  'a full disk: refused as such, reads go on, and writes too when there is room',
  { skip: cannotMount },
  async (t) => {
    const disk = mountSmallDisk(t, 16)
    const { store, path, fatal } = await newStore(t, join(disk, 'boathouse.db'))
    await store.putManifest(manifest(Buffer.alloc(mebibyte, 'old'), 'old'))
    const filler = join(disk, 'filler')
    const free = statfsSync(disk).bavail * statfsSync(disk).bsize
    writeFileSync(filler, Buffer.alloc(free - 3 * mebibyte))
    const large = manifest(Buffer.alloc(4 * mebibyte, 'large'), 'large')
    for (let turn = 1; turn <= 3; turn++) {
      await refuses(t, store.putManifest(large), 'STORAGE_FULL', `try ${turn} is refused`)
      const found = await store.findManifest(repository, parseReference('old'))
      t.equal(found?.bytes.length, mebibyte, 'what was there can be read')
      t.strictSame((await store.listTags(repository, '', 9)).names, ['old'], 'nothing of it is stored')
    }
    const together = ['a', 'b', 'large', 'c'].map((tag) =>
      refusalOf(store.putManifest(tag === 'large' ? large : manifest(Buffer.from(tag), tag))),
    )
    const outcomes = await Promise.all(together)
    const known = await store.listTags(repository, '', 9)
    for (const [at, tag] of ['a', 'b', 'large', 'c'].entries()) {
      const how = outcomes[at] ?? ''
      t.ok(['nothing', 'STORAGE_FULL'].includes(how), `${tag} beside others: ${how}`)
      t.equal(known.names.includes(tag), how === 'nothing', `${tag} is there if it was told so`)
    }
    t.strictSame(fatal, [], 'no restart is asked for')
    rmSync(filler)
    t.equal((await store.putManifest(large)).outcome, 'stored', 'with room it goes through')
    await store.check()
    t.equal((await store.findManifest(repository, parseReference('large')))?.bytes.length, 4 * mebibyte)
    isSound(t, path)
  },
)

t.test('a disk without a single free byte: the same', { skip: cannotMount }, async (t) => {
  const disk = mountSmallDisk(t, 8)
  const { store, path, fatal } = await newStore(t, join(disk, 'boathouse.db'))
  await store.putManifest(manifest(Buffer.from('old'), 'old'))
  const filler = join(disk, 'filler')
  try {
    writeFileSync(filler, Buffer.alloc(8 * mebibyte))
  } catch (error) {
    t.match(error, { code: 'ENOSPC' }, 'the disk is full')
  }
  const tries: Promise<string>[] = []
  for (let number = 0; number < 50; number++) {
    tries.push(refusalOf(store.putManifest(manifest(Buffer.alloc(9000, `${number}`), `t${number}`))))
  }
  const outcomes = new Set(await Promise.all(tries))
  outcomes.delete('nothing') // a log that has room within it takes a few
  t.strictSame([...outcomes], ['STORAGE_FULL'], 'all others are refused as such')
  t.equal((await store.findManifest(repository, parseReference('old')))?.bytes.length, 3, 'reads go on')
  t.strictSame(fatal, [], 'no restart is asked for')
  rmSync(filler)
  t.equal(
    (await store.putManifest(manifest(Buffer.from('new'), 'new'))).outcome,
    'stored',
    'with room it goes on',
  )
  isSound(t, path)
})

t.test(
  'a sync that failed: nothing more is written, a restart is asked for, reads go on',
  { skip: cannotTrace },
  async (t) => {
    const path = newPath(t)
    prepareSqlite(path)
    const inject = 'inject=fsync,fdatasync:error=EIO'
    const under = ['strace', '-f', '-o', '/dev/null', '-e', 'trace=fsync,fdatasync', '-e', inject]
    const said = await startChild(t, 'write', { path }, under).ended()
    t.strictSame(
      said.filter((word) => typeof word === 'string'),
      ['UNAVAILABLE', 'UNAVAILABLE', 'nothing'],
      'two writes are refused, a read is answered',
    )
    t.equal(said.filter((word) => typeof word === 'object').length, 1, 'a restart is asked for once')
    isSound(t, path)
  },
)

for (const [error, refusal, restarts] of [
  ['EDQUOT', 'STORAGE_FULL', 0],
  ['EIO', 'UNAVAILABLE', 1],
] as const) {
  const name = `a log that cannot be written for ${error} is told as ${refusal}`
  t.test(name, { skip: cannotTrace }, async (t) => {
    const path = newPath(t)
    prepareSqlite(path)
    const paths = ['-P', `${path}-wal`, '-P', `${path}-probe`]
    const under = ['strace', '-f', '-o', '/dev/null', ...paths, '-e', `inject=pwrite64:error=${error}`]
    const said = await startChild(t, 'write', { path }, under).ended()
    t.strictSame(
      said.filter((word) => typeof word === 'string'),
      [refusal, refusal, 'nothing'],
      'two writes are refused, a read is answered',
    )
    t.equal(said.filter((word) => typeof word === 'object').length, restarts, 'restarts that are asked for')
    isSound(t, path)
    t.notOk(existsSync(`${path}-probe`), 'nothing is left')
  })
}

t.test('order: what is durable is synced before it is told', { skip: cannotTrace }, async (t) => {
  const path = newPath(t)
  const log = `${path}-wal`
  prepareSqlite(path)
  const file = join(scratchDir(t), 'trace')
  await startChild(t, 'durable', { path }, tracing(file)).ended()
  const trace = new Trace(file)
  for (const word of [
    'check',
    'saveProgress',
    'finishUpload',
    'mountBlob',
    'unlinkBlob',
    'putManifest',
    'deleteTag',
    'deleteManifest',
    'expireUploads',
  ]) {
    const [before, after] = [trace.said(`before ${word}`), trace.said(`after ${word}`)]
    t.ok(trace.isStored(log, before, after), `${word}: the log is written, and synced after its last write`)
  }
})
