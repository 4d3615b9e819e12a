import { stat } from 'node:fs/promises'
import Database from 'better-sqlite3'
import type { Digest } from '../src/oci/digest.js'
import type { Reference, RepositoryName } from '../src/oci/reference.js'
import { Turns } from '../src/oci/turns.js'
import type { AccessStore } from './access-store.js'
import type { CollectionStore } from './collection-store.js'
import { errorCode, toStorageError } from './errors.js'
import { makeFileForSqlite } from './file-owner.js'
import type { IntegrityStore } from './integrity-store.js'
import type {
  DeleteResult,
  ManifestHead,
  MetadataStore,
  NewManifest,
  OpenUpload,
  Page,
  PutManifestResult,
  ReferrerLimits,
  ReferrerPage,
  StoredManifest,
  Totals,
  TurnResult,
  Upload,
} from './metadata-store.js'
import { migrate, refuseNewerSchema } from './migrations.js'
import type { MirrorStore } from './mirror-store.js'
import type { QuotaStore } from './quota-store.js'
import { SqliteAccessStore } from './sqlite-access-store.js'
import { releaseDeadCollector, SqliteCollectionStore } from './sqlite-collection-store.js'
import { openDatabase, openForReading } from './sqlite-connection.js'
import { SqliteIntegrityStore } from './sqlite-integrity-store.js'
import { prepareQueries } from './sqlite-metadata-queries.js'
import { SqliteMirrorStore } from './sqlite-mirror-store.js'
import { putInTurns } from './sqlite-put-in-turns.js'
import { SqliteQuotaStore } from './sqlite-quota-store.js'
import { collectReferrers } from './sqlite-referrers.js'
import { searchNames, walkNames } from './sqlite-search.js'
import { SqliteTagStore } from './sqlite-tag-store.js'
import { toUpload } from './sqlite-upload-operations.js'
import { Writer, type WriterOptions } from './sqlite-writer-client.js'
import type { TagStore } from './tag-store.js'

/**
 * Creates the database file or brings it to the current schema. To be called before any store is opened, by
 * one process alone.
 * @throws NewerSchemaError
 */
export function prepareSqlite(path: string): void {
  // Looked at before it is opened for writing: a newer database stays as it is, its log included.
  refuseNewerSchema(readSchemaVersion(path) ?? 0)
  makeFileForSqlite(path)
  const db = openDatabase(path, 'writer')
  try {
    migrate(db)
    db.pragma('wal_checkpoint(TRUNCATE)')
  } finally {
    db.close()
  }
}

/**
 * Brings a copy of an index, which nobody works on, to the schema of this version; it stays one file.
 * @throws NewerSchemaError, or the database's error; Error where it is no index of this program
 */
export function bringUpToDate(path: string): void {
  if ((readSchemaVersion(path) ?? 0) === 0) throw new Error(`${path} is no index of this program`)
  prepareSqlite(path)
  const db = new Database(path, { fileMustExist: true })
  try {
    db.pragma('journal_mode = DELETE')
  } finally {
    db.close()
  }
}

/** The schema version of a database, undefined where there is none. @throws when it is no database */
export function readSchemaVersion(path: string): number | undefined {
  try {
    new Database(path, { readonly: true, fileMustExist: true }).close()
  } catch (error) {
    if (errorCode(error) === 'SQLITE_CANTOPEN') return undefined
    throw error
  }
  const db = openForReading(path)
  try {
    return Number(db.pragma('user_version', { simple: true }))
  } finally {
    db.close()
  }
}

/** The ports that one database serves. Closing the first closes them all. */
export interface SqliteStores {
  readonly metadata: MetadataStore
  readonly access: AccessStore
  readonly collection: CollectionStore
  readonly mirrors: MirrorStore
  readonly integrity: IntegrityStore
  readonly quotas: QuotaStore
  readonly tags: TagStore
}

/**
 * Opens the SQLite drivers: this thread reads, a thread of its own writes.
 * @throws when the database cannot be opened
 */
export async function openSqliteStores(options: WriterOptions): Promise<SqliteStores> {
  const writer = await Writer.start(options)
  const db = openDatabase(options.path, 'reader')
  return {
    metadata: new SqliteMetadataStore(options.path, db, writer),
    access: new SqliteAccessStore(db, writer),
    collection: new SqliteCollectionStore(db, writer),
    mirrors: new SqliteMirrorStore(db, writer),
    integrity: new SqliteIntegrityStore(db, writer),
    quotas: new SqliteQuotaStore(db, writer),
    tags: new SqliteTagStore(db, writer),
  }
}

/** Opens the metadata alone. @throws when the database cannot be opened */
export async function openSqliteMetadataStore(options: WriterOptions): Promise<MetadataStore> {
  return (await openSqliteStores(options)).metadata
}

/** Tags that are read at once: a millisecond's worth. */
const tagsAtOnce = 1000

/** See {@link MetadataStore} for what each method promises. */
class SqliteMetadataStore implements MetadataStore {
  readonly #path: string
  readonly #db: Database.Database
  readonly #queries: ReturnType<typeof prepareQueries>
  readonly #writer: Writer

  constructor(path: string, db: Database.Database, writer: Writer) {
    this.#path = path
    this.#db = db
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

  findBlob(repository: RepositoryName, digest: Digest): Promise<number | undefined> {
    return this.#read((queries) => queries.blobSize.get(repository, digest))
  }

  async leaseBlob(...args: Parameters<MetadataStore['leaseBlob']>): Promise<number | undefined> {
    const [repository, digest, now, slack] = args
    const row = await this.#read((queries) => queries.blobLease.get(repository, digest))
    if (row === undefined || row.leasedAt >= now - slack) return row?.size
    return this.#writer.run('renewBlob', repository, digest, now)
  }

  async leaseOwnBlob(
    ...args: Parameters<MetadataStore['leaseOwnBlob']>
  ): ReturnType<MetadataStore['leaseOwnBlob']> {
    const [repository, digest, now] = args
    const row = await this.#read((queries) => queries.blobLease.get(repository, digest))
    const isMirrored = row !== undefined && row.mirror !== null
    return isMirrored ? this.#writer.run('ownBlob', repository, digest, now) : this.leaseBlob(...args)
  }

  async isBlobDamaged(repository: RepositoryName, digest: Digest): Promise<boolean> {
    return (await this.#read((queries) => queries.blobDamage.get(repository, digest))) !== undefined
  }

  listBlobRepositories(digest: Digest, limit: number): Promise<RepositoryName[]> {
    return this.#read((queries) => queries.blobRepositories.all(digest, limit))
  }

  mountBlob(...args: Parameters<MetadataStore['mountBlob']>): ReturnType<MetadataStore['mountBlob']> {
    return this.#writer.run('mountBlob', ...args)
  }

  unlinkBlob(...args: Parameters<MetadataStore['unlinkBlob']>): ReturnType<MetadataStore['unlinkBlob']> {
    return this.#writer.run('unlinkBlob', ...args)
  }

  startUpload(...args: Parameters<MetadataStore['startUpload']>): ReturnType<MetadataStore['startUpload']> {
    return this.#writer.run('startUpload', ...args)
  }

  endIdleUpload(...args: Parameters<MetadataStore['endIdleUpload']>): Promise<string | undefined> {
    return this.#writer.run('endIdleUpload', ...args)
  }

  listUploads(after: string, limit: number): Promise<OpenUpload[]> {
    return this.#read((queries) =>
      queries.uploads.all(after, limit).map((row) => ({ ...row, isBusy: row.isBusy === 1 })),
    )
  }

  cancelUpload(id: string): Promise<boolean> {
    return this.#writer.run('cancelUpload', id)
  }

  findUpload(id: string): Promise<Upload | undefined> {
    return this.#read((queries) => {
      const row = queries.upload.get(id)
      return row === undefined ? undefined : toUpload(row)
    })
  }

  async takeTurn(id: string, holder: string, finishing?: Digest): Promise<TurnResult> {
    const taken = await this.#writer.run('takeTurn', id, holder, finishing)
    if (taken === 'condemned') await releaseDeadCollector(this.#writer)
    return taken
  }

  saveProgress(...args: Parameters<MetadataStore['saveProgress']>): Promise<boolean> {
    return this.#writer.run('saveProgress', ...args)
  }

  releaseTurn(...args: Parameters<MetadataStore['releaseTurn']>): Promise<void> {
    return this.#writer.run('releaseTurn', ...args)
  }

  releaseTurns(...args: Parameters<MetadataStore['releaseTurns']>): Promise<void> {
    return this.#writer.run('releaseServerTurns', ...args)
  }

  finishUpload(...args: Parameters<MetadataStore['finishUpload']>): Promise<boolean> {
    return this.#writer.run('finishUpload', ...args)
  }

  removeUpload(...args: Parameters<MetadataStore['removeUpload']>): Promise<boolean> {
    return this.#writer.run('removeUpload', ...args)
  }

  expireUploads(...args: Parameters<MetadataStore['expireUploads']>): Promise<string[]> {
    return this.#writer.run('expireUploads', ...args)
  }

  async hasRepository(repository: RepositoryName): Promise<boolean> {
    return (await this.#read((queries) => queries.hasRepository.get(repository))) !== undefined
  }

  findManifest(repository: RepositoryName, reference: Reference): Promise<StoredManifest | undefined> {
    return this.#read((queries) =>
      reference.kind === 'tag'
        ? queries.manifestByTag.get(repository, reference.tag)
        : queries.manifestByDigest.get(repository, reference.digest),
    )
  }

  findManifestHead(repository: RepositoryName, reference: Reference): Promise<ManifestHead | undefined> {
    return this.#read((queries) =>
      reference.kind === 'tag'
        ? queries.headByTag.get(repository, reference.tag)
        : queries.headByDigest.get(repository, reference.digest),
    )
  }

  async leaseManifest(
    repository: RepositoryName,
    digest: Digest,
    now: number,
    slack: number,
  ): Promise<boolean> {
    const leasedAt = await this.#read((queries) => queries.manifestLease.get(repository, digest))
    if (leasedAt === undefined || leasedAt >= now - slack) return leasedAt !== undefined
    return this.#writer.run('renewManifest', repository, digest, now)
  }

  recordPulls(...args: Parameters<MetadataStore['recordPulls']>): Promise<void> {
    return this.#writer.run('recordPulls', ...args)
  }

  putManifest(manifest: NewManifest): Promise<PutManifestResult> {
    return putInTurns(this.#writer, manifest, (drafted) => this.#writer.run('putManifest', drafted))
  }

  deleteTag(...args: Parameters<MetadataStore['deleteTag']>): Promise<DeleteResult> {
    return this.#writer.run('deleteTag', ...args)
  }

  deleteManifest(...args: Parameters<MetadataStore['deleteManifest']>): Promise<DeleteResult> {
    return this.#writer.run('deleteManifest', ...args)
  }

  async listTags(repository: RepositoryName, after: string, limit: number): Promise<Page> {
    const names: string[] = []
    const turns = new Turns()
    for (let last = after; names.length <= limit; last = names.at(-1) ?? last) {
      const most = Math.min(limit + 1 - names.length, tagsAtOnce)
      const found = await this.#read((queries) => queries.tags.all(repository, last, most))
      names.push(...found)
      if (found.length < most) break
      await turns.rest()
    }
    return toPage(names, limit)
  }

  async listRepositories(prefix: string, after: string, limit: number): Promise<Page> {
    const names: string[] = []
    for await (const found of this.#walkNames(prefix, after)) {
      names.push(...found)
      if (names.length > limit) break
    }
    return toPage(names, limit)
  }

  searchRepositories(prefixes: readonly string[], text: string, limit: number): Promise<RepositoryName[]> {
    return searchNames({ prefixes, text: text.toLowerCase(), limit }, (prefix) => this.#walkNames(prefix, ''))
  }

  #walkNames(prefix: string, after: string): AsyncGenerator<RepositoryName[]> {
    return walkNames(prefix, after, (range) => this.#read((queries) => queries.names.all(range)))
  }

  listReferrers(
    repository: RepositoryName,
    subject: Digest,
    artifactTypes: readonly string[],
    after: number,
    most: ReferrerLimits,
  ): Promise<ReferrerPage> {
    const types = artifactTypes.length === 0 ? null : JSON.stringify(artifactTypes)
    return collectReferrers({ repository, subject, types, after, most }, (use) =>
      this.#read((queries) => use(queries.referrers)),
    )
  }

  async totals(): Promise<Totals> {
    const counted = await this.#read((queries) => queries.totals.get())
    const sizes = await Promise.all([this.#path, `${this.#path}-wal`].map(fileSize))
    const metadataBytes = sizes.reduce((sum, size) => sum + size, 0)
    if (counted === undefined) throw toStorageError(new Error('the index has no sums'))
    return { ...counted, metadataBytes }
  }

  async check(): Promise<void> {
    await this.#read((queries) => queries.totals.get())
    await this.#writer.run('check', Date.now())
  }

  async close(): Promise<void> {
    await this.#writer.close()
    this.#db.close()
  }
}

function toPage(names: string[], limit: number): Page {
  return names.length > limit ? { names: names.slice(0, limit), more: true } : { names, more: false }
}

async function fileSize(path: string): Promise<number> {
  try {
    return (await stat(path)).size
  } catch {
    return 0 // no log yet
  }
}
