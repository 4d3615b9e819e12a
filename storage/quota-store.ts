import type { Digest } from '../src/oci/digest.js'
import type { RepositoryName } from '../src/oci/reference.js'

/** Bytes that the repositories of a pattern may hold together. */
export interface Quota {
  /** A repository pattern (see parseRepositoryPattern). */
  readonly pattern: string
  readonly limit: number
}

/**
 * Bytes at which rows and their files count beside the bytes of what they stand for: about what the index and the
 * smallest block of a disk take for one. They stand in triggers of migrations.ts as well: to change one takes a new step.
 */
export const entrySizes = {
  /** A blob that a repository links, or that waits for its collection. */
  blob: 4096,
  /** A manifest, stored or deleted. */
  manifest: 1024,
  tag: 512,
  /** A change of a tag in its history. */
  change: 1024,
  /** An open upload. */
  upload: 4096,
} as const

/** Bytes that rows and files may take beside what a quota counts, where the quota is smaller. */
const leastOverhead = 1024 * 1024

/** Bytes that rows and files may take beside what a quota counts: as much again. */
export function overheadLimit({ limit }: Quota): number {
  return Math.max(limit, leastOverhead)
}

/**
 * A quota with what counts against it: of each matching repository the blobs that it links, its manifests, what was
 * deleted in it and is still on the disk, and the bytes of its uploads, those that pushes under way may still write
 * included. Mirrors' repositories do not count.
 */
export interface QuotaUse extends Quota {
  readonly used: number
  /** The part of `used` that was deleted and waits to be collected, layers that are linked still not included. */
  readonly waiting: number
  /** What rows and files take beside `used`: the sum of {@link entrySizes}. */
  readonly overhead: number
}

/** A quota that has no room for something. */
export interface QuotaExcess extends QuotaUse {
  /** Which of its bounds is met. */
  readonly lack: 'bytes' | 'overhead'
}

/** What something adds to a repository, in bytes. */
export interface Need {
  readonly bytes: number
  readonly overhead: number
}

/** What became of the wish for room: up to where an upload may grow, and the quota in the way, if one is. */
export interface Reservation {
  readonly end: number
  readonly excess: QuotaExcess | undefined
}

/**
 * Quotas. The sums are rows, kept by triggers in the transactions that change what they count: no number of processes
 * can exceed a quota together. Each method may throw RegistryError UNAVAILABLE or STORAGE_FULL: then it did not happen.
 */
export interface QuotaStore {
  /** Makes these the quotas. Sums of new ones are computed; of those that were there before only the limit changes. */
  setQuotas(quotas: readonly Quota[]): Promise<void>
  /** All quotas, by their patterns. */
  listQuotas(): Promise<QuotaUse[]>
  /** Whether a quota counts this repository. */
  isLimited(repository: RepositoryName): Promise<boolean>
  /**
   * Lets an upload, whose turn this holder has, grow up to this position, or as far as its quotas allow. The room is
   * given back with the turn. What mends a damaged blob that the repository counts already may exceed them meanwhile.
   */
  reserve(id: string, holder: string, end: number): Promise<Reservation>
  /**
   * The quota that the repository exceeds already, if the blob of this digest does not count there yet: asked before
   * an upload becomes that blob.
   */
  findOverrun(repository: RepositoryName, digest: Digest): Promise<QuotaExcess | undefined>
}
