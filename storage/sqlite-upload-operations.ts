import type { Database } from 'better-sqlite3'
import type { Digest } from '../src/oci/digest.js'
import type { RepositoryName } from '../src/oci/reference.js'
import type { TurnResult, Upload } from './metadata-store.js'

/** A row of `upload` as the driver reads it. */
export interface UploadRow {
  id: string
  repository: string
  owner: string
  algorithm: string
  offset: number
  digest: string | null
}

export const uploadColumns = 'id, repository, owner, algorithm, offset, digest'

/** Turns a row into the port's shape: what is in the database was checked before it got there. */
export function toUpload(row: UploadRow): Upload {
  return { ...row, digest: row.digest ?? undefined } as Upload
}

/** Upload sessions and their turns. */
export function prepareUploads(db: Database) {
  const count = db.prepare<[string], number>('SELECT count(*) FROM upload WHERE repository = ?').pluck()
  const insert = db.prepare(
    `INSERT INTO upload (id, repository, owner, algorithm, offset, started_at, used_at)
     VALUES (?, ?, ?, ?, 0, ?, ?)`,
  )
  const exists = db.prepare('SELECT 1 FROM upload WHERE id = ?').pluck()
  const take = db.prepare<[string, string | null, string], UploadRow>(
    `UPDATE upload SET holder = ?, finishing = ? WHERE id = ? AND holder IS NULL RETURNING ${uploadColumns}`,
  )
  const isGoing = db.prepare('SELECT 1 FROM blob WHERE digest = ? AND holder IS NOT NULL').pluck()
  const save = db.prepare(
    `UPDATE upload SET offset = ?, digest = ?, used_at = ?, holder = NULL, finishing = NULL, reserved = 0
     WHERE id = ? AND holder = ?`,
  )
  const release = db.prepare(
    'UPDATE upload SET holder = NULL, finishing = NULL, reserved = 0 WHERE id = ? AND holder = ?',
  )
  const releaseAll = db.prepare<{ prefix: string; except: string }>(
    `UPDATE upload SET holder = NULL, finishing = NULL, reserved = 0
     WHERE holder >= :prefix AND substr(holder, 1, length(:prefix)) = :prefix
       AND (:except = '' OR substr(holder, 1, length(:except)) <> :except)`,
  )
  const remove = db.prepare('DELETE FROM upload WHERE id = ? AND holder IS ?')
  const findFinishing = db.prepare<
    [string, string, string],
    { readonly repository: RepositoryName; readonly owner: string }
  >('SELECT repository, owner FROM upload WHERE id = ? AND holder = ? AND finishing = ?')
  const expire = db
    .prepare<[number, number], string>(
      `DELETE FROM upload WHERE id IN (
         SELECT id FROM upload WHERE used_at < ? AND holder IS NULL ORDER BY used_at LIMIT ?
       ) RETURNING id`,
    )
    .pluck()

  return {
    startUpload(
      upload: Pick<Upload, 'id' | 'repository' | 'owner' | 'algorithm'>,
      limit: number,
      now: number,
    ): boolean {
      if (Number(count.get(upload.repository)) >= limit) return false
      insert.run(upload.id, upload.repository, upload.owner, upload.algorithm, now, now)
      return true
    },

    /** With a digest: the condemning or quarantine of that blob and this exclude each other, whichever comes first. */
    takeTurn(id: string, holder: string, finishing: Digest | undefined): TurnResult {
      if (finishing !== undefined && isGoing.get(finishing) !== undefined) return 'condemned'
      const row = take.get(holder, finishing ?? null, id)
      if (row !== undefined) return toUpload(row)
      return exists.get(id) === undefined ? 'unknown' : 'busy'
    },

    saveProgress(
      id: string,
      holder: string,
      progress: { readonly offset: number; readonly digest: Digest | undefined },
      now: number,
    ): boolean {
      return save.run(progress.offset, progress.digest ?? null, now, id, holder).changes === 1
    },

    releaseTurn(id: string, holder: string): void {
      release.run(id, holder)
    },

    /** @param except the beginning of holders that keep theirs; '' for none */
    releaseTurns(prefix: string, except: string): void {
      releaseAll.run({ prefix, except })
    },

    removeUpload(id: string, holder: string | undefined): boolean {
      return remove.run(id, holder ?? null).changes === 1
    },

    expireUploads(before: number, limit: number): string[] {
      return expire.all(before, limit)
    },

    /** An upload whose turn this holder has taken in order to make it the blob of this digest. */
    findFinishing(id: string, holder: string, finishing: Digest) {
      return findFinishing.get(id, holder, finishing)
    },
  }
}
