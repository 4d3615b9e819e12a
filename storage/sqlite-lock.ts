import Database from 'better-sqlite3'
import { errorCode } from './errors.js'
import { makeFileForSqlite } from './file-owner.js'
import { assertWritable } from './sqlite-connection.js'

/** Somebody else holds the lock. */
export class LockedError extends Error {
  override readonly name = 'LockedError'
}

/** A lock that the system takes back when its process ends, however it ends. */
export interface Lock {
  release(): void
}

/**
 * Locks a file, which comes into being with it. The lock is SQLite's own on an empty database: a POSIX lock,
 * without a native module more. It works between processes, not between two callers in one.
 * @param mode one exclusive holder, or any number of shared ones
 * @param patience milliseconds to wait for other holders
 * @throws LockedError; the database's error when the file cannot be made, or cannot be written
 */
export function lockFile(path: string, mode: 'exclusive' | 'shared', patience: number): Lock {
  makeFileForSqlite(path)
  const db = new Database(path, { timeout: patience })
  try {
    db.pragma('journal_mode = MEMORY') // nothing is ever written: a lock must not fail for want of space
    if (mode === 'exclusive') {
      db.exec('BEGIN EXCLUSIVE')
      assertWritable(db)
    } else {
      db.exec('BEGIN')
      db.pragma('schema_version') // a transaction takes its shared lock with its first read
    }
  } catch (error) {
    db.close()
    throw errorCode(error).startsWith('SQLITE_BUSY') ? new LockedError(`${path} is locked`) : error
  }
  return { release: () => db.close() }
}
