/** Milliseconds after which long work lets others go on. */
const longestTurn = 5

/** Long work on the event loop, cut into turns: between two pieces of it everybody else gets theirs. */
export class Turns {
  #begin = performance.now()

  /** Ends this turn if it has been long enough. To be called after each piece. */
  async rest(): Promise<void> {
    if (performance.now() - this.#begin < longestTurn) return
    await new Promise((resolve) => setImmediate(resolve))
    this.#begin = performance.now()
  }
}
