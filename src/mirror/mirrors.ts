import type { MirrorCounts, MirrorStore } from '../../storage/mirror-store.js'
import type { Digest } from '../oci/digest.js'
import type { RepositoryName } from '../oci/reference.js'
import { matchesRepository, type RepositoryPattern } from '../oci/repository-pattern.js'
import { currentHops, mostHops } from '../registry/hops.js'
import { type Upstream, UpstreamError, type UpstreamHealth } from './upstream.js'

/** What one mirror is told. */
export interface MirrorOptions {
  /** What the names of its repositories begin with: `docker.io`. */
  readonly name: string
  /** Values of `?ns=` that mean it (protocol MI-21). */
  readonly namespaces: readonly string[]
  readonly upstream: Upstream
  /** Whether names of one segment lie below `library` upstream (protocol PX-08). */
  readonly hasLibrary: boolean
  /** Whether names without a registry that nothing local has are its (protocol MI-02). */
  readonly takesBareNames: boolean
  /** Patterns over the upstream's names: one of `allow` must fit and none of `deny`. */
  readonly allow: readonly RepositoryPattern[]
  readonly deny: readonly RepositoryPattern[]
  /** Milliseconds for which a tag counts as current. */
  readonly freshness: number
  /** What becomes of a tag that the upstream has no longer. */
  readonly onUpstreamDeleted: 'keep' | 'drop'
  /** Whether everybody may read it upstream: then a blob of one repository may stand for the same one of another. */
  readonly isOpen: boolean
  /** What this registry calls itself towards the upstream, in `Via`. */
  readonly viaName: string
}

const nothing: MirrorCounts = { hits: 0, misses: 0, bytesFetched: 0, bytesSaved: 0 }

/** Uses that are kept until they are written down; more are let go: they only make blobs look older. */
const mostUses = 1000

/** One mirror, and what it did since it was last written down. */
export class Mirror {
  readonly options: MirrorOptions
  #counts = { ...nothing }
  #hasCounted = false
  #fetchedBytes = 0
  #uses = new Set<Digest>()
  #saidHealth: string | undefined

  constructor(options: MirrorOptions) {
    this.options = options
  }

  get name(): string {
    return this.options.name
  }

  get upstream(): Upstream {
    return this.options.upstream
  }

  /** Bytes that this process has fetched since its start. */
  get fetchedBytes(): number {
    return this.#fetchedBytes
  }

  /** Whether it may ask the upstream for a repository, by the upstream's own name. */
  allows(remote: RepositoryName): boolean {
    const { allow, deny } = this.options
    const fits = (pattern: RepositoryPattern) => matchesRepository(pattern, remote)
    return allow.some(fits) && !deny.some(fits)
  }

  /**
   * Registries may be each other's upstreams: what has come from here and round again is not passed on a second time.
   * To be called before the upstream is asked, or anybody is waited for who asks it.
   * @throws UpstreamError looped
   */
  refuseLoop(): void {
    const hops = currentHops()
    if (!hops.includes(this.options.viaName) && hops.length < mostHops) return
    throw new UpstreamError(
      'looped',
      `${this.name}: the request has come round in a circle of registries that are each other's upstreams, and this one does not have it`,
    )
  }

  /** Whether a tag goes that the upstream says it has not: not in a circle, where that may be on our own account. */
  get dropsDeleted(): boolean {
    return this.options.onUpstreamDeleted === 'drop' && currentHops().length === 0
  }

  /** The repository's name upstream. */
  remoteOf(repository: RepositoryName): RepositoryName {
    return repository.slice(this.name.length + 1) as RepositoryName
  }

  /** Counts a request that was answered from here. */
  hit(bytes: number, blob?: Digest): void {
    this.#counts.hits++
    this.#counts.bytesSaved += bytes
    this.#hasCounted = true
    if (blob !== undefined && this.#uses.size < mostUses) this.#uses.add(blob)
  }

  /** Counts a request that had to go upstream. */
  miss(): void {
    this.#counts.misses++
    this.#hasCounted = true
  }

  fetched(bytes: number): void {
    this.#counts.bytesFetched += bytes
    this.#fetchedBytes += bytes
    this.#hasCounted = true
  }

  /** Writes down what is new since the last time. What others have learnt meanwhile stays, where it is newer. */
  async flush(store: MirrorStore, now: number): Promise<void> {
    const uses = this.#uses
    this.#uses = new Set()
    if (uses.size > 0) await store.noteUses(this.name, [...uses], now)
    const news = newsOf(this.upstream.health)
    const health = news?.text === this.#saidHealth ? undefined : news
    if (!this.#hasCounted && health === undefined) return
    const counts = this.#counts
    this.#counts = { ...nothing }
    this.#hasCounted = false
    await store.noteWork(this.name, counts, health)
    this.#saidHealth = news?.text
  }
}

/** What a process has learnt of an upstream, and when; undefined before it has asked. */
function newsOf(health: UpstreamHealth): { readonly text: string; readonly at: number } | undefined {
  const at = Math.max(health.answeredAt ?? 0, health.failedAt ?? 0)
  if (at === 0) return undefined
  const { retryAt = null, limitedUntil = null } = health
  return { text: JSON.stringify({ ...health, retryAt, limitedUntil }), at }
}

/** The mirrors of this server. */
export class Mirrors {
  readonly all: readonly Mirror[]
  readonly #byNamespace: ReadonlyMap<string, Mirror>

  constructor(all: readonly Mirror[]) {
    this.all = all
    this.#byNamespace = new Map(
      all.flatMap((mirror) => mirror.options.namespaces.map((name) => [name, mirror] as const)),
    )
  }

  /** The mirror that a repository belongs to by its name. */
  of(repository: RepositoryName): Mirror | undefined {
    return this.all.find(({ name }) => repository.startsWith(name) && repository[name.length] === '/')
  }

  /** The mirror that `?ns=` means; undefined for an unknown one (protocol MI-21: as if absent). */
  ofNamespace(namespace: string): Mirror | undefined {
    return this.#byNamespace.get(namespace)
  }

  /** The mirror that names without a registry fall to. */
  get ofBareNames(): Mirror | undefined {
    return this.all.find(({ options }) => options.takesBareNames)
  }
}
