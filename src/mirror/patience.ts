import { setTimeout as delay } from 'node:timers/promises'
import { RegistryError } from '../oci/errors.js'

/** Milliseconds for which an upstream may fail whatever it is asked, before it is given up. */
const longestOutage = 10_000

/** Milliseconds that an upstream may demand to be left alone; one that wants more is given up. */
const longestPause = 65_000

/** Times that one thing is tried. */
const mostTries = 4

/** Tries again what an upstream refuses for the moment; what it refuses for good, or for long, fails. */
export class Patience {
  readonly #signal: AbortSignal
  #failingSince: number | undefined
  #lastWord: RegistryError | undefined

  /** @param signal ends all waiting */
  constructor(signal: AbortSignal) {
    this.#signal = signal
  }

  /** Why nothing more is asked; undefined as long as there is hope. */
  get lastWord(): RegistryError | undefined {
    return this.#lastWord
  }

  /** @throws what the work threw last, or what the upstream was given up for */
  async attempt<T>(work: () => Promise<T>): Promise<T> {
    for (let tries = 1; ; tries++) {
      if (this.#lastWord !== undefined) throw this.#lastWord
      try {
        const result = await work()
        this.#failingSince = undefined
        return result
      } catch (error) {
        if (this.#signal.aborted) throw error
        const pause = this.#pauseAfter(error, tries)
        if (pause === undefined) throw error
        await delay(pause, undefined, { signal: this.#signal }).catch(() => undefined)
        if (this.#signal.aborted) throw error
      }
    }
  }

  /** Milliseconds until the next try; undefined when there is to be none. */
  #pauseAfter(error: unknown, tries: number): number | undefined {
    if (!(error instanceof RegistryError)) return undefined
    const { kind, retryAfter = 0 } = error
    if (kind !== 'UPSTREAM_UNAVAILABLE' && kind !== 'TOOMANYREQUESTS') return undefined
    const pause = Math.max(retryAfter * 1000, 250 * 2 ** tries)
    const now = performance.now()
    // A limit is an answer: the upstream is there.
    if (kind === 'UPSTREAM_UNAVAILABLE') this.#failingSince ??= now
    const isLost = this.#failingSince !== undefined && now + pause - this.#failingSince > longestOutage
    if (isLost || pause > longestPause) this.#lastWord = error
    return this.#lastWord !== undefined || tries === mostTries ? undefined : pause
  }
}
