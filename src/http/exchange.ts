import type { IncomingMessage, OutgoingHttpHeaders, ServerResponse } from 'node:http'
import type { Caller, Identity } from '../auth/access.js'
import type { RepositoryName } from '../oci/reference.js'
import type { Target } from '../registry/names.js'
import { type Outbox, smallAnswer } from './outbox.js'

/** Bytes and milliseconds for which the rest of an unwanted body is read and dropped. */
const drainBytes = 64 * 1024 * 1024
const drainTime = 10_000

/** Headers on every reply (protocol G-08, G-13). */
export const standardHeaders = {
  'Docker-Distribution-API-Version': 'registry/2.0',
  'X-Content-Type-Options': 'nosniff',
}

/** One request and its reply, as the handlers see them. */
export class Exchange {
  readonly request: IncomingMessage
  readonly response: ServerResponse
  readonly params: Readonly<Record<string, string>>
  readonly caller: Caller
  /** The client's address. */
  readonly address: string
  /** Who asks, for the log: the caller, until a handler finds out more. */
  identity: Identity
  readonly #target: Target | undefined
  readonly #outbox: Outbox
  #query: URLSearchParams | undefined

  constructor(
    request: IncomingMessage,
    response: ServerResponse,
    route: {
      readonly params: Readonly<Record<string, string>>
      readonly caller: Caller
      readonly address: string
      readonly target: Target | undefined
      readonly outbox: Outbox
    },
  ) {
    this.request = request
    this.response = response
    this.params = route.params
    this.caller = route.caller
    this.identity = route.caller.identity
    this.address = route.address
    this.#target = route.target
    this.#outbox = route.outbox
  }

  /** The repository that the request means; only for routes whose path names one. */
  get repository(): RepositoryName {
    return this.target.repository
  }

  get target(): Target {
    if (this.#target === undefined) throw new Error('this route has no repository')
    return this.#target
  }

  /** Tells that the content may not be the newest (protocol PX-01). The header takes printable ASCII without quotes. */
  warn(text: string | undefined): void {
    if (text === undefined) return
    this.response.setHeader('Warning', `299 - "${text.replaceAll(/[^ !#-[\]-~]+/g, ' ').slice(0, 500)}"`)
  }

  get isHead(): boolean {
    return this.request.method === 'HEAD'
  }

  /**
   * Whether a large answer has to wait for {@link room}: others that are not taken yet fill the memory.
   */
  get isCrowded(): boolean {
    return this.#outbox.isFull
  }

  /**
   * Waits until there is room for a large answer. To be called before what it is made of is read.
   * @throws RegistryError UNAVAILABLE when there is none for long
   */
  room(): Promise<void> | undefined {
    return this.#outbox.isFull ? this.#outbox.room() : undefined
  }

  /** The query's parameters; unknown ones are nobody's business (protocol G-19). */
  get query(): URLSearchParams {
    if (this.#query === undefined) {
      const url = this.request.url ?? ''
      const mark = url.indexOf('?')
      this.#query = new URLSearchParams(mark < 0 ? '' : url.slice(mark + 1))
    }
    return this.#query
  }

  /** A path parameter that the route's pattern has. */
  param(name: string): string {
    return this.params[name] ?? ''
  }

  /** Replies with a status and headers alone (protocol G-11: with a length, except for 204 and 304). */
  sendEmpty(status: number, headers: OutgoingHttpHeaders = {}): void {
    const length = status === 204 || status === 304 ? {} : { 'Content-Length': 0 }
    send(this.request, this.response, status, { ...headers, ...length })
  }

  /** Replies with a body, or with its headers alone to HEAD (protocol G-10). */
  sendBytes(status: number, bytes: Uint8Array, headers: OutgoingHttpHeaders): void {
    const all = { ...headers, 'Content-Length': bytes.byteLength }
    const isLarge = bytes.byteLength > smallAnswer && !this.isHead && !hasUnreadBody(this.request)
    if (isLarge) {
      sendHead(this.response, status, all)
      this.#outbox.send(this.response, bytes)
    } else {
      send(this.request, this.response, status, all, this.isHead ? undefined : bytes)
    }
  }

  /** Replies with JSON. */
  sendJson(value: unknown, headers: OutgoingHttpHeaders = {}): void {
    this.sendBytes(200, Buffer.from(JSON.stringify(value)), {
      'Content-Type': 'application/json',
      ...headers,
    })
  }
}

/** Begins a reply whose body follows. */
export function sendHead(response: ServerResponse, status: number, headers: OutgoingHttpHeaders): void {
  response.writeHead(status, { ...standardHeaders, ...headers })
}

/**
 * Sends a whole reply. When the request's body has not been read to its end, the connection is closed behind
 * the reply, but not at once: the client must be able to read the reply while it still sends (protocol T-45).
 */
export function send(
  request: IncomingMessage,
  response: ServerResponse,
  status: number,
  headers: OutgoingHttpHeaders,
  body?: Uint8Array,
): void {
  const isLast = isEndless(request) // there is no end to wait for
  if (isLast || !hasUnreadBody(request)) {
    sendHead(response, status, isLast ? { ...headers, Connection: 'close' } : headers)
    response.end(body)
    return
  }
  sendHead(response, status, { ...headers, Connection: 'close' })
  if (body === undefined) response.flushHeaders()
  else response.write(body)
  drain(request, () => response.end())
}

/** Whether bytes of the request's body are still to come. */
function hasUnreadBody(request: IncomingMessage): boolean {
  return hasBody(request) && !request.readableEnded && !request.destroyed
}

/** Whether the request announces a body (protocol UP-02: no length and length 0 are both none). */
export function hasBody(request: IncomingMessage): boolean {
  const length = request.headers['content-length']
  return request.headers['transfer-encoding'] !== undefined || (length !== undefined && Number(length) > 0)
}

/**
 * Whether nobody can tell where the body ends: its last coding is not chunked (RFC 9112, 6.3). Node's parser hands over
 * the head of such a request, and only then calls it an error.
 */
export function isEndless({ headers }: IncomingMessage): boolean {
  const coding = headers['transfer-encoding']
  return coding !== undefined && !/(?:^|,)\s*chunked$/i.test(coding)
}

/** Reads and drops the rest of a body, within bounds; what goes beyond them is cut off. */
function drain(request: IncomingMessage, done: () => void): void {
  let left = drainBytes
  const timer = setTimeout(() => request.socket.destroy(), drainTime)
  request.on('data', (chunk: Buffer) => {
    left -= chunk.length
    if (left < 0) request.socket.destroy()
  })
  request.on('error', () => undefined) // the client may leave: nothing is lost
  request.once('close', () => clearTimeout(timer))
  request.once('end', () => {
    clearTimeout(timer)
    done()
  })
  request.resume()
}
