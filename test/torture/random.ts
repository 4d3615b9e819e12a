import { createHash } from 'node:crypto'

/**
 * A stream of pseudo-random numbers that a seed and a path of names decide: the same words always give the same
 * stream, however the streams beside it are used. (xoshiro128**)
 */
export class Random {
  readonly #state: Uint32Array

  constructor(...path: readonly (string | number)[]) {
    const seed = createHash('sha256').update(path.join('/')).digest()
    this.#state = Uint32Array.from([0, 4, 8, 12], (at) => seed.readUInt32LE(at))
  }

  #next(): number {
    const [a = 0, b = 0, c = 0, d = 0] = this.#state
    const fives = Math.imul(b, 5)
    const result = Math.imul((fives << 7) | (fives >>> 25), 9) >>> 0
    const mixed = d ^ b
    this.#state.set([a ^ mixed, b ^ c ^ a, c ^ a ^ (b << 9), (mixed << 11) | (mixed >>> 21)])
    return result
  }

  /** A whole number from `least` to `most`, both included. */
  int(least: number, most: number): number {
    return least + Math.floor((this.#next() / 2 ** 32) * (most - least + 1))
  }

  /** True with this probability. */
  chance(probability: number): boolean {
    return this.#next() / 2 ** 32 < probability
  }

  /** One of the items; undefined when there are none. */
  pick<T>(items: readonly T[]): T | undefined {
    return items.length === 0 ? undefined : items[this.int(0, items.length - 1)]
  }

  /** One of the names, each as likely as its weight says. */
  weighted<Name extends string>(weights: Readonly<Record<Name, number>>): Name {
    const entries = Object.entries(weights) as [Name, number][]
    let left = this.int(
      1,
      entries.reduce((sum, [, weight]) => sum + weight, 0),
    )
    for (const [name, weight] of entries) {
      left -= weight
      if (left <= 0) return name
    }
    throw new Error('no weights')
  }

  bytes(count: number): Buffer {
    const words = new Uint32Array(Math.ceil(count / 4))
    for (let at = 0; at < words.length; at++) words[at] = this.#next()
    return Buffer.from(words.buffer, 0, count)
  }
}
