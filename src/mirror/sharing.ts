import { setTimeout as delay } from 'node:timers/promises'
import type { MirrorStore } from '../../storage/mirror-store.js'
import { Standstill } from './standstill.js'

/** Milliseconds between two looks at whether another worker has done the work. */
const shortestPause = 5
const longestPause = 50

/** Work that several askers, on whichever workers, share: one does it, the others see what came of it. */
export class Sharing {
  readonly #store: Pick<MirrorStore, 'takeLease' | 'releaseLease'>
  readonly #newHolder: () => string
  readonly #check: () => Promise<void>
  readonly #running = new Map<string, Promise<unknown>>()

  /**
   * @param newHolder a new name for a lease; it begins with the process's own, and the lease dies with that
   * @param check throws while the index cannot be written
   */
  constructor(
    store: Pick<MirrorStore, 'takeLease' | 'releaseLease'>,
    newHolder: () => string,
    check: () => Promise<void>,
  ) {
    this.#store = store
    this.#newHolder = newHolder
    this.#check = check
  }

  /**
   * @param find what came of the work, when it is done already
   * @param work is done by one asker at a time; where it fails, the next one tries
   * @throws what the work throws, and what the check does while another worker does not get on
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
    const standstill = new Standstill(this.#check)
    for (let pause = shortestPause; ; pause = Math.min(2 * pause, longestPause)) {
      const found = await find()
      if (found !== undefined) return found
      if (await this.#store.takeLease(key, holder)) break
      await standstill.look()
      await delay(pause)
    }
    try {
      return (await find()) ?? (await work())
    } finally {
      await this.#store.releaseLease(key, holder)
    }
  }
}
