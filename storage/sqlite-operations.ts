import type { Database } from 'better-sqlite3'
import type { Digest } from '../src/oci/digest.js'
import type { Child } from '../src/oci/manifest.js'
import type { RepositoryName, Tag } from '../src/oci/reference.js'
import { matchesTag } from '../src/oci/tag-pattern.js'
import type { Condition, DeleteResult, NewManifest, PutManifestResult, Upload } from './metadata-store.js'
import { prepareAccessOperations } from './sqlite-access-operations.js'
import { prepareMirrorOperations } from './sqlite-mirror-operations.js'

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

/**
 * The operations that write, each run inside a transaction by the writer thread. They return refusals as
 * values; what they throw undoes the operation alone.
 */
export type Operations = ReturnType<typeof prepareOperations>

/**
 * Operations whose loss in a power cut takes nothing from anybody: they are committed without waiting for the
 * disk. The next durable commit carries them along, since the log is synced as a whole.
 */
export const volatileOperations: ReadonlySet<string> = new Set<keyof Operations>([
  'startUpload',
  'takeTurn',
  'releaseTurn',
  'releaseTurns',
  'removeUpload',
  'touchAccessTokens',
  'takeFill',
  'noteFillSize',
  'takeLease',
  'releaseLease',
  'noteUses',
  'noteWork',
])

export function prepareOperations(db: Database) {
  const uploads = prepareUploads(db)
  const blobs = prepareBlobs(db)
  const manifests = prepareManifests(db)
  const mirrors = prepareMirrorOperations(db, {
    ...uploads,
    ...blobs,
    ...manifests,
    repositoryId: prepareRepositoryId(db),
  })
  const probe = db.prepare('UPDATE probe SET checked_at = ?')
  return {
    ...uploads,
    ...blobs,
    ...manifests,
    ...prepareAccessOperations(db),
    ...mirrors,

    /** Whoever begins with this text is dead: what it held is free. */
    releaseTurns(prefix: string): void {
      uploads.releaseTurns(prefix)
      mirrors.releaseLeases(prefix)
    },

    finishUpload(
      id: string,
      holder: string,
      blob: { readonly digest: Digest; readonly size: number },
      now: number,
    ): boolean {
      const repository = uploads.end(id, holder)
      if (repository === undefined) return false
      blobs.add(repository, blob, now)
      return true
    },

    /** Proves that the database takes writes. */
    check(now: number): void {
      probe.run(now)
    },
  }
}

function prepareUploads(db: Database) {
  const count = db.prepare<[string], number>('SELECT count(*) FROM upload WHERE repository = ?').pluck()
  const insert = db.prepare(
    `INSERT INTO upload (id, repository, owner, algorithm, offset, started_at, used_at)
     VALUES (?, ?, ?, ?, 0, ?, ?)`,
  )
  const exists = db.prepare('SELECT 1 FROM upload WHERE id = ?').pluck()
  const take = db.prepare<[string, string], UploadRow>(
    `UPDATE upload SET holder = ? WHERE id = ? AND holder IS NULL RETURNING ${uploadColumns}`,
  )
  const save = db.prepare(
    'UPDATE upload SET offset = ?, digest = ?, used_at = ?, holder = NULL WHERE id = ? AND holder = ?',
  )
  const release = db.prepare('UPDATE upload SET holder = NULL WHERE id = ? AND holder = ?')
  const releaseAll = db.prepare(
    'UPDATE upload SET holder = NULL WHERE holder >= ? AND substr(holder, 1, length(?)) = ?',
  )
  const remove = db.prepare('DELETE FROM upload WHERE id = ? AND holder IS ?')
  const end = db
    .prepare<[string, string], RepositoryName>(
      'DELETE FROM upload WHERE id = ? AND holder = ? RETURNING repository',
    )
    .pluck()
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

    takeTurn(id: string, holder: string): Upload | 'busy' | 'unknown' {
      const row = take.get(holder, id)
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

    releaseTurns(prefix: string): void {
      releaseAll.run(prefix, prefix, prefix)
    },

    removeUpload(id: string, holder: string | undefined): boolean {
      return remove.run(id, holder ?? null).changes === 1
    },

    expireUploads(before: number, limit: number): string[] {
      return expire.all(before, limit)
    },

    end(id: string, holder: string): RepositoryName | undefined {
      return end.get(id, holder)
    },
  }
}

function prepareBlobs(db: Database) {
  const repositoryId = prepareRepositoryId(db)
  const insert = db.prepare(
    'INSERT INTO blob (digest, size, created_at) VALUES (?, ?, ?) ON CONFLICT (digest) DO NOTHING',
  )
  const find = db.prepare<[string], number>('SELECT id FROM blob WHERE digest = ?').pluck()
  const link = db.prepare(
    `INSERT INTO blob_link (repository_id, blob_id, linked_at) VALUES (?, ?, ?)
     ON CONFLICT DO UPDATE SET linked_at = excluded.linked_at`,
  )
  const findLink = db.prepare<[string, string], { repository: number; blob: number }>(
    `SELECT r.id AS repository, b.id AS blob FROM blob_link l
       JOIN repository r ON r.id = l.repository_id JOIN blob b ON b.id = l.blob_id
       WHERE r.name = ? AND b.digest = ?`,
  )
  const used = db
    .prepare('SELECT 1 FROM manifest_child WHERE repository_id = ? AND digest = ? LIMIT 1')
    .pluck()
  const unlink = db.prepare('DELETE FROM blob_link WHERE repository_id = ? AND blob_id = ?')

  return {
    add(repository: RepositoryName, blob: { digest: Digest; size: number }, now: number): void {
      insert.run(blob.digest, blob.size, now)
      link.run(repositoryId(repository, now), find.get(blob.digest), now)
    },

    linkBlob(repository: RepositoryName, blobId: number, now: number): void {
      link.run(repositoryId(repository, now), blobId, now)
    },

    mountBlob(repository: RepositoryName, digest: Digest, from: RepositoryName, now: number): boolean {
      const source = findLink.get(from, digest)
      if (source === undefined) return false
      link.run(repositoryId(repository, now), source.blob, now)
      return true
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

function prepareManifests(db: Database) {
  const repositoryId = prepareRepositoryId(db)
  const insert = db
    .prepare<unknown[], number>(
      `INSERT INTO manifest
         (repository_id, digest, media_type, size, subject, artifact_type, annotations, created_at, bytes)
       VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
       ON CONFLICT (repository_id, digest) DO UPDATE SET
         media_type = excluded.media_type, subject = excluded.subject,
         artifact_type = excluded.artifact_type, annotations = excluded.annotations
       RETURNING id`,
    )
    .pluck()
  const insertChild = db.prepare(
    `INSERT INTO manifest_child (repository_id, digest, manifest_id, role) VALUES (?, ?, ?, ?)
     ON CONFLICT DO NOTHING`,
  )
  const setTag = db.prepare(
    `INSERT INTO tag (repository_id, name, manifest_id, updated_at) VALUES (?, ?, ?, ?)
     ON CONFLICT (repository_id, name)
     DO UPDATE SET manifest_id = excluded.manifest_id, updated_at = excluded.updated_at`,
  )
  const deleteTag = db.prepare(
    'DELETE FROM tag WHERE repository_id = (SELECT id FROM repository WHERE name = ?) AND name = ?',
  )
  const deleteManifest = db.prepare(
    'DELETE FROM manifest WHERE repository_id = (SELECT id FROM repository WHERE name = ?) AND digest = ?',
  )
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
  const hasTag = db
    .prepare(
      'SELECT 1 FROM tag t JOIN repository r ON r.id = t.repository_id WHERE r.name = ? AND t.name = ?',
    )
    .pluck()
  // An immutable tag also keeps what its index lists, at any depth.
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

  function currentDigest(repository: number, manifest: NewManifest): Digest | undefined {
    const [tag] = manifest.tags
    return tag === undefined ? present.get(repository, manifest.digest) : tagged.get(repository, tag)
  }

  return {
    putManifest(manifest: NewManifest): PutManifestResult {
      const { digest, now } = manifest
      const repository = repositoryId(manifest.repository, now)
      if (!holds(manifest.condition, currentDigest(repository, manifest))) {
        return { outcome: 'condition-failed' }
      }
      const moved = manifest.tags.find((tag) => {
        const current = isImmutable(tag, manifest.immutable) ? tagged.get(repository, tag) : undefined
        return current !== undefined && current !== digest
      })
      if (moved !== undefined) return { outcome: 'immutable', tag: moved }
      const refusal = checkChildren(repository, manifest)
      if (refusal !== undefined) return refusal
      const id = insert.get(
        repository,
        digest,
        manifest.mediaType,
        manifest.bytes.byteLength,
        manifest.subject ?? null,
        manifest.artifactType ?? null,
        manifest.subject === undefined || manifest.annotations === undefined
          ? null
          : JSON.stringify(manifest.annotations),
        now,
        manifest.bytes,
      )
      for (const child of manifest.children) insertChild.run(repository, child.digest, id, child.role)
      for (const tag of manifest.tags) setTag.run(repository, tag, id, now)
      return { outcome: 'stored' }
    },

    deleteTag(repository: RepositoryName, tag: Tag, immutable: readonly string[]): DeleteResult {
      if (isImmutable(tag, immutable) && hasTag.get(repository, tag) !== undefined) {
        return { outcome: 'immutable', tag }
      }
      return { outcome: deleteTag.run(repository, tag).changes === 1 ? 'deleted' : 'unknown' }
    },

    /** The tags and the edges go with it by their foreign keys. */
    deleteManifest(repository: RepositoryName, digest: Digest, immutable: readonly string[]): DeleteResult {
      const tags = immutable.length === 0 ? [] : tagsAbove.all({ repository, digest })
      const kept = tags.find((tag) => isImmutable(tag, immutable))
      if (kept !== undefined) return { outcome: 'immutable', tag: kept }
      return { outcome: deleteManifest.run(repository, digest).changes === 1 ? 'deleted' : 'unknown' }
    },
  }
}

/** Compares a manifest's children with what the repository holds, all with one SELECT. */
function prepareCheckChildren(db: Database) {
  const sizes = db.prepare<
    { repository: number; digests: string },
    { digest: Digest; blob: number | null; manifest: number | null }
  >(
    `SELECT c.value AS digest,
       (SELECT b.size FROM blob b JOIN blob_link l ON l.blob_id = b.id
        WHERE b.digest = c.value AND l.repository_id = :repository) AS blob,
       (SELECT m.size FROM manifest m
        WHERE m.repository_id = :repository AND m.digest = c.value) AS manifest
     FROM json_each(:digests) c`,
  )

  return function check(repository: number, manifest: NewManifest): PutManifestResult | undefined {
    const required = manifest.children.filter((child) => child.required)
    if (required.length === 0) return undefined
    const digests = JSON.stringify([...new Set(required.map((child) => child.digest))])
    const held = new Map(sizes.all({ repository, digests }).map((row) => [row.digest, row]))
    const missing = new Set<Digest>()
    for (const child of required) {
      const size = heldSize(child, held.get(child.digest))
      if (size === undefined) missing.add(child.digest)
      else if (size !== child.size) return { outcome: 'wrong-size', digest: child.digest, size }
    }
    if (missing.size === 0 || manifest.sparse) return undefined
    return { outcome: 'missing', digests: [...missing] }
  }
}

function heldSize(
  child: Child,
  row: { blob: number | null; manifest: number | null } | undefined,
): number | undefined {
  const size = child.role === 'manifest' ? (row?.manifest ?? row?.blob) : row?.blob
  return size ?? undefined
}

function isImmutable(tag: Tag, patterns: readonly string[]): boolean {
  return patterns.some((pattern) => matchesTag(pattern, tag))
}

function holds(condition: Condition | undefined, current: Digest | undefined): boolean {
  if (condition === undefined) return true
  const named = current !== undefined && (condition.digests === 'any' || condition.digests.includes(current))
  return condition.mode === 'match' ? named : !named
}

/** The id of a repository, which comes into being with the first thing that is stored in it. */
function prepareRepositoryId(db: Database) {
  const find = db.prepare<[string], number>('SELECT id FROM repository WHERE name = ?').pluck()
  const insert = db.prepare('INSERT INTO repository (name, created_at) VALUES (?, ?)')
  return function repositoryId(name: RepositoryName, now: number): number {
    return find.get(name) ?? Number(insert.run(name, now).lastInsertRowid)
  }
}
