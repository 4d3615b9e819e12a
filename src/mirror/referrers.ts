import type { ReferrerLimits, ReferrerPage } from '../../storage/metadata-store.js'
import type { Referrer } from '../registry/manifests.js'
import type { UpstreamReferrer } from './upstream.js'

/** Milliseconds for which a list stands, so that its pages fit together and a client's retries cost nothing. */
const listFor = 10_000

/** Lists that are kept: each may have megabytes. */
const mostLists = 16

/** Lists of referrers, as they came from upstream. */
export class Referrers {
  readonly #lists = new Map<string, { readonly list: Promise<readonly Referrer[]>; readonly until: number }>()

  /** @throws what `fetch` throws; that is not kept */
  list(key: string, fetch: () => Promise<readonly UpstreamReferrer[]>): Promise<readonly Referrer[]> {
    const known = this.#lists.get(key)
    if (known !== undefined && known.until > performance.now()) return known.list
    const list = fetch().then((all) => all.map((referrer, at) => ({ ...referrer, position: at + 1 })))
    this.#lists.delete(key)
    this.#lists.set(key, { list, until: performance.now() + listFor })
    list.catch(() => this.#lists.delete(key))
    const [oldest] = this.#lists.keys()
    if (this.#lists.size > mostLists && oldest !== undefined) this.#lists.delete(oldest)
    return list
  }
}

/** The part of a list that a page asks for. */
export function pageOf(
  all: readonly Referrer[],
  artifactTypes: readonly string[],
  after: number,
  { count, bytes }: ReferrerLimits,
): ReferrerPage {
  const referrers: Referrer[] = []
  let left = bytes
  for (const referrer of all) {
    const { position, artifactType, annotations } = referrer
    if (position <= after) continue
    if (artifactTypes.length > 0 && !artifactTypes.includes(artifactType ?? '')) continue
    left -= annotations?.byteLength ?? 0
    const isFull = referrers.length === count || (left < 0 && referrers.length > 0)
    if (isFull) return { referrers, more: true }
    referrers.push(referrer)
  }
  return { referrers, more: false }
}
