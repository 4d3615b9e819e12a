import type { Database } from 'better-sqlite3'
import type { Digest } from '../src/oci/digest.js'
import type { RepositoryName, Tag } from '../src/oci/reference.js'
import { matchesTag } from '../src/oci/tag-pattern.js'
import type {
  Condition,
  DeleteResult,
  Deletion,
  NewManifest,
  Pull,
  PutManifestResult,
} from './metadata-store.js'
import { entrySizes, type Need } from './quota-store.js'
import { prepareRepositoryId } from './sqlite-blob-operations.js'
import { prepareCheckChildren } from './sqlite-children.js'
import { type DraftedManifest, nextManifestId } from './sqlite-drafts.js'
import { prepareBurial, prepareHistory } from './sqlite-history-operations.js'

/** Manifests and tags. */
export function prepareManifests(db: Database) {
  const repositoryId = prepareRepositoryId(db)
  // The same digest again brings its bytes again: where they were damaged, that mends them.
  const insert = db.prepare<unknown[], { id: number; createdAt: number }>(
    `INSERT INTO manifest
         (id, repository_id, digest, media_type, size, subject, artifact_type, annotations, created_at, bytes)
       VALUES (coalesce(?, ${nextManifestId}), ?, ?, ?, ?, ?, ?, ?, ?, ?)
       ON CONFLICT (repository_id, digest) DO UPDATE SET
         media_type = excluded.media_type, size = excluded.size, subject = excluded.subject,
         artifact_type = excluded.artifact_type, annotations = excluded.annotations, bytes = excluded.bytes
       RETURNING id, created_at AS createdAt`,
  )
  const insertChild = db.prepare(
    `INSERT INTO manifest_child (repository_id, digest, manifest_id, role) VALUES (?, ?, ?, ?)
     ON CONFLICT DO NOTHING`,
  )
  const closeDraft = db.prepare('DELETE FROM manifest_draft WHERE id = ?')
  const setTag = db.prepare(
    `INSERT INTO tag (repository_id, name, manifest_id, updated_at) VALUES (?, ?, ?, ?)
     ON CONFLICT (repository_id, name)
     DO UPDATE SET manifest_id = excluded.manifest_id, updated_at = excluded.updated_at`,
  )
  const tagTarget = db.prepare<[number, string], { id: number; digest: Digest }>(
    `SELECT m.id, m.digest FROM tag t JOIN manifest m ON m.id = t.manifest_id
     WHERE t.repository_id = ? AND t.name = ?`,
  )
  const deleteTag = db.prepare<[number, string], { manifest: number; digest: Digest }>(
    `DELETE FROM tag WHERE repository_id = ? AND name = ?
     RETURNING manifest_id AS manifest, (SELECT digest FROM manifest WHERE id = manifest_id) AS digest`,
  )
  const findId = db
    .prepare<[string, string], number>(
      'SELECT m.id FROM manifest m JOIN repository r ON r.id = m.repository_id WHERE r.name = ? AND m.digest = ?',
    )
    .pluck()
  const lease = db.prepare(
    `INSERT INTO manifest_use (manifest_id, leased_at) VALUES (?, ?)
     ON CONFLICT (manifest_id) DO UPDATE SET leased_at = max(coalesce(leased_at, 0), excluded.leased_at)`,
  )
  const notePull = db.prepare(
    `INSERT INTO manifest_use (manifest_id, pulled_at) VALUES (?, ?)
     ON CONFLICT (manifest_id) DO UPDATE SET pulled_at = max(coalesce(pulled_at, 0), excluded.pulled_at)`,
  )
  const noteTagPull = db.prepare(
    `UPDATE tag SET pulled_at = max(coalesce(pulled_at, 0), ?)
     WHERE repository_id = (SELECT id FROM repository WHERE name = ?) AND name = ?`,
  )
  const findRepository = db.prepare<[string], { id: number; mirror: string | null }>(
    'SELECT id, mirror FROM repository WHERE name = ?',
  )
  const tagsOn = db.prepare<[number], Tag>('SELECT name FROM tag WHERE manifest_id = ?').pluck()
  const deleteManifest = db.prepare('DELETE FROM manifest WHERE id = ?')
  const noteChange = prepareHistory(db)
  const bury = prepareBurial(db)
  const tagged = db
    .prepare<[number, string], Digest>(
      `SELECT m.digest FROM tag t JOIN manifest m ON m.id = t.manifest_id
       WHERE t.repository_id = ? AND t.name = ?`,
    )
    .pluck()
  const present = db
    .prepare<[number, string], Digest>('SELECT digest FROM manifest WHERE repository_id = ? AND digest = ?')
    .pluck()
  const checkChildren = prepareCheckChildren(db)
  const checkType = prepareCheckType(db)
  const hasTag = db
    .prepare(
      'SELECT 1 FROM tag t JOIN repository r ON r.id = t.repository_id WHERE r.name = ? AND t.name = ?',
    )
    .pluck()
  const findImmutable = prepareFindImmutable(db)

  /** What the names of a push point at now: its tags, or without any the manifest itself. */
  function currentDigests(repository: number, { tags, digest }: NewManifest): (Digest | undefined)[] {
    if (tags.length === 0) return [present.get(repository, digest)]
    return tags.map((tag) => tagged.get(repository, tag))
  }

  /** What a tag pointed at until now has a while left, as what was just pushed. */
  function moveTag(repository: number, tag: Tag, id: number, { digest, user, now }: NewManifest): void {
    const before = tagTarget.get(repository, tag)
    if (before !== undefined && before.id !== id) lease.run(before.id, now)
    setTag.run(repository, tag, id, now)
    if (before?.id === id) return
    noteChange(repository, tag, { digest, previous: before?.digest, how: 'push', user, now })
  }

  return {
    /** @param beforeStore is called when nothing is in the way any more */
    putManifest(manifest: DraftedManifest, beforeStore?: () => void): PutManifestResult {
      const { digest, now } = manifest
      const repository = repositoryId(manifest.repository, now)
      const { condition } = manifest
      if (condition !== undefined && !holds(condition, currentDigests(repository, manifest))) {
        return { outcome: 'condition-failed' }
      }
      const moved = manifest.tags.find((tag) => {
        const current = isImmutable(tag, manifest.immutable) ? tagged.get(repository, tag) : undefined
        return current !== undefined && current !== digest
      })
      if (moved !== undefined) return { outcome: 'immutable', tag: moved }
      const refusal = checkType(repository, manifest) ?? checkChildren(repository, manifest)
      if (refusal !== undefined) return refusal
      beforeStore?.()
      const stored = insert.get(
        manifest.draft ?? null,
        repository,
        digest,
        manifest.mediaType,
        manifest.bytes.byteLength,
        manifest.subject ?? null,
        manifest.artifactType ?? null,
        manifest.subject === undefined ? null : (manifest.annotations ?? null),
        now,
        manifest.bytes,
      )
      if (stored === undefined) throw new Error('a manifest that was put has no row')
      const { id } = stored
      if (stored.createdAt !== now) lease.run(id, now)
      // Where the manifest was here already, with edges of its own, those of the draft are dropped.
      if (manifest.draft === id && closeDraft.run(id).changes === 0) throw new Error('the draft is gone')
      for (const child of manifest.children) insertChild.run(repository, child.digest, id, child.role)
      for (const tag of manifest.tags) moveTag(repository, tag, id, manifest)
      return { outcome: 'stored' }
    },

    /** What storing a manifest would add to what its repository holds; undefined when that is nothing. */
    needOf({ repository, digest, bytes, tags }: NewManifest): Need | undefined {
      const id = findRepository.get(repository)?.id
      const isNew = findId.get(repository, digest) === undefined
      const need = { bytes: isNew ? bytes.byteLength : 0, overhead: isNew ? entrySizes.manifest : 0 }
      for (const tag of tags) {
        const current = id === undefined ? undefined : tagged.get(id, tag)
        if (current === digest) continue
        need.overhead += entrySizes.change + (current === undefined ? entrySizes.tag : 0)
      }
      return need.overhead === 0 ? undefined : need
    },

    renewManifest(repository: RepositoryName, digest: Digest, now: number): boolean {
      const id = findId.get(repository, digest)
      if (id === undefined) return false
      lease.run(id, now)
      return true
    },

    /** What has gone meanwhile is left out. */
    recordPulls(pulls: readonly Pull[]): void {
      for (const { repository, digest, tag, at } of pulls) {
        const id = findId.get(repository, digest)
        if (id !== undefined) notePull.run(id, at)
        if (tag !== undefined) noteTagPull.run(at, repository, tag)
      }
    },

    deleteTag(repository: RepositoryName, tag: Tag, { immutable, user, now }: Deletion): DeleteResult {
      if (isImmutable(tag, immutable) && hasTag.get(repository, tag) !== undefined) {
        return { outcome: 'immutable', tag }
      }
      const id = findRepository.get(repository)?.id
      const deleted = id === undefined ? undefined : deleteTag.get(id, tag)
      if (id === undefined || deleted === undefined) return { outcome: 'unknown' }
      lease.run(deleted.manifest, now) // who deletes a tag may want it back
      noteChange(id, tag, { digest: undefined, previous: deleted.digest, how: 'delete', user, now })
      return { outcome: 'deleted' }
    },

    /** The tags and the edges go with it by their foreign keys. */
    deleteManifest(repository: RepositoryName, digest: Digest, deletion: Deletion): DeleteResult {
      const { immutable, user, now } = deletion
      const kept = findImmutable(repository, digest, immutable)
      if (kept !== undefined) return { outcome: 'immutable', tag: kept }
      const found = findRepository.get(repository)
      const id = findId.get(repository, digest)
      if (found === undefined || id === undefined) return { outcome: 'unknown' }
      for (const tag of tagsOn.all(id)) {
        noteChange(found.id, tag, { digest: undefined, previous: digest, how: 'delete', user, now })
      }
      if (found.mirror === null) bury({ id, repository: found.id, digest }, now)
      deleteManifest.run(id)
      return { outcome: 'deleted' }
    },
  }
}

/** Finds an immutable tag that leads to a manifest: it also keeps what its index lists, at any depth. */
function prepareFindImmutable(db: Database) {
  const tagsAbove = db
    .prepare<{ repository: string; digest: string }, Tag>(
      `WITH RECURSIVE above (id, repository_id, digest) AS (
         SELECT m.id, m.repository_id, m.digest FROM manifest m JOIN repository r ON r.id = m.repository_id
         WHERE r.name = :repository AND m.digest = :digest
         UNION
         SELECT m.id, m.repository_id, m.digest FROM above
         JOIN manifest_child c ON c.repository_id = above.repository_id AND c.digest = above.digest
         JOIN manifest m ON m.id = c.manifest_id
       )
       SELECT t.name FROM above JOIN tag t ON t.manifest_id = above.id`,
    )
    .pluck()
  return function findImmutable(
    repository: RepositoryName,
    digest: Digest,
    immutable: readonly string[],
  ): Tag | undefined {
    if (immutable.length === 0) return undefined
    return tagsAbove.all({ repository, digest }).find((tag) => isImmutable(tag, immutable))
  }
}

/**
 * The same bytes can be pushed under another type where they do not say it themselves. What something depends on keeps
 * the type, and with it the subject, of its first push.
 */
function prepareCheckType(db: Database) {
  const findImmutable = prepareFindImmutable(db)
  const find = db.prepare<[number, string], { mediaType: string; subject: Digest | null }>(
    'SELECT media_type AS mediaType, subject FROM manifest WHERE repository_id = ? AND digest = ?',
  )
  // A referrer that was deleted comes back with its subject: it must not find its place taken by something else.
  const findDeleted = db.prepare<[number, string], { mediaType: string; subject: Digest | null }>(
    'SELECT media_type AS mediaType, subject FROM deleted_manifest WHERE repository_id = ? AND digest = ?',
  )
  const hasReferrers = db
    .prepare('SELECT 1 FROM manifest WHERE repository_id = ? AND subject = ? LIMIT 1')
    .pluck()

  return function check(repository: number, manifest: NewManifest): PutManifestResult | undefined {
    const { digest, mediaType } = manifest
    const stored = find.get(repository, digest)
    const known = stored ?? findDeleted.get(repository, digest)
    if (known === undefined || known.mediaType === mediaType) return undefined
    const refuse = (dependent: Tag | 'referrer'): PutManifestResult => ({
      outcome: 'retyped',
      mediaType: known.mediaType,
      for: dependent,
    })
    if (known.subject !== null) return refuse('referrer')
    if (stored === undefined) return undefined
    if (hasReferrers.get(repository, digest) !== undefined) return refuse('referrer')
    const tag = findImmutable(manifest.repository, digest, manifest.immutable)
    return tag === undefined ? undefined : refuse(tag)
  }
}

function isImmutable(tag: Tag, patterns: readonly string[]): boolean {
  return patterns.some((pattern) => matchesTag(pattern, tag))
}

/**
 * Whether a condition holds for all names of a push together (protocol MF-18). `match`: what is there is as the client
 * thinks, and something is; a new tag beside it takes nothing from anybody. `none-match`: none of it is there.
 */
function holds({ mode, digests }: Condition, current: readonly (Digest | undefined)[]): boolean {
  const isNamed = (digest: Digest) => digests === 'any' || digests.includes(digest)
  const there = current.filter((digest) => digest !== undefined)
  return mode === 'match' ? there.length > 0 && there.every(isNamed) : !there.some(isNamed)
}
