import type { Algorithm, Digest } from '../src/oci/digest.js'
import type { RepositoryName, Tag } from '../src/oci/reference.js'
import type { NewManifest, PutManifestResult, StoredManifest, Upload } from './metadata-store.js'

/**
 * The name of processes that fetch ahead: what they hold lives as long as they do, beside and without a server (see
 * {@link MirrorStore.startSync}).
 */
export const syncProcess = 'sync'

/** What the names of their holders begin with. */
export const syncHolder = `${syncProcess}:`

/** Owner of the uploads that fills are: no user can have this name. */
export const fillOwner = '/mirror'

/**
 * What a repository is: `local` holds what was pushed here, or what can be restored of it, `mirrored` nothing but what
 * came from an upstream. A repository that holds nothing is `absent`. The first push makes a mirrored one local, with
 * all that it holds, for good.
 */
export type RepositoryKind = 'absent' | 'local' | 'mirrored'

/** A manifest as a mirror has it. Times are milliseconds since 1970. */
export interface MirroredManifest extends StoredManifest {
  /** When the upstream last said that the tag points here; undefined when it never did. */
  readonly checkedAt: number | undefined
  readonly kind: RepositoryKind
}

/** A fill under way: a blob that comes in from an upstream. */
export interface Fill {
  /** Bytes of the whole blob, once the upstream has said it. */
  readonly size: number | undefined
  /** Whether a worker is at it. */
  readonly isHeld: boolean
}

/** A fill to take up. */
export interface NewFill {
  /** The upload that holds its bytes: the same for the same blob of the same repository, on every worker. */
  readonly id: string
  readonly mirror: string
  readonly repository: RepositoryName
  /** Of the blob that it is to become: no collector condemns that while the fill has its turn. */
  readonly digest: Digest
  readonly owner: string
  readonly algorithm: Algorithm
}

/** What is taken of a mirror's budget, or of the disk, and what is about to be. */
export interface MirrorRoom {
  /** Bytes of the distinct blobs that are held. */
  readonly held: number
  /** Fills under way whose size was noted, and the bytes that they have announced. */
  readonly fills: number
  readonly announced: number
  /** Fills under way that are larger than the budget; they are not among the others. */
  readonly largeFills: number
  /** Bytes that fills have stored which nobody is at. */
  readonly paused: number
}

/** What a mirror has done since its beginning. */
export interface MirrorCounts {
  /** Requests answered from here. */
  readonly hits: number
  /** Requests that had to go upstream. */
  readonly misses: number
  /** Bytes of blobs and manifests that came from upstream. */
  readonly bytesFetched: number
  /** Bytes of blobs and manifests that were sent without asking the upstream for them. */
  readonly bytesSaved: number
}

/** How a mirror does, for people. Times are milliseconds since 1970. */
export interface MirrorState extends MirrorCounts {
  readonly name: string
  /** Distinct blobs and their bytes. */
  readonly blobs: number
  readonly bytes: number
  /** Blobs, and their bytes, that made room for others. */
  readonly evictedBlobs: number
  readonly evictedBytes: number
  /** What the processes last learnt of the upstream, as JSON; undefined when none did. */
  readonly health: string | undefined
  readonly healthAt: number | undefined
  /** What the last sync did, as JSON; undefined when there was none. */
  readonly sync: string | undefined
}

/** A blob that a mirror holds. */
export interface MirroredBlob {
  /** With `usedAt`, its place in the order of use. */
  readonly id: number
  readonly digest: Digest
  /** Bytes. */
  readonly size: number
  /** Milliseconds since 1970. */
  readonly usedAt: number
}

/**
 * What mirrors keep beside the manifests, tags and blobs that every repository has: what was fetched from where,
 * when it was last seen to be current and last used.
 *
 * As with the metadata store, one method is one use case is one transaction, and any of them may throw
 * RegistryError UNAVAILABLE or STORAGE_FULL: then it did not happen.
 */
export interface MirrorStore {
  /** A name that this index has, unlike any other's; a copy has the same. */
  findName(): Promise<string>
  findRepositoryKind(repository: RepositoryName): Promise<RepositoryKind>
  /** Manifests of the repository that name this blob, at most `limit`. */
  listNaming(repository: RepositoryName, digest: Digest, limit: number): Promise<readonly StoredManifest[]>
  /** The manifest that a tag points at, with what is known of its being current. */
  findTagged(repository: RepositoryName, tag: Tag): Promise<MirroredManifest | undefined>

  /**
   * Stores what came from upstream as {@link MetadataStore.putManifest} does; its tags count as checked now.
   * `local` when the repository holds what was pushed here: then nothing is stored.
   */
  putMirrored(
    manifest: NewManifest,
    mirror: string,
  ): Promise<PutManifestResult | { readonly outcome: 'local' }>
  /** Notes that the upstream still has the tag at this digest. False when the tag points elsewhere by now. */
  noteTagChecked(repository: RepositoryName, tag: Tag, digest: Digest, now: number): Promise<boolean>

  /**
   * Takes a fill's turn, as {@link MetadataStore.takeTurn} does, and opens the fill when there is none. `local`
   * as above; `condemned` while a collector removes an older copy of the blob.
   */
  takeFill(fill: NewFill, holder: string, now: number): Promise<Upload | 'busy' | 'condemned' | 'local'>
  /** Notes how large the blob will be, for the workers that follow, and the room it takes; undefined takes it back. */
  noteFillSize(id: string, holder: string, size: number | undefined): Promise<void>
  findFill(id: string): Promise<Fill | undefined>
  /**
   * Bytes of a blob that may be lent to the repositories of a mirror: it is stored here, for whomever, and the mirror's
   * own upstream has once delivered all its bytes. Undefined when either is not so: whoever says that he has them
   * does not thereby get to see them.
   */
  findLendable(mirror: string, digest: Digest): Promise<number | undefined>
  /**
   * Links a blob as {@link findLendable} finds it to a repository of the mirror. False when there is none, or when the
   * repository holds what was pushed here.
   */
  linkMirrored(repository: RepositoryName, digest: Digest, mirror: string, now: number): Promise<boolean>

  /**
   * Takes the lease on something that one worker alone shall do. It dies with its holder, as turns do (see
   * {@link MetadataStore.releaseTurns}). False while another holder has it.
   */
  takeLease(key: string, holder: string): Promise<boolean>
  /** Gives it back: now, or where the index cannot be written, as soon as it can. */
  releaseLease(key: string, holder: string): Promise<void>

  /**
   * Begins a sync, of which there is one at a time in a data folder. What it takes in the name {@link syncProcess} is
   * its own until {@link endSync}, or until its process ends, whatever servers do meanwhile; what syncs that died held
   * is given back.
   * @returns false while another sync is at work
   */
  startSync(): Promise<boolean>
  endSync(): Promise<void>
  /** Gives back what syncs that died held. */
  releaseDeadSync(): Promise<void>
  /**
   * Gives each mirror the repositories below its name that another one has filled, with what they hold; nothing in them
   * counts as looked up. What lies below none of the names stays as it is. To be called before anybody is served.
   */
  settleRepositories(mirrors: readonly string[]): Promise<void>
  /** Replaces what is said of a mirror's last sync. Not durable. */
  noteSync(mirror: string, text: string): Promise<void>

  /** Notes that blobs were read, at most 1,000 in one call. Not durable: what is lost only ages a blob. */
  noteUses(mirror: string, digests: readonly Digest[], now: number): Promise<void>
  /**
   * Adds to a mirror's counts and, unless somebody has said something newer, to what is known of its health: members
   * of the JSON object take the place of those of that name, and null removes them. Not durable.
   */
  noteWork(
    mirror: string,
    counts: MirrorCounts,
    health: { readonly text: string; readonly at: number } | undefined,
  ): Promise<void>
  /** Every mirror that ever held or did something, by name. */
  listStates(): Promise<readonly MirrorState[]>
  /** Bytes of the distinct blobs that a mirror holds. */
  usedBytes(mirror: string): Promise<number>
  /** What a mirror takes, or all together, one fill left out: all of it seen at one moment. */
  findRoom(mirror: string | undefined, exceptFill: string, budget?: number): Promise<MirrorRoom>
  /** The mirror's blobs that were used longest ago; those after one of them, if that is given, though it has gone. */
  listLeastUsed(
    mirror: string,
    limit: number,
    after?: Pick<MirroredBlob, 'id' | 'usedAt'>,
  ): Promise<readonly MirroredBlob[]>
  /**
   * Takes these blobs out of every repository of the mirror. What nothing links then goes with the next
   * collection; what was pushed, or belongs to another mirror, stays.
   * @returns how many were taken out
   */
  evict(mirror: string, digests: readonly Digest[]): Promise<number>
}
