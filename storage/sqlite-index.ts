import Database from 'better-sqlite3'
import { errorCode } from './errors.js'

/** Faults that are told of one index: one page can have many, and one is enough to know. */
const mostFaults = 20

/** What SQLite says of a file that is no sound database. */
const damageCodes = /^SQLITE_(?:CORRUPT|NOTADB)/

/** Whether this is what SQLite says of a damaged database. */
export function isIndexDamage(error: unknown): boolean {
  return damageCodes.test(errorCode(error))
}

/**
 * Looks at every page of an index and changes nothing.
 * @param how a quick look does not compare tables with their indexes
 * @returns what is wrong
 * @throws the database's error, unless it says that the index is damaged
 */
export function findIndexFaults(path: string, how: 'quick' | 'thorough'): string[] {
  let db: Database.Database | undefined
  try {
    db = new Database(path, { fileMustExist: true, timeout: 5000 })
    db.pragma('query_only = ON')
    const check = how === 'quick' ? 'quick_check' : 'integrity_check'
    const rows = db.pragma(`${check}(${mostFaults})`) as readonly Readonly<Record<string, unknown>>[]
    return rows.map((row) => String(row[check])).filter((text) => text !== 'ok')
  } catch (error) {
    if (isIndexDamage(error)) return [error instanceof Error ? error.message : String(error)]
    throw error
  } finally {
    db?.close()
  }
}

/**
 * Copies an index while others write to it, as it is at one moment, into one file without a log.
 * @returns what is wrong with the copy; it must not be used then
 * @throws the database's error
 */
export async function copyIndex(path: string, target: string): Promise<string[]> {
  const db = new Database(path, { fileMustExist: true, timeout: 5000 })
  try {
    // In one step: a copy that lets go of its read transaction begins again when somebody writes.
    await db.backup(target, { progress: () => 0x7fffffff })
  } finally {
    db.close()
  }
  const copy = new Database(target, { fileMustExist: true })
  try {
    copy.pragma('journal_mode = DELETE')
  } finally {
    copy.close()
  }
  return findIndexFaults(target, 'quick')
}
