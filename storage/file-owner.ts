import { closeSync, constants, lchownSync, lstatSync, openSync } from 'node:fs'
import { chmod, type FileHandle, lchown, lstat, mkdir, readdir, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { errorCode } from './errors.js'
import { Layout, leaves } from './fs-layout.js'

/*
 * What a data folder or a backup holds is its owner's alone, whatever the folder was: password hashes, keys, and images
 * that not everybody may pull. And it belongs to the owner of the folder that it is made in, also when root makes it: a
 * server that runs as another user must be able to use it (decision 0024).
 */

/** Modes of all files and folders. */
export const fileMode = 0o600
export const folderMode = 0o700

/** What others than the owner may do. */
const others = 0o077

/** Of folders of this mode everybody makes use, such as `/tmp`: they are nobody's alone. */
const sticky = 0o1000

/** What may lie beside the parts of a data folder that has a disk of its own. */
const harmless = new Set(['lost+found'])

const ownFiles =
  /^(?:boathouse\.db(?:-wal|-shm|-journal|\.new|\.restored)?|next\.db(?:\.new)?|reserve|restoring|server\.pid|\w+\.lock(?:-journal)?)$/
const ownFolders = ['keys', 'snapshots', 'damaged', 'quarantine', 'uploads', 'blobs']

/** Errors of filesystems without owners and modes, of root that is not the machine's, and of files that are somebody else's. */
const unchangeable = new Set([
  'EPERM',
  'EACCES',
  'EINVAL',
  'ENOTSUP',
  'EOPNOTSUPP',
  'ENOSYS',
  'EROFS',
  'ENOENT',
])

function isRoot(): boolean {
  return process.geteuid?.() === 0
}

/** Gives what root has made to the owner of the folder that it is in. Where that cannot be, it stays root's. */
export async function giveToOwner(path: string): Promise<void> {
  if (!isRoot()) return
  await ignoring(async () => {
    const [{ uid, gid }, made] = await Promise.all([stat(dirname(path)), lstat(path)])
    if (made.uid === 0 && uid !== 0) await lchown(path, uid, gid)
  })
}

/** As {@link giveToOwner}, at once. */
function giveToOwnerSync(path: string): void {
  if (!isRoot()) return
  try {
    const { uid, gid } = lstatSync(dirname(path))
    if (lstatSync(path).uid === 0 && uid !== 0) lchownSync(path, uid, gid)
  } catch (error) {
    if (!unchangeable.has(errorCode(error))) throw error
  }
}

/** As {@link giveToOwner}, for a file that is open. @param folder that it is in */
export async function giveFileToOwner(file: FileHandle, folder: string): Promise<void> {
  if (!isRoot()) return
  await ignoring(async () => {
    const [{ uid, gid }, made] = await Promise.all([stat(folder), file.stat()])
    if (made.uid === 0 && uid !== 0) await file.chown(uid, gid)
  })
}

/** Closes a file that was made as a copy to others, and gives it to the owner of its folder. */
export async function takeOver(path: string): Promise<void> {
  await closeToOthers(path)
  await giveToOwner(path)
}

/**
 * Makes a folder, and those that it lies in, where they are not there; what is made belongs to the owner of what it is
 * made in.
 * @returns the first one that was made
 * @throws the system's error
 */
export async function makeFolder(path: string): Promise<string | undefined> {
  const first = await mkdir(path, { recursive: true, mode: folderMode })
  if (first === undefined) return undefined
  const made: string[] = []
  for (let one = path; one.length >= first.length; one = dirname(one)) made.unshift(one)
  for (const one of made) await giveToOwner(one)
  return first
}

/**
 * Makes an empty file where there is none, for SQLite to open: it would let everybody read it. What is wrong with the place
 * SQLite tells. Never opens a file that is there: closing it would end the locks that this process has on it.
 */
export function makeFileForSqlite(path: string): void {
  const { O_RDWR, O_CREAT, O_EXCL } = constants
  try {
    const file = openSync(path, O_RDWR | O_CREAT | O_EXCL, fileMode)
    closeSync(file)
  } catch (error) {
    if (errorCode(error) !== 'EEXIST') return
  }
  giveToOwnerSync(path)
}

/** @returns false where others may still use it, since this user cannot change it */
export async function closeToOthers(path: string): Promise<boolean> {
  try {
    const { mode } = await stat(path)
    if ((mode & others) !== 0) await chmod(path, mode & 0o7700)
    return true
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return true
    if (unchangeable.has(errorCode(error))) return false
    throw error
  }
}

/**
 * Closes a data folder to others that was made, or whose parts were made, with other modes: all but the files of blobs,
 * which nobody reaches then. The folder itself stays as it is where somebody keeps other things in it.
 * @returns whether all of it is closed
 */
export async function closeDataFolder(root: string): Promise<boolean> {
  const names = await readdir(root)
  const isOurs = names.every((name) => ownFiles.test(name) || ownFolders.includes(name) || harmless.has(name))
  const { mode } = await stat(root)
  const isFolderClosed = !isOurs || (mode & sticky) !== 0 || (await closeToOthers(root))
  return (await closeContents(root)) && isFolderClosed
}

/** As {@link closeDataFolder}, but for the folder itself; a backup has the same parts. */
export async function closeContents(root: string): Promise<boolean> {
  let isClosed = true
  const close = async (path: string) => {
    if (!(await closeToOthers(path))) isClosed = false
  }
  for (const name of await readdir(root)) {
    if (ownFiles.test(name)) await close(join(root, name))
    else if (ownFolders.includes(name)) {
      await close(join(root, name))
      if (name !== 'blobs') await closeBelow(join(root, name), close)
    }
  }
  for (const algorithm of ['sha256', 'sha512']) await close(join(root, 'blobs', algorithm))
  return isClosed
}

async function closeBelow(folder: string, close: (path: string) => Promise<void>): Promise<void> {
  const entries = await readdir(folder, { withFileTypes: true }).catch(() => [])
  for (const entry of entries) {
    if (!entry.isFile() && !entry.isDirectory()) continue
    const path = join(folder, entry.name)
    await close(path)
    if (entry.isDirectory()) await closeBelow(path, close)
  }
}

/**
 * Closes the files of blobs that an earlier version made: once, since a folder that is closed says that all below it is.
 * @returns whether all of them are closed
 */
export async function closeBlobs(root: string): Promise<boolean> {
  const layout = new Layout(root)
  let isClosed = true
  for (let part = 0; part < 2 * leaves.length; part++) {
    const [, folder] = layout.part(part)
    const { mode } = await stat(folder)
    if ((mode & others) === 0) continue
    let isWhole = true
    for (const name of await readdir(folder)) {
      if (!(await closeToOthers(join(folder, name)))) isWhole = false
    }
    if (!(isWhole && (await closeToOthers(folder)))) isClosed = false
  }
  return isClosed
}

async function ignoring(task: () => Promise<void>): Promise<void> {
  try {
    await task()
  } catch (error) {
    if (!unchangeable.has(errorCode(error))) throw error
  }
}
