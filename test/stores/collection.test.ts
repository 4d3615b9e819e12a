import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import { type Digest, digestOf } from '../../src/oci/digest.js'
import { parseReference, parseRepositoryName, parseTag } from '../../src/oci/reference.js'
import { GarbageCollector } from '../../src/registry/gc.js'
import { openFsBlobStore, prepareFsBlobStore } from '../../storage/fs-blob-store.js'
import type { NewManifest } from '../../storage/metadata-store.js'
import { openSqliteStores, prepareSqlite } from '../../storage/sqlite-metadata-store.js'
import { scratchDir } from '../harness.js'
import { bodyOf, someBytes } from './bodies.js'
import { noTracing, startChild } from './processes.js'
import { Trace, tracing } from './trace.js'

/*
 * Everything that writes against every step of a collection, in every order: steps are called one by one, so
 * that each schedule is the same each time. In each the blob begins as garbage: its lease ran out and no manifest
 * names it. At the end whoever was told that it is there must find it, and nothing may be left over.
 */

const cannotTrace = noTracing() ?? false
const team = parseRepositoryName('team/app')
const other = parseRepositoryName('other/app')
const old = 1000
const now = 1_000_000
/** Leases that end before this have run out. */
const before = now - 100
const moments = { before, undo: before }
const holder = 'collector:'

type Stores = Awaited<ReturnType<typeof openStores>>

async function openStores(root: string) {
  const onFatal = (error: Error) => t.fail(error)
  const { metadata, collection, tags } = await openSqliteStores({ path: join(root, 'boathouse.db'), onFatal })
  return { root, metadata, collection, tags, blobs: openFsBlobStore(root) }
}

async function newStores(t: Test): Promise<Stores> {
  const root = scratchDir(t)
  await prepareFsBlobStore(root)
  prepareSqlite(join(root, 'boathouse.db'))
  const stores = await openStores(root)
  t.teardown(() => closeStores(stores))
  return stores
}

async function closeStores({ metadata, blobs }: Stores): Promise<void> {
  await metadata.close()
  await blobs.close()
}

let count = 0

/** Bytes that no other schedule has. */
function newContent(): { bytes: Buffer; digest: Digest } {
  count++
  const bytes = Buffer.from(`content ${count}`)
  return { bytes, digest: digestOf(bytes) }
}

/** The three steps of an upload to this content; `turn` says whether it may go on. */
function uploadOf({ metadata, blobs }: Stores, { bytes, digest }: { bytes: Buffer; digest: Digest }) {
  count++
  const id = `upload-${count}`
  const begin = async () => {
    const upload = { id, repository: team, owner: '', algorithm: 'sha256' as const }
    await metadata.startUpload(upload, 1_000_000, now)
    const told = { offset: 0, digest: undefined, limit: 1000, algorithm: 'sha256' as const }
    await blobs.append(id, bodyOf(bytes), told)
  }
  return {
    begin,
    turn: async () => typeof (await metadata.takeTurn(id, 'pusher', digest)) === 'object',
    commit: () => blobs.commit(id, digest, bytes.length),
    finish: (at: number) => metadata.finishUpload(id, 'pusher', { digest, size: bytes.length }, at),
  }
}

async function store(stores: Stores, content: { bytes: Buffer; digest: Digest }, at: number): Promise<void> {
  const upload = uploadOf(stores, content)
  await upload.begin()
  if (!(await upload.turn())) throw new Error('the turn is not free')
  await upload.commit()
  if (!(await upload.finish(at))) throw new Error('the upload did not end')
}

function manifestOf(digest: Digest, size: number, tag: string): NewManifest {
  const bytes = Buffer.from(JSON.stringify({ tag, digest }))
  return {
    repository: team,
    digest: digestOf(bytes),
    mediaType: 'application/vnd.oci.image.manifest.v1+json',
    bytes,
    children: [{ digest, size, role: 'blob', required: true }],
    subject: undefined,
    artifactType: undefined,
    annotations: undefined,
    tags: [parseTag(tag)],
    sparse: false,
    immutable: [],
    condition: undefined,
    now,
  }
}

/** A collection of one blob, step by step: what a step finds is what the next one works on. */
function collectionOf({ collection, blobs }: Stores, digest: Digest) {
  let links: { repositoryId: number; blobId: number }[] = []
  let unlinked: Digest[] = []
  let condemned: Digest[] = []
  return [
    async () => {
      const { items } = await collection.listIdleLinks(undefined, moments, 1_000_000)
      links = items.filter((item) => item.digest === digest)
    },
    async () => void (await collection.removeLinks(links, moments)),
    async () => {
      const { items } = await collection.listUnlinkedBlobs(0, moments, 1_000_000)
      unlinked = items.filter((item) => item.digest === digest).map((item) => item.digest)
    },
    async () => {
      const { items } = await collection.condemnBlobs(unlinked, holder, moments)
      condemned = items.map((item) => item.digest)
    },
    () => blobs.remove(condemned),
    () => collection.forgetBlobs(condemned, holder),
  ]
}

/** All orders of so many steps of one and so many of another: true is a step of the first. */
function* merges(first: number, second: number): Generator<boolean[]> {
  if (first === 0 && second === 0) yield []
  if (first > 0) for (const rest of merges(first - 1, second)) yield [true, ...rest]
  if (second > 0) for (const rest of merges(first, second - 1)) yield [false, ...rest]
}

function nameOf(order: readonly boolean[]): string {
  return order.map((isFirst) => (isFirst ? 'o' : 'c')).join('')
}

function fileOf({ root }: Pick<Stores, 'root'>, digest: Digest): string {
  const hex = digest.slice('sha256:'.length)
  return join(root, 'blobs', 'sha256', hex.slice(0, 2), hex)
}

/** What is wrong with a blob: links without bytes, bytes that do not fit, things without a reason. */
async function faultsOf(stores: Stores, digest: Digest, mustBeThere: boolean): Promise<string[]> {
  const size = await stores.metadata.findBlob(team, digest)
  const facts = await stores.collection.explainDigest(digest, 10)
  const isFile = existsSync(fileOf(stores, digest))
  return [
    ...(mustBeThere && size === undefined ? ['the blob is not there'] : []),
    ...(facts.links.length > 0 && !isFile ? ['a link has no bytes'] : []),
    ...(facts.links.length > 0 && facts.blob?.isCondemned !== false ? ['a link is to a condemned blob'] : []),
    ...(facts.manifests.length > 0 && facts.links.length === 0 ? ['a manifest lacks its blob'] : []),
    ...(facts.blob === undefined && isFile ? ['bytes have no row'] : []),
    ...(facts.blob !== undefined && !facts.blob.isCondemned && !isFile ? ['a live row has no bytes'] : []),
  ]
}

t.test('an upload of the same blob, in every order with a collection (R06)', async (t) => {
  const stores = await newStores(t)
  await stores.collection.startCollection()
  for (const kind of ['linked garbage', 'unlinked garbage'] as const) {
    for (const order of merges(3, 6)) {
      const content = newContent()
      await store(stores, content, old)
      if (kind === 'unlinked garbage') await stores.metadata.unlinkBlob(team, content.digest)
      const upload = uploadOf(stores, content)
      await upload.begin()
      const steps = collectionOf(stores, content.digest)
      let isFinished = false
      const waiting = [
        () => upload.turn(),
        async () => {
          await upload.commit()
          return true
        },
        async () => {
          isFinished = await upload.finish(now)
          return true
        },
      ]
      for (const isOperation of order) {
        if (!isOperation) await steps.shift()?.()
        // Who meets a condemned blob asks again: the steps after it come later, too.
        else if (await waiting[0]?.()) waiting.shift()
      }
      while (waiting.length > 0) {
        if (!(await waiting.shift()?.())) throw new Error(`${nameOf(order)}: condemned after the collection`)
      }
      const faults = await faultsOf(stores, content.digest, true)
      if (!isFinished) faults.push('the upload was refused')
      if (faults.length > 0) t.fail(`${kind} ${nameOf(order)}: ${faults.join(', ')}`)
    }
  }
  await stores.collection.endCollection(undefined)
  t.pass('168 orders')
})

t.test('everything else that writes, before and after every step of a collection (R06, R09)', async (t) => {
  const stores = await newStores(t)
  const { metadata, collection } = stores
  await collection.startCollection()
  type Content = { bytes: Buffer; digest: Digest }
  /** Each resolves to whether it has told somebody that the blob is there. */
  const operations: Record<string, (content: Content, tag: string) => Promise<boolean>> = {
    lease: async ({ digest }) => (await metadata.leaseBlob(team, digest, now, 10)) !== undefined,
    mountBack: async ({ digest }) => (await metadata.mountBlob(team, digest, team, now)) === true,
    mountElsewhere: async ({ digest }) => {
      const isMounted = await metadata.mountBlob(other, digest, team, now)
      const isThere = isMounted && existsSync(fileOf(stores, digest))
      return isMounted && !isThere
    },
    putManifest: async ({ digest, bytes }, tag) =>
      (await metadata.putManifest(manifestOf(digest, bytes.length, tag))).outcome === 'stored',
    unlink: async ({ digest }) => {
      await metadata.unlinkBlob(team, digest)
      return false
    },
    putAndDelete: async ({ digest, bytes }, tag) => {
      const manifest = manifestOf(digest, bytes.length, tag)
      await metadata.putManifest(manifest)
      await metadata.deleteManifest(team, manifest.digest, { immutable: [], now: old })
      return false
    },
    retag: async ({ digest, bytes }, tag) => {
      const isStored =
        (await metadata.putManifest(manifestOf(digest, bytes.length, tag))).outcome === 'stored'
      await metadata.deleteTag(team, parseTag(tag), { immutable: [], now: old })
      return isStored
    },
    restart: async () => {
      await metadata.releaseTurns('')
      return false
    },
  }
  for (const [name, operation] of Object.entries(operations)) {
    for (let at = 0; at <= 6; at++) {
      const content = newContent()
      await store(stores, content, old)
      const steps = collectionOf(stores, content.digest)
      for (const step of steps.slice(0, at)) await step()
      const mustBeThere = await operation(content, `${name}-${at}`)
      for (const step of steps.slice(at)) await step()
      const faults = await faultsOf(stores, content.digest, mustBeThere && name !== 'mountElsewhere')
      if (faults.length > 0) t.fail(`${name} after step ${at}: ${faults.join(', ')}`)
    }
  }
  await collection.endCollection(undefined)
  t.pass(`${Object.keys(operations).length * 7} orders`)
})

t.test('a file without a row: an upload of it, in every order with its removal', async (t) => {
  const stores = await newStores(t)
  const { collection, blobs } = stores
  await collection.startCollection()
  for (const order of merges(3, 4)) {
    const content = newContent()
    const lost = uploadOf(stores, content)
    await lost.begin()
    await lost.commit() // and then it crashed
    const upload = uploadOf(stores, content)
    await upload.begin()
    let strangers: Digest[] = []
    let condemned: Digest[] = []
    const steps = [
      async () => {
        strangers = await collection.listStrangers([content.digest])
      },
      async () => {
        const files = strangers.map((digest) => ({ digest, size: content.bytes.length }))
        condemned = (await collection.condemnFiles(files, holder, now)).map(({ digest }) => digest)
      },
      () => blobs.remove(condemned),
      () => collection.forgetBlobs(condemned, holder),
    ]
    const waiting = [
      () => upload.turn(),
      async () => {
        await upload.commit()
        return true
      },
      () => upload.finish(now),
    ]
    for (const isOperation of order) {
      if (!isOperation) await steps.shift()?.()
      else if (await waiting[0]?.()) waiting.shift()
    }
    while (waiting.length > 0) {
      if (!(await waiting.shift()?.())) throw new Error(`${nameOf(order)}: refused after the removal`)
    }
    const faults = await faultsOf(stores, content.digest, true)
    if (faults.length > 0) t.fail(`${nameOf(order)}: ${faults.join(', ')}`)
  }
  await collection.endCollection(undefined)
})

/** Calls a hook before each call of a method: the n-th call of all is told as n. */
function hooked<T extends object>(target: T, hook: () => Promise<void>): T {
  return new Proxy(target, {
    get(from, name) {
      const value: unknown = Reflect.get(from, name)
      if (typeof value !== 'function') return value
      return async (...args: unknown[]) => {
        await hook()
        return value.apply(from, args)
      }
    },
  })
}

t.test('the collector itself, with an upload between any two of its calls (R06)', async (t) => {
  const stores = await newStores(t)
  const grace = 3_600_000
  for (let from = 0; from < 12; from++) {
    for (let to = from; to < 12; to++) {
      const content = newContent()
      await store(stores, content, old)
      const upload = uploadOf(stores, content)
      await upload.begin()
      let call = 0
      let state: 'waiting' | 'begun' | 'done' = 'waiting'
      const advance = async (isEnd = false) => {
        if (state === 'waiting' && (isEnd || call >= from) && (await upload.turn())) {
          await upload.commit()
          state = 'begun'
        }
        if (state === 'begun' && (isEnd || call >= to)) {
          t.ok(await upload.finish(Date.now()), `from ${from} to ${to}: the upload ends`)
          state = 'done'
        }
        call++
      }
      const collector = new GarbageCollector(
        {
          blobs: hooked(stores.blobs, advance),
          collection: hooked(stores.collection, advance),
          tags: stores.tags,
        },
        { holder, grace, undo: 0 },
      )
      await collector.collect({ strangers: 'no' })
      await advance(true)
      const faults = await faultsOf(stores, content.digest, true)
      if (faults.length > 0) t.fail(`from ${from} to ${to}: ${faults.join(', ')}`)
    }
  }
})

t.test(
  'a collector that dies after any step: the next one finishes, and an upload need not wait',
  async (t) => {
    const stores = await newStores(t)
    const collector = new GarbageCollector(stores, { holder: 'next:', grace: 1, undo: 0 })
    for (let at = 0; at <= 6; at++) {
      for (const isPushed of [false, true]) {
        const content = newContent()
        await store(stores, content, old)
        await stores.collection.startCollection()
        for (const step of collectionOf(stores, content.digest).slice(0, at)) await step()
        await stores.collection.endCollection(undefined) // the system frees its lock, and nothing else
        if (isPushed) {
          const upload = uploadOf(stores, content)
          await upload.begin()
          const isFree = (await upload.turn()) || (await upload.turn())
          t.ok(isFree, `a turn after step ${at}`)
          const midway = await collector.collect({ strangers: 'no' })
          await upload.commit()
          t.ok(midway !== undefined && (await upload.finish(now)), `an upload after step ${at}`)
          t.strictSame(await faultsOf(stores, content.digest, true), [], `it is there after step ${at}`)
        }
        await stores.metadata.unlinkBlob(team, content.digest)
        await collector.collect({ strangers: 'no' })
        const facts = await stores.collection.explainDigest(content.digest, 1)
        t.equal(facts.blob, undefined, `no row is left after step ${at}`)
        t.notOk(existsSync(fileOf(stores, content.digest)), `no bytes are left after step ${at}`)
      }
    }
    t.match(await stores.metadata.totals(), { blobs: 0, blobBytes: 0 }, 'the sums agree')
  },
)

t.test('one collector at a time, in one process or several stores of it', async (t) => {
  const stores = await newStores(t)
  const second = await openStores(stores.root)
  t.teardown(() => closeStores(second))
  t.equal(await stores.collection.startCollection(), true, 'the first')
  t.equal(await stores.collection.startCollection(), false, 'not twice')
  t.equal(await second.collection.startCollection(), false, 'nor another')
  const content = newContent()
  await store(stores, content, old)
  await stores.metadata.unlinkBlob(team, content.digest)
  await stores.collection.condemnBlobs([content.digest], holder, moments)
  const upload = uploadOf(second, content)
  await upload.begin()
  t.equal(await upload.turn(), false, 'an upload to what a living collector has condemned waits')
  t.equal(await upload.turn(), false, 'however often it asks')
  await stores.collection.endCollection({ blobs: 2, bytes: 30, endedAt: now, milliseconds: 5 })
  t.match(await second.metadata.totals(), { collections: 1, collectedBlobs: 2, collectedBytes: 30 }, 'sums')
  t.equal(await second.collection.startCollection(), true, 'then the other')
  await second.collection.endCollection(undefined)
})

t.test('manifests: looked at again when they are removed, and what leads to them goes along', async (t) => {
  const stores = await newStores(t)
  const { metadata, collection } = stores
  const content = newContent()
  await store(stores, content, old)
  const put = async (name: string, more: Partial<NewManifest> = {}) => {
    const manifest = {
      ...manifestOf(content.digest, content.bytes.length, name),
      now: old,
      tags: [],
      ...more,
    }
    await metadata.putManifest(manifest)
    return manifest
  }
  const child = await put('child')
  const entry = { digest: child.digest, size: child.bytes.length, role: 'manifest' as const, required: true }
  const parent = await put('parent', { children: [entry] })
  const referrer = await put('referrer', { subject: child.digest })
  const all = [child, parent, referrer]
  const found = await collection.listIdleManifests(0, before, 100)
  const items = found.items.map(({ id }) => id)
  t.equal(items.length, 3, 'all are idle by themselves')
  const left = async () => {
    const heads = all.map(({ digest }) => metadata.findManifestHead(team, parseReference(digest)))
    return (await Promise.all(heads)).filter((head) => head !== undefined).length
  }
  // A step ends early when it has taken long: then another one goes on.
  const remove = async (moments: { readonly before: number; readonly undo: number }) => {
    const gone: unknown[] = []
    for (let at = 0; at < items.length; ) {
      const step = await collection.removeManifests(items.slice(at), moments)
      gone.push(...step.items)
      at += step.handled
    }
    return gone
  }
  await metadata.leaseManifest(team, parent.digest, now, 10)
  t.strictSame(await remove(moments), [], 'a parent in use keeps all below')
  t.equal(await left(), 3)
  const tagged = { ...parent, tags: [parseTag('v1')], now: old }
  await metadata.putManifest(tagged)
  t.strictSame(await remove({ before: now + 1, undo: now + 1 }), [], 'a tag above keeps all below')
  await metadata.deleteTag(team, parseTag('v1'), { immutable: [], now })
  t.strictSame(await remove({ before: now, undo: now + 1 }), [], 'a deleted tag leaves a while')
  const removed = await remove({ before: now + 1, undo: now + 1 })
  t.equal(removed.length, 3, 'then all go')
  t.equal(await left(), 0)
})

t.test('a read that fails removes nothing (R05)', async (t) => {
  const stores = await newStores(t)
  const content = newContent()
  await store(stores, content, old)
  await stores.metadata.unlinkBlob(team, content.digest)
  const failing = (method: 'listIdleLinks' | 'listUnlinkedBlobs') =>
    new Proxy(stores.collection, {
      get(target, name) {
        if (name === method) return () => Promise.reject(new Error('the disk fails'))
        const value: unknown = Reflect.get(target, name)
        return typeof value === 'function' ? value.bind(target) : value
      },
    })
  for (const method of ['listIdleLinks', 'listUnlinkedBlobs'] as const) {
    const broken = { blobs: stores.blobs, tags: stores.tags, collection: failing(method) }
    const collector = new GarbageCollector(broken, { holder, grace: 1, undo: 0 })
    await t.rejects(collector.collect({ strangers: 'some' }), { message: 'the disk fails' })
    t.ok(existsSync(fileOf(stores, content.digest)), `${method}: the bytes are there`)
  }
  const collector = new GarbageCollector(stores, { holder, grace: 1, undo: 0 })
  t.match(await collector.collect({ strangers: 'some' }), { blobs: 1 }, 'the next one goes on')
})

t.test('blobs that are told are collected at once, others are left', async (t) => {
  const stores = await newStores(t)
  const [free, linked, untold] = [newContent(), newContent(), newContent()] as const
  for (const content of [free, linked, untold]) await store(stores, content, Date.now())
  for (const content of [free, untold]) await stores.metadata.unlinkBlob(team, content.digest)
  const collector = new GarbageCollector(stores, { holder, grace: 3_600_000, undo: 0 })
  const report = await collector.collectBlobs([free.digest, linked.digest])
  t.match(report, { blobs: 1, bytes: free.bytes.length })
  const isThere = [free, linked, untold].map(({ digest }) => existsSync(fileOf(stores, digest)))
  t.strictSame(isThere, [false, true, true])
})

t.test(
  'order: a blob is condemned on the disk before its file goes, and forgotten after (R06)',
  { skip: cannotTrace },
  async (t) => {
    const root = join(scratchDir(t), 'data')
    const file = join(scratchDir(t), 'trace')
    const said = await startChild(t, 'collect', { root, size: 1000 }, tracing(file)).ended()
    t.equal(said.at(-1), 1, 'one blob went')
    const trace = new Trace(file)
    const blob = fileOf({ root }, digestOf(someBytes(1000)))
    const log = join(root, 'boathouse.db-wal')
    const gone = trace.unlinked(blob)
    t.ok(
      trace.isStored(log, trace.said('garbage'), gone.begin),
      'the log is written and synced, then the file goes',
    )
    t.ok(trace.isSynced(dirname(blob), gone.end, trace.said('collected')), 'then its folder is synced')
    t.ok(trace.written(log, gone.end, trace.said('collected')), 'and the row goes')
  },
)
