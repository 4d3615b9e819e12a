import { dirname, join } from 'node:path'
import type { Database } from 'better-sqlite3'
import type { Digest } from '../src/oci/digest.js'
import type { CandidatePage } from './collection-store.js'
import { toStorageError } from './errors.js'
import type {
  AffectedTag,
  BlobToVerify,
  Damage,
  IntegrityStore,
  LastStop,
  ManifestToVerify,
  MirroredHolder,
  NamingManifest,
  Repositories,
  VerificationPosition,
} from './integrity-store.js'
import { runIndexTask } from './sqlite-index-task.js'
import { type Lock, LockedError, lockFile } from './sqlite-lock.js'
import type { Writer } from './sqlite-writer-client.js'

type Window = { after: number; limit: number; repositories: string }
type BlobRow = Omit<BlobToVerify, 'damage'> & { damage: Damage | null }

/** What leads up to the manifests that come first; to be continued with a SELECT. */
const upwards = `UNION
  SELECT m.id, m.repository_id, m.digest FROM above
    JOIN manifest_child c ON c.repository_id = above.repository_id AND c.digest = above.digest
    JOIN manifest m ON m.id = c.manifest_id
)
SELECT DISTINCT r.name AS repository, t.name AS tag FROM above
  JOIN tag t ON t.manifest_id = above.id JOIN repository r ON r.id = t.repository_id LIMIT ?`

const inRepositories = 'repository_id IN (SELECT id FROM repository WHERE name IN (SELECT value FROM names))'

function prepareQueries(db: Database) {
  const named = 'WITH names AS (SELECT value FROM json_each(:repositories))'
  const linked = `EXISTS (SELECT 1 FROM blob_link WHERE blob_id = blob.id AND ${inRepositories})`
  const blobs = (condition: string) =>
    db.prepare<Window, BlobRow>(
      `${named} SELECT id, digest, size, damage FROM blob
       WHERE id > :after AND state = 'live' AND ${condition} ORDER BY id LIMIT :limit`,
    )
  const sums = (condition: string) =>
    db.prepare<{ after: number; repositories: string }, { blobs: number; bytes: number }>(
      `${named} SELECT count(*) AS blobs, coalesce(sum(size), 0) AS bytes FROM blob
       WHERE id > :after AND state = 'live' AND ${condition}`,
    )
  const manifests = (condition: string) =>
    db.prepare<Window, ManifestToVerify>(
      `${named} SELECT m.id, r.name AS repository, m.digest, m.size, m.bytes FROM manifest m
       JOIN repository r ON r.id = m.repository_id
       WHERE m.id > :after AND ${condition} ORDER BY m.id LIMIT :limit`,
    )
  return {
    all: { blobs: blobs('TRUE'), sums: sums('TRUE'), manifests: manifests('TRUE') },
    some: {
      blobs: blobs(linked),
      sums: sums(linked),
      manifests: manifests('r.name IN (SELECT value FROM names)'),
    },
    position: db.prepare<[], VerificationPosition>(
      'SELECT phase, position, started_at AS startedAt, blobs, bytes, problems FROM verification',
    ),
    verifiedAt: db
      .prepare<[], number>('SELECT max(index_made_at, coalesce(verified_at, 0)) FROM collection, service')
      .pluck(),
    newestBlobs: db.prepare<[number, number, number], BlobRow>(
      `SELECT id, digest, size, damage FROM blob
       WHERE id < ? AND id > ? AND state = 'live' ORDER BY id DESC LIMIT ?`,
    ),
    tagsOfBlob: db.prepare<[string, number], AffectedTag>(
      `WITH RECURSIVE above (id, repository_id, digest) AS (
         SELECT m.id, m.repository_id, m.digest FROM blob b JOIN blob_link l ON l.blob_id = b.id
           JOIN manifest_child c ON c.repository_id = l.repository_id AND c.digest = b.digest
           JOIN manifest m ON m.id = c.manifest_id WHERE b.digest = ?
         ${upwards}`,
    ),
    manifestsOfBlob: db.prepare<
      { digest: string; limit: number },
      Omit<NamingManifest, 'isDeleted'> & { isDeleted: number }
    >(
      `SELECT r.name AS repository, m.digest, 0 AS isDeleted FROM blob b JOIN blob_link l ON l.blob_id = b.id
         JOIN manifest_child c ON c.repository_id = l.repository_id AND c.digest = b.digest
         JOIN manifest m ON m.id = c.manifest_id JOIN repository r ON r.id = m.repository_id WHERE b.digest = :digest
       UNION
       SELECT r.name, m.digest, 1 FROM deleted_child c
         JOIN deleted_manifest m ON m.id = c.deleted_id JOIN repository r ON r.id = m.repository_id
         WHERE c.digest = :digest
       ORDER BY isDeleted LIMIT :limit`,
    ),
    tagsOfManifest: db.prepare<[number, number], AffectedTag>(
      `WITH RECURSIVE above (id, repository_id, digest) AS (
         SELECT id, repository_id, digest FROM manifest WHERE id = ?
         ${upwards}`,
    ),
  }
}

/** See {@link IntegrityStore} for what each method promises. */
export class SqliteIntegrityStore implements IntegrityStore {
  readonly #queries: ReturnType<typeof prepareQueries>
  readonly #writer: Writer
  #lock: Lock | undefined

  constructor(db: Database, writer: Writer) {
    this.#queries = prepareQueries(db)
    this.#writer = writer
  }

  async #read<T>(query: (queries: ReturnType<typeof prepareQueries>) => T): Promise<T> {
    try {
      return query(this.#queries)
    } catch (error) {
      throw this.#writer.failureOf(error)
    }
  }

  async startVerification(): Promise<boolean> {
    if (this.#lock !== undefined) return false
    try {
      this.#lock = lockFile(join(dirname(this.#writer.path), 'verifier.lock'), 'exclusive', 0)
      return true
    } catch (error) {
      if (error instanceof LockedError) return false
      throw toStorageError(error)
    }
  }

  async endVerification(): Promise<void> {
    this.#lock?.release()
    this.#lock = undefined
  }

  findPosition(): Promise<VerificationPosition | undefined> {
    return this.#read((queries) => queries.position.get())
  }

  savePosition(position: VerificationPosition): Promise<void> {
    return this.#writer.run('savePosition', position)
  }

  recordVerification(problems: number, now: number): Promise<void> {
    return this.#writer.run('recordVerification', problems, now)
  }

  async verifiedAt(): Promise<number> {
    return (await this.#read((queries) => queries.verifiedAt.get())) ?? 0
  }

  countBlobs(after: number, repositories: Repositories): Promise<{ blobs: number; bytes: number }> {
    return this.#read(({ all, some }) => {
      const { sums } = repositories === 'all' ? all : some
      return sums.get({ after, repositories: textOf(repositories) }) ?? { blobs: 0, bytes: 0 }
    })
  }

  listBlobs(
    after: number,
    limit: number,
    repositories: Repositories,
  ): Promise<CandidatePage<BlobToVerify, number>> {
    return this.#read(({ all, some }) => {
      const { blobs } = repositories === 'all' ? all : some
      const rows = blobs.all({ after, limit, repositories: textOf(repositories) })
      return toPage(rows.map(toBlob), limit)
    })
  }

  listManifests(
    after: number,
    limit: number,
    repositories: Repositories,
  ): Promise<CandidatePage<ManifestToVerify, number>> {
    return this.#read(({ all, some }) => {
      const { manifests } = repositories === 'all' ? all : some
      return toPage(manifests.all({ after, limit, repositories: textOf(repositories) }), limit)
    })
  }

  holdBlob(digest: Digest, holder: string): Promise<boolean> {
    return this.#writer.run('holdBlob', digest, holder)
  }

  releaseBlob(digest: Digest, holder: string): Promise<void> {
    return this.#writer.run('releaseBlob', digest, holder)
  }

  noteDamage(digest: Digest, damage: Damage): Promise<void> {
    return this.#writer.run('noteDamage', digest, damage)
  }

  clearDamage(digest: Digest): Promise<void> {
    return this.#writer.run('noteDamage', digest, undefined)
  }

  dropMirrored(digest: Digest): Promise<MirroredHolder[]> {
    return this.#writer.run('dropMirrored', digest)
  }

  dropUnneeded(digest: Digest): Promise<boolean> {
    return this.#writer.run('dropUnneeded', digest)
  }

  listManifestsOfBlob(digest: Digest, limit: number): Promise<NamingManifest[]> {
    return this.#read((queries) =>
      queries.manifestsOfBlob.all({ digest, limit }).map(({ repository, digest: own, isDeleted }) => ({
        repository,
        digest: own,
        isDeleted: isDeleted === 1,
      })),
    )
  }

  listTagsOfBlob(digest: Digest, limit: number): Promise<AffectedTag[]> {
    return this.#read((queries) => queries.tagsOfBlob.all(digest, limit))
  }

  listTagsOfManifest(id: number, limit: number): Promise<AffectedTag[]> {
    return this.#read((queries) => queries.tagsOfManifest.all(id, limit))
  }

  checkIndex(how: 'quick' | 'thorough'): Promise<string[]> {
    return runIndexTask({ task: 'check', how, path: this.#writer.path })
  }

  beginService(): Promise<LastStop> {
    return this.#writer.run('beginService')
  }

  endService(): Promise<void> {
    return this.#writer.run('endService')
  }

  listNewestBlobs(before: number, after: number, limit: number): Promise<BlobToVerify[]> {
    return this.#read((queries) => queries.newestBlobs.all(before, after, limit).map(toBlob))
  }
}

function toBlob(row: BlobRow): BlobToVerify {
  return { ...row, damage: row.damage ?? undefined }
}

function textOf(repositories: Repositories): string {
  return JSON.stringify(repositories === 'all' ? [] : repositories)
}

function toPage<Item extends { readonly id: number }>(
  items: readonly Item[],
  limit: number,
): CandidatePage<Item, number> {
  return { items, next: items.length < limit ? undefined : items.at(-1)?.id }
}
