import { type IncomingMessage, METHODS, type Server, type ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import { type FastifyInstance, type FastifyReply, type FastifyRequest, fastify } from 'fastify'
import type { Logger } from 'pino'
import type { AccessPolicy, Caller, Identity } from '../auth/access.js'
import { redactPath } from '../auth/redact.js'
import { RegistryError } from '../oci/errors.js'
import { withHops } from '../registry/hops.js'
import type { NameResolver } from '../registry/names.js'
import { authorize, settleUnknown } from './authorize.js'
import { noteExpectation } from './body.js'
import { challengeHeader, tokenPath } from './challenge.js'
import { type ConnectionLimits, Connections } from './connections.js'
import { MethodError, parserRefusal, refuseOnSocket, replyError } from './errors.js'
import { Exchange } from './exchange.js'
import { ForeignGuard } from './foreign.js'
import type { Metrics } from './metrics.js'
import { clientAddress, type Origin, plainAddress, publicAddress } from './origin.js'
import type { Outbox } from './outbox.js'
import { foldPath, invalidPath } from './path.js'
import { allowedMethods, type Handlers, type Route, routes } from './routes.js'

/** Room for a token in the headers (protocol section 16). */
const maxHeaderSize = 32 * 1024

/** What Node's parser takes; who sends no Host is refused by us, in the protocol's shape. */
const limits = { maxHeaderSize, headersTimeout: 60_000, requireHostHeader: false }

/** What the server needs. */
export interface ServerOptions {
  readonly handlers: Handlers
  readonly access: AccessPolicy
  /** Finds the repository that a name means; undefined where every name means itself. */
  readonly names: NameResolver | undefined
  readonly logger: Logger
  readonly metrics: Metrics
  /** The address that clients use, where it is configured. */
  readonly publicUrl: string | undefined
  /** Whether only this machine reaches the server by itself, and whether nobody logs in there. */
  readonly isLocal: boolean
  readonly isOpen: boolean
  /** The name that tokens are for. */
  readonly service: string
  /** Addresses and networks whose X-Forwarded-* headers count (reliability S57). */
  readonly trustedProxies: readonly string[]
  readonly limits: Omit<ConnectionLimits, 'trustedProxies'>
  readonly outbox: Outbox
  /** PEM texts; undefined for plain HTTP. */
  readonly tls: { readonly cert: string; readonly key: string } | undefined
}

/** The HTTP server of one process. */
export interface HttpServer {
  readonly app: FastifyInstance
  /** Connections that are open. */
  connections(): number
  /** Stops listening and resolves when the last request is over. */
  close(): Promise<void>
}

/**
 * Builds the HTTP server from the endpoint table. Fastify routes and ends; the bodies and the replies are ours,
 * since every header on the wire counts here and no body may be touched (protocol section 16).
 */
export function createServer(options: ServerOptions): HttpServer {
  const running = new Set<Promise<void>>()
  const track = (work: Promise<void>) => {
    running.add(work)
    return work.finally(() => running.delete(work))
  }
  const isTls = options.tls !== undefined
  let route: (request: IncomingMessage, response: ServerResponse) => void = () => undefined
  const connections = new Connections(
    { ...options.limits, trustedProxies: options.trustedProxies },
    (request, response) => route(request, response),
    options.metrics.met,
  )
  const wire: Wire = { ...options, connections, foreign: new ForeignGuard(options) }
  const app = fastify({
    ...(isTls ? { https: { ...limits, ...options.tls } } : { http: limits }),
    trustProxy: options.trustedProxies.length > 0 ? [...options.trustedProxies] : false,
    exposeHeadRoutes: false,
    forceCloseConnections: 'idle',
    return503OnClosing: false,
    requestTimeout: 0, // T-43: a push may take hours; bodies are watched for progress instead
    keepAliveTimeout: 120_000, // T-44: longer than the clients' own
    connectionTimeout: options.limits.idle, // what stands still is looked at: see Connections
    routerOptions: { maxParamLength: maxHeaderSize },
    rewriteUrl: (request: IncomingMessage) => foldPath(request.url ?? '/'),
    clientErrorHandler: (error: ParserError, socket: Socket) => refuseUnread(wire, error, socket),
    frameworkErrors: (_error: Error, request: FastifyRequest, reply: FastifyReply) => {
      reply.hijack()
      void track(serve(wire, request, reply.raw, 'invalid'))
    },
  } as Parameters<typeof fastify>[0]) as unknown as FastifyInstance

  const bodyless = { hasBody: false, overrideExisting: true }
  // No body is Fastify's: it would insist on content types that clients do not send (protocol UP-45).
  for (const method of METHODS) if (method !== 'CONNECT') app.addHttpMethod(method, bodyless)

  for (const route of routes) {
    app.route({
      method: route.method === 'GET' ? ['GET', 'HEAD'] : route.method,
      url: route.path,
      handler: (request, reply) => {
        reply.hijack()
        const params = request.params as Record<string, string>
        return track(serve(wire, request, reply.raw, { route, params }))
      },
    })
  }
  app.setNotFoundHandler((request, reply) => {
    reply.hijack()
    return track(serve(wire, request, reply.raw, undefined))
  })
  route = app.routing
  const server = app.server as Server
  server.removeAllListeners('request') // Fastify's own: requests go through the connections to it
  server.on('request', connections.take)
  connections.watch(server, isTls)
  server.on('connect', (_request: IncomingMessage, socket: Socket) => {
    const refusal = new RegistryError('UNSUPPORTED', 'this is no proxy')
    connections.afterAnswers(socket, () => refuseConnection(wire, socket, socket, refusal))
  })
  app.server.on('checkExpectation', (request: IncomingMessage, response: ServerResponse) => {
    app.server.emit('request', request, response) // RFC 9110, 10.1.1: an unknown expectation may be ignored
  })
  app.server.on('checkContinue', (request: IncomingMessage, response: ServerResponse) => {
    noteExpectation(request)
    app.server.emit('request', request, response)
  })
  return {
    app,
    connections: () => connections.count,
    async close() {
      // A connection that answers its last request becomes idle only then.
      const timer = setInterval(() => app.server.closeIdleConnections(), 50)
      try {
        await app.close()
      } finally {
        clearInterval(timer)
      }
      // A connection that was cut off may leave its handler at work, keeping what has arrived.
      await Promise.allSettled(running)
    },
  }
}

/** What an answer is made with. */
interface Wire extends ServerOptions {
  readonly connections: Connections
  readonly foreign: ForeignGuard
}

/** The row of the table that a request fits, if any; `invalid` for a target that cannot be read. */
type Match = { readonly route: Route; readonly params: Record<string, string> } | 'invalid' | undefined

async function serve(
  options: Wire,
  origin: Origin & { readonly raw: IncomingMessage },
  response: ServerResponse,
  match: Match,
): Promise<void> {
  const { handlers, access, metrics, logger, connections } = options
  const started = performance.now()
  const request = origin.raw
  const { socket } = request
  const address = clientAddress(origin)
  let known: Pick<Exchange, 'identity'> | undefined
  let refusal: RegistryError | undefined
  response.once('close', () => {
    const seconds = (performance.now() - started) / 1000
    const route = typeof match === 'object' ? match.route.handler : 'none'
    const bytes = connections.countBytes(socket)
    metrics.observe({
      route,
      method: request.method ?? '',
      status: response.headersSent ? response.statusCode : 499,
      seconds,
      ...bytes,
    })
    const about = { route, seconds, refusal, who: known?.identity, address, ...bytes }
    logRequest(logger, request, response, about)
  })
  try {
    if (options.trustedProxies.length > 0) connections.countProxied(request, response, address)
    refuseBadHead(request)
    options.foreign.check(request, origin)
    if (match === 'invalid') throw new RegistryError('NAME_INVALID', 'the path is not valid')
    if (match === undefined) throw unmatched(request.url ?? '/')
    const { route, params } = match
    const onCaller = (caller: Caller) => {
      known = caller
    }
    const authorized = await authorize(route, request, options, { name: params.name, address, onCaller })
    if (authorized.target?.namespace !== undefined) {
      response.setHeader('OCI-Namespace', authorized.target.namespace) // MI-21
    }
    const exchange = new Exchange(request, response, {
      params,
      address,
      outbox: options.outbox,
      ...authorized,
    })
    known = exchange
    await withHops(request.headers.via, () => handlers[route.handler](exchange)).catch((error) => {
      const settled = settleUnknown(route, access, authorized, error)
      if (settled !== error && settled instanceof RegistryError) exchange.warn(settled.message)
      throw settled
    })
  } catch (error) {
    refusal = replyError(request, response, error, (challenge) =>
      challengeHeader(challenge, publicAddress(origin, options.publicUrl) + tokenPath, options.service),
    )
  }
}

/** What Node's parser of HTTP or TLS found wrong. */
type ParserError = Error & { readonly code?: string }

/** What OpenSSL says of a plain HTTP request, by its method. */
const plainHttpCodes = new Set([
  'ERR_SSL_HTTP_REQUEST',
  'ERR_SSL_HTTPS_PROXY_REQUEST',
  'ERR_SSL_WRONG_VERSION_NUMBER',
])

/** Answers what is no request: in the same shape as all else, in the log, and counted. */
function refuseUnread(wire: Wire, error: ParserError, socket: Socket): void {
  const { code = '' } = error
  const raw = plainHttpCodes.has(code) ? wire.connections.rawSocket(socket) : undefined
  if (raw !== undefined) {
    refuseConnection(
      wire,
      raw,
      raw,
      new RegistryError('REQUEST_INVALID', 'this port speaks HTTPS: use https://'),
    )
    return
  }
  if (!/^(?:HPE_|ERR_HTTP_)/.test(code)) {
    socket.destroy() // the client has gone, or it is not TLS what came
    return
  }
  wire.connections.afterAnswers(socket, () => refuseConnection(wire, socket, socket, parserRefusal(error)))
}

/** Sockets that have their refusal: what still comes on them is not read. */
const refused = new WeakSet<Socket>()

/** @param socket the one that counted the bytes; `raw` is the one to write to */
function refuseConnection(
  { metrics, logger, connections }: Wire,
  socket: Socket,
  raw: Socket,
  refusal: RegistryError,
): void {
  if (refused.has(socket)) return
  refused.add(socket)
  if (!raw.writable) {
    raw.destroy() // the last answer was the last word
    return
  }
  const remote = plainAddress(raw.remoteAddress ?? '')
  refuseOnSocket(raw, refusal)
  const { bytesIn, bytesOut } = connections.countBytes(socket)
  const { status, kind, message } = refusal
  metrics.observe({ route: 'none', method: '', status, seconds: 0, bytesIn, bytesOut })
  const line = { status, route: 'none', ms: 0, in: bytesIn, out: bytesOut, remote }
  logger.info({ ...line, refused: kind, reason: message }, 'request')
}

/**
 * RFC 9112, 3.2: exactly one Host. Node can check that there is one, but then answers without a body; it takes
 * two, and requests without a version.
 */
function refuseBadHead(request: IncomingMessage): void {
  let hosts = 0
  for (let at = 0; at < request.rawHeaders.length; at += 2) {
    if (request.rawHeaders[at]?.toLowerCase() === 'host') hosts++
  }
  const isModern = request.httpVersion === '1.1'
  if (hosts > 1 || (hosts === 0 && isModern)) {
    throw new RegistryError('REQUEST_INVALID', 'a request has exactly one Host header')
  }
  if (!isModern && request.httpVersion !== '1.0') throw new RegistryError('REQUEST_INVALID')
  const coding = request.headers['transfer-encoding']
  if (coding !== undefined && coding.toLowerCase() !== 'chunked') {
    throw new RegistryError('REQUEST_INVALID', 'the only Transfer-Encoding is chunked')
  }
}

/** G-18: a known path with another method is 405, everything else 404. */
function unmatched(url: string): RegistryError {
  if (url === invalidPath) return new RegistryError('NAME_INVALID', 'the path is not valid')
  const allowed = allowedMethods(url)
  return allowed.length > 0 ? new MethodError(allowed) : new RegistryError('NOT_FOUND')
}

/** The path without its query. A target with a scheme of its own may hold a password: it is left out. */
function pathOf(url: string): string {
  if (!url.startsWith('/')) return '(not a path)'
  return redactPath((url.split('?', 1)[0] ?? '').replaceAll('%2F', '/').slice(0, 512))
}

/** Who it was, as log lines have it; nothing for nobody in particular. */
export function describeIdentity(identity: Identity | undefined): Readonly<Record<string, string>> {
  if (identity === undefined || identity.name === '') return {}
  const { name: user, accessToken } = identity
  return accessToken === undefined
    ? { user }
    : { user, accessToken: accessToken.name, accessTokenId: accessToken.id }
}

/** One line a request. Neither query nor headers: both may hold secrets (reliability S63). */
function logRequest(
  logger: Logger,
  request: IncomingMessage,
  response: ServerResponse,
  about: {
    route: string
    seconds: number
    bytesIn: number
    bytesOut: number
    refusal: RegistryError | undefined
    who: Identity | undefined
    address: string
  },
): void {
  const { refusal } = about
  const isOurFault = refusal !== undefined && refusal.status >= 500 && !request.destroyed
  const line = {
    method: request.method,
    path: pathOf(request.url ?? ''),
    status: response.headersSent ? response.statusCode : 499,
    route: about.route,
    ms: Math.round(about.seconds * 10_000) / 10,
    in: about.bytesIn,
    out: about.bytesOut,
    remote: about.address,
    ...describeIdentity(about.who),
    agent: request.headers['user-agent']?.slice(0, 200),
    ...(response.writableFinished ? {} : { aborted: true }),
    ...(refusal === undefined ? {} : { refused: refusal.kind, reason: refusal.message.slice(0, 300) }),
  }
  const isUpstreams = refusal?.kind.startsWith('UPSTREAM_') === true // its name and its fault are in the reason
  if (isOurFault && isUpstreams) logger.warn(line, 'request')
  else if (isOurFault) logger.error({ ...line, err: refusal.cause ?? refusal }, 'request failed')
  else logger.info(line, 'request')
}
