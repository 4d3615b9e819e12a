import type { HostList } from './hosts.js'
import { single } from './rate-limit.js'
import { discard, type HopRequest, type HopResponse, type Transport } from './transport.js'
import { UpstreamError } from './upstream.js'

/** Hops after the first request. */
const mostHops = 5
const redirects = new Set([301, 302, 303, 307, 308])

/** A request to an upstream, which may answer by sending us elsewhere. */
export interface FollowedRequest extends HopRequest {
  /** Goes to the first URL's origin only. */
  readonly authorization: string | undefined
}

/** Where a chain of redirects ended. */
export interface FollowedResponse extends HopResponse {
  /** Whether another origin than the one that was asked first gave it. */
  readonly isForeign: boolean
}

/**
 * Follows redirects to hosts that were named, and to no other (reliability S41, S42): credentials stay with the
 * origin that was asked, for good once it has been left; TLS is never given up; five hops at most.
 */
export class Redirects {
  readonly #name: string
  readonly #transport: Transport
  readonly #origins: ReadonlySet<string>
  readonly #hosts: HostList

  /** @param urls the configured URLs: their origins may be redirected to */
  constructor(name: string, transport: Transport, urls: readonly URL[], hosts: HostList) {
    this.#name = name
    this.#transport = transport
    this.#origins = new Set(urls.map(({ origin }) => origin))
    this.#hosts = hosts
  }

  /** @throws UpstreamError `invalid` for a redirect that is not followed; as {@link Transport.open} otherwise */
  async follow(request: FollowedRequest): Promise<FollowedResponse> {
    const { authorization, headers } = request
    let url = request.url
    let isForeign = false
    for (let hop = 0; ; hop++) {
      isForeign ||= url.origin !== request.url.origin
      const sent = authorization === undefined || isForeign ? headers : { ...headers, authorization }
      const response = await this.#transport.open({ ...request, url, headers: sent })
      if (!redirects.has(response.status)) return { ...response, isForeign }
      discard(response)
      if (hop === mostHops) throw this.#refusal(url, `redirected more than ${mostHops} times`)
      url = this.#target(url, single(response.headers, 'location'))
    }
  }

  #target(from: URL, location: string | undefined): URL {
    if (location === undefined || !URL.canParse(location, from.href)) {
      throw this.#refusal(from, 'redirected to nowhere')
    }
    const to = new URL(location, from.href)
    to.hash = ''
    // Never the whole URL: its query may be a signature that opens the blob to anyone.
    if (to.username !== '' || to.password !== '')
      throw this.#refusal(from, 'redirected to a URL with credentials')
    if (to.protocol !== 'https:' && (to.protocol !== 'http:' || from.protocol !== 'http:')) {
      throw this.#refusal(from, `redirected to ${to.host} without TLS`)
    }
    if (!this.#origins.has(to.origin) && !this.#hosts.has(to)) {
      throw this.#refusal(from, `redirected to ${to.host}, a host that is not configured`)
    }
    return to
  }

  #refusal(from: URL, what: string): UpstreamError {
    return new UpstreamError('invalid', `${this.#name}: ${from.host} ${what}`)
  }
}
