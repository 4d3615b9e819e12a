import type { Database } from 'better-sqlite3'
import type { Digest } from '../src/oci/digest.js'
import type { RepositoryName } from '../src/oci/reference.js'
import type { DeletedFacts, DigestFacts, FormerTag, LinkFacts, ManifestFacts } from './collection-store.js'
import { manifestsAbove } from './sqlite-collection-operations.js'

/** Manifests that are followed upwards when somebody asks why one is kept. */
const mostExplained = 10_000

interface ManifestRow {
  readonly id: number
  readonly repositoryId: number
  readonly repository: RepositoryName
  readonly mirror: string | null
  readonly digest: Digest
  readonly subject: string | null
  readonly pushedAt: number
  readonly leasedAt: number | null
  readonly pulledAt: number | null
}

type DeletedRow = Omit<DeletedFacts, 'tag'> & { readonly tag: string | null }
type Queries = ReturnType<typeof prepareFacts>

/** What tells of a deleted manifest `d` in its repository `r`. */
const deletedColumns = `r.name AS repository, d.digest, d.deleted_at AS deletedAt,
  (SELECT name FROM tag_history h WHERE h.repository_id = d.repository_id AND h.previous = d.digest
   ORDER BY h.at DESC LIMIT 1) AS tag`

/** The queries behind {@link explainDigest}. */
export function prepareFacts(db: Database) {
  return {
    blob: db.prepare<[string], { size: number; state: string; storedAt: number }>(
      'SELECT size, state, created_at AS storedAt FROM blob WHERE digest = ?',
    ),
    arriving: db.prepare<[string], number>('SELECT 1 FROM upload WHERE finishing = ? LIMIT 1').pluck(),
    links: db.prepare<
      [string, number],
      { repository: RepositoryName; repositoryId: number; leasedAt: number }
    >(
      `SELECT r.name AS repository, r.id AS repositoryId, l.linked_at AS leasedAt FROM blob b
       JOIN blob_link l ON l.blob_id = b.id JOIN repository r ON r.id = l.repository_id
       WHERE b.digest = ? LIMIT ?`,
    ),
    manifests: db.prepare<[string, number], ManifestRow>(
      `SELECT m.id, m.repository_id AS repositoryId, r.name AS repository, r.mirror, m.digest, m.subject,
         m.created_at AS pushedAt, u.leased_at AS leasedAt, u.pulled_at AS pulledAt
       FROM repository r JOIN manifest m ON m.repository_id = r.id
       LEFT JOIN manifest_use u ON u.manifest_id = m.id WHERE m.digest = ? LIMIT ?`,
    ),
    parents: db
      .prepare<{ repository: number; digest: string; subject: string | null; limit: number }, Digest>(
        `SELECT m.digest FROM manifest_child c JOIN manifest m ON m.id = c.manifest_id
         WHERE c.repository_id = :repository AND c.digest = :digest
         UNION
         SELECT digest FROM manifest WHERE repository_id = :repository AND digest = :subject LIMIT :limit`,
      )
      .pluck(),
    reachedFrom: db.prepare<{ id: number; most: number }, { tag: string; digest: Digest }>(
      `${manifestsAbove} SELECT t.name AS tag, above.digest FROM above
       JOIN tag t ON t.manifest_id = above.id LIMIT 1`,
    ),
    former: db.prepare<{ id: number; most: number }, FormerTag>(
      `${manifestsAbove} SELECT h.name AS tag, above.digest, h.at AS until FROM above
       JOIN tag_history h ON h.repository_id = above.repository_id AND h.previous = above.digest
       ORDER BY h.at DESC LIMIT 1`,
    ),
    deleted: db.prepare<[string, number], DeletedRow>(
      `SELECT ${deletedColumns} FROM repository r JOIN deleted_manifest d ON d.repository_id = r.id
       WHERE d.digest = ? LIMIT ?`,
    ),
    deletedAbove: db.prepare<{ repository: number; digest: string; subject: string | null }, DeletedRow>(
      `SELECT ${deletedColumns} FROM deleted_manifest d JOIN repository r ON r.id = d.repository_id
       WHERE d.repository_id = :repository AND (d.digest = :subject OR d.id IN (
         SELECT deleted_id FROM deleted_child WHERE repository_id = :repository AND digest = :digest))
       ORDER BY d.deleted_at DESC LIMIT 1`,
    ),
  }
}

/** What is known of a digest; lists have at most `limit` entries. */
export function explainDigest(queries: Queries, digest: Digest, limit: number): DigestFacts {
  const blob = queries.blob.get(digest)
  return {
    blob:
      blob === undefined
        ? undefined
        : { size: blob.size, isCondemned: blob.state !== 'live', storedAt: blob.storedAt },
    isArriving: queries.arriving.get(digest) !== undefined,
    links: queries.links.all(digest, limit).map(({ repository, repositoryId, leasedAt }): LinkFacts => {
      const about = { repository: repositoryId, digest, subject: null }
      const namedBy = queries.parents.all({ ...about, limit })
      return { repository, leasedAt, namedBy, namedByDeleted: toDeleted(queries.deletedAbove.get(about)) }
    }),
    manifests: queries.manifests.all(digest, limit).map((row) => toFacts(queries, row, limit)),
    deleted: queries.deleted.all(digest, limit).flatMap((row) => toDeleted(row) ?? []),
  }
}

function toFacts(queries: Queries, row: ManifestRow, limit: number): ManifestFacts {
  const { id, repositoryId, repository, digest, subject, pushedAt } = row
  const about = { repository: repositoryId, digest, subject }
  return {
    repository,
    isMirrored: row.mirror !== null,
    digest,
    pushedAt,
    leasedAt: row.leasedAt ?? undefined,
    pulledAt: row.pulledAt ?? undefined,
    reachedFrom: queries.reachedFrom.get({ id, most: mostExplained }),
    former: queries.former.get({ id, most: mostExplained }),
    below: toDeleted(queries.deletedAbove.get(about)),
    parents: queries.parents.all({ ...about, limit }),
  }
}

function toDeleted(row: DeletedRow | undefined): DeletedFacts | undefined {
  return row === undefined ? undefined : { ...row, tag: row.tag ?? undefined }
}
