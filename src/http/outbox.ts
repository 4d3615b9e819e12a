import type { ServerResponse } from 'node:http'
import { RegistryError } from '../oci/errors.js'
import type { Bound } from './metrics.js'

/** Answers up to this many bytes are small: the system takes them off our hands. */
export const smallAnswer = 16 * 1024

/** Bytes that are handed to the system at once, so that it shows whether the reader takes any. */
const sliceSize = 256 * 1024

/** Milliseconds without a slice taken after which an answer gives way to others. */
const patience = 1000

/** Milliseconds that an answer waits for room until it is refused, and between two looks for it. */
const longestWait = 10_000
const lookInterval = 250

/** A large answer on its way out. */
interface Held {
  readonly size: number
  movedAt: number
}

/**
 * The answers of one process that are in memory as a whole until their readers have taken them: manifests, lists,
 * metrics. All of them together are bounded. Where there is no room for another one, those give way whose readers take
 * nothing; while all of them take, the new one waits for its turn.
 */
export class Outbox {
  readonly #limit: number
  readonly #onBound: (bound: Bound) => void
  /** Those that moved longest ago come first. */
  readonly #held = new Map<ServerResponse, Held>()
  readonly #queue: {
    readonly resolve: () => void
    readonly reject: (error: Error) => void
    readonly since: number
  }[] = []
  #bytes = 0
  #timer: NodeJS.Timeout | undefined

  /**
   * @param limit bytes
   * @param onBound hears when the bound is met
   */
  constructor(limit: number, onBound: (bound: Bound) => void) {
    this.#limit = limit
    this.#onBound = onBound
  }

  /** Bytes of the answers on their way. */
  get bytes(): number {
    return this.#bytes
  }

  /** Whether a large answer must not be made now: {@link room} tells when it may. */
  get isFull(): boolean {
    return this.#bytes >= this.#limit
  }

  /**
   * Resolves when there is room for a large answer.
   * @throws RegistryError UNAVAILABLE when there is none for long
   */
  async room(): Promise<void> {
    if (this.#queue.length === 0) this.#giveWay()
    if (this.#queue.length === 0 && !this.isFull) return
    this.#onBound('answer_memory')
    await new Promise<void>((resolve, reject) => {
      this.#queue.push({ resolve, reject, since: performance.now() })
      this.#timer ??= setInterval(() => this.#look(), lookInterval)
    })
  }

  /** Sends the body of an answer whose head has been sent, and ends it. */
  send(response: ServerResponse, body: Uint8Array): void {
    if (body.length <= smallAnswer) {
      response.end(body)
      return
    }
    const held: Held = { size: body.length, movedAt: performance.now() }
    this.#held.set(response, held)
    this.#bytes += body.length
    response.once('close', () => {
      this.#letGo(response)
      if (this.#queue.length > 0) this.#look()
    })
    this.#sendSlices(response, held, body, 0)
    // Answers that were begun at once, before any of them was held, may go beyond the bound, but not far.
    while (this.#bytes > 2 * this.#limit) if (!this.#cutFirst(0)) break
  }

  #sendSlices(response: ServerResponse, held: Held, body: Uint8Array, start: number): void {
    const end = Math.min(start + sliceSize, body.length)
    if (end === body.length) {
      response.end(body.subarray(start))
      return
    }
    response.write(body.subarray(start, end), (error) => {
      if (error != null || response.destroyed) return
      held.movedAt = performance.now()
      if (this.#held.delete(response)) this.#held.set(response, held)
      this.#sendSlices(response, held, body, end)
    })
  }

  /** Ends what does not move, until there is room. */
  #giveWay(): void {
    while (this.isFull) if (!this.#cutFirst(patience)) return
  }

  #cutFirst(stillFor: number): boolean {
    const [first] = this.#held
    if (first === undefined || performance.now() - first[1].movedAt < stillFor) return false
    const [response] = first
    this.#onBound('answer_memory')
    this.#letGo(response)
    response.socket?.destroy()
    return true
  }

  #letGo(response: ServerResponse): void {
    const held = this.#held.get(response)
    if (held === undefined) return
    this.#held.delete(response)
    this.#bytes -= held.size
  }

  /** Lets the next ones in, one for each look: what they make counts only when it is sent. */
  #look(): void {
    if (this.#queue.length > 0) this.#giveWay()
    const now = performance.now()
    while (this.#queue[0] !== undefined && now - this.#queue[0].since > longestWait) {
      const error = new RegistryError(
        'UNAVAILABLE',
        'too many answers wait for slow readers: try again later',
        {
          retryAfter: 1,
        },
      )
      this.#queue.shift()?.reject(error)
    }
    if (!this.isFull) this.#queue.shift()?.resolve()
    if (this.#queue.length === 0) {
      clearInterval(this.#timer)
      this.#timer = undefined
    }
  }
}
