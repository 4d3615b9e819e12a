import { constants } from 'node:os'
import { RegistryError } from '../src/oci/errors.js'

/** The shared memory of the index is a file as well: where it cannot grow the disk is full, and nothing is lost. */
const full = new Set(['ENOSPC', 'EDQUOT', 'EFBIG', 'SQLITE_FULL', 'SQLITE_IOERR_SHMSIZE'])

/** The system makes a disk read-only that fails: pulls go on. */
const readOnly = 'the disk of this registry has become read-only: who runs it must look at it'

/** Whether this says that there is no room. */
export function isFull(error: unknown): boolean {
  return full.has(errorCode(error))
}

/**
 * What a failing disk or database means to a client: STORAGE_FULL (507) when there is no room, otherwise
 * UNAVAILABLE (503). The failure itself is kept as `cause` for the log. Refusals pass as they are.
 */
export function toStorageError(error: unknown): RegistryError {
  if (error instanceof RegistryError) return error
  if (isFull(error)) return new RegistryError('STORAGE_FULL', undefined, { cause: error })
  const message = errorCode(error) === 'EROFS' ? readOnly : undefined
  return new RegistryError('UNAVAILABLE', message, { cause: error, retryAfter: 5 })
}

/** The `code` of a system's or a database's error; '' when it has none. */
export function errorCode(error: unknown): string {
  if (!(error instanceof Error && 'code' in error && typeof error.code === 'string')) return ''
  // Node has no name for a quota of the disk that is used up.
  return 'errno' in error && error.errno === -constants.errno.EDQUOT ? 'EDQUOT' : error.code
}

/** The index is damaged: nothing may be written to it. The message is a sentence that says what helps. */
export class IndexDamagedError extends Error {
  override readonly name = 'IndexDamagedError'

  /** @param path of the index @param how SQLite says it */
  constructor(path: string, how: string) {
    const what = how.replaceAll(/\s+/g, ' ').trim().slice(0, 200)
    super(
      `The index ${path} is damaged (${what}): stop the server, then "boathouse restore --index" goes back to a sound copy of it.`,
    )
  }
}

/** Whether this is what SQLite says of a damaged database. */
export function isIndexDamage(error: unknown): boolean {
  return /^SQLITE_(?:CORRUPT|NOTADB)/.test(errorCode(error))
}
