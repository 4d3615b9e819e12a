import type { Database } from 'better-sqlite3'
import type { Child } from '../src/oci/manifest.js'
import type { RepositoryName } from '../src/oci/reference.js'
import type { NewManifest, PutManifestResult } from './metadata-store.js'
import { prepareRepositoryId } from './sqlite-blob-operations.js'
import { prepareCheckChildren } from './sqlite-children.js'

/** Edges that are removed in one go. */
const edgesAtOnce = 250

/** Milliseconds after which a draft belongs to nobody: what is prepared is stored within seconds. */
const longestDraft = 3_600_000

/** A manifest whose edges stand in the index already, under the row that it will have. */
export type DraftedManifest = NewManifest & { readonly draft?: number }

/** The operations behind putInTurns (sqlite-put-in-turns.ts). */
export function prepareDrafts(db: Database) {
  const repositoryId = prepareRepositoryId(db)
  const checkChildren = prepareCheckChildren(db)
  const open = db
    .prepare<[number, number], number>(
      `INSERT INTO manifest_draft (id, repository_id, began_at) VALUES (${nextManifestId}, ?, ?) RETURNING id`,
    )
    .pluck()
  const find = db.prepare<[number], number>('SELECT repository_id FROM manifest_draft WHERE id = ?').pluck()
  const insertEdges = db.prepare<[number, number, string]>(
    `INSERT INTO manifest_child (repository_id, digest, manifest_id, role)
     SELECT ?, value ->> 'digest', ?, value ->> 'role' FROM json_each(?) WHERE true ORDER BY 2
     ON CONFLICT DO NOTHING`,
  )
  const removeEdges = db.prepare<{ id: number; limit: number }>(
    `DELETE FROM manifest_child WHERE (repository_id, digest, manifest_id) IN (
       SELECT repository_id, digest, manifest_id FROM manifest_child WHERE manifest_id = :id LIMIT :limit)`,
  )
  const close = db.prepare('DELETE FROM manifest_draft WHERE id = ?')
  const old = db
    .prepare<[number], number>('SELECT id FROM manifest_draft WHERE began_at < ? ORDER BY began_at LIMIT 1')
    .pluck()

  return {
    openDraft(repository: RepositoryName, now: number): number {
      const id = open.get(repositoryId(repository, now), now)
      if (id === undefined) throw new Error('a draft that was opened has no row')
      return id
    },

    draftChildren(id: number, piece: string, sparse: boolean): PutManifestResult | undefined {
      const repository = find.get(id)
      if (repository === undefined) throw new Error('the draft of a manifest is gone')
      const children = JSON.parse(piece) as readonly Child[]
      const refusal = checkChildren(repository, { children, sparse })
      if (refusal === undefined) insertEdges.run(repository, id, piece)
      return refusal
    },

    /** Removes some of a draft's edges, and the draft with the last of them. @returns whether there are more */
    dropDraft(id: number): boolean {
      if (find.get(id) === undefined) return false
      if (removeEdges.run({ id, limit: edgesAtOnce }).changes === edgesAtOnce) return true
      close.run(id)
      return false
    },

    /** A draft that nobody has finished, because its process died. */
    findOldDraft(now: number): number | undefined {
      return old.get(now - longestDraft)
    },
  }
}

/** The row that the next manifest gets: behind all others, those that are being prepared too. */
export const nextManifestId = `(SELECT 1 + max(
  coalesce((SELECT max(id) FROM manifest), 0), coalesce((SELECT max(id) FROM manifest_draft), 0)))`
