import { setTimeout as delay } from 'node:timers/promises'
import { machineCpu, ownCpu } from './measure.js'
import type { Sample } from './rows.js'

/** Cores that other programs may use before a sample counts as disturbed. */
export const DISTURBANCE = 0.2

/** A stock of seconds to spend on a machine that other programs use too. */
export class Patience {
  #left: number

  constructor(seconds: number) {
    this.#left = seconds
  }

  /** Seconds not yet spent. */
  get left(): number {
    return this.#left
  }

  /** Takes a sample at a quiet moment, and again when it was disturbed, as long as there are seconds left. */
  async sample(take: () => Promise<Sample>): Promise<Sample> {
    for (;;) {
      await this.#waitForQuiet()
      const begin = performance.now()
      const sample = await take()
      if (this.#left <= 0 || (sample.cores?.others ?? 0) <= DISTURBANCE) return sample
      this.#spend(begin)
    }
  }

  async #waitForQuiet(): Promise<void> {
    while (this.#left > 0) {
      const begin = performance.now()
      const before = machineCpu() - ownCpu()
      await delay(500)
      const busy = (machineCpu() - ownCpu() - before) / ((performance.now() - begin) / 1000)
      if (busy <= DISTURBANCE) return
      this.#spend(begin)
    }
  }

  #spend(begin: number): void {
    this.#left -= (performance.now() - begin) / 1000
  }
}
