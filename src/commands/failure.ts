import { errorCode } from '../../storage/errors.js'
import { RegistryError } from '../oci/errors.js'
import { Refusal } from './command.js'

/** What kept a command from being done, in a sentence; undefined for a mistake of the program itself. */
export function describeFailure(error: unknown): string | undefined {
  if (error instanceof Refusal) return error.message
  // What the stores make of a failing disk says nothing of it: its cause does.
  if (error instanceof RegistryError) return describeFailure(error.cause)
  if (!(error instanceof Error)) return undefined
  const code = errorCode(error)
  if (code === 'EDQUOT') {
    return 'The quota of this disk is used up: make room on it, then run the same command again.'
  }
  if (code.startsWith('SQLITE_')) {
    return `A file of the index, or a lock, could not be used (${error.message}): see to the disk, then run the same command again.`
  }
  // Its message names the call and the path that a file, a disk or the network refused.
  return 'syscall' in error ? error.message : undefined
}
