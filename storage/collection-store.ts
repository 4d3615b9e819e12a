import type { Digest } from '../src/oci/digest.js'
import type { RepositoryName } from '../src/oci/reference.js'

/** One page of a walk over everything: what may go, and where the next page begins (undefined at the end). */
export interface CandidatePage<Item, Position> {
  readonly items: readonly Item[]
  readonly next: Position | undefined
}

/** Two moments, in milliseconds since 1970: what they rule out stays. */
export interface Moments {
  /** What somebody relied on at this moment or later stays. */
  readonly before: number
  /** What was deleted at this moment or later, or lost a tag then, can be restored: it stays, with what it needs. */
  readonly undo: number
}

/** A manifest that may go, as a walk finds it by its own row. */
export interface IdleManifest {
  readonly id: number
  readonly repository: RepositoryName
  /** Whether the repository is a mirror's. */
  readonly isMirrored: boolean
  /** When somebody last relied on it or pulled it. */
  readonly usedAt: number
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
  /** One of the deleted manifests of the repository that name it: the one that was deleted last. */
  readonly namedByDeleted: DeletedFacts | undefined
}

/** What is known of a deleted manifest, which can be brought back for a while. */
export interface DeletedFacts {
  readonly repository: RepositoryName
  readonly digest: Digest
  readonly deletedAt: number
  /** The tag that pointed at it last, if it is remembered. */
  readonly tag: string | undefined
}

/** A tag that pointed at a manifest until some moment. */
export interface FormerTag {
  readonly tag: string
  readonly digest: Digest
  readonly until: number
}

/** What is known of a manifest, for who wants to know why it is kept. */
export interface ManifestFacts {
  readonly repository: RepositoryName
  readonly isMirrored: boolean
  readonly digest: Digest
  readonly pushedAt: number
  /** When somebody last relied on it; undefined when nobody has since the push. */
  readonly leasedAt: number | undefined
  readonly pulledAt: number | undefined
  /** A tag from which it can be reached, and the manifest that the tag points at. */
  readonly reachedFrom: { readonly tag: string; readonly digest: Digest } | undefined
  /** The tag from which it could last be reached, where it is remembered, and the manifest that the tag pointed at. */
  readonly former: FormerTag | undefined
  /** A deleted manifest that lists it, or that it refers to: the one that was deleted last. */
  readonly below: DeletedFacts | undefined
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
  readonly deleted: readonly DeletedFacts[]
}

/**
 * The life of blobs from their last use to their end: absent → live → condemned → absent. The steps are small
 * transactions; each looks again at everything that the decision rests on, since all of it may have changed
 * since the walk. Walks read, page by page, and hold nothing.
 *
 * Times are milliseconds since 1970.
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

  /**
   * Forgets at most `limit` deleted manifests from before the moment `undo`, and as many changes of tags from before
   * `history`. @returns how many
   */
  forgetOld(moments: { readonly undo: number; readonly history: number }, limit: number): Promise<number>

  /**
   * Removes what was prepared of a manifest that never came, if its process died.
   * @returns whether there may be more
   */
  forgetDraft(now: number): Promise<boolean>
  /**
   * Removes the repositories that hold nothing: no blob, no manifest, nothing that can be restored, no history and no
   * upload. Looks at `limit` of them. @returns where to go on, undefined at the end
   */
  forgetRepositories(after: number, limit: number): Promise<number | undefined>
  /** Repositories in which something was deleted that can be brought back, or is on the disk still: by name. */
  listDeletedIn(after: string, limit: number): Promise<RepositoryName[]>
  /**
   * Forgets at most `limit` deleted manifests of a repository, whenever they were deleted, with its rights to what only
   * they named unless somebody relied on that since, and as many changes of tags that are not there any more.
   */
  forgetDeleted(
    repository: RepositoryName,
    limit: number,
  ): Promise<{ readonly manifests: number; readonly changes: number }>
  /** Blobs that the repository has no right to any more and that are on the disk on its account, after this one. */
  listWaiting(
    repository: RepositoryName,
    after: number,
    limit: number,
  ): Promise<(CondemnedBlob & { readonly id: number })[]>

  /** Manifests without a tag on which nobody relied since: by their own row, whatever leads to them. */
  listIdleManifests(
    after: number,
    before: number,
    limit: number,
  ): Promise<CandidatePage<IdleManifest, number>>
  /**
   * Removes manifests that no tag reaches, or reached lately, and nobody relies on: through indexes to children,
   * through subjects to referrers. What leads to such a manifest is garbage as well, and goes with it in the same
   * transaction.
   */
  removeManifests(ids: readonly number[], moments: Moments): Promise<StepResult<RemovedManifest>>

  /**
   * Rights to blobs that no manifest of the repository names and whose lease ran out. With `named`, those that
   * manifests name as well: for a look at what would go once those have gone.
   */
  listIdleLinks(
    after: LinkKey | undefined,
    moments: Moments,
    limit: number,
    named?: 'named',
  ): Promise<CandidatePage<IdleLink, LinkKey>>
  removeLinks(links: readonly LinkKey[], moments: Moments): Promise<StepResult<RemovedLink>>
  /** Live blobs without links that came before, and that nothing that can be restored needs. */
  listUnlinkedBlobs(
    after: number,
    moments: Moments,
    limit: number,
  ): Promise<CandidatePage<CondemnedBlob, number>>
  /**
   * Condemns blobs that nothing links, that nothing that can be restored needs, to which no upload is finishing, and
   * that came before. It is not durable before {@link syncCondemned} has resolved, and until then no bytes may go.
   */
  condemnBlobs(
    digests: readonly Digest[],
    holder: string,
    moments: Moments,
  ): Promise<StepResult<CondemnedBlob>>
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
  previewRemoval(id: number, moments: Moments): Promise<(RemovedManifest & { readonly id: number })[]>
  /** Manifests that name a blob in a repository, at most `limit`. */
  listNamingManifests(link: LinkKey, limit: number): Promise<number[]>
  /** How many repositories link a blob. */
  countLinks(blobId: number): Promise<number>
}
