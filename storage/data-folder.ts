import { constants, existsSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { access, open, statfs } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { IndexDamagedError, isFull, isIndexDamage } from './errors.js'
import { closeDataFolder, makeFileForSqlite, makeFolder } from './file-owner.js'
import { Reserve } from './file-reserve.js'
import { takeSnapshot } from './file-snapshots.js'
import { prepareFsBlobStore } from './fs-blob-store.js'
import { refuseNewerSchema, schemaVersion } from './migrations.js'
import { findIndexFaults } from './sqlite-index.js'
import { type Lock, LockedError, lockFile } from './sqlite-lock.js'
import { prepareSqlite, readSchemaVersion } from './sqlite-metadata-store.js'

/** What commands lock that remove bytes, or bring some, beside a server or without one. */
const commandLocks = ['collector.lock', 'verifier.lock', 'sync.lock']

/** Milliseconds that a start waits for the workers of a server that has just died. */
const workersPatience = 10_000

/** Milliseconds that a restore waits for commands: some look for a moment whether another one is alive. */
const commandPatience = 1000

/** Bytes of an index that a start reads from its first to its last page: some hundred milliseconds. */
export const largestQuickLook = 64 * 1024 * 1024

/** Said of a data folder that this user cannot close to others. */
export const notClosed =
  'parts of the data folder belong to another user, or their modes cannot be changed: others may be able to read them'

/** Filesystems whose locks and syncs cannot be relied on, by their magic number (reliability R27). */
const networkFilesystems = new Map([
  [0x6969, 'NFS'],
  [0xff534d42, 'CIFS'],
  [0xfe534d42, 'SMB'],
  [0x65735546, 'FUSE'],
])

/** Where the parts of a data folder are. */
export function dataPaths(root: string) {
  return {
    database: join(root, 'boathouse.db'),
    serverLock: join(root, 'server.lock'),
    workersLock: join(root, 'workers.lock'),
    processId: join(root, 'server.pid'),
    keys: join(root, 'keys'),
    snapshots: join(root, 'snapshots'),
    damaged: join(root, 'damaged'),
    restoring: join(root, 'restoring'),
  }
}

/** Another server runs on the data folder. */
export class DataFolderInUseError extends Error {
  override readonly name = 'DataFolderInUseError'
}

/** What a command finds where a data folder should be. */
export type FolderState = 'ready' | 'missing' | 'older' | 'newer'

/** Whether commands can work on a data folder. Changes nothing, but for undoing a change of its index that was cut off. */
export function inspectDataFolder(root: string): FolderState {
  const version = readSchemaVersion(dataPaths(root).database)
  if (version === undefined) return 'missing'
  if (version === schemaVersion) return 'ready'
  return version < schemaVersion ? 'older' : 'newer'
}

/** A data folder that this server alone may use. */
export interface DataFolder {
  /** What its filesystem cannot promise, and who else may read what is in it. */
  readonly warnings: readonly string[]
  release(): void
}

/**
 * Takes the data folder for this server: locks it, makes what is missing, brings the schema up to date.
 * @throws DataFolderInUseError, NewerSchemaError, or the system's error
 */
export async function takeDataFolder(root: string): Promise<DataFolder> {
  const made = await makeFolder(root)
  if (made !== undefined) await syncParents(root, made)
  await access(root, constants.R_OK | constants.W_OK | constants.X_OK)
  const paths = dataPaths(root)
  const lock = lockServer(root)
  try {
    refuseNewer(paths.database)
    const isClosed = await closeDataFolder(root)
    await new Reserve(root).releaseForStart()
    // Workers outlive a killed server by a moment: none may still write when the new one begins.
    lockFile(paths.workersLock, 'exclusive', workersPatience).release()
    noteProcess(paths.processId)
    await prepareFsBlobStore(root)
    await checkIndex(paths)
    prepareSqlite(paths.database)
    await syncDirectory(root)
    const warnings = [filesystemWarning((await statfs(root)).type), isClosed ? undefined : notClosed]
    return { warnings: warnings.filter((text) => text !== undefined), release: () => lock.release() }
  } catch (error) {
    lock.release()
    throw error instanceof LockedError ? inUse(root) : error
  }
}

/** It is read in messages alone: a disk that is full to the last byte must not keep the server from starting. */
function noteProcess(path: string): void {
  try {
    makeFileForSqlite(path)
    writeFileSync(path, `${process.pid}\n`)
  } catch (error) {
    if (!isFull(error)) throw error
  }
}

/** Before anything is written to the folder: what a newer program has written is to stay as it is. */
function refuseNewer(database: string): void {
  let version: number | undefined
  try {
    version = readSchemaVersion(database)
  } catch {
    return // what is wrong with it is told when it is looked at
  }
  refuseNewerSchema(version ?? 0)
}

/** Makes sure that the index is sound and, before it is migrated, that a copy of it stays. */
async function checkIndex({ database, snapshots, restoring }: ReturnType<typeof dataPaths>): Promise<void> {
  if (existsSync(restoring)) {
    throw new DataFolderInUseError(
      `A restore into ${dirname(restoring)} was interrupted: run the same restore again, it goes on.`,
    )
  }
  const { size } = statSync(database, { throwIfNoEntry: false }) ?? { size: 0 }
  if (size === 0) return
  const version = readVersionOfSound(database, size)
  if (version === undefined || version === 0 || version >= schemaVersion) return
  const now = Date.now()
  const made = await takeSnapshot({ database, folder: snapshots, now, before: schemaVersion, floor: 0 })
  if (made !== undefined) return
  throw new Error(
    `There is no room for a copy of ${database}, which is made before it is migrated: make some.`,
  )
}

/** A large index is looked at when it is copied next, at the start already: it must not keep clients waiting. */
function readVersionOfSound(database: string, size: number): number | undefined {
  try {
    const version = readSchemaVersion(database)
    const [fault] = size > largestQuickLook ? [] : findIndexFaults(database, 'quick')
    if (fault !== undefined) throw new IndexDamagedError(database, fault)
    return version
  } catch (error) {
    if (!isIndexDamage(error)) throw error
    throw new IndexDamagedError(database, error instanceof Error ? error.message : '')
  }
}

/**
 * Keeps servers away from a data folder, and commands that work on what it stores, for as long as it is not whole.
 * @returns what lets them in again
 * @throws DataFolderInUseError
 */
export function lockDataFolder(root: string): () => void {
  const locks = [lockServer(root)]
  const release = () => {
    for (const lock of locks) lock.release()
  }
  try {
    lockFile(dataPaths(root).workersLock, 'exclusive', workersPatience).release()
    for (const name of commandLocks) locks.push(lockCommand(root, name))
    return release
  } catch (error) {
    release()
    throw error instanceof LockedError ? inUse(root) : error
  }
}

function lockCommand(root: string, name: string): Lock {
  try {
    return lockFile(join(root, name), 'exclusive', commandPatience)
  } catch (error) {
    if (!(error instanceof LockedError)) throw error
    throw new DataFolderInUseError(`A command is at work in ${root} (it holds ${name}): wait for its end.`)
  }
}

/** Taken by each worker, so that a new server waits for the workers of a dead one. */
export function joinDataFolder(root: string): Lock {
  return lockFile(dataPaths(root).workersLock, 'shared', workersPatience)
}

function lockServer(root: string): Lock {
  try {
    return lockFile(dataPaths(root).serverLock, 'exclusive', 0)
  } catch (error) {
    throw error instanceof LockedError ? inUse(root) : error
  }
}

function inUse(root: string): DataFolderInUseError {
  return new DataFolderInUseError(
    `Another Boathouse${runningProcess(root)} is using the data folder ${root}: stop it first, or start this one with another --data.`,
  )
}

function runningProcess(root: string): string {
  try {
    return ` (process ${readFileSync(dataPaths(root).processId, 'utf8').trim().slice(0, 20)})`
  } catch {
    return ''
  }
}

/** What a filesystem cannot promise, by its magic number (statfs); undefined when all is well (reliability R27). */
export function filesystemWarning(type: number): string | undefined {
  const name = networkFilesystems.get(type)
  if (name === undefined) return undefined
  return `the data folder is on ${name}: locks and syncs cannot be relied on there, use a local disk`
}

/** Makes new folders' places in their parents durable, down from the first one that was made. */
async function syncParents(root: string, firstMade: string): Promise<void> {
  for (let path = root; path.length >= firstMade.length; path = dirname(path))
    await syncDirectory(dirname(path))
}

async function syncDirectory(path: string): Promise<void> {
  const handle = await open(path, 'r')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}
