import { RegistryError } from '../src/oci/errors.js'

const full = new Set(['ENOSPC', 'EDQUOT', 'EFBIG', 'SQLITE_FULL'])

/**
 * What a failing disk or database means to a client: STORAGE_FULL (507) when there is no room, otherwise
 * UNAVAILABLE (503). The failure itself is kept as `cause` for the log. Refusals pass as they are.
 */
export function toStorageError(error: unknown): RegistryError {
  if (error instanceof RegistryError) return error
  return full.has(errorCode(error))
    ? new RegistryError('STORAGE_FULL', undefined, { cause: error })
    : new RegistryError('UNAVAILABLE', undefined, { cause: error, retryAfter: 5 })
}

/** The `code` of a system's or a database's error; '' when it has none. */
export function errorCode(error: unknown): string {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : ''
}
