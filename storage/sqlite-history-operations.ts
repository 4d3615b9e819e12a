import type { Database } from 'better-sqlite3'
import type { Digest } from '../src/oci/digest.js'
import type { Tag } from '../src/oci/reference.js'
import type { Author, ChangeKind } from './tag-store.js'

/** Changes of one tag that are remembered, give or take {@link trimEvery}. */
const mostChanges = 1000

/** A tag's changes are counted at one of so many of them, so that the others pay little for it. */
const trimEvery = 50

/** A change to write down. */
interface NewChange {
  readonly digest: Digest | undefined
  readonly previous: Digest | undefined
  readonly how: ChangeKind
  readonly user: Author | undefined
  readonly now: number
}

/** Writes down changes of tags, but for those of mirrors. */
export function prepareHistory(db: Database) {
  // Changes are numbered for each tag: pushes of many tags at once would otherwise always count the same ones.
  const insert = db
    .prepare<unknown[], number>(
      `INSERT INTO tag_history (repository_id, name, digest, previous, how, user, token, token_id, at, number)
       SELECT :repository, :tag, :digest, :previous, :how, :user, :token, :tokenId, :now, 1 + coalesce((
         SELECT number FROM tag_history WHERE repository_id = :repository AND name = :tag
         ORDER BY id DESC LIMIT 1), 0)
       WHERE (SELECT mirror FROM repository WHERE id = :repository) IS NULL RETURNING number`,
    )
    .pluck()
  const trim = db.prepare<{ repository: number; tag: string; most: number }>(
    `DELETE FROM tag_history WHERE repository_id = :repository AND name = :tag AND id < (
       SELECT id FROM tag_history WHERE repository_id = :repository AND name = :tag
       ORDER BY id DESC LIMIT 1 OFFSET :most - 1)`,
  )
  return function noteChange(repository: number, tag: Tag, change: NewChange): void {
    const { digest = null, previous = null, how, user, now } = change
    const number = insert.get({
      repository,
      tag,
      digest,
      previous,
      how,
      user: user === undefined || user.name === '' ? null : user.name,
      token: user?.accessToken?.name ?? null,
      tokenId: user?.accessToken?.id ?? null,
      now,
    })
    if (number !== undefined && number % trimEvery === 0) trim.run({ repository, tag, most: mostChanges })
  }
}

/**
 * Moves manifests that are deleted out of everybody's sight, with their edges: until the time for undoing is over
 * they keep what they need from being collected.
 */
export function prepareBurial(db: Database) {
  const forget = db.prepare('DELETE FROM deleted_manifest WHERE repository_id = ? AND digest = ?')
  const move = db
    .prepare<[number, number], number>(
      `INSERT INTO deleted_manifest
         (repository_id, digest, media_type, size, subject, artifact_type, annotations, created_at, deleted_at, bytes)
       SELECT repository_id, digest, media_type, size, subject, artifact_type, annotations, created_at, ?, bytes
       FROM manifest WHERE id = ? RETURNING id`,
    )
    .pluck()
  // A right that the repository never had must not come of a restored manifest.
  const moveEdges = db.prepare(
    `INSERT INTO deleted_child (digest, repository_id, deleted_id, role, is_linked)
     SELECT c.digest, c.repository_id, ?, c.role, EXISTS (
       SELECT 1 FROM blob b JOIN blob_link l ON l.blob_id = b.id
       WHERE b.digest = c.digest AND l.repository_id = c.repository_id)
     FROM manifest_child c WHERE c.manifest_id = ?`,
  )
  // What it lists and was deleted before is needed for as long as it can be brought back itself.
  const keepBelow = db.prepare<{ now: number; deleted: number }>(
    `UPDATE deleted_manifest SET deleted_at = max(deleted_at, :now) WHERE id IN (
       WITH RECURSIVE below (id) AS (
         VALUES (:deleted)
         UNION
         SELECT d.id FROM below JOIN deleted_child c ON c.deleted_id = below.id AND c.role = 'manifest'
           JOIN deleted_manifest d ON d.repository_id = c.repository_id AND d.digest = c.digest)
       SELECT id FROM below)`,
  )
  return function buryManifest(row: { id: number; repository: number; digest: Digest }, now: number): void {
    forget.run(row.repository, row.digest)
    const deleted = move.get(now, row.id)
    if (deleted === undefined) throw new Error('a manifest to delete is not there')
    moveEdges.run(deleted, row.id)
    keepBelow.run({ now, deleted })
  }
}
