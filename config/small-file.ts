import { closeSync, openSync, readSync } from 'node:fs'

/** Enough for any configuration or certificate chain, and little enough to read whole. */
const largestFile = 1024 * 1024

/** The content, or what stands in its way. */
export type SmallFile =
  | { readonly content: Buffer; readonly trouble?: never }
  | { readonly content?: never; readonly trouble: string }

const fileTroubles: Readonly<Record<string, string>> = {
  ENOENT: 'which does not exist',
  ENOTDIR: 'which does not exist',
  EACCES: 'which this user may not read',
  EPERM: 'which this user may not read',
  EISDIR: 'which is a folder',
}

/** A file of up to 1 MiB, whatever its kind says about its size; `trouble` continues "<file>, …". */
export function readSmallFile(file: string): SmallFile {
  const content = Buffer.alloc(largestFile + 1)
  let length = 0
  try {
    const descriptor = openSync(file, 'r')
    try {
      for (let read = -1; read !== 0 && length < content.length; length += read) {
        read = readSync(descriptor, content, length, content.length - length, null)
      }
    } finally {
      closeSync(descriptor)
    }
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? String(error.code) : 'unknown error'
    return { trouble: fileTroubles[code] ?? `which cannot be read (${code})` }
  }
  if (length > largestFile) return { trouble: 'which is larger than 1 MiB' }
  return { content: content.subarray(0, length) }
}
