import { setTimeout as delay } from 'node:timers/promises'
import type { BlobStore } from '../../storage/blob-store.js'
import type {
  CandidatePage,
  CollectionStore,
  CollectionSums,
  CondemnedBlob,
  IdleManifest,
  Moments,
  StepResult,
} from '../../storage/collection-store.js'
import type { TagStore } from '../../storage/tag-store.js'
import type { Digest } from '../oci/digest.js'
import type { RepositoryName } from '../oci/reference.js'
import { type CollectionMoments, type GarbageOptions, groupByMoment, momentsOf } from './gc-moments.js'
import { steadyClock } from './leases.js'
import { livedSince } from './lived-time.js'
import { Pace } from './pace.js'

/** Rows that are read at once: no more than a few milliseconds. */
const pageSize = 500

/** Rows that one transaction changes at the most. */
const stepSize = 100

/** Candidates that are kept in memory; when there are more, the walk is done again after these. */
const mostCandidates = 100_000

/** Blobs whose files are removed together, so that the log and each folder are synced once for many. */
const roundSize = 4000

/** Milliseconds between two tries to become the collector, and for which a caller that cannot wait long tries. */
const busyPause = 50
const busyPatience = 30_000

/** Files without a row that interruptions can have left; more of them say that the index is another one. */
const mostStrangers = 100
const strangersShare = 10

/** What a collection did in one repository. */
export interface RepositoryReport {
  manifests: number
  /** Blobs that the repository has no right to any more. */
  blobs: number
  /** Bytes of these blobs; other repositories may keep them. */
  bytes: number
}

/** What a collection did. */
export interface CollectionReport {
  readonly repositories: Map<RepositoryName, RepositoryReport>
  /** Blobs whose bytes were removed. */
  blobs: number
  bytes: number
  /** Blobs that were found to remove, those that were removed among them; 0 until they have been looked for. */
  blobsFound: number
  /** Files without a row that were left where they are, because there are too many of them. */
  strangersLeft: number
  /** Whether it was told to stop before it had done everything. */
  isInterrupted: boolean
  milliseconds: number
}

/** How a collection is to run. */
export interface CollectOptions {
  /** Whether files without a row are looked for; `all` removes them however many there are. */
  readonly strangers: 'no' | 'some' | 'all'
  readonly signal?: AbortSignal
  /** Hears how far it is, after each step. */
  readonly onProgress?: (report: CollectionReport) => void
}

/** A report of nothing. */
export function emptyReport(): CollectionReport {
  return {
    repositories: new Map(),
    blobs: 0,
    bytes: 0,
    blobsFound: 0,
    strangersLeft: 0,
    isInterrupted: false,
    milliseconds: 0,
  }
}

/** The part of a report that is about one repository. */
export function reportOf(report: CollectionReport, name: RepositoryName): RepositoryReport {
  const known = report.repositories.get(name) ?? { manifests: 0, blobs: 0, bytes: 0 }
  report.repositories.set(name, known)
  return known
}

/**
 * Garbage collection while pushes and pulls go on. Everything is read before anything is removed, so that a read
 * that fails removes nothing; each removal looks again at what it rests on; pauses let others write.
 */
export class GarbageCollector {
  readonly #blobs: BlobStore
  readonly #collection: CollectionStore
  readonly #tags: Pick<TagStore, 'listRunning'>
  readonly #options: GarbageOptions
  readonly #clock = steadyClock()

  constructor(
    stores: {
      readonly blobs: BlobStore
      readonly collection: CollectionStore
      readonly tags: Pick<TagStore, 'listRunning'>
    },
    options: GarbageOptions,
  ) {
    this.#blobs = stores.blobs
    this.#collection = stores.collection
    this.#tags = stores.tags
    this.#options = options
  }

  /**
   * Removes what nobody needs any more.
   * @returns undefined when another collector is at work
   * @throws RegistryError UNAVAILABLE or STORAGE_FULL; what was done until then stays done
   */
  collect(options: CollectOptions): Promise<CollectionReport | undefined> {
    return this.#run(options, async (pass) => {
      const moments = await this.#moments()
      await pass.finishOthers()
      await pass.forgetOld(moments)
      await pass.removeManifests(moments)
      await pass.removeLinks(moments.links)
      await pass.forgetRepositories()
      await pass.removeBlobs(moments.blobs)
      if (options.strangers !== 'no') {
        await pass.removeStrangers(moments.blobs.before, options.strangers === 'all')
      }
    })
  }

  /**
   * Removes these blobs at once, whatever their age, as far as nothing links them, nothing that can be restored needs
   * them, and no upload is finishing to them. Waits for a collection that is at work.
   * @returns undefined when that took too long
   * @throws RegistryError UNAVAILABLE or STORAGE_FULL
   */
  async collectBlobs(digests: readonly Digest[]): Promise<CollectionReport | undefined> {
    const deadline = performance.now() + busyPatience
    for (;;) {
      const { undo } = await this.#moments()
      const report = await this.#run({ strangers: 'no' }, (pass) =>
        pass.condemnAndRemove(digests, { before: Number.MAX_SAFE_INTEGER, undo }),
      )
      if (report !== undefined || performance.now() > deadline) return report
      await delay(busyPause)
    }
  }

  async #moments(): Promise<CollectionMoments> {
    const running = await this.#tags.listRunning()
    const now = this.#clock()
    return momentsOf(this.#options, (length) => livedSince(now, length, running))
  }

  async #run(
    options: CollectOptions,
    work: (pass: Pass) => Promise<void>,
  ): Promise<CollectionReport | undefined> {
    if (!(await this.#start())) return undefined
    const begin = performance.now()
    const report = emptyReport()
    let done: CollectionSums | undefined
    try {
      await work(
        new Pass(this.#blobs, this.#collection, { ...options, holder: this.#options.holder }, report),
      )
    } finally {
      report.milliseconds = performance.now() - begin
      const { blobs, bytes, milliseconds } = report
      done = { blobs, bytes, milliseconds, endedAt: Date.now() }
      await this.#collection.endCollection(done)
    }
    return report
  }

  /** Whoever looks whether a collector is alive holds its lock for a moment: so one try is not enough. */
  async #start(): Promise<boolean> {
    for (let tries = 0; tries < 5; tries++) {
      if (await this.#collection.startCollection()) return true
      await delay(busyPause / 5)
    }
    return false
  }
}

/** One collection at work. */
class Pass {
  readonly #blobs: BlobStore
  readonly #collection: CollectionStore
  readonly #options: CollectOptions & { readonly holder: string }
  readonly #report: CollectionReport

  constructor(
    blobs: BlobStore,
    collection: CollectionStore,
    options: CollectOptions & { readonly holder: string },
    report: CollectionReport,
  ) {
    this.#blobs = blobs
    this.#collection = collection
    this.#options = options
    this.#report = report
  }

  /** Removes what collectors that died have condemned. */
  async finishOthers(): Promise<void> {
    while (!this.#isStopped()) {
      const claimed = await this.#collection.claimCondemned(this.#options.holder, stepSize)
      if (claimed.length === 0) return
      await this.#remove(claimed)
    }
  }

  /** What cannot be restored any more needs nothing. */
  async forgetOld({ undo, history }: CollectionMoments): Promise<void> {
    const pace = new Pace()
    while (!this.#isStopped() && (await this.#collection.forgetDraft(Date.now()))) await pace.rest()
    while (!this.#isStopped()) {
      if ((await this.#collection.forgetOld({ undo, history }, stepSize)) === 0) return
      await pace.rest()
    }
  }

  /** A repository goes with the last that is in it. */
  async forgetRepositories(): Promise<void> {
    const pace = new Pace()
    let after: number | undefined = 0
    while (after !== undefined && !this.#isStopped()) {
      after = await this.#collection.forgetRepositories(after, stepSize)
      await pace.rest()
    }
  }

  async removeManifests(moments: CollectionMoments): Promise<void> {
    const { manifests: latest, undo } = moments
    if (latest === undefined) return
    await this.#walkAndRemove(
      (after: number | undefined) => this.#collection.listIdleManifests(after ?? 0, latest, pageSize),
      async (found: readonly IdleManifest[]) => {
        for (const [before, ids] of groupByMoment(found, moments)) {
          await this.#apply(ids, async (some) => {
            const step = await this.#collection.removeManifests(some, { before, undo })
            for (const { repository } of step.items) reportOf(this.#report, repository).manifests++
            return step
          })
        }
      },
    )
  }

  async removeLinks(moments: Moments): Promise<void> {
    await this.#walkAndRemove(
      (after: { repositoryId: number; blobId: number } | undefined) =>
        this.#collection.listIdleLinks(after, moments, pageSize),
      (links) =>
        this.#apply(links, async (some) => {
          const keys = some.map(({ repositoryId, blobId }) => ({ repositoryId, blobId }))
          const step = await this.#collection.removeLinks(keys, moments)
          for (const { repository, size } of step.items) {
            const known = reportOf(this.#report, repository)
            known.blobs++
            known.bytes += size
          }
          return step
        }),
    )
  }

  async removeBlobs(moments: Moments): Promise<void> {
    await this.#walkAndRemove(
      (after: number | undefined) => this.#collection.listUnlinkedBlobs(after ?? 0, moments, pageSize),
      (blobs) => {
        this.#report.blobsFound = this.#report.blobs + blobs.length
        return this.condemnAndRemove(
          blobs.map(({ digest }) => digest),
          moments,
        )
      },
    )
  }

  async condemnAndRemove(digests: readonly Digest[], moments: Moments): Promise<void> {
    const { holder } = this.#options
    for (let at = 0; at < digests.length && !this.#isStopped(); at += roundSize) {
      const condemned: CondemnedBlob[] = []
      await this.#apply(digests.slice(at, at + roundSize), async (some) => {
        const step = await this.#collection.condemnBlobs(some, holder, moments)
        condemned.push(...step.items)
        return step
      })
      await this.#remove(condemned)
    }
  }

  /**
   * Removes files that no row knows, older than this: an interruption between a blob's file and its row leaves
   * one. When there are many, or one is older than the index, then the index is not the one that they belong to,
   * and they are all that is left of what it knew.
   */
  async removeStrangers(before: number, isSure: boolean): Promise<void> {
    const { files, known, oldest } = await this.#findStrangers(before)
    const isOdd =
      files.length > mostStrangers + known / strangersShare || oldest < (await this.#collection.indexMadeAt())
    if (isOdd && !isSure) {
      this.#report.strangersLeft = files.length
      return
    }
    for (let at = 0; at < files.length && !this.#isStopped(); at += stepSize) {
      const some = files.slice(at, at + stepSize)
      const condemned = await this.#collection.condemnFiles(some, this.#options.holder, Date.now())
      await this.#remove(condemned)
    }
  }

  async #findStrangers(before: number): Promise<{ files: CondemnedBlob[]; known: number; oldest: number }> {
    const files: CondemnedBlob[] = []
    let known = 0
    let oldest = Number.MAX_SAFE_INTEGER
    for (let part = 0; part < this.#blobs.parts && !this.#isStopped(); part++) {
      const digests = await this.#blobs.listPart(part)
      for (let at = 0; at < digests.length && files.length < mostCandidates; at += pageSize) {
        const some = digests.slice(at, at + pageSize)
        const strangers = await this.#collection.listStrangers(some)
        known += some.length - strangers.length
        for (const digest of strangers) {
          const file = await this.#blobs.stat(digest)
          if (file === undefined || file.storedAt >= before) continue
          files.push({ digest, size: file.size })
          oldest = Math.min(oldest, file.storedAt)
        }
      }
      await delay(0)
    }
    return { files, known, oldest }
  }

  /** Reads all candidates, then removes; again when they were too many for once. */
  async #walkAndRemove<Item, Position>(
    list: (after: Position | undefined) => Promise<CandidatePage<Item, Position>>,
    remove: (items: readonly Item[]) => Promise<void>,
  ): Promise<void> {
    let after: Position | undefined
    do {
      const found: Item[] = []
      do {
        const page = await list(after)
        found.push(...page.items)
        after = page.next
        await delay(0) // a page was read on the event loop
      } while (after !== undefined && found.length < mostCandidates && !this.#isStopped())
      await remove(found)
    } while (after !== undefined && !this.#isStopped())
  }

  /** Takes candidates step by step; after each, others may write. */
  async #apply<Item>(
    items: readonly Item[],
    take: (some: readonly Item[]) => Promise<StepResult<unknown>>,
  ): Promise<void> {
    const pace = new Pace()
    for (let at = 0; at < items.length && !this.#isStopped(); ) {
      const { handled } = await take(items.slice(at, at + stepSize))
      at += Math.max(1, handled)
      this.#options.onProgress?.(this.#report)
      await pace.rest()
    }
  }

  /**
   * The condemning is made durable, then the files go, then the rows: a row without its file says what is still to be
   * done, and no power cut brings a row back to life whose file has gone.
   */
  async #remove(condemned: readonly CondemnedBlob[]): Promise<void> {
    if (condemned.length === 0) return
    const digests = condemned.map(({ digest }) => digest)
    const pace = new Pace()
    await this.#collection.syncCondemned(Date.now())
    await this.#blobs.remove(digests, () => pace.rest())
    for (let at = 0; at < digests.length; at += stepSize) {
      await this.#collection.forgetBlobs(digests.slice(at, at + stepSize), this.#options.holder)
      await pace.rest()
    }
    this.#report.blobs += condemned.length
    for (const { size } of condemned) this.#report.bytes += size
    this.#options.onProgress?.(this.#report)
  }

  #isStopped(): boolean {
    const isStopped = this.#options.signal?.aborted === true
    if (isStopped) this.#report.isInterrupted = true
    return isStopped
  }
}
