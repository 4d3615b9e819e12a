import type { Digest } from '../src/oci/digest.js'
import type { RepositoryName } from '../src/oci/reference.js'

/** One page of a walk over everything: what may go, and where the next page begins (undefined at the end). */
export interface CandidatePage<Item, Position> {
  readonly items: readonly Item[]
  readonly next: Position | undefined
}

/** A repository's right to a blob, as a walk finds it and a step removes it. */
export interface LinkKey {
  readonly repositoryId: number
  readonly blobId: number
}

/** What a step did: a step that took too long stops early, and the caller goes on with the rest. */
export interface StepResult<Item> {
  /** How many of the given candidates were looked at, from the first one on. */
  readonly handled: number
  /** What was removed: the other candidates are in use again, or were never garbage. */
  readonly items: readonly Item[]
}

/** A manifest that a collection has removed. */
export interface RemovedManifest {
  readonly repository: RepositoryName
  readonly digest: Digest
}

/** A right that a collection has removed; `size` is the blob's, in bytes. */
export interface RemovedLink {
  readonly repository: RepositoryName
  readonly digest: Digest
  readonly size: number
}

/** A right that may go, with what its removal would be. */
export type IdleLink = LinkKey & RemovedLink

/** A blob on its way out. */
export interface CondemnedBlob {
  readonly digest: Digest
  /** Bytes. */
  readonly size: number
}

/** What one collection has freed. */
export interface CollectionSums {
  readonly blobs: number
  readonly bytes: number
  /** When it ended, milliseconds since 1970. */
  readonly endedAt: number
  /** How long it took. */
  readonly milliseconds: number
}

/** Why one repository keeps a blob. */
export interface LinkFacts {
  readonly repository: RepositoryName
  /** When it was last pushed, mounted or looked at, give or take the slack. */
  readonly leasedAt: number
  /** Manifests of the repository that name it, at most as many as were asked for. */
  readonly namedBy: readonly Digest[]
}

/** What is known of a manifest, for who wants to know why it is kept. */
export interface ManifestFacts {
  readonly repository: RepositoryName
  readonly digest: Digest
  readonly pushedAt: number
  /** When somebody last relied on it; undefined when nobody has since the push. */
  readonly leasedAt: number | undefined
  readonly pulledAt: number | undefined
  /** A tag from which it can be reached, and the manifest that the tag points at. */
  readonly reachedFrom: { readonly tag: string; readonly digest: Digest } | undefined
  /** Indexes that list it and the subject that it refers to, as far as the repository holds them. */
  readonly parents: readonly Digest[]
}

/** What is known of a digest. */
export interface DigestFacts {
  readonly blob:
    | { readonly size: number; readonly isCondemned: boolean; readonly storedAt: number }
    | undefined
  /** Whether an upload is about to become the blob of this digest. */
  readonly isArriving: boolean
  readonly links: readonly LinkFacts[]
  readonly manifests: readonly ManifestFacts[]
}

/**
 * The life of blobs from their last use to their end: absent → live → condemned → absent. The steps are small
 * transactions; each looks again at everything that the decision rests on, since all of it may have changed
 * since the walk. Walks read, page by page, and hold nothing.
 *
 * Moments are milliseconds since 1970. `before` is a moment, too: what somebody relied on at or after it stays.
 * Each method may throw RegistryError UNAVAILABLE or STORAGE_FULL: then it did not happen.
 */
export interface CollectionStore {
  /**
   * Makes the caller the one collector of the data folder, and takes back what collectors have condemned that
   * are dead now. False while another one is at work, in whatever process. It ends with the process.
   */
  startCollection(): Promise<boolean>
  /** Lets others collect, and adds what was done to the sums. */
  endCollection(done: CollectionSums | undefined): Promise<void>
  /** When the index came into being: files that are older belong to another one. */
  indexMadeAt(): Promise<number>

  /** Manifests without a tag on which nobody relied since: by their own row, whatever leads to them. */
  listIdleManifests(after: number, before: number, limit: number): Promise<CandidatePage<number, number>>
  /**
   * Removes manifests that no tag reaches and nobody relies on: through indexes to children, through subjects
   * to referrers. What leads to such a manifest is garbage as well, and goes with it in the same transaction.
   */
  removeManifests(ids: readonly number[], before: number): Promise<StepResult<RemovedManifest>>

  /**
   * Rights to blobs that no manifest of the repository names and whose lease ran out. With `named`, those that
   * manifests name as well: for a look at what would go once those have gone.
   */
  listIdleLinks(
    after: LinkKey | undefined,
    before: number,
    limit: number,
    named?: 'named',
  ): Promise<CandidatePage<IdleLink, LinkKey>>
  removeLinks(links: readonly LinkKey[], before: number): Promise<StepResult<RemovedLink>>
  /** Live blobs without links that came before this moment. */
  listUnlinkedBlobs(
    after: number,
    before: number,
    limit: number,
  ): Promise<CandidatePage<CondemnedBlob, number>>
  /**
   * Condemns blobs that nothing links, to which no upload is finishing, and that came before this moment. It is not
   * durable before {@link syncCondemned} has resolved, and until then no bytes may go.
   */
  condemnBlobs(digests: readonly Digest[], holder: string, before: number): Promise<StepResult<CondemnedBlob>>
  /** Which of these digests have no row: their files, if there are any, belong to nobody. */
  listStrangers(digests: readonly Digest[]): Promise<Digest[]>
  /** Condemns files that have no row and to which no upload is finishing; durable as {@link condemnBlobs} is. */
  condemnFiles(files: readonly CondemnedBlob[], holder: string, now: number): Promise<CondemnedBlob[]>
  /** Takes over what a dead collector has condemned, unless an upload is finishing to it. */
  claimCondemned(holder: string, limit: number): Promise<CondemnedBlob[]>
  /** Makes durable what was condemned, or taken over, until now. */
  syncCondemned(now: number): Promise<void>
  /** The bytes are gone: forgets blobs that this holder has condemned. */
  forgetBlobs(digests: readonly Digest[], holder: string): Promise<void>

  /** What is known of a digest; lists have at most `limit` entries. */
  explainDigest(digest: Digest, limit: number): Promise<DigestFacts>
  /** What {@link removeManifests} would do to one manifest: the manifests that would go, with their ids. */
  previewRemoval(id: number, before: number): Promise<(RemovedManifest & { readonly id: number })[]>
  /** Manifests that name a blob in a repository, at most `limit`. */
  listNamingManifests(link: LinkKey, limit: number): Promise<number[]>
  /** How many repositories link a blob. */
  countLinks(blobId: number): Promise<number>
}
