import { dirname, join } from 'node:path'
import type { Database } from 'better-sqlite3'
import type { Digest } from '../src/oci/digest.js'
import type { RepositoryName } from '../src/oci/reference.js'
import type {
  CandidatePage,
  CollectionStore,
  CollectionSums,
  CondemnedBlob,
  DigestFacts,
  IdleLink,
  IdleManifest,
  LinkKey,
  Moments,
} from './collection-store.js'
import { toStorageError } from './errors.js'
import { explainDigest, prepareFacts } from './sqlite-collection-facts.js'
import {
  manifestUsedAt,
  neededBlob,
  neededLink,
  ofGoneTag,
  prepareRemoval,
} from './sqlite-collection-operations.js'
import { prepareEmptyQueries } from './sqlite-empty-operations.js'
import { type Lock, LockedError, lockFile } from './sqlite-lock.js'
import type { Writer } from './sqlite-writer-client.js'

/**
 * Takes the lock that a collector holds while it is at work; undefined when one is. It ends with its process,
 * so whoever has it knows that all other collectors are dead.
 */
function lockCollector(database: string): Lock | undefined {
  try {
    return lockFile(join(dirname(database), 'collector.lock'), 'exclusive', 0)
  } catch (error) {
    if (error instanceof LockedError) return undefined
    throw toStorageError(error)
  }
}

/** A collector that died leaves blobs condemned: whoever asks next shall find them free. */
export async function releaseDeadCollector(writer: Writer): Promise<void> {
  const lock = lockCollector(writer.path)
  if (lock === undefined) return
  try {
    await writer.run('releaseCondemned')
  } finally {
    lock.release()
  }
}

/** The last row of a page, whatever is chosen from it: pages are of what is read, not of what is found. */
const pageEnd = (table: 'manifest' | 'blob') =>
  `SELECT max(id) FROM (SELECT id FROM ${table} WHERE id > ? ORDER BY id LIMIT ?)`

const notNamed = `NOT EXISTS (SELECT 1 FROM manifest_child c
  WHERE c.repository_id = l.repository_id AND c.digest = b.digest)`

type Window = { after: number; end: number; before: number }
type LinkWindow = LinkKey & Moments & { endRepositoryId: number; endBlobId: number }

function prepareWalks(db: Database) {
  const links = (condition: string) =>
    db.prepare<LinkWindow, IdleLink>(
      `SELECT l.repository_id AS repositoryId, l.blob_id AS blobId, r.name AS repository, b.digest, b.size
       FROM blob_link l JOIN repository r ON r.id = l.repository_id JOIN blob b ON b.id = l.blob_id
       WHERE (l.repository_id, l.blob_id) > (:repositoryId, :blobId)
         AND (l.repository_id, l.blob_id) <= (:endRepositoryId, :endBlobId)
         AND l.linked_at < :before AND ${condition}
         AND NOT ${neededLink('l.repository_id', 'b.digest')}
       ORDER BY l.repository_id, l.blob_id`,
    )
  return {
    repositories: prepareEmptyQueries(db),
    manifestPageEnd: db.prepare<[number, number], number | null>(pageEnd('manifest')).pluck(),
    idleManifests: db.prepare<Window, Omit<IdleManifest, 'isMirrored'> & { mirror: string | null }>(
      `SELECT m.id, r.name AS repository, r.mirror, ${manifestUsedAt} AS usedAt
       FROM manifest m JOIN repository r ON r.id = m.repository_id
       LEFT JOIN manifest_use u ON u.manifest_id = m.id
       WHERE m.id > :after AND m.id <= :end AND usedAt < :before
         AND NOT EXISTS (SELECT 1 FROM tag t WHERE t.manifest_id = m.id) ORDER BY m.id`,
    ),
    linkPageEnd: db.prepare<LinkKey & { last: number }, LinkKey>(
      `SELECT repository_id AS repositoryId, blob_id AS blobId FROM blob_link
       WHERE (repository_id, blob_id) > (:repositoryId, :blobId)
       ORDER BY repository_id, blob_id LIMIT 1 OFFSET :last`,
    ),
    idleLinks: links(notNamed),
    idleNamedLinks: links('TRUE'),
    blobPageEnd: db.prepare<[number, number], number | null>(pageEnd('blob')).pluck(),
    unlinkedBlobs: db.prepare<Window & Moments, CondemnedBlob>(
      `SELECT digest, size FROM blob b WHERE id > :after AND id <= :end
         AND state = 'live' AND created_at < :before
         AND NOT EXISTS (SELECT 1 FROM blob_link l WHERE l.blob_id = b.id)
         AND NOT ${neededBlob('b.digest')} ORDER BY id`,
    ),
    deletedIn: db
      .prepare<{ after: string; limit: number }, RepositoryName>(
        `SELECT r.name FROM repository r WHERE r.name > :after AND r.mirror IS NULL AND (
           EXISTS (SELECT 1 FROM deleted_manifest d WHERE d.repository_id = r.id)
           OR EXISTS (SELECT 1 FROM waiting_blob w WHERE w.repository = r.name)
           OR EXISTS (SELECT 1 FROM tag_history h WHERE h.repository_id = r.id AND ${ofGoneTag}))
         ORDER BY r.name LIMIT :limit`,
      )
      .pluck(),
    waiting: db.prepare<[string, number, number], CondemnedBlob & { id: number }>(
      `SELECT b.id, b.digest, b.size FROM waiting_blob w JOIN blob b ON b.id = w.blob_id
       WHERE w.repository = ? AND w.blob_id > ? ORDER BY w.blob_id LIMIT ?`,
    ),
    strangers: db
      .prepare<[string], Digest>(
        'SELECT d.value FROM json_each(?) d WHERE NOT EXISTS (SELECT 1 FROM blob WHERE digest = d.value)',
      )
      .pluck(),
    namingManifests: db
      .prepare<LinkKey & { limit: number }, number>(
        `SELECT c.manifest_id FROM blob b JOIN manifest_child c ON c.digest = b.digest
         WHERE b.id = :blobId AND c.repository_id = :repositoryId LIMIT :limit`,
      )
      .pluck(),
    countLinks: db.prepare<[number], number>('SELECT count(*) FROM blob_link WHERE blob_id = ?').pluck(),
    indexMadeAt: db.prepare<[], number>('SELECT index_made_at FROM collection').pluck(),
    previewRemoval: prepareRemoval(db),
    facts: prepareFacts(db),
  }
}

/** See {@link CollectionStore} for what each method promises. */
export class SqliteCollectionStore implements CollectionStore {
  readonly #queries: ReturnType<typeof prepareWalks>
  readonly #writer: Writer
  #lock: Lock | undefined

  constructor(db: Database, writer: Writer) {
    this.#queries = prepareWalks(db)
    this.#writer = writer
  }

  async #read<T>(query: (queries: ReturnType<typeof prepareWalks>) => T): Promise<T> {
    try {
      return query(this.#queries)
    } catch (error) {
      throw this.#writer.failureOf(error)
    }
  }

  async startCollection(): Promise<boolean> {
    if (this.#lock !== undefined) return false
    this.#lock = lockCollector(this.#writer.path)
    if (this.#lock === undefined) return false
    try {
      await this.#writer.run('releaseCondemned')
      return true
    } catch (error) {
      this.#unlock()
      throw error
    }
  }

  async endCollection(done: CollectionSums | undefined): Promise<void> {
    try {
      if (done !== undefined) await this.#writer.run('recordCollection', done)
    } finally {
      this.#unlock()
    }
  }

  #unlock(): void {
    this.#lock?.release()
    this.#lock = undefined
  }

  async indexMadeAt(): Promise<number> {
    return (await this.#read((queries) => queries.indexMadeAt.get())) ?? Number.MAX_SAFE_INTEGER
  }

  forgetOld(...args: Parameters<CollectionStore['forgetOld']>): Promise<number> {
    return this.#writer.run('forgetOld', ...args)
  }

  async forgetDraft(now: number): Promise<boolean> {
    const id = await this.#writer.run('findOldDraft', now)
    return id !== undefined && ((await this.#writer.run('dropDraft', id)) || true)
  }

  async forgetRepositories(after: number, limit: number): Promise<number | undefined> {
    const rows = await this.#read((queries) => queries.repositories.all({ after, limit }))
    const empty = rows.filter(({ isEmpty }) => isEmpty === 1).map(({ id }) => id)
    if (empty.length > 0) await this.#writer.run('removeRepositories', empty)
    return rows.length < limit ? undefined : rows.at(-1)?.id
  }

  listDeletedIn(after: string, limit: number): Promise<RepositoryName[]> {
    return this.#read((queries) => queries.deletedIn.all({ after, limit }))
  }

  forgetDeleted(
    ...args: Parameters<CollectionStore['forgetDeleted']>
  ): ReturnType<CollectionStore['forgetDeleted']> {
    return this.#writer.run('forgetDeleted', ...args)
  }

  listWaiting(
    ...args: Parameters<CollectionStore['listWaiting']>
  ): ReturnType<CollectionStore['listWaiting']> {
    return this.#read((queries) => queries.waiting.all(...args))
  }

  listIdleManifests(
    after: number,
    before: number,
    limit: number,
  ): Promise<CandidatePage<IdleManifest, number>> {
    return this.#read((queries) => {
      const end = queries.manifestPageEnd.get(after, limit) ?? undefined
      if (end === undefined) return { items: [], next: undefined }
      const rows = queries.idleManifests.all({ after, end, before })
      return { items: rows.map(({ mirror, ...row }) => ({ ...row, isMirrored: mirror !== null })), next: end }
    })
  }

  removeManifests(
    ...args: Parameters<CollectionStore['removeManifests']>
  ): ReturnType<CollectionStore['removeManifests']> {
    return this.#writer.run('removeManifests', ...args)
  }

  listIdleLinks(
    after: LinkKey | undefined,
    moments: Moments,
    limit: number,
    named?: 'named',
  ): Promise<CandidatePage<IdleLink, LinkKey>> {
    const { repositoryId, blobId } = after ?? { repositoryId: 0, blobId: 0 }
    return this.#read((queries) => {
      const next = queries.linkPageEnd.get({ repositoryId, blobId, last: limit - 1 })
      const end = next ?? { repositoryId: Number.MAX_SAFE_INTEGER, blobId: 0 }
      const links = named === undefined ? queries.idleLinks : queries.idleNamedLinks
      const { repositoryId: endRepositoryId, blobId: endBlobId } = end
      const items = links.all({ repositoryId, blobId, endRepositoryId, endBlobId, ...moments })
      return { items, next }
    })
  }

  removeLinks(
    ...args: Parameters<CollectionStore['removeLinks']>
  ): ReturnType<CollectionStore['removeLinks']> {
    return this.#writer.run('removeLinks', ...args)
  }

  listUnlinkedBlobs(
    after: number,
    moments: Moments,
    limit: number,
  ): Promise<CandidatePage<CondemnedBlob, number>> {
    return this.#read((queries) => {
      const end = queries.blobPageEnd.get(after, limit) ?? undefined
      if (end === undefined) return { items: [], next: undefined }
      return { items: queries.unlinkedBlobs.all({ after, end, ...moments }), next: end }
    })
  }

  condemnBlobs(
    ...args: Parameters<CollectionStore['condemnBlobs']>
  ): ReturnType<CollectionStore['condemnBlobs']> {
    return this.#writer.run('condemnBlobs', ...args)
  }

  listStrangers(digests: readonly Digest[]): Promise<Digest[]> {
    return this.#read((queries) => queries.strangers.all(JSON.stringify(digests)))
  }

  condemnFiles(...args: Parameters<CollectionStore['condemnFiles']>): Promise<CondemnedBlob[]> {
    return this.#writer.run('condemnFiles', ...args)
  }

  claimCondemned(holder: string, limit: number): Promise<CondemnedBlob[]> {
    return this.#writer.run('claimCondemned', holder, limit)
  }

  syncCondemned(now: number): Promise<void> {
    return this.#writer.run('check', now) // any durable write: the log is synced as a whole
  }

  forgetBlobs(digests: readonly Digest[], holder: string): Promise<void> {
    return this.#writer.run('forgetBlobs', digests, holder)
  }

  explainDigest(digest: Digest, limit: number): Promise<DigestFacts> {
    return this.#read((queries) => explainDigest(queries.facts, digest, limit))
  }

  previewRemoval(id: number, moments: Moments): ReturnType<CollectionStore['previewRemoval']> {
    return this.#read((queries) => queries.previewRemoval(id, moments))
  }

  listNamingManifests(link: LinkKey, limit: number): Promise<number[]> {
    const { repositoryId, blobId } = link
    return this.#read((queries) => queries.namingManifests.all({ repositoryId, blobId, limit }))
  }

  async countLinks(blobId: number): Promise<number> {
    return (await this.#read((queries) => queries.countLinks.get(blobId))) ?? 0
  }
}
