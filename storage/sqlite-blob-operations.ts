import type { Database } from 'better-sqlite3'
import type { Digest } from '../src/oci/digest.js'
import type { RepositoryName } from '../src/oci/reference.js'

/** Blobs and the rights to them. */
export function prepareBlobs(db: Database) {
  const repositoryId = prepareRepositoryId(db)
  const insert = db.prepare('INSERT INTO blob (digest, size, created_at) VALUES (?, ?, ?)')
  const find = db.prepare<
    [string],
    { id: number; state: string; holder: string | null; damage: string | null }
  >('SELECT id, state, holder, damage FROM blob WHERE digest = ?')
  const heal = db.prepare('UPDATE blob SET damage = NULL WHERE id = ?')
  const remove = db.prepare('DELETE FROM blob WHERE id = ?')
  const link = db.prepare(
    `INSERT INTO blob_link (repository_id, blob_id, linked_at) VALUES (?, ?, ?)
     ON CONFLICT DO UPDATE SET linked_at = max(linked_at, excluded.linked_at)`,
  )
  const findLink = db.prepare<
    [string, string],
    { repository: number; blob: number; size: number; damage: string | null }
  >(
    `SELECT r.id AS repository, b.id AS blob, b.size AS size, b.damage FROM blob_link l
       JOIN repository r ON r.id = l.repository_id JOIN blob b ON b.id = l.blob_id
       WHERE r.name = ? AND b.digest = ?`,
  )
  const isWaiting = db.prepare(
    'SELECT 1 FROM blob b JOIN waiting_blob w ON w.blob_id = b.id WHERE w.repository = ? AND b.digest = ?',
  )
  const renew = db.prepare(
    'UPDATE blob_link SET linked_at = max(linked_at, ?) WHERE repository_id = ? AND blob_id = ?',
  )
  const used = db
    .prepare('SELECT 1 FROM manifest_child WHERE repository_id = ? AND digest = ? LIMIT 1')
    .pluck()
  const unlink = db.prepare('DELETE FROM blob_link WHERE repository_id = ? AND blob_id = ?')

  return {
    /** The bytes are new: what was damaged is whole again. @returns false when a collector or a verifier is at work on the blob, which whoever holds the upload's turn prevents */
    add(repository: RepositoryName, blob: { digest: Digest; size: number }, now: number): boolean {
      const row = find.get(blob.digest)
      if (row !== undefined && row.holder !== null) return false
      let id = row?.id
      if (row?.state === 'condemned') {
        remove.run(row.id) // its collector died: these bytes are new, and so is the row
        id = undefined
      } else if (row !== undefined && row.damage !== null) heal.run(row.id)
      id ??= Number(insert.run(blob.digest, blob.size, now).lastInsertRowid)
      link.run(repositoryId(repository, now), id, now)
      return true
    },

    renewBlob(repository: RepositoryName, digest: Digest, now: number): number | undefined {
      const row = findLink.get(repository, digest)
      if (row === undefined || row.damage !== null) return undefined
      renew.run(now, row.repository, row.blob)
      return row.size
    },

    linkBlob(repository: RepositoryName, blobId: number, now: number): void {
      link.run(repositoryId(repository, now), blobId, now)
    },

    mountBlob(repository: RepositoryName, digest: Digest, from: RepositoryName, now: number): boolean {
      const source = findLink.get(from, digest)
      if (source === undefined || source.damage !== null) return false
      link.run(repositoryId(repository, now), source.blob, now)
      return true
    },

    /** Bytes that a mount would add to the repository; undefined when there is nothing to mount, or they count already. */
    sizeToLink(repository: RepositoryName, digest: Digest, from: RepositoryName): number | undefined {
      const isCounted =
        findLink.get(repository, digest) !== undefined || isWaiting.get(repository, digest) !== undefined
      return isCounted ? undefined : findLink.get(from, digest)?.size
    },

    unlinkBlob(repository: RepositoryName, digest: Digest): 'unlinked' | 'unknown' | 'in-use' {
      const row = findLink.get(repository, digest)
      if (row === undefined) return 'unknown'
      if (used.get(row.repository, digest) !== undefined) return 'in-use'
      unlink.run(row.repository, row.blob)
      return 'unlinked'
    },
  }
}

/** The id of a repository, which comes into being with the first thing that is stored in it. */
export function prepareRepositoryId(db: Database) {
  const find = db.prepare<[string], number>('SELECT id FROM repository WHERE name = ?').pluck()
  const insert = db.prepare('INSERT INTO repository (name, created_at) VALUES (?, ?)')
  return function repositoryId(name: RepositoryName, now: number): number {
    return find.get(name) ?? Number(insert.run(name, now).lastInsertRowid)
  }
}
