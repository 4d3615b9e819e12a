import { randomBytes } from 'node:crypto'
import { closeSync, openSync, unlinkSync, writeSync } from 'node:fs'
import { errorCode, isFull } from './errors.js'

/** Bytes that must fit for a disk to count as having room: more than SQLite writes at once. */
const leastRoom = 64 * 1024

/**
 * The code of a database's error. SQLite calls a full disk by its name only where the system says ENOSPC; a quota of
 * the disk that is used up (EDQUOT), and a filesystem that became read-only (EROFS), look like a failing disk to it. So
 * a failed write is followed by one to another file, which tells them apart. It blocks: for threads that work on the
 * index.
 */
export function indexErrorCode(error: unknown, database: string): string {
  const code = errorCode(error)
  return code === 'SQLITE_IOERR_WRITE' ? (refusalOfWrite(`${database}-probe`) ?? code) : code
}

/** @returns the system's word for it when the disk has no room or is read-only; undefined when neither is so */
function refusalOfWrite(path: string): string | undefined {
  try {
    const file = openSync(path, 'w', 0o600)
    try {
      const bytes = randomBytes(leastRoom) // zeros would take no room where the filesystem compresses
      for (let at = 0; at < leastRoom; ) at += writeSync(file, bytes, at, leastRoom - at, at)
      return undefined
    } finally {
      closeSync(file)
      unlinkSync(path)
    }
  } catch (error) {
    return isFull(error) || errorCode(error) === 'EROFS' ? errorCode(error) : undefined
  }
}
