import { Readable } from 'node:stream'
import { steadyNow } from './breaker.js'
import { ExchangeError } from './failures.js'
import { type Headers, single } from './rate-limit.js'
import type { Slots } from './slots.js'
import { discard, type HopResponse } from './transport.js'

/** Bytes a second that a blob must come with, on average over twice the idle time. */
const leastRate = 1024
/** Bytes of a blob that wait here for their reader, beside those in the socket. */
const readAhead = 256 * 1024

/** Bytes up to which an answer may be read beside any number of others. */
const mostBeside = 128 * 1024

/** Bytes for which there is room at first when nobody says how many come. */
const firstPiece = 16 * 1024

/**
 * Reads a whole answer.
 * @param large places for those of more than 128 KiB: many of them at once would be much memory (reliability S46)
 * @throws ExchangeError `invalid` when it has more than `most` bytes; whatever the connection fails with
 */
export async function readSmall(response: HopResponse, most: number, large?: Slots): Promise<Buffer> {
  const { headers, body } = response
  const tooLong = () => new ExchangeError('invalid', `sent an answer of more than ${most} bytes`)
  if ((contentLength(headers) ?? 0) > most) {
    discard(response)
    throw tooLong()
  }
  const gone = new AbortController()
  body.once('close', () => gone.abort())
  // Chunks are copied at once: kept until the end they would outlive the young generation, and pile up.
  let bytes = Buffer.allocUnsafeSlow(Math.min(mostBeside, most, contentLength(headers) ?? firstPiece))
  let length = 0
  let giveBack: (() => void) | undefined
  try {
    for await (const chunk of body) {
      const needed = length + chunk.length
      if (needed > most) throw tooLong()
      // Until there is a place, nothing more is read: the upstream waits.
      if (needed > mostBeside) giveBack ??= await large?.take([gone.signal])
      if (needed > bytes.length) {
        const room = contentLength(headers) ?? Math.min(most, needed > mostBeside ? most : mostBeside)
        const before = bytes
        bytes = Buffer.allocUnsafeSlow(Math.max(needed, room))
        before.copy(bytes, 0, 0, length)
      }
      chunk.copy(bytes, length)
      length = needed
    }
    return bytes.subarray(0, length)
  } finally {
    giveBack?.()
  }
}

/** The Content-Length of an answer; undefined when there is none that can be a size. */
export function contentLength(headers: Headers): number | undefined {
  const text = single(headers, 'content-length')
  if (text === undefined || !/^\d{1,16}$/.test(text)) return undefined
  const length = Number(text)
  return Number.isSafeInteger(length) ? length : undefined
}

/** The Content-Range of an answer: where it begins and ends (inclusive), and how large the whole is. */
export interface ContentRange {
  readonly first: number
  readonly last: number
  readonly size: number | undefined
}

/** Reads a Content-Range in bytes; undefined when it is none. */
export function contentRange(headers: Headers): ContentRange | undefined {
  const match = /^bytes (\d{1,16})-(\d{1,16})\/(\d{1,16}|\*)$/.exec(single(headers, 'content-range') ?? '')
  if (match === null) return undefined
  const [first, last] = [Number(match[1]), Number(match[2])]
  const size = match[3] === '*' ? undefined : Number(match[3])
  const isSound = [first, last, size ?? 0].every(Number.isSafeInteger) && first <= last
  return isSound && (size === undefined || last < size) ? { first, last, size } : undefined
}

/** How the body of a blob is watched over. */
export interface BodyWatch {
  /** Bytes that it must have; undefined when nobody knows. */
  readonly expected: number | undefined
  /** Milliseconds without a byte that are too many. */
  readonly idle: number
  /** The error that the reader gets for a failure. */
  readonly explain: (error: unknown) => Error
}

/**
 * The body of a blob for its reader: fails when it stands still, drips, or does not have the bytes that it should.
 * Time in which the reader does not read is not counted. Closing it ends the connection.
 */
export function watchBody(source: Readable, watch: BodyWatch): Readable {
  const body = Readable.from(watched(source, watch), { objectMode: false, highWaterMark: readAhead })
  // A generator that waits for its source does not hear that its reader has left.
  body.once('close', () => source.destroy())
  return body
}

async function* watched(source: Readable, { expected, idle, explain }: BodyWatch): AsyncGenerator<Buffer> {
  const progress = new Progress(idle)
  const check = setInterval(() => {
    const failure = progress.failure()
    if (failure !== undefined) source.destroy(new ExchangeError('unavailable', failure))
  }, idle / 4)
  let received = 0
  try {
    const chunks = source[Symbol.asyncIterator]()
    for (;;) {
      progress.waits()
      const { done, value } = await chunks.next()
      if (done === true) break
      progress.got(value.length)
      received += value.length
      if (expected !== undefined && received > expected) {
        throw new ExchangeError('invalid', 'sent more bytes than it said')
      }
      yield value
    }
    if (expected !== undefined && received < expected) {
      throw new ExchangeError('unavailable', 'sent fewer bytes than it said')
    }
  } catch (error) {
    throw explain(error)
  } finally {
    clearInterval(check)
    source.destroy()
  }
}

/** Adds up the time that is spent waiting for bytes, and what came in it. */
class Progress {
  readonly #idle: number
  #since: number | undefined
  #waited = 0
  #bytes = 0

  constructor(idle: number) {
    this.#idle = idle
  }

  waits(): void {
    this.#since = steadyNow()
  }

  got(bytes: number): void {
    this.#waited += this.#pending()
    this.#since = undefined
    this.#bytes += bytes
    if (this.#bytes >= (leastRate * this.#window) / 1000) this.#restart()
  }

  /** What is wrong, if anything is. */
  failure(): string | undefined {
    if (this.#pending() >= this.#idle) return `sent nothing for ${this.#idle} ms`
    if (this.#waited + this.#pending() >= this.#window) return `sent fewer than ${leastRate} bytes a second`
    return undefined
  }

  get #window(): number {
    return this.#idle * 2
  }

  #pending(): number {
    return this.#since === undefined ? 0 : steadyNow() - this.#since
  }

  #restart(): void {
    this.#waited = 0
    this.#bytes = 0
  }
}
