import { existsSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import t, { type Test } from 'tap'
import { Verifier } from '../src/registry/verify.js'
import type { BlobStore } from '../storage/blob-store.js'
import { dataPaths, takeDataFolder } from '../storage/data-folder.js'
import { openFsBlobStore } from '../storage/fs-blob-store.js'
import { openSqliteStores } from '../storage/sqlite-metadata-store.js'
import { startCommand } from './commands.js'
import {
  type Content,
  eventually,
  filesBelow,
  image,
  isError,
  pause,
  push,
  pushBlobs,
  putManifest,
  randomBlob,
  type Server,
  scratchDir,
  sha256,
  startServer,
} from './harness.js'
import { Random } from './torture/random.js'

t.setTimeout(240_000)

function fileOf(data: string, digest: string): string {
  const hex = digest.slice('sha256:'.length)
  return join(data, 'blobs', 'sha256', hex.slice(0, 2), hex)
}

/** Flips one bit of a file in its place: its inode stays, as on a disk that rots. */
function rot(path: string, random: Random): void {
  const bytes = readFileSync(path)
  const at = random.int(0, bytes.length - 1)
  bytes[at] = (bytes[at] ?? 0) ^ (1 << random.int(0, 7))
  writeFileSync(path, bytes)
}

/** A data folder with blobs that one repository holds, written past the server, and the digests of these. */
async function filled(t: Test, count: number, random: Random): Promise<{ data: string; digests: string[] }> {
  const data = join(scratchDir(t), 'filled')
  ;(await takeDataFolder(data)).release()
  const db = new Database(dataPaths(data).database)
  db.prepare("INSERT INTO repository (id, name, created_at) VALUES (1, 'team/app', 1)").run()
  const blob = db.prepare('INSERT INTO blob (id, digest, size, created_at) VALUES (?, ?, ?, 1)')
  // Linked a moment ago: a server that starts on the folder collects nothing of it.
  const link = db.prepare('INSERT INTO blob_link (repository_id, blob_id, linked_at) VALUES (1, ?, ?)')
  const digests: string[] = []
  db.transaction(() => {
    for (let id = 1; id <= count; id++) {
      const bytes = random.bytes(random.int(1, 3000))
      const digest = sha256(bytes)
      writeFileSync(fileOf(data, digest), bytes)
      blob.run(id, digest, bytes.length)
      link.run(id, Date.now())
      digests.push(digest)
    }
  })()
  db.close()
  return { data, digests }
}

/** A verifier in this process, on a folder that nobody serves. */
async function verifierOn(t: Test, data: string, wrap = (blobs: BlobStore) => blobs): Promise<Verifier> {
  const path = dataPaths(data).database
  const { metadata, integrity, collection } = await openSqliteStores({
    path,
    onFatal: (error) => t.fail(error.message),
  })
  const blobs = openFsBlobStore(data)
  t.teardown(async () => {
    await blobs.close()
    await metadata.close()
  })
  return new Verifier({ blobs: wrap(blobs), integrity, collection }, 'test:')
}

const everything = { rate: undefined, repositories: 'all' } as const

t.test('R63: of 10,000 blobs the 100 with a flipped bit are found, each of them and no other', async (t) => {
  const random = new Random('bit rot', 1)
  const { data, digests } = await filled(t, 10_000, random)
  const victims = new Set<string>()
  while (victims.size < 100) victims.add(random.pick(digests) ?? '')
  for (const digest of victims) rot(fileOf(data, digest), random)
  const verifier = await verifierOn(t, data)
  const report = await verifier.verify(everything)
  t.match(report, { blobs: 10_000, problems: 100, isInterrupted: false })
  const found = (report?.findings ?? []).map(({ digest }) => String(digest))
  t.same(found.sort(), [...victims].sort())
  t.equal(filesBelow(join(data, 'quarantine')).length, 100)
  t.equal(filesBelow(join(data, 'blobs')).length, 9_900, 'nothing else was touched')
  t.match(await verifier.verify(everything), { problems: 100, bytesNow: Number }, 'they stay known')
})

t.test('a damaged blob is noted before its bytes go: a push is asked for them at any moment', async (t) => {
  const { data, digests } = await filled(t, 3, new Random(7))
  const [rotten = '', lost = ''] = digests
  rot(fileOf(data, rotten), new Random(8))
  rmSync(fileOf(data, lost))
  const noted: unknown[] = []
  const verifier = await verifierOn(t, data, (blobs) => {
    const quarantine = blobs.quarantine.bind(blobs)
    blobs.quarantine = async (digest, ...what) => {
      const db = new Database(dataPaths(data).database, { readonly: true })
      noted.push(db.prepare('SELECT damage FROM blob WHERE digest = ?').pluck().get(digest))
      db.close()
      return digest === rotten && quarantine(digest, ...what)
    }
    return blobs
  })
  await verifier.verify(everything)
  t.strictSame(noted.sort(), ['altered', 'missing'])
  const db = new Database(dataPaths(data).database, { readonly: true })
  t.teardown(() => db.close())
  const damageOf = (digest: string) =>
    db.prepare('SELECT damage FROM blob WHERE digest = ?').pluck().get(digest)
  t.equal(damageOf(rotten), 'altered')
  t.equal(damageOf(lost), null, 'what has changed since it was looked at is not damaged')
})

t.test('files that no row knows are counted and named, when they have had time to get one', async (t) => {
  const random = new Random('orphans', 1)
  const { data } = await filled(t, 20, random)
  const orphan = randomBlob(777)
  writeFileSync(fileOf(data, orphan.digest), orphan.bytes)
  const later = (blobs: BlobStore): BlobStore =>
    Object.assign(Object.create(blobs), {
      parts: blobs.parts,
      listPart: (part: number) => blobs.listPart(part),
      examine: (...args: Parameters<BlobStore['examine']>) => blobs.examine(...args),
      stat: async (digest: Parameters<BlobStore['stat']>[0]) => {
        const found = await blobs.stat(digest)
        return found && { ...found, storedAt: found.storedAt - 120_000 }
      },
    })
  const verifier = await verifierOn(t, data, later)
  t.match(await verifier.verify(everything), {
    problems: 0,
    orphans: 1,
    orphanBytes: 777,
    orphanDigests: [orphan.digest],
  })
  t.ok(existsSync(fileOf(data, orphan.digest)), 'it is left to garbage collection')
})

t.test('an altered manifest is mended by the next push of it', async (t) => {
  const server = await startServer(t)
  const whole = image()
  await push(server, 'team/app', 'v1', whole)
  const db = new Database(dataPaths(server.data).database)
  const bytes = Buffer.from(whole.bytes)
  bytes[20] = (bytes[20] ?? 0) ^ 1
  db.prepare('UPDATE manifest SET bytes = ?').run(bytes)
  db.close()
  isError(t, await server.request('GET', '/v2/team/app/manifests/v1'), 503, 'UNAVAILABLE')
  t.equal((await putManifest(server, 'team/app', 'v1', whole)).status, 201)
  for (const reference of ['v1', whole.digest]) {
    const got = await server.request('GET', `/v2/team/app/manifests/${reference}`)
    t.ok(got.body.equals(whole.bytes), reference)
  }
})

function blobOf(server: Server, { digest }: Content, method = 'GET') {
  return server.request(method, `/v2/team/app/blobs/${digest}`)
}

t.test('a start after a crash finds blobs whose files are lost or cut, and a push mends them', async (t) => {
  const server = await startServer(t)
  const [old, cut, lost, well] = [randomBlob(), randomBlob(), randomBlob(), randomBlob()] as const
  await pushBlobs(server, 'team/app', old)
  await server.stop()
  const second = await startServer(t, { data: server.data, config: { log: { level: 'info' } } })
  t.notMatch(second.stderr(), /not orderly/, 'an orderly stop leaves nothing to look at')
  const whole = image({ layers: [old, cut, lost, well] })
  await push(second, 'team/app', 'v1', whole)
  await second.kill()
  for (const { digest } of [old, cut]) truncateSync(fileOf(server.data, digest), 10)
  rmSync(fileOf(server.data, lost.digest))

  const third = await startServer(t, { data: server.data, config: { log: { level: 'info' } } })
  await eventually('it says what it saw', () => /not orderly/.test(third.stderr()))
  const seen = third.logs().find(({ msg }) => /not orderly/.test(String(msg)))
  t.match(seen, { blobs: 4, problems: 2 }, 'the one from before the orderly stop was not looked at')
  t.match(third.stderr(), new RegExp(`altered: blob ${cut.digest}.*cannot be pulled whole: team/app:v1`))
  t.match(third.stderr(), new RegExp(`missing: blob ${lost.digest}.*cannot be pulled whole: team/app:v1`))
  for (const one of [cut, lost]) {
    isError(t, await blobOf(third, one), 503, 'UNAVAILABLE')
    t.equal((await blobOf(third, one, 'HEAD')).status, 404, 'so whoever pushes it sends its bytes')
    await pushBlobs(third, 'team/app', one)
    t.ok((await blobOf(third, one)).body.equals(one.bytes))
  }
  t.ok((await blobOf(third, well)).body.equals(well.bytes))
  t.match((await third.request('GET', '/metrics')).text, /^boathouse_damaged_blobs 0$/m)
  await third.stop()
  const fourth = await startServer(t, { data: server.data, config: { log: { level: 'info' } } })
  t.notMatch(fourth.stderr(), /not orderly/)
})

t.test('a start after a crash goes on with its check while it serves', async (t) => {
  const random = new Random('start', 1)
  const { data, digests } = await filled(t, 5000, random)
  const db = new Database(dataPaths(data).database)
  db.prepare('UPDATE service SET is_stopped = 0, last_blob = 0').run()
  db.close()
  const victims = digests.slice(-300)
  for (const digest of victims) truncateSync(fileOf(data, digest), 0)
  const server = await startServer(t, { data, config: { log: { level: 'info' } } })
  const report = await eventually(
    'it has looked at all',
    () => server.logs().find(({ msg }) => /not orderly/.test(String(msg))),
    60_000,
  )
  const empty = victims.filter((digest) => statSync(fileOf(data, digest), { throwIfNoEntry: false }))
  t.same(empty, [], 'all were put aside, most of them while the server served')
  t.match(report, { blobs: 5000, problems: 300 })
})

t.test('a verification that was missed is made up for at the next start', async (t) => {
  const config = { verify: { rate: 'unlimited' }, log: { level: 'info' } }
  const first = await startServer(t, { config })
  const [kept, flipped] = [randomBlob(), randomBlob()]
  await pushBlobs(first, 'team/app', kept, flipped)
  await first.stop()
  t.notMatch(first.stderr(), /verified what is stored/, 'a new folder waits for its time')

  rot(fileOf(first.data, flipped.digest), new Random(1))
  const database = new Database(join(first.data, 'boathouse.db'))
  database.prepare('UPDATE collection SET index_made_at = ?').run(Date.now() - 32 * 86_400_000)
  database.close()
  const never = await startServer(t, {
    data: first.data,
    config: { ...config, verify: { schedule: 'never' } },
  })
  await never.stop()
  t.notMatch(never.stderr(), /verified what is stored/, 'nor does a server that is told not to')

  const second = await startServer(t, { data: first.data, config })
  const line = await eventually('it verifies', () =>
    second.logs().find(({ msg }) => msg === 'verified what is stored'),
  )
  t.match(line, { blobs: 2, problems: 1 })
  await second.stop()

  const third = await startServer(t, { data: first.data, config })
  await pushBlobs(third, 'team/app', randomBlob())
  await third.stop()
  t.notMatch(third.stderr(), /verified what is stored/, 'what was made up for is done')
})

t.test('what a restart has interrupted of a verification goes on at once', async (t) => {
  const server = await startServer(t)
  for (let count = 0; count < 6; count++) await pushBlobs(server, 'team/app', randomBlob(256 * 1024))
  const running = startCommand(['verify', '--rate', '400KiB', '--json'], {
    env: { BOATHOUSE_DATA: server.data },
  })
  await eventually('it is at work', () => existsSync(join(server.data, 'verifier.lock')))
  await pause(1500)
  running.child.kill('SIGINT')
  const first = JSON.parse((await running.done).stdout) as { interrupted: boolean; blobs: number }
  t.ok(first.interrupted)
  t.ok(first.blobs < 6, `${first.blobs} blobs`)
  await server.stop()
  const yearly = { verify: { schedule: '0 0 1 1 *', rate: 'unlimited' }, log: { level: 'info' } }
  const again = await startServer(t, { data: server.data, config: yearly })
  const line = await eventually('it goes on', () =>
    again.logs().find(({ msg }) => msg === 'verified what is stored'),
  )
  t.match(line, { blobs: 6, problems: 0, interrupted: false }, 'each was looked at once')
  t.match((await again.request('GET', '/metrics')).text, /^boathouse_verify_last_end_seconds [1-9]/m)
  await again.stop()
  const third = await startServer(t, { data: server.data, config: yearly })
  await pushBlobs(third, 'team/app', randomBlob())
  t.notMatch(third.stderr(), /verified what is stored/, 'one that came to its end waits for its time')
})
