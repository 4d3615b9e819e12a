/** Waits for a place, bounded: how many may be at work at once, and how many more may wait. */
export class Slots {
  #free: number
  readonly #mostWaiting: number
  readonly #waiting = new Set<() => void>()

  constructor(places: number, mostWaiting: number) {
    this.#free = places
    this.#mostWaiting = mostWaiting
  }

  /**
   * Takes a place, in turn.
   * @returns what gives it back; more than once does nothing; undefined when too many wait, or a signal ended it
   */
  async take(signals: readonly (AbortSignal | undefined)[]): Promise<(() => void) | undefined> {
    const ends = signals.filter((signal) => signal !== undefined)
    if (ends.some(({ aborted }) => aborted)) return undefined
    if (this.#free > 0) this.#free--
    else if (this.#waiting.size >= this.#mostWaiting || !(await this.#wait(ends))) return undefined
    let isHeld = true
    return () => {
      if (isHeld) this.#giveBack()
      isHeld = false
    }
  }

  #wait(ends: readonly AbortSignal[]): Promise<boolean> {
    return new Promise((resolve) => {
      const settle = (hasPlace: boolean) => {
        this.#waiting.delete(turn)
        for (const end of ends) end.removeEventListener('abort', leave)
        resolve(hasPlace)
      }
      const turn = () => settle(true)
      const leave = () => settle(false)
      this.#waiting.add(turn)
      for (const end of ends) end.addEventListener('abort', leave)
    })
  }

  #giveBack(): void {
    const [next] = this.#waiting
    if (next === undefined) {
      this.#free++
      return
    }
    this.#waiting.delete(next)
    next()
  }
}
