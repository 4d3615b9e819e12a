import type Database from 'better-sqlite3'
import { digestOf } from './content.js'
import type { StoredIndex, StoredManifest, StoredRepository } from './stored.js'

/** I7: what SQLite itself finds wrong. */
export function* checkDatabase(db: Database.Database): Generator<string> {
  for (const line of db.prepare<[], string>('PRAGMA integrity_check').pluck().all()) {
    if (line !== 'ok') yield `I7 integrity_check of the index: ${line}`
  }
  for (const row of db.prepare<[], { table: string; parent: string }>('PRAGMA foreign_key_check').all()) {
    yield `I7 foreign_key_check of the index: a row of ${row.table} points at no row of ${row.parent}`
  }
  yield* checkJoins(db)
  yield* checkQuotas(db)
  yield* checkDeleted(db)
}

/** I10: what counts against a quota is what the repositories that it counts hold, deleted or not, but for mirrors'. */
function* checkQuotas(db: Database.Database): Generator<string> {
  const own = (table: string) =>
    `(SELECT coalesce(sum(f.size), 0) FROM ${table} f WHERE f.repository_id = r.id)`
  const rows = db
    .prepare<[], { pattern: string; used: number; actual: number }>(
      `SELECT q.pattern, q.used, (
         SELECT coalesce(sum(
           (SELECT coalesce(sum(b.size), 0) FROM blob_link l JOIN blob b ON b.id = l.blob_id
            WHERE l.repository_id = r.id)
           + ${own('manifest')} + ${own('deleted_manifest')}
           + (SELECT coalesce(sum(size), 0) FROM waiting_blob w WHERE w.repository = m.repository)
           + (SELECT coalesce(sum(max(offset, reserved)), 0) FROM upload u WHERE u.repository = m.repository)
         ), 0) FROM quota_repository m LEFT JOIN repository r ON r.name = m.repository
         WHERE m.pattern = q.pattern AND r.mirror IS NULL) AS actual
       FROM quota q`,
    )
    .all()
  for (const { pattern, used, actual } of rows) {
    if (used !== actual) yield `I10 quota ${pattern} counts ${used} bytes, but there are ${actual}`
  }
}

/** I3, I10: what was deleted must be as good as what was not: it may be brought back. */
function* checkDeleted(db: Database.Database): Generator<string> {
  const rows = db.prepare<[], { digest: string; size: number; bytes: Buffer }>(
    'SELECT digest, size, bytes FROM deleted_manifest',
  )
  for (const { digest, size, bytes } of rows.iterate()) {
    if (digestOf(bytes, digest.split(':', 1)[0]) !== digest)
      yield `I3 deleted manifest ${digest} has other bytes`
    if (size !== bytes.length) yield `I10 deleted manifest ${digest} has another size than its row says`
    const named = new Set(readParts(bytes).children.map((child) => child.digest))
    const edges = db
      .prepare<[string], string>(
        `SELECT DISTINCT c.digest FROM deleted_child c JOIN deleted_manifest d ON d.id = c.deleted_id
         WHERE d.digest = ?`,
      )
      .pluck()
      .all(digest)
    if (edges.length !== named.size || edges.some((edge) => !named.has(edge))) {
      yield `I2 deleted manifest ${digest} has other edges than parts`
    }
  }
}

/** I2: relations that the foreign keys alone do not prove. */
function* checkJoins(db: Database.Database): Generator<string> {
  const questions = {
    'I2 tags without a manifest of their own repository': `SELECT count(*) FROM tag t
      WHERE NOT EXISTS (SELECT 1 FROM manifest m WHERE m.id = t.manifest_id AND m.repository_id = t.repository_id)`,
    'I6 links without a blob row': `SELECT count(*) FROM blob_link l
      WHERE NOT EXISTS (SELECT 1 FROM blob b WHERE b.id = l.blob_id)`,
    'I8 links without a repository': `SELECT count(*) FROM blob_link l
      WHERE NOT EXISTS (SELECT 1 FROM repository r WHERE r.id = l.repository_id)`,
    'I2 edges without a manifest of their own repository': `SELECT count(*) FROM manifest_child c
      WHERE NOT EXISTS (SELECT 1 FROM manifest m WHERE m.id = c.manifest_id AND m.repository_id = c.repository_id)`,
    'I2 edges without a deleted manifest of their own repository': `SELECT count(*) FROM deleted_child c
      WHERE NOT EXISTS (SELECT 1 FROM deleted_manifest d WHERE d.id = c.deleted_id AND d.repository_id = c.repository_id)`,
    'I2 deleted manifests whose blobs are not kept': `SELECT count(*) FROM deleted_child c
      WHERE c.is_linked = 1 AND NOT EXISTS (SELECT 1 FROM blob b WHERE b.digest = c.digest AND b.state = 'live')`,
    'I1 tags that their history says were removed or are elsewhere': `SELECT count(*) FROM tag t
      JOIN manifest m ON m.id = t.manifest_id JOIN tag_history h ON h.id = (
        SELECT max(id) FROM tag_history WHERE repository_id = t.repository_id AND name = t.name)
      WHERE h.digest IS NOT m.digest`,
    'I5 tags that their history says are there': `SELECT count(*) FROM tag_history h
      WHERE h.digest IS NOT NULL
        AND h.id = (SELECT max(id) FROM tag_history WHERE repository_id = h.repository_id AND name = h.name)
        AND NOT EXISTS (SELECT 1 FROM tag t WHERE t.repository_id = h.repository_id AND t.name = h.name)`,
    'I1 changes of tags without a previous or a new digest': `SELECT count(*) FROM tag_history
      WHERE digest IS NULL AND previous IS NULL`,
  }
  for (const [what, sql] of Object.entries(questions)) {
    const count = Number(db.prepare(sql).pluck().get())
    if (count > 0) yield `${what}: ${count}`
  }
}

/** What a suite knows about parts that may be missing. */
export type MayBeMissing = (repository: string, digest: string) => boolean

/** I2, I3, I10: whether the rows of the index fit each other and the bytes that they hold. */
export function* checkIndex(index: StoredIndex, mayBeMissing: MayBeMissing): Generator<string> {
  for (const [name, repository] of index.repositories) {
    for (const manifest of repository.manifests.values()) {
      yield* checkManifest(name, repository, manifest, mayBeMissing)
    }
  }
  let bytes = 0
  for (const size of index.blobs.values()) bytes += size
  if (index.totals.blobs !== index.blobs.size || index.totals.bytes !== bytes) {
    yield `I10 the index counts ${index.totals.blobs} blobs of ${index.totals.bytes} bytes, but has ${index.blobs.size} of ${bytes}`
  }
}

function* checkManifest(
  name: string,
  repository: StoredRepository,
  manifest: StoredManifest,
  mayBeMissing: MayBeMissing,
): Generator<string> {
  const where = `manifest ${name}@${manifest.digest.slice(0, 19)}…`
  if (digestOf(manifest.bytes, manifest.digest.split(':', 1)[0]) !== manifest.digest) {
    yield `I3 ${where} has other bytes than its digest says`
    return
  }
  if (manifest.size !== manifest.bytes.length) yield `I10 ${where} has another size than its row says`
  const parts = readParts(manifest.bytes)
  if (parts.subject !== manifest.subject) yield `I2 ${where} is listed under another subject than it names`
  const named = new Set(parts.children.map((child) => child.digest))
  if (named.size !== manifest.children.size || [...named].some((digest) => !manifest.children.has(digest))) {
    yield `I2 ${where} has other edges than parts`
  }
  for (const { digest, kind } of parts.children) {
    const isThere =
      kind === 'elsewhere' ||
      repository.blobs.has(digest) ||
      (kind === 'manifest' && repository.manifests.has(digest))
    if (!isThere && !mayBeMissing(name, digest)) yield `I2 ${where} names ${digest}, which is missing`
  }
}

interface Part {
  readonly digest: string
  /** Where it must be: a blob of the repository, a manifest (or blob) of it, or not here at all. */
  readonly kind: 'blob' | 'manifest' | 'elsewhere'
}

interface Descriptor {
  readonly digest: string
  readonly mediaType: string
  readonly urls?: readonly string[]
  readonly data?: string
}

/** Reads a manifest by the book, without the server's own parser. */
function readParts(bytes: Buffer): { children: Part[]; subject: string | undefined } {
  const json = JSON.parse(bytes.toString()) as {
    config?: Descriptor
    layers?: Descriptor[]
    blobs?: Descriptor[]
    manifests?: Descriptor[]
    subject?: Descriptor
  }
  const blobs = [
    ...(json.config === undefined ? [] : [json.config]),
    ...(json.layers ?? []),
    ...(json.blobs ?? []),
  ]
  return {
    children: [
      ...blobs.map(
        ({ digest, ...rest }): Part => ({ digest, kind: isElsewhere(rest) ? 'elsewhere' : 'blob' }),
      ),
      ...(json.manifests ?? []).map(({ digest }): Part => ({ digest, kind: 'manifest' })),
    ],
    subject: json.subject?.digest,
  }
}

function isElsewhere({ mediaType, urls, data }: Omit<Descriptor, 'digest'>): boolean {
  return (
    (urls !== undefined && urls.length > 0) ||
    data !== undefined ||
    /\.nondistributable\.|\.foreign\./.test(mediaType)
  )
}
