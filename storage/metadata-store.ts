import type { Algorithm, Digest } from '../src/oci/digest.js'
import type { Child } from '../src/oci/manifest.js'
import type { Reference, RepositoryName, Tag } from '../src/oci/reference.js'
import type { QuotaExcess } from './quota-store.js'
import type { Author } from './tag-store.js'

/** An upload session. Times are milliseconds since 1970. */
export interface Upload {
  readonly id: string
  readonly repository: RepositoryName
  /** Name of the identity that opened it: '' is anonymous. */
  readonly owner: string
  readonly algorithm: Algorithm
  /** Bytes stored and acknowledged. */
  readonly offset: number
  /** Digest of those bytes in `algorithm`, where it is known. */
  readonly digest: Digest | undefined
}

/** How asking for an upload's turn ended. `condemned`: a collector removes the blob of that digest, ask again. */
export type TurnResult = Upload | 'busy' | 'unknown' | 'condemned'

/** Somebody pulled a manifest, or looked whether it is there. */
export interface Pull {
  readonly repository: RepositoryName
  readonly digest: Digest
  /** The tag that led to it, where there was one. */
  readonly tag: Tag | undefined
  /** Milliseconds since 1970. */
  readonly at: number
}

/** A manifest's head: all that HEAD tells. */
export interface ManifestHead {
  readonly digest: Digest
  readonly mediaType: string
  /** Bytes. */
  readonly size: number
}

/** A stored manifest with its bytes, exactly as they were pushed. */
export interface StoredManifest extends ManifestHead {
  readonly bytes: Uint8Array
}

/** A manifest to store, already parsed and checked by itself. */
export interface NewManifest {
  readonly repository: RepositoryName
  readonly digest: Digest
  readonly mediaType: string
  readonly bytes: Uint8Array
  readonly children: readonly Child[]
  /** More children: JSON arrays of them, each of a size that is written in one go (see PackedManifest). */
  readonly packed?: readonly string[] | undefined
  readonly subject: Digest | undefined
  readonly artifactType: string | undefined
  /** A JSON object of strings. */
  readonly annotations: string | undefined
  /** Tags that shall point at it afterwards. */
  readonly tags: readonly Tag[]
  /** Whether children that the repository does not hold are accepted. */
  readonly sparse: boolean
  /** Patterns of tags that must not move once they are there (see matchesTag). */
  readonly immutable: readonly string[]
  /** Only store when the tags together, or without any the manifest itself, are in this state now. */
  readonly condition: Condition | undefined
  /** Who pushes it, for the history of its tags; undefined where that is unknown. */
  readonly user?: Author | undefined
  readonly now: number
}

/**
 * A conditional write: `match` holds when each tag that is there points at one of these digests (or at any), and one is
 * there; `none-match` when no tag points at any of these (or none is there).
 */
export interface Condition {
  readonly mode: 'match' | 'none-match'
  readonly digests: readonly string[] | 'any'
}

/** What became of a manifest to store. */
export type PutManifestResult =
  | { readonly outcome: 'stored' }
  | { readonly outcome: 'condition-failed' }
  /** It would exceed this quota. */
  | { readonly outcome: 'over-quota'; readonly excess: QuotaExcess }
  /** A tag that must not move points at another manifest. */
  | { readonly outcome: 'immutable'; readonly tag: Tag }
  /** It is there under another type, which something depends on: a tag that must not move, or a referrer. */
  | { readonly outcome: 'retyped'; readonly mediaType: string; readonly for: Tag | 'referrer' }
  /** Required children that the repository does not hold. */
  | { readonly outcome: 'missing'; readonly digests: readonly Digest[] }
  /** A child whose stored size is another than the manifest says. */
  | { readonly outcome: 'wrong-size'; readonly digest: Digest; readonly size: number }

/** What became of something to delete; `immutable` names the tag in the way. */
export type DeleteResult =
  | { readonly outcome: 'deleted' }
  | { readonly outcome: 'unknown' }
  | { readonly outcome: 'immutable'; readonly tag: Tag }

/** Somebody deletes a tag or a manifest. */
export interface Deletion {
  /** Patterns of tags that must not go. */
  readonly immutable: readonly string[]
  /** Who does it, for the history of the tags; undefined where that is unknown. */
  readonly user?: Author | undefined
  /** Milliseconds since 1970. */
  readonly now: number
}

/** One line of a referrers list. */
export interface Referrer extends ManifestHead {
  /** Place in the list, for paging. */
  readonly position: number
  readonly artifactType: string | undefined
  /** The text of a JSON object of strings, in UTF-8. */
  readonly annotations: Uint8Array | undefined
}

/** What one reading of a referrers list may have at the most. */
export interface ReferrerLimits {
  readonly count: number
  /** Bytes of annotations; a single one may have more. */
  readonly bytes: number
}

/** Referrers in the list's order, and whether more follow. */
export interface ReferrerPage {
  readonly referrers: readonly Referrer[]
  readonly more: boolean
}

/** A page of names in byte order, and whether more follow. */
export interface Page {
  readonly names: readonly string[]
  readonly more: boolean
}

/** A session to open. */
export type NewUpload = Pick<Upload, 'id' | 'repository' | 'owner' | 'algorithm'> & {
  /** Whose sessions are counted together; '' or nothing for those that are not. */
  readonly source?: string
}

/** Whether a session was opened: false when its repository has too many, `source-full` when its source has. */
export type StartResult = boolean | 'source-full' | QuotaExcess

/** An open session, for people. */
export interface OpenUpload {
  readonly id: string
  readonly repository: RepositoryName
  /** Who pushes it; '' for nobody who is known. */
  readonly owner: string
  /** Whose sessions it is counted with (see NewUpload); '' for what a mirror fetches. */
  readonly source: string
  /** Bytes that are stored. */
  readonly offset: number
  /** Milliseconds since 1970. */
  readonly startedAt: number
  readonly usedAt: number
  /** Whether a request is writing to it. */
  readonly isBusy: boolean
}

/** Totals for the metrics. */
export interface Totals {
  readonly blobs: number
  readonly blobBytes: number
  readonly openUploads: number
  /** Bytes of the metadata on disk. */
  readonly metadataBytes: number
  /** Collections that have ended, and what they have removed together. */
  readonly collections: number
  readonly collectedBlobs: number
  readonly collectedBytes: number
  /** When the last one ended (seconds since 1970) and how many seconds it took; 0 when there was none. */
  readonly collectedAt: number
  readonly collectionSeconds: number
  /** Blobs whose bytes are lost. */
  readonly damagedBlobs: number
  /** When a verification of everything last ended (seconds since 1970), 0 when none has, and what it left wrong. */
  readonly verifiedAt: number
  readonly verificationProblems: number
}

/**
 * Names and relations: repositories, links to blobs, manifests with their bytes, tags, upload sessions.
 *
 * One method is one use case is one transaction: it happens whole or not at all, and what it resolved is
 * durable (only the opening, the turn and the removal of an upload, leases and pulls are not: nothing is lost with them). Every decision that
 * two servers could take at once is taken inside one of these methods.
 *
 * Each method may throw RegistryError UNAVAILABLE (locked for too long, disk failing) or STORAGE_FULL: then it
 * did not happen.
 */
export interface MetadataStore {
  // Blobs

  /** Size in bytes of a blob that the repository links; undefined when it does not, or when the blob is damaged. */
  findBlob(repository: RepositoryName, digest: Digest): Promise<number | undefined>
  /**
   * The same for whoever relies on the blob from now on: its lease is renewed when it is older than `slack`
   * milliseconds, so that it ends at the earliest that much too early. In the index before it resolves, though
   * not synced: a power cut may take a renewal back.
   */
  leaseBlob(
    repository: RepositoryName,
    digest: Digest,
    now: number,
    slack: number,
  ): Promise<number | undefined>
  /** The same for whoever pushes it: what a mirror has filled is its owner's from then on, or a quota is in the way. */
  leaseOwnBlob(
    repository: RepositoryName,
    digest: Digest,
    now: number,
    slack: number,
  ): Promise<number | undefined | QuotaExcess>
  /** Whether the repository links this blob, and its bytes are known to be missing or altered. */
  isBlobDamaged(repository: RepositoryName, digest: Digest): Promise<boolean>
  /** Repositories that link the blob, at most `limit`; none when it is damaged. */
  listBlobRepositories(digest: Digest, limit: number): Promise<RepositoryName[]>
  /**
   * Gives `repository` the right to a blob that `from` links. False when `from` does not (any more); a quota when that
   * would exceed it.
   */
  mountBlob(
    repository: RepositoryName,
    digest: Digest,
    from: RepositoryName,
    now: number,
  ): Promise<boolean | QuotaExcess>
  /** Takes the repository's right to a blob away, unless a manifest of the repository needs it. */
  unlinkBlob(repository: RepositoryName, digest: Digest): Promise<'unlinked' | 'unknown' | 'in-use'>

  // Upload sessions

  /**
   * Opens a session, unless the repository has `limit` open ones, its source has `ofSource` in all repositories, or a
   * quota is used up: then gives that.
   */
  startUpload(upload: NewUpload, limit: number, now: number, ofSource?: number): Promise<StartResult>
  /**
   * Ends the session that nobody used for longest, of a source or, in a repository, of the source that has most there:
   * if there is one that nobody used since `before` or is writing to.
   * @returns its id; its bytes are the caller's to remove
   */
  endIdleUpload(
    by: { readonly source: string } | { readonly repository: RepositoryName },
    before: number,
  ): Promise<string | undefined>
  /** Open sessions behind this id, in the order of their ids. */
  listUploads(after: string, limit: number): Promise<OpenUpload[]>
  /** Ends a session, whoever is writing to it: that one gets an error. @returns false when there is none */
  cancelUpload(id: string): Promise<boolean>
  findUpload(id: string): Promise<Upload | undefined>
  /**
   * Takes the upload's turn: until it is given back nobody else appends to it, on any worker. The turn dies
   * with its holder (see {@link releaseTurns}), never by the clock. While it lasts no collector condemns the
   * blob of the digest `finishing`, which the upload is to become.
   */
  takeTurn(id: string, holder: string, finishing?: Digest): Promise<TurnResult>
  /** Records how far an upload got, and gives the turn back. */
  saveProgress(
    id: string,
    holder: string,
    progress: { readonly offset: number; readonly digest: Digest | undefined },
    now: number,
  ): Promise<boolean>
  /** Gives the turn back, with nothing changed: now, or where the index cannot be written, as soon as it can. */
  releaseTurn(id: string, holder: string): Promise<void>
  /**
   * Gives back every turn and lease whose holder begins with this text: those holders are dead. Those of syncs have a
   * life of their own (see `MirrorStore.releaseDeadSync`).
   */
  releaseTurns(holderPrefix: string): Promise<void>
  /**
   * The bytes are a blob now: records it, links it to the repository and ends the session. The turn must have
   * been taken with its digest.
   */
  finishUpload(
    id: string,
    holder: string,
    blob: { readonly digest: Digest; readonly size: number },
    now: number,
  ): Promise<boolean>
  /** Ends a session. False when there is none, or when somebody else has its turn. */
  removeUpload(id: string, holder: string | undefined): Promise<boolean>
  /** Ends sessions that were last used before this time and whose turn is free; returns their ids. */
  expireUploads(before: number, limit: number): Promise<string[]>

  // Manifests and tags

  hasRepository(repository: RepositoryName): Promise<boolean>
  findManifest(repository: RepositoryName, reference: Reference): Promise<StoredManifest | undefined>
  findManifestHead(repository: RepositoryName, reference: Reference): Promise<ManifestHead | undefined>
  /**
   * Renews the lease of a manifest on which somebody relies from now on, as {@link leaseBlob} does. False when
   * the repository does not have it (any more).
   */
  leaseManifest(repository: RepositoryName, digest: Digest, now: number, slack: number): Promise<boolean>
  /** Records pulls, many at once; not synced, and what is not there any more is left out. */
  recordPulls(pulls: readonly Pull[]): Promise<void>
  putManifest(manifest: NewManifest): Promise<PutManifestResult>
  /** Removes one tag, unless it fits one of the immutable patterns. */
  deleteTag(repository: RepositoryName, tag: Tag, deletion: Deletion): Promise<DeleteResult>
  /**
   * Removes a manifest and every tag that points at it, unless one of them fits an immutable pattern. Nobody sees it
   * any more, but it can be brought back for a while (see TagStore.restoreTag), unless it is a mirror's.
   */
  deleteManifest(repository: RepositoryName, digest: Digest, deletion: Deletion): Promise<DeleteResult>

  // Lists: `after` is exclusive, the order is by bytes

  listTags(repository: RepositoryName, after: string, limit: number): Promise<Page>
  /** Repositories that hold a manifest and whose name begins with the prefix. */
  listRepositories(prefix: string, after: string, limit: number): Promise<Page>
  /**
   * Repositories that hold a manifest, begin with one of the prefixes, of which none covers another, and hold the text
   * in their name: an equal name first, then names that begin with it, then others.
   */
  searchRepositories(prefixes: readonly string[], text: string, limit: number): Promise<RepositoryName[]>
  /**
   * Manifests of the repository whose subject is this one, oldest first, up to the limits. What is beyond them is
   * not read.
   */
  listReferrers(
    repository: RepositoryName,
    subject: Digest,
    artifactTypes: readonly string[],
    after: number,
    most: ReferrerLimits,
  ): Promise<ReferrerPage>

  // Operation

  totals(): Promise<Totals>
  /** Proves that the store can be read and written. */
  check(): Promise<void>
  close(): Promise<void>
}
