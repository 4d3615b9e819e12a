import { currentHops } from '../registry/hops.js'
import type { UpstreamError } from './upstream.js'

/** Milliseconds for which an upstream is not asked again for what it did not have (protocol PX-01: at most 60 s). */
const missFor = 30_000

/** Misses that are remembered; the oldest are forgotten first. */
const mostMisses = 10_000

/** Remembers what an upstream does not have: clients ask for it again and again. */
export class Misses {
  readonly #known = new Map<string, { readonly error: UpstreamError; readonly until: number }>()

  /** @throws the upstream's answer, as long as it counts */
  check(key: string): void {
    const known = this.#known.get(key)
    if (known === undefined) return
    if (known.until > performance.now()) throw known.error
    this.#known.delete(key)
  }

  note(key: string, error: UpstreamError): void {
    // In a circle an upstream refuses what it would fetch for others.
    if (currentHops().length > 0) return
    this.#known.delete(key)
    this.#known.set(key, { error, until: performance.now() + missFor })
    if (this.#known.size <= mostMisses) return
    const [oldest] = this.#known.keys()
    if (oldest !== undefined) this.#known.delete(oldest)
  }
}
