import { setTimeout as delay } from 'node:timers/promises'
import type { BlobStore, Examination } from '../../storage/blob-store.js'
import type { CollectionStore } from '../../storage/collection-store.js'
import type { BlobToVerify, IntegrityStore } from '../../storage/integrity-store.js'
import type { Digest } from '../oci/digest.js'
import type { RepositoryName } from '../oci/reference.js'
import type { Finding, VerificationReport } from './verify-report.js'

/** Findings that are told one by one, and tags of each; more are counted. */
const mostFindings = 10_000
const mostTags = 100

/** Milliseconds for which a blob's quarantine waits for a collection that is at work, and between two tries. */
const collectorPatience = 60_000
const collectorPause = 20

/** The stores that a verification works with. */
export interface VerifiedStores {
  readonly blobs: BlobStore
  readonly integrity: IntegrityStore
  readonly collection: CollectionStore
}

/** Gets bytes again from where they came from. */
export interface Mender {
  /** @param repositories that were a mirror's and held the blob @returns whether it is here again, whole */
  mendBlob(repositories: readonly RepositoryName[], digest: Digest): Promise<boolean>
  /** @returns whether the manifest is a mirror's and is here again, whole */
  mendManifest(repository: RepositoryName, digest: Digest): Promise<boolean>
}

/** What the checking of blobs is told. */
export interface BlobCheckOptions {
  /** Name of this process: what it holds is its own. */
  readonly holder: string
  readonly mender: Mender | undefined
  /** Called after each piece that was read; what it throws ends the check of the blob. */
  readonly onRead: (bytes: number) => Promise<void> | undefined
  /** Throws when the check is to stop. */
  readonly stopWhenTold: () => void
}

/** Told to stop. */
export class VerificationStopped extends Error {
  override readonly name = 'VerificationStopped'
}

/** Compares blobs with their digests, and puts aside what is wrong. */
export class BlobCheck {
  readonly #stores: VerifiedStores
  readonly #report: VerificationReport
  readonly #options: BlobCheckOptions

  /** @param report where findings are noted */
  constructor(stores: VerifiedStores, report: VerificationReport, options: BlobCheckOptions) {
    this.#stores = stores
    this.#report = report
    this.#options = options
  }

  /**
   * Reads a blob to its end. What was read once may have been read wrong: to be put aside it must be seen twice.
   * @throws VerificationStopped, or RegistryError
   */
  async check(blob: BlobToVerify): Promise<void> {
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
    const again = await this.#examine(blob)
    if (again.outcome === 'unreadable') return this.#note(blob, 'unreadable', again.reason)
    if (again.outcome === 'intact') {
      return this.#note(blob, 'unreadable', 'two reads of it gave different bytes: look at memory and disk')
    }
    if (!(await this.#putAside(blob, again))) return
    await this.#note(blob, again.outcome, again.outcome === 'altered' ? again.how : 'no file')
  }

  #examine({ digest, size }: BlobToVerify): Promise<Examination> {
    return this.#stores.blobs.examine(digest, { size, onRead: this.#options.onRead })
  }

  async #heal({ digest }: BlobToVerify): Promise<void> {
    await this.#stores.integrity.clearDamage(digest)
    this.#report.healed++
  }

  /**
   * The row first, then the bytes: a blob that has gone while its row says nothing would be taken for one that is there,
   * and no client would push it again.
   * @returns false when the blob went, or came anew, since it was looked at
   */
  async #putAside(
    { digest }: BlobToVerify,
    found: Examination & { outcome: 'missing' | 'altered' },
  ): Promise<boolean> {
    const { blobs, integrity, collection } = this.#stores
    const { holder } = this.#options
    await this.#excludeCollectors()
    try {
      if (!(await integrity.holdBlob(digest, holder))) return false
      try {
        await integrity.noteDamage(digest, found.outcome)
        if (await blobs.quarantine(digest, found.state, Date.now())) return true
        await integrity.clearDamage(digest)
        return false
      } finally {
        await integrity.releaseBlob(digest, holder)
      }
    } finally {
      await collection.endCollection(undefined)
    }
  }

  async #excludeCollectors(): Promise<void> {
    const deadline = performance.now() + collectorPatience
    while (!(await this.#stores.collection.startCollection())) {
      this.#options.stopWhenTold()
      if (performance.now() > deadline) throw new VerificationStopped('a collection takes too long')
      await delay(collectorPause)
    }
  }

  async #note(blob: BlobToVerify, problem: Finding['problem'], how: string): Promise<void> {
    const { integrity } = this.#stores
    const { digest, size } = blob
    const tags = await integrity.listTagsOfBlob(digest, mostTags)
    const holders = problem === 'unreadable' ? [] : await integrity.dropMirrored(digest)
    const repositories = holders.map(({ repository }) => repository)
    const isMended =
      repositories.length > 0 && (await this.#options.mender?.mendBlob(repositories, digest)) === true
    const mirrors = [...new Set(holders.map(({ mirror }) => mirror))]
    const isLost = problem !== 'unreadable' && !isMended
    const isUnneeded = isLost && mirrors.length === 0 && (await integrity.dropUnneeded(digest))
    const manifests = tags.length === 0 ? await integrity.listManifestsOfBlob(digest, mostTags) : []
    const about = { problem, what: 'blob', digest, size, how, tags, mirrors } as const
    this.add({ ...about, isMended, manifests, isUnneeded })
  }

  /** Notes a finding. */
  add(finding: Finding): void {
    this.#report.problems++
    if (finding.isMended) this.#report.mended++
    if (finding.isUnneeded) this.#report.unneeded++
    if (this.#report.findings.length < mostFindings) this.#report.findings.push(finding)
  }
}
