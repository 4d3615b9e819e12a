import type { RepositoryName } from '../oci/reference.js'
import { type Attempt, Breaker, steadyNow } from './breaker.js'
import { toUpstreamError } from './failures.js'
import type { HostList } from './hosts.js'
import { RateLimits, retryAfterOf } from './rate-limit.js'
import type { FollowedResponse, Redirects } from './redirects.js'
import { discard, type HopRequest, type Transport } from './transport.js'
import { UpstreamError } from './upstream.js'
import { UpstreamAuth, type UpstreamCredentials } from './upstream-auth.js'

/** What an endpoint is made from. */
export interface EndpointOptions {
  readonly name: string
  /** The registry's root: `/v2/` lies below it. */
  readonly url: URL
  readonly realms: HostList
  readonly credentials: (() => Promise<UpstreamCredentials | undefined>) | undefined
  readonly transport: Transport
  readonly redirects: Redirects
  /** Told of each failure that says something about the upstream's health. */
  readonly onFailure: ((error: UpstreamError) => void) | undefined
}

/** One request of the registry's API. */
export interface ApiRequest {
  readonly method: HopRequest['method']
  readonly repository: RepositoryName
  /** Behind `/v2/<repository>/`, with its query. */
  readonly path: string
  readonly headers?: Readonly<Record<string, string>>
  readonly kind: HopRequest['kind']
  readonly signal?: AbortSignal | undefined
  /** The statuses that the caller knows what to do with. All others are refusals. */
  readonly expects: readonly number[]
}

/** Requests that one call may cost: without a token, with an old one, with one that ended on its way, with a new one. */
const mostTries = 4

/** One URL of an upstream, with its own memory of what it lets us do: its breaker, its limits, its tokens. */
export class Endpoint {
  readonly url: URL
  readonly limits = new RateLimits()
  readonly #options: EndpointOptions
  readonly #breaker = new Breaker()
  readonly #auth: UpstreamAuth
  #failure: { readonly message: string; readonly at: number } | undefined
  #answeredAt: number | undefined

  constructor(options: EndpointOptions) {
    this.#options = options
    this.url = options.url
    this.#auth = new UpstreamAuth({
      ...options,
      exceeded: (headers) => this.limits.exceeded(headers),
      giveUp: () => this.#breaker.whileClosed,
    })
  }

  /** When it is asked again after failures, in milliseconds since 1970; undefined while it is asked. */
  get retryAt(): number | undefined {
    return this.#breaker.retryAt
  }

  /** The last failure, in words, and when it was, in milliseconds since 1970. */
  get failure(): { readonly message: string; readonly at: number } | undefined {
    return this.#failure
  }

  /** When it last answered, in milliseconds since 1970; undefined when it never did. */
  get answeredAt(): number | undefined {
    return this.#answeredAt
  }

  /**
   * Does some work with this endpoint, unless it is to be left alone, and remembers how that went.
   * @throws UpstreamError, and nothing else
   */
  async attempt<T>(signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
    this.#checkLimits()
    const attempt = this.#breaker.enter() ?? this.#refuseToTry()
    try {
      const result = await work()
      attempt.succeeded()
      this.#answeredAt = Date.now()
      return result
    } catch (thrown) {
      const error = this.explain(thrown)
      this.#judge(attempt, error, signal)
      throw error
    }
  }

  /** A failure after an attempt that had succeeded: the body of a blob did not come to its end. */
  note(error: UpstreamError, signal: AbortSignal | undefined): void {
    if (error.failure !== 'unavailable' || signal?.aborted === true) return
    this.#breaker.note()
    this.#record(error)
  }

  /** Any error as one that names this upstream. */
  explain(error: unknown, host: string = this.url.host): UpstreamError {
    return toUpstreamError(this.#options.name, host, error)
  }

  /**
   * Sends a request with the credentials that it takes, and follows where it leads.
   * @throws UpstreamError for every status that was not expected
   */
  async send(request: ApiRequest): Promise<FollowedResponse> {
    const response = await this.#sendAuthorized(request)
    if (!response.isForeign) this.limits.read(response.headers)
    if (request.expects.includes(response.status)) return response
    discard(response)
    throw this.#refusalOf(response)
  }

  async #sendAuthorized(request: ApiRequest): Promise<FollowedResponse> {
    const { method, repository, path, headers = {}, kind, signal } = request
    const url = new URL(`${this.url.href.replace(/\/+$/, '')}/v2/${repository}/${path}`)
    const hop = { method, url, headers, kind, signal, giveUp: this.#breaker.whileClosed }
    const startedAt = steadyNow()
    let pass = await this.#auth.pass(repository)
    for (let tries = 1; ; tries++) {
      const response = await this.#options.redirects.follow({ ...hop, authorization: pass?.header })
      if (response.status !== 401 || response.isForeign || tries === mostTries) return response
      // Its connection is given back first: the request for a token needs one, too.
      discard(response)
      const next = await this.#auth.answer(repository, response.headers, pass, startedAt)
      if (next === undefined) return response
      pass = next
    }
  }

  #refusalOf({ status, headers, url, isForeign }: FollowedResponse): UpstreamError {
    const say = (failure: UpstreamError['failure'], what: string, retryAfter?: number) =>
      new UpstreamError(failure, `${this.#options.name}: ${url.host} ${what}`, { retryAfter })
    // A Boathouse that cannot ask its own upstream says 404, too, where it may be a push that asks; and when to come back.
    const isForNow = status === 404 && retryAfterOf(headers) !== undefined
    if ((status === 404 || status === 410) && !isForNow) return say('not-found', 'does not have it')
    if (status === 401 || status === 403) {
      const why = this.#options.credentials === undefined ? 'wants credentials' : 'refuses the credentials'
      return say('denied', isForeign ? `answered ${status}` : `${why} (${status})`)
    }
    if (status === 429 && !isForeign) {
      const retryAfter = seconds(this.limits.exceeded(headers))
      return say('rate-limited', `allows no more requests for ${retryAfter} s`, retryAfter)
    }
    const pause = retryAfterOf(headers)
    const isPassing = isForNow || status >= 500 || status === 408 || status === 429
    return isPassing
      ? say('unavailable', `answered ${status}`, pause === undefined ? undefined : seconds(pause))
      : say('invalid', `answered ${status}`)
  }

  #checkLimits(): void {
    const { pause } = this.limits
    if (pause === 0) return
    const retryAfter = seconds(pause)
    throw this.#error('rate-limited', `allows no more requests for ${retryAfter} s`, retryAfter)
  }

  #refuseToTry(): never {
    const wait = Math.max(0, (this.retryAt ?? 0) - steadyNow())
    const why = this.#failure === undefined ? '' : ` (${this.#failure.message})`
    throw this.#error('unavailable', `failed a moment ago and is not asked${why}`, Math.max(1, seconds(wait)))
  }

  #judge(attempt: Attempt, error: UpstreamError, signal: AbortSignal | undefined): void {
    if (signal?.aborted === true) {
      attempt.left()
    } else if (error.failure === 'unavailable') {
      attempt.failed()
      this.#record(error)
    } else {
      // It is there, whatever we think of its answer.
      attempt.succeeded()
      this.#answeredAt = Date.now()
    }
  }

  #record(error: UpstreamError): void {
    this.#failure = { message: error.message, at: Date.now() }
    this.#options.onFailure?.(error)
  }

  #error(failure: UpstreamError['failure'], what: string, retryAfter: number): UpstreamError {
    return new UpstreamError(failure, `${this.#options.name}: ${this.url.host} ${what}`, { retryAfter })
  }
}

function seconds(milliseconds: number): number {
  return Math.ceil(milliseconds / 1000)
}
