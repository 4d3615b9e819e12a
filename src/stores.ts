import { undoTime } from '../config/load.js'
import type { Config } from '../config/schema.js'
import type { AccessStore } from '../storage/access-store.js'
import type { BlobStore } from '../storage/blob-store.js'
import type { CollectionStore } from '../storage/collection-store.js'
import { dataPaths } from '../storage/data-folder.js'
import { Reserve } from '../storage/file-reserve.js'
import { openFsBlobStore } from '../storage/fs-blob-store.js'
import type { IntegrityStore } from '../storage/integrity-store.js'
import type { MetadataStore } from '../storage/metadata-store.js'
import type { MirrorStore } from '../storage/mirror-store.js'
import type { QuotaStore } from '../storage/quota-store.js'
import { openSqliteStores } from '../storage/sqlite-metadata-store.js'
import type { TagStore } from '../storage/tag-store.js'
import { matchesRepository, parseRepositoryPattern } from './oci/repository-pattern.js'
import { parseTagPattern, tagPatternsFor } from './oci/tag-pattern.js'
import { DiskGuard } from './registry/disk-guard.js'
import { GarbageCollector } from './registry/gc.js'
import type { GarbageOptions, UntaggedPolicy } from './registry/gc-moments.js'
import { steadyClock } from './registry/leases.js'
import { type Keep, Retention, type Rule } from './registry/retention.js'
import { StartCheck } from './registry/start-check.js'
import { UploadService } from './registry/uploads.js'
import { Verifier } from './registry/verify.js'

/** The stores. */
export interface Stores {
  readonly blobs: BlobStore
  readonly metadata: MetadataStore
  readonly access: AccessStore
  readonly collection: CollectionStore
  readonly mirrors: MirrorStore
  readonly integrity: IntegrityStore
  readonly quotas: QuotaStore
  /** What is given up when the disk is full. */
  readonly reserve: Reserve
  readonly tags: TagStore
  close(): Promise<void>
}

/** Opens the stores of a data folder that takeDataFolder has prepared. The drivers are named here alone. */
export async function openStores(config: Config, onFatal: (error: Error) => void): Promise<Stores> {
  const path = dataPaths(config.data).database
  const reserve = new Reserve(config.data)
  const freeSome = () => reserve.release()
  const index = await openSqliteStores({ path, onFatal, freeSome })
  const blobs = openFsBlobStore(config.data)
  return {
    ...index,
    blobs,
    reserve,
    async close() {
      await blobs.close()
      await index.metadata.close()
    },
  }
}

/** What keeps the pushes of one process from filling the disk. */
export function createDiskGuard(config: Config, stores: Pick<Stores, 'blobs'>): DiskGuard {
  return new DiskGuard(stores.blobs, config.disk)
}

/** The uploads of one process. */
export function createUploads(
  config: Config,
  stores: Stores,
  processName: string,
  disk = createDiskGuard(config, stores),
): UploadService {
  return new UploadService(stores, {
    holder: `${processName}:`,
    ...config.uploads,
    grace: config.gc.grace,
    disk,
    quotas: stores.quotas,
  })
}

/** The garbage collector of one process. */
export function createCollector(config: Config, stores: Stores, processName: string): GarbageCollector {
  return new GarbageCollector(stores, garbageOptions(config, `${processName}:`))
}

/** What the settings say about garbage. @param holder the name of the collector */
export function garbageOptions(config: Config, holder: string): GarbageOptions {
  return {
    holder,
    grace: config.gc.grace,
    undo: undoTime(config),
    history: config.tags.history,
    untagged: untaggedPolicy(config),
  }
}

/** The verifier of one process. */
export function createVerifier(stores: Stores, processName: string): Verifier {
  return new Verifier(stores, `${processName}:`)
}

/** The check of what an unclean stop has left, for the process that begins to serve. */
export function createStartCheck(stores: Stores, processName: string): StartCheck {
  return new StartCheck(stores, `${processName}:`)
}

/**
 * How long manifests stay that no tag leads to. What retention takes the tags of shall go as well, so it is removed
 * where there is a rule; as long as a rule keeps tags by the time of their push or pull, it stays, too.
 */
function untaggedPolicy(config: Config): UntaggedPolicy {
  const { untagged, grace } = config.gc
  const rules = rulesOf(config).map(({ repositories, keep }) => ({
    repositories,
    time: Math.max(untagged ?? grace, ...keep.map(timeOf)),
  }))
  const times = [...(untagged === undefined ? [] : [untagged]), ...rules.map(({ time }) => time)]
  return {
    shortest: times.length === 0 ? undefined : Math.min(...times),
    of(repository, isMirrored) {
      if (isMirrored) return untagged
      const rule = rules.find(({ repositories }) =>
        repositories.some((pattern) => matchesRepository(pattern, repository)),
      )
      return rule?.time ?? untagged
    },
  }
}

/** The time of a clause that keeps by time alone. */
function timeOf({ tags, versions, newest, pushedWithin, pulledWithin }: Keep): number {
  const isOther = tags !== undefined || versions !== undefined || newest !== undefined
  return isOther ? 0 : Math.max(pushedWithin ?? 0, pulledWithin ?? 0)
}

function rulesOf(config: Config): Rule[] {
  return config.retention.rules.map(({ repositories, keep }) => ({
    repositories: repositories.map(parseRepositoryPattern),
    keep,
  }))
}

/** Removes tags by the rules of the settings. */
export function createRetention(config: Config, stores: Pick<Stores, 'tags'>): Retention {
  const immutable = config.tags.immutable.map(parseTagPattern)
  return new Retention(stores.tags, {
    rules: rulesOf(config),
    immutableTags: (repository) => tagPatternsFor(immutable, repository),
    undo: undoTime(config),
    clock: steadyClock(),
  })
}
