import type { Database } from 'better-sqlite3'
import type { Digest } from '../src/oci/digest.js'
import type { RepositoryName } from '../src/oci/reference.js'
import type { NewUpload, TurnResult, Upload } from './metadata-store.js'

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
    `INSERT INTO upload (id, repository, owner, source, algorithm, offset, started_at, used_at)
     VALUES (?, ?, ?, ?, ?, 0, ?, ?)`,
  )
  const countOf = db
    .prepare<[string, number], number>(
      "SELECT count(*) FROM (SELECT 1 FROM upload WHERE source = ? AND source <> '' LIMIT ?)",
    )
    .pluck()
  const endIdleOf = db
    .prepare<{ source: string; before: number }, string>(
      `DELETE FROM upload WHERE id = (
         SELECT id FROM upload WHERE source = :source AND source <> '' AND holder IS NULL AND used_at < :before
         ORDER BY used_at LIMIT 1) RETURNING id`,
    )
    .pluck()
  // Of whoever has most of them, so that nobody's crowd takes others' places.
  const endIdleIn = db
    .prepare<{ repository: string; before: number }, string>(
      `WITH idle AS MATERIALIZED (
         SELECT id, source, used_at FROM upload
         WHERE repository = :repository AND source <> '' AND holder IS NULL AND used_at < :before)
       DELETE FROM upload WHERE id = (
         SELECT id FROM idle WHERE source = (SELECT source FROM idle GROUP BY source ORDER BY count(*) DESC LIMIT 1)
         ORDER BY used_at LIMIT 1) RETURNING id`,
    )
    .pluck()
  const cancel = db
    .prepare<[string], RepositoryName>('DELETE FROM upload WHERE id = ? RETURNING repository')
    .pluck()
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
  const remove = db
    .prepare<[string, string | null], RepositoryName>(
      'DELETE FROM upload WHERE id = ? AND holder IS ? RETURNING repository',
    )
    .pluck()
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
      upload: NewUpload,
      limit: number,
      now: number,
      ofSource = Number.MAX_SAFE_INTEGER,
    ): boolean | 'source-full' {
      const { id, repository, owner, source = '', algorithm } = upload
      if (Number(countOf.get(source, ofSource)) >= ofSource) return 'source-full'
      if (Number(count.get(repository)) >= limit) return false
      insert.run(id, repository, owner, source, algorithm, now, now)
      return true
    },

    endIdleUpload(
      by: { source: string } | { repository: RepositoryName },
      before: number,
    ): string | undefined {
      return 'source' in by ? endIdleOf.get({ ...by, before }) : endIdleIn.get({ ...by, before })
    },

    cancelUpload(id: string): boolean {
      return cancel.get(id) !== undefined
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

    /** @returns its repository, when there was one */
    removeUpload(id: string, holder: string | undefined): RepositoryName | undefined {
      return remove.get(id, holder ?? null)
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
