import { RegistryError } from '../oci/errors.js'

/** Milliseconds after which somebody who was overtaken again and again is told so: docker waits 15 s in all. */
const longestWait = 8000

interface Waiting {
  readonly weight: number
  readonly enter: () => void
  readonly sendAway: (error: RegistryError) => void
}

/**
 * Lets a few through at a time and a few more wait. Who weighs least goes first, and when the room is full the
 * heaviest is sent away: so a crowd of those who guess keeps nobody waiting who does not.
 */
export class Turnstile {
  readonly #places: number
  readonly #waitingRoom: number
  /** Lightest first; those of one weight in the order they came. */
  readonly #waiting: Waiting[] = []
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
  async run<T>(weight: number, work: () => Promise<T>): Promise<T> {
    if (this.#inside >= this.#places) await this.#wait(weight)
    else this.#inside++
    try {
      return await work()
    } finally {
      // The place is handed on, so that nobody slips in between.
      const next = this.#waiting.shift()
      if (next === undefined) this.#inside--
      else next.enter()
    }
  }

  #wait(weight: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const leave = () => {
        const index = this.#waiting.indexOf(waiting)
        if (index >= 0) this.#waiting.splice(index, 1)
        waiting.sendAway(tooMany())
      }
      const timer = setTimeout(leave, longestWait)
      const waiting: Waiting = {
        weight,
        enter: () => {
          clearTimeout(timer)
          resolve()
        },
        sendAway: (error) => {
          clearTimeout(timer)
          reject(error)
        },
      }
      const at = this.#waiting.findIndex((other) => other.weight > weight)
      this.#waiting.splice(at < 0 ? this.#waiting.length : at, 0, waiting)
      if (this.#waiting.length > this.#waitingRoom) this.#waiting.pop()?.sendAway(tooMany())
    })
  }
}

function tooMany(): RegistryError {
  return new RegistryError('TOOMANYREQUESTS', 'too many logins at once: try again in a moment', {
    retryAfter: 2,
  })
}
