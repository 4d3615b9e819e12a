import { Worker } from 'node:worker_threads'
import { RegistryError } from '../src/oci/errors.js'
import { errorCode, IndexDamagedError, isFull, isIndexDamage, toStorageError } from './errors.js'
import { freeingOperations, type Operations, releasingOperations } from './sqlite-operations.js'
import type { WriteReply, WriteRequest } from './sqlite-writer.js'

/** Operations that are committed together at the most. */
const largestBatch = 128

/** Operations that may wait for the writer; more are refused (503), so that memory stays bounded. */
const longestQueue = 10_000

/** Releases that may wait until they can be written, and milliseconds between two tries. */
const mostOwed = 1000
const owedPause = 500

/** After these the database's state is in doubt: no further write is tried on it (reliability R52). */
const poisonous = /^SQLITE_(?:IOERR(?!_SHMSIZE)|CORRUPT|NOTADB)/

/** What the writer is told. */
export interface WriterOptions {
  /** The database file. */
  readonly path: string
  /** Called once, when the index is damaged (IndexDamagedError), or writing failed in a way that only a restart can mend. */
  readonly onFatal: (error: Error) => void
  /** Gives the disk some room, for operations that free more; false when there is none to give. Default: never. */
  readonly freeSome?: () => Promise<boolean>
}

interface Waiting {
  readonly request: WriteRequest
  readonly resolve: (value: unknown) => void
  readonly reject: (error: Error) => void
}

/** This side of the writer thread: queues operations and hands them over in batches. */
export class Writer {
  /** The database file. */
  readonly path: string
  readonly #worker: Worker
  /** Resolves when the thread has ended, be it by itself. */
  readonly #exited: Promise<void>
  readonly #onFatal: (error: Error) => void
  readonly #freeSome: () => Promise<boolean>
  #queue: Waiting[] = []
  #inFlight: Waiting[] = []
  /** Releases that could not be written. */
  #owed: WriteRequest[] = []
  #owedTimer: NodeJS.Timeout | undefined
  #dead: Error | undefined
  #idle: (() => void) | undefined
  #isClosing = false

  static async start(options: WriterOptions): Promise<Writer> {
    const worker = new Worker(new URL('./sqlite-writer.js', import.meta.url), { workerData: options.path })
    await new Promise<void>((resolve, reject) => {
      worker.once('message', (message: 'ready' | WriteReply) => {
        if (message === 'ready') resolve()
        else reject(new Error(`the index cannot be used: ${message.ok ? '' : message.message}`))
      })
      worker.once('error', reject)
    })
    return new Writer(worker, options)
  }

  private constructor(worker: Worker, { path, onFatal, freeSome }: WriterOptions) {
    this.path = path
    this.#worker = worker
    this.#onFatal = onFatal
    this.#freeSome = freeSome ?? (async () => false)
    this.#exited = new Promise((resolve) => worker.once('exit', () => resolve()))
    worker.removeAllListeners('error')
    worker.on('message', (replies: readonly WriteReply[]) => this.#settle(replies))
    worker.on('error', (error: Error) => this.#die(error))
  }

  run<Name extends keyof Operations>(
    operation: Name,
    ...args: Parameters<Operations[Name]>
  ): Promise<ReturnType<Operations[Name]>> {
    return new Promise((resolve, reject) => {
      if (this.#dead !== undefined) return reject(toStorageError(this.#dead))
      const waiting = { request: { operation, args }, resolve: resolve as (value: unknown) => void, reject }
      if (this.#queue.length >= longestQueue) {
        const busy = new RegistryError('UNAVAILABLE', 'too much to write at once', { retryAfter: 1 })
        return this.#refuse(waiting, busy)
      }
      // With the releases before it, or it would find taken what nobody holds any more.
      this.#enqueue(...this.#takeOwed(), waiting)
    })
  }

  #enqueue(...waiting: readonly Waiting[]): void {
    this.#queue.push(...waiting)
    this.#flush()
  }

  #takeOwed(): Waiting[] {
    const nothing = () => undefined
    return this.#owed.splice(0).map((request) => ({ request, resolve: nothing, reject: nothing }))
  }

  #flush(): void {
    if (this.#inFlight.length > 0) return
    if (this.#queue.length === 0) {
      this.#idle?.()
      return
    }
    this.#inFlight = this.#queue.splice(0, largestBatch)
    this.#worker.postMessage(this.#inFlight.map((waiting) => waiting.request))
  }

  #settle(replies: readonly WriteReply[]): void {
    const settled = this.#inFlight
    this.#inFlight = []
    for (const [at, waiting] of settled.entries()) {
      const reply = replies[at]
      if (reply?.ok === true) waiting.resolve(reply.value)
      else this.#fail(waiting, reply)
    }
    this.#flush()
  }

  #fail(waiting: Waiting, reply: WriteReply | undefined): void {
    const error = Object.assign(new Error(reply?.ok === false ? reply.message : 'no reply'), {
      code: reply?.ok === false ? reply.code : '',
    })
    if (isFull(error) && freeingOperations.has(waiting.request.operation)) {
      void this.#tryAgain(waiting, error)
      return
    }
    this.#refuse(waiting, error)
    if (poisonous.test(errorCode(error))) this.#die(error)
  }

  /** A release is not refused, it is done later: what is never given back would be waited for until a restart. */
  #refuse({ request, resolve, reject }: Waiting, error: Error): void {
    const isOwed = releasingOperations.has(request.operation) && this.#owed.length < mostOwed
    if (!isOwed || this.#dead !== undefined) {
      reject(toStorageError(error))
      return
    }
    this.#owed.push(request)
    this.#owedTimer ??= setTimeout(() => {
      this.#owedTimer = undefined
      if (this.#dead === undefined && !this.#isClosing) this.#enqueue(...this.#takeOwed())
    }, owedPause).unref()
    resolve(undefined)
  }

  /** A full disk must not keep anybody from making room on it. */
  async #tryAgain(waiting: Waiting, error: Error): Promise<void> {
    const isFreed = await this.#freeSome().catch(() => false)
    if (isFreed && this.#dead === undefined && !this.#isClosing) this.#enqueue(waiting)
    else this.#refuse(waiting, error)
  }

  /** What a failed read means; one that met damage ends all writing. */
  failureOf(error: unknown): RegistryError {
    if (isIndexDamage(error) && error instanceof Error) this.#die(error)
    return toStorageError(error)
  }

  #die(cause: Error): void {
    if (this.#dead !== undefined) return
    const error = isIndexDamage(cause) ? new IndexDamagedError(this.path, cause.message) : cause
    this.#dead = error
    for (const waiting of [...this.#inFlight, ...this.#queue]) waiting.reject(toStorageError(error))
    this.#inFlight = []
    this.#queue = []
    this.#onFatal(error)
  }

  /** Waits for what is queued, then closes the thread's connection. */
  async close(): Promise<void> {
    if (this.#dead === undefined && (this.#inFlight.length > 0 || this.#queue.length > 0)) {
      await new Promise<void>((resolve) => {
        this.#idle = resolve
      })
    }
    this.#isClosing = true
    this.#worker.postMessage('close')
    await this.#exited
  }
}
