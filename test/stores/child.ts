import { createHash } from 'node:crypto'
import { readFileSync, writeSync } from 'node:fs'
import { Readable, Writable } from 'node:stream'
import Database from 'better-sqlite3'
import { type Digest, digestOf } from '../../src/oci/digest.js'
import { parseRepositoryName, parseTag } from '../../src/oci/reference.js'
import { GarbageCollector } from '../../src/registry/gc.js'
import { dataPaths, takeDataFolder } from '../../storage/data-folder.js'
import { openFsBlobStore } from '../../storage/fs-blob-store.js'
import type { NewManifest } from '../../storage/metadata-store.js'
import { openSqliteStores } from '../../storage/sqlite-metadata-store.js'
import { bodyOf, cut, someBytes } from './bodies.js'
import { refusalOf } from './refusals.js'

/*
 * What the tests of the drivers let another process do: `child.js <command> <JSON>`. What it has to say goes to
 * standard output, a line of JSON each; it waits for the end of standard input where it is told to wait.
 */

const repository = parseRepositoryName('team/app')

function say(value: unknown): void {
  writeSync(1, `${JSON.stringify(value)}\n`)
}

function inputEnds(): Promise<void> {
  return new Promise((resolve) => {
    process.stdin.on('end', resolve).resume()
  })
}

async function openMetadata(path: string) {
  const stores = await openSqliteStores({ path, onFatal: (error) => say({ fatal: error.message }) })
  return stores.metadata
}

/** The most memory that this process has had, in KiB. (Its resource usage begins with its parent's.) */
function peakMemory(): number {
  const peak = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'))
  return Number(peak?.[1])
}

function emptyManifest(digest: Digest): NewManifest {
  return {
    repository,
    digest,
    mediaType: 'application/vnd.oci.image.manifest.v1+json',
    bytes: Buffer.from('{}'),
    children: [],
    subject: undefined,
    artifactType: undefined,
    annotations: undefined,
    tags: [parseTag('x')],
    sparse: false,
    immutable: [],
    condition: undefined,
    now: 1,
  }
}

/** One push of a blob and its manifest on a new data folder, with a word after each step. */
async function push({ root, size }: { root: string; size: number }): Promise<void> {
  const folder = await takeDataFolder(root)
  const metadata = await openMetadata(dataPaths(root).database)
  const blobs = openFsBlobStore(root)
  const bytes = someBytes(size)
  const digest = digestOf(bytes)
  const told = { offset: 0, digest: undefined, limit: size, algorithm: 'sha256' as const }
  say('ready')
  await metadata.startUpload({ id: 'one', repository, owner: '', algorithm: 'sha256' }, 10, 1)
  await metadata.takeTurn('one', 'child', digest)
  await blobs.append('one', bodyOf(...cut(bytes, 65_536)), told)
  say('appended')
  await blobs.commit('one', digest, size)
  say('committed')
  await metadata.finishUpload('one', 'child', { digest, size }, 1)
  say('finished')
  await metadata.putManifest({
    ...emptyManifest(digestOf(Buffer.from('{}'))),
    children: [{ digest, size, role: 'blob', required: true }],
  })
  say('tagged')
  await blobs.close()
  await metadata.close()
  folder.release()
}

/** Collects one blob that nothing links any more, with a word before and after. */
async function collect({ root, size }: { root: string; size: number }): Promise<void> {
  const folder = await takeDataFolder(root)
  const { metadata, collection, tags } = await openSqliteStores({
    path: dataPaths(root).database,
    onFatal: (error) => say({ fatal: error.message }),
  })
  const blobs = openFsBlobStore(root)
  const bytes = someBytes(size)
  const digest = digestOf(bytes)
  const told = { offset: 0, digest: undefined, limit: size, algorithm: 'sha256' as const }
  await metadata.startUpload({ id: 'one', repository, owner: '', algorithm: 'sha256' }, 10, 1)
  await metadata.takeTurn('one', 'child', digest)
  await blobs.append('one', bodyOf(bytes), told)
  await blobs.commit('one', digest, size)
  await metadata.finishUpload('one', 'child', { digest, size }, 1)
  await metadata.unlinkBlob(repository, digest)
  say('garbage')
  const collector = new GarbageCollector({ blobs, collection, tags }, { holder: 'child:', grace: 1, undo: 1 })
  const report = await collector.collect({ strangers: 'no' })
  say('collected')
  say(report?.blobs)
  await blobs.close()
  await metadata.close()
  folder.release()
}

/** Stores and reads one blob that is far larger than the memory that this may take. */
async function stream({ root, size }: { root: string; size: number }): Promise<void> {
  const blobs = openFsBlobStore(root)
  const sent = createHash('sha256')
  let given = 0
  const body = new Readable({
    read() {
      const piece = Buffer.alloc(Math.min(65_536, size - given), given % 251)
      given += piece.length
      sent.update(piece)
      this.push(piece.length === 0 ? null : piece)
    },
  })
  const before = peakMemory()
  const told = { offset: 0, digest: undefined, limit: size, algorithm: 'sha256' as const }
  await blobs.append('one', body, told)
  const digest = `sha256:${sent.digest('hex')}` as Digest
  const again = await blobs.digestUpload('one', 'sha256', size)
  await blobs.commit('one', digest, size)
  const reader = await blobs.open(digest)
  const received = createHash('sha256')
  const sink = new Writable({
    write(piece: Buffer, _encoding, done) {
      received.update(piece)
      setImmediate(done)
    },
  })
  await reader?.copyTo(sink, 0, size - 1)
  await reader?.close()
  await blobs.close()
  const grownKibibytes = peakMemory() - before
  say({ grownKibibytes, isSame: again === digest && received.digest('hex') === digest.slice(7) })
}

/** Tries to append twice and to commit; says how each went and what is left. */
async function append({ root, size }: { root: string; size: number }): Promise<void> {
  // Node ignores this signal; what the test runner puts into its children would end the process by it.
  process.on('SIGXFSZ', () => undefined)
  const blobs = openFsBlobStore(root)
  const bytes = someBytes(size)
  const told = { offset: 0, digest: undefined, limit: size, algorithm: 'sha256' as const }
  say(await refusalOf(blobs.append('one', bodyOf(...cut(bytes, 65_536)), told)))
  say(await blobs.listUploads())
  say(await refusalOf(blobs.append('two', bodyOf(...cut(bytes, 65_536)), told)))
  say(await refusalOf(blobs.commit('two', digestOf(bytes), size)))
  await blobs.close()
}

/** Holds the database's write lock until its input ends. */
async function lock({ path }: { path: string }): Promise<void> {
  const db = new Database(path)
  db.exec('BEGIN IMMEDIATE')
  say('locked')
  await inputEnds()
  db.close()
}

/** Opens sessions and tries to take turns beside another process that does the same. */
async function compete({ path, name, ids }: { path: string; name: string; ids: string[] }): Promise<void> {
  const metadata = await openMetadata(path)
  say('ready')
  await inputEnds()
  const own = ids.map((id) => `${name}-${id}`)
  await Promise.all(
    own.map((id) => metadata.startUpload({ id, repository, owner: name, algorithm: 'sha256' }, 10_000, 1)),
  )
  const taken = await Promise.all(ids.map((id) => metadata.takeTurn(id, name)))
  say({ won: ids.filter((_id, at) => typeof taken[at] === 'object') })
  await metadata.close()
}

/** Writes twice, then reads; says how each went. */
async function write({ path }: { path: string }): Promise<void> {
  const metadata = await openMetadata(path)
  const digest = digestOf(Buffer.from('{}'))
  say(await refusalOf(metadata.putManifest(emptyManifest(digest))))
  say(await refusalOf(metadata.putManifest(emptyManifest(digest))))
  say(await refusalOf(metadata.hasRepository(repository)))
  process.exit(0) // as a server does when it is told that the store is lost
}

/** Calls each method whose result is durable, between two words. */
async function durable({ path }: { path: string }): Promise<void> {
  const metadata = await openMetadata(path)
  const other = parseRepositoryName('other/app')
  const digest = digestOf(Buffer.from('{}'))
  const upload = { id: 'one', repository, owner: '', algorithm: 'sha256' as const }
  const steps: Record<string, () => Promise<unknown>> = {
    check: () => metadata.check(),
    startUpload: () => metadata.startUpload(upload, 10, 1),
    takeTurn: () => metadata.takeTurn('one', 'me'),
    saveProgress: () => metadata.saveProgress('one', 'me', { offset: 1, digest: undefined }, 1),
    takeTurnAgain: () => metadata.takeTurn('one', 'me', digest),
    finishUpload: () => metadata.finishUpload('one', 'me', { digest, size: 2 }, 1),
    mountBlob: () => metadata.mountBlob(other, digest, repository, 1),
    unlinkBlob: () => metadata.unlinkBlob(other, digest),
    putManifest: () => metadata.putManifest(emptyManifest(digest)),
    deleteTag: () => metadata.deleteTag(repository, parseTag('x'), { immutable: [], now: 1 }),
    deleteManifest: () => metadata.deleteManifest(repository, digest, { immutable: [], now: 1 }),
    startAnother: () => metadata.startUpload(upload, 10, 1),
    expireUploads: () => metadata.expireUploads(2, 10),
  }
  for (const [word, step] of Object.entries(steps)) {
    say(`before ${word}`)
    await step()
    say(`after ${word}`)
  }
  await metadata.close()
}

const commands = new Map<string, (told: never) => Promise<void>>(
  Object.entries({ push, collect, stream, append, lock, compete, write, durable }),
)

const [, , command = '', told = '{}'] = process.argv
const run = commands.get(command)
if (run === undefined) throw new Error(`there is no command ${command}`)
await run(JSON.parse(told) as never)
