import { createHash } from 'node:crypto'
import { constants, createReadStream, existsSync } from 'node:fs'
import { access, copyFile, link, readdir, rename, rm, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { dataPaths, lockDataFolder } from './data-folder.js'
import { errorCode } from './errors.js'
import { type CopyOptions, type CopyReport, copyBlobs, copyKeys, emptyCopyReport } from './file-backup.js'
import { closeDataFolder, fileMode, giveToOwner, makeFolder, takeOver } from './file-owner.js'
import { syncFile } from './file-snapshots.js'
import { digestIn, Layout, leaves, syncDirectories } from './fs-layout.js'
import { schemaVersion } from './migrations.js'
import { adoptIndex, findIndexFaults, type IndexCounts, openIndexCopy } from './sqlite-index.js'
import { bringUpToDate, readSchemaVersion } from './sqlite-metadata-store.js'

/** What stands in the way of a restore, in a sentence. */
export class RestoreError extends Error {
  override readonly name = 'RestoreError'
}

/**
 * Brings a backup to an empty data folder. A server refuses the folder until it is whole; when it was interrupted the
 * same restore goes on, and where it is whole and nothing has been done with it, that is found to be so.
 * @throws RestoreError, CopyStoppedError, DataFolderInUseError, or the system's error
 */
export async function restoreBackup(backup: string, root: string, options: CopyOptions): Promise<CopyReport> {
  const source = join(backup, 'boathouse.db')
  await access(source, constants.R_OK).catch((error: unknown) => {
    if (errorCode(error) !== 'ENOENT' && errorCode(error) !== 'ENOTDIR') throw error
    throw new RestoreError(`There is no backup in ${backup}: it has no boathouse.db.`)
  })
  const [fault] = findIndexFaults(source, 'quick')
  if (fault !== undefined)
    throw new RestoreError(`The index of the backup in ${backup} is damaged (${fault}).`)
  refuseUnusable(source, `The index of the backup in ${backup}`)
  await makeFolder(root)
  await access(root, constants.R_OK | constants.W_OK | constants.X_OK)
  const paths = dataPaths(root)
  const isBegun = existsSync(paths.restoring) || (await isAsBroughtBack(source, paths.database))
  if (!isBegun && (await readdir(root)).length > 0) {
    throw new RestoreError(`${root} is not empty: name a new folder with --data.`)
  }
  await mark(paths.restoring, 'from a backup')
  await closeDataFolder(root)
  await syncDirectories([root])
  const release = lockDataFolder(root)
  try {
    const report = await bring(source, backup, root, options)
    await rm(paths.restoring)
    await syncDirectories([root, dirname(root)])
    return report
  } finally {
    release()
  }
}

/**
 * Whether nothing has been done with an index since it was brought back: a restore that was interrupted in its very last
 * steps may be repeated, too.
 */
async function isAsBroughtBack(source: string, database: string): Promise<boolean> {
  if (!existsSync(database) || existsSync(`${database}-wal`)) return false
  const [one, other] = await Promise.all([hashOf(source), hashOf(database)])
  return one === other
}

async function hashOf(path: string): Promise<string> {
  const hash = createHash('sha256')
  for await (const chunk of createReadStream(path)) hash.update(chunk)
  return hash.digest('hex')
}

async function bring(
  source: string,
  backup: string,
  root: string,
  options: CopyOptions,
): Promise<CopyReport> {
  const paths = dataPaths(root)
  const unfinished = `${paths.database}.restored`
  await copyUpToDate(source, unfinished)
  const index = openIndexCopy(unfinished)
  let report: CopyReport
  try {
    report = emptyCopyReport(index.counts())
    await copyBlobs(index, backup, root, report, { ...options, isForServer: true })
  } finally {
    index.close()
  }
  await copyKeys(join(backup, 'keys'), paths.keys)
  await placeIndex(unfinished, paths.database)
  return report
}

/** Keeps servers away until the restore has ended. */
async function mark(path: string, what: string): Promise<void> {
  await writeFile(path, `${what}\n`, { flush: true, mode: fileMode })
  await giveToOwner(path)
}

/** The index comes into being whole, under its name. */
async function placeIndex(unfinished: string, database: string): Promise<void> {
  await syncFile(unfinished)
  await rename(unfinished, database)
  await syncDirectories([dirname(database)])
}

/** @throws RestoreError where a file is no index that this version can use, or bring to its own form */
function refuseUnusable(path: string, name: string): void {
  let version: number
  try {
    version = readSchemaVersion(path) ?? 0
  } catch (error) {
    throw new RestoreError(`${name} cannot be read (${error instanceof Error ? error.message : error}).`)
  }
  if (version === 0) throw new RestoreError(`${name} is no index of Boathouse: name another one.`)
  if (version > schemaVersion) {
    throw new RestoreError(`${name} was written by a newer Boathouse: use the command of that version.`)
  }
}

/** Copies an index that an earlier version may have made, and brings the copy to the form of this one. */
async function copyUpToDate(source: string, target: string): Promise<void> {
  await removeIndex(target)
  await copyFile(source, target)
  await takeOver(target)
  if ((readSchemaVersion(target) ?? 0) < schemaVersion) bringUpToDate(target)
}

/** Removes a copy with what SQLite has put beside it. */
async function removeIndex(path: string): Promise<void> {
  for (const suffix of ['', '-wal', '-shm', '-journal']) await rm(`${path}${suffix}`, { force: true })
}

/** What going back to a copy of the index did. */
export interface IndexRestoreReport {
  /** Where the index is now that was there before; undefined when there was none. */
  readonly keptIn: string | undefined
  readonly counts: IndexCounts
  /** Files of blobs that this index does not know: they came after it. */
  readonly unknown: number
  /** Blobs that it names and whose files are gone: they were collected since. */
  readonly missing: number
}

/**
 * Puts a copy of the index in the place of the index; no server may run. What was there is kept aside, with its log.
 * When it was interrupted the server refuses to start, and the same restore goes on.
 * @throws RestoreError, DataFolderInUseError, or the system's error
 */
export async function restoreIndex(root: string, snapshot: string, now: number): Promise<IndexRestoreReport> {
  const [fault] = findIndexFaults(snapshot, 'thorough')
  if (fault !== undefined) throw new RestoreError(`${snapshot} is damaged too (${fault}): name another one.`)
  refuseUnusable(snapshot, `The copy ${snapshot}`)
  const paths = dataPaths(root)
  const release = lockDataFolder(root)
  try {
    const unfinished = `${paths.database}.restored`
    await copyUpToDate(snapshot, unfinished)
    adoptIndex(unfinished, now)
    await syncFile(unfinished)
    const keptIn = await keepAside(
      paths.database,
      join(paths.damaged, new Date(now).toISOString().replaceAll(/[:.]/g, '-')),
    )
    await mark(paths.restoring, 'an older index')
    await syncDirectories([root])
    // The log goes first: it would be taken for one of the index that comes.
    for (const suffix of ['-wal', '-shm']) await rm(`${paths.database}${suffix}`, { force: true })
    await rename(unfinished, paths.database)
    await syncDirectories([root])
    await rm(paths.restoring)
    await syncDirectories([root])
    return { keptIn, ...(await compare(root, paths.database)) }
  } catch (error) {
    await removeIndex(`${paths.database}.restored`)
    throw error
  } finally {
    release()
  }
}

/** Gives the index and its log a second name: it is under its first one until another takes that. */
async function keepAside(database: string, folder: string): Promise<string | undefined> {
  if (!existsSync(database)) return undefined
  await makeFolder(folder)
  for (const suffix of ['', '-wal']) {
    try {
      await link(`${database}${suffix}`, join(folder, `boathouse.db${suffix}`))
    } catch (error) {
      if (errorCode(error) !== 'ENOENT') throw error
    }
  }
  await syncDirectories([folder, dirname(folder), dirname(dirname(folder))])
  return folder
}

async function compare(root: string, database: string) {
  const index = openIndexCopy(database)
  const layout = new Layout(root)
  try {
    const counts = index.counts()
    let unknown = 0
    let inPlace = 0
    for (let part = 0; part < 2 * leaves.length; part++) {
      const [algorithm, directory] = layout.part(part)
      const names = await readdir(directory).catch(() => [])
      const digests = names.flatMap((name) => digestIn(directory, algorithm, name))
      inPlace += index.countNeeded(digests)
      unknown += index.listUnknown(digests).length
    }
    return { counts, unknown, missing: counts.blobs - inPlace }
  } finally {
    index.close()
  }
}
