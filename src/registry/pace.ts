import { setTimeout as delay } from 'node:timers/promises'

/** A rest, as a multiple of the work before it, and in milliseconds at the most. */
const share = 1.5
const longest = 50

/** Lets others go first in long work: after each piece it rests for longer than the piece took. */
export class Pace {
  #begin = performance.now()

  /** Rests after what was done since the last rest. */
  async rest(): Promise<void> {
    await delay(Math.min(longest, share * (performance.now() - this.#begin)))
    this.#begin = performance.now()
  }
}
