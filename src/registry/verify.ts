import { setTimeout as delay } from 'node:timers/promises'
import type { ManifestToVerify, Repositories, VerificationPosition } from '../../storage/integrity-store.js'
import { algorithmOf, digestOf } from '../oci/digest.js'
import { BlobCheck, type Mender, VerificationStopped, type VerifiedStores } from './blob-check.js'
import { emptyVerification, problemsLeft, type VerificationReport } from './verify-report.js'

/** Rows that are read at once; those of manifests come with their bytes. */
const blobPage = 500
const manifestPage = 20

/** Milliseconds between two notes of how far it is. */
const saveInterval = 2000

/** Tags that are told of one finding, and files without a row that are named. */
const mostTags = 100
const mostOrphans = 100

/** Milliseconds for which a file may be without its row, because the row is on its way. */
const arrival = 60_000

/** Milliseconds of a pause that are worth one. */
const shortestPause = 5

/** How a verification is to run. */
export interface VerifyOptions {
  /** Bytes a second; undefined is as fast as it goes. */
  readonly rate: number | undefined
  /** With some repositories alone there is no position, and neither orphans nor the index are looked for. */
  readonly repositories: Repositories
  /** Whether to begin anew, whatever was interrupted. */
  readonly isAnew?: boolean
  /** Fetches what mirrors lost again; without it that is done when somebody asks for it. */
  readonly mender?: Mender | undefined
  readonly signal?: AbortSignal
  /** Hears how far it is, often. @param bytesLeft to be read from here on, at the beginning */
  readonly onProgress?: (report: VerificationReport, bytesAtAll: number) => void
}

/** Compares every stored byte with its digest, while pushes and pulls go on. */
export class Verifier {
  readonly #stores: VerifiedStores
  readonly #holder: string

  /** @param holder name of this process, unlike any other's */
  constructor(stores: VerifiedStores, holder: string) {
    this.#stores = stores
    this.#holder = holder
  }

  /**
   * Whether a verification is overdue: one was interrupted, which the next one goes on with, or none came to its end
   * since this moment.
   * @param moment milliseconds since 1970; undefined when there was none yet
   */
  async isOverdue(moment: number | undefined): Promise<boolean> {
    const { integrity } = this.#stores
    if ((await integrity.findPosition()) !== undefined) return true
    return moment !== undefined && (await integrity.verifiedAt()) < moment
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
  readonly #stores: VerifiedStores
  readonly #options: VerifyOptions
  readonly #check: BlobCheck
  readonly #begin = performance.now()
  #savedAt = performance.now()
  #startedAt = Date.now()
  #bytesAtAll = 0
  /** What runs before this one have found, of the verification that this one continues. */
  #problemsBefore = 0
  readonly #report = emptyVerification()

  constructor(stores: VerifiedStores, holder: string, options: VerifyOptions) {
    this.#stores = stores
    this.#options = options
    this.#check = new BlobCheck(stores, this.#report, {
      holder,
      mender: options.mender,
      onRead: (bytes) => this.#pace(bytes),
      stopWhenTold: () => this.#stopWhenTold(),
    })
  }

  async run(): Promise<VerificationReport> {
    try {
      await this.#lookAtAll()
    } catch (error) {
      if (!(error instanceof VerificationStopped)) throw error
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
    this.#report.indexFaults = await this.#stores.integrity.checkIndex('thorough')
    await this.#stores.integrity.recordVerification(this.#problems, Date.now())
  }

  get #problems(): number {
    return this.#problemsBefore + problemsLeft(this.#report)
  }

  get #isWhole(): boolean {
    return this.#options.repositories === 'all'
  }

  async #findPosition(): Promise<VerificationPosition | undefined> {
    if (!this.#isWhole || this.#options.isAnew === true) return undefined
    const from = await this.#stores.integrity.findPosition()
    if (from === undefined) return undefined
    this.#startedAt = from.startedAt
    this.#report.blobs = from.blobs
    this.#report.bytes = from.bytes
    this.#problemsBefore = from.problems
    return from
  }

  async #save(phase: VerificationPosition['phase'], position: number): Promise<void> {
    this.#savedAt = performance.now()
    if (!this.#isWhole) return
    const { blobs, bytes } = this.#report
    const problems = this.#problems
    const startedAt = this.#startedAt
    await this.#stores.integrity.savePosition({ phase, position, startedAt, blobs, bytes, problems })
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
    this.#bytesAtAll = (await this.#stores.integrity.countBlobs(start, repositories)).bytes
    await this.#walk(
      'blobs',
      start,
      (after) => this.#stores.integrity.listBlobs(after, blobPage, repositories),
      (blob) => this.#check.check(blob),
    )
  }

  async #lookAtManifests(start: number): Promise<void> {
    const { repositories } = this.#options
    await this.#walk(
      'manifests',
      start,
      (after) => this.#stores.integrity.listManifests(after, manifestPage, repositories),
      (manifest) => this.#lookAtManifest(manifest),
    )
  }

  async #lookAtManifest(manifest: ManifestToVerify): Promise<void> {
    const { id, repository, digest, size, bytes } = manifest
    this.#report.manifests++
    if (bytes.byteLength === size && digestOf(bytes, algorithmOf(digest)) === digest) return
    const tags = await this.#stores.integrity.listTagsOfManifest(id, mostTags)
    const isMended = (await this.#options.mender?.mendManifest(repository, digest)) === true
    const how = 'other bytes in the index'
    this.#check.add({
      problem: 'altered',
      what: 'manifest',
      digest,
      size,
      repository,
      how,
      tags,
      mirrors: [],
      isMended,
      manifests: [],
      isUnneeded: false,
    })
  }

  async #countOrphans(): Promise<void> {
    const before = Date.now() - arrival
    for (let part = 0; part < this.#stores.blobs.parts; part++) {
      this.#stopWhenTold()
      const digests = await this.#stores.blobs.listPart(part)
      for (let at = 0; at < digests.length; at += blobPage) {
        for (const digest of await this.#stores.collection.listStrangers(digests.slice(at, at + blobPage))) {
          const file = await this.#stores.blobs.stat(digest)
          if (file === undefined || file.storedAt > before) continue
          this.#report.orphans++
          this.#report.orphanBytes += file.size
          if (this.#report.orphanDigests.length < mostOrphans) this.#report.orphanDigests.push(digest)
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
    if (this.#options.signal?.aborted === true) throw new VerificationStopped('told to stop')
  }
}
