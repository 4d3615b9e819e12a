import type { Database } from 'better-sqlite3'
import type { Digest } from '../src/oci/digest.js'
import type { RepositoryName, Tag } from '../src/oci/reference.js'
import { manifestsAbove } from './sqlite-collection-operations.js'
import type { Writer } from './sqlite-writer-client.js'
import type {
  ChangeKind,
  Period,
  Remains,
  RestoreResult,
  TagChange,
  TagFacts,
  TagStore,
} from './tag-store.js'

/** Manifests that are followed upwards from one. */
const mostAbove = 10_000

interface ChangeRow {
  readonly entry: number
  readonly tag: Tag
  readonly at: number
  readonly how: ChangeKind
  readonly user: string | null
  readonly token: string | null
  readonly tokenId: string | null
  readonly digest: Digest | null
  readonly previous: Digest | null
}

interface FactsRow {
  readonly tag: Tag
  readonly digest: Digest
  readonly pushedAt: number
  readonly pulledAt: number
  readonly entry: number | null
  readonly at: number
  readonly how: ChangeKind
  readonly user: string | null
}

type Queries = ReturnType<typeof prepareQueries>

function prepareQueries(db: Database) {
  return {
    history: db.prepare<{ repository: string; tag: string | null; limit: number }, ChangeRow>(
      `SELECT h.id AS entry, h.name AS tag, h.at, h.how, h.user, h.token, h.token_id AS tokenId,
         h.digest, h.previous
       FROM repository r JOIN tag_history h ON h.repository_id = r.id
       WHERE r.name = :repository AND (:tag IS NULL OR h.name = :tag) ORDER BY h.id DESC LIMIT :limit`,
    ),
    stored: db
      .prepare<[string, string], number>(
        'SELECT 1 FROM repository r JOIN manifest m ON m.repository_id = r.id WHERE r.name = ? AND m.digest = ?',
      )
      .pluck(),
    deletedAt: db
      .prepare<[string, string], number>(
        `SELECT d.deleted_at FROM repository r JOIN deleted_manifest d ON d.repository_id = r.id
         WHERE r.name = ? AND d.digest = ?`,
      )
      .pluck(),
    tags: db.prepare<[string, string, number], FactsRow>(
      `SELECT t.name AS tag, m.digest, t.updated_at AS pushedAt,
         max(coalesce(t.pulled_at, 0), coalesce(u.pulled_at, 0)) AS pulledAt, h.id AS entry, h.at, h.how, h.user
       FROM repository r JOIN tag t ON t.repository_id = r.id JOIN manifest m ON m.id = t.manifest_id
       LEFT JOIN manifest_use u ON u.manifest_id = m.id
       LEFT JOIN tag_history h ON h.id = (
         SELECT max(id) FROM tag_history WHERE repository_id = r.id AND name = t.name)
       WHERE r.name = ? AND t.name > ? ORDER BY t.name LIMIT ?`,
    ),
    repositories: db
      .prepare<[string, number], RepositoryName>(
        `SELECT name FROM repository r WHERE name > ? AND mirror IS NULL
         AND EXISTS (SELECT 1 FROM tag WHERE repository_id = r.id) ORDER BY name LIMIT ?`,
      )
      .pluck(),
    manifestId: db
      .prepare<[string, string], number>(
        'SELECT m.id FROM repository r JOIN manifest m ON m.repository_id = r.id WHERE r.name = ? AND m.digest = ?',
      )
      .pluck(),
    tagsAbove: db.prepare<{ id: number; most: number; limit: number }, Pick<TagFacts, 'tag' | 'digest'>>(
      `${manifestsAbove} SELECT t.name AS tag, above.digest FROM above
       JOIN tag t ON t.manifest_id = above.id LIMIT :limit`,
    ),
    running: db.prepare<[], Period>(
      'SELECT began_at AS beganAt, ended_at AS endedAt FROM running_time ORDER BY began_at DESC',
    ),
  }
}

/** See {@link TagStore} for what each method promises. */
export class SqliteTagStore implements TagStore {
  readonly #queries: Queries
  readonly #writer: Writer

  constructor(db: Database, writer: Writer) {
    this.#queries = prepareQueries(db)
    this.#writer = writer
  }

  async #read<T>(query: (queries: Queries) => T): Promise<T> {
    try {
      return query(this.#queries)
    } catch (error) {
      throw this.#writer.failureOf(error)
    }
  }

  listHistory(repository: RepositoryName, tag: Tag | undefined, limit: number): Promise<TagChange[]> {
    return this.#read((queries) =>
      queries.history.all({ repository, tag: tag ?? null, limit }).map(({ token, tokenId, ...row }) => ({
        ...row,
        user: row.user ?? undefined,
        accessToken: token === null || tokenId === null ? undefined : { id: tokenId, name: token },
        digest: row.digest ?? undefined,
        previous: row.previous ?? undefined,
      })),
    )
  }

  findRemains(repository: RepositoryName, digest: Digest): Promise<Remains> {
    return this.#read((queries) => {
      if (queries.stored.get(repository, digest) !== undefined) return { state: 'stored' }
      const deletedAt = queries.deletedAt.get(repository, digest)
      return deletedAt === undefined ? { state: 'gone' } : { state: 'deleted', deletedAt }
    })
  }

  restoreTag(...args: Parameters<TagStore['restoreTag']>): Promise<RestoreResult> {
    return this.#writer.run('restoreTag', ...args)
  }

  listTagFacts(repository: RepositoryName, after: string, limit: number): Promise<TagFacts[]> {
    return this.#read((queries) =>
      queries.tags.all(repository, after, limit).map(({ entry, at, how, user, ...facts }) => ({
        ...facts,
        lastChange: entry === null ? undefined : { entry, at, how, user: user ?? undefined },
      })),
    )
  }

  listTaggedRepositories(after: string, limit: number): Promise<RepositoryName[]> {
    return this.#read((queries) => queries.repositories.all(after, limit))
  }

  listTagsAbove(
    repository: RepositoryName,
    digest: Digest,
    limit: number,
  ): Promise<Pick<TagFacts, 'tag' | 'digest'>[]> {
    return this.#read((queries) => {
      const id = queries.manifestId.get(repository, digest)
      return id === undefined ? [] : queries.tagsAbove.all({ id, most: mostAbove, limit })
    })
  }

  removeTags(...args: Parameters<TagStore['removeTags']>): Promise<Tag[]> {
    return this.#writer.run('removeTags', ...args)
  }

  noteRunning(now: number, gap: number): Promise<void> {
    return this.#writer.run('noteRunning', now, gap)
  }

  listRunning(): Promise<Period[]> {
    return this.#read((queries) => queries.running.all())
  }
}
