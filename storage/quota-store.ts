import type { RepositoryName } from '../src/oci/reference.js'

/** Bytes that the repositories of a pattern may hold together. */
export interface Quota {
  /** A repository pattern (see parseRepositoryPattern). */
  readonly pattern: string
  readonly limit: number
}

/**
 * A quota with what counts against it: of each matching repository the blobs that it links, its manifests, and the
 * bytes of its uploads, those that pushes under way may still write included. Mirrors' repositories do not count.
 */
export interface QuotaUse extends Quota {
  readonly used: number
}

/** What became of the wish for room: up to where an upload may grow, and the quota in the way, if one is. */
export interface Reservation {
  readonly end: number
  readonly excess: QuotaUse | undefined
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
   * given back with the turn.
   */
  reserve(id: string, holder: string, end: number): Promise<Reservation>
}
