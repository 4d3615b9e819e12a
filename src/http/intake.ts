import { RegistryError } from '../oci/errors.js'
import type { Bound } from './metrics.js'

/** Bodies up to this many bytes are small: a quarter of the memory is for them alone. */
const smallBody = 256 * 1024
const shareOfLarge = 3 / 4

/**
 * Bytes that a body must bring to count as moving (of a small one a sixteenth), and the milliseconds in which it must do
 * so while others wait for its room. Where nobody waits it has `timeouts.idle` for them.
 */
const step = 4096
const patience = 2000

/** Bytes of the smallest buffer, and of those that are kept for the next bodies. */
const smallestBuffer = 64 * 1024
const mostSpare = 16 * 1024 * 1024

/** Milliseconds between two looks at bodies that stand still, while any is on its way. */
const lookInterval = 500

/** Memory that is lent to a body. */
export interface Lease {
  /** Called with what to tell the client, when it must give the room back before its body is complete. */
  onGiveUp: (error: RegistryError) => void
  /** Tells that bytes have come. */
  moved(bytes: number): void
  readonly isComplete: boolean
  /** The body is complete: it keeps its room, but is not hurried any more. */
  complete(): void
  /** Gives the room back. To be called whatever happens; again does no harm. */
  release(): void
}

/** A body on its way, or complete and being worked on. */
class Holder implements Lease {
  readonly size: number
  readonly #onRelease: (holder: Holder) => void
  onGiveUp: (error: RegistryError) => void = () => undefined
  isComplete = false
  movedAt = performance.now()
  readonly #step: number
  #brought = 0

  constructor(size: number, onRelease: (holder: Holder) => void) {
    this.size = size
    this.#step = Math.min(step, size / 16)
    this.#onRelease = onRelease
  }

  moved(bytes: number): void {
    this.#brought += bytes
    if (this.#brought < this.#step) return
    this.#brought = 0
    this.movedAt = performance.now()
  }

  complete(): void {
    this.isComplete = true
  }

  release(): void {
    this.#onRelease(this)
  }
}

/** A body that is not read yet, since there is no room. */
interface Waiting {
  readonly size: number
  readonly since: number
  readonly resolve: (lease: Lease) => void
  readonly reject: (error: RegistryError) => void
}

/**
 * The memory for bodies that are read as a whole, in one process. Each has its room before its first byte is read, so all
 * of them together never exceed the bound; who finds none waits, small ones ahead. Who does not move gives his room up:
 * at once when others wait for it, else after the idle time.
 */
export class Intake {
  readonly #limit: number
  readonly #idle: number
  readonly #onBound: (bound: Bound) => void
  readonly #holders = new Set<Holder>()
  /** The smallest first. */
  readonly #waiting: Waiting[] = []
  /** Buffers of bodies that were given up, for the next ones: the garbage collection would come late for them. */
  readonly #spare = new Map<number, Buffer[]>()
  #spareBytes = 0
  #bytes = 0
  #largeBytes = 0
  #timer: NodeJS.Timeout | undefined

  /**
   * @param limit bytes: at least twice the largest body
   * @param idle milliseconds in which a body must move
   * @param onBound hears when the bound is met
   */
  constructor(limit: number, idle: number, onBound: (bound: Bound) => void) {
    this.#limit = limit
    this.#idle = idle
    this.#onBound = onBound
  }

  /** Bytes that are lent now. */
  get bytes(): number {
    return this.#bytes
  }

  /**
   * Lends room for a body, now or when there is some: only then its first byte is read.
   * @param size bytes that it may have at the most
   * @throws RegistryError TOOMANYREQUESTS when there is none for long
   */
  async lend(size: number): Promise<Lease> {
    this.#timer ??= setInterval(() => this.#look(), lookInterval)
    const now = performance.now()
    if (this.#fits(size) || this.#makeRoom(size, now)) return this.#hold(size)
    this.#onBound('body_memory')
    return new Promise((resolve, reject) => {
      const at = this.#waiting.findIndex((other) => other.size > size)
      this.#waiting.splice(at < 0 ? this.#waiting.length : at, 0, { size, since: now, resolve, reject })
    })
  }

  /** A buffer of at least this size, used before if there is one. Bytes of the lease that the caller has. */
  takeBuffer(size: number): Buffer {
    const capacity = 2 ** Math.ceil(Math.log2(Math.max(size, smallestBuffer)))
    const spare = this.#spare.get(capacity)?.pop()
    if (spare === undefined) return Buffer.allocUnsafeSlow(capacity)
    this.#spareBytes -= capacity
    return spare
  }

  /** Takes back a buffer whose bytes nobody has seen or will see. */
  giveBuffer(buffer: Buffer): void {
    if (this.#spareBytes + buffer.length > mostSpare) return
    this.#spareBytes += buffer.length
    const list = this.#spare.get(buffer.length)
    if (list === undefined) this.#spare.set(buffer.length, [buffer])
    else list.push(buffer)
  }

  #fits(size: number): boolean {
    const isLarge = size > smallBody
    return (
      this.#bytes + size <= this.#limit && (!isLarge || this.#largeBytes + size <= this.#limit * shareOfLarge)
    )
  }

  #hold(size: number): Holder {
    const holder = new Holder(size, this.#release)
    this.#holders.add(holder)
    this.#bytes += size
    if (size > smallBody) this.#largeBytes += size
    return holder
  }

  readonly #release = (holder: Holder): void => {
    this.#letGo(holder)
    if (this.#waiting.length > 0) this.#letIn()
    if (this.#holders.size > 0 || this.#waiting.length > 0) return
    clearInterval(this.#timer)
    this.#timer = undefined
  }

  #letGo(holder: Holder): void {
    if (!this.#holders.delete(holder)) return
    this.#bytes -= holder.size
    if (holder.size > smallBody) this.#largeBytes -= holder.size
  }

  /** Ends those that stand still, the stillest first, until there is room. */
  #makeRoom(size: number, now: number): boolean {
    const still = [...this.#holders]
      .filter(({ isComplete, movedAt }) => !isComplete && now - movedAt > patience)
      .sort((one, other) => one.movedAt - other.movedAt)
    for (const holder of still) {
      this.#end(holder)
      if (this.#fits(size)) return true
    }
    return false
  }

  #end(holder: Holder): void {
    this.#onBound('body_memory')
    this.#letGo(holder)
    holder.onGiveUp(
      new RegistryError(
        'REQUEST_TIMEOUT',
        'the body came too slowly, and others waited for its place: send it again',
      ),
    )
  }

  #letIn(): void {
    for (;;) {
      const [first] = this.#waiting
      if (first === undefined || !this.#fits(first.size)) return
      this.#waiting.shift()
      first.resolve(this.#hold(first.size))
    }
  }

  #look(): void {
    const now = performance.now()
    for (const holder of this.#holders) {
      if (holder.isComplete || now - holder.movedAt <= this.#idle) continue
      this.#onBound('standstill')
      this.#letGo(holder)
      holder.onGiveUp(new RegistryError('REQUEST_TIMEOUT'))
    }
    const [first] = this.#waiting
    if (first !== undefined) this.#makeRoom(first.size, now)
    this.#letIn()
    for (const waiting of this.#waiting.filter(({ since }) => now - since > this.#idle)) {
      this.#waiting.splice(this.#waiting.indexOf(waiting), 1)
      waiting.reject(
        new RegistryError('TOOMANYREQUESTS', 'too many large requests come in at once: try again later', {
          retryAfter: 5,
        }),
      )
    }
  }
}
