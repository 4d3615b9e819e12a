import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import { BlockList, isIPv6, type Socket } from 'node:net'
import type { TLSSocket } from 'node:tls'
import { networkOf } from '../auth/throttle.js'
import { RegistryError } from '../oci/errors.js'
import { refuseOnSocket } from './errors.js'
import { hasBody, isEndless } from './exchange.js'
import type { Bound } from './metrics.js'
import { plainAddress } from './origin.js'

/**
 * Requests of one connection, and of all of a process, that wait for the answers before them. Those of one connection
 * are parsed in one go: a hundred of them take some milliseconds.
 */
const mostWaitingHere = 100
const mostWaiting = 10_000

/** Connections beyond the bound that are told so; those beyond them are closed without a word. */
const mostTold = 64

/** How many connections there may be, in one process. */
export interface ConnectionLimits {
  readonly connections: number
  readonly perAddress: number
  /** Addresses and networks of proxies: their connections are those of many clients. */
  readonly trustedProxies: readonly string[]
  /** Milliseconds after which a client that takes nothing of its answer is given up. */
  readonly idle: number
}

/** Answers a request. */
type Serve = (request: IncomingMessage, response: ServerResponse) => void

/** One connection of a client. */
interface Connection {
  /** The TCP connection, also where TLS is spoken on it. */
  readonly socket: Socket
  readonly address: string
  /** The answer in the making, and what it answers. */
  current: ServerResponse | undefined
  request: IncomingMessage | undefined
  /** Requests that came before it was sent. */
  waiting: [IncomingMessage, ServerResponse][]
  /** What is left to do when all of them are answered. */
  last: (() => void) | undefined
  /** Whether a whole request has ever come. */
  hasAsked: boolean
  /** Begins the next request. */
  readonly next: () => void
  /** Bytes that have been counted for requests that are over. */
  bytesIn: number
  bytesOut: number
}

/**
 * The connections of one process: a bounded number of them, each with one answer in the making, none of which waits
 * for ever for its reader. Where there are too many, those without a request give way, the oldest first.
 */
export class Connections {
  readonly #limits: ConnectionLimits
  readonly #proxies: BlockList
  readonly #onBound: (bound: Bound) => void
  /** By address and port of the client: TLS speaks through another socket than the one that was accepted. */
  readonly #open = new Map<string, Connection>()
  readonly #ofSocket = new WeakMap<Socket, Connection>()
  readonly #perAddress = new Map<string, number>()
  readonly #proxied = new Map<string, number>()
  readonly #serve: Serve
  #waiting = 0
  #told = 0

  /** @param onBound hears of every bound that is met */
  constructor(limits: ConnectionLimits, serve: Serve, onBound: (bound: Bound) => void) {
    this.#limits = limits
    this.#serve = serve
    this.#onBound = onBound
    this.#proxies = networksOf(limits.trustedProxies)
  }

  /** Connections that are open. */
  get count(): number {
    return this.#open.size
  }

  /** Looks after the connections of a server. To be called before it listens. */
  watch(server: Server, isTls: boolean): void {
    server.prependListener('connection', (socket: Socket) => this.#admit(socket, isTls))
    server.prependListener('secureConnection', (socket: TLSSocket) => {
      const connection = this.#open.get(peerOf(socket))
      if (connection !== undefined) this.#ofSocket.set(socket, connection)
    })
    // Node's own timer of a socket: it sees each byte that goes either way, and costs nothing more.
    server.on('timeout', (socket: Socket) => this.#onStandstill(socket))
  }

  /** Begins a request, now or when the answers before it have been sent. */
  readonly take: Serve = (request, response) => {
    const { socket } = request
    const connection = this.#ofSocket.get(socket)
    if (connection === undefined || socket.destroyed) return // its end is on the way
    connection.hasAsked = true
    if (connection.current === undefined) {
      this.#begin(connection, request, response)
      return
    }
    if (connection.waiting.length >= mostWaitingHere || this.#waiting >= mostWaiting) {
      this.#onBound('waiting_requests')
      socket.destroy()
      return
    }
    connection.waiting.push([request, response])
    this.#waiting++
    socket.pause() // what comes after it stays with the client
  }

  /** Bytes that came and went on a request's connection since this was last asked. */
  countBytes(socket: Socket): { bytesIn: number; bytesOut: number } {
    const { bytesRead, bytesWritten } = socket
    const connection = this.#ofSocket.get(socket)
    if (connection === undefined) return { bytesIn: bytesRead, bytesOut: bytesWritten }
    const bytes = { bytesIn: bytesRead - connection.bytesIn, bytesOut: bytesWritten - connection.bytesOut }
    connection.bytesIn = bytesRead
    connection.bytesOut = bytesWritten
    return bytes
  }

  /**
   * Counts a request that came through a trusted proxy: its connections are not its clients', so the requests are bounded
   * in their place.
   * @param client the address that the proxy tells
   * @throws RegistryError TOOMANYREQUESTS when that client has too many at a time
   */
  countProxied(request: IncomingMessage, response: ServerResponse, client: string): void {
    const proxy = this.#ofSocket.get(request.socket)?.address
    if (proxy === undefined || !this.#isProxy(proxy)) return
    const network = networkOf(client)
    if ((this.#proxied.get(network) ?? 0) >= this.#limits.perAddress) {
      this.#onBound('requests_per_client')
      throw new RegistryError('TOOMANYREQUESTS', 'too many requests at a time: try again later', {
        retryAfter: 1,
      })
    }
    add(this.#proxied, network, 1)
    response.once('close', () => add(this.#proxied, network, -1))
  }

  /**
   * Calls `work` when the requests before have been answered: what is wrong behind them must not cut them off. What is
   * wrong in the body of the one that is being answered ends that.
   */
  afterAnswers(socket: Socket, work: () => void): void {
    const connection = this.#ofSocket.get(socket)
    if (connection?.current === undefined || isCutOff(connection.request)) {
      work()
      return
    }
    connection.last ??= work
    socket.pause()
  }

  /** The TCP connection below a TLS one. */
  rawSocket(socket: Socket): Socket | undefined {
    return this.#open.get(peerOf(socket))?.socket
  }

  #isProxy(address: string): boolean {
    return this.#proxies.check(address, isIPv6(address) ? 'ipv6' : 'ipv4')
  }

  #begin(connection: Connection, request: IncomingMessage, response: ServerResponse): void {
    connection.current = response
    connection.request = request
    response.once('close', connection.next)
    this.#serve(request, response)
  }

  #beginNext(connection: Connection): void {
    connection.current = undefined
    connection.request = undefined
    const next = connection.waiting.shift()
    if (next === undefined) {
      connection.last?.()
      return
    }
    const [request, response] = next
    this.#waiting--
    if (connection.last !== undefined && isCutOff(request)) {
      connection.last() // it is what is wrong
      return
    }
    connection.current = response
    // In a turn of its own: answers that need no file would else follow each other without letting anybody in between.
    setImmediate(() => {
      if (!request.socket.writable) {
        this.#forget(connection)
        return
      }
      if (connection.waiting.length === 0) request.socket.resume()
      this.#begin(connection, request, response)
    })
  }

  /** Lets go of requests that will never be answered. */
  #forget(connection: Connection): void {
    this.#waiting -= connection.waiting.length
    connection.waiting = []
  }

  #admit(socket: Socket, isTls: boolean): void {
    const { remoteAddress } = socket
    if (remoteAddress === undefined) {
      socket.destroy() // it has gone already
      return
    }
    const address = plainAddress(remoteAddress)
    const bound = this.#fullFor(address)
    if (bound !== undefined) {
      this.#onBound(bound)
      if (!this.#makeRoom(bound === 'connections' ? undefined : networkOf(address))) {
        this.#refuse(socket, isTls)
        return
      }
    }
    this.#remember(socket, address)
  }

  #fullFor(address: string): Bound | undefined {
    if (this.#open.size >= this.#limits.connections) return 'connections'
    const count = this.#perAddress.get(networkOf(address)) ?? 0
    return count >= this.#limits.perAddress && !this.#isProxy(address) ? 'connections_per_address' : undefined
  }

  /** Ends the oldest connection that waits for a request, of the address or at all. False when there is none. */
  #makeRoom(network: string | undefined): boolean {
    let idle: Connection | undefined
    for (const connection of this.#open.values()) {
      if (connection.current !== undefined || connection.socket.destroyed) continue
      if (network !== undefined && networkOf(connection.address) !== network) continue
      idle ??= connection
      if (connection.hasAsked) continue
      idle = connection // it has never asked anything: the one to go
      break
    }
    idle?.socket.destroy()
    return idle !== undefined
  }

  #refuse(socket: Socket, isTls: boolean): void {
    if (isTls || this.#told >= mostTold) {
      socket.destroy()
      return
    }
    this.#told++
    socket.once('close', () => this.#told--)
    const error = new RegistryError(
      'TOOMANYREQUESTS',
      'too many connections: close some, or try again later',
      {
        retryAfter: 1,
      },
    )
    refuseOnSocket(socket, error)
  }

  #remember(socket: Socket, address: string): void {
    const key = peerOf(socket)
    const connection: Connection = {
      socket,
      address,
      current: undefined,
      request: undefined,
      waiting: [],
      last: undefined,
      hasAsked: false,
      next: () => this.#beginNext(connection),
      bytesIn: 0,
      bytesOut: 0,
    }
    this.#open.set(key, connection)
    this.#ofSocket.set(socket, connection)
    const network = networkOf(address)
    add(this.#perAddress, network, 1)
    socket.once('close', () => {
      if (this.#open.get(key) === connection) this.#open.delete(key) // a port may be used again at once
      this.#forget(connection)
      add(this.#perAddress, network, -1)
    })
  }

  /** Nothing has come or gone for a while: the client's fault only where it is the one who is waited for. */
  #onStandstill(socket: Socket): void {
    const response = this.#ofSocket.get(socket)?.current
    if (response === undefined) {
      socket.destroy()
    } else if (socket.writableLength > 0 || response.writableLength > 0) {
      this.#onBound('standstill')
      socket.destroy()
    } else {
      socket.setTimeout(this.#limits.idle) // the answer is still being made, or the body has a timer of its own
    }
  }
}

/** Whether a request has a body that has not come to its end. One whose end nobody can tell never begins. */
function isCutOff(request: IncomingMessage | undefined): boolean {
  return request !== undefined && !request.complete && hasBody(request) && !isEndless(request)
}

function add(counts: Map<string, number>, key: string, step: number): void {
  const count = (counts.get(key) ?? 0) + step
  if (count > 0) counts.set(key, count)
  else counts.delete(key)
}

function peerOf({ remoteAddress, remotePort }: Pick<Socket, 'remoteAddress' | 'remotePort'>): string {
  return `${remoteAddress} ${remotePort}`
}

/** @param texts addresses and networks, as the settings have checked them */
export function networksOf(texts: readonly string[]): BlockList {
  const list = new BlockList()
  for (const text of texts) {
    const [address = '', bits] = text.split('/')
    const family = isIPv6(address) ? 'ipv6' : 'ipv4'
    if (bits === undefined) list.addAddress(address, family)
    else list.addSubnet(address, Number(bits), family)
  }
  return list
}
