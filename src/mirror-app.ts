import { createHash, randomUUID } from 'node:crypto'
import { readFile, stat } from 'node:fs/promises'
import type { MirrorConfig } from '../config/mirrors.js'
import type { Config } from '../config/schema.js'
import { dataPaths } from '../storage/data-folder.js'
import type { MirrorStore } from '../storage/mirror-store.js'
import { readCredentials } from './mirror/credentials.js'
import { Eviction } from './mirror/eviction.js'
import { boundOf } from './mirror/fill-bound.js'
import { HttpUpstream } from './mirror/http-upstream.js'
import { MirrorBlobs } from './mirror/mirror-blobs.js'
import { MirrorManifests } from './mirror/mirror-manifests.js'
import { Mirror, Mirrors } from './mirror/mirrors.js'
import { MirrorNames } from './mirror/names.js'
import { Sharing } from './mirror/sharing.js'
import { anonymousRuleOf } from './mirror-privacy.js'
import { parseRepositoryPattern } from './oci/repository-pattern.js'
import type { BlobService } from './registry/blobs.js'
import type { ManifestOptions, ManifestService } from './registry/manifests.js'
import { createCollector, type Stores } from './stores.js'
import { version } from './version.js'

/** Milliseconds between two notes of what the mirrors did. */
const noteInterval = 5000

/** Milliseconds between two looks at what mirrors hold and the disk has. */
const sweepInterval = 30_000

/** Connections to one upstream at once. */
const mostConnections = 32

/** What mirrors are put in front of. */
export interface MirrorAppOptions {
  readonly stores: Stores
  readonly blobs: BlobService
  readonly manifests: ManifestService
  readonly manifestOptions: ManifestOptions
  /** Name of this process: it begins the turns and leases that the process takes. */
  readonly processName: string
  readonly onError: (error: unknown, what: string) => void
}

/** Composes the mirrors of a configuration that has some. @throws Error for settings that do not go together */
export async function createMirrors(config: Config, options: MirrorAppOptions) {
  const { stores, manifestOptions } = options
  const viaName = await viaNameOf(config, stores.mirrors)
  const mirrors = new Mirrors(
    await Promise.all(config.mirrors.map((mirror) => createMirror(config, mirror, viaName))),
  )
  const newHolder = () => `${options.processName}:${randomUUID()}`
  const store = stores.mirrors
  const flush = async () => {
    try {
      for (const mirror of mirrors.all) await mirror.flush(store, Date.now())
    } catch (error) {
      options.onError(error, 'what the mirrors did could not be noted')
    }
  }
  const eviction = new Eviction({
    blobs: stores.blobs,
    store,
    collector: createCollector(config, stores, options.processName),
    newHolder,
    floor: config.disk.floor,
    budgets: budgetsOf(config),
    check: () => stores.metadata.check(),
    flush,
  })
  const sweeping = inBackground(options, 'mirrors could not give back space')
  const blobs = new MirrorBlobs({
    local: options.blobs,
    mirrors,
    context: {
      blobs: stores.blobs,
      metadata: stores.metadata,
      mirrors: store,
      newHolder,
      maxBlobSize: config.uploads.maxBlobSize,
      boundOf: (task) => boundOf(task, { store, parse: manifestOptions.parse }),
      admitAtOnce: (...what) => eviction.admitAtOnce(...what),
      admit: (...what) => eviction.admit(...what),
      checkFloor: () => eviction.checkFloor(),
    },
    onFilled: (mirror, digest, size) =>
      sweeping.run(async () => {
        await eviction.settle(mirror.name, digest, size)
        await eviction.sweep()
      }),
  })
  const manifests = new MirrorManifests({
    local: options.manifests,
    blobs,
    metadata: stores.metadata,
    store,
    mirrors,
    sharing: new Sharing(store, newHolder, () => stores.metadata.check()),
    parse: manifestOptions.parse,
    pulls: manifestOptions.pulls,
    immutableTags: manifestOptions.immutableTags,
  })
  const timer = setInterval(() => void flush(), noteInterval)
  const sweep = async () => {
    await store.releaseDeadSync() // what it announced would keep others from the room
    await eviction.sweep()
  }
  const sweeper = setInterval(() => sweeping.run(sweep), sweepInterval)
  sweeping.run(() => eviction.sweep())
  return {
    mirrors,
    names: new MirrorNames(mirrors, store),
    anonymousRule: anonymousRuleOf(config.mirrors),
    blobs,
    manifests,
    /** Frees so many bytes, or as many as mirrors can give back. */
    makeRoom: (bytes: number) => eviction.makeRoom(bytes),
    async close() {
      clearInterval(timer)
      clearInterval(sweeper)
      await blobs.close()
      await sweeping.ended()
      await flush()
      await Promise.all(mirrors.all.map((mirror) => mirror.upstream.close()))
    },
  }
}

/** Bytes that mirrors may hold, where they are bounded. */
function budgetsOf(config: Config): ReadonlyMap<string, number> {
  return new Map(
    config.mirrors.flatMap(({ name, budget }) => (budget === undefined ? [] : [[name, budget] as const])),
  )
}

/** Work that nobody waits for, but for the end of the process. */
function inBackground({ onError }: MirrorAppOptions, what: string) {
  const running = new Set<Promise<void>>()
  return {
    run(work: () => Promise<void>): void {
      const task = work()
        .catch((error: unknown) => onError(error, what))
        .finally(() => running.delete(task))
      running.add(task)
    },
    async ended(): Promise<void> {
      await Promise.all(running)
    },
  }
}

/**
 * What this installation calls itself in `Via`: the same in all its processes, and another one in a copy of its data
 * folder. It tells nothing about either.
 */
export async function viaNameOf(config: Config, store: Pick<MirrorStore, 'findName'>): Promise<string> {
  const { ino } = await stat(dataPaths(config.data).database)
  const hash = createHash('sha256').update(`${await store.findName()}:${ino}`)
  return `boathouse-${hash.digest('hex').slice(0, 32)}`
}

/** One mirror with its upstream, which the caller closes. @throws Error for settings that do not go together */
export async function createMirror(config: Config, mirror: MirrorConfig, viaName: string): Promise<Mirror> {
  const credentials = readCredentials(mirror)
  const { http, https, exceptions } = config.proxy
  const idle = mirror.idleTimeout
  const upstream = new HttpUpstream({
    name: mirror.name,
    urls: mirror.urls.map((url) => new URL(url)),
    credentials,
    realms: mirror.realms,
    redirectHosts: mirror.redirects,
    addresses: mirror.addresses,
    ca: mirror.ca === undefined ? undefined : await readFile(mirror.ca, 'utf8'),
    proxy: { httpProxy: http, httpsProxy: https, noProxy: exceptions.join(',') },
    timeouts: { connect: mirror.connectTimeout, headers: idle, idle, answer: 2 * idle },
    maxConnections: mostConnections,
    userAgent: `boathouse/${version}`,
    viaName,
  })
  return new Mirror({
    name: mirror.name,
    namespaces: mirror.namespaces,
    upstream,
    hasLibrary:
      mirror.name === 'docker.io' || mirror.urls.some((url) => url.includes('//registry-1.docker.io')),
    takesBareNames: mirror.bareNames,
    allow: mirror.allow.map(parseRepositoryPattern),
    deny: mirror.deny.map(parseRepositoryPattern),
    freshness: mirror.freshness,
    onUpstreamDeleted: mirror.onUpstreamDeleted,
    isOpen: credentials === undefined || mirror.public,
    viaName,
  })
}
