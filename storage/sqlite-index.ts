import Database from 'better-sqlite3'
import type { Digest } from '../src/oci/digest.js'
import { isIndexDamage } from './errors.js'
import { openForReading } from './sqlite-connection.js'

/** Faults that are told of one index: one page can have many, and one is enough to know. */
const mostFaults = 20

/**
 * Looks at every page of an index and changes nothing.
 * @param how a quick look does not compare tables with their indexes
 * @returns what is wrong
 * @throws the database's error, unless it says that the index is damaged
 */
export function findIndexFaults(path: string, how: 'quick' | 'thorough'): string[] {
  let db: Database.Database | undefined
  try {
    db = openForReading(path)
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

/** A blob that an index names. */
export interface NamedBlob {
  readonly id: number
  readonly digest: Digest
  /** Bytes. */
  readonly size: number
  /** What a verification has found of its bytes; null is nothing. */
  readonly damage: 'missing' | 'altered' | null
}

/** What an index holds, for people. */
export interface IndexCounts {
  readonly repositories: number
  readonly manifests: number
  readonly tags: number
  readonly blobs: number
  readonly bytes: number
}

/** An index that nobody works on: a copy, a backup. */
export interface IndexCopy {
  readonly schema: number
  counts(): IndexCounts
  /** Blobs behind this row, those that are damaged too. */
  listBlobs(after: number, limit: number): NamedBlob[]
  /** How many of these must be there. */
  countNeeded(digests: readonly Digest[]): number
  /** Which of these it does not name. */
  listUnknown(digests: readonly Digest[]): Digest[]
  close(): void
}

/** Opens a copy of an index for reading. @throws the database's error */
export function openIndexCopy(path: string): IndexCopy {
  const db = openForReading(path)
  const needed = "state = 'live' AND damage IS NULL"
  const blobs = db.prepare<[number, number], NamedBlob>(
    "SELECT id, digest, size, damage FROM blob WHERE id > ? AND state = 'live' ORDER BY id LIMIT ?",
  )
  const unknown = db
    .prepare<[string], Digest>(
      `SELECT d.value FROM json_each(?) d
       WHERE NOT EXISTS (SELECT 1 FROM blob WHERE digest = d.value AND state = 'live')`,
    )
    .pluck()
  const neededOf = db
    .prepare<[string], number>(
      `SELECT count(*) FROM json_each(?) d JOIN blob ON blob.digest = d.value WHERE ${needed}`,
    )
    .pluck()
  const counts = db.prepare<[], IndexCounts>(
    `SELECT (SELECT count(*) FROM repository) AS repositories, (SELECT count(*) FROM manifest) AS manifests,
       (SELECT count(*) FROM tag) AS tags, count(*) AS blobs, coalesce(sum(size), 0) AS bytes
     FROM blob WHERE ${needed}`,
  )
  return {
    schema: Number(db.pragma('user_version', { simple: true })),
    counts: () => counts.get() ?? { repositories: 0, manifests: 0, tags: 0, blobs: 0, bytes: 0 },
    listBlobs: (after, limit) => blobs.all(after, limit),
    countNeeded: (digests) => neededOf.get(JSON.stringify(digests)) ?? 0,
    listUnknown: (digests) => unknown.all(JSON.stringify(digests)),
    close: () => db.close(),
  }
}

/**
 * Prepares a copy to become the index of a data folder: files that are older than this moment and unknown to it are
 * what it has forgotten, and are left alone by collections.
 */
export function adoptIndex(path: string, now: number): void {
  const db = new Database(path, { fileMustExist: true })
  try {
    db.prepare('UPDATE collection SET index_made_at = ?').run(now)
  } finally {
    db.close()
  }
}
