/** A map of bounded size: when it is full, what was not asked for longest goes. */
export class LeastRecentlyUsed<Key, Value> {
  readonly #map = new Map<Key, Value>()
  readonly #most: number

  /** @param most entries */
  constructor(most: number) {
    this.#most = most
  }

  get(key: Key): Value | undefined {
    const value = this.#map.get(key)
    if (value === undefined) return undefined
    this.#map.delete(key)
    this.#map.set(key, value)
    return value
  }

  set(key: Key, value: Value): void {
    this.#map.delete(key)
    this.#map.set(key, value)
    if (this.#map.size <= this.#most) return
    const [oldest] = this.#map.keys()
    if (oldest !== undefined) this.#map.delete(oldest)
  }

  delete(key: Key): void {
    this.#map.delete(key)
  }
}
