import { copyFileSync, existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import { migrate } from '../../storage/migrations.js'
import type { Contents, Key, Value } from './model.js'

/** A manifest's row, with its edges. */
export interface StoredManifest {
  readonly digest: string
  readonly size: number
  readonly mediaType: string
  readonly subject: string | undefined
  readonly bytes: Buffer
  /** Digests that the edges name. */
  readonly children: ReadonlySet<string>
}

/** What the index of a stopped server says of one repository. */
export interface StoredRepository {
  /** Digest by tag. */
  readonly tags: ReadonlyMap<string, string>
  readonly manifests: ReadonlyMap<string, StoredManifest>
  /** Digests of linked blobs. */
  readonly blobs: ReadonlySet<string>
}

/** An upload's row. */
export interface StoredUpload {
  readonly id: string
  readonly repository: string
  readonly offset: number
  readonly digest: string | null
  readonly holder: string | null
}

/** The index of a stopped server. */
export interface StoredIndex extends Contents {
  readonly repositories: ReadonlyMap<string, StoredRepository>
  /** Size in bytes by digest. */
  readonly blobs: ReadonlyMap<string, number>
  /** Those of them that are being collected: their bytes may have gone. */
  readonly condemned: ReadonlySet<string>
  readonly uploads: readonly StoredUpload[]
  /** What the index itself says of the number and size of all blobs. */
  readonly totals: { readonly blobs: number; readonly bytes: number }
}

/**
 * Opens a copy of a stopped server's index: looking at the original would let SQLite mend it before the server
 * itself has to. The copy of an older index is migrated, so that it is asked what it will be asked.
 */
export function withIndexCopy<T>(data: string, look: (db: Database.Database) => T): T {
  const folder = mkdtempSync(join(tmpdir(), 'boathouse-check-'))
  try {
    for (const suffix of ['', '-wal']) {
      const file = join(data, `boathouse.db${suffix}`)
      if (existsSync(file)) copyFileSync(file, join(folder, `index.db${suffix}`))
    }
    const db = new Database(join(folder, 'index.db'), { fileMustExist: true })
    try {
      if (Number(db.pragma('user_version', { simple: true })) > 0) migrate(db)
      db.pragma('query_only = ON')
      return look(db)
    } finally {
      db.close()
    }
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

/** What remains of an index that cannot be read. */
export const emptyIndex: StoredIndex = {
  repositories: new Map(),
  blobs: new Map(),
  condemned: new Set(),
  uploads: [],
  totals: { blobs: 0, bytes: 0 },
  value: () => undefined,
  keys: () => [],
}

/** Reads the whole index. @throws when SQLite cannot */
export function readIndex(db: Database.Database): StoredIndex {
  const repositories = readRepositories(db)
  const blobs = db
    .prepare<[], { digest: string; size: number; state: string }>('SELECT digest, size, state FROM blob')
    .all()
  const uploads = db
    .prepare<[], StoredUpload>('SELECT id, repository, offset, digest, holder FROM upload')
    .all()
  const totals = db
    .prepare<[], { blobs: number; bytes: number }>('SELECT blobs, blob_bytes AS bytes FROM total')
    .get()
  return {
    repositories,
    blobs: new Map(blobs.map(({ digest, size }) => [digest, size])),
    condemned: new Set(blobs.filter(({ state }) => state === 'condemned').map(({ digest }) => digest)),
    uploads,
    totals: totals ?? { blobs: Number.NaN, bytes: Number.NaN },
    value: (key) => findValue(repositories, key),
    keys: () => listKeys(repositories),
  }
}

interface MutableRepository extends StoredRepository {
  readonly tags: Map<string, string>
  readonly manifests: Map<string, StoredManifest>
  readonly blobs: Set<string>
}

function readRepositories(db: Database.Database): Map<string, StoredRepository> {
  const repositories = new Map<string, MutableRepository>()
  for (const name of db.prepare<[], string>('SELECT name FROM repository').pluck().iterate()) {
    repositories.set(name, { tags: new Map(), manifests: new Map(), blobs: new Set() })
  }
  const tags = db.prepare<[], { repository: string; name: string; digest: string }>(
    `SELECT r.name AS repository, t.name, m.digest FROM tag t
     JOIN repository r ON r.id = t.repository_id JOIN manifest m ON m.id = t.manifest_id`,
  )
  for (const tag of tags.iterate()) repositories.get(tag.repository)?.tags.set(tag.name, tag.digest)
  const links = db.prepare<[], { repository: string; digest: string }>(
    `SELECT r.name AS repository, b.digest FROM blob_link l
     JOIN repository r ON r.id = l.repository_id JOIN blob b ON b.id = l.blob_id`,
  )
  for (const link of links.iterate()) repositories.get(link.repository)?.blobs.add(link.digest)
  for (const { repository, ...manifest } of readManifests(db)) {
    repositories.get(repository)?.manifests.set(manifest.digest, manifest)
  }
  return repositories
}

function readManifests(db: Database.Database): (StoredManifest & { repository: string })[] {
  const edges = db.prepare<[], { manifest: number; digest: string }>(
    'SELECT manifest_id AS manifest, digest FROM manifest_child',
  )
  const children = new Map<number, Set<string>>()
  for (const { manifest, digest } of edges.iterate()) {
    const known = children.get(manifest)
    if (known === undefined) children.set(manifest, new Set([digest]))
    else known.add(digest)
  }
  const rows = db.prepare<[], ManifestRow>(
    `SELECT m.id, r.name AS repository, m.digest, m.size, m.media_type AS mediaType, m.subject, m.bytes
     FROM manifest m JOIN repository r ON r.id = m.repository_id`,
  )
  return rows.all().map(({ id, subject, ...row }) => ({
    ...row,
    subject: subject ?? undefined,
    children: children.get(id) ?? new Set(),
  }))
}

interface ManifestRow {
  readonly id: number
  readonly repository: string
  readonly digest: string
  readonly size: number
  readonly mediaType: string
  readonly subject: string | null
  readonly bytes: Buffer
}

function findValue(repositories: ReadonlyMap<string, StoredRepository>, key: Key): Value {
  const repository = repositories.get(key.repository)
  if (repository === undefined) return undefined
  if (key.kind === 'tag') return repository.tags.get(key.name)
  const names = key.kind === 'blob' ? repository.blobs : repository.manifests
  return names.has(key.name) ? 'present' : undefined
}

function* listKeys(repositories: ReadonlyMap<string, StoredRepository>): Generator<Key> {
  for (const [repository, { tags, manifests, blobs }] of repositories) {
    for (const name of tags.keys()) yield { kind: 'tag', repository, name }
    for (const name of manifests.keys()) yield { kind: 'manifest', repository, name }
    for (const name of blobs) yield { kind: 'blob', repository, name }
  }
}
