import fs, {
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statfsSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { syncBuiltinESMExports } from 'node:module'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import { type Digest, digestOf, encodedOf } from '../../src/oci/digest.js'
import type { AppendOptions, BlobStore } from '../../storage/blob-store.js'
import { takeDataFolder } from '../../storage/data-folder.js'
import { openFsBlobStore, prepareFsBlobStore } from '../../storage/fs-blob-store.js'
import { eventually, filesBelow, scratchDir } from '../harness.js'
import { testBlobStore } from './blob-store-suite.js'
import { bodyOf, brokenBody, cut, readBlob, someBytes } from './bodies.js'
import { mountSmallDisk, noMounting, noTracing, startChild } from './processes.js'
import { refuses } from './refusals.js'
import { Trace, tracing } from './trace.js'

const mebibyte = 1024 * 1024
const cannotTrace = noTracing() ?? false
const cannotMount = noMounting() ?? false

/** A store on a new folder, closed with the test. */
async function newStore(
  t: Test,
  root = join(scratchDir(t), 'data'),
): Promise<{ root: string; blobs: BlobStore }> {
  await prepareFsBlobStore(root)
  const blobs = openFsBlobStore(root)
  t.teardown(() => blobs.close())
  return { root, blobs }
}

function at(offset: number, digest?: Digest): AppendOptions {
  return { offset, digest, limit: Number.MAX_SAFE_INTEGER, algorithm: 'sha256' }
}

function blobPath(root: string, digest: Digest): string {
  const encoded = encodedOf(digest)
  return join(root, 'blobs', digest.slice(0, 6), encoded.slice(0, 2), encoded)
}

/** The content of a blob that must be there. */
async function contentOf(blobs: BlobStore, digest: Digest): Promise<Buffer> {
  const reader = await blobs.open(digest)
  if (reader === undefined) throw new Error(`${digest} is not there`)
  try {
    return await readBlob(reader)
  } finally {
    await reader.close()
  }
}

t.test('the suite of all drivers', async (t) => {
  // One folder is emptied again and again: making it with its hundreds of folders takes longer than most tests.
  const root = join(scratchDir(t), 'data')
  await prepareFsBlobStore(root)
  testBlobStore(t, async () => {
    for (const file of filesBelow(root)) rmSync(join(root, file))
    return { open: async () => openFsBlobStore(root) }
  })
})

t.test('layout: a blob is one file, named by its digest, below the first two digits', async (t) => {
  const { root, blobs } = await newStore(t)
  for (const algorithm of ['sha256', 'sha512'] as const) {
    const bytes = Buffer.from(`of ${algorithm}`)
    const digest = digestOf(bytes, algorithm)
    await blobs.append('one', bodyOf(bytes), at(0))
    t.strictSame(readdirSync(join(root, 'uploads')), ['one'], 'an upload is a file by its id')
    await blobs.commit('one', digest, bytes.length)
    t.ok(readFileSync(blobPath(root, digest)).equals(bytes), `${algorithm}: the file has the bytes`)
  }
  t.equal(filesBelow(root).length, 2, 'there is no other file')
})

t.test('layout: all folders are made beforehand, and making them again changes nothing', async (t) => {
  const { root, blobs } = await newStore(t)
  const bytes = Buffer.from('kept')
  await blobs.append('one', bodyOf(bytes), at(0))
  await blobs.commit('one', digestOf(bytes), bytes.length)
  for (const algorithm of ['sha256', 'sha512']) {
    t.equal(readdirSync(join(root, 'blobs', algorithm)).length, 256, `${algorithm}: one for each two digits`)
  }
  rmSync(join(root, 'blobs', 'sha256', '00'), { recursive: true, force: true })
  await prepareFsBlobStore(root)
  t.ok(statSync(join(root, 'blobs', 'sha256', '00')).isDirectory(), 'a missing one is made again')
  t.ok((await contentOf(blobs, digestOf(bytes))).equals(bytes), 'blobs stay')
})

t.test('a data folder may have any name', async (t) => {
  const root = join(scratchDir(t), `a?b#c&d %20'";`)
  const { blobs } = await newStore(t, root)
  const bytes = Buffer.from('under an odd name')
  await blobs.append('one', bodyOf(bytes), at(0))
  await blobs.check()
  await blobs.commit('one', digestOf(bytes), bytes.length)
  t.ok((await contentOf(blobs, digestOf(bytes))).equals(bytes), 'what is stored can be read')
  t.ok(statSync(blobPath(root, digestOf(bytes))).isFile(), 'and lies in that folder')
  t.strictSame(readdirSync(scratchDir(t)), [`a?b#c&d %20'";`], 'nothing lies beside it')
})

t.test('modes: the folder is its owner’s alone, and nobody else reads or writes a file', async (t) => {
  const mask = process.umask(0o022)
  t.teardown(() => {
    process.umask(mask)
  })
  const root = join(scratchDir(t), 'data')
  const folder = await takeDataFolder(root)
  t.teardown(() => folder.release())
  const { blobs } = await newStore(t, root)
  const bytes = Buffer.from('private')
  await blobs.append('one', bodyOf(bytes), at(0))
  await blobs.append('two', bodyOf(bytes), at(0))
  await blobs.commit('one', digestOf(bytes), bytes.length)
  t.equal(statSync(root).mode & 0o777, 0o700, 'nobody else enters the folder')
  for (const path of [blobPath(root, digestOf(bytes)), join(root, 'uploads', 'two')]) {
    t.equal(statSync(path).mode & 0o137, 0, `${path.slice(root.length)} has no more than 0640`)
  }
})

t.test('no symlink is followed, in uploads/ or in blobs/', async (t) => {
  const { root, blobs } = await newStore(t)
  const secret = Buffer.from('a secret beside the data')
  const outside = join(scratchDir(t), 'outside')
  const digest = digestOf(secret)
  for (const what of ['append', 'append at 0', 'digest', 'commit', 'open'] as const) {
    writeFileSync(outside, secret)
    rmSync(join(root, 'uploads', 'link'), { force: true })
    rmSync(blobPath(root, digest), { force: true })
    symlinkSync(outside, what === 'open' ? blobPath(root, digest) : join(root, 'uploads', 'link'))
    const tries = {
      append: () => blobs.append('link', bodyOf(Buffer.from('x')), at(secret.length)),
      'append at 0': () => blobs.append('link', bodyOf(Buffer.from('x')), at(0)),
      digest: () => blobs.digestUpload('link', 'sha256', secret.length),
      commit: () => blobs.commit('link', digest, secret.length),
      open: () => blobs.open(digest),
    }
    await t.rejects(async () => tries[what](), `${what} is refused`)
    t.ok(readFileSync(outside).equals(secret), `${what}: the file outside is as it was`)
    if (what !== 'open') {
      t.equal(await blobs.open(digest), undefined, `${what}: the link has not become a blob`)
    }
  }
  rmSync(blobPath(root, digest), { force: true })
  await blobs.discard('link')
  t.ok(readFileSync(outside).equals(secret), 'discard takes the link, not the file')
})

t.test('short writes: what the system did not take is written again', async (t) => {
  const { blobs } = await newStore(t)
  const { write } = fs
  let calls = 0
  t.teardown(() => {
    fs.write = write
    syncBuiltinESMExports()
  })
  // Takes between 1 byte and all of them, as a nearly full disk or a signal would.
  const short = (fd: number, bytes: Buffer, start: number, length: number, ...rest: readonly unknown[]) => {
    const most = [1, length - 1, length, 4096, 70_001][calls++ % 5] ?? 1
    Reflect.apply(write, fs, [fd, bytes, start, Math.max(1, Math.min(most, length)), ...rest])
  }
  fs.write = Object.assign(short, write) as typeof fs.write
  syncBuiltinESMExports()
  const bytes = someBytes(3 * mebibyte + 12_345)
  const result = await blobs.append('one', bodyOf(...cut(bytes, 50_000)), at(0))
  t.ok(calls > 10, `${calls} writes: some were short`)
  t.equal(result.size, bytes.length)
  t.equal(
    await blobs.digestUpload('one', 'sha256', bytes.length),
    digestOf(bytes),
    'every byte is in its place',
  )
  await blobs.commit('one', digestOf(bytes), bytes.length)
})

t.test('lost uploads: a file that is gone or shorter ends the upload, never more', async (t) => {
  const { root, blobs } = await newStore(t)
  const path = join(root, 'uploads', 'one')
  const digest = digestOf(Buffer.from('0123456789'))
  const begin = async () => {
    await blobs.append('one', bodyOf(Buffer.from('0123456789')), at(0))
  }
  const damages = {
    gone: () => rmSync(path),
    shorter: () => truncateSync(path, 9),
    empty: () => truncateSync(path, 0),
  }
  for (const [what, damage] of Object.entries(damages)) {
    const tries = {
      append: () => blobs.append('one', bodyOf(Buffer.from('x')), at(10, digest)),
      'append of nothing': () => blobs.append('one', undefined, at(10, digest)),
      digest: () => blobs.digestUpload('one', 'sha256', 10),
      commit: () => blobs.commit('one', digest, 10),
    }
    for (const [how, attempt] of Object.entries(tries)) {
      await begin()
      damage()
      await refuses(t, attempt(), 'BLOB_UPLOAD_UNKNOWN', `${what}: ${how}`)
      t.equal(await blobs.open(digest), undefined, `${what}: ${how} makes no blob`)
    }
  }
})

t.test('a blob file that got shorter ends its copy with an error, after the bytes it has', async (t) => {
  const { root, blobs } = await newStore(t)
  const bytes = someBytes(mebibyte)
  const digest = digestOf(bytes)
  await blobs.append('one', bodyOf(bytes), at(0))
  await blobs.commit('one', digest, bytes.length)
  const reader = await blobs.open(digest)
  if (reader === undefined) throw new Error('the blob is not there')
  t.teardown(() => reader.close())
  truncateSync(blobPath(root, digest), 600_000)
  await t.rejects(readBlob(reader), { message: /600000/ }, 'the error says where the file ends')
  t.ok((await readBlob(reader, 0, 599_999)).equals(bytes.subarray(0, 600_000)), 'what is there can be read')
})

t.test(
  'descriptors: whatever happens, none stays open',
  { skip: process.platform !== 'linux' },
  async (t) => {
    const descriptors = () => readdirSync('/proc/self/fd').length
    const root = join(scratchDir(t), 'data')
    await prepareFsBlobStore(root)
    const blobs = openFsBlobStore(root)
    const bytes = someBytes(300_000)
    const work = async () => {
      await blobs.append('one', brokenBody(bytes), at(0))
      await t.rejects(blobs.append('one', bodyOf(bytes), { ...at(0), limit: 10 }))
      await t.rejects(blobs.append('one', bodyOf(bytes), at(1_000_000)))
      await t.rejects(blobs.digestUpload('one', 'sha256', 1_000_000))
      await blobs.append('one', bodyOf(bytes), at(0))
      await blobs.check()
      await blobs.commit('one', digestOf(bytes), bytes.length)
      await contentOf(blobs, digestOf(bytes))
      await t.rejects(blobs.commit('one', digestOf(bytes), bytes.length))
    }
    await work() // folders are opened once and kept
    const before = descriptors()
    for (let turn = 0; turn < 20; turn++) await work()
    await eventually('all files to be closed', () => descriptors() <= before)
    t.equal(descriptors(), before, 'as many as before')
    await blobs.close()
    t.ok(descriptors() < before, 'a closed store keeps no folder open')
  },
)

t.test(
  'memory does not grow with the size of a blob',
  { skip: process.platform !== 'linux', timeout: 100_000 },
  async (t) => {
    const root = join(scratchDir(t), 'data')
    await prepareFsBlobStore(root)
    const child = startChild(t, 'stream', { root, size: 512 * mebibyte })
    const [outcome] = (await child.ended()) as [{ grownKibibytes: number; isSame: boolean }]
    t.equal(outcome.isSame, true, '512 MiB came back as they were')
    t.ok(outcome.grownKibibytes < 160 * 1024, `grown by ${outcome.grownKibibytes} KiB: less than 160 MiB`)
  },
)

t.test(
  'a full disk: refused as such, what was there stays, and it goes on when there is room',
  { skip: cannotMount },
  async (t) => {
    const disk = mountSmallDisk(t, 16)
    const { blobs } = await newStore(t, join(disk, 'data'))
    const free = () => statfsSync(disk).bavail * statfsSync(disk).bsize
    const old = someBytes(2 * mebibyte, 1)
    await blobs.append('old', bodyOf(old), at(0))
    await blobs.commit('old', digestOf(old), old.length)
    const bytes = someBytes(9 * mebibyte, 2)
    const begun = bytes.subarray(0, 3 * mebibyte)
    await blobs.append('new', bodyOf(begun), at(0))
    const filler = join(disk, 'filler')
    writeFileSync(filler, Buffer.alloc(free() - 4 * mebibyte))

    const before = free()
    const told = at(begun.length, digestOf(begun))
    const rest = () => bodyOf(...cut(bytes.subarray(begun.length), 65_536))
    for (let turn = 1; turn <= 3; turn++) {
      await refuses(t, blobs.append('new', rest(), told), 'STORAGE_FULL', `try ${turn} is refused`)
      t.equal(free(), before, `try ${turn} gives its room back`)
    }
    const digest = await blobs.digestUpload('new', 'sha256', begun.length)
    t.equal(digest, digestOf(begun), 'the upload is back where it was')
    t.ok((await contentOf(blobs, digestOf(old))).equals(old), 'the old blob can be read')

    writeFileSync(join(disk, 'last'), Buffer.alloc(free()))
    t.equal(free(), 0, 'not a byte is free')
    await refuses(t, blobs.append('other', bodyOf(Buffer.from('x')), at(0)), 'STORAGE_FULL', 'a single byte')
    await refuses(t, blobs.check(), 'STORAGE_FULL', 'the check says so')
    t.ok((await contentOf(blobs, digestOf(old))).equals(old), 'the old blob can still be read')

    rmSync(filler)
    await blobs.check()
    const whole = await blobs.append('new', rest(), told)
    t.equal(whole.size, bytes.length, 'the same append goes through')
    await blobs.commit('new', digestOf(bytes), bytes.length)
    t.ok((await contentOf(blobs, digestOf(bytes))).equals(bytes), 'and every byte is right')
  },
)

t.test(
  'a limit on the size of files is a full disk too',
  { skip: process.platform === 'win32' },
  async (t) => {
    const root = join(scratchDir(t), 'data')
    await prepareFsBlobStore(root)
    const under = ['sh', '-c', 'ulimit -f 2000 && exec "$@"', 'sh'] // blocks of 512 bytes, or 1024 in some shells
    const said = await startChild(t, 'append', { root, size: 4 * mebibyte }, under).ended()
    t.strictSame(said, ['STORAGE_FULL', ['one'], 'STORAGE_FULL', 'BLOB_UPLOAD_UNKNOWN'])
    t.strictSame(
      readdirSync(join(root, 'uploads')).map((id) => statSync(join(root, 'uploads', id)).size),
      [0, 0],
      'both uploads are back at their beginning',
    )
  },
)

t.test('R51: a quota of the disk that is used up is a full disk', { skip: cannotTrace }, async (t) => {
  for (const error of ['ENOSPC', 'EDQUOT']) {
    const root = join(scratchDir(t), error)
    await prepareFsBlobStore(root)
    const inject = `inject=write,pwrite64,writev,pwritev:error=${error}`
    const under = ['strace', '-f', '-o', '/dev/null', '-P', join(root, 'uploads', 'one'), '-e', inject]
    const said = await startChild(t, 'append', { root, size: 1000 }, under).ended()
    t.strictSame(said, ['STORAGE_FULL', ['one'], 'nothing', 'nothing'], error)
  }
})

t.test('R52: a sync that failed is not tried again: the upload is lost', { skip: cannotTrace }, async (t) => {
  // 40 MiB are synced in the background first: neither that failure nor the last one may be passed over.
  for (const [what, size, when] of [
    ['the only sync', 1000, 1],
    ['one while bytes come in', 40 * mebibyte, 1],
  ] as const) {
    const root = join(scratchDir(t), `data-${size}`)
    await prepareFsBlobStore(root)
    const inject = `inject=fdatasync:error=EIO:when=${when}`
    const under = ['strace', '-f', '-o', '/dev/null', '-e', 'trace=fdatasync', '-e', inject]
    const said = await startChild(t, 'append', { root, size }, under).ended()
    t.strictSame(said, ['UNAVAILABLE', [], 'nothing', 'nothing'], `${what}: lost, and the next goes well`)
  }
})

t.test(
  'R50, R52: a folder that cannot be synced: the upload is not acknowledged',
  { skip: cannotTrace },
  async (t) => {
    const root = join(scratchDir(t), 'data')
    await prepareFsBlobStore(root)
    const words = ['strace', '-f', '-o', '/dev/null', '-e', 'trace=fsync']
    const all = [...words, '-e', 'inject=fsync:error=EIO']
    t.strictSame(
      await startChild(t, 'append', { root, size: 1000 }, all).ended(),
      ['UNAVAILABLE', ['one'], 'UNAVAILABLE', 'BLOB_UPLOAD_UNKNOWN'],
      'the folder of uploads: no bytes are acknowledged',
    )
    const third = [...words, '-e', 'inject=fsync:error=EIO:when=3']
    t.strictSame(
      await startChild(t, 'append', { root, size: 1000 }, third).ended(),
      ['nothing', ['one', 'two'], 'nothing', 'UNAVAILABLE'],
      'the folder of a blob: it is not acknowledged',
    )
  },
)

t.test('R50: order: each step is on the disk before the next begins', { skip: cannotTrace }, async (t) => {
  for (const size of [100_000, 40 * mebibyte]) {
    const root = join(scratchDir(t), `data-${size}`)
    const file = join(scratchDir(t), `trace-${size}`)
    await startChild(t, 'push', { root, size }, tracing(file)).ended()
    checkOrder(t, new Trace(file), root, size)
  }
})

/** Asserts the order of one push; `size` is that of the blob which child.ts pushes. */
function checkOrder(t: Test, trace: Trace, root: string, size: number): void {
  const blob = blobPath(root, digestOf(someBytes(size)))
  const upload = join(root, 'uploads', 'one')
  const log = join(root, 'boathouse.db-wal')
  const words = ['ready', 'appended', 'committed', 'finished', 'tagged'] as const
  const [ready = 0, appended = 0, committed = 0, finished = 0, tagged = 0] = words.map((word) =>
    trace.said(word),
  )
  const ok = (isSo: boolean, what: string) => t.ok(isSo, `${size} bytes: ${what}`)

  for (const path of [root, join(root, 'boathouse.db'), dirname(upload), dirname(blob)]) {
    const what = path === root ? 'the data folder' : path.slice(root.length + 1)
    ok(
      trace.isSynced(dirname(path), trace.made(path), ready),
      `${what} has its place before anything is stored`,
    )
  }
  ok(trace.isStored(upload, ready, appended), 'the bytes are synced after the last write')
  ok(trace.isSynced(dirname(upload), trace.made(upload), appended), 'and so is the name of the upload')

  const renamed = trace.renamed(upload)
  ok(renamed.args.includes(`"${blob}"`), 'the upload is renamed to the blob')
  ok(trace.isStored(upload, ready, renamed.begin), 'after its bytes are synced')
  ok(trace.isSynced(dirname(blob), renamed.end, committed), 'and the folder of the blob is synced afterwards')

  ok(trace.isSynced(root, trace.made(log), finished), 'the log of the index has its place')
  ok(trace.isStored(log, committed, finished), 'the row of the blob is written after that, and synced')
  ok(trace.isStored(log, finished, tagged), 'and the manifest after that, and synced')
}

t.test('folders on two filesystems are refused', { skip: cannotMount }, async (t) => {
  const root = join(scratchDir(t), 'data')
  mkdirSync(root)
  symlinkSync(mountSmallDisk(t, 1), join(root, 'uploads'))
  await t.rejects(prepareFsBlobStore(root), { message: /one filesystem/ }, 'with a sentence that says so')
})
