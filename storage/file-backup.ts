import { constants, createReadStream } from 'node:fs'
import {
  access,
  copyFile,
  link,
  lstat,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  utimes,
  writeFile,
} from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import type { Digest } from '../src/oci/digest.js'
import { errorCode } from './errors.js'
import { closeContents, closeToOthers, fileMode, giveToOwner, makeFolder, takeOver } from './file-owner.js'
import { copyIndexTo, syncFile } from './file-snapshots.js'
import { digestIn, Layout, leaves, syncDirectories } from './fs-layout.js'
import { type IndexCopy, type IndexCounts, type NamedBlob, openIndexCopy } from './sqlite-index.js'
import { type Lock, LockedError, lockFile } from './sqlite-lock.js'

/** Blobs that are looked at, or copied, together. */
const pageSize = 500
const copiedAtOnce = 8

/** Errors for which a file is copied where it cannot be linked: another filesystem, or one without links. */
const unlinkable = new Set(['EXDEV', 'EPERM', 'EMLINK', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EACCES'])

/** Bytes that are read at once. */
const readAtOnce = 1024 * 1024

/** Milliseconds by which the times of a file and its copy may differ: not every filesystem keeps them exactly. */
const timeSlack = 10

/** How far a backup or a restore is. */
export interface CopyReport {
  /** What the index names. */
  counts: IndexCounts
  /** Blobs that are in place, and their bytes; of these, those that came now. */
  blobs: number
  bytes: number
  newBlobs: number
  newBytes: number
  /** Of the new ones, those that share their bytes with the original. */
  linked: number
  /** Blobs that the index names and that could not be read. */
  missing: Digest[]
  /** Blobs that a verification found damaged: what there is of them is in place, and is not counted above. */
  damaged: number
}

/** What the copying of blobs is told. */
export interface CopyOptions {
  readonly signal?: AbortSignal
  readonly onProgress?: (report: CopyReport) => void
  /** Whether a server will use the files: then all of them belong to the owner of the folder that they come to. */
  readonly isForServer?: boolean
}

/** Told to stop; what was copied stays, and the next time goes on from there. */
export class CopyStoppedError extends Error {
  override readonly name = 'CopyStoppedError'
  /** How far it came. */
  readonly report: CopyReport

  constructor(report: CopyReport) {
    super('told to stop')
    this.report = report
  }
}

/** A report of nothing. */
export function emptyCopyReport(counts: IndexCounts): CopyReport {
  return { counts, blobs: 0, bytes: 0, newBlobs: 0, newBytes: 0, linked: 0, missing: [], damaged: 0 }
}

/**
 * Brings what an index names from one folder to another: links where it can, copies elsewhere. What is there already
 * with its size and time stays; a blob that was damaged and pushed again since is brought anew. Everything is durable
 * when it resolves.
 * @throws CopyStoppedError, or the system's error
 */
export async function copyBlobs(
  index: IndexCopy,
  from: string,
  to: string,
  report: CopyReport,
  options: CopyOptions,
): Promise<void> {
  const copier = new Copier(new Layout(from), new Layout(to), report, options.isForServer === true)
  await copier.prepare()
  for (let after = 0; ; ) {
    const page = index.listBlobs(after, pageSize)
    const last = page.at(-1)
    if (last === undefined) break
    for (let at = 0; at < page.length; at += copiedAtOnce) {
      if (options.signal?.aborted === true) throw new CopyStoppedError(report)
      await Promise.all(page.slice(at, at + copiedAtOnce).map((blob) => copier.copy(blob)))
      options.onProgress?.(report)
    }
    after = last.id
    await delay(0)
  }
  await copier.finish()
}

class Copier {
  readonly #from: Layout
  readonly #to: Layout
  readonly #report: CopyReport
  readonly #touched = new Set<string>()

  /** Whose the files must be, if that matters: others are copied where they could be linked. */
  #owner: number | undefined
  readonly #isForServer: boolean

  constructor(from: Layout, to: Layout, report: CopyReport, isForServer: boolean) {
    this.#isForServer = isForServer
    this.#from = from
    this.#to = to
    this.#report = report
  }

  async prepare(): Promise<void> {
    for (const algorithm of ['sha256', 'sha512']) {
      const top = join(this.#to.blobs, algorithm)
      await makeFolder(top)
      for (const leaf of leaves) {
        await makeFolder(join(top, leaf))
        await closeToOthers(join(top, leaf))
      }
      await syncDirectories([top])
    }
    await syncDirectories([this.#to.blobs])
    if (this.#isForServer) this.#owner = (await stat(this.#to.blobs)).uid
  }

  /** What the index knows to be damaged is brought where it is there, and not missed elsewhere. */
  async copy({ digest, size, damage }: NamedBlob): Promise<void> {
    const source = await stateOf(this.#from.blob(digest))
    const target = await stateOf(this.#to.blob(digest))
    const isThere = target?.size === size
    const isUsable = source?.size === size
    const isStale = isUsable && (!isThere || Math.abs(source.mtimeMs - target.mtimeMs) > timeSlack)
    const isBrought = isStale && (await this.#bring(digest, source))
    const isInPlace = isBrought || isThere
    if (isThere && !isBrought) await closeToOthers(this.#to.blob(digest))
    if (damage !== null) this.#report.damaged++
    else if (!isInPlace) this.#report.missing.push(digest)
    if (!isInPlace) return
    this.#touched.add(this.#to.blobDirectory(digest))
    if (damage !== null) return
    this.#report.blobs++
    this.#report.bytes += size
  }

  /** The file comes into its place whole, also where there is one already. @returns false when it cannot be read */
  async #bring(digest: Digest, source: FileState): Promise<boolean> {
    const path = this.#from.blob(digest)
    const target = this.#to.blob(digest)
    const unfinished = `${target}.new`
    await rm(unfinished, { force: true })
    try {
      const isLinkable = this.#owner === undefined || source.uid === this.#owner
      const isLinked = isLinkable && (await linked(path, unfinished))
      if (!isLinked) await copyBytes(path, unfinished, source.mtimeMs / 1000)
      if ((await stateOf(unfinished))?.size !== source.size) return false
      await rename(unfinished, target)
      if (isLinked) this.#report.linked++
    } catch (error) {
      if (await isReadable(path)) throw error
      return false // the others are still to be brought
    } finally {
      await rm(unfinished, { force: true })
    }
    this.#report.newBlobs++
    this.#report.newBytes += source.size
    return true
  }

  async finish(): Promise<void> {
    await syncDirectories([...this.#touched])
  }
}

interface FileState {
  /** Bytes. */
  readonly size: number
  readonly mode: number
  readonly uid: number
  readonly mtimeMs: number
}

/** Undefined when there is no file. */
async function stateOf(path: string): Promise<FileState | undefined> {
  try {
    const stats = await lstat(path)
    return stats.isFile() ? stats : undefined
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return undefined
    throw error
  }
}

/** Whether the disk still has a file's bytes: what failed was something else then. */
async function isReadable(path: string): Promise<boolean> {
  try {
    for await (const _ of createReadStream(path, { highWaterMark: readAtOnce }));
    return true
  } catch (error) {
    if (errorCode(error) === 'ENOENT' || errorCode(error) === 'EIO') return false
    throw error
  }
}

/** The copy tells by its time what it is a copy of. @param modifiedAt seconds since 1970 */
async function copyBytes(path: string, target: string, modifiedAt: number): Promise<void> {
  await copyFile(path, target, constants.COPYFILE_FICLONE)
  await utimes(target, modifiedAt, modifiedAt)
  await takeOver(target)
  await syncFile(target)
}

/** @returns false where files cannot be linked */
async function linked(path: string, target: string): Promise<boolean> {
  try {
    await link(path, target)
    return true
  } catch (error) {
    if (unlinkable.has(errorCode(error))) return false
    throw error
  }
}

/** Copies the keys that sign tokens; each has its own name for ever. */
export async function copyKeys(from: string, to: string): Promise<void> {
  const names = await readdir(from).catch((error: unknown) => {
    if (errorCode(error) === 'ENOENT') return []
    throw error
  })
  await makeFolder(to)
  for (const name of names.filter((one) => /^\d+\.pem$/.test(one))) {
    const unfinished = join(to, `${name}.new`)
    await writeFile(unfinished, await readFile(join(from, name)), { mode: fileMode, flush: true })
    await giveToOwner(unfinished)
    await rename(unfinished, join(to, name))
  }
  await syncDirectories([to])
}

/** Another backup to the same folder is at work. */
export class BackupInUseError extends Error {
  override readonly name = 'BackupInUseError'

  constructor(target: string) {
    super(`Another backup to ${target} is at work: wait for its end.`)
  }
}

/** What a backup is told. */
export interface BackupOptions extends CopyOptions {
  /** The data folder. */
  readonly root: string
  readonly database: string
  readonly keys: string
  /** The folder of the backup: a new one, or one of an earlier backup. */
  readonly target: string
  /** Keeps collectors from removing anything, until the returned function is called. */
  readonly excludeCollectors: () => Promise<() => Promise<void>>
}

/**
 * Copies a data folder while it is served. The target's index names only blobs that are there, at each moment: blobs
 * come first, then the index that names them, and at last those go that it does not name.
 *
 * Most blobs are copied while everything goes on; then collectors rest for the moment of the last index copy and what
 * came since. A backup that was interrupted is what it was before, with more bytes; the next one goes on from there.
 * @throws BackupInUseError, CopyStoppedError, IndexDamagedError, RegistryError, or the system's error
 */
export async function makeBackup(options: BackupOptions): Promise<CopyReport> {
  const { target } = options
  await makeFolder(target)
  await access(target, constants.R_OK | constants.W_OK | constants.X_OK)
  const lock = lockBackup(target)
  try {
    await closeContents(target)
    return await bringUpToDate(options)
  } finally {
    lock.release()
  }
}

/** Two backups to one folder would take each other's index for their own. */
function lockBackup(target: string): Lock {
  try {
    return lockFile(join(target, 'backup.lock'), 'exclusive', 0)
  } catch (error) {
    throw error instanceof LockedError ? new BackupInUseError(target) : error
  }
}

async function bringUpToDate(options: BackupOptions): Promise<CopyReport> {
  const { root, database, keys, target } = options
  const index = join(target, 'boathouse.db')
  const next = join(target, 'next.db')
  await copyIndexTo(database, next)
  const { newBlobs, newBytes, linked } = await withIndex(next, async (copy) => {
    const first = emptyCopyReport(copy.counts())
    await copyBlobs(copy, root, target, first, options)
    return first
  })
  const admitCollectors = await options.excludeCollectors()
  let report: CopyReport
  try {
    await copyIndexTo(database, next)
    report = await withIndex(next, async (copy) => {
      const last = { ...emptyCopyReport(copy.counts()), newBlobs, newBytes, linked }
      await copyBlobs(copy, root, target, last, options)
      return last
    })
  } finally {
    await admitCollectors()
  }
  await copyKeys(keys, join(target, 'keys'))
  await rename(next, index)
  await syncDirectories([target])
  await withIndex(index, (copy) => removeUnnamed(copy, target))
  return report
}

async function withIndex<T>(path: string, task: (copy: IndexCopy) => Promise<T>): Promise<T> {
  const copy = openIndexCopy(path)
  try {
    return await task(copy)
  } finally {
    copy.close()
  }
}

/** Removes what earlier backups needed, and left-overs of interrupted ones. */
async function removeUnnamed(index: IndexCopy, target: string): Promise<void> {
  const layout = new Layout(target)
  for (let part = 0; part < 2 * leaves.length; part++) {
    const [algorithm, directory] = layout.part(part)
    const names = await readdir(directory)
    const digests = names.flatMap((name) => digestIn(directory, algorithm, name))
    for (const digest of index.listUnknown(digests)) await rm(layout.blob(digest), { force: true })
    for (const name of names.filter((one) => one.endsWith('.new'))) await rm(join(directory, name))
  }
}
