import type { Database } from 'better-sqlite3'
import type { Digest } from '../src/oci/digest.js'
import type { RepositoryName, Tag } from '../src/oci/reference.js'
import { matchesTag } from '../src/oci/tag-pattern.js'
import { nextManifestId } from './sqlite-drafts.js'
import { prepareHistory } from './sqlite-history-operations.js'
import type { Restoration, RestoreResult, TagFacts } from './tag-store.js'

/** Periods that are remembered. */
const mostPeriods = 100

/** The operations of tags and their history that write; see TagStore for what each of them promises. */
export function prepareTags(db: Database) {
  const noteChange = prepareHistory(db)
  const lease = prepareLease(db)
  const remove = db
    .prepare<[number, string, string, number, number], number>(
      `DELETE FROM tag WHERE repository_id = ? AND name = ?
         AND manifest_id = (SELECT id FROM manifest m WHERE m.repository_id = tag.repository_id AND m.digest = ?)
         AND updated_at = ? AND max(coalesce(pulled_at, 0), coalesce(
           (SELECT pulled_at FROM manifest_use u WHERE u.manifest_id = tag.manifest_id), 0)) <= ?
       RETURNING manifest_id`,
    )
    .pluck()
  const findOwn = db
    .prepare<[string], number>('SELECT id FROM repository WHERE name = ? AND mirror IS NULL')
    .pluck()

  return {
    ...prepareRestoration(db),
    ...prepareRunning(db),

    removeTags(
      repository: RepositoryName,
      tags: readonly TagFacts[],
      { immutable, now }: { readonly immutable: readonly string[]; readonly now: number },
    ): Tag[] {
      const id = findOwn.get(repository)
      if (id === undefined) return []
      return tags.flatMap(({ tag, digest, pushedAt, pulledAt }) => {
        if (immutable.some((pattern) => matchesTag(pattern, tag))) return []
        const manifest = remove.get(id, tag, digest, pushedAt, pulledAt)
        if (manifest === undefined) return []
        lease(manifest, now)
        noteChange(id, tag, { digest: undefined, previous: digest, how: 'retention', user: undefined, now })
        return [tag]
      })
    },
  }
}

function prepareLease(db: Database) {
  const lease = db.prepare(
    `INSERT INTO manifest_use (manifest_id, leased_at) VALUES (?, ?)
     ON CONFLICT (manifest_id) DO UPDATE SET leased_at = max(coalesce(leased_at, 0), excluded.leased_at)`,
  )
  return (manifest: number, now: number) => void lease.run(manifest, now)
}

function prepareRestoration(db: Database) {
  const noteChange = prepareHistory(db)
  const revival = prepareRevival(db)
  const findRepository = db.prepare<[string], { id: number; mirror: string | null }>(
    'SELECT id, mirror FROM repository WHERE name = ?',
  )
  const tagged = db
    .prepare<[number, string], Digest>(
      'SELECT m.digest FROM tag t JOIN manifest m ON m.id = t.manifest_id WHERE t.repository_id = ? AND t.name = ?',
    )
    .pluck()
  const lastChange = db.prepare<[number, string], { previous: Digest | null }>(
    'SELECT previous FROM tag_history WHERE repository_id = ? AND name = ? ORDER BY id DESC LIMIT 1',
  )
  const change = db.prepare<[number, string, number], { digest: Digest | null }>(
    'SELECT digest FROM tag_history WHERE repository_id = ? AND name = ? AND id = ?',
  )
  const setTag = db.prepare(
    `INSERT INTO tag (repository_id, name, manifest_id, updated_at)
     SELECT repository_id, :tag, id, :now FROM manifest WHERE repository_id = :repository AND digest = :digest
     ON CONFLICT (repository_id, name)
     DO UPDATE SET manifest_id = excluded.manifest_id, updated_at = excluded.updated_at`,
  )

  /** The manifest that is meant, or why there is none. */
  function findTarget(
    repository: number,
    { tag, to }: Restoration,
  ): { digest: Digest } | { refusal: RestoreResult } {
    if (to === 'previous') {
      const last = lastChange.get(repository, tag)
      if (last === undefined) return { refusal: { outcome: 'unknown' } }
      return last.previous === null ? { refusal: { outcome: 'new' } } : { digest: last.previous }
    }
    if ('digest' in to) return to
    const found = change.get(repository, tag, to.entry)
    if (found === undefined) return { refusal: { outcome: 'no-entry' } }
    return found.digest === null ? { refusal: { outcome: 'removal' } } : { digest: found.digest }
  }

  return {
    restoreTag(restoration: Restoration): RestoreResult {
      const { tag, immutable, user, now } = restoration
      const repository = findRepository.get(restoration.repository)
      if (repository === undefined) return { outcome: 'unknown' }
      if (repository.mirror !== null) return { outcome: 'mirrored' }
      const { id } = repository
      const target = findTarget(id, restoration)
      if ('refusal' in target) return target.refusal
      const { digest } = target
      const previous = tagged.get(id, tag)
      const isMoved = previous !== digest
      if (isMoved && previous !== undefined && immutable.some((pattern) => matchesTag(pattern, tag))) {
        return { outcome: 'immutable' }
      }
      const revived = revival(id, digest, now)
      if (revived === 'gone') return { outcome: 'gone', digest }
      if (!isMoved && revived === 0) return { outcome: 'unchanged', digest }
      if (isMoved) {
        setTag.run({ repository: id, tag, digest, now })
        noteChange(id, tag, { digest, previous, how: 'restore', user, now })
      }
      return { outcome: 'restored', digest, previous, revived }
    },
  }
}

/** Brings deleted manifests back: one, all that it lists, and what refers to any of them. */
function prepareRevival(db: Database) {
  const lease = prepareLease(db)
  const findStored = db
    .prepare<[number, string], number>('SELECT id FROM manifest WHERE repository_id = ? AND digest = ?')
    .pluck()
  const findDeleted = db
    .prepare<[number, string], number>(
      'SELECT id FROM deleted_manifest WHERE repository_id = ? AND digest = ?',
    )
    .pluck()
  const storedChildren = db
    .prepare<[number], Digest>(
      "SELECT digest FROM manifest_child WHERE manifest_id = ? AND role = 'manifest'",
    )
    .pluck()
  const deletedChildren = db
    .prepare<[number], Digest>("SELECT digest FROM deleted_child WHERE deleted_id = ? AND role = 'manifest'")
    .pluck()
  const referrers = db
    .prepare<[number, string], Digest>(
      'SELECT digest FROM deleted_manifest WHERE repository_id = ? AND subject = ?',
    )
    .pluck()
  const lostBlob = db
    .prepare<[number], number>(
      `SELECT 1 FROM deleted_child c WHERE c.deleted_id = ? AND c.is_linked = 1
         AND NOT EXISTS (SELECT 1 FROM blob b WHERE b.digest = c.digest AND b.state = 'live') LIMIT 1`,
    )
    .pluck()
  const insert = db
    .prepare<[number], number>(
      `INSERT INTO manifest
         (id, repository_id, digest, media_type, size, subject, artifact_type, annotations, created_at, bytes)
       SELECT ${nextManifestId}, repository_id, digest, media_type, size, subject, artifact_type, annotations, created_at, bytes
       FROM deleted_manifest WHERE id = ? RETURNING id`,
    )
    .pluck()
  const insertEdges = db.prepare(
    `INSERT INTO manifest_child (repository_id, digest, manifest_id, role)
     SELECT repository_id, digest, ?, role FROM deleted_child WHERE deleted_id = ?`,
  )
  const link = db.prepare(
    `INSERT INTO blob_link (repository_id, blob_id, linked_at)
     SELECT c.repository_id, b.id, ? FROM deleted_child c JOIN blob b ON b.digest = c.digest
     WHERE c.deleted_id = ? AND c.is_linked = 1
     ON CONFLICT DO UPDATE SET linked_at = max(linked_at, excluded.linked_at)`,
  )
  const forget = db.prepare('DELETE FROM deleted_manifest WHERE id = ?')

  /** What is to be brought back for one manifest, or `gone` when something of that is not to be had. */
  function findAll(repository: number, digest: Digest): number[] | 'gone' {
    const deleted: number[] = []
    const seen = new Set<Digest>([digest])
    // What a manifest lists must be whole; what refers to it is brought along where that is possible.
    const queue = [{ digest, isNeeded: true }]
    for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
      const stored = findStored.get(repository, next.digest)
      const buried = stored === undefined ? findDeleted.get(repository, next.digest) : undefined
      const isLost = buried !== undefined && lostBlob.get(buried) !== undefined
      if (isLost || (stored === undefined && buried === undefined)) {
        if (isLost ? next.isNeeded : next.digest === digest) return 'gone'
        continue
      }
      if (buried !== undefined) deleted.push(buried)
      const children = stored !== undefined ? storedChildren.all(stored) : deletedChildren.all(buried ?? 0)
      const { isNeeded } = next
      const more = [
        ...children.map((child) => ({ digest: child, isNeeded })),
        ...referrers.all(repository, next.digest).map((one) => ({ digest: one, isNeeded: false })),
      ]
      for (const one of more) {
        if (seen.has(one.digest)) continue
        seen.add(one.digest)
        queue.push(one)
      }
    }
    return deleted
  }

  return function revive(repository: number, digest: Digest, now: number): number | 'gone' {
    const deleted = findAll(repository, digest)
    if (deleted === 'gone') return 'gone'
    for (const buried of deleted) {
      const manifest = insert.get(buried)
      if (manifest === undefined) throw new Error('a deleted manifest has no row')
      insertEdges.run(manifest, buried)
      link.run(now, buried)
      lease(manifest, now)
      forget.run(buried)
    }
    return deleted.length
  }
}

function prepareRunning(db: Database) {
  // A clock that was set back takes back what it had said of the future.
  const cut = db.prepare('DELETE FROM running_time WHERE began_at > ?')
  const end = db.prepare('UPDATE running_time SET ended_at = ? WHERE ended_at > ?')
  const extend = db.prepare(
    `UPDATE running_time SET ended_at = :now
     WHERE began_at = (SELECT max(began_at) FROM running_time) AND ended_at >= :now - :gap`,
  )
  const begin = db.prepare('INSERT INTO running_time (began_at, ended_at) VALUES (:now, :now)')
  const trim = db.prepare(
    `DELETE FROM running_time WHERE began_at < (
       SELECT began_at FROM running_time ORDER BY began_at DESC LIMIT 1 OFFSET ${mostPeriods - 1})`,
  )
  return {
    noteRunning(now: number, gap: number): void {
      cut.run(now)
      end.run(now, now)
      if (extend.run({ now, gap }).changes === 1) return
      begin.run({ now })
      trim.run()
    },
  }
}
