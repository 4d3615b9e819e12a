import { createHash, randomUUID } from 'node:crypto'
import { once } from 'node:events'
import * as http from 'node:http'
import * as https from 'node:https'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import type { Test } from 'tap'

/*
 * A registry to mirror that can be told to misbehave. It keeps repositories in memory, asks for credentials as real
 * registries do, writes down every request, and counts the bytes of every blob that it sends. Faults from `faults.ts`
 * (or any function) take the place of its honest answers. It listens on real sockets of a loopback address, so that
 * several of them can be several hosts.
 */

/** An answer, before it is sent. */
export interface FakeReply {
  status: number
  headers: Record<string, string>
  body: Buffer
}

/** One request while it is being answered. */
export interface FakeExchange {
  readonly method: string
  readonly path: string
  readonly request: http.IncomingMessage
  readonly response: http.ServerResponse
  /** The connection, for answers that no HTTP library would send. */
  readonly socket: Duplex
  /** The honest answer. */
  readonly reply: FakeReply
  /** Sends an answer as HTTP wants it. */
  readonly send: (reply: FakeReply) => void
}

/** Takes the place of an honest answer. */
export type Fault = (exchange: FakeExchange) => unknown

/** A request that came in. */
export interface LoggedRequest {
  readonly method: string
  /** Path and query. */
  readonly path: string
  readonly headers: http.IncomingHttpHeaders
  /** Milliseconds since 1970. */
  readonly at: number
}

/** How the upstream is set up. */
export interface FakeUpstreamOptions {
  /** Where it listens; `127.0.0.1` unless given. */
  address?: string
  /** Speaks TLS with this certificate and key, both PEM. */
  tls?: { certificate: string; key: string }
  /** What it wants to see; nothing unless given. */
  auth?: 'none' | 'basic' | 'bearer'
  /** Who may have what. With `bearer` and no user at all, tokens are given to everybody. */
  user?: { username: string; password: string }
  /** The realm in its challenges; its own `/token` unless given. */
  realm?: string
  /** Seconds that a token lives; 300 unless given. */
  tokenLife?: number
  /** Tags on a page, at most. */
  pageSize?: number
  /** Whether it has the referrers API; true unless given. */
  hasReferrers?: boolean
}

interface Repository {
  readonly manifests: Map<string, { bytes: Buffer; mediaType: string }>
  readonly tags: Map<string, string>
  readonly blobs: Map<string, Buffer>
}

const ociManifest = 'application/vnd.oci.image.manifest.v1+json'
const ociIndex = 'application/vnd.oci.image.index.v1+json'

/** The sha256 digest of some bytes. */
export function digest(bytes: Buffer | string): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`
}

/** The registry. */
export class FakeUpstream {
  readonly #options: FakeUpstreamOptions
  readonly #server: http.Server
  readonly #repositories = new Map<string, Repository>()
  readonly #tokens = new Map<string, number>()
  readonly #sent = new Map<string, number>()
  readonly #sockets = new Set<Socket>()
  #address: AddressInfo | undefined
  #connections = 0

  /** Every request, in order; empty it with {@link forget}. */
  readonly requests: LoggedRequest[] = []
  /** Takes the place of each answer for which it gives a fault. */
  fault: (exchange: FakeExchange) => Fault | undefined = () => undefined

  constructor(options: FakeUpstreamOptions) {
    this.#options = options
    const answer: http.RequestListener = (request, response) => this.#answer(request, response)
    const { tls } = options
    this.#server =
      tls === undefined
        ? http.createServer(answer)
        : https.createServer({ cert: tls.certificate, key: tls.key }, answer)
    this.#server.on('connection', (socket: Socket) => {
      this.#connections++
      this.#sockets.add(socket)
      socket.on('error', () => undefined).once('close', () => this.#sockets.delete(socket))
    })
    this.#server.on('clientError', (_, socket) => socket.destroy()).on('tlsClientError', () => undefined)
  }

  get port(): number {
    if (this.#address === undefined) throw new Error('the fake upstream does not listen')
    return this.#address.port
  }

  /** `host:port`. */
  get host(): string {
    return `${this.#options.address ?? '127.0.0.1'}:${this.port}`
  }

  /** The registry's root, with the address as its host. */
  get url(): URL {
    return new URL(`${this.#options.tls === undefined ? 'http' : 'https'}://${this.host}`)
  }

  /** Connections that were made to it. */
  get connections(): number {
    return this.#connections
  }

  /** Connections that are open. */
  get openConnections(): number {
    return this.#sockets.size
  }

  /** Begins to listen; on the port that it had before, when it was stopped. */
  async start(): Promise<void> {
    this.#server.listen(this.#address?.port ?? 0, this.#options.address ?? '127.0.0.1')
    await once(this.#server, 'listening')
    const address = this.#server.address()
    if (address === null || typeof address === 'string') throw new Error('no port')
    this.#address = address
  }

  /** Refuses connections from now on, and breaks those that it has. */
  async stop(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy()
    if (!this.#server.listening) return
    this.#server.close()
    this.#server.closeAllConnections()
    await once(this.#server, 'close')
  }

  /** Puts a blob into a repository. @returns its digest */
  addBlob(repository: string, bytes: Buffer): string {
    this.#open(repository).blobs.set(digest(bytes), bytes)
    return digest(bytes)
  }

  /** Puts a manifest into a repository, with a tag if one is given. @returns its digest */
  addManifest(
    repository: string,
    tag: string | undefined,
    manifest: unknown,
    mediaType = ociManifest,
  ): string {
    const bytes = Buffer.isBuffer(manifest) ? manifest : Buffer.from(JSON.stringify(manifest))
    const { manifests, tags } = this.#open(repository)
    manifests.set(digest(bytes), { bytes, mediaType })
    if (tag !== undefined) tags.set(tag, digest(bytes))
    return digest(bytes)
  }

  /** Puts an image with these layers into a repository. @returns the digest of its manifest */
  addImage(repository: string, tag: string | undefined, layers: readonly Buffer[]): string {
    const config = Buffer.from(
      JSON.stringify({ architecture: 'amd64', os: 'linux', layers: layers.map(digest) }),
    )
    const describe = (bytes: Buffer, kind: string) => ({
      mediaType: `application/vnd.oci.image.${kind}`,
      digest: this.addBlob(repository, bytes),
      size: bytes.length,
    })
    return this.addManifest(repository, tag, {
      schemaVersion: 2,
      mediaType: ociManifest,
      config: describe(config, 'config.v1+json'),
      layers: layers.map((layer) => describe(layer, 'layer.v1.tar')),
    })
  }

  /** Takes a tag away. */
  removeTag(repository: string, tag: string): void {
    this.#open(repository).tags.delete(tag)
  }

  /** Bytes of this blob's body that were handed to connections. */
  blobBytesSent(blob: string): number {
    return this.#sent.get(blob) ?? 0
  }

  /** The requests whose method and path match. */
  asked(method: string, path: RegExp): readonly LoggedRequest[] {
    return this.requests.filter((request) => request.method === method && path.test(request.path))
  }

  /** Forgets requests, connections and bytes sent. */
  forget(): void {
    this.requests.length = 0
    this.#connections = 0
    this.#sent.clear()
  }

  #open(name: string): Repository {
    const known = this.#repositories.get(name)
    if (known !== undefined) return known
    const made: Repository = { manifests: new Map(), tags: new Map(), blobs: new Map() }
    this.#repositories.set(name, made)
    return made
  }

  #answer(request: http.IncomingMessage, response: http.ServerResponse): void {
    const { method = '', url: path = '', headers, socket } = request
    this.requests.push({ method, path, headers, at: Date.now() })
    response.on('error', () => undefined)
    const send = (reply: FakeReply) => {
      const length = { 'content-length': String(reply.body.length) }
      response.writeHead(reply.status, { ...length, ...reply.headers })
      response.end(method === 'HEAD' ? undefined : this.#count(path, reply.body))
    }
    const reply = this.#replyTo(method, path, headers)
    const exchange = { method, path, request, response, socket, reply, send }
    const fault = this.fault(exchange)
    if (fault === undefined) send(reply)
    else fault(exchange)
  }

  #count(path: string, body: Buffer): Buffer {
    const blob = /\/blobs\/(sha256:[0-9a-f]{64})$/.exec(path)?.[1]
    if (blob !== undefined) this.#sent.set(blob, this.blobBytesSent(blob) + body.length)
    return body
  }

  #replyTo(method: string, path: string, headers: http.IncomingHttpHeaders): FakeReply {
    const url = new URL(path, 'http://fake')
    if (url.pathname === '/token') return this.#token(url, headers.authorization)
    const match = /^\/v2\/(.+)\/(manifests|blobs|tags|referrers)\/([^/]+)$/.exec(url.pathname)
    if (match === null || (method !== 'GET' && method !== 'HEAD')) return refusal(404, 'UNSUPPORTED')
    const [, name = '', kind, reference = ''] = match
    const challenge = this.#challenge(name, headers.authorization)
    if (challenge !== undefined) return challenge
    const repository = this.#repositories.get(name)
    if (repository === undefined) return refusal(404, 'NAME_UNKNOWN')
    if (kind === 'manifests') return manifestReply(repository, reference)
    if (kind === 'blobs') return blobReply(repository, reference, headers.range)
    return kind === 'tags' ? this.#tags(name, repository, url) : this.#referrers(repository, reference)
  }

  #tags(name: string, { tags }: Repository, url: URL): FakeReply {
    const last = url.searchParams.get('last') ?? ''
    const wanted = Number(url.searchParams.get('n') ?? '1000')
    const size = Math.min(wanted, this.#options.pageSize ?? 1000)
    const rest = [...tags.keys()].sort().filter((tag) => tag > last)
    const page = rest.slice(0, size)
    const link = `</v2/${name}/tags/list?n=${wanted}&last=${page.at(-1)}>; rel="next"`
    return json({ name, tags: page }, rest.length > page.length ? { link } : {})
  }

  #referrers({ manifests }: Repository, subject: string): FakeReply {
    if (this.#options.hasReferrers === false) return refusal(404, 'NOT_FOUND')
    const entries = [...manifests].flatMap(([digest, { bytes, mediaType }]) => {
      const { subject: of, artifactType } = JSON.parse(bytes.toString())
      return of?.digest === subject ? [{ mediaType, digest, size: bytes.length, artifactType }] : []
    })
    return json({ schemaVersion: 2, mediaType: ociIndex, manifests: entries }, { 'content-type': ociIndex })
  }

  #challenge(name: string, authorization: string | undefined): FakeReply | undefined {
    const { auth = 'none', realm = `${this.url.origin}/token`, user } = this.#options
    if (auth === 'none') return undefined
    if (auth === 'basic') {
      if (authorization === basic(user)) return undefined
      return refusal(401, 'UNAUTHORIZED', { 'www-authenticate': 'Basic realm="fake"' })
    }
    const token = /^Bearer (.+)$/.exec(authorization ?? '')?.[1]
    if (token !== undefined && (this.#tokens.get(`${token} ${name}`) ?? 0) > Date.now()) return undefined
    const error = token === undefined ? '' : ',error="invalid_token"'
    const challenge = `Bearer realm="${realm}",service="fake",scope="repository:${name}:pull"${error}`
    return refusal(401, 'UNAUTHORIZED', { 'www-authenticate': challenge })
  }

  #token(url: URL, authorization: string | undefined): FakeReply {
    const { user, tokenLife = 300 } = this.#options
    if (user !== undefined && authorization !== basic(user)) return refusal(401, 'UNAUTHORIZED')
    const token = randomUUID()
    for (const scope of url.searchParams.getAll('scope')) {
      const name = /^repository:(.+):pull$/.exec(scope)?.[1]
      this.#tokens.set(`${token} ${name}`, Date.now() + tokenLife * 1000)
    }
    return json({ token, expires_in: tokenLife })
  }
}

/** Starts an upstream that is stopped when the test ends. */
export async function startFakeUpstream(t: Test, options: FakeUpstreamOptions = {}): Promise<FakeUpstream> {
  const upstream = new FakeUpstream(options)
  await upstream.start()
  t.teardown(() => upstream.stop())
  return upstream
}

/** A socket that nobody may ever connect to. */
export interface Trap {
  readonly port: number
  /** `host:port`. */
  readonly host: string
  readonly connections: () => number
  /** Everything that was sent to it. */
  readonly received: () => string
}

/** Listens on an address, takes everything and answers nothing. The port is a free one unless given. */
export async function startTrap(t: Test, address = '127.0.0.66', wanted = 0): Promise<Trap> {
  const sockets = new Set<Socket>()
  let connections = 0
  let received = ''
  const server = createServer((socket) => {
    connections++
    sockets.add(socket)
    socket
      .on('error', () => undefined)
      .on('data', (bytes) => {
        received += bytes.toString('latin1')
      })
  })
  server.listen(wanted, address)
  await once(server, 'listening')
  t.teardown(async () => {
    for (const socket of sockets) socket.destroy()
    server.close()
    await once(server, 'close')
  })
  const { port } = server.address() as AddressInfo
  return { port, host: `${address}:${port}`, connections: () => connections, received: () => received }
}

function manifestReply({ manifests, tags }: Repository, reference: string): FakeReply {
  const name = reference.includes(':') ? reference : (tags.get(reference) ?? '')
  const found = manifests.get(name)
  if (found === undefined) return refusal(404, 'MANIFEST_UNKNOWN')
  const headers = { 'content-type': found.mediaType, 'docker-content-digest': name }
  return { status: 200, headers, body: found.bytes }
}

function blobReply({ blobs }: Repository, name: string, range: string | undefined): FakeReply {
  const body = blobs.get(name)
  if (body === undefined) return refusal(404, 'BLOB_UNKNOWN')
  const headers = { 'content-type': 'application/octet-stream', 'docker-content-digest': name }
  const first = Number(/^bytes=(\d+)-$/.exec(range ?? '')?.[1] ?? '0')
  if (range === undefined) return { status: 200, headers, body }
  const part = { ...headers, 'content-range': `bytes ${first}-${body.length - 1}/${body.length}` }
  return { status: 206, headers: part, body: body.subarray(first) }
}

function json(value: unknown, headers: Record<string, string> = {}): FakeReply {
  const body = Buffer.from(JSON.stringify(value))
  return { status: 200, headers: { 'content-type': 'application/json', ...headers }, body }
}

function refusal(status: number, code: string, headers: Record<string, string> = {}): FakeReply {
  return { ...json({ errors: [{ code, message: code }] }, headers), status }
}

function basic(user: FakeUpstreamOptions['user']): string {
  return `Basic ${Buffer.from(`${user?.username}:${user?.password}`).toString('base64')}`
}
