import type { Digest } from '../src/oci/digest.js'
import type { RepositoryName, Tag } from '../src/oci/reference.js'

/** How a tag came to change. */
export type ChangeKind = 'push' | 'delete' | 'retention' | 'restore'

/** Who changes a tag. */
export interface Author {
  /** '' is nobody who is known. */
  readonly name: string
  /** The access token that it is done with, if any. */
  readonly accessToken?: { readonly id: string; readonly name: string } | undefined
}

/** One change of a tag. Times are milliseconds since 1970. */
export interface TagChange {
  /** Its number: later changes, of whatever tag, have larger ones. */
  readonly entry: number
  readonly tag: Tag
  readonly at: number
  readonly how: ChangeKind
  /** Who did it, where that is known. */
  readonly user: string | undefined
  /** The access token that it was done with, as it was called then. */
  readonly accessToken: Author['accessToken']
  /** What the tag points at since then; undefined where it was removed. */
  readonly digest: Digest | undefined
  /** What it pointed at before; undefined where it was not there. */
  readonly previous: Digest | undefined
}

/** What is left of a manifest: it is there, it was deleted and can be brought back, or it is gone. */
export type Remains =
  | { readonly state: 'stored' | 'gone' }
  | { readonly state: 'deleted'; readonly deletedAt: number }

/** A tag and what retention judges it by. Times are milliseconds since 1970. */
export interface TagFacts {
  readonly tag: Tag
  readonly digest: Digest
  /** When it was last pushed or restored. */
  readonly pushedAt: number
  /** When it, or its manifest by digest, was last pulled; 0 when that never happened. A minute late at the most. */
  readonly pulledAt: number
  /** The last change of it that is remembered; undefined when none is. */
  readonly lastChange: Pick<TagChange, 'entry' | 'at' | 'how' | 'user'> | undefined
}

/** A tag to bring back. */
export interface Restoration {
  readonly repository: RepositoryName
  readonly tag: Tag
  /** What it shall point at: as before its last change, as after a certain one, or at a certain manifest. */
  readonly to: 'previous' | { readonly entry: number } | { readonly digest: Digest }
  /** Patterns of tags that must not move once they are there (see matchesTag). */
  readonly immutable: readonly string[]
  readonly user: Author | undefined
  readonly now: number
}

/** What became of a tag to restore. */
export type RestoreResult =
  /** `revived` counts manifests that had been deleted and are there again: its own, what it lists, what refers to it. */
  | {
      readonly outcome: 'restored'
      readonly digest: Digest
      readonly previous: Digest | undefined
      readonly revived: number
    }
  /** It points there already, and nothing of that was deleted. */
  | { readonly outcome: 'unchanged'; readonly digest: Digest }
  /** No such repository, or nothing is remembered of the tag. */
  | { readonly outcome: 'unknown' }
  /** The last change made the tag: there was nothing before it. */
  | { readonly outcome: 'new' }
  /** No such entry, or one that removed the tag. */
  | { readonly outcome: 'no-entry' | 'removal' }
  /** The manifest, or a part of it, is not there any more. */
  | { readonly outcome: 'gone'; readonly digest: Digest }
  /** The tag must not move. */
  | { readonly outcome: 'immutable' }
  /** The repository is a mirror's. */
  | { readonly outcome: 'mirrored' }

/** A time for which a server ran, in milliseconds since 1970. */
export interface Period {
  readonly beganAt: number
  readonly endedAt: number
}

/**
 * The history of tags, and what removes and restores them by it. A change of a tag is remembered in the transaction
 * that makes it, but for the repositories of mirrors, whose tags are the upstream's.
 *
 * As with the metadata store, one method is one use case is one transaction, and any of them may throw RegistryError
 * UNAVAILABLE or STORAGE_FULL: then it did not happen.
 */
export interface TagStore {
  /** Changes of one tag, or of all in the repository, newest first. */
  listHistory(repository: RepositoryName, tag: Tag | undefined, limit: number): Promise<TagChange[]>
  findRemains(repository: RepositoryName, digest: Digest): Promise<Remains>
  /** Brings back a tag, with what was deleted of its manifest, of all that this lists, and of what refers to it. */
  restoreTag(restoration: Restoration): Promise<RestoreResult>

  /** Tags in byte order, after this one. */
  listTagFacts(repository: RepositoryName, after: string, limit: number): Promise<TagFacts[]>
  /** Repositories that have tags and are no mirror's, in byte order. */
  listTaggedRepositories(after: string, limit: number): Promise<RepositoryName[]>
  /** Tags from which a manifest can be reached, its own among them, with what they point at. */
  listTagsAbove(
    repository: RepositoryName,
    digest: Digest,
    limit: number,
  ): Promise<Pick<TagFacts, 'tag' | 'digest'>[]>
  /**
   * Removes tags, at most 100, for retention: those that are as they were found, neither pushed nor pulled since,
   * fit no immutable pattern, and are no mirror's. Manifests stay.
   * @returns the tags that were removed
   */
  removeTags(
    repository: RepositoryName,
    tags: readonly TagFacts[],
    change: { readonly immutable: readonly string[]; readonly now: number },
  ): Promise<Tag[]>

  /** Notes that a server runs; not durable. More than `gap` milliseconds after the last note it begins a new period. */
  noteRunning(now: number, gap: number): Promise<void>
  /** When servers ran, as far as that is remembered, newest first. */
  listRunning(): Promise<Period[]>
}
