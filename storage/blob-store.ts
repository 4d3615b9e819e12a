import type { Readable, Writable } from 'node:stream'
import type { Algorithm, Digest } from '../src/oci/digest.js'
import type { RegistryError } from '../src/oci/errors.js'

/** How one append to an upload ended. Everything up to `size` is durable. */
export interface AppendResult {
  /** Bytes of the upload that are stored, the ones before this append included. */
  readonly size: number
  /** Digest of all those bytes, where it is known without reading them again. */
  readonly digest: Digest | undefined
  /** Why the body ended early (the client left, it stalled): what came before is kept. */
  readonly failure: Error | undefined
}

/** What an append is told. */
export interface AppendOptions {
  /** Where the upload ends, as the metadata say: bytes beyond it are left-overs and are dropped. */
  readonly offset: number
  /** Digest of the bytes before `offset`, where the metadata know it: a running hash must agree with it. */
  readonly digest: Digest | undefined
  /** Bytes that the whole upload may have at most. */
  readonly limit: number
  /** The algorithm that the digest is likely to be asked in. */
  readonly algorithm: Algorithm
  /**
   * Hears how many bytes of the upload can be read ({@link BlobStore.openUpload}). Who listens gets the bytes as
   * soon as they come, in place of the fewest writes.
   */
  readonly onProgress?: (size: number) => void
  /**
   * Asked before each piece of the body is taken, with the position where it ends. A promise holds the body until it
   * resolves; an error, given or thrown, ends the append, and is thrown.
   */
  readonly admit?: (position: number) => RegistryError | Promise<void> | undefined
  /** Hears how far the body is written, though not durable: often, and it must be quick. */
  readonly onStored?: (position: number) => void
  /** Hears of the whole upload when it has been written, before it is durable: the digest where it is known. */
  readonly onWritten?: (written: { readonly size: number; readonly digest: Digest | undefined }) => void
}

/** What a disk still takes. */
export interface FreeSpace {
  /** Bytes that can still be written. */
  readonly bytes: number
  /** Files that can still be made, and all that there can be; both 0 where the filesystem does not count them. */
  readonly files: number
  readonly allFiles: number
}

/** The bytes of an upload, while they come in and when it has become a blob. */
export interface UploadReader extends Copier {
  /** Bytes that can be read now. */
  currentSize(): Promise<number>
}

/** An opened blob. */
export interface BlobReader extends Copier {
  /** Bytes. */
  readonly size: number
}

/** Bytes to copy from. */
export interface Copier {
  /**
   * Writes the bytes `start` … `end` (inclusive) to the sink as fast as it takes them, in bounded memory. Does
   * not end the sink.
   * @throws when the sink closes early, or when the store holds fewer bytes than it should
   */
  copyTo(sink: Writable, start: number, end: number): Promise<void>
  close(): Promise<void>
}

/** What a blob is from outside. */
export interface BlobStat {
  /** Bytes. */
  readonly size: number
  /** When its bytes came: milliseconds since 1970. */
  readonly storedAt: number
  /** Whether somebody else has these bytes on the same disk, such as a backup: to remove them gives no space back. */
  readonly isSharedOutside: boolean
}

/** How a blob's bytes are to be looked at. */
export interface ExamineOptions {
  /** Bytes that it should have. */
  readonly size: number
  /** Hears of each piece that was read; reading goes on when it resolves, and ends when it throws. */
  readonly onRead?: (bytes: number) => Promise<void> | undefined
}

/** What a blob's bytes are like. `state` tells this file from any that takes its place. */
export type Examination =
  | { readonly outcome: 'intact' }
  | { readonly outcome: 'missing'; readonly state: string }
  | { readonly outcome: 'altered'; readonly state: string; readonly how: string }
  /** The disk or the system refused: that says nothing about the bytes. */
  | { readonly outcome: 'unreadable'; readonly reason: string }

/**
 * Bytes by digest, and the bytes of uploads under way. Knows no repository, no tag and no right.
 *
 * The caller holds an upload's turn (see MetadataStore.takeTurn) while it appends to, commits or discards it.
 * A driver must make every promise durable before it resolves: no power cut may undo it.
 */
export interface BlobStore {
  /**
   * Adds a body to an upload and makes it durable.
   * @throws RegistryError BLOB_UPLOAD_UNKNOWN when fewer bytes than `offset` are stored: the upload is lost
   * @throws RegistryError BLOB_TOO_LARGE when the body passes the limit: the upload is back at `offset`
   * @throws RegistryError STORAGE_FULL or UNAVAILABLE: the upload is back at `offset`, or lost
   * @throws what `admit` gives or throws: the upload is back at `offset`
   */
  append(uploadId: string, body: Readable | undefined, options: AppendOptions): Promise<AppendResult>
  /** Reads an upload's first `size` bytes and returns their digest. @throws RegistryError BLOB_UPLOAD_UNKNOWN */
  digestUpload(uploadId: string, algorithm: Algorithm, size: number): Promise<Digest>
  /**
   * Makes an upload of `size` bytes, whose digest the caller has checked, the blob of that digest, durably. A
   * blob that is there already is replaced by the same bytes.
   * @throws RegistryError BLOB_UPLOAD_UNKNOWN when the upload is lost, STORAGE_FULL or UNAVAILABLE
   */
  commit(uploadId: string, digest: Digest, size: number): Promise<void>
  /** Opens an upload for reading, also while it is written; undefined when it has no bytes yet. */
  openUpload(uploadId: string): Promise<UploadReader | undefined>
  /** Forgets an upload's bytes, also for who has it open; nothing happens when there are none. */
  discard(uploadId: string): Promise<void>
  /** Uploads that hold bytes. */
  listUploads(): Promise<string[]>
  /** Opens a blob; undefined when the store does not have it. */
  open(digest: Digest): Promise<BlobReader | undefined>
  /**
   * Removes the bytes of blobs, durably; nothing happens for those that are not there. Who has one of them open
   * reads it to its end.
   * @param rest is waited for between small pieces of the work, so that others get at the disk
   */
  remove(digests: readonly Digest[], rest?: () => Promise<void>): Promise<void>
  /** Into how many parts {@link listPart} divides the blobs. */
  readonly parts: number
  /** Blobs whose bytes lie in one part, from 0 to `parts` - 1, whoever knows of them. */
  listPart(part: number): Promise<Digest[]>
  /** What is known of a blob without reading it; undefined when its bytes are not there. */
  stat(digest: Digest): Promise<BlobStat | undefined>
  /** What can still be written, as the disk sees it. @throws RegistryError UNAVAILABLE */
  freeSpace(): Promise<FreeSpace>
  /** Reads a blob's bytes and compares them with its digest. @throws what `onRead` throws */
  examine(digest: Digest, options: ExamineOptions): Promise<Examination>
  /**
   * Puts bytes aside that an examination found altered, durably: nobody is served them again. The caller sees to it
   * that no collector and no upload touches the blob meanwhile. Resolves also when they are missing.
   * @returns false when what is there now is not what was examined: then nothing is done
   */
  quarantine(digest: Digest, state: string, now: number): Promise<boolean>
  /** Proves that the store can be read and written. @throws RegistryError STORAGE_FULL or UNAVAILABLE */
  check(): Promise<void>
  close(): Promise<void>
}
