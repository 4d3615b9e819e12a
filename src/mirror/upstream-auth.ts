import type { RepositoryName } from '../oci/reference.js'
import { readSmall } from './answers.js'
import { steadyNow } from './breaker.js'
import { type Challenge, parseChallenge } from './challenge.js'
import { ExchangeError, toUpstreamError } from './failures.js'
import type { HostList } from './hosts.js'
import { type Headers, retryAfterOf } from './rate-limit.js'
import { discard, type HopResponse, type Transport } from './transport.js'
import { UpstreamError } from './upstream.js'

/** A user of an upstream. */
export interface UpstreamCredentials {
  readonly username: string
  readonly password: string
}

/** What is sent as Authorization. Times are those of {@link steadyNow}. */
export interface Pass {
  readonly header: string
  /** When the request for it began; nothing for one that we made ourselves. */
  readonly fetchedAt: number | undefined
  readonly expiresAt: number
}

/** What the passes of an upstream are made with. */
export interface UpstreamAuthOptions {
  readonly name: string
  /** Where the upstream is asked. Credentials go here and to its realm, and nowhere else. */
  readonly url: URL
  readonly realms: HostList
  readonly credentials: (() => Promise<UpstreamCredentials | undefined>) | undefined
  readonly transport: Transport
  /** Told of a 429 of the token service. */
  readonly exceeded: (headers: Headers) => number
  /** Ends the wait for a connection. */
  readonly giveUp: () => AbortSignal
}

type BearerChallenge = Extract<Challenge, { scheme: 'bearer' }>

const mostTokenBytes = 64 * 1024
const longestToken = 16 * 1024
/** Repositories and scopes that are remembered. */
const mostEntries = 1000
/** Seconds: what a token lives when it does not say (protocol TK-03's default), and the most that is believed. */
const defaultLife = 60
const longestLife = 86_400

/**
 * Authenticates to one upstream as it asks for it: with Basic, or with tokens of its realm (protocol section 9).
 * Tokens are kept until shortly before they end, and those who need the same one share one request for it.
 */
export class UpstreamAuth {
  readonly #options: UpstreamAuthOptions
  readonly #challenges = new Map<RepositoryName, BearerChallenge>()
  readonly #tokens = new Map<string, { readonly promise: Promise<Pass>; pass: Pass | undefined }>()
  #isBasic = false

  constructor(options: UpstreamAuthOptions) {
    this.#options = options
  }

  /** What to send for a repository right away; undefined while it has not asked for anything. */
  async pass(repository: RepositoryName): Promise<Pass | undefined> {
    if (this.#isBasic) return this.#basic()
    const challenge = this.#challenges.get(repository)
    return challenge === undefined ? undefined : this.#token(challenge)
  }

  /**
   * What to send after a 401, to the same URL.
   * @param refused what was sent with the request that got it
   * @param startedAt when the caller began: a token that was made after that and refused is not asked for again
   * @returns undefined when nothing better is to be had
   * @throws UpstreamError when there is no token: `invalid` for a realm that is not allowed
   */
  async answer(
    repository: RepositoryName,
    headers: Headers,
    refused: Pass | undefined,
    startedAt: number,
  ): Promise<Pass | undefined> {
    const challenge = parseChallenge(headers['www-authenticate'])
    if (challenge === undefined) return undefined
    if (challenge.scheme === 'basic') {
      const pass = await this.#basic()
      this.#isBasic = pass !== undefined
      return pass?.header === refused?.header ? undefined : pass
    }
    this.#isBasic = false
    const asked = { ...challenge, scope: pullScope(challenge.scope, repository) }
    remember(this.#challenges, repository, asked)
    if (refused !== undefined) {
      const isNew = (refused.fetchedAt ?? 0) >= startedAt && steadyNow() < refused.expiresAt
      if (isNew) return undefined
      this.#forget(asked, refused)
    }
    return this.#token(asked)
  }

  async #basic(): Promise<Pass | undefined> {
    const credentials = await this.#credentials()
    if (credentials === undefined) return undefined
    return { header: basicHeader(credentials), fetchedAt: undefined, expiresAt: Number.POSITIVE_INFINITY }
  }

  async #credentials(): Promise<UpstreamCredentials | undefined> {
    try {
      return await this.#options.credentials?.()
    } catch (cause) {
      throw new UpstreamError('denied', `${this.#options.name}: its credentials cannot be read`, { cause })
    }
  }

  #forget(challenge: BearerChallenge, refused: Pass): void {
    const key = keyOf(challenge)
    if (this.#tokens.get(key)?.pass?.header === refused.header) this.#tokens.delete(key)
  }

  #token(challenge: BearerChallenge): Promise<Pass> {
    const key = keyOf(challenge)
    const known = this.#tokens.get(key)
    if (known !== undefined && (known.pass === undefined || steadyNow() < renewalOf(known.pass)))
      return known.promise
    const promise = this.#fetch(challenge)
    const entry: { promise: Promise<Pass>; pass: Pass | undefined } = { promise, pass: undefined }
    remember(this.#tokens, key, entry)
    promise.then(
      (pass) => {
        entry.pass = pass
      },
      () => {
        if (this.#tokens.get(key) === entry) this.#tokens.delete(key)
      },
    )
    return promise
  }

  async #fetch({ realm, service, scope }: BearerChallenge): Promise<Pass> {
    const { name, transport, giveUp } = this.#options
    const url = this.#realmUrl(realm)
    if (service !== undefined) url.searchParams.set('service', service)
    if (scope !== undefined) url.searchParams.append('scope', scope)
    const credentials = await this.#credentials()
    const headers: Record<string, string> = { accept: 'application/json' }
    if (credentials !== undefined) headers.authorization = basicHeader(credentials)
    const fetchedAt = steadyNow()
    const response = await transport.open({ method: 'GET', url, headers, kind: 'small', giveUp: giveUp() })
    try {
      this.#checkStatus(response, credentials !== undefined)
      return passOf(await readSmall(response, mostTokenBytes), fetchedAt)
    } catch (error) {
      discard(response)
      throw toUpstreamError(name, url.host, error)
    }
  }

  /**
   * The URL of a realm, if it may have our credentials (reliability S40): on the upstream's own host and port, or
   * on a configured one; with TLS, unless the upstream itself is asked without.
   */
  #realmUrl(realm: string): URL {
    const { name, url: own, realms } = this.#options
    const refuse = (what: string) =>
      new UpstreamError('invalid', `${name}: ${own.host} names a token service ${what}`)
    if (!URL.canParse(realm)) throw refuse('that is not a URL')
    const url = new URL(realm)
    if (url.username !== '' || url.password !== '') throw refuse('with credentials in its URL')
    const isPlainTwin = url.protocol === 'http:' && own.protocol === 'http:' && url.hostname === own.hostname
    if (url.protocol !== 'https:' && !isPlainTwin) throw refuse(`on ${url.host} without TLS`)
    if (url.origin !== own.origin && !realms.has(url)) {
      throw refuse(`on ${url.host}, which is not configured`)
    }
    url.hash = ''
    return url
  }

  #checkStatus({ status, headers }: HopResponse, hasCredentials: boolean): void {
    if (status === 200) return
    if (status === 429) {
      const { name, url, exceeded } = this.#options
      const retryAfter = Math.ceil(exceeded(headers) / 1000)
      throw new UpstreamError(
        'rate-limited',
        `${name}: the token service of ${url.host} allows no more requests`,
        {
          retryAfter,
        },
      )
    }
    if (status === 401 || status === 403) {
      throw new ExchangeError(
        'denied',
        hasCredentials ? 'refused the credentials' : 'gives no token without credentials',
      )
    }
    if (status >= 500) {
      const pause = retryAfterOf(headers)
      throw new ExchangeError(
        'unavailable',
        `answered ${status} for a token${pause === undefined ? '' : ', for now'}`,
      )
    }
    throw new ExchangeError('invalid', `answered ${status} for a token`)
  }
}

function keyOf({ realm, service, scope }: BearerChallenge): string {
  return JSON.stringify([realm, service, scope])
}

/** The scope to ask for: as the challenge has it, but never for more than to pull. */
function pullScope(scope: string | undefined, repository: RepositoryName): string {
  if (scope === undefined || scope === '') return `repository:${repository}:pull`
  return scope.startsWith('repository:') ? scope.replace(/:[^:]*$/, ':pull') : scope
}

function basicHeader({ username, password }: UpstreamCredentials): string {
  return `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`
}

/** When a token is fetched anew: a tenth of its life before its end, ten seconds at most. */
function renewalOf({ fetchedAt, expiresAt }: Pass): number {
  const life = fetchedAt === undefined ? 0 : expiresAt - fetchedAt
  return expiresAt - Math.min(10_000, life / 10)
}

function passOf(bytes: Buffer, fetchedAt: number): Pass {
  let value: unknown
  try {
    value = JSON.parse(bytes.toString('utf8'))
  } catch {
    throw new ExchangeError('invalid', 'gave a token that is not JSON')
  }
  const answer = typeof value === 'object' && value !== null ? value : {}
  const token = [Reflect.get(answer, 'token'), Reflect.get(answer, 'access_token')].find(isToken)
  if (token === undefined) throw new ExchangeError('invalid', 'gave an answer without a token')
  const said = Reflect.get(answer, 'expires_in')
  const life = typeof said === 'number' && said > 0 ? Math.min(said, longestLife) : defaultLife
  return { header: `Bearer ${token}`, fetchedAt, expiresAt: fetchedAt + life * 1000 }
}

function isToken(value: unknown): value is string {
  return typeof value === 'string' && value.length <= longestToken && /^[\x21-\x7e]+$/.test(value)
}

/** Sets an entry of a map that forgets its oldest. */
function remember<K, V>(map: Map<K, V>, key: K, value: V): void {
  map.delete(key)
  map.set(key, value)
  const [oldest] = map.keys()
  if (map.size > mostEntries && oldest !== undefined) map.delete(oldest)
}
