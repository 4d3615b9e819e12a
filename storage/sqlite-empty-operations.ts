import type { Database } from 'better-sqlite3'
import type { RepositoryName } from '../src/oci/reference.js'

/** Whether nothing is in a repository `r`, was a while ago, or is about to be. */
const isEmpty = `NOT EXISTS (SELECT 1 FROM manifest WHERE repository_id = r.id)
  AND NOT EXISTS (SELECT 1 FROM blob_link WHERE repository_id = r.id)
  AND NOT EXISTS (SELECT 1 FROM deleted_manifest WHERE repository_id = r.id)
  AND NOT EXISTS (SELECT 1 FROM tag_history WHERE repository_id = r.id)
  AND NOT EXISTS (SELECT 1 FROM manifest_draft WHERE repository_id = r.id)
  AND NOT EXISTS (SELECT 1 FROM upload WHERE repository = r.name)
  AND NOT EXISTS (SELECT 1 FROM waiting_blob WHERE repository = r.name)`

/** A page of repositories: how far it goes, and which of them are empty. */
export function prepareEmptyQueries(db: Database) {
  return db.prepare<{ after: number; limit: number }, { id: number; isEmpty: number }>(
    `SELECT r.id, ${isEmpty} AS isEmpty FROM repository r WHERE r.id > :after ORDER BY r.id LIMIT :limit`,
  )
}

/** Takes repositories out of the index that hold nothing (S102); with the next push they come again. */
export function prepareEmptyRepositories(db: Database) {
  const remove = db
    .prepare<[number], RepositoryName>(
      `DELETE FROM repository AS r WHERE r.id = ? AND ${isEmpty} RETURNING name`,
    )
    .pluck()
  const findMirrored = db
    .prepare<[string], number>('SELECT id FROM repository WHERE name = ? AND mirror IS NOT NULL')
    .pluck()

  function removeRepository(id: number): boolean {
    return remove.get(id) !== undefined
  }

  return {
    /** @returns how many of these were empty, and have gone */
    removeRepositories(ids: readonly number[]): number {
      return ids.filter(removeRepository).length
    },

    /** What a mirror was asked for in vain leaves no name behind. */
    forgetMirrored(name: RepositoryName): void {
      const id = findMirrored.get(name)
      if (id !== undefined) removeRepository(id)
    },
  }
}
