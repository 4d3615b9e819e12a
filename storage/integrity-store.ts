import type { Digest } from '../src/oci/digest.js'
import type { RepositoryName, Tag } from '../src/oci/reference.js'
import type { CandidatePage } from './collection-store.js'

/** What is wrong with a blob's bytes. */
export type Damage = 'missing' | 'altered'

/** A blob whose bytes are to be looked at. */
export interface BlobToVerify {
  readonly id: number
  readonly digest: Digest
  /** Bytes. */
  readonly size: number
  /** What an earlier look has found. */
  readonly damage: Damage | undefined
}

/** A manifest whose bytes are to be looked at. */
export interface ManifestToVerify {
  readonly id: number
  readonly repository: RepositoryName
  readonly digest: Digest
  /** Bytes that it should have. */
  readonly size: number
  readonly bytes: Uint8Array
}

/** How far a verification has got. */
export interface VerificationPosition {
  readonly phase: 'blobs' | 'manifests'
  /** The last row that was done. */
  readonly position: number
  /** Milliseconds since 1970. */
  readonly startedAt: number
  /** Blobs and bytes that were looked at. */
  readonly blobs: number
  readonly bytes: number
  /** What was found and is still wrong. */
  readonly problems: number
}

/** A tag that leads to something. */
export interface AffectedTag {
  readonly repository: RepositoryName
  readonly tag: Tag
}

/** A manifest that names a blob. */
export interface NamingManifest {
  readonly repository: RepositoryName
  readonly digest: Digest
  /** Whether it was deleted, and is kept so that it can be brought back. */
  readonly isDeleted: boolean
}

/** A repository of a mirror that held a blob. */
export interface MirroredHolder {
  readonly repository: RepositoryName
  readonly mirror: string
}

/** How the server that used the data folder before has ended. */
export interface LastStop {
  /** False after a crash or a power cut, and where nothing is known. */
  readonly isOrderly: boolean
  /** The blobs up to this row were in place at the last orderly stop. */
  readonly lastBlob: number
}

/** Some repositories, or all. */
export type Repositories = readonly RepositoryName[] | 'all'

/**
 * What the verification of stored bytes needs of the index. As with the metadata store, one method is one use case is
 * one transaction, and any of them may throw RegistryError UNAVAILABLE or STORAGE_FULL: then it did not happen.
 */
export interface IntegrityStore {
  /** Makes the caller the one verifier of the data folder, until its process ends. False while there is another. */
  startVerification(): Promise<boolean>
  endVerification(): Promise<void>
  /** Where a verification stopped that did not come to its end. */
  findPosition(): Promise<VerificationPosition | undefined>
  /** Not durable: what is lost is done again. */
  savePosition(position: VerificationPosition): Promise<void>
  /** A verification of everything came to its end: there is no position any more. Not durable either. */
  recordVerification(problems: number, now: number): Promise<void>
  /** When a verification of everything last came to its end, or the index was made; in milliseconds since 1970. */
  verifiedAt(): Promise<number>

  /** Live blobs and their bytes behind this row. */
  countBlobs(after: number, repositories: Repositories): Promise<{ blobs: number; bytes: number }>
  listBlobs(
    after: number,
    limit: number,
    repositories: Repositories,
  ): Promise<CandidatePage<BlobToVerify, number>>
  listManifests(
    after: number,
    limit: number,
    repositories: Repositories,
  ): Promise<CandidatePage<ManifestToVerify, number>>

  /**
   * Keeps uploads and collectors from a blob while its bytes are put aside. The caller is the collector of the folder
   * (see CollectionStore.startCollection). False when the blob has gone, or an upload is about to replace it.
   */
  holdBlob(digest: Digest, holder: string): Promise<boolean>
  releaseBlob(digest: Digest, holder: string): Promise<void>
  /** The blob's bytes are not there any more: from now on it counts as not there, until it is pushed again. */
  noteDamage(digest: Digest, damage: Damage): Promise<void>
  /** The blob's bytes are right after all. */
  clearDamage(digest: Digest): Promise<void>
  /**
   * Takes a blob out of all repositories of mirrors: they fetch it again when somebody asks for it.
   * @returns these repositories
   */
  dropMirrored(digest: Digest): Promise<MirroredHolder[]>

  /**
   * Takes a damaged blob out of the repositories in which no manifest names it, be it one that was deleted: no client may
   * use it there, and who pushes it again brings it back.
   * @returns whether nothing needs it any more
   */
  dropUnneeded(digest: Digest): Promise<boolean>
  /** Manifests that name this blob, or did until they were deleted, at most `limit`. */
  listManifestsOfBlob(digest: Digest, limit: number): Promise<NamingManifest[]>

  /** Tags that lead to manifests which name this blob, at most `limit`. */
  listTagsOfBlob(digest: Digest, limit: number): Promise<AffectedTag[]>
  /** Tags that lead to this manifest, at most `limit`. */
  listTagsOfManifest(id: number, limit: number): Promise<AffectedTag[]>
  /**
   * Looks at every page of the index, in a thread of its own; a quick look does not compare tables with their indexes.
   * @returns what is wrong, a sentence each
   */
  checkIndex(how: 'quick' | 'thorough'): Promise<string[]>

  /** A server begins: from now on its end is not orderly, unless {@link endService} says so. @returns how the last one ended */
  beginService(): Promise<LastStop>
  /** The server has stopped: nothing is under way. */
  endService(): Promise<void>
  /** Live blobs before one row and behind another, the newest first. */
  listNewestBlobs(before: number, after: number, limit: number): Promise<BlobToVerify[]>
}
