import { dirname, join } from 'node:path'
import { toStorageError } from './errors.js'
import { syncHolder } from './mirror-store.js'
import { type Lock, LockedError, lockFile } from './sqlite-lock.js'
import type { Writer } from './sqlite-writer-client.js'

/**
 * Takes the lock that a sync holds while it is at work; undefined when one is. It ends with its process, so whoever
 * has it knows that all other syncs are dead.
 */
export function lockSync(database: string): Lock | undefined {
  try {
    return lockFile(join(dirname(database), 'sync.lock'), 'exclusive', 0)
  } catch (error) {
    if (error instanceof LockedError) return undefined
    throw toStorageError(error)
  }
}

/** A sync that died leaves turns and leases taken: whoever asks next shall find them free. */
export async function releaseDeadSync(writer: Writer): Promise<void> {
  const lock = lockSync(writer.path)
  if (lock === undefined) return
  try {
    await writer.run('releaseTurns', syncHolder)
  } finally {
    lock.release()
  }
}
