import type { MetadataStore } from '../../storage/metadata-store.js'
import type { MirrorStore } from '../../storage/mirror-store.js'
import { RegistryError } from '../oci/errors.js'
import type { PackedManifest } from '../oci/packed-manifest.js'
import type { RepositoryName, Tag } from '../oci/reference.js'
import { inLanes } from './lanes.js'
import type { MirrorBlobs } from './mirror-blobs.js'
import type { Mirror } from './mirrors.js'
import { Patience } from './patience.js'
import { type PlannedBlob, type PlannedImage, SyncPlan } from './sync-plan.js'
import { type ResolvedImage, type SyncImages, SyncResolver } from './sync-resolver.js'
import type { ManifestSource } from './sync-source.js'

/** Images that are looked up at once, and blobs that are fetched at once: clients of a server want their share. */
const lookupsAtOnce = 4
const blobsAtOnce = 4

/** Images and blobs that one sync is about at the most: they are kept in memory. */
const mostImages = 10_000
const mostBlobs = 200_000

/** Blobs whose use is noted in one transaction. */
const usesPerNote = 1000

/** What a sync of one mirror works with. */
export interface SyncOptions {
  readonly mirror: Mirror
  readonly images: readonly SyncImages[]
  /** Bytes that the mirror may hold. */
  readonly budget: number | undefined
  readonly source: ManifestSource
  /** Undefined for a dry run. */
  readonly blobs: Pick<MirrorBlobs, 'prefetchBlob' | 'arrivingBytes'> | undefined
  readonly metadata: MetadataStore
  readonly store: MirrorStore
  readonly parse: (bytes: Uint8Array, contentType: string | undefined) => Promise<PackedManifest>
  /** Ends it, soon; what has come is kept, and the next sync goes on from there. */
  readonly signal: AbortSignal
  readonly onProgress: (progress: SyncProgress) => void
}

/** How far a sync is. */
export interface SyncProgress {
  readonly mirror: string
  /** Images that were looked up, of those known of by now. */
  readonly looked: number
  readonly images: number
  /** Bytes that have come and that are to come, once that is known. */
  readonly bytes: number
  readonly allBytes: number | undefined
  readonly failures: number
}

/** What became of one image. */
export interface SyncedImage {
  readonly image: string
  readonly digest: string | undefined
  /** Bytes of its blobs, and of those that were not here when it began. */
  readonly bytes: number
  readonly missingBytes: number
  /** `partial`: not all of it is here; a dry run says that, and an interrupted one. */
  readonly state: 'complete' | 'partial' | 'failed'
  readonly reason: string | undefined
}

/** What a sync of one mirror did. */
export interface SyncReport {
  readonly mirror: string
  readonly images: readonly SyncedImage[]
  /** Distinct blobs and their bytes. */
  readonly blobs: number
  readonly bytes: number
  /** Those that were not here when it began. */
  readonly missingBlobs: number
  readonly missingBytes: number
  /** Bytes that came from upstream, manifests included. */
  readonly fetchedBytes: number
  readonly isInterrupted: boolean
  readonly milliseconds: number
}

interface Wanted {
  readonly image: PlannedImage
  readonly tag: Tag | undefined
  readonly platforms: readonly string[]
  resolved: ResolvedImage | undefined
}

/** Fetches ahead what a mirror's configuration names: first all manifests, then all blobs that are not here. */
export class MirrorSync {
  readonly #options: SyncOptions
  readonly #resolver: SyncResolver
  readonly #patience: Patience
  readonly #plan = new SyncPlan()
  #wanted: Wanted[] = []
  #looked = 0
  #blobs = 0
  #doneBytes = 0
  #missingBytes: number | undefined

  constructor(options: SyncOptions) {
    this.#options = options
    this.#patience = new Patience(options.signal)
    this.#resolver = new SyncResolver({ ...options, patience: this.#patience })
  }

  /** @throws RegistryError UNAVAILABLE or STORAGE_FULL when the index fails; what became of images is in the report */
  async run(): Promise<SyncReport> {
    const { mirror, budget = Number.MAX_SAFE_INTEGER, blobs, signal, images } = this.#options
    const begin = performance.now()
    const fetchedBefore = mirror.fetchedBytes
    for (const some of images) this.#wanted.push(...(await this.#find(some)))
    await inLanes(this.#wanted, lookupsAtOnce, signal, (wanted) => this.#resolve(wanted))
    for (const { image, resolved } of this.#wanted)
      this.#plan.add(image, resolved?.blobs ?? new Map(), budget)
    await this.#plan.look(mirror.name, this.#options, signal)
    const missing = this.#plan.missing
    this.#missingBytes = missing.bytes
    if (blobs !== undefined) {
      await this.#noteUses()
      const watch = setInterval(() => this.#tell(), 100)
      await inLanes(missing.blobs, blobsAtOnce, signal, (blob) => this.#fetch(blob, blobs))
      clearInterval(watch)
    }
    return {
      mirror: mirror.name,
      images: this.#wanted.map(({ image }) => reportOf(image)),
      blobs: this.#plan.blobs.size,
      bytes: this.#plan.bytes,
      missingBlobs: missing.blobs.filter(({ isStored }) => !isStored).length,
      missingBytes: missing.bytes,
      fetchedBytes: mirror.fetchedBytes - fetchedBefore,
      isInterrupted: signal.aborted,
      milliseconds: performance.now() - begin,
    }
  }

  /** The images that one entry of the configuration means; one that has failed when that cannot be found out. */
  async #find({ repository: remote, tags: patterns, platforms }: SyncImages): Promise<Wanted[]> {
    const { mirror, signal } = this.#options
    const failed = (repository: string, pattern: string, error: unknown): Wanted => ({
      image: newImage(repository as RepositoryName, pattern, reasonOf(error)),
      tag: undefined,
      platforms,
      resolved: undefined,
    })
    if (signal.aborted) return []
    this.#tell()
    try {
      const repository = this.#resolver.repositoryOf(remote)
      const { tags, failures } = await this.#resolver.tags(repository, patterns)
      if (this.#wanted.length + tags.length > mostImages) {
        throw new RegistryError(
          'UPSTREAM_INVALID',
          `there would be more than ${mostImages} images in one sync`,
        )
      }
      return [
        ...tags.map((tag) => ({
          image: newImage(repository, tag, undefined),
          tag,
          platforms,
          resolved: undefined,
        })),
        ...[...failures].map(([pattern, error]) => failed(repository, pattern, error)),
      ]
    } catch (error) {
      return [failed(`${mirror.name}/${remote}`, patterns.join(','), error)]
    }
  }

  async #resolve(wanted: Wanted): Promise<void> {
    const { image, tag, platforms } = wanted
    if (tag === undefined) return
    try {
      const resolved = await this.#resolver.image(image.repository, tag, platforms)
      this.#blobs += resolved.blobs.size
      if (this.#blobs > mostBlobs) {
        throw new RegistryError('UPSTREAM_INVALID', `there would be more than ${mostBlobs} blobs in one sync`)
      }
      wanted.resolved = resolved
      image.digest = resolved.digest
    } catch (error) {
      this.#fail(image, error)
    }
    this.#looked++
    this.#tell()
  }

  /** What is wanted must not make room for what else is wanted. */
  async #noteUses(): Promise<void> {
    const { mirror, store } = this.#options
    const digests = [...this.#plan.blobs.keys()]
    for (let at = 0; at < digests.length; at += usesPerNote) {
      await store.noteUses(mirror.name, digests.slice(at, at + usesPerNote), Date.now())
    }
  }

  async #fetch(blob: PlannedBlob, blobs: Pick<MirrorBlobs, 'prefetchBlob'>): Promise<void> {
    // One after the other: what one has fetched is only linked to the next.
    for (const repository of blob.missingIn) {
      if (this.#options.signal.aborted) return
      const needing = [...blob.images].filter((image) => image.repository === repository)
      try {
        await this.#patience.attempt(() => blobs.prefetchBlob(repository, blob.digest))
        for (const image of needing) image.missingBlobs--
      } catch (error) {
        for (const image of needing) this.#fail(image, error)
      }
    }
    if (!blob.isStored) this.#doneBytes += blob.size
    this.#tell()
  }

  #fail(image: PlannedImage, error: unknown): void {
    if (!this.#options.signal.aborted) image.failure ??= reasonOf(error)
  }

  #tell(): void {
    const { mirror, onProgress, blobs } = this.#options
    onProgress({
      mirror: mirror.name,
      looked: this.#looked,
      images: this.#wanted.length,
      bytes: Math.min(this.#doneBytes + (blobs?.arrivingBytes ?? 0), this.#missingBytes ?? 0),
      allBytes: this.#missingBytes,
      failures: this.#wanted.filter(({ image }) => image.failure !== undefined).length,
    })
  }
}

function newImage(repository: RepositoryName, tag: string, failure: string | undefined): PlannedImage {
  const nothing = { bytes: 0, missingBytes: 0, missingBlobs: 0 }
  return { name: `${repository}:${tag}`, repository, digest: undefined, ...nothing, failure }
}

function reportOf({ name, digest, bytes, missingBytes, missingBlobs, failure }: PlannedImage): SyncedImage {
  const isComplete = digest !== undefined && missingBlobs === 0
  const state = failure !== undefined ? 'failed' : isComplete ? 'complete' : 'partial'
  return { image: name, digest, bytes, missingBytes, state, reason: failure }
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
