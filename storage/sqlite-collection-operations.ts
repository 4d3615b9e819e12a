import type { Database } from 'better-sqlite3'
import type { Digest } from '../src/oci/digest.js'
import type { RepositoryName } from '../src/oci/reference.js'
import type {
  CollectionSums,
  CondemnedBlob,
  LinkKey,
  Moments,
  RemovedLink,
  RemovedManifest,
  StepResult,
} from './collection-store.js'

/** Milliseconds after which a step stops, so that nobody who writes waits for it long: as short as a push's own. */
const longestStep = 1

/** Manifests above one that are looked at; one with more than these stays until they have gone. */
const mostAbove = 200

/**
 * Manifests from which one can be reached: indexes that list it, its subject, and theirs, and so on. To be
 * continued with a SELECT from `above`; takes :id and :most.
 */
export const manifestsAbove = `WITH RECURSIVE above (id, repository_id, digest, subject) AS (
  SELECT id, repository_id, digest, subject FROM manifest WHERE id = :id
  UNION
  SELECT m.id, m.repository_id, m.digest, m.subject FROM above
    JOIN manifest_child c ON c.repository_id = above.repository_id AND c.digest = above.digest
    JOIN manifest m ON m.id = c.manifest_id
  UNION
  SELECT m.id, m.repository_id, m.digest, m.subject FROM above
    JOIN manifest m ON m.repository_id = above.repository_id AND m.digest = above.subject
  LIMIT :most
)`

/** Whether a deleted manifest that can be restored names a digest; takes :undo, continued with conditions on `c`. */
const namedByDeleted = `EXISTS (SELECT 1 FROM deleted_child c JOIN deleted_manifest d ON d.id = c.deleted_id
  WHERE d.deleted_at >= :undo`

/** Whether a restorable manifest of a repository needs a right to a blob; the columns are of the caller's tables. */
export const neededLink = (repository: string, digest: string) =>
  `${namedByDeleted} AND c.digest = ${digest} AND c.repository_id = ${repository})`

/** The same of a blob, as far as the manifest's repository had a right to it. */
export const neededBlob = (digest: string) =>
  `${namedByDeleted} AND c.digest = ${digest} AND c.is_linked = 1)`

/** Whether a manifest `m` can be restored, or is needed by one that can; takes :undo. */
const restorable = `(
  EXISTS (SELECT 1 FROM tag_history h
    WHERE h.repository_id = m.repository_id AND h.previous = m.digest AND h.at >= :undo)
  OR ${neededLink('m.repository_id', 'm.digest')}
  OR EXISTS (SELECT 1 FROM deleted_manifest d
    WHERE d.repository_id = m.repository_id AND d.digest = m.subject AND d.deleted_at >= :undo))`

/** Whether a change `h` is of a tag that is not there any more. */
export const ofGoneTag = `NOT EXISTS (
  SELECT 1 FROM tag t WHERE t.repository_id = h.repository_id AND t.name = h.name)`

/** The steps of a collection that write; see CollectionStore for what each of them promises. */
export function prepareCollection(db: Database) {
  return { ...prepareNames(db), ...prepareBytes(db), ...prepareGivingUp(db) }
}

/** Looks at candidates one by one until they are done or the time is over. */
function step<Candidate, Item>(
  candidates: readonly Candidate[],
  look: (candidate: Candidate) => readonly Item[],
): StepResult<Item> {
  const end = performance.now() + longestStep
  const items: Item[] = []
  let handled = 0
  for (const candidate of candidates) {
    items.push(...look(candidate))
    handled++
    if (performance.now() > end) break
  }
  return { handled, items }
}

/** When somebody last relied on a manifest `m`, whose use is `u`, or pulled it. */
export const manifestUsedAt = 'max(m.created_at, coalesce(u.leased_at, 0), coalesce(u.pulled_at, 0))'

/** A manifest with all that leads to it, if all of it may go; else nothing. */
export function prepareRemoval(db: Database) {
  const above = db.prepare<
    { id: number; most: number; undo: number },
    RemovedManifest & { id: number; usedAt: number; isNeeded: number }
  >(
    `${manifestsAbove}
     SELECT m.id, r.name AS repository, m.digest, ${manifestUsedAt} AS usedAt,
       EXISTS (SELECT 1 FROM tag t WHERE t.manifest_id = m.id) OR ${restorable} AS isNeeded
     FROM above JOIN manifest m ON m.id = above.id JOIN repository r ON r.id = m.repository_id
     LEFT JOIN manifest_use u ON u.manifest_id = m.id`,
  )
  return function previewRemoval(id: number, moments: Moments): (RemovedManifest & { id: number })[] {
    const { before, undo } = moments
    const all = above.all({ id, most: mostAbove + 1, undo })
    const isKept =
      all.length > mostAbove || all.some(({ isNeeded, usedAt }) => isNeeded === 1 || usedAt >= before)
    return isKept ? [] : all.map(({ repository, digest, id }) => ({ repository, digest, id }))
  }
}

function prepareNames(db: Database) {
  const previewRemoval = prepareRemoval(db)
  const deleteManifest = db.prepare('DELETE FROM manifest WHERE id = ?')
  const removeLink = db.prepare(
    `DELETE FROM blob_link WHERE repository_id = :repositoryId AND blob_id = :blobId AND linked_at < :before
     AND NOT EXISTS (SELECT 1 FROM manifest_child c JOIN blob b ON b.digest = c.digest
                     WHERE b.id = :blobId AND c.repository_id = :repositoryId)
     AND NOT ${neededLink(':repositoryId', '(SELECT digest FROM blob WHERE id = :blobId)')}`,
  )
  const forgetDeleted = db.prepare(
    'DELETE FROM deleted_manifest WHERE id IN (SELECT id FROM deleted_manifest WHERE deleted_at < ? LIMIT ?)',
  )
  // Entries come in the order of their ids: the first young one ends the search.
  const forgetChanges = db.prepare(
    `DELETE FROM tag_history WHERE id IN (
       SELECT id FROM (SELECT id, at FROM tag_history ORDER BY id LIMIT ?) WHERE at < ?)`,
  )
  const linked = db.prepare<[number, number], RemovedLink>(
    `SELECT r.name AS repository, b.digest, b.size FROM blob b, repository r WHERE b.id = ? AND r.id = ?`,
  )

  return {
    forgetOld({ undo, history }: { undo: number; history: number }, limit: number): number {
      return forgetDeleted.run(undo, limit).changes + forgetChanges.run(limit, history).changes
    },

    removeManifests(ids: readonly number[], moments: Moments): StepResult<RemovedManifest> {
      return step(ids, (id) => {
        const all = previewRemoval(id, moments)
        for (const row of all) deleteManifest.run(row.id)
        return all.map(({ repository, digest }) => ({ repository, digest }))
      })
    },

    removeLinks(links: readonly LinkKey[], { before, undo }: Moments): StepResult<RemovedLink> {
      return step(links, ({ repositoryId, blobId }) => {
        if (removeLink.run({ repositoryId, blobId, before, undo }).changes === 0) return []
        return linked.all(blobId, repositoryId)
      })
    },
  }
}

/** What was deleted in one repository goes for good. */
function prepareGivingUp(db: Database) {
  const findRepository = db
    .prepare<[string], number>('SELECT id FROM repository WHERE name = ? AND mirror IS NULL')
    .pluck()
  const listDeleted = db
    .prepare<[number, number], number>('SELECT id FROM deleted_manifest WHERE repository_id = ? LIMIT ?')
    .pluck()
  // Who relied on a blob after its manifest was deleted is about to push another one that names it.
  const unlink = db.prepare<{ deleted: number }>(
    `DELETE FROM blob_link WHERE (repository_id, blob_id) IN (
       SELECT d.repository_id, b.id FROM deleted_manifest d
       JOIN deleted_child c ON c.deleted_id = d.id AND c.is_linked = 1 JOIN blob b ON b.digest = c.digest
       JOIN blob_link l ON l.repository_id = d.repository_id AND l.blob_id = b.id
       WHERE d.id = :deleted AND l.linked_at <= d.deleted_at
         AND NOT EXISTS (SELECT 1 FROM manifest_child m
           WHERE m.repository_id = d.repository_id AND m.digest = c.digest)
         AND NOT EXISTS (SELECT 1 FROM deleted_child o
           WHERE o.digest = c.digest AND o.repository_id = d.repository_id AND o.deleted_id <> d.id))`,
  )
  const forget = db.prepare('DELETE FROM deleted_manifest WHERE id = ?')
  const forgetChanges = db.prepare(
    `DELETE FROM tag_history WHERE id IN (
       SELECT h.id FROM tag_history h WHERE h.repository_id = ? AND ${ofGoneTag} LIMIT ?)`,
  )
  return {
    forgetDeleted(repository: RepositoryName, limit: number): { manifests: number; changes: number } {
      const id = findRepository.get(repository)
      if (id === undefined) return { manifests: 0, changes: 0 }
      const deleted = listDeleted.all(id, limit)
      for (const one of deleted) {
        unlink.run({ deleted: one })
        forget.run(one)
      }
      return { manifests: deleted.length, changes: forgetChanges.run(id, limit).changes }
    },
  }
}

function prepareBytes(db: Database) {
  const condemn = db.prepare<{ digest: string; holder: string } & Moments, CondemnedBlob>(
    `UPDATE blob SET state = 'condemned', holder = :holder
     WHERE digest = :digest AND state = 'live' AND created_at < :before
       AND NOT EXISTS (SELECT 1 FROM blob_link l WHERE l.blob_id = blob.id)
       AND NOT EXISTS (SELECT 1 FROM upload WHERE finishing = :digest)
       AND NOT ${neededBlob('blob.digest')}
     RETURNING digest, size`,
  )
  const condemnFile = db.prepare<
    { digest: string; size: number; holder: string; now: number },
    CondemnedBlob
  >(
    `INSERT INTO blob (digest, size, created_at, state, holder)
     SELECT :digest, :size, :now, 'condemned', :holder
     WHERE NOT EXISTS (SELECT 1 FROM blob WHERE digest = :digest)
       AND NOT EXISTS (SELECT 1 FROM upload WHERE finishing = :digest)
     RETURNING digest, size`,
  )
  const release = db.prepare('UPDATE blob SET holder = NULL WHERE holder IS NOT NULL')
  const claim = db.prepare<[string, number], CondemnedBlob>(
    `UPDATE blob SET holder = ? WHERE id IN (
       SELECT id FROM blob WHERE state = 'condemned' AND holder IS NULL
         AND NOT EXISTS (SELECT 1 FROM upload WHERE finishing = blob.digest) LIMIT ?
     ) RETURNING digest, size`,
  )
  const record = db.prepare(
    'UPDATE collection SET ended = ended + 1, blobs = blobs + ?, bytes = bytes + ?, ended_at = ?, milliseconds = ?',
  )
  const forget = db.prepare("DELETE FROM blob WHERE digest = ? AND state = 'condemned' AND holder = ?")

  return {
    condemnBlobs(digests: readonly Digest[], holder: string, moments: Moments): StepResult<CondemnedBlob> {
      return step(digests, (digest) => condemn.all({ digest, holder, ...moments }))
    },

    condemnFiles(files: readonly CondemnedBlob[], holder: string, now: number): CondemnedBlob[] {
      return files.flatMap(({ digest, size }) => condemnFile.all({ digest, size, holder, now }))
    },

    recordCollection({ blobs, bytes, endedAt, milliseconds }: CollectionSums): void {
      record.run(blobs, bytes, endedAt, Math.round(milliseconds))
    },

    /** For who knows that no collector is alive. */
    releaseCondemned(): void {
      release.run()
    },

    claimCondemned(holder: string, limit: number): CondemnedBlob[] {
      return claim.all(holder, limit)
    },

    forgetBlobs(digests: readonly Digest[], holder: string): void {
      for (const digest of digests) forget.run(digest, holder)
    },
  }
}
