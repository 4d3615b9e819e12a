import { spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import Database from 'better-sqlite3'
import t, { type Test } from 'tap'
import { dataPaths, takeDataFolder } from '../storage/data-folder.js'
import { schemaVersion } from '../storage/migrations.js'
import { commandsOn, did } from './commands.js'
import { filesBelow, runServerCommand, scratchDir, sha256, startServer } from './harness.js'

/*
 * R59: a folder that an older program has left is brought to the schema of this one, or stays what it was. The indexes in
 * test/fixtures are those of each schema; what they hold is in them as it was written then.
 */

/** Each step; in a quick run some of them. */
const everyStep = process.argv.includes('--every-step')
t.setTimeout(everyStep ? 3_600_000 : 280_000)
const sampled = 5

const fixtures = fileURLToPath(new URL('../../test/fixtures/', import.meta.url))
const versions = readdirSync(fixtures)
  .map((name) => Number(/^schema-(\d+)\.sql$/.exec(name)?.[1]))
  .filter((version) => version < schemaVersion)
  .sort((one, other) => one - other)

const config = Buffer.from('{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}')
const layer = Buffer.from('a layer of the fixture')

/** A data folder as the program of a schema left it. */
function folderOf(t: Test, version: number, name = `schema-${version}`): string {
  const data = join(scratchDir(t), name)
  for (const bytes of [config, layer]) {
    const hex = sha256(bytes).slice('sha256:'.length)
    mkdirSync(join(data, 'blobs', 'sha256', hex.slice(0, 2)), { recursive: true })
    writeFileSync(join(data, 'blobs', 'sha256', hex.slice(0, 2), hex), bytes)
  }
  const db = new Database(dataPaths(data).database)
  db.pragma('journal_mode = WAL')
  db.exec(readFileSync(join(fixtures, `schema-${version}.sql`), 'utf8'))
  db.close()
  return data
}

/** What an index is and holds, as far as the oldest schema knows it. */
function contentOf(database: string) {
  const db = new Database(database, { fileMustExist: true })
  try {
    const all = (sql: string) => db.prepare(sql).all()
    return {
      version: Number(db.pragma('user_version', { simple: true })),
      integrity: db.pragma('integrity_check', { simple: true }),
      foreignKeys: all('SELECT * FROM pragma_foreign_key_check'),
      schema: all(
        `SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY type, name`,
      ),
      manifests: all('SELECT repository_id, digest, bytes FROM manifest ORDER BY id'),
      tags: all('SELECT repository_id, name, manifest_id FROM tag ORDER BY 1, 2'),
      links: all('SELECT repository_id, blob_id FROM blob_link ORDER BY 1, 2'),
      total: all('SELECT blobs, blob_bytes FROM total'),
      uploads: all('SELECT id, offset FROM upload'),
    }
  } finally {
    db.close()
  }
}

t.test('R59: an index of each older schema becomes what a new one is, and keeps what it holds', async (t) => {
  const fresh = join(scratchDir(t), 'fresh')
  ;(await takeDataFolder(fresh)).release()
  const { schema } = contentOf(dataPaths(fresh).database)
  const shape = (rows: unknown[]) =>
    (rows as { name: string; sql: string }[]).map(({ name, sql }) => [name, sql.replaceAll(/\s+/g, '')])
  t.ok(versions.length >= 5)
  for (const version of versions) {
    const data = folderOf(t, version)
    const { database, snapshots } = dataPaths(data)
    const before = contentOf(database)
    t.equal(before.version, version)
    ;(await takeDataFolder(data)).release()
    const after = contentOf(database)
    t.match(after, { version: schemaVersion, integrity: 'ok', foreignKeys: [] })
    t.same(shape(after.schema), shape(schema), `the schema from version ${version} on`)
    for (const part of ['manifests', 'tags', 'links', 'total', 'uploads'] as const) {
      t.same(after[part], before[part], `${part} from version ${version} on`)
    }
    const [copy = '', ...more] = readdirSync(snapshots)
    t.match(copy, new RegExp(`-before-v${schemaVersion}\\.db$`))
    t.same(more, [])
    t.same(contentOf(join(snapshots, copy)), before, 'what was there before is kept beside it')
  }
})

t.test('R59: a server on a folder of the first schema serves what it holds', async (t) => {
  const data = folderOf(t, 1)
  const server = await startServer(t, { data })
  for (const repository of ['team/app', 'other/app']) {
    const manifest = await server.request('GET', `/v2/${repository}/manifests/v2`)
    t.equal(manifest.status, 200)
    t.equal(sha256(manifest.body), manifest.header('docker-content-digest'))
    for (const bytes of [config, layer]) {
      const blob = await server.request('GET', `/v2/${repository}/blobs/${sha256(bytes)}`)
      t.ok(blob.body.equals(bytes))
    }
  }
})

t.test('S79: where somebody pushed into a mirror’s repository, an older index is put right', async (t) => {
  const data = folderOf(t, 5, 'pushed-into')
  const { database } = dataPaths(data)
  const db = new Database(database)
  for (const [at, name, checked] of [
    [101, 'corp/pushed', 'NULL'],
    [102, 'corp/moved', '4'],
    [103, 'corp/mirrored', '5'],
  ] as const) {
    db.exec(`
      INSERT INTO repository (id, name, created_at, mirror) VALUES (${at}, '${name}', 1, 'corp');
      INSERT INTO blob (id, digest, size, created_at) VALUES (${at}, 'sha256:${at}', 7, 1);
      INSERT INTO blob_link VALUES (${at}, ${at}, 1);
      INSERT INTO manifest (id, repository_id, digest, media_type, size, created_at, bytes)
        VALUES (${at}, ${at}, 'sha256:m${at}', 'x', 1, 1, x'00');
      INSERT INTO tag (repository_id, name, manifest_id, updated_at, checked_at)
        VALUES (${at}, 'one', ${at}, 5, ${checked});`)
  }
  db.close()
  ;(await takeDataFolder(data)).release()
  const migrated = new Database(database)
  const all = (sql: string) => migrated.prepare(sql).raw().all()
  const mirrors = all("SELECT name, mirror FROM repository WHERE name LIKE 'corp/%' ORDER BY id")
  t.strictSame(mirrors, [
    ['corp/pushed', null],
    ['corp/moved', null],
    ['corp/mirrored', 'corp'],
  ])
  t.strictSame(all('SELECT blob_id FROM mirror_blob WHERE blob_id > 100'), [[103]])
  t.strictSame(all('SELECT blob_id, mirror FROM mirror_delivery WHERE blob_id > 100'), [[103, 'corp']])
  t.strictSame(all("SELECT blobs, bytes FROM mirror WHERE name = 'corp'"), [[1, 7]])
  migrated.close()
})

t.test('R59: users and grants of an older schema still hold', async (t) => {
  const data = folderOf(t, 2)
  ;(await takeDataFolder(data)).release()
  const { stdout } = await did(t, commandsOn(data)('access export'))
  for (const word of ['ann', 'builders', 'team/**']) t.ok(stdout.includes(word), word)
})

t.test('R59: a newer folder is refused with both versions named, and no byte of it changes', async (t) => {
  const data = join(scratchDir(t), 'newer')
  const first = await startServer(t, { data })
  await first.stop()
  const db = new Database(dataPaths(data).database)
  db.pragma(`user_version = ${schemaVersion + 3}`)
  db.close()
  const bytesOf = () => new Map(filesBelow(data).map((name) => [name, readFileSync(join(data, name))]))
  const before = bytesOf()
  const run = await runServerCommand(['serve', '--listen', '127.0.0.1:0', '--data', data])
  t.equal(run.code, 1)
  t.match(run.stderr, new RegExp(`version ${schemaVersion + 3}\\b.* up to ${schemaVersion}\\b`))
  const after = bytesOf()
  const changed = [...before].filter(([name, bytes]) => after.get(name)?.equals(bytes) !== true)
  t.same(
    changed.map(([name]) => name),
    [],
  )
  // To look into it SQLite needs its own files beside it: they hold nothing.
  const added = [...after].filter(([name]) => !before.has(name))
  t.same(
    added.map(([name, bytes]) => (name.endsWith('-shm') ? '' : `${name} ${bytes.length}`)).filter(Boolean),
    added.some(([name]) => name.endsWith('-wal')) ? ['boathouse.db-wal 0'] : [],
  )
})

const mainModule = fileURLToPath(new URL('../storage/data-folder.js', import.meta.url))
const program = `import { takeDataFolder } from ${JSON.stringify(mainModule)}
;(await takeDataFolder(process.argv[2])).release()`

const hasStrace = spawnSync('strace', ['-V']).status === 0

/** Migrates a folder in a process of its own, where something happens to one call that changes the index. */
function migrateUnder(
  data: string,
  inject: string[],
): { calls: number; status: number | null; stderr: string } {
  const log = `${data}.strace`
  const script = `${data}.mjs`
  writeFileSync(script, program)
  const { database } = dataPaths(data)
  const paths = [database, `${database}-wal`].flatMap((path) => ['-P', path])
  const calls = 'pwrite64,fsync,fdatasync,ftruncate,unlink'
  const words = ['-f', '-o', log, ...paths, '-e', `trace=${calls}`, ...inject]
  const run = spawnSync('strace', [...words, process.execPath, script, data], {
    encoding: 'utf8',
    env: { PATH: process.env.PATH },
  })
  const lines = readFileSync(log, 'utf8').split('\n')
  rmSync(log)
  // The copy that is made first is another thread's: calls are counted in each thread by itself.
  const counts = new Map<string, number>()
  for (const line of lines) {
    const thread = /^(\d+) +[a-z0-9]+\(/.exec(line)?.[1]
    if (thread !== undefined) counts.set(thread, (counts.get(thread) ?? 0) + 1)
  }
  const count = Math.max(0, ...counts.values())
  return { calls: count, status: run.status, stderr: run.stderr }
}

for (const [how, injection] of [
  ['kill -9', 'signal=KILL'],
  ['a disk that is full from there on', 'error=ENOSPC'],
] as const) {
  const name = `R59: ${how} at a write of a migration leaves a version, and the next start goes on`
  t.test(name, { skip: hasStrace ? false : 'needs strace' }, async (t) => {
    const whole = folderOf(t, 1, 'whole')
    const before = contentOf(dataPaths(whole).database)
    const { calls, status, stderr } = migrateUnder(whole, [])
    t.equal(status, 0, stderr.slice(0, 500))
    t.ok(calls > 5, `${calls} calls that change the index`)
    const expected = contentOf(dataPaths(whole).database)
    const step = everyStep ? 1 : Math.max(1, Math.floor(calls / sampled))
    for (let at = 1; at <= calls; at += step) {
      const data = folderOf(t, 1, `at-${at}`)
      const { database } = dataPaths(data)
      const range = injection === 'signal=KILL' ? `${at}` : `${at}+`
      const set = injection === 'signal=KILL' ? 'pwrite64,fsync,fdatasync,ftruncate,unlink' : 'pwrite64'
      migrateUnder(data, ['-e', `inject=${set}:${injection}:when=${range}`])
      const left = contentOf(database)
      t.match(left, { integrity: 'ok', foreignKeys: [] }, `at call ${at}`)
      t.same(left.manifests, before.manifests)
      ;(await takeDataFolder(data)).release()
      const after = contentOf(database)
      t.same(after, expected, `after call ${at}, from version ${left.version}`)
      rmSync(data, { recursive: true })
    }
  })
}
