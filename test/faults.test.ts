import { execFileSync, spawnSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import {
  closeSync,
  existsSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import Database from 'better-sqlite3'
import t, { type Test } from 'tap'
import { dataPaths, filesystemWarning } from '../storage/data-folder.js'
import { did, runCommand } from './commands.js'
import {
  artifact,
  type Content,
  descriptor,
  eventually,
  finishUpload,
  image,
  index,
  isError,
  type Manifest,
  openUpload,
  pause,
  processTree,
  push,
  pushBlobs,
  putManifest,
  RawConnection,
  randomBlob,
  type Server,
  scratchDir,
  startServer,
  withQuery,
} from './harness.js'
import { Random } from './torture/random.js'

/*
 * Rows of docs/FAULTS.md that no other file is about. Larger: --graphs N, --requests N, --large.
 */

function numberAfter(word: string, fallback: number): number {
  const at = process.argv.indexOf(word)
  return at < 0 ? fallback : Number(process.argv[at + 1])
}
const graphs = numberAfter('--graphs', 40)
const requests = numberAfter('--requests', 4000)
const isLarge = process.argv.includes('--large')
t.setTimeout(process.argv.length > 2 ? 7_200_000 : 280_000)

function fileOf(server: { data: string }, { digest }: { digest: string }): string {
  const hex = digest.slice('sha256:'.length)
  return join(server.data, 'blobs', 'sha256', hex.slice(0, 2), hex)
}

const grace = 10
const quiet = { gc: { interval: '24d', grace: `${grace}ms`, untagged: `${grace}ms` } }

/** Collects as the server of {@link quiet} would, when all leases have run out. */
async function collect(t: Test, server: Server): Promise<void> {
  await pause(3 * grace)
  const env = { BOATHOUSE_GC_GRACE: `${grace}ms`, BOATHOUSE_GC_UNTAGGED: `${grace}ms` }
  await did(t, runCommand(server.data, ['gc'], '', { env }))
}

/** A repository's manifests and what leads from one to the other, as the test has pushed them. */
class Graph {
  readonly repository: string
  readonly manifests: Manifest[] = []
  readonly children = new Map<string, string[]>()
  readonly subjects = new Map<string, string>()
  readonly tags = new Map<string, string>()

  constructor(repository: string) {
    this.repository = repository
  }

  async grow(server: Server, random: Random, shared: readonly Content[]): Promise<void> {
    for (let count = random.int(2, 6); count > 0; count--) {
      const manifest = this.#next(random, shared)
      const { digest } = manifest
      await push(server, this.repository, digest, manifest)
      this.manifests.push(manifest)
      if (!random.chance(0.5)) continue
      const tag = `t${random.int(0, 3)}`
      await putManifest(server, this.repository, tag, manifest)
      this.tags.set(tag, digest)
    }
    for (const tag of [...this.tags.keys()].filter(() => random.chance(0.4))) {
      await server.request('DELETE', `/v2/${this.repository}/manifests/${tag}`)
      this.tags.delete(tag)
    }
  }

  #next(random: Random, shared: readonly Content[]): Manifest {
    const some = this.manifests.filter(() => random.chance(0.4))
    const kind = random.int(0, 2)
    const layers = [...shared.filter(() => random.chance(0.3)), randomBlob(50)]
    const subject = random.pick(this.manifests)
    if (kind === 1 && some.length > 0) {
      const made = index(some, { extra: { annotations: { id: randomBytes(8).toString('hex') } } })
      this.children.set(
        made.digest,
        some.map(({ digest }) => digest),
      )
      return made
    }
    if (kind === 2 && subject !== undefined) {
      const made = artifact({ subject: descriptor(subject), artifactType: 'application/x-test' })
      this.subjects.set(made.digest, subject.digest)
      return made
    }
    return image({ layers })
  }

  /** What must stay: from tags to children, and from whatever stays to what refers to it. */
  kept(): Set<string> {
    const kept = new Set<string>()
    const visit = (digest: string) => {
      if (kept.has(digest)) return
      kept.add(digest)
      for (const child of this.children.get(digest) ?? []) visit(child)
      for (const [referrer, subject] of this.subjects) if (subject === digest) visit(referrer)
    }
    for (const digest of this.tags.values()) visit(digest)
    return kept
  }
}

/** Where the kernel can be told that an ext4 filesystem has an error. */
function errorOf(device: string): string {
  return `/sys/fs/ext4/${device.replace('/dev/', '')}/trigger_fs_error`
}

/** Why no filesystem can become read-only here; false when one can. */
function noReadOnly(): string | false {
  if (process.getuid?.() !== 0) return 'it needs root, to mount a filesystem'
  const found = spawnSync('sh', ['-c', 'command -v mkfs.ext4 && command -v findmnt && losetup -f'])
  return found.status === 0 ? false : 'it needs ext4 and loop devices'
}

t.test(
  'R02: what a collection removes of random graphs is what nothing leads to, and all of it',
  async (t) => {
    const random = new Random('graphs', 1)
    const server = await startServer(t, { config: quiet })
    const shared = Array.from({ length: 6 }, () => randomBlob(60))
    const all = Array.from({ length: graphs }, (_, at) => new Graph(`graph/g${at}`))
    await Promise.all(
      Array.from({ length: 4 }, async (_, lane) => {
        for (const graph of all.filter((__, at) => at % 4 === lane)) await graph.grow(server, random, shared)
      }),
    )
    await collect(t, server)
    const faults: string[] = []
    const keptBlobs = new Map<string, Content>()
    const allBlobs = new Map<string, Content>()
    let removed = 0
    for (const graph of all) {
      const kept = graph.kept()
      for (const manifest of graph.manifests) {
        const path = `/v2/${graph.repository}/manifests/${manifest.digest}`
        const { status } = await server.request('GET', path)
        if (status !== (kept.has(manifest.digest) ? 200 : 404)) faults.push(`${path}: ${status}`)
        if (status === 404) removed++
        for (const part of manifest.parts) allBlobs.set(part.digest, part)
        if (!kept.has(manifest.digest)) continue
        for (const part of manifest.parts) keptBlobs.set(part.digest, part)
      }
    }
    for (const [digest, content] of allBlobs) {
      const isThere = existsSync(fileOf(server, content))
      if (isThere !== keptBlobs.has(digest)) faults.push(`${digest} is ${isThere ? '' : 'not '}there`)
      else if (isThere && !readFileSync(fileOf(server, content)).equals(content.bytes)) faults.push(digest)
    }
    t.same(faults, [])
    t.ok(removed > 0 && keptBlobs.size > 0, `${removed} manifests went, ${keptBlobs.size} blobs stayed`)
  },
)

t.test('R11: a collection comes to its end where blobs are missing and manifests are empty', async (t) => {
  const server = await startServer(t, { config: quiet })
  const images = Array.from({ length: 20 }, () => image())
  for (const [at, one] of images.entries()) await push(server, 'team/app', `v${at}`, one)
  const [missing, empty, altered, gone, ...well] = images as [Manifest, Manifest, Manifest, Manifest]
  for (const part of missing.parts) rmSync(fileOf(server, part))
  for (const part of empty.parts) truncateSync(fileOf(server, part), 0)
  const db = new Database(dataPaths(server.data).database)
  db.prepare('UPDATE manifest SET bytes = zeroblob(0) WHERE digest = ?').run(altered.digest)
  db.close()
  await server.request('DELETE', `/v2/team/app/manifests/${gone.digest}`)
  await collect(t, server)
  t.notOk(
    gone.parts.some((part) => existsSync(fileOf(server, part))),
    'what is garbage for sure has gone',
  )
  for (const part of [...altered.parts, ...well.flatMap(({ parts }) => parts)]) {
    if (!existsSync(fileOf(server, part))) t.fail(`${part.digest} has gone`)
  }
  for (const [at, one] of images.entries()) {
    if (one === gone || one === altered) continue
    const { body } = await server.request('GET', `/v2/team/app/manifests/v${at}`)
    if (!body.equals(one.bytes)) t.fail(`v${at} has gone`)
  }
  isError(t, await server.request('GET', '/v2/team/app/manifests/v2'), 503, 'UNAVAILABLE')
})

t.test('R23: a blob that was cut is refused, or ends short; it is never taken for whole', async (t) => {
  const server = await startServer(t)
  const [cut, sent] = [randomBlob(5000), randomBlob(64 * 1024 * 1024)] as const
  await push(server, 'team/app', 'needs-both', image({ layers: [cut, sent] }))
  const connection = await RawConnection.open(server)
  connection.socket.pause()
  await connection.request(`GET /v2/team/app/blobs/${sent.digest}`, ['Connection: close'])
  connection.socket.resume()
  await eventually('it is being sent', () => connection.receivedBytes > 0)
  connection.socket.pause()
  for (const content of [cut, sent]) truncateSync(fileOf(server, content), content.size - 1)
  connection.socket.resume()
  await connection.closed
  const body = connection.receivedBytes - connection.text.indexOf('\r\n\r\n') - 4
  t.ok(body < sent.size, `${body} of ${sent.size} bytes came before the connection was closed`)
  for (const content of [cut, sent]) {
    isError(t, await server.request('GET', `/v2/team/app/blobs/${content.digest}`), 503, 'UNAVAILABLE')
  }
  t.equal((await runCommand(server.data, ['verify', '--rate', 'unlimited'])).code, 1)
  t.equal((await server.request('HEAD', `/v2/team/app/blobs/${cut.digest}`)).status, 404)
  await pushBlobs(server, 'team/app', cut)
  t.ok((await server.request('GET', `/v2/team/app/blobs/${cut.digest}`)).body.equals(cut.bytes))
})

t.test(
  'R26: an upload that another version began is hashed from its file, whatever hash is noted',
  async (t) => {
    const server = await startServer(t)
    for (const noted of [null, `sha256:${'0'.repeat(64)}`, 'of another make']) {
      const content = randomBlob(200_000)
      const location = await openUpload(server, 'team/app')
      const half = content.bytes.subarray(0, 90_000)
      t.equal((await server.request('PATCH', location, { body: half })).status, 202)
      const db = new Database(dataPaths(server.data).database)
      db.prepare('UPDATE upload SET digest = ?').run(noted)
      db.close()
      await finishUpload(server, location, content.digest, content.bytes.subarray(90_000))
      t.ok((await server.request('GET', `/v2/team/app/blobs/${content.digest}`)).body.equals(content.bytes))
    }
  },
)

t.test('R27: filesystems whose locks and syncs cannot be relied on are warned about', async (t) => {
  for (const [type, name] of [
    [0x6969, 'NFS'],
    [0xff534d42, 'CIFS'],
    [0xfe534d42, 'SMB'],
    [0x65735546, 'FUSE'],
  ] as const) {
    t.match(filesystemWarning(type), new RegExp(`on ${name}: .*use a local disk`))
  }
  for (const local of [0xef53, 0x58465342, 0x9123683e, 0x01021994])
    t.equal(filesystemWarning(local), undefined)
})

/** Kibibytes of memory that a server's processes have had at the most. */
function peakMemory(server: Server): number {
  return processTree(server.pid)
    .map((pid) => Number(/^VmHWM:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0))
    .reduce((sum, one) => sum + one, 0)
}

/** The digest of 2^32 + 5 bytes of zero and the word "beyond". */
const usualHole = 'sha256:ab2e6a25aa0bb134a1f91f4109f8f7650c80aaf908e1d8ef6224d46ff7d7cb08'

async function digestOfHole(zeros: number, tail: Buffer): Promise<string> {
  const hash = createHash('sha256')
  const piece = Buffer.alloc(2 ** 22)
  for (let left = zeros; left > 0; left -= piece.length) {
    hash.update(piece.subarray(0, Math.min(left, piece.length)))
    if (left % 2 ** 28 < piece.length) await pause(0)
  }
  return `sha256:${hash.update(tail).digest('hex')}`
}

t.test('R29: a blob beyond 4 GiB is appended to, hashed and read', async (t) => {
  const server = await startServer(t)
  const tail = Buffer.from('beyond')
  const hole = isLarge ? 6 * 2 ** 30 : 2 ** 32 + 5
  const digest = isLarge ? await digestOfHole(hole, tail) : usualHole
  const location = await openUpload(server, 'team/app')
  // The bytes up to there are a hole in the file, which nobody has to send.
  t.equal((await server.request('PATCH', location, { body: Buffer.alloc(1) })).status, 202)
  const [name = ''] = readdirSync(join(server.data, 'uploads'))
  const file = openSync(join(server.data, 'uploads', name), 'r+')
  ftruncateSync(file, hole)
  closeSync(file)
  const db = new Database(dataPaths(server.data).database)
  db.prepare('UPDATE upload SET offset = ?, digest = NULL').run(hole)
  db.close()
  const chunk = await server.request('PATCH', location, {
    headers: { 'Content-Range': `${hole}-${hole + tail.length - 1}` },
    body: tail,
    timeout: 200_000,
  })
  t.equal(chunk.status, 202)
  t.equal(chunk.header('range'), `0-${hole + tail.length - 1}`)
  const closing = withQuery(location, `digest=${digest}`)
  t.equal((await server.request('PUT', closing, { timeout: 200_000 })).status, 201)
  const path = `/v2/team/app/blobs/${digest}`
  t.equal((await server.request('HEAD', path)).header('content-length'), String(hole + tail.length))
  const end = await server.request('GET', path, { headers: { Range: `bytes=${hole - 2}-` } })
  t.equal(end.status, 206)
  t.ok(end.body.equals(Buffer.concat([Buffer.alloc(2), tail])))
  const peak = peakMemory(server) / 1024
  t.ok(peak < 256, `${Math.round(peak)} MiB at the most`)
})

t.test('R10: pushes go on while thousands of blobs are collected', async (t) => {
  // A grace that no push outlasts, however slow the machine; what is to go is older than any.
  const server = await startServer(t, { config: { gc: { interval: '24d', grace: '1h' } } })
  const db = new Database(dataPaths(server.data).database)
  const blob = db.prepare('INSERT INTO blob (digest, size, created_at) VALUES (?, 8, 1)')
  db.transaction(() => {
    for (let count = 0; count < 4000; count++) {
      const content = randomBlob(8)
      writeFileSync(fileOf(server, content), content.bytes)
      blob.run(content.digest)
    }
  })()
  db.close()
  let isOver = false
  const env = { BOATHOUSE_GC_GRACE: '1h' }
  const collecting = did(t, runCommand(server.data, ['gc'], '', { env })).finally(() => {
    isOver = true
  })
  let pushed = 0
  for (; !isOver; pushed++) await push(server, 'team/app', `v${pushed}`, image())
  await collecting
  t.ok(pushed > 2, `${pushed} images were pushed meanwhile, none was refused`)
  const { text } = await server.request('GET', '/metrics')
  t.match(text, /^boathouse_gc_blobs_total 4000$/m)
})

t.test('R54: a long reader does not make the log grow for ever', async (t) => {
  const server = await startServer(t)
  const { database } = dataPaths(server.data)
  const sizeOfLog = () => statSync(`${database}-wal`).size
  const fill = async (count: number, from: number) => {
    for (let at = from; at < from + count; at++) {
      const text = 'x'.repeat(300_000)
      const one = image({ layers: [], extra: { annotations: { text, at: String(at) } } })
      await push(server, 'team/app', `v${at}`, one)
    }
  }
  const reader = new Database(database, { readonly: true })
  reader.exec('BEGIN')
  reader.prepare('SELECT count(*) FROM manifest').get()
  await fill(40, 0)
  const held = sizeOfLog()
  reader.close()
  await fill(80, 40)
  t.ok(sizeOfLog() <= held + 8 * 2 ** 20, `${sizeOfLog()} bytes, ${held} while it was held`)
  t.ok(sizeOfLog() < 256 * 2 ** 20)
  await server.stop()
  t.notOk(existsSync(`${database}-wal`), 'an orderly stop leaves none')
})

t.test('R58: strange and broken files keep nobody from starting, and what is sound is served', async (t) => {
  const random = new Random('strange files', 1)
  const server = await startServer(t)
  const sound = image()
  await push(server, 'sound/app', 'v1', sound)
  const hurt = image({ layers: [randomBlob(), randomBlob(), randomBlob()] })
  await push(server, 'hurt/app', 'v1', hurt)
  await openUpload(server, 'hurt/app')
  await server.stop()
  const places = ['', 'blobs', 'blobs/sha256', 'blobs/sha256/00', 'uploads', 'snapshots']
  for (let round = 0; round < 3; round++) {
    for (const place of places) {
      mkdirSync(join(server.data, place), { recursive: true })
      const name = random.pick([
        'README',
        '.hidden',
        'ä b',
        'x'.repeat(200),
        'index-1.db',
        `${'0'.repeat(64)}`,
      ])
      writeFileSync(join(server.data, place, `${name}`), random.bytes(random.int(0, 500)))
      mkdirSync(join(server.data, place, `folder-${round}`), { recursive: true })
    }
    const victim = random.pick(hurt.parts.slice(1))
    if (victim !== undefined) {
      rmSync(fileOf(server, victim), { force: true, recursive: true })
      if (round === 1) mkdirSync(fileOf(server, victim))
      if (round === 2) symlinkSync('/etc/hostname', fileOf(server, victim))
    }
    const again = await startServer(t, { data: server.data })
    const got = await again.request('GET', '/v2/sound/app/manifests/v1')
    t.ok(got.body.equals(sound.bytes))
    for (const part of sound.parts) {
      t.ok((await again.request('GET', `/v2/sound/app/blobs/${part.digest}`)).body.equals(part.bytes))
    }
    if (victim !== undefined) {
      t.equal((await again.request('GET', `/v2/hurt/app/blobs/${victim.digest}`)).status, 503)
    }
    await push(again, 'sound/app', `round${round}`, image())
    t.same(await again.stop(), { code: 0, signal: null })
  }
})

t.test('R53: while another process holds the lock of the index, requests wait', async (t) => {
  const server = await startServer(t, { config: { workers: 2 } })
  const [before, later] = [image(), image()] as const
  await push(server, 'team/app', 'before', before)
  await pushBlobs(server, 'team/app', ...later.parts)
  const db = new Database(dataPaths(server.data).database)
  db.exec('BEGIN IMMEDIATE')
  const began = performance.now()
  const waiting = Promise.all([
    ...Array.from({ length: 8 }, (_, at) => putManifest(server, 'team/app', `v${at}`, later)),
    ...Array.from({ length: 4 }, () => server.request('POST', '/v2/team/app/blobs/uploads/')),
  ])
  const read = await server.request('GET', '/v2/team/app/manifests/before')
  t.ok(read.body.equals(before.bytes), 'readers do not wait')
  await pause(2000)
  db.exec('COMMIT')
  db.close()
  const statuses = (await waiting).map(({ status }) => status)
  t.same(
    statuses.filter((status) => status >= 300 && status !== 503),
    [],
    'each goes well, or is to come again',
  )
  t.ok(statuses.filter((status) => status < 300).length > 0)
  t.ok(performance.now() - began >= 2000)
})

t.test('R64: while the data folder is away requests are refused, and go well when it is back', async (t) => {
  const server = await startServer(t)
  const [before, after] = [image(), image()] as const
  await push(server, 'team/app', 'v1', before)
  const [part] = before.parts
  const away = `${server.data}-away`
  renameSync(server.data, away)
  const pulled = await server.request('GET', `/v2/team/app/blobs/${part?.digest}`)
  isError(t, pulled, 503, 'UNAVAILABLE')
  const content = randomBlob()
  const pushed = await server.request('POST', `/v2/team/app/blobs/uploads/?digest=${content.digest}`, {
    body: content.bytes,
  })
  t.ok(pushed.status >= 400, `a push is refused: ${pushed.status}`)
  t.equal((await server.request('HEAD', `/v2/team/app/blobs/${content.digest}`)).status, 404)
  renameSync(away, server.data)
  for (const { digest, bytes } of before.parts) {
    t.ok((await server.request('GET', `/v2/team/app/blobs/${digest}`)).body.equals(bytes))
  }
  await push(server, 'team/app', 'v2', after)
  t.ok((await server.request('GET', '/v2/team/app/manifests/v2')).body.equals(after.bytes))
})

t.test('R64: on a filesystem that became read-only pulls go on', { skip: noReadOnly() }, async (t) => {
  const image1 = join(scratchDir(t), 'image')
  const root = join(scratchDir(t), 'disk')
  mkdirSync(root)
  execFileSync('truncate', ['-s', '1G', image1])
  execFileSync('mkfs.ext4', ['-qF', image1])
  const mount = () => execFileSync('mount', ['-o', 'loop,errors=remount-ro', image1, root])
  mount()
  t.teardown(() => execFileSync('umount', ['-l', root]))
  const data = join(root, 'data')
  const server = await startServer(t, { data, config: { log: { level: 'silent' } } })
  const before = image()
  await push(server, 'team/app', 'v1', before)
  const device = execFileSync('findmnt', ['-no', 'SOURCE', root], { encoding: 'utf8' }).trim()
  const open = await openUpload(server, 'team/app')
  // The kernel does what it does when it meets an error of the filesystem.
  writeFileSync(errorOf(device), '1')

  const content = randomBlob()
  const uploads = '/v2/team/app/blobs/uploads/'
  for (let round = 0; round < 3; round++) {
    t.equal((await server.request('HEAD', '/v2/team/app/manifests/v1')).status, 200)
    t.ok((await server.request('GET', '/v2/team/app/manifests/v1')).body.equals(before.bytes))
    for (const { digest, bytes } of before.parts)
      t.ok((await server.request('GET', `/v2/team/app/blobs/${digest}`)).body.equals(bytes))
    t.same((await server.request('GET', '/v2/team/app/tags/list')).json(), { name: 'team/app', tags: ['v1'] })
    for (const [method, path, body] of [
      ['POST', uploads, ''],
      ['POST', `${uploads}?digest=${content.digest}`, content.bytes],
      ['PATCH', open, content.bytes],
      ['DELETE', '/v2/team/app/manifests/v1', ''],
      ['PUT', '/v2/team/app/manifests/v2', before.bytes],
    ] as const) {
      const headers = method === 'PUT' ? { 'Content-Type': before.mediaType } : {}
      const reply = await server.request(method, path, { headers, body, fresh: true, unchecked: true })
      isError(t, reply, 503, 'UNAVAILABLE')
      t.match(reply.header('retry-after'), /^[1-9]/)
    }
    const ready = await server.request('GET', '/readyz')
    isError(t, ready, 503, 'UNAVAILABLE')
    t.match(ready.text, /has become read-only/)
  }
  t.same(await server.stop(), { code: 0, signal: null })

  execFileSync('umount', [root])
  spawnSync('e2fsck', ['-fp', image1])
  mount()
  const next = await startServer(t, { data })
  t.ok((await next.request('GET', '/v2/team/app/manifests/v1')).body.equals(before.bytes))
  t.equal((await next.request('GET', '/v2/team/app/manifests/v2')).status, 404)
  await push(next, 'team/app', 'v2', image())
  t.same(await next.stop(), { code: 0, signal: null })
})

t.test('R56: what works with the index does not open its files past SQLite', (t) => {
  const storage = fileURLToPath(new URL('../../storage/', import.meta.url))
  const names = readdirSync(storage).filter((name) => /^(?:sqlite-.*|migrations)\.ts$/.test(name))
  t.ok(names.length > 10)
  for (const name of names) {
    const source = readFileSync(join(storage, name), 'utf8')
    const imported = [...source.matchAll(/import \{([^}]*)\} from 'node:fs(?:\/promises)?'/g)]
    const words = imported.flatMap(([, list = '']) => list.split(',').map((word) => word.trim()))
    // A stat opens nothing; closing any descriptor of the file would drop SQLite's locks.
    t.same(
      words.filter((word) => word !== '' && word !== 'stat'),
      [],
      name,
    )
  }
  t.end()
})

/** Kibibytes of memory that a server's processes have now. */
function memoryOf(server: Server): number {
  return processTree(server.pid)
    .map((pid) => Number(/^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0))
    .reduce((sum, one) => sum + one, 0)
}

t.test('R62: requests of all kinds leave no memory behind', async (t) => {
  const server = await startServer(t, { config: { log: { level: 'warn' } } })
  const whole = image()
  await push(server, 'team/app', 'v1', whole)
  const [part] = whole.parts
  const kinds: ((at: number) => Promise<unknown>)[] = [
    () => server.request('GET', '/v2/team/app/manifests/v1'),
    () => server.request('HEAD', `/v2/team/app/blobs/${part?.digest}`),
    () => server.request('GET', `/v2/team/app/blobs/${part?.digest}`),
    (at) => server.request('GET', `/v2/absent${at}/app/manifests/v1`),
    () => server.request('GET', '/v2/team/app/tags/list'),
    (at) => server.request('HEAD', `/v2/team/app/manifests/absent${at}`),
    (at) => putManifest(server, 'team/app', `t${at % 50}`, whole),
    () =>
      server
        .request('POST', '/v2/team/app/blobs/uploads/')
        .then((reply) => server.request('DELETE', reply.header('location'))),
  ]
  const block = async (from: number) => {
    const lane = async (first: number) => {
      for (let at = from + first; at < from + requests; at += 4) await kinds[at % kinds.length]?.(at)
    }
    await Promise.all([0, 1, 2, 3].map(lane))
    return memoryOf(server)
  }
  await block(0) // caches and the heap find their size
  const first = await block(requests)
  const second = await block(2 * requests)
  const grown = (second - first) / 1024
  // A quick run is too short for a slope: 24 MiB are what a heap breathes.
  const allowed = Math.max(24, requests / 100_000)
  t.ok(grown < allowed, `${grown.toFixed(1)} MiB more after ${requests} more requests`)
})
