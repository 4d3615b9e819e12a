import { createHash } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, lstat, open, rename } from 'node:fs/promises'
import { dirname } from 'node:path'
import { algorithmOf, type Digest, digestSoFar } from '../src/oci/digest.js'
import type { Examination, ExamineOptions } from './blob-store.js'
import { errorCode, toStorageError } from './errors.js'
import { makeFolder } from './file-owner.js'
import { type Layout, syncDirectories } from './fs-layout.js'

/** A pipe or a device in a blob's place must not be waited for. */
const openFlags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK

/** Bytes read at once: large enough for the speed of the disk, hashed in less than a millisecond. */
const bufferSize = 1024 * 1024

/** See {@link BlobStore.examine}. @throws what `onRead` throws */
export async function examineFile(
  layout: Layout,
  digest: Digest,
  options: ExamineOptions,
): Promise<Examination> {
  let file: FileHandle
  try {
    file = await open(layout.blob(digest), openFlags)
  } catch (error) {
    return errorCode(error) === 'ENOENT' ? { outcome: 'missing', state: '' } : unreadable(error)
  }
  try {
    const found = await stateOf(file)
    if (!found.isFile) return { outcome: 'unreadable', reason: 'something that is no file is in its place' }
    if (found.size !== options.size) {
      return {
        outcome: 'altered',
        state: found.state,
        how: `${found.size} bytes in place of ${options.size}`,
      }
    }
    const isRight = await hasDigest(file, digest, options)
    if (isRight === true) return { outcome: 'intact' }
    return isRight === false ? { outcome: 'altered', state: found.state, how: 'other bytes' } : isRight
  } finally {
    await file.close()
  }
}

async function stateOf(file: FileHandle): Promise<{ isFile: boolean; size: number; state: string }> {
  const stats = await file.stat({ bigint: true })
  return { isFile: stats.isFile(), size: Number(stats.size), state: `${stats.ino} ${stats.ctimeNs}` }
}

/** While one buffer is hashed the next is read. A failing disk is told apart from a caller that stops. */
async function hasDigest(
  file: FileHandle,
  digest: Digest,
  { size, onRead }: ExamineOptions,
): Promise<boolean | Examination> {
  const hash = createHash(algorithmOf(digest))
  const buffers = [0, 1].map(() => Buffer.allocUnsafeSlow(Math.min(bufferSize, Math.max(1, size))))
  let turn = 0
  let reading = readInto(file, buffers[turn])
  for (let position = 0; position < size; ) {
    const { bytes, failure } = await reading
    if (failure !== undefined) return failure
    if (bytes.length === 0) return false // cut off while it was read
    position += bytes.length
    turn = 1 - turn
    if (position < size) reading = readInto(file, buffers[turn])
    hash.update(bytes)
    try {
      await onRead?.(bytes.length)
    } catch (error) {
      await reading
      throw error
    }
  }
  return digestSoFar(hash, algorithmOf(digest)) === digest
}

/** Reads on from where the last read ended; never rejects, since nobody may be listening yet. */
async function readInto(
  file: FileHandle,
  buffer: Buffer = Buffer.alloc(0),
): Promise<{ bytes: Buffer; failure?: Examination }> {
  try {
    const { bytesRead } = await file.read(buffer, 0, buffer.length, null)
    return { bytes: buffer.subarray(0, bytesRead) }
  } catch (error) {
    return { bytes: buffer, failure: unreadable(error) }
  }
}

function unreadable(error: unknown): Examination {
  return { outcome: 'unreadable', reason: errorCode(error) || 'it cannot be read' }
}

/** See {@link BlobStore.quarantine}. */
export async function quarantineFile(
  layout: Layout,
  digest: Digest,
  state: string,
  now: number,
): Promise<boolean> {
  const path = layout.blob(digest)
  try {
    const found = await lstat(path, { bigint: true }).catch((error: unknown) => {
      if (errorCode(error) === 'ENOENT') return undefined
      throw error
    })
    if ((found === undefined ? '' : `${found.ino} ${found.ctimeNs}`) !== state) return false
    if (found === undefined) return true
    await makeFolder(layout.quarantine)
    await rename(path, layout.quarantined(digest, now))
    await syncDirectories([layout.quarantine, dirname(layout.quarantine), dirname(path)])
    return true
  } catch (error) {
    throw toStorageError(error)
  }
}
