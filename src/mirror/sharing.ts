import { setTimeout as delay } from 'node:timers/promises'
import type { MirrorStore } from '../../storage/mirror-store.js'

/** Milliseconds between two looks at whether another worker has done the work. */
const shortestPause = 5
const longestPause = 50

/** Work that several askers, on whichever workers, share: one does it, the others see what came of it. */
export class Sharing {
  readonly #store: MirrorStore
  readonly #newHolder: () => string
  readonly #running = new Map<string, Promise<unknown>>()

  /** @param newHolder a new name for a lease; it begins with the process's own, and the lease dies with that */
  constructor(store: MirrorStore, newHolder: () => string) {
    this.#store = store
    this.#newHolder = newHolder
  }

  /**
   * @param find what came of the work, when it is done already
   * @param work is done by one asker at a time; where it fails, the next one tries
   */
  share<T>(key: string, find: () => Promise<T | undefined>, work: () => Promise<T>): Promise<T> {
    const running = this.#running.get(key)
    if (running !== undefined) return running as Promise<T>
    const started = this.#start(key, find, work).finally(() => this.#running.delete(key))
    this.#running.set(key, started)
    return started
  }

  async #start<T>(key: string, find: () => Promise<T | undefined>, work: () => Promise<T>): Promise<T> {
    const holder = this.#newHolder()
    for (let pause = shortestPause; ; pause = Math.min(2 * pause, longestPause)) {
      const found = await find()
      if (found !== undefined) return found
      if (await this.#store.takeLease(key, holder)) break
      await delay(pause)
    }
    try {
      return (await find()) ?? (await work())
    } finally {
      await this.#store.releaseLease(key, holder)
    }
  }
}
