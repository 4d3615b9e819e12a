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
   * @returns what gives it back; more than once does nothing; undefined when too many wait, or `signal` ended it
   */
  async take(signal: AbortSignal | undefined): Promise<(() => void) | undefined> {
    if (signal?.aborted === true) return undefined
    if (this.#free > 0) this.#free--
    else if (this.#waiting.size >= this.#mostWaiting || !(await this.#wait(signal))) return undefined
    let isHeld = true
    return () => {
      if (isHeld) this.#giveBack()
      isHeld = false
    }
  }

  #wait(signal: AbortSignal | undefined): Promise<boolean> {
    return new Promise((resolve) => {
      const turn = () => {
        signal?.removeEventListener('abort', leave)
        resolve(true)
      }
      const leave = () => {
        this.#waiting.delete(turn)
        resolve(false)
      }
      this.#waiting.add(turn)
      signal?.addEventListener('abort', leave, { once: true })
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
