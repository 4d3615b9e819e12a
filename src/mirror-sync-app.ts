import type { MirrorConfig, MirrorSync as MirrorSettings } from '../config/mirrors.js'
import type { Config } from '../config/schema.js'
import { syncProcess } from '../storage/mirror-store.js'
import { MirrorSync, type SyncedImage, type SyncProgress, type SyncReport } from './mirror/sync.js'
import { lookingSource } from './mirror/sync-source.js'
import { createMirror, createMirrors, viaNameOf } from './mirror-app.js'
import { parseTagPattern, tagPatternsFor } from './oci/tag-pattern.js'
import { BlobService } from './registry/blobs.js'
import { ManifestParser } from './registry/manifest-parser.js'
import { type ManifestOptions, ManifestService } from './registry/manifests.js'
import { createDiskGuard, type Stores } from './stores.js'

export type { SyncedImage, SyncProgress, SyncReport }

/** Failures that are kept for whoever asks how the last sync went. */
const mostKept = 20

/** How a sync is to run. */
export interface SyncRun {
  /** Names of mirrors that have something to sync. */
  readonly mirrors: readonly string[]
  readonly signal: AbortSignal
  readonly onProgress: (progress: SyncProgress) => void
  /** Hears of what fails beside the sync itself. */
  readonly onError: (error: unknown, what: string) => void
}

/** What is kept of a mirror's last sync. Times are milliseconds since 1970. */
export interface LastSync {
  readonly startedAt: number
  readonly endedAt: number
  readonly images: number
  readonly complete: number
  readonly failed: number
  /** The first of them. */
  readonly failures: readonly { readonly image: string; readonly reason: string | undefined }[]
  readonly fetchedBytes: number
  readonly interrupted: boolean
}

/** The mirrors of a configuration that fetch something ahead. */
export function syncingMirrors(config: Config): readonly string[] {
  return config.mirrors.flatMap(({ name, sync }) => (sync === undefined ? [] : [name]))
}

/**
 * Fetches ahead what mirrors are configured to, one mirror after the other, beside a server or without one.
 * @returns undefined when another sync is at work
 * @throws RegistryError UNAVAILABLE or STORAGE_FULL when the index fails
 */
export async function syncMirrors(
  config: Config,
  stores: Stores,
  run: SyncRun,
): Promise<readonly SyncReport[] | undefined> {
  if (!(await stores.mirrors.startSync())) return undefined
  try {
    return await syncAlone(config, stores, run)
  } finally {
    await stores.mirrors.endSync()
  }
}

async function syncAlone(config: Config, stores: Stores, run: SyncRun): Promise<readonly SyncReport[]> {
  const { signal } = run
  const parser = new ManifestParser()
  const { parse } = parser
  const app = await createSyncingMirrors(config, stores, parse, run)
  let closing: Promise<void> | undefined
  const close = () => {
    closing ??= app.close()
    return closing
  }
  const onAbort = () => void close().catch(() => undefined) // the end below hears of it
  signal.addEventListener('abort', onAbort)
  const reports: SyncReport[] = []
  try {
    for (const { name, budget, sync } of chosen(config, run.mirrors)) {
      const mirror = app.mirrors.all.find((one) => one.name === name)
      if (mirror === undefined || signal.aborted) break
      const startedAt = Date.now()
      const source = {
        load: (...what: Parameters<typeof app.manifests.prefetchManifest>) =>
          app.manifests.prefetchManifest(...what),
      }
      const { blobs } = app
      const { metadata, mirrors: store } = stores
      const options = { ...run, mirror, budget, images: sync.images, source, blobs, metadata, store, parse }
      const report = await new MirrorSync(options).run()
      await store.noteSync(name, JSON.stringify(lastSyncOf(report, startedAt)))
      reports.push(report)
    }
    return reports
  } finally {
    signal.removeEventListener('abort', onAbort)
    await close()
    await parser.close()
  }
}

function createSyncingMirrors(
  config: Config,
  stores: Stores,
  parse: ManifestOptions['parse'],
  { onError }: SyncRun,
) {
  const immutable = config.tags.immutable.map(parseTagPattern)
  const disk = createDiskGuard(config, stores)
  const manifestOptions: ManifestOptions = {
    immutableTags: (name) => tagPatternsFor(immutable, name),
    isSparse: () => true,
    pulls: { note: () => undefined }, // what is fetched ahead has not been pulled
    parse,
    disk,
  }
  return createMirrors(config, {
    stores,
    blobs: new BlobService(stores, { grace: config.gc.grace, disk }),
    manifests: new ManifestService(stores.metadata, manifestOptions),
    manifestOptions,
    processName: syncProcess,
    onError,
  })
}

/**
 * Asks upstreams what {@link syncMirrors} would fetch, and stores nothing.
 * @throws RegistryError UNAVAILABLE when the index fails
 */
export async function previewSync(
  config: Config,
  { metadata, mirrors: store }: Stores,
  run: SyncRun,
): Promise<readonly SyncReport[]> {
  const parser = new ManifestParser()
  const reports: SyncReport[] = []
  const viaName = await viaNameOf(config, store)
  try {
    for (const settings of chosen(config, run.mirrors)) {
      if (run.signal.aborted) break
      const { budget, sync } = settings
      const mirror = await createMirror(config, settings, viaName)
      const close = () => void mirror.upstream.close()
      run.signal.addEventListener('abort', close)
      const source = lookingSource(mirror, metadata)
      const { parse } = parser
      const options = {
        ...run,
        mirror,
        budget,
        images: sync.images,
        source,
        blobs: undefined,
        metadata,
        store,
        parse,
      }
      reports.push(await new MirrorSync(options).run())
      run.signal.removeEventListener('abort', close)
      await mirror.upstream.close()
    }
    return reports
  } finally {
    await parser.close()
  }
}

type Syncing = MirrorConfig & { readonly sync: MirrorSettings }

function chosen(config: Config, names: readonly string[]): readonly Syncing[] {
  const hasSync = (mirror: MirrorConfig): mirror is Syncing => mirror.sync !== undefined
  return config.mirrors.filter(hasSync).filter(({ name }) => names.includes(name))
}

function lastSyncOf(report: SyncReport, startedAt: number): LastSync {
  const { images, fetchedBytes, isInterrupted } = report
  const failed = images.filter(({ state }) => state === 'failed')
  return {
    startedAt,
    endedAt: Date.now(),
    images: images.length,
    complete: images.filter(({ state }) => state === 'complete').length,
    failed: failed.length,
    failures: failed.slice(0, mostKept).map(({ image, reason }) => ({ image, reason })),
    fetchedBytes,
    interrupted: isInterrupted,
  }
}
