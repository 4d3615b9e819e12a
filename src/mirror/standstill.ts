import { steadyNow } from './breaker.js'

/** Milliseconds without any progress before the reason is looked for, and between two such looks. */
const interval = 1000

/**
 * Whoever waits for another worker looks now and then whether the index can be written: while it cannot, the other
 * has no way of saying that it has ended, and waiting would be for nothing.
 */
export class Standstill {
  readonly #check: () => Promise<void>
  #since = steadyNow()

  /** @param check throws while the index cannot be written */
  constructor(check: () => Promise<void>) {
    this.#check = check
  }

  /** Something has moved. */
  moved(): void {
    this.#since = steadyNow()
  }

  /** @throws whatever the check throws, after a second without a move */
  async look(): Promise<void> {
    if (steadyNow() - this.#since < interval) return
    this.#since = steadyNow()
    await this.#check()
  }
}
