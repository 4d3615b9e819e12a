import Database from 'better-sqlite3'
import { errorCode } from './errors.js'

/** The WAL-reset bug is fixed from here on (reliability R55). */
const oldestSqlite = [3, 51, 3] as const

/** Milliseconds that a connection waits for another process's write. */
const busyTimeout = 5000

/**
 * Opens the database with the settings that the promises of storage/README.md rest on.
 * @param role a writer syncs the log at each commit; a reader cannot write at all
 * @throws the database's error, also when a writer could only read
 */
export function openDatabase(path: string, role: 'reader' | 'writer'): Database.Database {
  const db = new Database(path, { timeout: busyTimeout })
  try {
    db.pragma('journal_mode = WAL')
    db.pragma('synchronous = FULL')
    db.pragma('foreign_keys = ON')
    db.pragma('trusted_schema = OFF')
    db.pragma('journal_size_limit = 67108864')
    db.pragma('cache_size = -8192')
    if (role === 'reader') db.pragma('query_only = ON')
    assertSettings(db)
    if (role === 'writer') {
      db.exec('BEGIN IMMEDIATE')
      assertWritable(db)
      db.exec('ROLLBACK')
    }
    return db
  } catch (error) {
    db.close()
    throw error
  }
}

/**
 * Opens a database to be read. An index that is not in WAL mode yet, a new one or one that was restored, may have been cut
 * off in the middle of a change: then the change is undone first, as whoever opens it for writing would.
 * @throws the database's error; SQLITE_CANTOPEN where there is none
 */
export function openForReading(path: string): Database.Database {
  try {
    return openReadOnly(path)
  } catch (error) {
    if (errorCode(error) !== 'SQLITE_READONLY_ROLLBACK') throw error
  }
  const db = new Database(path, { fileMustExist: true, timeout: busyTimeout })
  try {
    readSomething(db)
  } finally {
    db.close()
  }
  return openReadOnly(path)
}

function openReadOnly(path: string): Database.Database {
  const db = new Database(path, { readonly: true, fileMustExist: true, timeout: busyTimeout })
  try {
    readSomething(db)
    return db
  } catch (error) {
    db.close()
    throw error
  }
}

/** A database is looked at when it is read first. */
function readSomething(db: Database.Database): void {
  db.pragma('schema_version')
}

/**
 * Throws in a transaction that cannot write; it must not be committed. Where a file cannot be opened for writing (no
 * right, no descriptor left, a read-only disk), SQLite opens it for reading without a word, and takes the write lock
 * of such a transaction for granted: two servers would hold one lock, and a writer would find out too late.
 * @throws the database's error, SQLITE_READONLY
 */
export function assertWritable(db: Database.Database): void {
  const version = Number(db.pragma('user_version', { simple: true }))
  db.pragma(`user_version = ${version}`)
}

/** The driver's own default is synchronous=NORMAL in WAL mode, which loses commits in a power cut. */
function assertSettings(db: Database.Database): void {
  const actual = {
    journal: db.pragma('journal_mode', { simple: true }),
    synchronous: db.pragma('synchronous', { simple: true }),
    foreignKeys: db.pragma('foreign_keys', { simple: true }),
  }
  if (actual.journal !== 'wal' || actual.synchronous !== 2 || actual.foreignKeys !== 1) {
    throw new Error(`SQLite does not keep the settings it was given: ${JSON.stringify(actual)}`)
  }
  const version = String(db.prepare('SELECT sqlite_version()').pluck().get())
  if (isOlder(version.split('.').map(Number), oldestSqlite)) {
    throw new Error(`SQLite ${version} is too old: ${oldestSqlite.join('.')} or newer is needed`)
  }
}

function isOlder(version: readonly number[], than: readonly number[]): boolean {
  for (const [at, part] of than.entries()) {
    const own = version[at] ?? 0
    if (own !== part) return own < part
  }
  return false
}
