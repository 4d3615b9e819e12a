import { Readable } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import type { Copier, UploadReader } from '../../storage/blob-store.js'
import type { Upload } from '../../storage/metadata-store.js'
import { fillOwner } from '../../storage/mirror-store.js'
import { algorithmOf, type Digest } from '../oci/digest.js'
import { RegistryError } from '../oci/errors.js'
import { dropLeftover } from './fill-leftover.js'
import { isShort, storedBytes, whileRoom, without } from './fill-pieces.js'
import { FillProgress } from './fill-progress.js'
import type { FillContext, FillTask } from './fill-task.js'
import { Standstill } from './standstill.js'
import { type UpstreamBlob, UpstreamError } from './upstream.js'

/** Milliseconds between two looks at what another worker has written. */
const followInterval = 10

/** Milliseconds between two tries while a collector removes the same blob. */
const condemnedPause = 20

/** Looks at the bytes for each look at whether the other worker is still there. */
const looksPerCheck = 10

/** Times that a transfer which was cut off is taken up again without having got any further. */
const mostFruitless = 3

/**
 * One blob on its way from upstream into the store. The worker that holds the upload's turn fetches it; the
 * others follow what it writes. It goes on when those who asked for it leave.
 */
export class Fill {
  readonly #task: FillTask
  readonly #context: FillContext
  readonly #abort = new AbortController()
  readonly #progress = new FillProgress(() => this.#wrong('named two sizes'))
  readonly #standstill: Standstill
  #bytes: Copier | undefined
  #readers = 0
  /** Bytes that it may have, where the upstream does not say how many it has. */
  #limit: number | undefined
  /** Resolves when it has ended, well or not. */
  readonly ended: Promise<void>

  constructor(task: FillTask, context: FillContext) {
    this.#task = task
    this.#context = context
    this.#standstill = new Standstill(() => context.metadata.check())
    this.ended = this.#run()
  }

  /** Keeps the bytes open until {@link leave}: a blob that is evicted at once is still read to its end. */
  enter(): void {
    this.#readers++
  }

  leave(): void {
    this.#readers--
    this.#closeUnread()
  }

  #closeUnread(): void {
    if (this.#readers > 0 || !this.#progress.isEnded) return
    void this.#bytes?.close().catch(() => undefined)
    this.#bytes = undefined
  }

  /** Bytes of the blob, as soon as they are known. @throws what ended the fill before */
  size(): Promise<number> {
    return this.#progress.size()
  }

  /** The same, if it is known by now. */
  get knownSize(): number | undefined {
    return this.#progress.knownSize
  }

  /** Bytes that are stored by now, those of earlier tries included. */
  get storedBytes(): number {
    return this.#progress.storedBytes
  }

  /** Resolves when the blob is stored. @throws what ended the fill */
  async stored(): Promise<void> {
    await this.ended
    const { failure } = this.#progress
    if (failure !== undefined) throw failure
  }

  /** Resolves when the bytes have been found right. @throws what ended the fill */
  right(): Promise<void> {
    return this.#progress.right()
  }

  /**
   * Waits until more than `position` bytes may be shown.
   * @returns how many may be shown
   * @throws what ended the fill
   */
  reached(position: number): Promise<number> {
    return this.#progress.reached(position)
  }

  /** Opens the bytes that are there, be it as an upload or as a blob; the caller closes them. */
  async openBytes(): Promise<Copier> {
    const { blobs } = this.#context
    const kept = this.#bytes
    if (kept !== undefined) {
      return { copyTo: (...what) => kept.copyTo(...what), close: async () => undefined }
    }
    for (;;) {
      const isRight = this.#progress.isEnded && this.#progress.failure === undefined
      const upload = await blobs.openUpload(this.#task.id)
      if (upload !== undefined) return upload
      // The store may have the same blob for others, whatever came in here: it is shown by its link, or once it came.
      if (isRight || (await this.#isLinked())) {
        const stored = await blobs.open(this.#task.digest)
        if (stored !== undefined) return stored
        throw new RegistryError('UNAVAILABLE', 'the blob is gone again')
      }
      if (this.#progress.failure !== undefined) throw this.#progress.failure
      await delay(followInterval)
    }
  }

  async #isLinked(): Promise<boolean> {
    const { repository, digest } = this.#task
    return (await this.#context.metadata.findBlob(repository, digest)) !== undefined
  }

  /** Gives up; what has come is kept for the next try. */
  cancel(): void {
    this.#abort.abort()
  }

  #learnStored(stored: number): void {
    if (this.#progress.learnStored(stored)) this.#standstill.moved()
  }

  async #run(): Promise<void> {
    const failure = await this.#fetch().then(
      () => undefined,
      (error: unknown) => (error instanceof Error ? error : new Error(String(error))),
    )
    this.#progress.end(failure)
    this.#closeUnread()
  }

  async #fetch(): Promise<void> {
    let fruitless = 0
    for (;;) {
      const { metadata, mirrors, newHolder } = this.#context
      const { id, mirror, repository, digest } = this.#task
      const linked = await metadata.findBlob(repository, digest)
      if (linked !== undefined) {
        this.#progress.learnSize(linked)
        return dropLeftover(this.#task, this.#context)
      }
      const holder = newHolder()
      const algorithm = algorithmOf(digest)
      const fill = { id, mirror, repository, digest, owner: fillOwner, algorithm }
      const taken = await mirrors.takeFill(fill, holder, Date.now())
      if (taken === 'local') throw new RegistryError('BLOB_UNKNOWN', undefined, { detail: { digest } })
      if (taken === 'busy') {
        await this.#follow()
        continue
      }
      if (taken === 'condemned') {
        // A collector is removing the same bytes: it is a matter of milliseconds, or of the next collection.
        if (this.#abort.signal.aborted) throw new RegistryError('UNAVAILABLE', 'the server is stopping')
        await delay(condemnedPause)
        continue
      }
      const progress = await this.#lead(taken, holder)
      if (progress === 'done') return
      fruitless = progress.gained > 0 ? 0 : fruitless + 1
      if (fruitless === mostFruitless || this.#abort.signal.aborted) throw progress.failure
      await delay(100 * 2 ** fruitless)
    }
  }

  /** Watches another worker at it, until it has finished or given up. */
  async #follow(): Promise<void> {
    let reader: UploadReader | undefined
    try {
      for (let look = 0; ; look++) {
        if (look % looksPerCheck === 0 || this.#progress.knownSize === undefined) {
          const fill = await this.#context.mirrors.findFill(this.#task.id)
          if (fill?.size !== undefined && this.#progress.knownSize === undefined)
            this.#progress.learnSize(fill.size)
          if (fill?.isHeld !== true) return
        }
        reader ??= await this.#context.blobs.openUpload(this.#task.id)
        if (reader !== undefined) this.#learnStored(await reader.currentSize())
        if (this.#abort.signal.aborted) throw new RegistryError('UNAVAILABLE', 'the server is stopping')
        await this.#standstill.look()
        await delay(followInterval)
      }
    } finally {
      await reader?.close()
    }
  }

  /** Fetches with the turn in hand. A transfer that was cut off leaves what came of it, and says why. */
  async #lead(upload: Upload, holder: string): Promise<'done' | { gained: number; failure: Error }> {
    const { metadata } = this.#context
    const { id } = this.#task
    let offset = 0
    try {
      offset = await storedBytes(this.#context.blobs, id)
      this.#learnStored(offset)
      if (offset > 0 && offset === (await this.#context.mirrors.findFill(id))?.size) {
        // Whoever wrote the last of it may have died before it was synced.
        await this.#context.blobs.append(id, undefined, {
          offset,
          digest: undefined,
          limit: offset,
          algorithm: upload.algorithm,
        })
        await this.#finish({ size: offset, digest: undefined }, holder, true)
        return 'done'
      }
      const { appended, failure } = await this.#append(upload, holder, offset)
      if (failure === undefined) {
        await this.#finish(appended, holder, offset > 0)
        return 'done'
      }
      const progress = { offset: appended.size, digest: appended.digest }
      await metadata.saveProgress(id, holder, progress, Date.now())
      return { gained: appended.size - offset, failure }
    } catch (error) {
      await this.#giveBack(holder, error, offset === 0)
      throw error instanceof RegistryError && error.kind === 'BLOB_TOO_LARGE' ? this.#tooLong() : error
    }
  }

  /**
   * Opens the blob when there is room for it. An answer is not left standing until there is: the upstream could
   * end the connection, and the place on it is somebody else's.
   */
  async #openAdmitted(offset: number, holder: string): Promise<UpstreamBlob> {
    const { admitAtOnce, admit, checkFloor } = this.#context
    const source = await this.#open(offset)
    const { size } = source
    let isAdmitted = false
    try {
      if (size === undefined) await checkFloor()
      isAdmitted = size === undefined || (await admitAtOnce(this.#task, holder, size))
    } finally {
      if (!isAdmitted) source.body.destroy()
    }
    if (size === undefined || isAdmitted) return source
    await admit(this.#task, holder, size, this.#abort.signal)
    const again = await this.#open(offset)
    if (again.size === size) return again
    again.body.destroy()
    throw this.#wrong('said two sizes')
  }

  async #append(upload: Upload, holder: string, offset: number) {
    const { blobs } = this.#context
    const { id } = this.#task
    const source = await this.#openAdmitted(offset, holder)
    const limit = source.size ?? (await this.#bound(source))
    const body = source.offset < offset ? Readable.from(without(source.body, offset)) : source.body
    try {
      if (source.size !== undefined) this.#progress.learnSize(source.size)
      const appended = await whileRoom(source.body, this.#context.checkFloor, () =>
        blobs.append(id, body, {
          offset,
          digest: offset === upload.offset ? upload.digest : undefined,
          limit,
          algorithm: upload.algorithm,
          onProgress: (stored) => this.#learnStored(stored),
          onWritten: ({ size, digest }) => {
            if (digest === this.#task.digest && size === source.size) this.#progress.learnRight()
          },
        }),
      )
      this.#context.onFetched(appended.size - source.offset)
      if (appended.failure instanceof RegistryError) throw appended.failure
      const failure = appended.failure ?? (isShort(appended.size, source.size) ? this.#cutOff() : undefined)
      return { appended, failure }
    } finally {
      source.body.destroy()
    }
  }

  async #open(offset: number): Promise<UpstreamBlob> {
    const { upstream, remote, digest } = this.#task
    const source = await upstream.openBlob(remote, digest, offset, this.#abort.signal)
    const isTooLarge = source.size !== undefined && source.size > this.#context.maxBlobSize
    const isElsewhere = source.offset !== offset && source.offset !== 0
    if (!isTooLarge && !isElsewhere && (source.size ?? offset) >= offset) return source
    source.body.destroy()
    if (isTooLarge) throw new RegistryError('BLOB_TOO_LARGE')
    throw this.#wrong('answered with another range than it was asked for')
  }

  /** Nobody waits for the end of what may have none (reliability S46). */
  async #bound({ body }: UpstreamBlob): Promise<number> {
    try {
      this.#limit = Math.min(this.#context.maxBlobSize, await this.#context.boundOf(this.#task))
      return this.#limit
    } catch (error) {
      body.destroy()
      throw error
    }
  }

  /** The bytes are all there: they become the blob, or, being wrong, nothing. */
  async #finish(
    appended: { readonly size: number; readonly digest: Digest | undefined },
    holder: string,
    isPieced: boolean,
  ): Promise<void> {
    const { blobs, metadata } = this.#context
    const { id, digest } = this.#task
    const actual = appended.digest ?? (await blobs.digestUpload(id, algorithmOf(digest), appended.size))
    if (actual !== digest) {
      // Pieces of two answers may not fit each other: the next try begins anew.
      throw this.#wrong(isPieced ? 'sent pieces that do not fit' : `sent bytes with the digest ${actual}`)
    }
    this.#bytes ??= await blobs.openUpload(id)
    await blobs.commit(id, digest, appended.size)
    const blob = { digest, size: appended.size }
    if (!(await metadata.finishUpload(id, holder, blob, Date.now()))) {
      throw new RegistryError('UNAVAILABLE', 'the blob could not be recorded')
    }
    this.#progress.learnSize(appended.size)
  }

  /** A transfer that may go on later keeps its bytes; wrong bytes go at once, and so does one that has none. */
  async #giveBack(holder: string, error: unknown, isEmpty: boolean): Promise<void> {
    const { blobs, metadata } = this.#context
    const { id } = this.#task
    const isWrong = error instanceof UpstreamError && error.failure === 'invalid'
    const isLost = error instanceof RegistryError
    // The failure itself is the one to report.
    try {
      if (isWrong || isLost || isEmpty) {
        // With the turn still in hand: the next try must not find these bytes, nor lose its own.
        await blobs.discard(id)
        await metadata.removeUpload(id, holder)
        return
      }
    } catch {
      // What stays of it goes with the next try.
    }
    await metadata.releaseTurn(id, holder).catch(() => undefined)
  }

  #wrong(how: string): UpstreamError {
    return new UpstreamError('invalid', `${this.#task.mirror} ${how} for blob ${this.#task.digest}`)
  }

  #tooLong(): Error {
    if (this.#progress.knownSize !== undefined) return this.#wrong('sent more bytes than it announced')
    const isOurs = this.#limit === undefined || this.#limit >= this.#context.maxBlobSize
    return isOurs
      ? new RegistryError('BLOB_TOO_LARGE')
      : this.#wrong(`sent more than ${this.#limit} bytes, without saying how many there are,`)
  }

  #cutOff(): UpstreamError {
    return new UpstreamError('unavailable', `${this.#task.mirror} cut off blob ${this.#task.digest}`)
  }
}
