import { createHash, type Hash, randomUUID } from 'node:crypto'
import { constants } from 'node:fs'
import {
  type FileHandle,
  lstat,
  open,
  readdir,
  rename,
  stat,
  statfs,
  truncate,
  unlink,
} from 'node:fs/promises'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { type Algorithm, algorithmOf, type Digest, digestSoFar } from '../src/oci/digest.js'
import { RegistryError } from '../src/oci/errors.js'
import { pumpToFile } from './batch-writer.js'
import type {
  AppendOptions,
  AppendResult,
  BlobReader,
  BlobStat,
  BlobStore,
  Examination,
  ExamineOptions,
  FreeSpace,
  UploadReader,
} from './blob-store.js'
import { DirectorySync } from './directory-sync.js'
import { errorCode, toStorageError } from './errors.js'
import { fileMode, giveFileToOwner, makeFolder } from './file-owner.js'
import { openFileReader } from './file-reader.js'
import { examineFile, quarantineFile } from './fs-blob-check.js'
import { digestIn, Layout, leaves, syncDirectories } from './fs-layout.js'
import { inParallel } from './in-parallel.js'
import { WriteBack } from './write-back.js'

const { O_RDONLY, O_RDWR, O_CREAT, O_EXCL, O_NOFOLLOW } = constants

/** Running hashes kept between two appends to one upload, so that the first bytes are not read again. */
const mostHashes = 1000

/** Bytes read at once when an upload is hashed from its file. */
const hashBufferSize = 1024 * 1024

/** A hash that can go on, and the digest it stands at: that is how the metadata know it. */
interface RunningHash {
  readonly digest: Digest
  readonly hash: Hash
}

/**
 * Makes the folders of the blob store, durably, and checks that uploads and blobs lie on one filesystem. All
 * fan-out folders are made now, so that no push waits for one. To be called before the store is opened, by one
 * process alone.
 */
export async function prepareFsBlobStore(root: string): Promise<void> {
  const layout = new Layout(root)
  await makeDirectories(layout.uploads, [])
  await makeDirectories(join(layout.blobs, 'sha256'), leaves)
  await makeDirectories(join(layout.blobs, 'sha512'), leaves)
  await syncDirectories([layout.blobs, root])
  const [uploads, blobs] = await Promise.all([stat(layout.uploads), stat(layout.blobs)])
  if (uploads.dev !== blobs.dev) {
    throw new Error(`${layout.uploads} and ${layout.blobs} must lie on one filesystem`)
  }
}

async function makeDirectories(parent: string, names: readonly string[]): Promise<void> {
  await makeFolder(parent)
  const present = new Set(await readdir(parent))
  const missing = names.filter((name) => !present.has(name))
  await Promise.all(missing.map((name) => makeFolder(join(parent, name))))
  await syncDirectories([parent]) // also what an interrupted first start has made
}

/** Opens the driver that keeps blobs as files below `root`; {@link prepareFsBlobStore} has made the folders. */
export function openFsBlobStore(root: string): BlobStore {
  return new FsBlobStore(root)
}

class FsBlobStore implements BlobStore {
  readonly #layout: Layout
  readonly #directories = new DirectorySync()
  readonly #hashes = new Map<string, RunningHash>()

  constructor(root: string) {
    this.#layout = new Layout(root)
  }

  async append(uploadId: string, body: Readable | undefined, options: AppendOptions): Promise<AppendResult> {
    const hash = this.#takeHash(uploadId, options)
    const file = await this.#openUpload(uploadId, options.offset)
    const writeBack = new WriteBack(file, options.offset)
    try {
      // The new file's entry is synced while the body comes in.
      const entry = options.offset === 0 ? this.#directories.sync(this.#layout.uploads) : undefined
      entry?.catch(() => undefined)
      const pumped = await this.#pump(body, file, options, { hash, writeBack })
      const digest = hash === undefined ? undefined : digestSoFar(hash, options.algorithm)
      if (pumped.failure === undefined) options.onWritten?.({ size: pumped.position, digest })
      await this.#finishSync(uploadId, writeBack)
      await entry
      if (hash !== undefined && digest !== undefined) this.#keepHash(uploadId, { digest, hash })
      return { size: pumped.position, digest, failure: pumped.failure }
    } catch (error) {
      // A full disk gets its room back. When even that fails, the next append drops what is beyond its offset.
      await file.truncate(options.offset).catch(() => undefined)
      throw toStorageError(error)
    } finally {
      await writeBack.settle()
      await file.close()
    }
  }

  /**
   * After a failed sync the kernel may have dropped the pages and call them clean: a second sync would succeed
   * and prove nothing. So the upload is given up (reliability R52).
   */
  async #finishSync(uploadId: string, writeBack: WriteBack): Promise<void> {
    try {
      await writeBack.finish()
    } catch (error) {
      await this.discard(uploadId)
      throw error
    }
  }

  async #pump(
    body: Readable | undefined,
    file: FileHandle,
    options: AppendOptions,
    { hash, writeBack }: { hash: Hash | undefined; writeBack: WriteBack },
  ): Promise<{ position: number; failure: Error | undefined }> {
    if (body === undefined) return { position: options.offset, failure: undefined }
    const pumped = await pumpToFile(body, file, {
      position: options.offset,
      limit: options.limit,
      onChunk: (chunk) => hash?.update(chunk),
      onWritten: (position) => {
        writeBack.reached(position)
        options.onStored?.(position)
        options.onProgress?.(position)
      },
      isEager: options.onProgress !== undefined,
      admit: options.admit,
    })
    if (pumped.refusal !== undefined) throw pumped.refusal
    if (pumped.overLimit) throw new RegistryError('BLOB_TOO_LARGE')
    return pumped
  }

  /** Opens an upload's file at exactly `offset` bytes; makes it when the upload is empty. */
  async #openUpload(uploadId: string, offset: number): Promise<FileHandle> {
    let file: FileHandle
    try {
      file = await open(
        this.#layout.upload(uploadId),
        O_RDWR | O_NOFOLLOW | (offset === 0 ? O_CREAT : 0),
        fileMode,
      )
    } catch (error) {
      throw lostOr(error)
    }
    try {
      if (offset === 0) await giveFileToOwner(file, this.#layout.uploads)
      const { size } = await file.stat()
      if (size < offset) throw new RegistryError('BLOB_UPLOAD_UNKNOWN')
      if (size > offset) await file.truncate(offset)
      return file
    } catch (error) {
      await file.close()
      throw toStorageError(error)
    }
  }

  async digestUpload(uploadId: string, algorithm: Algorithm, size: number): Promise<Digest> {
    const hash = createHash(algorithm)
    let file: FileHandle
    try {
      file = await open(this.#layout.upload(uploadId), O_RDONLY | O_NOFOLLOW)
    } catch (error) {
      throw lostOr(error)
    }
    try {
      await hashFile(file, hash, size)
      return digestSoFar(hash, algorithm)
    } catch (error) {
      throw toStorageError(error)
    } finally {
      await file.close()
    }
  }

  async commit(uploadId: string, digest: Digest, size: number): Promise<void> {
    this.#hashes.delete(uploadId)
    const from = this.#layout.upload(uploadId)
    try {
      const stored = await lstat(from)
      if (!stored.isFile() || stored.size < size) throw new RegistryError('BLOB_UPLOAD_UNKNOWN')
      if (stored.size > size) await cutOff(from, size)
      await rename(from, this.#layout.blob(digest))
      await this.#directories.sync(this.#layout.blobDirectory(digest))
    } catch (error) {
      throw lostOr(error)
    }
  }

  async openUpload(uploadId: string): Promise<UploadReader | undefined> {
    try {
      return await openFileReader(this.#layout.upload(uploadId), O_RDONLY | O_NOFOLLOW)
    } catch (error) {
      throw toStorageError(error)
    }
  }

  async discard(uploadId: string): Promise<void> {
    this.#hashes.delete(uploadId)
    const path = this.#layout.upload(uploadId)
    // Who has it open must not take it for whole. What hinders this hinders the removal, which says so.
    await truncate(path, 0).catch(() => undefined)
    await removeFile(path)
  }

  async listUploads(): Promise<string[]> {
    const entries = await readdir(this.#layout.uploads, { withFileTypes: true })
    return entries.filter((entry) => !entry.isDirectory()).map((entry) => entry.name)
  }

  async open(digest: Digest): Promise<BlobReader | undefined> {
    try {
      return await openFileReader(this.#layout.blob(digest), O_RDONLY | O_NOFOLLOW)
    } catch (error) {
      throw toStorageError(error)
    }
  }

  async remove(digests: readonly Digest[], rest?: () => Promise<void>): Promise<void> {
    const directories = [...new Set(digests.map((digest) => this.#layout.blobDirectory(digest)))]
    await inParallel(digests, (digest) => removeFile(this.#layout.blob(digest)), rest)
    try {
      await inParallel(directories, (directory) => this.#directories.sync(directory), rest)
    } catch (error) {
      throw toStorageError(error)
    }
  }

  readonly parts = 2 * leaves.length

  async listPart(part: number): Promise<Digest[]> {
    const [algorithm, directory] = this.#layout.part(part)
    try {
      const names = await readdir(directory)
      return names.flatMap((name) => digestIn(directory, algorithm, name))
    } catch (error) {
      throw toStorageError(error)
    }
  }

  async stat(digest: Digest): Promise<BlobStat | undefined> {
    try {
      const { size, mtimeMs, ctimeMs, nlink } = await lstat(this.#layout.blob(digest))
      return { size, storedAt: Math.max(mtimeMs, ctimeMs), isSharedOutside: nlink > 1 }
    } catch (error) {
      if (errorCode(error) === 'ENOENT') return undefined
      throw toStorageError(error)
    }
  }

  async freeSpace(): Promise<FreeSpace> {
    try {
      const { bavail, bsize, ffree, files } = await statfs(this.#layout.blobs)
      return { bytes: bavail * bsize, files: ffree, allFiles: files }
    } catch (error) {
      throw toStorageError(error)
    }
  }

  examine(digest: Digest, options: ExamineOptions): Promise<Examination> {
    return examineFile(this.#layout, digest, options)
  }

  quarantine(digest: Digest, state: string, now: number): Promise<boolean> {
    return quarantineFile(this.#layout, digest, state, now)
  }

  async check(): Promise<void> {
    const path = this.#layout.upload(`check-${randomUUID()}`)
    try {
      const file = await open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, fileMode)
      try {
        await file.write('check', 0)
      } finally {
        await file.close()
        await removeFile(path)
      }
    } catch (error) {
      throw toStorageError(error)
    }
  }

  async close(): Promise<void> {
    this.#hashes.clear()
    await this.#directories.close()
  }

  /**
   * The running hash of the bytes before `offset`, if this process saw them all. It counts only when it stands
   * at the digest that was acknowledged: bytes that were refused, or that another worker added, are not in it.
   */
  #takeHash(uploadId: string, options: AppendOptions): Hash | undefined {
    if (options.offset === 0) return createHash(options.algorithm)
    const kept = this.#hashes.get(uploadId)
    const isCurrent = kept !== undefined && kept.digest === options.digest
    return isCurrent && algorithmOf(kept.digest) === options.algorithm ? kept.hash.copy() : undefined
  }

  #keepHash(uploadId: string, running: RunningHash): void {
    this.#hashes.delete(uploadId)
    this.#hashes.set(uploadId, running)
    if (this.#hashes.size <= mostHashes) return
    const [oldest] = this.#hashes.keys()
    if (oldest !== undefined) this.#hashes.delete(oldest)
  }
}

async function hashFile(file: FileHandle, hash: Hash, size: number): Promise<void> {
  const buffer = Buffer.allocUnsafeSlow(Math.min(hashBufferSize, Math.max(1, size)))
  let position = 0
  while (position < size) {
    const { bytesRead } = await file.read(buffer, 0, Math.min(buffer.length, size - position), position)
    if (bytesRead === 0) throw new RegistryError('BLOB_UPLOAD_UNKNOWN')
    hash.update(buffer.subarray(0, bytesRead))
    position += bytesRead
  }
}

/** Drops what a refused or an interrupted append has left beyond the acknowledged bytes. */
async function cutOff(path: string, size: number): Promise<void> {
  const file = await open(path, O_RDWR | O_NOFOLLOW)
  try {
    await file.truncate(size)
    await file.datasync()
  } catch (error) {
    await removeFile(path) // a file whose sync failed is never trusted again
    throw error
  } finally {
    await file.close()
  }
}

async function removeFile(path: string): Promise<void> {
  try {
    await unlink(path)
  } catch (error) {
    if (errorCode(error) !== 'ENOENT') throw toStorageError(error)
  }
}

/** A missing upload file means that the upload is lost; everything else is the disk's. */
function lostOr(error: unknown): RegistryError {
  return errorCode(error) === 'ENOENT' ? new RegistryError('BLOB_UPLOAD_UNKNOWN') : toStorageError(error)
}
