import { setMaxListeners } from 'node:events'

/** Failures in a row after which nothing is asked for a while. */
const tolerance = 3
const shortestPause = 1000
const longestPause = 60_000

/** One request that a breaker let through. Exactly one of its methods is called, once. */
export interface Attempt {
  succeeded(): void
  failed(): void
  /** Ended without telling anything about the upstream: its asker left. */
  left(): void
}

/** Milliseconds since 1970 on a clock that never goes back. */
export function steadyNow(): number {
  return performance.timeOrigin + performance.now()
}

/**
 * Keeps askers from waiting for an upstream that is down (reliability R43): after three failures in a row it is
 * left alone for a second, then for two, and so on up to a minute; one probe at a time ends that.
 */
export class Breaker {
  #failures = 0
  #pause = 0
  #openUntil: number | undefined
  #isProbing = false
  #closed = endingSignal()

  /** Ends when the breaker opens: for those who were let through before, and still wait for their turn. */
  get whileClosed(): AbortSignal {
    return this.#closed.signal
  }

  /** When it may be asked again, in milliseconds since 1970; undefined while it may be asked at any time. */
  get retryAt(): number | undefined {
    return this.#openUntil
  }

  /** Lets a request through, or not: undefined. */
  enter(): Attempt | undefined {
    if (this.#openUntil === undefined) return this.#attempt()
    if (this.#isProbing || steadyNow() < this.#openUntil) return undefined
    this.#isProbing = true
    return this.#probe()
  }

  /** A request that had succeeded at first has failed after all: a body was cut off. */
  note(): void {
    if (this.#openUntil === undefined && ++this.#failures >= tolerance) this.#open()
  }

  #attempt(): Attempt {
    return {
      succeeded: () => {
        this.#failures = 0
      },
      failed: () => this.note(),
      left: () => undefined,
    }
  }

  #probe(): Attempt {
    return {
      succeeded: () => {
        this.#failures = 0
        this.#pause = 0
        this.#openUntil = undefined
        this.#isProbing = false
      },
      failed: () => {
        this.#isProbing = false
        this.#open()
      },
      left: () => {
        this.#isProbing = false
      },
    }
  }

  #open(): void {
    this.#pause = Math.min(longestPause, Math.max(shortestPause, this.#pause * 2))
    this.#openUntil = steadyNow() + this.#pause
    const before = this.#closed
    this.#closed = endingSignal()
    before.abort()
  }
}

function endingSignal(): AbortController {
  const controller = new AbortController()
  setMaxListeners(0, controller.signal)
  return controller
}
