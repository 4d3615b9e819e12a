/** Milliseconds by which a clock may be corrected at once without counting as having jumped. */
const smallCorrection = 10_000

/**
 * Notices that the system clock was set. What was noted before that and after cannot be compared: whoever goes by
 * ages waits until the clock has run evenly for as long as the age that counts (reliability R60).
 */
export class ClockWatch {
  #offset = Date.now() - performance.now()
  #jumpedAt = Number.NEGATIVE_INFINITY

  /** Milliseconds since the clock was last seen to have jumped; to be asked from time to time. */
  evenFor(): number {
    const now = performance.now()
    const offset = Date.now() - now
    if (Math.abs(offset - this.#offset) > smallCorrection) this.#jumpedAt = now
    this.#offset = offset
    return now - this.#jumpedAt
  }
}
