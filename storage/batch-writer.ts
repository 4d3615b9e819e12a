import { write } from 'node:fs'
import type { FileHandle } from 'node:fs/promises'
import type { Readable } from 'node:stream'
import { giveBuffer, takeBuffer } from './buffer-pool.js'

/** Bytes that are gathered before the first write: most bodies have no more. */
const firstBatch = 64 * 1024

/** The same for the writes after it: one for each chunk of the socket would cost a trip to a thread for every 64 KiB. */
const largeBatch = 1024 * 1024

/** The same when many bodies come in at once, so that all of them together stay small. */
const smallBatch = 128 * 1024
const manyBodies = 8
let activeBodies = 0

/**
 * Writes a part of a buffer at a position of the file, and says how many bytes of it were written: a write may be
 * shorter than asked.
 */
export type WriteAt = (
  buffer: Buffer,
  part: { readonly start: number; readonly length: number },
  position: number,
  done: (error: Error | null, written: number) => void,
) => void

/** What a pump is told. */
export interface PumpOptions {
  /** Where in the file the body goes. */
  readonly position: number
  /** Position that the body must not pass. */
  readonly limit: number
  /** Sees every chunk before it is written. */
  readonly onChunk: (chunk: Buffer) => void
  /** Hears how far the file is written. */
  readonly onWritten: (position: number) => void
  /** Whether bytes are written as soon as the writes before them are done, however few they are. */
  readonly isEager?: boolean
  /** Asked before each chunk is taken, once for each and never for two at a time (see AppendOptions). */
  readonly admit?: ((position: number) => Error | Promise<void> | undefined) | undefined
  /** Bytes of the first batch and of those after it, where a test wants small ones. */
  readonly batchSizes?: { readonly first: number; readonly next: number }
}

/** How a pump ended: where the file ends now, and why the body did, if it ended early. */
export interface PumpResult {
  readonly position: number
  readonly failure: Error | undefined
  readonly overLimit: boolean
  /** What ended it, if the caller refused more: then some of what came is not written. */
  readonly refusal: Error | undefined
}

/**
 * Writes a body to a file in large batches: while one batch is written the next is gathered, and when that is
 * full too the body waits. So at most two batches are in memory, however large the body is. Chunks are copied: it
 * costs less than to keep them alive until they are written, which makes them outlive the young generation by the
 * thousand.
 *
 * A body that ends early is not an error here: what came is written, also what was still waiting to be admitted
 * when it ended. The body is never destroyed.
 * @throws the file's error (disk full, I/O error); the body is left paused
 */
export function pumpToFile(body: Readable, file: FileHandle, options: PumpOptions): Promise<PumpResult> {
  const { fd } = file
  return pump(
    body,
    (buffer, { start, length }, position, done) => write(fd, buffer, start, length, position, done),
    options,
  )
}

/** The same to wherever `writeAt` writes. */
export function pump(body: Readable, writeAt: WriteAt, options: PumpOptions): Promise<PumpResult> {
  return new Promise((resolve, reject) => new Pump(body, writeAt, options, { resolve, reject }).start())
}

/**
 * The body's events and the answers of `admit` and of writes may come in any order: Node ends a paused body whose
 * last bytes are out already. Each of them only notes what happened; `#advance` alone decides what follows.
 */
class Pump {
  readonly #body: Readable
  readonly #writeAt: WriteAt
  readonly #options: PumpOptions
  readonly #sizes: { readonly first: number; readonly next: number }
  readonly #settled: { resolve: (result: PumpResult) => void; reject: (error: Error) => void }
  /** What has come and is not in a batch yet: one chunk as a rule, since the body waits then. */
  readonly #waiting: Buffer[] = []
  /** Whether the first of these has been let in, and in part copied already. */
  #isAdmitted = false
  /** Whether `admit` has yet to answer for the first of these. */
  #isHeld = false
  #gathering: Buffer | undefined
  #gathered = 0
  /** How far the file is written, and how far the chunks reach that were let in. */
  #position: number
  #accepted: number
  #isWriting = false
  /** No more comes: the body ended, broke, or is not wanted any more. */
  #isOver = false
  #isSettled = false
  #overLimit = false
  #refusal: Error | undefined
  #failure: Error | undefined

  constructor(
    body: Readable,
    writeAt: WriteAt,
    options: PumpOptions,
    settled: { resolve: (result: PumpResult) => void; reject: (error: Error) => void },
  ) {
    this.#body = body
    this.#writeAt = writeAt
    this.#options = options
    this.#settled = settled
    this.#position = options.position
    this.#accepted = options.position
    const next = ++activeBodies > manyBodies ? smallBatch : largeBatch
    this.#sizes = options.batchSizes ?? { first: firstBatch, next }
  }

  start(): void {
    const body = this.#body
    body.on('error', this.#onError)
    body.on('end', this.#onEnd)
    body.on('close', this.#onClose)
    if (body.destroyed) this.#onClose()
    else if (body.readableEnded) this.#onEnd()
    else {
      body.on('data', this.#onData)
      body.resume()
    }
  }

  readonly #onData = (chunk: Buffer): void => {
    this.#waiting.push(chunk)
    this.#advance()
  }

  readonly #onEnd = (): void => {
    this.#isOver = true
    this.#advance()
  }

  readonly #onError = (error: Error): void => {
    if (!this.#isOver) this.#failure ??= error
    this.#onEnd()
  }

  readonly #onClose = (): void => {
    if (!this.#isOver && !this.#body.readableEnded) {
      this.#failure ??= new Error('the connection closed before the body ended')
    }
    this.#onEnd()
  }

  /** Takes in, writes and ends as far as that is possible now, and lets the body flow or wait. */
  #advance(): void {
    if (this.#isSettled) return
    while (this.#isNextReady()) this.#gatherNext()
    const isDue = this.#isFull() || this.#isDone() || this.#options.isEager === true
    if (!this.#isWriting && this.#gathered > 0 && isDue) this.#writeBatch()
    if (!this.#isWriting && this.#gathered === 0 && this.#isDone()) this.#finish()
    else this.#letFlow()
  }

  /** The body flows while there is a place for what comes. */
  #letFlow(): void {
    const isWanted = !this.#isOver && this.#waiting.length === 0 && !(this.#isWriting && this.#isFull())
    if (isWanted !== this.#body.isPaused()) return
    if (isWanted) this.#body.resume()
    else this.#body.pause()
  }

  /** Whether the body is over and all that came of it is in a batch. */
  #isDone(): boolean {
    return this.#isOver && this.#waiting.length === 0
  }

  #isFull(): boolean {
    return this.#gathering !== undefined && this.#gathered === this.#gathering.length
  }

  /** Whether there is a chunk that has been let in and a place for it; asks for it to be let in. */
  #isNextReady(): boolean {
    const [chunk] = this.#waiting
    if (chunk === undefined || this.#isHeld || (this.#isWriting && this.#isFull())) return false
    if (this.#isAdmitted) return true
    const answer = this.#options.admit?.(this.#accepted + chunk.length)
    if (answer === undefined) this.#take(chunk)
    else if (answer instanceof Error) this.#refuse(answer)
    else this.#hold(chunk, answer)
    return this.#isAdmitted
  }

  /** Keeps a chunk, and the body with it, until it is let in or refused. */
  #hold(chunk: Buffer, answer: Promise<void>): void {
    this.#isHeld = true
    const answered = (how: () => void) => {
      if (this.#isSettled) return // the disk failed meanwhile
      this.#isHeld = false
      how()
      this.#advance()
    }
    answer.then(
      () => answered(() => this.#take(chunk)),
      (error: Error) => answered(() => this.#refuse(error)),
    )
  }

  #take(chunk: Buffer): void {
    if (this.#accepted + chunk.length > this.#options.limit) {
      this.#overLimit = true
      this.#stop()
      return
    }
    this.#accepted += chunk.length
    this.#isAdmitted = true
    this.#options.onChunk(chunk)
  }

  #refuse(error: Error): void {
    this.#refusal = error
    this.#gathered = 0
    this.#stop()
  }

  /** Wants no more of the body, and nothing of what waits. */
  #stop(): void {
    this.#isOver = true
    this.#waiting.length = 0
    this.#body.off('data', this.#onData)
  }

  /** Copies the first chunk into the batch, or as much of it as there is room for. */
  #gatherNext(): void {
    const [chunk] = this.#waiting
    if (chunk === undefined) return
    if (this.#isFull()) this.#writeBatch()
    this.#gathering ??= takeBuffer(this.#isFirst() ? this.#sizes.first : this.#sizes.next)
    const copied = chunk.copy(this.#gathering, this.#gathered)
    this.#gathered += copied
    if (copied < chunk.length) {
      this.#waiting[0] = chunk.subarray(copied)
      return
    }
    this.#waiting.shift()
    this.#isAdmitted = false
  }

  #isFirst(): boolean {
    return this.#position === this.#options.position && !this.#isWriting
  }

  #writeBatch(): void {
    const batch = this.#gathering
    if (batch === undefined) return
    const length = this.#gathered
    this.#gathering = undefined
    this.#gathered = 0
    this.#isWriting = true
    this.#write(batch, 0, length)
  }

  /** A write may be shorter than asked. */
  #write(batch: Buffer, start: number, end: number): void {
    this.#writeAt(batch, { start, length: end - start }, this.#position, (error, written) => {
      if (error !== null) {
        giveBuffer(batch)
        this.#settle(() => this.#settled.reject(error))
        return
      }
      this.#position += written
      if (start + written < end) return this.#write(batch, start + written, end)
      giveBuffer(batch)
      this.#options.onWritten(this.#position)
      this.#isWriting = false
      this.#advance()
    })
  }

  #finish(): void {
    const result = {
      position: this.#position,
      failure: this.#failure,
      overLimit: this.#overLimit,
      refusal: this.#refusal,
    }
    this.#settle(() => this.#settled.resolve(result))
  }

  #settle(how: () => void): void {
    if (this.#isSettled) return
    this.#isSettled = true
    activeBodies--
    if (this.#gathering !== undefined) giveBuffer(this.#gathering)
    this.#gathering = undefined
    this.#waiting.length = 0
    this.#body.pause()
    this.#body.off('data', this.#onData)
    this.#body.off('end', this.#onEnd)
    this.#body.off('close', this.#onClose)
    // The error listener stays: a body may still fail after its end, and nobody else listens.
    how()
  }
}
