import { open, readdir, rename, rm, stat, statfs, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { errorCode, IndexDamagedError, toStorageError } from './errors.js'
import { fileMode, giveToOwner, makeFolder } from './file-owner.js'
import { syncDirectories } from './fs-layout.js'
import { runIndexTask } from './sqlite-index-task.js'

/** A copy of the index in the data folder. */
export interface Snapshot {
  readonly name: string
  readonly path: string
  /** Milliseconds since 1970. */
  readonly madeAt: number
  /** The schema that it was made to save it from, if any. */
  readonly before: number | undefined
}

const namePattern = /^index-(\d{4}-\d\d-\d\dT)(\d\d)-(\d\d)-(\d\d)-(\d{3})Z(?:-before-v(\d+))?\.db$/

/**
 * The copies of the index, newest first; each was whole when it got its name. Those that say that they are of a time to
 * come are last: they were made while the clock was wrong, and nobody knows how old they are.
 */
export async function listSnapshots(folder: string): Promise<Snapshot[]> {
  const names = await readdir(folder).catch((error: unknown) => {
    if (errorCode(error) === 'ENOENT') return []
    throw error
  })
  const found = names.flatMap((name): Snapshot[] => {
    const [, day, hour, minute, second, milliseconds, before] = namePattern.exec(name) ?? []
    if (day === undefined) return []
    const madeAt = Date.parse(`${day}${hour}:${minute}:${second}.${milliseconds}Z`)
    const path = join(folder, name)
    return [{ name, path, madeAt, before: before === undefined ? undefined : Number(before) }]
  })
  const now = Date.now()
  const toCome = ({ madeAt }: Snapshot) => (madeAt > now ? 1 : 0)
  return found.sort((one, other) => toCome(one) - toCome(other) || other.madeAt - one.madeAt)
}

/** What a snapshot is told. */
export interface SnapshotOptions {
  readonly database: string
  /** Where snapshots are. */
  readonly folder: string
  /** Milliseconds since 1970. */
  readonly now: number
  /** The schema of the migration that follows, if any. */
  readonly before?: number
  /** Bytes that stay free on the disk. */
  readonly floor: number
}

/**
 * Copies the index as it is at one moment, while others read and write it. The copy is looked at page by page and
 * synced before it gets its name.
 * @returns undefined when there is no room for it
 * @throws IndexDamagedError, or RegistryError UNAVAILABLE or STORAGE_FULL; nothing is left behind then
 */
export async function takeSnapshot(options: SnapshotOptions): Promise<Snapshot | undefined> {
  const { database, folder, now, before, floor } = options
  await makeFolder(folder)
  await removeUnfinished(folder)
  if (!(await hasRoom(database, folder, floor))) return undefined
  const suffix = before === undefined ? '' : `-before-v${before}`
  const name = `index-${new Date(now).toISOString().replaceAll(/[:.]/g, '-')}${suffix}.db`
  const path = join(folder, name)
  await copyIndexTo(database, path)
  await syncDirectories([dirname(folder)])
  return { name, path, madeAt: now, before }
}

/**
 * Copies an index to a file that comes into being whole, or not at all.
 * @throws as {@link takeSnapshot}
 */
export async function copyIndexTo(database: string, path: string): Promise<void> {
  const unfinished = `${path}.new`
  await rm(unfinished, { force: true })
  try {
    await writeFile(unfinished, '', { mode: fileMode }) // it holds hashes of passwords, wherever it is put
    await giveToOwner(unfinished)
    const [fault] = await runIndexTask({ task: 'copy', path: database, target: unfinished })
    if (fault !== undefined) throw new IndexDamagedError(database, fault)
    await syncFile(unfinished)
    await rename(unfinished, path)
    await syncDirectories([dirname(path)])
  } catch (error) {
    await rm(unfinished, { force: true })
    throw error instanceof IndexDamagedError ? error : toStorageError(error)
  }
}

async function hasRoom(database: string, folder: string, floor: number): Promise<boolean> {
  const [{ size }, { bavail, bsize }] = await Promise.all([stat(database), statfs(folder)])
  return bavail * bsize >= size + floor
}

/** Makes a file's bytes durable; nobody may have it open as a database. */
export async function syncFile(path: string): Promise<void> {
  const file = await open(path, 'r+')
  try {
    await file.sync()
  } finally {
    await file.close()
  }
}

/** What an interruption has left. */
async function removeUnfinished(folder: string): Promise<void> {
  const names = (await readdir(folder)).filter((name) => /^index-.*\.new(?:-\w+)?$/.test(name))
  for (const name of names) await rm(join(folder, name), { force: true })
}

/** Removes all but the newest copies; the last one from before a migration stays as well. */
export async function removeOldSnapshots(folder: string, keep: number): Promise<void> {
  const all = await listSnapshots(folder)
  const beforeMigration = all.find(({ before }) => before !== undefined)
  const old = all.slice(keep).filter((snapshot) => snapshot !== beforeMigration)
  for (const { path } of old) await rm(path, { force: true })
}
