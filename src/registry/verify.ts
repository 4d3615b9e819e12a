import { setTimeout as delay } from 'node:timers/promises'
import type { BlobStore, Examination } from '../../storage/blob-store.js'
import type { CollectionStore } from '../../storage/collection-store.js'
import type {
  AffectedTag,
  BlobToVerify,
  IntegrityStore,
  ManifestToVerify,
  Repositories,
  VerificationPosition,
} from '../../storage/integrity-store.js'
import { algorithmOf, type Digest, digestOf } from '../oci/digest.js'
import type { RepositoryName } from '../oci/reference.js'

/** Rows that are read at once; those of manifests come with their bytes. */
const blobPage = 500
const manifestPage = 20

/** Milliseconds between two notes of how far it is. */
const saveInterval = 2000

/** Findings that are told one by one, and tags of each; more are counted. */
const mostFindings = 10_000
const mostTags = 100

/** Milliseconds for which a file may be without its row, because the row is on its way. */
const arrival = 60_000

/** Milliseconds for which a blob's quarantine waits for a collection that is at work, and between two tries. */
const collectorPatience = 60_000
const collectorPause = 20

/** Milliseconds of a pause that are worth one. */
const shortestPause = 5

/** Something that is not as it should be. */
export interface Finding {
  /**
   * `missing` and `altered`: these bytes are lost here, and nobody is served them; `unreadable`: the disk refused, which
   * says nothing of the bytes, and nothing was done.
   */
  readonly problem: 'missing' | 'altered' | 'unreadable'
  readonly what: 'blob' | 'manifest'
  readonly digest: Digest
  /** Bytes. */
  readonly size: number
  /** The repository of a manifest. */
  readonly repository?: RepositoryName
  /** What exactly was seen. */
  readonly how: string
  /** Tags whose images cannot be pulled whole any more; at most 100. */
  readonly tags: readonly AffectedTag[]
  /** Mirrors that fetch it again when somebody asks for it. */
  readonly mirrors: readonly string[]
}

/** What a verification has found. */
export interface VerificationReport {
  /** What was looked at, from the beginning of this verification on, interruptions or not. */
  blobs: number
  bytes: number
  manifests: number
  /** The same of this run alone, and what was left to do at its beginning. */
  bytesNow: number
  readonly findings: Finding[]
  /** All of them. */
  problems: number
  /** Blobs that were damaged and are right again. */
  healed: number
  /** Files that no row knows. */
  orphans: number
  orphanBytes: number
  /** What is wrong with the index, a sentence each. */
  indexFaults: readonly string[]
  isInterrupted: boolean
  milliseconds: number
}

/** How a verification is to run. */
export interface VerifyOptions {
  /** Bytes a second; undefined is as fast as it goes. */
  readonly rate: number | undefined
  /** With some repositories alone there is no position, and neither orphans nor the index are looked for. */
  readonly repositories: Repositories
  /** Whether to begin anew, whatever was interrupted. */
  readonly isAnew?: boolean
  readonly signal?: AbortSignal
  /** Hears how far it is, often. @param bytesLeft to be read from here on, at the beginning */
  readonly onProgress?: (report: VerificationReport, bytesAtAll: number) => void
}

/** Told to stop. */
class Stopped extends Error {}

/** Compares every stored byte with its digest, while pushes and pulls go on. */
export class Verifier {
  readonly #stores: {
    readonly blobs: BlobStore
    readonly integrity: IntegrityStore
    readonly collection: CollectionStore
  }
  readonly #holder: string

  /** @param holder name of this process, unlike any other's */
  constructor(
    stores: {
      readonly blobs: BlobStore
      readonly integrity: IntegrityStore
      readonly collection: CollectionStore
    },
    holder: string,
  ) {
    this.#stores = stores
    this.#holder = holder
  }

  /**
   * Looks at everything; goes on where the last verification was interrupted.
   * @returns undefined when another verifier is at work
   * @throws RegistryError UNAVAILABLE or STORAGE_FULL; what was found until then stays noted
   */
  async verify(options: VerifyOptions): Promise<VerificationReport | undefined> {
    const { integrity } = this.#stores
    if (!(await integrity.startVerification())) return undefined
    try {
      return await new Run(this.#stores, this.#holder, options).run()
    } finally {
      await integrity.endVerification()
    }
  }
}

/** One verification at work. */
class Run {
  readonly #blobs: BlobStore
  readonly #integrity: IntegrityStore
  readonly #collection: CollectionStore
  readonly #holder: string
  readonly #options: VerifyOptions
  readonly #begin = performance.now()
  #savedAt = performance.now()
  #startedAt = Date.now()
  #bytesAtAll = 0
  readonly #report: VerificationReport = {
    blobs: 0,
    bytes: 0,
    manifests: 0,
    bytesNow: 0,
    findings: [],
    problems: 0,
    healed: 0,
    orphans: 0,
    orphanBytes: 0,
    indexFaults: [],
    isInterrupted: false,
    milliseconds: 0,
  }

  constructor(
    stores: {
      readonly blobs: BlobStore
      readonly integrity: IntegrityStore
      readonly collection: CollectionStore
    },
    holder: string,
    options: VerifyOptions,
  ) {
    this.#blobs = stores.blobs
    this.#integrity = stores.integrity
    this.#collection = stores.collection
    this.#holder = holder
    this.#options = options
  }

  async run(): Promise<VerificationReport> {
    try {
      await this.#lookAtAll()
    } catch (error) {
      if (!(error instanceof Stopped)) throw error
      this.#report.isInterrupted = true
    }
    this.#report.milliseconds = performance.now() - this.#begin
    return this.#report
  }

  async #lookAtAll(): Promise<void> {
    const from = await this.#findPosition()
    if (from?.phase !== 'manifests') await this.#lookAtBlobs(from?.position ?? 0)
    await this.#lookAtManifests(from?.phase === 'manifests' ? from.position : 0)
    if (!this.#isWhole) return
    await this.#countOrphans()
    this.#report.indexFaults = await this.#integrity.checkIndex()
    await this.#integrity.savePosition(undefined)
  }

  get #isWhole(): boolean {
    return this.#options.repositories === 'all'
  }

  async #findPosition(): Promise<VerificationPosition | undefined> {
    if (!this.#isWhole || this.#options.isAnew === true) return undefined
    const from = await this.#integrity.findPosition()
    if (from === undefined) return undefined
    this.#startedAt = from.startedAt
    this.#report.blobs = from.blobs
    this.#report.bytes = from.bytes
    return from
  }

  async #save(phase: VerificationPosition['phase'], position: number): Promise<void> {
    this.#savedAt = performance.now()
    if (!this.#isWhole) return
    const { blobs, bytes } = this.#report
    await this.#integrity.savePosition({ phase, position, startedAt: this.#startedAt, blobs, bytes })
  }

  /** Goes through rows in their order, and notes from time to time how far it is. */
  async #walk<Item extends { readonly id: number }>(
    phase: VerificationPosition['phase'],
    start: number,
    list: (after: number) => Promise<{ readonly items: readonly Item[]; readonly next: number | undefined }>,
    look: (item: Item) => Promise<void>,
  ): Promise<void> {
    let done = start
    try {
      for (let after: number | undefined = start; after !== undefined; ) {
        const page = await list(after)
        for (const item of page.items) {
          this.#stopWhenTold()
          await look(item)
          done = item.id
          if (performance.now() - this.#savedAt > saveInterval) await this.#save(phase, done)
        }
        after = page.next
        await delay(0) // a page was read on the event loop
      }
    } catch (error) {
      await this.#save(phase, done)
      throw error
    }
  }

  async #lookAtBlobs(start: number): Promise<void> {
    const { repositories } = this.#options
    this.#bytesAtAll = (await this.#integrity.countBlobs(start, repositories)).bytes
    await this.#walk(
      'blobs',
      start,
      (after) => this.#integrity.listBlobs(after, blobPage, repositories),
      (blob) => this.#lookAtBlob(blob),
    )
  }

  async #lookAtBlob(blob: BlobToVerify): Promise<void> {
    const found = await this.#examine(blob)
    this.#report.blobs++
    if (found.outcome === 'intact') {
      if (blob.damage !== undefined) await this.#heal(blob)
      return
    }
    if (found.outcome === 'unreadable') return this.#note(blob, 'unreadable', found.reason)
    if (found.outcome === 'missing' && blob.damage !== undefined) {
      return this.#note(blob, blob.damage, 'it was put aside, or lost, before')
    }
    // What was read once may have been read wrong: it must be seen twice.
    const again = await this.#examine(blob)
    if (again.outcome === 'unreadable') return this.#note(blob, 'unreadable', again.reason)
    if (again.outcome === 'intact') {
      return this.#note(blob, 'unreadable', 'two reads of it gave different bytes: look at memory and disk')
    }
    if (!(await this.#putAside(blob, again))) return
    const how = again.outcome === 'altered' ? again.how : 'no file'
    await this.#note(blob, again.outcome, how)
  }

  #examine({ digest, size }: BlobToVerify): Promise<Examination> {
    return this.#blobs.examine(digest, { size, onRead: (bytes) => this.#pace(bytes) })
  }

  async #heal({ digest }: BlobToVerify): Promise<void> {
    await this.#integrity.clearDamage(digest)
    this.#report.healed++
  }

  /**
   * Bytes first, then the row: a blob whose row does not yet say that it is damaged is missing, which is refused too.
   * @returns false when the blob went, or came anew, since it was looked at
   */
  async #putAside(
    { digest }: BlobToVerify,
    found: Examination & { outcome: 'missing' | 'altered' },
  ): Promise<boolean> {
    await this.#excludeCollectors()
    try {
      if (!(await this.#integrity.holdBlob(digest, this.#holder))) return false
      try {
        if (!(await this.#blobs.quarantine(digest, found.state, Date.now()))) return false
        await this.#integrity.noteDamage(digest, found.outcome)
        return true
      } finally {
        await this.#integrity.releaseBlob(digest, this.#holder)
      }
    } finally {
      await this.#collection.endCollection(undefined)
    }
  }

  async #excludeCollectors(): Promise<void> {
    const deadline = performance.now() + collectorPatience
    while (!(await this.#collection.startCollection())) {
      this.#stopWhenTold()
      if (performance.now() > deadline) throw new Stopped('a collection takes too long')
      await delay(collectorPause)
    }
  }

  async #note(blob: BlobToVerify, problem: Finding['problem'], how: string): Promise<void> {
    const { digest, size } = blob
    this.#report.problems++
    if (this.#report.findings.length >= mostFindings) return
    const tags = await this.#integrity.listTagsOfBlob(digest, mostTags)
    const mirrors = problem === 'unreadable' ? [] : await this.#integrity.dropMirrored(digest)
    this.#report.findings.push({ problem, what: 'blob', digest, size, how, tags, mirrors })
  }

  async #lookAtManifests(start: number): Promise<void> {
    const { repositories } = this.#options
    await this.#walk(
      'manifests',
      start,
      (after) => this.#integrity.listManifests(after, manifestPage, repositories),
      (manifest) => this.#lookAtManifest(manifest),
    )
  }

  async #lookAtManifest(manifest: ManifestToVerify): Promise<void> {
    const { id, repository, digest, size, bytes } = manifest
    this.#report.manifests++
    if (bytes.byteLength === size && digestOf(bytes, algorithmOf(digest)) === digest) return
    this.#report.problems++
    if (this.#report.findings.length >= mostFindings) return
    const tags = await this.#integrity.listTagsOfManifest(id, mostTags)
    const how = 'other bytes in the index'
    this.#report.findings.push({
      problem: 'altered',
      what: 'manifest',
      digest,
      size,
      repository,
      how,
      tags,
      mirrors: [],
    })
  }

  async #countOrphans(): Promise<void> {
    const before = Date.now() - arrival
    for (let part = 0; part < this.#blobs.parts; part++) {
      this.#stopWhenTold()
      const digests = await this.#blobs.listPart(part)
      for (let at = 0; at < digests.length; at += blobPage) {
        for (const digest of await this.#collection.listStrangers(digests.slice(at, at + blobPage))) {
          const file = await this.#blobs.stat(digest)
          if (file === undefined || file.storedAt > before) continue
          this.#report.orphans++
          this.#report.orphanBytes += file.size
        }
      }
    }
  }

  /** Waits as long as the rate asks for. */
  #pace(bytes: number): Promise<void> | undefined {
    this.#stopWhenTold()
    this.#report.bytes += bytes
    this.#report.bytesNow += bytes
    this.#options.onProgress?.(this.#report, this.#bytesAtAll)
    const { rate, signal } = this.#options
    if (rate === undefined) return undefined
    const ahead = this.#begin + (this.#report.bytesNow / rate) * 1000 - performance.now()
    if (ahead < shortestPause) return undefined
    return delay(ahead, undefined, { signal }).catch(() => this.#stopWhenTold())
  }

  #stopWhenTold(): void {
    if (this.#options.signal?.aborted === true) throw new Stopped('told to stop')
  }
}
