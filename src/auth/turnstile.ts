import { RegistryError } from '../oci/errors.js'

/** Lets a few through at a time and a few more wait; whoever comes on top of that is sent away. */
export class Turnstile {
  readonly #places: number
  readonly #waitingRoom: number
  readonly #waiting: (() => void)[] = []
  #inside = 0

  /**
   * @param places how many work at once
   * @param waitingRoom how many may wait
   */
  constructor(places: number, waitingRoom: number) {
    this.#places = places
    this.#waitingRoom = waitingRoom
  }

  /** Runs the work when its turn comes. @throws RegistryError TOOMANYREQUESTS when too many wait */
  async run<T>(work: () => Promise<T>): Promise<T> {
    if (this.#inside >= this.#places) {
      if (this.#waiting.length >= this.#waitingRoom) {
        throw new RegistryError('TOOMANYREQUESTS', 'too many logins at once: try again in a moment', {
          retryAfter: 2,
        })
      }
      await new Promise<void>((resolve) => this.#waiting.push(resolve))
    }
    this.#inside++
    try {
      return await work()
    } finally {
      this.#inside--
      this.#waiting.shift()?.()
    }
  }
}
