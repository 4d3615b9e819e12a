import { algorithmOf, type Digest, digestOf, isDigest } from '../oci/digest.js'
import { mediaTypes } from '../oci/media-types.js'
import type { RepositoryName, Tag } from '../oci/reference.js'
import type { Resolve } from './addresses.js'
import { contentLength, contentRange, readSmall, watchBody } from './answers.js'
import { steadyNow } from './breaker.js'
import { Endpoint } from './endpoint.js'
import { ExchangeError } from './failures.js'
import { HostList, hostsOf } from './hosts.js'
import { nextPage, referrersOf, referrersTag, tagsOf, typeOf } from './lists.js'
import type { ProxySettings } from './proxy.js'
import { single } from './rate-limit.js'
import { Redirects } from './redirects.js'
import { Slots } from './slots.js'
import { discard, type HopResponse, type Timeouts, Transport } from './transport.js'
import {
  type Upstream,
  type UpstreamBlob,
  UpstreamError,
  type UpstreamHead,
  type UpstreamHealth,
  type UpstreamManifest,
  type UpstreamReferrer,
  type UpstreamTags,
} from './upstream.js'
import type { UpstreamCredentials } from './upstream-auth.js'

/** Where and how an upstream is asked. */
export interface HttpUpstreamOptions {
  /** What it is called in messages: `docker.io`. */
  readonly name: string
  /** Tried in order; the first one that answers wins. `http:` is asked without TLS, and nothing else ever is. */
  readonly urls: readonly URL[]
  /** Asked for each time that they are needed. */
  readonly credentials: (() => Promise<UpstreamCredentials | undefined>) | undefined
  /** Further hosts (`host`, `host:port`, `*.domain`) of its token services. Those of well-known registries are known. */
  readonly realms: readonly string[]
  /** Further hosts that it may redirect to, written as `realms`; they never get credentials. */
  readonly redirectHosts: readonly string[]
  /** Private addresses and CIDR ranges that may be connected to. An address in a URL names itself. */
  readonly addresses: readonly string[]
  /** A further certificate authority, PEM. */
  readonly ca: string | undefined
  readonly proxy: ProxySettings
  readonly timeouts: Timeouts
  /** Connections at once: this many for blobs, and as many for everything else. */
  readonly maxConnections: number
  readonly userAgent: string
  /** What this registry calls itself in `Via`, behind those through which a request has come; undefined to send none. */
  readonly viaName?: string | undefined
  /** Told of each failure to ask it; the message has no secret. */
  readonly onFailure?: ((error: UpstreamError) => void) | undefined
  /** Resolves names instead of the system. */
  readonly resolve?: Resolve | undefined
}

/** Lists and manifests of more than 128 KiB that are read at once. */
const mostLarge = 2
const mostManifestBytes = 4 * 1024 * 1024
const mostTagBytes = 1024 * 1024
const mostTagPages = 20
const mostReferrers = 10_000
const mostReferrerPages = 20

/** Every type that is stored, and whatever else there is: nothing is to be converted for us (protocol PX-04). */
const manifestTypes = [...Object.values(mediaTypes), '*/*'].join(', ')

/**
 * Another registry over HTTP (protocol section 12.4, reliability S40 to S46). What it may be sent to, how it is
 * bounded and which answers it takes is decided in the files beside this one; here are the protocol's verbs.
 */
export class HttpUpstream implements Upstream {
  readonly #options: HttpUpstreamOptions
  readonly #transport: Transport
  readonly #endpoints: readonly Endpoint[]
  readonly #large: Slots

  /** @throws Error for options that cannot be: no URL, an unreadable address, certificate or proxy */
  constructor(options: HttpUpstreamOptions) {
    if (options.urls.length === 0) throw new Error(`${options.name} has no URL`)
    this.#options = options
    this.#large = new Slots(mostLarge, options.maxConnections)
    const { name, urls, credentials, onFailure } = options
    const transport = new Transport(options)
    const hosts = new HostList([
      ...options.redirectHosts,
      ...urls.flatMap((url) => hostsOf(url).redirectHosts),
    ])
    const redirects = new Redirects(name, transport, urls, hosts)
    this.#transport = transport
    this.#endpoints = urls.map((url) => {
      const realms = new HostList([...options.realms, ...hostsOf(url).realms])
      return new Endpoint({ name, url, realms, credentials, transport, redirects, onFailure })
    })
  }

  headManifest(repository: RepositoryName, reference: Tag | Digest): Promise<UpstreamHead> {
    return this.#first((endpoint) => this.#headManifest(endpoint, repository, reference))
  }

  getManifest(repository: RepositoryName, reference: Tag | Digest): Promise<UpstreamManifest> {
    return this.#first((endpoint) => this.#getManifest(endpoint, repository, reference))
  }

  openBlob(
    repository: RepositoryName,
    digest: Digest,
    offset: number,
    signal?: AbortSignal,
  ): Promise<UpstreamBlob> {
    return this.#first((endpoint) => this.#openBlob(endpoint, repository, digest, offset, signal), signal)
  }

  headBlob(repository: RepositoryName, digest: Digest): Promise<number | undefined> {
    return this.#first((endpoint) => this.#headBlob(endpoint, repository, digest))
  }

  listTags(repository: RepositoryName, after: string, limit: number): Promise<UpstreamTags> {
    return this.#first((endpoint) => this.#listTags(endpoint, repository, after, limit))
  }

  listReferrers(repository: RepositoryName, subject: Digest): Promise<readonly UpstreamReferrer[]> {
    return this.#first((endpoint) => this.#listReferrers(endpoint, repository, subject))
  }

  /** Of several URLs: open while all of them are, and the limits of the first that told any. */
  get health(): UpstreamHealth {
    const times = this.#endpoints.map(({ retryAt }) => retryAt)
    const waiting = times.filter((time) => time !== undefined)
    const isOpen = waiting.length === times.length
    const newest = (some: readonly (number | undefined)[]) =>
      some.reduce((a, b) => ((a ?? 0) > (b ?? 0) ? a : b))
    const failedAt = newest(this.#endpoints.map(({ failure }) => failure?.at))
    return {
      breaker: isOpen ? 'open' : 'closed',
      retryAt: isOpen ? Math.ceil(Math.min(...waiting)) : undefined,
      answeredAt: newest(this.#endpoints.map(({ answeredAt }) => answeredAt)),
      failure: this.#endpoints.find(({ failure }) => failure?.at === failedAt)?.failure?.message,
      failedAt,
      rateLimit: this.#endpoints.find(({ limits }) => limits.last !== undefined)?.limits.last,
      limitedUntil: newest(this.#endpoints.map(({ limits }) => limits.pausedUntil)),
    }
  }

  close(): Promise<void> {
    return this.#transport.close()
  }

  /** The answer of the first URL that gives one: not having something is an answer, being down is none. */
  async #first<T>(work: (endpoint: Endpoint) => Promise<T>, signal?: AbortSignal): Promise<T> {
    let last: unknown
    for (const endpoint of this.#endpoints) {
      try {
        return await endpoint.attempt(signal, () => work(endpoint))
      } catch (error) {
        const isAnswer =
          !(error instanceof UpstreamError) || !['unavailable', 'rate-limited'].includes(error.failure)
        if (isAnswer || signal?.aborted === true) throw error
        last = error
      }
    }
    throw last
  }

  async #headManifest(
    endpoint: Endpoint,
    repository: RepositoryName,
    reference: Tag | Digest,
  ): Promise<UpstreamHead> {
    const response = await endpoint.send({
      method: 'HEAD',
      repository,
      path: `manifests/${reference}`,
      headers: { accept: manifestTypes },
      kind: 'small',
      // Some do not know HEAD (protocol MF-49).
      expects: [200, 405, 501],
    })
    discard(response)
    const digest = single(response.headers, 'docker-content-digest')
    if (response.status !== 200 || digest === undefined) {
      return this.#getManifest(endpoint, repository, reference)
    }
    if (!isDigest(digest)) throw this.#invalid(response, 'names a digest that is none')
    if (isDigest(reference) && reference !== digest) throw this.#invalid(response, 'names another digest')
    return { digest }
  }

  async #getManifest(
    endpoint: Endpoint,
    repository: RepositoryName,
    reference: Tag | Digest,
  ): Promise<UpstreamManifest> {
    const response = await endpoint.send({
      method: 'GET',
      repository,
      path: `manifests/${reference}`,
      headers: { accept: manifestTypes },
      kind: 'small',
      expects: [200],
    })
    const bytes = await this.#read(endpoint, response, mostManifestBytes)
    const digest = this.#checkedDigest(response, bytes, reference)
    return { digest, mediaType: single(response.headers, 'content-type'), bytes }
  }

  /** The digest of a manifest: the one asked for, or the one that the answer names, if the bytes have it. */
  #checkedDigest(response: HopResponse, bytes: Uint8Array, reference: Tag | Digest): Digest {
    const named = single(response.headers, 'docker-content-digest')
    for (const digest of [reference, named]) {
      if (digest === undefined || digest === '') continue
      if (!isDigest(digest)) {
        if (digest === named) throw this.#invalid(response, 'names a digest that is none')
        continue
      }
      if (digestOf(bytes, algorithmOf(digest)) !== digest) {
        throw this.#invalid(response, `sent bytes that do not have the digest ${digest}`)
      }
    }
    if (isDigest(reference)) return reference
    return named !== undefined && isDigest(named) ? named : digestOf(bytes)
  }

  async #openBlob(
    endpoint: Endpoint,
    repository: RepositoryName,
    digest: Digest,
    offset: number,
    signal: AbortSignal | undefined,
  ): Promise<UpstreamBlob> {
    const response = await endpoint.send({
      method: 'GET',
      repository,
      path: `blobs/${digest}`,
      headers: offset === 0 ? {} : { range: `bytes=${offset}-` },
      kind: 'blob',
      signal,
      expects: offset === 0 ? [200] : [200, 206],
    })
    const { size, first, expected } = this.#extent(response, offset)
    const body = watchBody(response.body, {
      expected,
      idle: this.#options.timeouts.idle,
      explain: (thrown) => {
        const error = endpoint.explain(thrown, response.url.host)
        endpoint.note(error, signal)
        return error
      },
    })
    return { size, offset: first, body }
  }

  /** Which bytes of a blob an answer has. */
  #extent(response: HopResponse, offset: number): { size?: number; first: number; expected?: number } {
    const length = contentLength(response.headers)
    if (response.status === 200)
      return length === undefined ? { first: 0 } : { size: length, first: 0, expected: length }
    const range = contentRange(response.headers)
    const expected = range === undefined ? 0 : range.last - range.first + 1
    const isWhole = range?.size === undefined || range.last === range.size - 1
    if (range?.first !== offset || !isWhole || (length !== undefined && length !== expected)) {
      discard(response)
      throw this.#invalid(response, 'sent another part of the blob than it was asked for')
    }
    return { ...(range.size === undefined ? {} : { size: range.size }), first: offset, expected }
  }

  async #headBlob(
    endpoint: Endpoint,
    repository: RepositoryName,
    digest: Digest,
  ): Promise<number | undefined> {
    const path = `blobs/${digest}`
    const response = await endpoint.send({ method: 'HEAD', repository, path, kind: 'small', expects: [200] })
    discard(response)
    return contentLength(response.headers)
  }

  async #listTags(
    endpoint: Endpoint,
    repository: RepositoryName,
    after: string,
    limit: number,
  ): Promise<UpstreamTags> {
    const query = new URLSearchParams({ n: String(limit) })
    if (after !== '') query.set('last', after)
    const names: string[] = []
    const isLate = this.#lateness()
    let next: string | undefined = `?${query}`
    for (let page = 0; next !== undefined && names.length < limit && page < mostTagPages; page++) {
      const path: string = `tags/list${next}`
      const response = await endpoint.send({ method: 'GET', repository, path, kind: 'small', expects: [200] })
      const found = tagsOf(await this.#read(endpoint, response, mostTagBytes))
      // Some do not know `last` and begin at the beginning: what the caller has is left out (protocol TG-05).
      names.push(...found.slice(found.indexOf(after) + 1))
      next = nextPage(response.url, response.headers)
      if (isLate()) break
    }
    return { names: names.slice(0, limit), more: next !== undefined || names.length > limit }
  }

  async #listReferrers(
    endpoint: Endpoint,
    repository: RepositoryName,
    subject: Digest,
  ): Promise<readonly UpstreamReferrer[]> {
    const found: UpstreamReferrer[] = []
    const isLate = this.#lateness()
    let bytesLeft = mostManifestBytes
    let next: string | undefined = ''
    for (let page = 0; next !== undefined; page++) {
      const path: string = `referrers/${subject}${next}`
      const headers = { accept: mediaTypes.ociIndex }
      const response = await endpoint.send({
        method: 'GET',
        repository,
        path,
        headers,
        kind: 'small',
        expects: [200, 404, 405],
      })
      const bytes = response.status === 200 ? await this.#read(endpoint, response, bytesLeft) : undefined
      discard(response)
      const isIndex = typeOf(response.headers) === mediaTypes.ociIndex
      const entries = bytes !== undefined && isIndex ? referrersOf(bytes) : undefined
      if (entries === undefined) return this.#listTaggedReferrers(endpoint, repository, subject)
      found.push(...entries)
      bytesLeft -= bytes?.length ?? 0
      next = nextPage(response.url, response.headers)
      if (found.length > mostReferrers || (next !== undefined && page >= mostReferrerPages)) {
        throw this.#invalid(response, `lists more than ${mostReferrers} referrers`)
      }
      if (next !== undefined && isLate()) {
        const error = new ExchangeError('unavailable', 'took too long over its list')
        throw endpoint.explain(error)
      }
    }
    return found
  }

  /** The referrers where there is no API for them: an index under a tag that is made of the subject's digest. */
  async #listTaggedReferrers(
    endpoint: Endpoint,
    repository: RepositoryName,
    subject: Digest,
  ): Promise<readonly UpstreamReferrer[]> {
    try {
      const { bytes } = await this.#getManifest(endpoint, repository, referrersTag(subject))
      const found = referrersOf(bytes) ?? []
      if (found.length <= mostReferrers) return found
    } catch (error) {
      if (error instanceof UpstreamError && error.failure === 'not-found') return []
      throw error
    }
    throw endpoint.explain(new ExchangeError('invalid', `lists more than ${mostReferrers} referrers`))
  }

  async #read(endpoint: Endpoint, response: HopResponse, most: number): Promise<Buffer> {
    try {
      return await readSmall(response, most, this.#large)
    } catch (error) {
      throw endpoint.explain(error, response.url.host)
    }
  }

  /** Tells whether a list of many pages has taken as long as one answer may. */
  #lateness(): () => boolean {
    const limit = steadyNow() + this.#options.timeouts.answer
    return () => steadyNow() > limit
  }

  #invalid({ url }: HopResponse, what: string): UpstreamError {
    return new UpstreamError('invalid', `${this.#options.name}: ${url.host} ${what}`)
  }
}
