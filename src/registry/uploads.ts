import { randomUUID } from 'node:crypto'
import type { Readable } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import type { AppendOptions, AppendResult, BlobStore } from '../../storage/blob-store.js'
import type { MetadataStore, Upload } from '../../storage/metadata-store.js'
import type { QuotaStore } from '../../storage/quota-store.js'
import { type Algorithm, algorithmOf, type Digest } from '../oci/digest.js'
import { RegistryError, UploadRangeError } from '../oci/errors.js'
import type { RepositoryName } from '../oci/reference.js'
import type { BodyRoom, DiskGuard } from './disk-guard.js'
import { leaseSlack } from './leases.js'
import { overQuota, QuotaRoom } from './quotas.js'

/** How long a request waits for an upload's turn, in milliseconds, before it is refused. */
const turnPatience = 10_000

/** Said to whoever pushes a blob for which its last bytes are being removed longer than that. */
const stillGoing = 'garbage collection is removing an older copy of this blob: try again'

/** Milliseconds without a request after which a session gives way where there are too many. */
const idleAfter = 60_000

/** Sessions that one round of expiry ends at once. */
const expiryBatch = 500

/** What the service is told. */
export interface UploadOptions {
  /** Begins every turn that this process takes, so that they can be given back when it dies. */
  readonly holder: string
  /** Sessions that may be open in one repository. */
  readonly maxPerRepository: number
  /** Sessions that a user may have open, or an address where nobody logged in. */
  readonly maxPerUser: number
  /** Bytes that a blob may have. */
  readonly maxBlobSize: number
  /** Milliseconds for which a blob stays that somebody relies on (see leases.ts). */
  readonly grace: number
  /** Has the last word on bytes. */
  readonly disk: Pick<DiskGuard, 'admit' | 'openRoom'>
  /** Default: there are none. */
  readonly quotas?: Pick<QuotaStore, 'isLimited' | 'reserve' | 'findOverrun'>
}

/** Who opens a session. */
export interface Uploader {
  /** The name of the user who may go on with it; '' for anybody. */
  readonly owner: string
  /** Whose sessions are counted together: a user's, or those of an address. */
  readonly source: string
}

/** Whose upload it is: both must fit, otherwise there is no such upload (protocol UP-09). */
export interface UploadKey {
  readonly repository: RepositoryName
  readonly id: string
  readonly owner: string
}

/** An upload whose turn this holder has. */
interface Turn {
  readonly upload: Upload
  readonly holder: string
}

/** A body on its way in. */
export interface Chunk {
  /** Opens the body; undefined when the request has none. Called when nothing but the body is missing. */
  readonly open: (() => Readable) | undefined
  /** First and last position, when the client says them (Content-Range). */
  readonly range: { readonly start: number; readonly end: number } | undefined
  /** Bytes, when the client says them (Content-Length). */
  readonly length: number | undefined
}

/**
 * Upload sessions: start, append, finish, cancel. A session is a row, so that every worker can go on with it
 * and a restart forgets nothing.
 */
export class UploadService {
  readonly #blobs: BlobStore
  readonly #metadata: MetadataStore
  readonly #options: UploadOptions

  constructor(
    stores: { readonly blobs: BlobStore; readonly metadata: MetadataStore },
    options: UploadOptions,
  ) {
    this.#blobs = stores.blobs
    this.#metadata = stores.metadata
    this.#options = options
  }

  /**
   * Opens a session. Cheap: no file is made before the first byte (protocol UP-97).
   * @returns its id, a UUID
   * Where there are too many, one that nobody uses gives way: of the same user, or in the repository of whoever has most.
   * @throws RegistryError TOOMANYREQUESTS when all of them are in use, STORAGE_FULL, DENIED when a quota is used up
   */
  async startUpload(repository: RepositoryName, by: Uploader, algorithm: Algorithm): Promise<string> {
    await this.#options.disk.admit(0)
    const upload = { id: randomUUID(), repository, ...by, algorithm }
    const { maxPerRepository, maxPerUser } = this.#options
    for (let tries = 0; ; tries++) {
      const now = Date.now()
      const started = await this.#metadata.startUpload(upload, maxPerRepository, now, maxPerUser)
      if (started === true) return upload.id
      if (typeof started === 'object') throw overQuota(started)
      const isSource = started === 'source-full'
      const full = isSource ? { source: by.source } : { repository }
      // Others may be as quick to take the place.
      const ended = tries < 3 ? await this.#metadata.endIdleUpload(full, now - idleAfter) : undefined
      if (ended === undefined) throw tooMany(isSource ? maxPerUser : maxPerRepository, isSource)
      await this.#blobs.discard(ended)
    }
  }

  /** Bytes that are stored. @throws RegistryError BLOB_UPLOAD_UNKNOWN */
  async statUpload(key: UploadKey): Promise<number> {
    const upload = await this.#metadata.findUpload(key.id)
    return this.#owned(upload, key).offset
  }

  /**
   * Adds a chunk; what arrived of it before a broken connection is kept (protocol UP-48).
   * @returns bytes stored now
   * @throws UploadRangeError when the chunk does not start where the upload ends: the session goes on
   * @throws RegistryError BLOB_UPLOAD_UNKNOWN, SIZE_INVALID, BLOB_TOO_LARGE
   */
  async appendChunk(key: UploadKey, chunk: Chunk): Promise<number> {
    return this.#withTurn(key, async (upload, holder) => {
      const appended = await this.#append({ upload, holder }, chunk, upload.algorithm)
      if (appended.failure === undefined) checkLength(upload, chunk, appended.size)
      const progress = { offset: appended.size, digest: appended.digest }
      if (!(await this.#metadata.saveProgress(key.id, holder, progress, Date.now()))) {
        throw new RegistryError('BLOB_UPLOAD_UNKNOWN') // the turn was taken away: nothing may be acknowledged
      }
      if (appended.failure !== undefined) throw brokenBody(appended.failure)
      return appended.size
    })
  }

  /**
   * Adds the last chunk, if any, and makes the upload the blob of this digest. When the digest is not that of
   * the bytes, the session and its bytes are gone (protocol UP-24).
   * @throws UploadRangeError when the chunk does not start where the upload ends: the session goes on
   * @throws RegistryError BLOB_UPLOAD_UNKNOWN, DIGEST_INVALID, SIZE_INVALID, BLOB_TOO_LARGE
   */
  async finishUpload(key: UploadKey, digest: Digest, chunk: Chunk): Promise<void> {
    try {
      await this.#withTurn(
        key,
        (upload, holder) => this.#finish(key, digest, chunk, { upload, holder }),
        digest,
      )
    } catch (error) {
      const isUnknown = error instanceof RegistryError && error.kind === 'BLOB_UPLOAD_UNKNOWN'
      if (!isUnknown || !(await this.#isFinished(key, digest))) throw error
    }
  }

  async #finish(key: UploadKey, digest: Digest, chunk: Chunk, turn: Turn): Promise<void> {
    const { holder } = turn
    const complete = await this.#appendLast(turn, chunk, digest)
    const actual =
      complete.digest !== undefined && algorithmOf(complete.digest) === algorithmOf(digest)
        ? complete.digest
        : await this.#blobs.digestUpload(key.id, algorithmOf(digest), complete.size)
    if (actual !== digest) {
      await this.#drop(key.id, holder)
      throw new RegistryError(
        'DIGEST_INVALID',
        'the bytes that arrived have another digest: push them again',
        {
          detail: { digest, received: actual },
        },
      )
    }
    // What came in as if to mend a damaged blob may have been another one.
    const overrun = await this.#options.quotas?.findOverrun(key.repository, digest)
    if (overrun !== undefined) throw overQuota(overrun)
    await this.#blobs.commit(key.id, digest, complete.size)
    const blob = { digest, size: complete.size }
    if (!(await this.#metadata.finishUpload(key.id, holder, blob, Date.now()))) {
      throw new RegistryError('BLOB_UPLOAD_UNKNOWN')
    }
  }

  /**
   * Stores a whole blob in one request (protocol UP-22).
   * @throws as {@link finishUpload}; nothing is left behind then
   */
  async putBlob(repository: RepositoryName, by: Uploader, digest: Digest, chunk: Chunk): Promise<void> {
    const id = await this.startUpload(repository, by, algorithmOf(digest))
    try {
      await this.finishUpload({ repository, id, owner: by.owner }, digest, chunk)
    } catch (error) {
      if (await this.#metadata.removeUpload(id, undefined)) await this.#blobs.discard(id)
      throw error
    }
  }

  /**
   * Ends a session and frees its bytes.
   * @param ofAnybody whether whoever asks may end those of others: administrators may
   * @throws RegistryError BLOB_UPLOAD_UNKNOWN
   */
  async cancelUpload(key: UploadKey, ofAnybody: boolean): Promise<void> {
    const owner = ofAnybody ? (await this.#metadata.findUpload(key.id))?.owner : undefined
    const known = owner === undefined ? key : { ...key, owner }
    await this.#withTurn(known, (_upload, holder) => this.#drop(key.id, holder))
  }

  /**
   * Ends sessions that nobody used since `before` (milliseconds since 1970), and removes bytes that no session
   * claims.
   * @returns the number of sessions ended
   */
  async expireUploads(before: number): Promise<number> {
    let count = 0
    let ids: string[]
    do {
      ids = await this.#metadata.expireUploads(before, expiryBatch)
      for (const id of ids) await this.#blobs.discard(id)
      count += ids.length
    } while (ids.length === expiryBatch)
    for (const id of await this.#blobs.listUploads()) {
      // A file outlives its row only by a crash: the row always goes first.
      if ((await this.#metadata.findUpload(id)) === undefined) await this.#blobs.discard(id)
    }
    return count
  }

  /**
   * Runs one step on an upload while nobody else can, whichever worker they reach (protocol UP-47).
   * @param finishing the digest of the blob that the step makes
   */
  async #withTurn<T>(
    key: UploadKey,
    step: (upload: Upload, holder: string) => Promise<T>,
    finishing?: Digest,
  ): Promise<T> {
    const holder = `${this.#options.holder}${randomUUID()}`
    const upload = await this.#takeTurn(key, holder, finishing)
    try {
      return await step(upload, holder)
    } catch (error) {
      await this.#afterFailure(key.id, holder, error)
      throw error
    }
  }

  /** An upload whose bytes are lost is over; every other one waits for the client's next try. */
  async #afterFailure(id: string, holder: string, error: unknown): Promise<void> {
    const isLost = error instanceof RegistryError && error.kind === 'BLOB_UPLOAD_UNKNOWN'
    // The step's own failure is the one to report.
    const isDropped = isLost && (await this.#drop(id, holder).then(done, failed))
    if (!isDropped) await this.#metadata.releaseTurn(id, holder).catch(failed)
  }

  async #takeTurn(key: UploadKey, holder: string, finishing: Digest | undefined): Promise<Upload> {
    this.#owned(await this.#metadata.findUpload(key.id), key)
    const deadline = performance.now() + turnPatience
    for (let pause = 5; ; pause = Math.min(pause * 2, 100)) {
      const taken = await this.#metadata.takeTurn(key.id, holder, finishing)
      if (taken === 'unknown') throw new RegistryError('BLOB_UPLOAD_UNKNOWN')
      if (typeof taken === 'object') return taken
      if (performance.now() > deadline) {
        if (taken === 'condemned') throw new RegistryError('UNAVAILABLE', stillGoing, { retryAfter: 1 })
        const upload = this.#owned(await this.#metadata.findUpload(key.id), key)
        throw new UploadRangeError(upload, 'another request is writing to this upload')
      }
      await delay(pause)
    }
  }

  /** UP-62: a client that lost the answer asks again; the blob that it wants is there. */
  async #isFinished(key: UploadKey, digest: Digest): Promise<boolean> {
    if ((await this.#metadata.findUpload(key.id)) !== undefined) return false
    const slack = leaseSlack(this.#options.grace)
    return (await this.#metadata.leaseBlob(key.repository, digest, Date.now(), slack)) !== undefined
  }

  #owned(upload: Upload | undefined, key: UploadKey): Upload {
    if (upload === undefined || upload.repository !== key.repository || upload.owner !== key.owner) {
      throw new RegistryError('BLOB_UPLOAD_UNKNOWN')
    }
    return upload
  }

  async #append({ upload, holder }: Turn, chunk: Chunk, algorithm: Algorithm): Promise<AppendResult> {
    const limit = this.#options.maxBlobSize
    checkRange(upload, chunk)
    if (upload.offset + (chunk.length ?? 0) > limit) throw new RegistryError('BLOB_TOO_LARGE')
    if (chunk.open === undefined && upload.offset > 0) {
      return { size: upload.offset, digest: upload.digest, failure: undefined }
    }
    const { offset, digest } = upload
    const told = { offset, digest, limit, algorithm }
    if (chunk.open === undefined) return this.#blobs.append(upload.id, undefined, told)
    const room = await this.#openRoom(upload, holder, chunk.length ?? 0)
    try {
      return await this.#blobs.append(upload.id, chunk.open(), { ...told, ...room.told })
    } finally {
      room.close()
    }
  }

  /**
   * Looks for the room that a body needs, as far as its length is known.
   * @returns what looks for the rest while it comes in
   * @throws RegistryError STORAGE_FULL, DENIED when a quota has no room for it
   */
  async #openRoom(
    upload: Upload,
    holder: string,
    length: number,
  ): Promise<{ told: Pick<AppendOptions, 'admit' | 'onStored'> } & Pick<BodyRoom, 'close'>> {
    const { disk, quotas } = this.#options
    await disk.admit(length)
    const isLimited = await quotas?.isLimited(upload.repository)
    const quota = new QuotaRoom(async (end) => {
      const granted = await quotas?.reserve(upload.id, holder, end)
      return granted ?? { end, excess: undefined }
    })
    if (isLimited && length > 0) await quota.claim(upload.offset + length)
    const room = disk.openRoom(upload.offset)
    return {
      told: {
        admit(position) {
          const [one, other] = [room.pass(position), isLimited ? quota.pass(position) : undefined]
          if (one === undefined && other === undefined) return undefined
          return Promise.all([one, other]).then(() => undefined)
        },
        onStored: (position) => room.reached(position),
      },
      close: () => room.close(),
    }
  }

  /** The closing chunk counts whole or not at all: a client that lost the connection sends it again. */
  async #appendLast(turn: Turn, chunk: Chunk, digest: Digest): Promise<AppendResult> {
    const { upload } = turn
    const algorithm = upload.offset === 0 ? algorithmOf(digest) : upload.algorithm
    const appended = await this.#append(turn, chunk, algorithm)
    if (appended.failure !== undefined) throw brokenBody(appended.failure)
    checkLength(upload, chunk, appended.size)
    return appended
  }

  async #drop(id: string, holder: string): Promise<void> {
    if (await this.#metadata.removeUpload(id, holder)) await this.#blobs.discard(id)
  }
}

/** A chunk must start exactly where the upload ends (protocol UP-42) and be as long as it says (UP-43). */
function checkRange(upload: Upload, { range, length }: Chunk): void {
  if (range === undefined) return
  if (range.end < range.start || (length !== undefined && range.end - range.start + 1 !== length)) {
    throw new UploadRangeError(upload, 'Content-Range does not fit Content-Length')
  }
  if (range.start !== upload.offset) {
    throw new UploadRangeError(
      upload,
      `the chunk starts at ${range.start}, but the upload ends at ${upload.offset}`,
    )
  }
}

function tooMany(limit: number, isSource: boolean): RegistryError {
  const whose = isSource ? 'of yours are open' : 'are open in this repository'
  return new RegistryError('TOOMANYREQUESTS', `${limit} uploads ${whose} already`, { retryAfter: 60 })
}

const done = () => true
const failed = () => false

/** For bodies without a length the range is compared when they have arrived; too much or too little is undone. */
function checkLength(upload: Upload, { range }: Chunk, size: number): void {
  if (range !== undefined && size !== range.end + 1) {
    throw new UploadRangeError(
      upload,
      `the body has ${size - upload.offset} bytes, which is not what Content-Range says`,
    )
  }
}

function brokenBody(failure: Error): RegistryError {
  if (failure instanceof RegistryError) return failure
  return new RegistryError('SIZE_INVALID', 'the body ended before it was complete', { cause: failure })
}
