import type Database from 'better-sqlite3'
import type { Digest } from '../src/oci/digest.js'
import type { RepositoryName } from '../src/oci/reference.js'
import type { OpenUpload, Totals } from './metadata-store.js'
import { prepareReferrers } from './sqlite-referrers.js'
import { prepareNames } from './sqlite-search.js'
import { type UploadRow, uploadColumns } from './sqlite-upload-operations.js'

/** A manifest as the statements give it. */
export type ManifestRow = { digest: Digest; mediaType: string; size: number; bytes: Uint8Array }
type HeadRow = Omit<ManifestRow, 'bytes'>

const headColumns = 'm.digest AS digest, m.media_type AS mediaType, m.size AS size'
const byTag = `FROM repository r JOIN tag t ON t.repository_id = r.id
  JOIN manifest m ON m.id = t.manifest_id WHERE r.name = ? AND t.name = ?`
const byDigest = `FROM repository r JOIN manifest m ON m.repository_id = r.id WHERE r.name = ? AND m.digest = ?`

/** The statements that read, behind the metadata store. */
export function prepareQueries(db: Database.Database) {
  return {
    blobSize: db
      .prepare<[string, string], number>(
        `SELECT b.size FROM repository r JOIN blob_link l ON l.repository_id = r.id
         JOIN blob b ON b.id = l.blob_id WHERE r.name = ? AND b.digest = ? AND b.damage IS NULL`,
      )
      .pluck(),
    blobLease: db.prepare<[string, string], { size: number; leasedAt: number; mirror: string | null }>(
      `SELECT b.size, l.linked_at AS leasedAt, r.mirror FROM repository r JOIN blob_link l ON l.repository_id = r.id
       JOIN blob b ON b.id = l.blob_id WHERE r.name = ? AND b.digest = ? AND b.damage IS NULL`,
    ),
    manifestLease: db
      .prepare<[string, string], number>(
        `SELECT max(m.created_at, coalesce(u.leased_at, 0)) FROM repository r
         JOIN manifest m ON m.repository_id = r.id LEFT JOIN manifest_use u ON u.manifest_id = m.id
         WHERE r.name = ? AND m.digest = ?`,
      )
      .pluck(),
    blobDamage: db
      .prepare<[string, string], string>(
        `SELECT b.damage FROM repository r JOIN blob_link l ON l.repository_id = r.id
         JOIN blob b ON b.id = l.blob_id WHERE r.name = ? AND b.digest = ? AND b.damage IS NOT NULL`,
      )
      .pluck(),
    blobRepositories: db
      .prepare<[string, number], RepositoryName>(
        `SELECT r.name FROM blob b JOIN blob_link l ON l.blob_id = b.id
         JOIN repository r ON r.id = l.repository_id WHERE b.digest = ? AND b.damage IS NULL LIMIT ?`,
      )
      .pluck(),
    upload: db.prepare<[string], UploadRow>(`SELECT ${uploadColumns} FROM upload WHERE id = ?`),
    uploads: db.prepare<[string, number], Omit<OpenUpload, 'isBusy'> & { isBusy: number }>(
      `SELECT id, repository, owner, source, offset, started_at AS startedAt, used_at AS usedAt,
         holder IS NOT NULL AS isBusy
       FROM upload WHERE id > ? ORDER BY id LIMIT ?`,
    ),
    hasRepository: db
      .prepare<[string], number>(
        'SELECT 1 FROM repository r WHERE r.name = ? AND EXISTS (SELECT 1 FROM manifest WHERE repository_id = r.id)',
      )
      .pluck(),
    manifestByTag: db.prepare<[string, string], ManifestRow>(
      `SELECT ${headColumns}, m.bytes AS bytes ${byTag}`,
    ),
    manifestByDigest: db.prepare<[string, string], ManifestRow>(
      `SELECT ${headColumns}, m.bytes AS bytes ${byDigest}`,
    ),
    headByTag: db.prepare<[string, string], HeadRow>(`SELECT ${headColumns} ${byTag}`),
    headByDigest: db.prepare<[string, string], HeadRow>(`SELECT ${headColumns} ${byDigest}`),
    tags: db
      .prepare<[string, string, number], string>(
        `SELECT t.name FROM repository r JOIN tag t ON t.repository_id = r.id
         WHERE r.name = ? AND t.name > ? ORDER BY t.name LIMIT ?`,
      )
      .pluck(),
    names: prepareNames(db),
    referrers: prepareReferrers(db),
    totals: db.prepare<[], Omit<Totals, 'metadataBytes'>>(
      `SELECT t.blobs, t.blob_bytes AS blobBytes, (SELECT count(*) FROM upload) AS openUploads,
         c.ended AS collections, c.blobs AS collectedBlobs, c.bytes AS collectedBytes,
         coalesce(c.ended_at, 0) / 1000.0 AS collectedAt, coalesce(c.milliseconds, 0) / 1000.0 AS collectionSeconds,
         (SELECT count(*) FROM blob WHERE damage IS NOT NULL
           AND EXISTS (SELECT 1 FROM blob_link l WHERE l.blob_id = blob.id)) AS damagedBlobs,
         coalesce(s.verified_at, 0) / 1000.0 AS verifiedAt, coalesce(s.problems, 0) AS verificationProblems
       FROM total t, collection c, service s`,
    ),
  }
}
