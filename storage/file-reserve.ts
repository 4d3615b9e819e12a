import { randomFillSync } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, open, stat, statfs, unlink } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { errorCode } from './errors.js'
import { fileMode, giveFileToOwner } from './file-owner.js'

const { O_RDWR, O_CREAT, O_NOFOLLOW } = constants

/** Bytes that are given back at a time: who else fills the disk must not get them all at once. */
const step = 4 * 1024 * 1024

/** Bytes written at once. */
const piece = 1024 * 1024

/** Free bytes with which a server can start: its log of the index, its locks. */
const leastForStart = 2 * step

/**
 * A file that is there to be given up: on a full disk the index still has to note what is deleted and collected, or
 * nothing could ever be freed. Any process may give some of it back; the server's primary process alone fills it.
 */
export class Reserve {
  readonly #path: string

  /** @param root the data folder */
  constructor(root: string) {
    this.#path = join(root, 'reserve')
  }

  /** Gives a part of the reserve to the disk. @returns false when nothing is left of it */
  async release(): Promise<boolean> {
    const size = await this.#size()
    return size > 0 && this.#cutTo(Math.max(0, size - step))
  }

  /** Gives everything back when there is hardly room for a server to start. */
  async releaseForStart(): Promise<void> {
    const { bavail, bsize } = await statfs(join(this.#path, '..'))
    if (bavail * bsize >= leastForStart || (await this.#size()) === 0) return
    await this.#cutTo(0)
  }

  /**
   * Brings the reserve to its size, if that leaves enough on the disk.
   * @param size bytes; 0 for no reserve
   * @param floor bytes that stay free
   * @throws the system's error
   */
  async fill(size: number, floor: number): Promise<void> {
    const present = await this.#size()
    if (size === 0) return this.#remove()
    if (present > size) await this.#cutTo(size)
    if (present >= size) return
    const missing = size - present
    const { bavail, bsize } = await statfs(join(this.#path, '..'))
    if (bavail * bsize < missing + Math.max(floor, missing)) return
    const file = await open(this.#path, O_RDWR | O_CREAT | O_NOFOLLOW, fileMode)
    try {
      await giveFileToOwner(file, dirname(this.#path))
      await write(file, present, size)
      await file.sync()
    } catch (error) {
      // What was not synced may have no room of its own on the disk: it does not count as kept, and is made anew.
      await this.#cutTo(present)
      throw error
    } finally {
      await file.close()
    }
  }

  async #size(): Promise<number> {
    try {
      return (await stat(this.#path)).size
    } catch (error) {
      if (errorCode(error) === 'ENOENT') return 0
      throw error
    }
  }

  /** @returns false when there is no reserve (any more), or the disk refuses */
  async #cutTo(size: number): Promise<boolean> {
    try {
      const file = await open(this.#path, O_RDWR | O_NOFOLLOW)
      try {
        await file.truncate(size)
        await file.sync() // some filesystems give blocks back only then
        return true
      } finally {
        await file.close()
      }
    } catch {
      return false
    }
  }

  async #remove(): Promise<void> {
    try {
      await unlink(this.#path)
    } catch (error) {
      if (errorCode(error) !== 'ENOENT') throw error
    }
  }
}

/** Random bytes: zeros would take no room where the filesystem compresses. */
async function write(file: FileHandle, from: number, to: number): Promise<void> {
  const bytes = randomFillSync(Buffer.allocUnsafe(Math.min(piece, to - from)))
  for (let at = from; at < to; at += bytes.length) {
    await file.write(bytes, 0, Math.min(bytes.length, to - at), at)
  }
}
