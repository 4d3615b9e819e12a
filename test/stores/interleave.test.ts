import { join } from 'node:path'
import t, { type Test } from 'tap'
import { type Digest, digestOf } from '../../src/oci/digest.js'
import { RegistryError } from '../../src/oci/errors.js'
import { parseManifest } from '../../src/oci/manifest.js'
import { packManifest } from '../../src/oci/packed-manifest.js'
import {
  parseReference,
  parseRepositoryName,
  parseTag,
  type RepositoryName,
} from '../../src/oci/reference.js'
import { BlobService } from '../../src/registry/blobs.js'
import { GarbageCollector } from '../../src/registry/gc.js'
import { sameEverywhere } from '../../src/registry/gc-moments.js'
import { ManifestService } from '../../src/registry/manifests.js'
import { UploadService } from '../../src/registry/uploads.js'
import type { BlobStore } from '../../storage/blob-store.js'
import { openFsBlobStore, prepareFsBlobStore } from '../../storage/fs-blob-store.js'
import type { MetadataStore } from '../../storage/metadata-store.js'
import { openSqliteStores, prepareSqlite } from '../../storage/sqlite-metadata-store.js'
import { scratchDir } from '../harness.js'
import { checkFolder } from '../torture/checker.js'
import { bodyOf, readBlob } from './bodies.js'
import { allSchedules, type Program } from './schedules.js'

/*
 * What clients ask for, against a collection, in every order of their calls to the stores (reliability R06, R07, G21).
 * Whatever the collection would take has run out of its grace when the client comes. Then the client either is told
 * that it is not there, and pushes it; or it finds all of it, for as long as the grace lasts.
 */

const grace = 600_000
const old = Date.now() - 10 * grace
const mediaType = 'application/vnd.oci.image.manifest.v1+json'
const indexType = 'application/vnd.oci.image.index.v1+json'

/**
 * Schedules that share their stores. A collection walks over all repositories, 100 at a time: each of its walks must
 * be one call, in the last schedule as in the first.
 */
const schedulesPerStore = 40

async function openStores(t: Test, root: string) {
  const path = join(root, 'boathouse.db')
  await prepareFsBlobStore(root)
  prepareSqlite(path)
  const { metadata, collection, tags } = await openSqliteStores({ path, onFatal: (error) => t.fail(error) })
  const blobs = openFsBlobStore(root)
  const close = async () => {
    await metadata.close()
    await blobs.close()
  }
  return { root, metadata, collection, tags, blobs, close }
}

type Stores = Awaited<ReturnType<typeof openStores>>

/** What handlers call. */
function servicesOn(stores: { readonly metadata: MetadataStore; readonly blobs: BlobStore }) {
  // The real one looks at the disk when its last look is old: that would make the calls depend on the time.
  const room = { pass: () => undefined, reached: () => undefined, close: () => undefined }
  const disk = { admit: async () => undefined, openRoom: () => room }
  return {
    blobs: new BlobService(stores, { grace, disk }),
    uploads: new UploadService(stores, {
      holder: 'client:',
      maxPerRepository: 100_000,
      maxPerUser: 100_000,
      maxBlobSize: 1_000_000,
      grace,
      disk,
    }),
    manifests: new ManifestService(stores.metadata, {
      isSparse: () => false,
      immutableTags: () => [],
      untagged: () => grace,
      disk,
      pulls: { note: () => undefined },
      parse: async (bytes, contentType) => packManifest(parseManifest(bytes, contentType)),
    }),
  }
}

type Services = ReturnType<typeof servicesOn>

interface Content {
  readonly bytes: Buffer
  readonly digest: Digest
}

function contentOf(text: string): Content {
  const bytes = Buffer.from(text)
  return { bytes, digest: digestOf(bytes) }
}

const describe = (type: string, { digest, bytes }: Content) => ({
  mediaType: type,
  digest,
  size: bytes.length,
})

function imageOver(layer: Content, salt: string, subject?: Content): Content {
  const config = describe('application/vnd.oci.image.config.v1+json', layer)
  const layers = [describe('application/vnd.oci.image.layer.v1.tar', layer)]
  const more = subject === undefined ? {} : { subject: describe(mediaType, subject) }
  return contentOf(
    JSON.stringify({ schemaVersion: 2, mediaType, config, layers, annotations: { salt }, ...more }),
  )
}

/** What one schedule works on: nobody else has it. */
class World {
  static #count = 0
  readonly stores: Stores
  readonly repository: RepositoryName
  readonly elsewhere: RepositoryName
  readonly layer: Content
  readonly image: Content
  readonly other: Content
  readonly index: Content
  readonly referrer: Content
  /** Sees everything at once: not a part of the schedule. */
  readonly calm: Services

  constructor(stores: Stores) {
    const number = World.#count++
    this.stores = stores
    this.calm = servicesOn(stores)
    this.repository = parseRepositoryName(`world-${number}/app`)
    this.elsewhere = parseRepositoryName(`world-${number}/source`)
    this.layer = contentOf(`layer ${number}`)
    this.image = imageOver(this.layer, 'image')
    this.other = imageOver(this.layer, 'other')
    this.referrer = imageOver(this.layer, 'referrer', this.image)
    const manifests = [describe(mediaType, this.image)]
    this.index = contentOf(JSON.stringify({ schemaVersion: 2, mediaType: indexType, manifests }))
  }

  /** What the layer, the image and its tag look like long after their last use. */
  async age(what: 'layer' | 'image' | 'tag', repository = this.repository): Promise<void> {
    const { metadata, blobs } = this.stores
    const { layer, image } = this
    const id = `old-${repository.replace('/', '-')}`
    await metadata.startUpload({ id, repository, owner: '', algorithm: 'sha256' }, 100_000, old)
    await blobs.append(id, bodyOf(layer.bytes), {
      offset: 0,
      digest: undefined,
      limit: 1000,
      algorithm: 'sha256',
    })
    await metadata.takeTurn(id, 'old', layer.digest)
    await blobs.commit(id, layer.digest, layer.bytes.length)
    await metadata.finishUpload(id, 'old', { digest: layer.digest, size: layer.bytes.length }, old)
    if (what === 'layer') return
    await metadata.putManifest({
      ...packManifest(parseManifest(image.bytes, mediaType)),
      ...{ repository, digest: image.digest, bytes: image.bytes, sparse: false, immutable: [], now: old },
      ...{ tags: what === 'tag' ? [parseTag('v1')] : [], condition: undefined },
    })
  }

  upload({ uploads }: Services = this.calm): Promise<void> {
    const { bytes, digest } = this.layer
    const chunk = { open: () => bodyOf(bytes), range: undefined, length: bytes.length }
    return uploads.putBlob(this.repository, { owner: '', source: '' }, digest, chunk)
  }

  async put(
    what: Content,
    reference: string,
    { manifests }: Services = this.calm,
    tags: readonly string[] = [],
  ): Promise<void> {
    const contentType = what === this.index ? indexType : mediaType
    const push = {
      repository: this.repository,
      bytes: what.bytes,
      contentType,
      condition: undefined,
      tags,
      user: { name: '' },
    }
    await manifests.putManifest({ ...push, reference: parseReference(reference) })
  }

  /** Pushes all of the image, as a client that was told that nothing is there. */
  async pushAll(): Promise<void> {
    await this.upload()
    await this.put(this.image, 'v9')
  }

  /** What is wrong with what a tag leads to. */
  async faultsOf(reference: string): Promise<string[]> {
    const { manifests, blobs } = this.calm
    try {
      const found = await manifests.getManifest(this.repository, parseReference(reference))
      const { children } = parseManifest(found.bytes, found.mediaType)
      const below: string[] = []
      for (const { role, digest } of children) {
        if (role === 'manifest') below.push(...(await this.faultsOf(digest)))
        else {
          const reader = await blobs.openBlob(this.repository, digest)
          if (!(await readBlob(reader)).equals(this.layer.bytes)) below.push(`${digest} has other bytes`)
          await reader.close()
        }
      }
      return below
    } catch (error) {
      return [`${reference} cannot be pulled: ${error instanceof Error ? error.message : error}`]
    }
  }
}

/** Whether it was there; only that something is unknown says that it was not. */
async function isThere(asking: Promise<unknown>): Promise<boolean> {
  try {
    await asking
    return true
  } catch (error) {
    if (error instanceof RegistryError && /UNKNOWN$/.test(error.kind)) return false
    throw error
  }
}

/**
 * What a client does, on calls that are let through one by one.
 * @returns what it does when the collection is over, trusting in what it was told; then v9 must lead to all of it
 */
type Operation = (world: World, client: Services) => Promise<() => Promise<void>>

const before: Record<string, Parameters<World['age']>[0] | 'elsewhere'> = {}
const operations: Record<string, Operation> = {}

function operation(name: string, aged: (typeof before)[string], run: Operation): void {
  before[name] = aged
  operations[name] = run
}

operation('HEAD of a blob', 'layer', async (world, { blobs }) => {
  const isKnown = await isThere(blobs.statBlob(world.repository, world.layer.digest))
  return async () => {
    if (!isKnown) await world.upload()
    await world.put(world.image, 'v9')
  }
})

operation('mount', 'elsewhere', async (world, { blobs }) => {
  const source = { from: [world.elsewhere], mayPull: () => true }
  const isMounted = await blobs.mountBlob(world.repository, world.layer.digest, source)
  return async () => {
    if (!isMounted) await world.upload()
    await world.put(world.image, 'v9')
  }
})

operation('HEAD of a manifest', 'image', async (world, { manifests }) => {
  const reference = parseReference(world.image.digest)
  const isKnown = await isThere(manifests.headManifest(world.repository, reference))
  return async () => {
    if (!isKnown) return world.pushAll()
    await world.put(world.image, 'v9')
  }
})

operation('push of a manifest', 'layer', async (world, client) => {
  const isStored = await isThere(world.put(world.image, 'v9', client))
  return async () => {
    if (!isStored) await world.pushAll()
  }
})

operation('push of an index', 'image', async (world, client) => {
  const isStored = await isThere(world.put(world.index, 'v9', client))
  return async () => {
    if (isStored) return
    await world.pushAll()
    await world.put(world.index, 'v9')
  }
})

operation('tag of an image', 'image', async (world, client) => {
  const isStored = await isThere(world.put(world.image, 'v9', client))
  return async () => {
    if (!isStored) await world.pushAll()
  }
})

operation('several tags at once', 'image', async (world, client) => {
  const isStored = await isThere(world.put(world.image, world.image.digest, client, ['v8', 'v9']))
  return async () => {
    if (!isStored) await world.pushAll()
  }
})

operation('retag', 'tag', async (world, client) => {
  await world.put(world.other, 'v1', client)
  return () => world.put(world.image, 'v9') // by the grace of what the tag led to until now
})

operation('deletion of a tag', 'tag', async (world, { manifests }) => {
  await manifests.deleteTag(world.repository, parseTag('v1'), { name: '' })
  return () => world.put(world.image, 'v9')
})

operation('deletion of a manifest', 'tag', async (world, { manifests }) => {
  await manifests.deleteManifest(world.repository, world.image.digest, { name: '' })
  return async () => {
    const reference = parseReference(world.image.digest)
    if (await isThere(world.calm.manifests.headManifest(world.repository, reference))) {
      throw new Error('a deleted manifest is there')
    }
    await world.pushAll()
  }
})

operation('deletion of a blob', 'layer', async (world, { blobs }) => {
  await isThere(blobs.deleteBlob(world.repository, world.layer.digest))
  return () => world.pushAll()
})

operation('upload of the same blob', 'layer', async (world, client) => {
  await world.upload(client)
  return () => world.put(world.image, 'v9')
})

operation('end of an upload to the same blob', 'layer', async (world, { uploads }) => {
  const { repository, layer } = world
  const id = await world.calm.uploads.startUpload(repository, { owner: '', source: '' }, 'sha256')
  const key = { repository, id, owner: '' }
  await world.calm.uploads.appendChunk(key, {
    open: () => bodyOf(layer.bytes),
    range: undefined,
    length: undefined,
  })
  await uploads.finishUpload(key, layer.digest, { open: undefined, range: undefined, length: undefined })
  return () => world.put(world.image, 'v9')
})

operation('pull', 'image', async (world, { manifests, blobs }) => {
  const { repository, image, layer } = world
  if (!(await isThere(manifests.getManifest(repository, parseReference(image.digest))))) {
    return () => world.pushAll()
  }
  const reader = await blobs.openBlob(repository, layer.digest)
  const bytes = await readBlob(reader)
  await reader.close()
  if (!bytes.equals(layer.bytes)) throw new Error('other bytes were pulled')
  return () => world.put(image, 'v9')
})

operation('push of a referrer', 'image', async (world, client) => {
  const isStored = await isThere(world.put(world.referrer, world.referrer.digest, client))
  return async () => {
    if (!isStored) {
      await world.upload()
      await world.put(world.referrer, world.referrer.digest)
    }
    const { repository, image, referrer } = world
    const listed = await world.calm.manifests.listReferrers(repository, image.digest, [], 0, {
      count: 10,
      bytes: 1e6,
    })
    if (listed.referrers[0]?.digest !== referrer.digest) throw new Error('the referrer is not listed')
    const faults = await world.faultsOf(referrer.digest)
    if (faults.length > 0) throw new Error(faults.join(', '))
    await world.pushAll()
  }
})

/** Calls of a client that no collection can come between, for all that others see of them. */
const freeCalls = ['startUpload', 'findUpload', 'removeUpload', 'releaseTurn', 'hasRepository'] as const

async function runAll(t: Test, name: string, run: Operation): Promise<void> {
  let count = 0
  const scratch = scratchDir(t)
  let stores = await openStores(t, join(scratch, 'first'))
  let world = new World(stores)
  let follow: () => Promise<void> = async () => undefined
  const end = async () => {
    try {
      await collect(stores)
    } finally {
      await stores.close() // its threads would keep the process alive
    }
    t.strictSame(checkFolder(stores.root).violations, [], 'everything fits together')
  }
  const renew = async () => {
    await end()
    stores = await openStores(t, join(scratch, `after-${count}`))
  }
  const begin = async (): Promise<readonly [Program, Program]> => {
    if (count > 0 && count % schedulesPerStore === 0) await renew()
    world = new World(stores)
    const aged = before[name] ?? 'layer'
    await (aged === 'elsewhere' ? world.age('layer', world.elsewhere) : world.age(aged))
    return [
      async (gated) => {
        const metadata = gated(stores.metadata, ...freeCalls)
        const blobs = gated(stores.blobs, 'append', 'digestUpload', 'discard')
        follow = await run(world, servicesOn({ metadata, blobs }))
      },
      (gated) =>
        collect({
          blobs: gated(stores.blobs),
          collection: gated(stores.collection, 'startCollection', 'endCollection'),
          tags: stores.tags,
        }),
    ]
  }
  for await (const order of allSchedules(begin)) {
    count++
    try {
      await follow()
      const faults = await world.faultsOf('v9')
      if (faults.length > 0) t.fail(`${order}: ${faults.join(', ')}`)
    } catch (error) {
      t.fail(`${order}: ${error instanceof Error ? error.message : error}`)
    }
  }
  await end()
  t.ok(count > 5, `${count} orders`)
}

async function collect({
  blobs,
  collection,
  tags,
}: Pick<Stores, 'blobs' | 'collection' | 'tags'>): Promise<void> {
  const collector = new GarbageCollector(
    { blobs, collection, tags },
    { holder: 'collector:', grace, undo: grace, untagged: sameEverywhere(grace) },
  )
  await collector.collect({ strangers: 'no' })
}

for (const [name, run] of Object.entries(operations)) {
  t.test(`${name}, in every order with a collection (R06, R07, G21)`, (t) => runAll(t, name, run))
}
