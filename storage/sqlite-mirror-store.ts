import { setTimeout as delay } from 'node:timers/promises'
import type Database from 'better-sqlite3'
import type { Digest } from '../src/oci/digest.js'
import type { RepositoryName, Tag } from '../src/oci/reference.js'
import type { NewManifest, StoredManifest } from './metadata-store.js'
import {
  type Fill,
  type MirroredBlob,
  type MirroredManifest,
  type MirrorRoom,
  type MirrorState,
  type MirrorStore,
  type RepositoryKind,
  syncHolder,
} from './mirror-store.js'
import { releaseDeadCollector } from './sqlite-collection-store.js'
import type { Lock } from './sqlite-lock.js'
import { isRepositoryUsed } from './sqlite-mirror-operations.js'
import { putInTurns } from './sqlite-put-in-turns.js'
import { lockSync, releaseDeadSync } from './sqlite-sync-lock.js'
import type { Writer } from './sqlite-writer-client.js'

interface TaggedRow {
  digest: Digest
  mediaType: string
  size: number
  checkedAt: number | null
  mirror: string | null
  bytes: Uint8Array
}

interface StateRow extends Omit<MirrorState, 'health' | 'healthAt' | 'sync'> {
  health: string | null
  healthAt: number | null
  sync: string | null
}

function prepareQueries(db: Database.Database) {
  return {
    name: db.prepare<[], string>('SELECT name FROM service').pluck(),
    kind: db.prepare<[string], { mirror: string | null; isUsed: number }>(
      `SELECT mirror, ${isRepositoryUsed} AS isUsed FROM repository r WHERE name = ?`,
    ),
    lendable: db
      .prepare<[string, string], number>(
        `SELECT b.size FROM blob b JOIN mirror_delivery d ON d.blob_id = b.id
         WHERE d.mirror = ? AND b.digest = ? AND b.state = 'live' AND b.damage IS NULL`,
      )
      .pluck(),
    tagged: db.prepare<[string, string], TaggedRow>(
      `SELECT m.digest AS digest, m.media_type AS mediaType, m.size AS size, t.checked_at AS checkedAt,
         r.mirror AS mirror, m.bytes AS bytes
       FROM repository r JOIN tag t ON t.repository_id = r.id
       JOIN manifest m ON m.id = t.manifest_id WHERE r.name = ? AND t.name = ?`,
    ),
    naming: db.prepare<[string, string, number], StoredManifest>(
      `SELECT m.digest AS digest, m.media_type AS mediaType, m.size AS size, m.bytes AS bytes
       FROM repository r JOIN manifest_child c ON c.repository_id = r.id
       JOIN manifest m ON m.id = c.manifest_id WHERE r.name = ? AND c.digest = ? LIMIT ?`,
    ),
    fill: db.prepare<[string], { size: number | null; holder: string | null }>(
      'SELECT size, holder FROM upload WHERE id = ?',
    ),
    leaseHolder: db.prepare<[string], string>('SELECT holder FROM lease WHERE key = ?').pluck(),
    states: db.prepare<[], StateRow>(
      `SELECT name, blobs, bytes, hits, misses, bytes_fetched AS bytesFetched, bytes_saved AS bytesSaved,
         evicted_blobs AS evictedBlobs, evicted_bytes AS evictedBytes, health, nullif(health_at, 0) AS healthAt, sync
       FROM mirror ORDER BY name`,
    ),
    used: db.prepare<[string], number>('SELECT bytes FROM mirror WHERE name = ?').pluck(),
    room: db.prepare<{ mirror: string | null; except: string; budget: number }, MirrorRoom>(
      `SELECT
         (SELECT coalesce(sum(bytes), 0) FROM mirror WHERE name = coalesce(:mirror, name)) AS held,
         count(*) FILTER (WHERE u.holder IS NOT NULL AND u.size <= :budget) AS fills,
         coalesce(sum(u.size) FILTER (WHERE u.holder IS NOT NULL AND u.size <= :budget), 0) AS announced,
         count(*) FILTER (WHERE u.holder IS NOT NULL AND u.size > :budget) AS largeFills,
         coalesce(sum(u.offset) FILTER (WHERE u.holder IS NULL), 0) AS paused
       FROM upload u JOIN repository r ON r.name = u.repository
       WHERE r.mirror IS NOT NULL AND r.mirror = coalesce(:mirror, r.mirror) AND u.id <> :except`,
    ),
    leastUsed: db.prepare<[{ mirror: string; usedAt: number; id: number; limit: number }], MirroredBlob>(
      `SELECT b.id AS id, b.digest AS digest, m.size AS size, m.used_at AS usedAt FROM mirror_blob m
       JOIN blob b ON b.id = m.blob_id WHERE m.mirror = :mirror AND (m.used_at, m.blob_id) > (:usedAt, :id)
       ORDER BY m.used_at, m.blob_id LIMIT :limit`,
    ),
  }
}

/** See {@link MirrorStore} for what each method promises. */
export class SqliteMirrorStore implements MirrorStore {
  readonly #queries: ReturnType<typeof prepareQueries>
  readonly #writer: Writer
  #syncLock: Lock | undefined

  constructor(db: Database.Database, writer: Writer) {
    this.#queries = prepareQueries(db)
    this.#writer = writer
  }

  async #read<T>(query: (queries: ReturnType<typeof prepareQueries>) => T): Promise<T> {
    try {
      return query(this.#queries)
    } catch (error) {
      throw this.#writer.failureOf(error)
    }
  }

  async findName(): Promise<string> {
    return (await this.#read((queries) => queries.name.get())) ?? ''
  }

  findRepositoryKind(repository: RepositoryName): Promise<RepositoryKind> {
    return this.#read((queries) => {
      const row = queries.kind.get(repository)
      if (row === undefined || row.isUsed === 0) return 'absent'
      return row.mirror === null ? 'local' : 'mirrored'
    })
  }

  listNaming(repository: RepositoryName, digest: Digest, limit: number): Promise<readonly StoredManifest[]> {
    return this.#read((queries) => queries.naming.all(repository, digest, limit))
  }

  findTagged(repository: RepositoryName, tag: Tag): Promise<MirroredManifest | undefined> {
    return this.#read((queries) => {
      const row = queries.tagged.get(repository, tag)
      if (row === undefined) return undefined
      const { digest, mediaType, size, bytes, mirror, checkedAt } = row
      const kind = mirror === null ? 'local' : 'mirrored'
      return { digest, mediaType, size, bytes, checkedAt: checkedAt ?? undefined, kind }
    })
  }

  putMirrored(manifest: NewManifest, mirror: string): ReturnType<MirrorStore['putMirrored']> {
    return putInTurns(this.#writer, manifest, (drafted) => this.#writer.run('putMirrored', drafted, mirror))
  }

  noteTagChecked(...args: Parameters<MirrorStore['noteTagChecked']>): Promise<boolean> {
    return this.#writer.run('noteTagChecked', ...args)
  }

  async takeFill(...args: Parameters<MirrorStore['takeFill']>): ReturnType<MirrorStore['takeFill']> {
    const taken = await this.#writer.run('takeFill', ...args)
    if (taken === 'condemned') await releaseDeadCollector(this.#writer)
    return taken
  }

  noteFillSize(...args: Parameters<MirrorStore['noteFillSize']>): Promise<void> {
    return this.#writer.run('noteFillSize', ...args)
  }

  async findFill(id: string): Promise<Fill | undefined> {
    const find = () => this.#read((queries) => queries.fill.get(id))
    let row = await find()
    if (row?.holder?.startsWith(syncHolder)) {
      await releaseDeadSync(this.#writer)
      row = await find()
    }
    return row === undefined ? undefined : { size: row.size ?? undefined, isHeld: row.holder !== null }
  }

  findLendable(mirror: string, digest: Digest): Promise<number | undefined> {
    return this.#read((queries) => queries.lendable.get(mirror, digest))
  }

  linkMirrored(...args: Parameters<MirrorStore['linkMirrored']>): Promise<boolean> {
    return this.#writer.run('linkMirrored', ...args)
  }

  async takeLease(...args: Parameters<MirrorStore['takeLease']>): Promise<boolean> {
    if (await this.#writer.run('takeLease', ...args)) return true
    const [key] = args
    const holder = await this.#read((queries) => queries.leaseHolder.get(key))
    if (holder?.startsWith(syncHolder)) await this.releaseDeadSync()
    return false
  }

  releaseLease(...args: Parameters<MirrorStore['releaseLease']>): Promise<void> {
    return this.#writer.run('releaseLease', ...args)
  }

  /** Whoever looks whether a sync is alive holds its lock for a moment: so one try is not enough. */
  async startSync(): Promise<boolean> {
    if (this.#syncLock !== undefined) return false
    for (let tries = 0; tries < 5 && this.#syncLock === undefined; tries++) {
      if (tries > 0) await delay(10)
      this.#syncLock = lockSync(this.#writer.path)
    }
    if (this.#syncLock === undefined) return false
    try {
      await this.#writer.run('releaseTurns', syncHolder)
      return true
    } catch (error) {
      this.#unlockSync()
      throw error
    }
  }

  /** What is still held is given back with the lock in hand: the next sync's own must not be taken for it. */
  async endSync(): Promise<void> {
    try {
      await this.#writer.run('releaseTurns', syncHolder)
    } finally {
      this.#unlockSync()
    }
  }

  #unlockSync(): void {
    this.#syncLock?.release()
    this.#syncLock = undefined
  }

  releaseDeadSync(): Promise<void> {
    return releaseDeadSync(this.#writer)
  }

  async settleRepositories(mirrors: readonly string[]): Promise<void> {
    for (;;) if ((await this.#writer.run('settleRepositories', mirrors)) === 0) return
  }

  noteSync(...args: Parameters<MirrorStore['noteSync']>): Promise<void> {
    return this.#writer.run('noteSync', ...args)
  }

  noteUses(...args: Parameters<MirrorStore['noteUses']>): Promise<void> {
    return this.#writer.run('noteUses', ...args)
  }

  noteWork(...args: Parameters<MirrorStore['noteWork']>): Promise<void> {
    return this.#writer.run('noteWork', ...args)
  }

  listStates(): Promise<readonly MirrorState[]> {
    return this.#read((queries) =>
      queries.states.all().map((row) => ({
        ...row,
        health: row.health ?? undefined,
        healthAt: row.healthAt ?? undefined,
        sync: row.sync ?? undefined,
      })),
    )
  }

  async usedBytes(mirror: string): Promise<number> {
    return (await this.#read((queries) => queries.used.get(mirror))) ?? 0
  }

  findRoom(
    mirror: string | undefined,
    exceptFill: string,
    budget = Number.MAX_SAFE_INTEGER,
  ): Promise<MirrorRoom> {
    return this.#read((queries) => {
      const room = queries.room.get({ mirror: mirror ?? null, except: exceptFill, budget })
      if (room === undefined) throw new Error('an aggregate always has a row')
      return room
    })
  }

  listLeastUsed(
    mirror: string,
    limit: number,
    after = { usedAt: Number.MIN_SAFE_INTEGER, id: 0 },
  ): Promise<readonly MirroredBlob[]> {
    const { usedAt, id } = after
    return this.#read((queries) => queries.leastUsed.all({ mirror, usedAt, id, limit }))
  }

  evict(...args: Parameters<MirrorStore['evict']>): Promise<number> {
    return this.#writer.run('evict', ...args)
  }
}
