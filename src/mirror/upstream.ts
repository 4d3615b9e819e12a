import type { Readable } from 'node:stream'
import type { Digest } from '../oci/digest.js'
import type { RepositoryName, Tag } from '../oci/reference.js'

/** What a manifest upstream is, as far as a HEAD tells. */
export interface UpstreamHead {
  readonly digest: Digest
}

/** A manifest from upstream: its bytes have this digest. */
export interface UpstreamManifest extends UpstreamHead {
  /** The Content-Type of the answer, unchecked. */
  readonly mediaType: string | undefined
  readonly bytes: Uint8Array
}

/** A blob that comes in. Its bytes are not checked. */
export interface UpstreamBlob {
  /** Bytes of the whole blob; undefined when the upstream does not say. */
  readonly size: number | undefined
  /** Where the body begins in the blob: what was asked for, or 0 when the upstream does not know ranges. */
  readonly offset: number
  /** Fails with an {@link UpstreamError} when it is cut off or stands still. Must be read or destroyed. */
  readonly body: Readable
}

/** One line of a referrers list. */
export interface UpstreamReferrer {
  readonly mediaType: string
  readonly digest: Digest
  readonly size: number
  readonly artifactType: string | undefined
  /** The text of a JSON object of strings, in UTF-8. */
  readonly annotations: Uint8Array | undefined
}

/** Names of tags in the upstream's order, and whether more follow. */
export interface UpstreamTags {
  readonly names: readonly string[]
  readonly more: boolean
}

/** How many pulls an upstream still allows, as it says itself (`RateLimit-*`). */
export interface RateLimit {
  readonly limit: number | undefined
  readonly remaining: number | undefined
}

/** How an upstream does. Times are milliseconds since 1970. */
export interface UpstreamHealth {
  /** `open`: it failed a moment ago and is not asked until `retryAt`. */
  readonly breaker: 'closed' | 'open'
  readonly retryAt: number | undefined
  /** When it last gave an answer, whatever it said; undefined when it never did. */
  readonly answeredAt: number | undefined
  /** The last failure, in words without secrets, and when that was. */
  readonly failure: string | undefined
  readonly failedAt: number | undefined
  readonly rateLimit: RateLimit | undefined
  /** Until when it wants no requests; undefined when it takes them. */
  readonly limitedUntil: number | undefined
}

/**
 * Why an upstream did not give what it was asked for:
 * - `not-found`: it answered, and it does not have it
 * - `denied`: it answered 401 or 403 to the credentials that we have (or have not)
 * - `rate-limited`: 429; or it said when to come back, and that is not yet
 * - `unavailable`: it could not be asked: refused, DNS, TLS, timeout, cut off, 5xx, or the breaker is open
 * - `invalid`: it answered what no registry may answer: a wrong digest, too many bytes, a forbidden redirect
 * - `looped`: it was not asked, since the request came from this registry and round to it again
 */
export type UpstreamFailure = 'not-found' | 'denied' | 'rate-limited' | 'unavailable' | 'invalid' | 'looped'

/** An upstream did not give what it was asked for. The message names the upstream and the reason, and no secret. */
export class UpstreamError extends Error {
  override readonly name = 'UpstreamError'
  readonly failure: UpstreamFailure
  /** Seconds after which it may be asked again, where it says so. */
  readonly retryAfter: number | undefined

  constructor(
    failure: UpstreamFailure,
    message: string,
    options: { readonly retryAfter?: number | undefined; readonly cause?: unknown } = {},
  ) {
    super(message, { cause: options.cause })
    this.failure = failure
    this.retryAfter = options.retryAfter
  }
}

/**
 * Another registry, to read from. Repository names are the upstream's own. Every method rejects with an
 * {@link UpstreamError} and with nothing else; none waits longer than the timeouts allow; none keeps more than
 * its bound in memory.
 */
export interface Upstream {
  /** HEAD of a manifest: what a tag points at now. Falls back to GET where HEAD tells no digest. */
  headManifest(repository: RepositoryName, reference: Tag | Digest): Promise<UpstreamHead>
  /** A manifest of at most 4 MiB whose digest has been checked against its bytes (and `reference`, for a digest). */
  getManifest(repository: RepositoryName, reference: Tag | Digest): Promise<UpstreamManifest>
  /** Opens a blob, from a byte on. `signal` ends the transfer. */
  openBlob(
    repository: RepositoryName,
    digest: Digest,
    offset: number,
    signal?: AbortSignal,
  ): Promise<UpstreamBlob>
  /** Size of a blob in bytes; undefined when the upstream has it but does not say. */
  headBlob(repository: RepositoryName, digest: Digest): Promise<number | undefined>
  /** A page of at most `limit` tags after `after`. */
  listTags(repository: RepositoryName, after: string, limit: number): Promise<UpstreamTags>
  /** All referrers, at most 10,000, from the referrers API or the tag scheme. */
  listReferrers(repository: RepositoryName, subject: Digest): Promise<readonly UpstreamReferrer[]>
  readonly health: UpstreamHealth
  close(): Promise<void>
}
