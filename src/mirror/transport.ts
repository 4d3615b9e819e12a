import { setMaxListeners } from 'node:events'
import type { Socket } from 'node:net'
import type { Readable } from 'node:stream'
import { createSecureContext, rootCertificates, type SecureContext } from 'node:tls'
import { Agent, buildConnector, type Dispatcher, Pool, ProxyAgent, request } from 'undici'
import { currentHops } from '../registry/hops.js'
import { AddressGuard, bareHost, type Resolve } from './addresses.js'
import { ExchangeError, toUpstreamError } from './failures.js'
import { guardParser } from './parser-end.js'
import { ProxyChoice, type ProxySettings } from './proxy.js'
import type { Headers } from './rate-limit.js'
import { Slots } from './slots.js'
import { UpstreamError } from './upstream.js'

/** Times in milliseconds. */
export interface Timeouts {
  /** Until there is a connection, its name looked up and its TLS agreed upon. */
  readonly connect: number
  /** From there until the headers have come. */
  readonly headers: number
  /** The longest time without a byte of a blob. */
  readonly idle: number
  /** The longest time for a small answer with its body: a manifest, a token, a list. */
  readonly answer: number
}

/** What a transport is made from. */
export interface TransportOptions {
  readonly name: string
  readonly urls: readonly URL[]
  readonly addresses: readonly string[]
  readonly ca: string | undefined
  readonly proxy: ProxySettings
  readonly timeouts: Timeouts
  readonly maxConnections: number
  readonly userAgent: string
  /** What this registry calls itself in `Via` (RFC 9110, 7.6.3); undefined to send none. */
  readonly viaName?: string | undefined
  readonly resolve?: Resolve | undefined
}

/** One request to one URL. */
export interface HopRequest {
  readonly method: 'GET' | 'HEAD'
  readonly url: URL
  readonly headers: Readonly<Record<string, string>>
  /** A small answer has a time limit for all of it; a blob only for its headers. */
  readonly kind: 'small' | 'blob'
  readonly signal?: AbortSignal | undefined
  /** Ends the wait for a free connection, but nothing after that. */
  readonly giveUp?: AbortSignal | undefined
}

/** The answer to one request. Its body must be read or thrown away with {@link discard}. */
export interface HopResponse {
  readonly url: URL
  readonly status: number
  readonly headers: Headers
  readonly body: Readable
}

/** Requests that may wait for a connection, for each connection that there may be. */
const waitingPerConnection = 50
const tooMany = 'has too many requests waiting for it'
/** Redirects carry long signatures; more than this is no registry's header. */
const mostHeaderBytes = 32 * 1024

/**
 * Makes single requests over HTTP. Each has a connection of its own that is closed after it: bytes that a server
 * sends behind an answer can never be taken for the answer to another request (reliability S43), and no request
 * meets a connection that the server is just closing.
 */
export class Transport {
  readonly #name: string
  readonly #timeouts: Timeouts
  readonly #userAgent: string
  readonly #viaName: string | undefined
  readonly #guard: AddressGuard
  readonly #choice: ProxyChoice
  readonly #direct: Agent
  readonly #proxies: ReadonlyMap<URL, ProxyAgent>
  readonly #slots: Readonly<Record<HopRequest['kind'], Slots>>
  readonly #closing = new AbortController()

  /** @throws Error when an address, a certificate or a proxy's URL cannot be read */
  constructor(options: TransportOptions) {
    this.#name = options.name
    this.#timeouts = options.timeouts
    this.#userAgent = options.userAgent
    this.#viaName = options.viaName
    this.#guard = new AddressGuard(options.addresses, options.urls, options.resolve)
    this.#choice = new ProxyChoice(options.proxy)
    const slots = () => new Slots(options.maxConnections, options.maxConnections * waitingPerConnection)
    // Two kinds, so that a HEAD never waits for gigabytes.
    this.#slots = { small: slots(), blob: slots() }
    const tls: TlsOptions = { secureContext: secureContext(options.ca), rejectUnauthorized: true }
    const { connect } = options.timeouts
    setMaxListeners(0, this.#closing.signal)
    this.#direct = new Agent({ ...clientOptions, connect: guardedConnector(this.#guard, tls, connect) })
    this.#proxies = new Map(this.#choice.all.map((proxy) => [proxy, proxyAgent(proxy, tls, connect)]))
  }

  /**
   * Sends one request and waits for the headers of its answer. Follows no redirect.
   * @throws UpstreamError when there is no answer
   */
  async open(hop: HopRequest): Promise<HopResponse> {
    try {
      return await this.#open(hop)
    } catch (error) {
      if (this.#closing.signal.aborted)
        throw new UpstreamError('unavailable', `${this.#name}: has been closed`)
      throw toUpstreamError(this.#name, hop.url.host, error)
    }
  }

  /** Ends all connections. What waits for an answer rejects, and so does whatever comes later. */
  async close(): Promise<void> {
    this.#closing.abort()
    await Promise.all([this.#direct, ...this.#proxies.values()].map((dispatcher) => dispatcher.destroy()))
  }

  async #open(hop: HopRequest): Promise<HopResponse> {
    const { connect, headers, answer } = this.#timeouts
    const watch = new Deadline([this.#closing.signal, hop.signal])
    if (hop.kind === 'small') watch.limit(answer, tooMany)
    const giveBack = await this.#slots[hop.kind].take([watch.signal, hop.giveUp])
    const end = () => {
      watch.end()
      giveBack?.()
    }
    try {
      if (giveBack === undefined) throw new ExchangeError('unavailable', tooMany)
      watch.limit(connect + headers, 'did not answer in time')
      const { statusCode, headers: fields, body } = await this.#request(hop, watch.signal)
      body.once('close', end).on('error', ignore)
      if (hop.kind === 'blob') watch.limit(undefined, '')
      else watch.limit(answer, 'took too long over its answer')
      return { url: hop.url, status: statusCode, headers: fields, body }
    } catch (error) {
      end()
      // undici says "aborted" where we want to know by whom.
      throw watch.signal.aborted ? watch.signal.reason : error
    }
  }

  #request({ method, url, headers }: HopRequest, signal: AbortSignal): Promise<Dispatcher.ResponseData> {
    const proxy = this.#choice.for(url)
    const viaProxy = proxy === undefined ? undefined : this.#proxies.get(proxy)
    // A proxy resolves names itself; an address can be judged here all the same.
    this.#guard.checkLiteral(bareHost(url.hostname))
    const names = this.#viaName === undefined ? [] : [...currentHops(), this.#viaName]
    const via = names.length === 0 ? {} : { via: names.map((name) => `1.1 ${name}`).join(', ') }
    return request(url, {
      dispatcher: viaProxy ?? this.#direct,
      method,
      headers: { 'user-agent': this.#userAgent, 'accept-encoding': 'identity', ...via, ...headers },
      signal,
    })
  }
}

/** Throws the rest of an answer away, with its connection. */
export function discard({ body }: HopResponse): void {
  body.on('error', ignore)
  body.destroy()
}

const ignore = () => undefined

/** Timeouts are ours: undici's own begin anew with every 1xx and are coarse. */
const clientOptions = {
  pipelining: 0,
  headersTimeout: 0,
  bodyTimeout: 0,
  maxHeaderSize: mostHeaderBytes,
} as const

interface TlsOptions {
  readonly secureContext: SecureContext
  /** Said aloud, so that no environment variable can turn it off. */
  readonly rejectUnauthorized: true
}

function secureContext(ca: string | undefined): SecureContext {
  return createSecureContext(ca === undefined ? {} : { ca: [...rootCertificates, ca] })
}

function guardedConnector(guard: AddressGuard, tls: TlsOptions, timeout: number): buildConnector.connector {
  // undici's timer is only the backstop that clears the socket away.
  const connect = buildConnector({
    ...tls,
    timeout: timeout + 1000,
    lookup: guard.lookup,
    autoSelectFamily: true,
  })
  return (options, callback) => {
    const settle = once(callback)
    const timer = setTimeout(
      () => settle(new ExchangeError('unavailable', 'did not answer in time'), null),
      timeout,
    )
    const finish = (error: Error | null, socket: Socket | null) => {
      clearTimeout(timer)
      settle(error, socket)
    }
    try {
      guard.checkLiteral(bareHost(options.hostname))
      connect(options, (...[error, socket]) => finish(error, socket))
    } catch (error) {
      finish(error instanceof Error ? error : new Error('could not connect'), null)
    }
  }
}

/** Calls back once; a socket that comes after that is closed. */
function once(callback: buildConnector.Callback): (error: Error | null, socket: Socket | null) => void {
  let isSettled = false
  return (error, socket) => {
    if (isSettled) socket?.destroy()
    // undici leaves the socket out when there is none, whatever its types say.
    else if (error === null && socket) callback(null, guardParser(socket))
    else callback(error ?? new Error('no connection'), null)
    isSettled = true
  }
}

function proxyAgent(proxy: URL, tls: TlsOptions, timeout: number): ProxyAgent {
  const pool = (origin: string | URL, options: Pool.Options) =>
    new Pool(origin, { ...options, ...clientOptions, ...guarded(options.connect) })
  return new ProxyAgent({
    ...clientOptions,
    uri: proxy.href,
    proxyTunnel: false,
    clientFactory: pool,
    factory: pool,
    proxyTls: { ...tls, timeout },
    requestTls: { ...tls, timeout },
  })
}

/** The proxy agent makes its connections itself, by functions that it hands to its pools. */
function guarded(connect: Pool.Options['connect']): Pool.Options {
  if (typeof connect !== 'function') return {}
  return { connect: (options, callback) => connect(options, once(callback)) }
}

/** A time limit that can be moved, together with signals from outside. */
class Deadline {
  readonly #controller = new AbortController()
  readonly #outer: readonly AbortSignal[]
  #timer: NodeJS.Timeout | undefined

  constructor(outer: readonly (AbortSignal | undefined)[]) {
    // Not AbortSignal.any: with a signal that lives as long as we do, Node 20 keeps something of every one.
    this.#outer = outer.filter((signal) => signal !== undefined)
    for (const signal of this.#outer) {
      signal.addEventListener('abort', this.#leave)
      if (signal.aborted) this.#leave()
    }
  }

  get signal(): AbortSignal {
    return this.#controller.signal
  }

  /** From now on this many milliseconds; or any number. */
  limit(milliseconds: number | undefined, message: string): void {
    clearTimeout(this.#timer)
    if (milliseconds === undefined) return
    const late = () => this.#controller.abort(new ExchangeError('unavailable', message))
    this.#timer = setTimeout(late, milliseconds)
  }

  end(): void {
    clearTimeout(this.#timer)
    for (const signal of this.#outer) signal.removeEventListener('abort', this.#leave)
  }

  readonly #leave = () => {
    this.#controller.abort(new ExchangeError('unavailable', 'is not waited for any longer: its asker left'))
  }
}
