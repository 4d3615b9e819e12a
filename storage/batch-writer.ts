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

/** What a pump is told. */
interface PumpOptions {
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
  /** Asked before each chunk is taken (see AppendOptions). */
  readonly admit?: ((position: number) => Error | Promise<void> | undefined) | undefined
}

/** How a pump ended: where the file ends now, and why the body did, if it ended early. */
interface PumpResult {
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
 * A body that ends early is not an error here: what came is written. The body is never destroyed.
 * @throws the file's error (disk full, I/O error); the body is left paused
 */
export function pumpToFile(body: Readable, file: FileHandle, options: PumpOptions): Promise<PumpResult> {
  return new Promise((resolve, reject) => new Pump(body, file.fd, options, { resolve, reject }).start())
}

class Pump {
  readonly #body: Readable
  readonly #fd: number
  readonly #options: PumpOptions
  readonly #batchSize: number
  readonly #settled: { resolve: (result: PumpResult) => void; reject: (error: Error) => void }
  #gathering: Buffer | undefined
  #gathered = 0
  /** What did not fit while both batches were full. */
  #rest: Buffer | undefined
  #position: number
  #accepted: number
  #isWriting = false
  #isEnded = false
  #isSettled = false
  #overLimit = false
  #refusal: Error | undefined
  #isHeld = false
  #failure: Error | undefined

  constructor(
    body: Readable,
    fd: number,
    options: PumpOptions,
    settled: { resolve: (result: PumpResult) => void; reject: (error: Error) => void },
  ) {
    this.#body = body
    this.#fd = fd
    this.#options = options
    this.#settled = settled
    this.#position = options.position
    this.#accepted = options.position
    this.#batchSize = ++activeBodies > manyBodies ? smallBatch : largeBatch
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
    const answer = this.#options.admit?.(this.#accepted + chunk.length)
    if (answer instanceof Error) this.#refuse(answer)
    else if (answer === undefined) this.#take(chunk)
    else this.#wait(chunk, answer)
  }

  /** Holds the body until its next chunk is let in, or refused. */
  #wait(chunk: Buffer, answer: Promise<void>): void {
    this.#isHeld = true
    this.#body.pause()
    answer.then(
      () => {
        this.#isHeld = false
        if (this.#isEnded) return // the body broke meanwhile: what came before counts
        this.#take(chunk)
        if (this.#rest === undefined && !this.#isEnded) this.#body.resume()
      },
      (error: Error) => {
        this.#isHeld = false
        if (!this.#isEnded) this.#refuse(error)
      },
    )
  }

  #refuse(error: Error): void {
    this.#refusal = error
    this.#body.pause()
    this.#gathered = 0
    this.#onEnd()
  }

  #take(chunk: Buffer): void {
    if (this.#accepted + chunk.length > this.#options.limit) {
      this.#overLimit = true
      this.#body.pause()
      this.#onEnd()
      return
    }
    this.#accepted += chunk.length
    this.#options.onChunk(chunk)
    this.#gather(chunk)
  }

  /** Copies a chunk into the batches; what fits into neither waits, and the body with it. */
  #gather(chunk: Buffer): void {
    let rest = chunk
    while (rest.length > 0) {
      this.#gathering ??= takeBuffer(
        this.#position === this.#options.position && !this.#isWriting ? firstBatch : this.#batchSize,
      )
      const copied = rest.copy(this.#gathering, this.#gathered)
      this.#gathered += copied
      rest = rest.subarray(copied)
      const isFull = this.#gathered === this.#gathering.length
      if (this.#isWriting && isFull) {
        this.#rest = rest.length > 0 ? rest : undefined
        this.#body.pause()
        return
      }
      if (!this.#isWriting && (isFull || this.#options.isEager === true)) this.#writeBatch()
    }
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
    write(this.#fd, batch, start, end - start, this.#position, (error, written) => {
      if (error !== null) {
        giveBuffer(batch)
        this.#settle(() => this.#settled.reject(error))
        return
      }
      this.#position += written
      if (start + written < end) return this.#write(batch, start + written, end)
      giveBuffer(batch)
      this.#options.onWritten(this.#position)
      this.#onBatchWritten()
    })
  }

  #onBatchWritten(): void {
    this.#isWriting = false
    const isFull = this.#gathering !== undefined && this.#gathered === this.#gathering.length
    const isDue = this.#gathered > 0 && (isFull || this.#isEnded || this.#options.isEager === true)
    if (isDue) this.#writeBatch()
    const rest = this.#rest
    this.#rest = undefined
    if (rest !== undefined) this.#gather(rest)
    if (this.#isEnded && !this.#isWriting) this.#finish()
    else if (!this.#isEnded && this.#rest === undefined && !this.#isHeld && this.#body.isPaused())
      this.#body.resume()
  }

  readonly #onEnd = (): void => {
    if (this.#isEnded) return
    this.#isEnded = true
    this.#body.off('data', this.#onData)
    if (!this.#isWriting) this.#finish()
  }

  /** Writes what is left, then ends. */
  #finish(): void {
    if (this.#gathered > 0) this.#writeBatch()
    else {
      const { resolve } = this.#settled
      const result = {
        position: this.#position,
        failure: this.#failure,
        overLimit: this.#overLimit,
        refusal: this.#refusal,
      }
      this.#settle(() => resolve(result))
    }
  }

  readonly #onError = (error: Error): void => {
    this.#failure ??= error
    this.#onEnd()
  }

  readonly #onClose = (): void => {
    if (!this.#body.readableEnded) this.#failure ??= new Error('the connection closed before the body ended')
    this.#onEnd()
  }

  #settle(how: () => void): void {
    if (this.#isSettled) return
    this.#isSettled = true
    this.#isEnded = true
    activeBodies--
    if (this.#gathering !== undefined) giveBuffer(this.#gathering)
    this.#gathering = undefined
    this.#body.pause()
    this.#body.off('data', this.#onData)
    this.#body.off('end', this.#onEnd)
    this.#body.off('close', this.#onClose)
    // The error listener stays: a body may still fail after its end, and nobody else listens.
    how()
  }
}
