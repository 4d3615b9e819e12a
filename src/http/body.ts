import type { IncomingMessage, ServerResponse } from 'node:http'
import { RegistryError } from '../oci/errors.js'
import { hasBody } from './exchange.js'
import type { Intake, Lease } from './intake.js'

const expectsContinue = new WeakSet<IncomingMessage>()

/** Remembers that the client waits for `100 Continue` before it sends its body (protocol UP-28). */
export function noteExpectation(request: IncomingMessage): void {
  expectsContinue.add(request)
}

/**
 * Opens the request's body for reading: asks for it, where the client waits to be asked, and destroys the
 * request when nothing arrives for too long while somebody reads. The total time is not limited: a slow line is
 * no fault (protocol T-43).
 * @param idleTimeout milliseconds without a byte
 */
export function openBody(
  request: IncomingMessage,
  response: ServerResponse,
  idleTimeout: number,
): IncomingMessage {
  if (request.destroyed) return request // nobody would tell of its end, and the timer would hold it for ever
  if (expectsContinue.delete(request)) response.writeContinue()
  const timer = setTimeout(() => {
    // A reader that holds the body back (its disk is slow) is not the client's fault.
    if (request.isPaused()) timer.refresh()
    else request.destroy(new RegistryError('REQUEST_TIMEOUT'))
  }, idleTimeout)
  const onData = () => timer.refresh()
  const stop = () => {
    clearTimeout(timer)
    request.off('data', onData)
  }
  request.once('end', stop)
  request.once('close', stop)
  request.pause()
  request.on('data', onData)
  return request
}

/**
 * Whether at least one byte of body comes: a chunked body without any is none (protocol UP-02).
 * @param idleTimeout milliseconds to wait for it
 * @throws RegistryError REQUEST_TIMEOUT when neither a byte nor the end comes in that time
 */
export async function hasBytes(request: IncomingMessage, idleTimeout: number): Promise<boolean> {
  if (!hasBody(request)) return false
  if (request.headers['content-length'] !== undefined || expectsContinue.has(request)) return true
  if (request.readableLength === 0 && !request.readableEnded && !request.destroyed) {
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => reject(new RegistryError('REQUEST_TIMEOUT')), idleTimeout)
      const done = () => {
        clearTimeout(timer)
        resolve()
      }
      request.once('readable', done)
      request.once('end', done)
      request.once('close', done)
    })
  }
  if (request.readableLength > 0) return true
  request.resume() // nothing comes, but the end has to be read
  return false
}

/** How a body is read as a whole. */
export interface WholeBody {
  /** Lends the memory. */
  readonly intake: Intake
  /** Bytes. */
  readonly limit: number
  /** Thrown when the body is larger; no more of it is read then. */
  readonly tooLarge: () => RegistryError
}

/**
 * Reads a whole body into memory and works with it. It has its room before its first byte is read, and until the work is
 * over.
 * @throws RegistryError SIZE_INVALID when the connection breaks before its end, REQUEST_TIMEOUT when it does not move,
 * TOOMANYREQUESTS when there is no room for long
 */
export async function withBody<T>(
  request: IncomingMessage,
  response: ServerResponse,
  { intake, limit, tooLarge }: WholeBody,
  work: (bytes: Buffer) => T | Promise<T>,
): Promise<T> {
  const length = request.headers['content-length']
  const size = length === undefined ? limit : Number(length)
  if (size > limit) throw tooLarge()
  const lease = await intake.lend(size)
  const gathered = new Gathered(intake, limit, length === undefined ? 0 : size)
  try {
    if (expectsContinue.delete(request)) response.writeContinue()
    await readWhole(request, gathered, tooLarge, lease)
    lease.complete()
    return await work(gathered.bytes)
  } finally {
    if (!lease.isComplete) gathered.discard()
    lease.release()
  }
}

function readWhole(
  body: IncomingMessage,
  gathered: Gathered,
  tooLarge: () => RegistryError,
  lease: Lease,
): Promise<void> {
  if (body.destroyed) return Promise.reject(cutOff(body.errored)) // its end was told before anybody listened
  return new Promise((resolve, reject) => {
    const stop = (error: RegistryError) => {
      body.off('data', onData)
      body.pause()
      reject(error)
    }
    const onData = (chunk: Buffer) => {
      lease.moved(chunk.length)
      if (!gathered.add(chunk)) stop(tooLarge())
    }
    lease.onGiveUp = stop
    body.on('data', onData)
    body.once('end', () => resolve())
    body.once('error', (error) => reject(cutOff(error)))
    body.once('close', () => reject(cutOff(undefined)))
    body.resume()
  })
}

/** Puts chunks together. They are copied: a body in pieces of a byte each would hold many times its size. */
class Gathered {
  readonly #buffers: Pick<Intake, 'takeBuffer' | 'giveBuffer'>
  readonly #limit: number
  readonly #expected: number
  #bytes: Buffer = Buffer.alloc(0)
  #size = 0
  /** Whether the buffer is one that was taken. */
  #isTaken = false

  /** @param expected bytes, where they were announced; 0 where not */
  constructor(buffers: Pick<Intake, 'takeBuffer' | 'giveBuffer'>, limit: number, expected: number) {
    this.#buffers = buffers
    this.#limit = limit
    this.#expected = expected
  }

  get bytes(): Buffer {
    return this.#bytes.subarray(0, this.#size)
  }

  /** False when that is too much. */
  add(chunk: Buffer): boolean {
    const size = this.#size + chunk.length
    if (size > this.#limit) return false
    if (this.#size === 0) {
      this.#bytes = chunk // most bodies come in one piece
    } else {
      if (size > this.#bytes.length)
        this.#grow(this.#expected >= size ? this.#expected : Math.min(this.#limit, 2 * size))
      chunk.copy(this.#bytes, this.#size)
    }
    this.#size = size
    return true
  }

  #grow(capacity: number): void {
    const larger = this.#buffers.takeBuffer(capacity)
    this.#bytes.copy(larger, 0, 0, this.#size)
    this.discard()
    this.#bytes = larger
    this.#isTaken = true
  }

  /** Gives the memory back at once: nobody has seen these bytes. */
  discard(): void {
    if (this.#isTaken) this.#buffers.giveBuffer(this.#bytes)
    this.#bytes = Buffer.alloc(0)
    this.#isTaken = false
  }
}

function cutOff(cause: unknown): RegistryError {
  if (cause instanceof RegistryError) return cause
  return new RegistryError('SIZE_INVALID', 'the body ended before it was complete', { cause })
}
