import { type ChildProcess, spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs'
import * as http from 'node:http'
import * as https from 'node:https'
import { connect, type Socket } from 'node:net'
import { basename, dirname, join } from 'node:path'
import * as tls from 'node:tls'
import { fileURLToPath } from 'node:url'
import type { Test } from 'tap'
import { stringify } from 'yaml'
import { failOnWarnings } from './warnings.js'

// ---------------------------------------------------------------------------------------------
// Waiting
// ---------------------------------------------------------------------------------------------

/**
 * Calls `probe` until it gives a value other than `undefined`, `null` or `false`, and gives that value back.
 * Throws when `within` milliseconds have passed, naming `what` and the last error seen.
 */
export async function eventually<T>(
  what: string,
  probe: () => T | undefined | null | false | Promise<T | undefined | null | false>,
  within = 30_000,
): Promise<T> {
  const deadline = Date.now() + within
  let last: unknown
  for (;;) {
    try {
      const value = await probe()
      if (value !== undefined && value !== null && value !== false) return value
    } catch (error) {
      last = error
    }
    if (Date.now() > deadline) throw new Error(`${what}: not within ${within} ms${last ? ` (${last})` : ''}`)
    await pause(15)
  }
}

/** A turn of the clock, for tests whose subject is time itself and for the steps of `eventually`. */
export function pause(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds))
}

/** Rejects with a sentence naming `what` when `promise` has not settled within `milliseconds`. */
export function within<T>(milliseconds: number, what: string, promise: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`${what}: not within ${milliseconds} ms`)), milliseconds)
    promise.then(resolve, reject).finally(() => clearTimeout(timer))
  })
}

// ---------------------------------------------------------------------------------------------
// Folders
// ---------------------------------------------------------------------------------------------

const scratchDirs = new WeakMap<Test, string>()
const counters = new WeakMap<Test, number>()

/** The test's own empty folder, removed after its teardowns have run. The same one at each call. */
export function scratchDir(t: Test): string {
  const known = scratchDirs.get(t)
  if (known !== undefined) return known
  // A teardown has to be known to tap before the folder is, or the folder would be removed first.
  t.teardown(() => undefined)
  const name = basename(t.testdirName)
  if (name.length > 70) {
    const short = createHash('sha256').update(name).digest('hex').slice(0, 10)
    t.testdirName = join(dirname(t.testdirName), `${name.slice(0, 50)}-${short}`)
  }
  const made = t.testdir()
  scratchDirs.set(t, made)
  return made
}

function nextNumber(t: Test): number {
  const number = (counters.get(t) ?? 0) + 1
  counters.set(t, number)
  return number
}

/** All files below `folder`, as sorted paths relative to it; empty when there is no such folder. */
export function filesBelow(folder: string): string[] {
  if (!existsSync(folder)) return []
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(folder.length + 1))
    .sort()
}

// ---------------------------------------------------------------------------------------------
// The server under test
// ---------------------------------------------------------------------------------------------

const mainScript = fileURLToPath(new URL('../src/main.js', import.meta.url))
const living = new Set<ChildProcess>()
const started: Server[] = []
process.on('exit', () => {
  for (const child of living) killGroup(child, 'SIGKILL')
})

function killGroup(child: ChildProcess, signal: NodeJS.Signals): void {
  if (child.pid === undefined) return
  try {
    process.kill(-child.pid, signal)
  } catch {
    // The group is gone already.
  }
}

export interface Exit {
  code: number | null
  signal: NodeJS.Signals | null
}

export interface ServerOptions {
  /** Further command-line words, after the harness's own. */
  args?: string[]
  /** Environment variables of the server, on top of PATH, HOME and TMPDIR. */
  env?: Record<string, string>
  /** Settings, written as the YAML configuration file. `workers` is 1 unless given, and `disk.reserve` 0B. */
  config?: Record<string, unknown>
  /** The data folder; a new one in the test's own folder unless given. */
  data?: string
  /** Listen on this port instead of a free one. */
  port?: number
  /** The wrapper to run node under, for example a `bash -c 'ulimit …; exec "$@"'` line. */
  under?: string[]
}

/** A running server and a client of it. */
export interface Server {
  url: string
  host: string
  port: number
  pid: number
  data: string
  /** The lines of standard output so far. */
  stdout: () => string[]
  /** Standard error so far: the log. */
  stderr: () => string
  /** The log's JSON lines so far, in order. */
  logs: () => Record<string, unknown>[]
  /** How the process ended, once it has. */
  exited: Promise<Exit>
  /** SIGTERM, then the wait for the exit. */
  stop: () => Promise<Exit>
  /** SIGKILL of the process and all its workers, then the wait for the exit. */
  kill: () => Promise<Exit>
  /** Sends one request; see `RequestOptions`. */
  request: (method: string, path: string, options?: RequestOptions) => Promise<Reply>
  /** What raw connections send as `Authorization`, unless they are told another. */
  authorization?: string
  /** Every broken rule that the checks made on each reply have found, one sentence each. */
  faults: string[]
}

const loopWatch = new URL('./loop-watch.js', import.meta.url)
const stalls: string[] = []
process.on('exit', () => {
  if (stalls.length === 0) return
  process.stderr.write(`# the event loop of a server stood still (S98)\n${stalls.join('')}`)
  process.exitCode = 1
})

/** What makes a server write down where its event loop stood still; that fails the test file when it ends. */
function watchTheLoop(stallFile: string): Record<string, string> {
  return { NODE_OPTIONS: `--import=${loopWatch.href}`, LOOP_WATCH: stallFile }
}

/** The command line of the server as a list. */
function serverCommand(...args: string[]): string[] {
  return [process.execPath, mainScript, ...args]
}

/** The environment that spawned servers get: nothing of the test runner's own. */
function serverEnv(extra: Record<string, string> = {}): Record<string, string> {
  const kept: Record<string, string> = {}
  for (const name of ['PATH', 'HOME', 'TMPDIR', 'LANG']) {
    const value = process.env[name]
    if (value !== undefined) kept[name] = value
  }
  return { ...kept, ...extra }
}

/** Runs the command line to its end and gives what it printed and its exit code. */
export async function runServerCommand(
  args: string[],
  env: Record<string, string> = {},
): Promise<{ code: number | null; stdout: string; stderr: string }> {
  const [command = '', ...words] = serverCommand(...args)
  const child = spawn(command, words, {
    env: serverEnv(env),
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true,
  })
  living.add(child)
  let stdout = ''
  let stderr = ''
  child.stdout?.on('data', (chunk: Buffer) => {
    stdout += chunk
  })
  child.stderr?.on('data', (chunk: Buffer) => {
    stderr += chunk
  })
  const timer = setTimeout(() => killGroup(child, 'SIGKILL'), 60_000)
  const code = await new Promise<number | null>((resolve) => child.on('close', resolve))
  clearTimeout(timer)
  living.delete(child)
  failOnWarnings(stderr)
  return { code, stdout, stderr }
}

/**
 * Starts a server for `t` and waits until it says that it is ready; it is stopped when `t` ends.
 * Throws with the server's own words when it ends before that.
 */
export async function startServer(t: Test, options: ServerOptions = {}): Promise<Server> {
  const external = process.env.TEST_REGISTRY
  if (external !== undefined) return externalServer(external, scratchDir(t))

  const scratch = scratchDir(t)
  const number = nextNumber(t)
  const data = options.data ?? join(scratch, `data-${number}`)
  const configFile = join(scratch, `config-${number}.yaml`)
  const base = { workers: 1, disk: { reserve: '0B' } } // dozens of servers would write a reserve each
  writeFileSync(configFile, stringify({ ...base, ...options.config }))
  const words = [
    ...(options.under ?? []),
    ...serverCommand('serve', '--config', configFile),
    ...['--listen', `127.0.0.1:${options.port ?? 0}`, '--data', data, ...(options.args ?? [])],
  ]
  const [command = '', ...rest] = words
  const stallFile = join(scratch, `stalls-${number}`)
  const child = spawn(command, rest, {
    env: serverEnv({ ...watchTheLoop(stallFile), ...options.env }),
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true,
  })
  living.add(child)

  const out: Buffer[] = []
  const err: Buffer[] = []
  child.stdout?.on('data', (chunk: Buffer) => out.push(chunk))
  child.stderr?.on('data', (chunk: Buffer) => err.push(chunk))
  const stderr = () => Buffer.concat(err).toString()
  const stdout = () => Buffer.concat(out).toString().split('\n').slice(0, -1)
  const exited = new Promise<Exit>((resolve) => {
    child.on('close', (code, signal) => {
      living.delete(child)
      failOnWarnings(stderr())
      resolve({ code, signal })
    })
  })
  t.teardown(async () => {
    killGroup(child, 'SIGKILL')
    await exited
    if (existsSync(stallFile)) stalls.push(`${t.fullname}:\n${readFileSync(stallFile, 'utf8')}`)
  })

  let ended: Exit | undefined
  exited.then((exit) => {
    ended = exit
  })
  const listening = await eventually(
    'the server says that it listens',
    () => {
      if (ended) return new Error(`the server ended (${JSON.stringify(ended)}): ${stderr()}`)
      return stdout().length >= 3 && /listening on (https?):\/\/([^/]+):(\d+)/.exec(stdout().join('\n'))
    },
    180_000,
  ).catch((error: Error) => new Error(`${error.message}: ${stderr()}`))
  if (listening instanceof Error) throw listening

  const [, scheme = 'http', host = '', port = ''] = listening
  const faults: string[] = []
  const server: Server = {
    url: `${scheme}://${host}:${port}`,
    host,
    port: Number(port),
    pid: child.pid ?? 0,
    data,
    stdout,
    stderr,
    logs: () =>
      stderr()
        .split('\n')
        .filter((line) => line.startsWith('{'))
        .map((line) => JSON.parse(line) as Record<string, unknown>),
    exited,
    stop: () => {
      child.kill('SIGTERM')
      return exited
    },
    kill: () => {
      killGroup(child, 'SIGKILL')
      return exited
    },
    request: client(`${scheme}://${host}:${port}`, data, faults),
    faults,
  }
  started.push(server)
  return server
}

/** A server that runs already, at TEST_REGISTRY: for trying the tests themselves on another registry. */
function externalServer(address: string, data: string): Server {
  const [host = '127.0.0.1', port = '5000'] = address.split(':')
  const gone = Promise.resolve<Exit>({ code: 0, signal: null })
  mkdirSync(data, { recursive: true })
  const faults: string[] = []
  return {
    url: `http://${address}`,
    host,
    port: Number(port),
    pid: process.pid,
    data,
    stdout: () => [],
    stderr: () => '',
    logs: () => [],
    exited: gone,
    stop: () => gone,
    kill: () => gone,
    request: client(`http://${address}`, data, faults),
    faults,
  }
}

/**
 * The last test of a file: no reply that the file received, from whichever server, broke a rule that every
 * reply must keep.
 */
export function everyReplyKeptTheRules(t: Test): void {
  t.test(
    'G-08, G-09, G-10, G-11, G-12, G-13, G-22, E-01, E-03, T-61: every reply seen here kept the common rules',
    async (t) => {
      t.ok(started.length > 0, 'replies were seen')
      for (const server of started) t.same([...new Set(server.faults)].slice(0, 20), [])
    },
  )
}

// ---------------------------------------------------------------------------------------------
// HTTP
// ---------------------------------------------------------------------------------------------

export interface RequestOptions {
  headers?: Record<string, string | string[]>
  body?: Buffer | string
  /** Send the body by chunked transfer, without a length. */
  chunked?: boolean
  /** Milliseconds without a sign of the answer after which it is given up; 20,000 unless given. */
  timeout?: number
  /** A connection of its own, closed afterwards. */
  fresh?: boolean
  agent?: http.Agent
  /** Do not hold the reply against the rules for every reply. */
  unchecked?: boolean
  /** TLS: the certificate to trust. */
  ca?: string | Buffer
}

export interface ErrorEntry {
  code: string
  message: string
  detail?: unknown
}

export interface Reply {
  method: string
  path: string
  status: number
  headers: http.IncomingHttpHeaders
  rawHeaders: string[]
  body: Buffer
  text: string
  /** The header's value, or '' when it is absent. */
  header: (name: string) => string
  /** The body read as JSON. */
  json: <T = unknown>() => T
  /** The entries of `errors[]`; empty when the body is not of that shape. */
  errors: ErrorEntry[]
  /** The first error's code, or ''. */
  code: string
}

const keepAlive = new http.Agent({ keepAlive: true, maxSockets: 64 })
const keepAliveTls = new https.Agent({ keepAlive: true, maxSockets: 64, rejectUnauthorized: false })

/** Closes the connections that the client keeps open, so that they are not taken for something of a test's. */
export function closeKeptConnections(): void {
  keepAlive.destroy()
  keepAliveTls.destroy()
}

function client(origin: string, data: string, faults: string[]) {
  return async (method: string, path: string, options: RequestOptions = {}): Promise<Reply> => {
    const reply = await send(origin, method, path, options)
    if (!options.unchecked)
      for (const fault of commonFaults(reply, data)) faults.push(`${method} ${path}: ${fault}`)
    return reply
  }
}

/** Sends one request as written: nothing is followed, normalised or decoded. */
export function send(
  origin: string,
  method: string,
  path: string,
  options: RequestOptions = {},
): Promise<Reply> {
  const tls = origin.startsWith('https:')
  const { hostname, port } = new URL(origin)
  const body = typeof options.body === 'string' ? Buffer.from(options.body) : options.body
  const headers: Record<string, string | string[]> = { ...options.headers }
  const names = Object.keys(headers).map((name) => name.toLowerCase())
  if (options.chunked) headers['Transfer-Encoding'] = 'chunked'
  else if (body !== undefined && !names.includes('content-length'))
    headers['Content-Length'] = String(body.length)
  const agent = options.fresh ? false : (options.agent ?? (tls ? keepAliveTls : keepAlive))
  const settings: https.RequestOptions = { hostname, port, method, path, headers, agent }
  if (tls && options.ca !== undefined) settings.ca = options.ca
  else if (tls) settings.rejectUnauthorized = false

  return new Promise((resolve, reject) => {
    const request = (tls ? https : http).request(settings, (response) => {
      const chunks: Buffer[] = []
      response.on('data', (chunk: Buffer) => chunks.push(chunk))
      response.on('error', reject)
      response.on('end', () => {
        const { statusCode, rawHeaders } = response
        resolve(makeReply(method, path, statusCode ?? 0, response.headers, rawHeaders, Buffer.concat(chunks)))
      })
    })
    const patience = options.timeout ?? 60_000
    request.setTimeout(patience, () => {
      request.destroy(new Error(`${method} ${path}: no answer in ${patience} ms`))
    })
    // An answer may come before the body has been sent whole; it settles the promise first then.
    request.on('error', reject)
    if (body !== undefined) request.write(body)
    request.end()
  })
}

function makeReply(
  method: string,
  path: string,
  status: number,
  headers: http.IncomingHttpHeaders,
  rawHeaders: string[],
  body: Buffer,
): Reply {
  const text = body.toString()
  let errors: ErrorEntry[] = []
  try {
    const parsed = JSON.parse(text) as { errors?: ErrorEntry[] } | null
    if (parsed !== null && Array.isArray(parsed.errors)) errors = parsed.errors
  } catch {
    // Not JSON, so there are no error entries in it.
  }
  return {
    method,
    path,
    status,
    headers,
    rawHeaders,
    body,
    text,
    header: (name) => {
      const value = headers[name.toLowerCase()]
      return Array.isArray(value) ? value.join(', ') : (value ?? '')
    },
    json: <T>() => JSON.parse(text) as T,
    errors,
    code: errors[0]?.code ?? '',
  }
}

/** What is wrong with a reply by the rules that hold for every reply below /v2/. */
function commonFaults(reply: Reply, data = ''): string[] {
  if (!/^\/v2(\/|$|\?)/.test(reply.path)) return []
  const faults: string[] = []
  const bodiless = reply.method === 'HEAD' || reply.status === 204 || reply.status === 304
  if (reply.status >= 500 && reply.code !== 'STORAGE_FULL') faults.push(`${reply.status} ${reply.text}`)
  if (reply.header('docker-distribution-api-version') !== 'registry/2.0')
    faults.push('G-08: no Docker-Distribution-API-Version')
  if (reply.headers.date === undefined) faults.push('G-22: no Date')
  if (reply.headers['content-encoding'] !== undefined) faults.push('G-12: Content-Encoding')
  if (reply.header('x-content-type-options') !== 'nosniff') faults.push('G-13: no nosniff')
  if (/html/i.test(reply.header('content-type'))) faults.push('G-13: served as HTML')
  if (bodiless && reply.body.length > 0) faults.push('G-10: a body where there is none')
  if (reply.headers['transfer-encoding'] !== undefined) faults.push('G-11: Transfer-Encoding')
  if (reply.status !== 204 && reply.status !== 304 && reply.headers['content-length'] === undefined)
    faults.push('G-11: no Content-Length')
  if (!bodiless && reply.status >= 400) faults.push(...errorFaults(reply))
  if (data !== '' && reply.body.length < 10_000 && reply.text.includes(data))
    faults.push('E-03: the body names the data folder')
  return faults
}

function errorFaults(reply: Reply): string[] {
  const faults: string[] = []
  const type = reply.header('content-type').split(';')[0]
  if (type !== 'application/json') faults.push(`G-09: an error of type ${type}`)
  if (reply.body.length > 8192) faults.push('G-09: an error body over 8 KiB')
  if (reply.errors.length === 0) faults.push(`G-09: no errors[]: ${reply.text.slice(0, 200)}`)
  if (/"details"/.test(reply.text)) faults.push('G-09: a "details" member')
  for (const { code, message } of reply.errors) {
    if (!/^[A-Z][A-Z0-9_]*$/.test(code)) faults.push(`G-09: the code ${code}`)
    if (typeof message !== 'string' || !/^[^\r\n]+$/.test(message))
      faults.push(`G-09: the message ${message}`)
  }
  return faults
}

/** Asserts an error reply: its status, its first code, and the shape that every error has. */
export function isError(t: Test, reply: Reply, status: number, code: string, what = ''): void {
  const label = what === '' ? `${reply.method} ${reply.path.slice(0, 150)}` : what
  t.equal(reply.status, status, `${label}: status ${status} (${reply.text.slice(0, 300)})`)
  if (reply.method === 'HEAD') return
  t.equal(reply.code, code, `${label}: code ${code} (${reply.text.slice(0, 300)})`)
  t.same(errorFaults(reply), [], `${label}: the shape of an error`)
}

// ---------------------------------------------------------------------------------------------
// Raw sockets
// ---------------------------------------------------------------------------------------------

export interface RawReply {
  status: number
  head: string
  headers: Record<string, string>
  body: string
}

/** A TCP connection that sends bytes exactly as told and takes the replies apart. */
export class RawConnection {
  readonly socket: Socket
  readonly closed: Promise<void>
  isClosed = false
  /** Bytes received so far. */
  receivedBytes = 0
  #received: Buffer[] = []
  readonly #authorization: string | undefined

  private constructor(socket: Socket, authorization: string | undefined) {
    this.socket = socket
    this.#authorization = authorization
    socket.on('data', (chunk) => {
      this.#received.push(chunk)
      this.receivedBytes += chunk.length
    })
    socket.on('error', () => undefined)
    this.closed = new Promise((resolve) => {
      socket.on('close', () => {
        this.isClosed = true
        resolve()
      })
    })
  }

  /** With TLS where the server's address says https; whose certificate it is does not matter. */
  static open(server: {
    host: string
    port: number
    url?: string
    authorization?: string
  }): Promise<RawConnection> {
    const { host, port, authorization } = server
    const isTls = server.url?.startsWith('https:') === true
    return new Promise((resolve, reject) => {
      const socket = isTls ? tls.connect({ host, port, rejectUnauthorized: false }) : connect(port, host)
      socket.once('error', reject)
      socket.once(isTls ? 'secureConnect' : 'connect', () =>
        resolve(new RawConnection(socket, authorization)),
      )
    })
  }

  /** Settles when the bytes have been handed to the system, or the connection is gone. */
  send(data: string | Buffer): Promise<void> {
    // Writes to a connection that is going would be answered at once, and starve the news of its end.
    if (this.socket.destroyed || !this.socket.writable) return this.closed
    return Promise.race([
      this.closed,
      new Promise<void>((resolve) => this.socket.write(data, () => resolve())),
    ])
  }

  /** Sends a request line, headers (a Host and what the server asks of logins among them unless given) and a body. */
  request(line: string, headers: string[] = [], body: string | Buffer = ''): Promise<void> {
    const host = headers.some((header) => /^host:/i.test(header)) ? [] : ['Host: localhost']
    const given = headers.some((header) => /^authorization:/i.test(header))
    const login = given || this.#authorization === undefined ? [] : [`Authorization: ${this.#authorization}`]
    const head = [`${line} HTTP/1.1`, ...host, ...login, ...headers, '', ''].join('\r\n')
    return this.send(Buffer.concat([Buffer.from(head), Buffer.from(body)]))
  }

  get text(): string {
    return Buffer.concat(this.#received).toString('latin1')
  }

  /** The complete replies received so far. `bodiless` says that they answer HEAD requests. */
  replies(bodiless = false): RawReply[] {
    return parseReplies(this.text, bodiless)
  }

  /** Waits until `count` complete replies are there (or the other side has closed). */
  waitForReplies(count: number, { bodiless = false, within = 30_000 } = {}): Promise<RawReply[]> {
    return eventually(
      `${count} replies on a raw connection`,
      () => {
        const replies = this.replies(bodiless)
        return (replies.length >= count || this.isClosed) && replies
      },
      within,
    )
  }

  /** The next reply when `count` have been seen already; throws if the connection closes without one. */
  async reply(seen = 0): Promise<RawReply> {
    const reply = (await this.waitForReplies(seen + 1))[seen]
    if (reply === undefined) throw new Error(`the connection closed without reply: ${this.text.slice(-200)}`)
    return reply
  }

  /** Ends the connection at once with a reset, as a client that died does. */
  abort(): Promise<void> {
    if (this.socket instanceof tls.TLSSocket) this.socket.destroy()
    else this.socket.resetAndDestroy()
    return this.closed
  }

  /** Closes the connection. */
  close(): Promise<void> {
    this.socket.destroy()
    return this.closed
  }
}

function parseReplies(text: string, bodiless: boolean): RawReply[] {
  const replies: RawReply[] = []
  let rest = text
  for (;;) {
    const end = rest.indexOf('\r\n\r\n')
    if (!rest.startsWith('HTTP/1.') || end < 0) return replies
    const head = rest.slice(0, end)
    const headers: Record<string, string> = {}
    for (const line of head.split('\r\n').slice(1)) {
      const colon = line.indexOf(':')
      headers[line.slice(0, colon).toLowerCase()] = line.slice(colon + 1).trim()
    }
    const status = Number(head.slice(9, 12))
    const empty = bodiless || status < 200 || status === 204 || status === 304
    const length = empty ? 0 : Number(headers['content-length'] ?? 0)
    if (rest.length < end + 4 + length) return replies
    replies.push({ status, head, headers, body: rest.slice(end + 4, end + 4 + length) })
    rest = rest.slice(end + 4 + length)
  }
}

// ---------------------------------------------------------------------------------------------
// Content
// ---------------------------------------------------------------------------------------------

export const OCI_MANIFEST = 'application/vnd.oci.image.manifest.v1+json'
export const OCI_INDEX = 'application/vnd.oci.image.index.v1+json'
export const DOCKER_MANIFEST = 'application/vnd.docker.distribution.manifest.v2+json'
export const DOCKER_LIST = 'application/vnd.docker.distribution.manifest.list.v2+json'
export const OCI_CONFIG = 'application/vnd.oci.image.config.v1+json'
export const OCI_LAYER = 'application/vnd.oci.image.layer.v1.tar+gzip'
export const OCI_EMPTY = 'application/vnd.oci.empty.v1+json'
export const OCTETS = 'application/octet-stream'
export const UUID = /[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}/

/** The sha256 digest of some bytes, written as the protocol writes it. */
export function sha256(bytes: Buffer | string): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`
}

/** The sha512 digest of some bytes. */
export function sha512(bytes: Buffer | string): string {
  return `sha512:${createHash('sha512').update(bytes).digest('hex')}`
}

/** A well-formed digest of nothing that is stored anywhere. */
export function randomDigest(): string {
  return sha256(randomBytes(32))
}

export interface Descriptor {
  mediaType: string
  digest: string
  size: number
  [member: string]: unknown
}

export interface Content {
  bytes: Buffer
  digest: string
  size: number
  mediaType: string
}

/** A blob of the given content. */
export function blob(content: Buffer | string, mediaType = OCI_LAYER): Content {
  const bytes = Buffer.from(content)
  return { bytes, digest: sha256(bytes), size: bytes.length, mediaType }
}

/** A blob of random bytes that no other test has. */
export function randomBlob(size = 1024, mediaType = OCI_LAYER): Content {
  return blob(randomBytes(size), mediaType)
}

/** The descriptor of a blob or manifest, with further members if given. */
export function descriptor(content: Content, extra: Record<string, unknown> = {}): Descriptor {
  return { mediaType: content.mediaType, digest: content.digest, size: content.size, ...extra }
}

export const EMPTY_JSON = blob('{}', OCI_EMPTY)

export interface Manifest extends Content {
  /** The blobs it needs, to be pushed before it. */
  parts: Content[]
  digest512: string
}

/** A manifest from a JSON value or from its exact text. */
export function manifestOf(body: unknown, mediaType = OCI_MANIFEST, parts: Content[] = []): Manifest {
  const bytes = Buffer.isBuffer(body)
    ? body
    : Buffer.from(typeof body === 'string' ? body : JSON.stringify(body))
  return {
    bytes,
    digest: sha256(bytes),
    digest512: sha512(bytes),
    size: bytes.length,
    mediaType,
    parts,
  }
}

export interface ImageOptions {
  config?: Content
  layers?: Content[]
  mediaType?: string
  /** Further members of the manifest: annotations, subject, artifactType … */
  extra?: Record<string, unknown>
}

/** An image manifest with one config and (unless given) two small layers, all of them new. */
export function image(options: ImageOptions = {}): Manifest {
  const config =
    options.config ??
    blob(
      JSON.stringify({ architecture: 'amd64', os: 'linux', id: randomBytes(8).toString('hex') }),
      OCI_CONFIG,
    )
  const layers = options.layers ?? [randomBlob(300), randomBlob(500)]
  const mediaType = options.mediaType ?? OCI_MANIFEST
  const body = {
    schemaVersion: 2,
    mediaType,
    config: descriptor(config),
    layers: layers.map((layer) => descriptor(layer)),
    ...options.extra,
  }
  return manifestOf(body, mediaType, [config, ...layers])
}

/** An artifact: the empty config, one layer and what `extra` says. */
export function artifact(extra: Record<string, unknown>, layer: Content = randomBlob(40)): Manifest {
  return image({ config: EMPTY_JSON, layers: [layer], extra })
}

/** An index over `children`. */
export function index(
  children: Content[],
  { mediaType = OCI_INDEX, extra = {} }: { mediaType?: string; extra?: Record<string, unknown> } = {},
): Manifest {
  const manifests = children.map((child, n) =>
    descriptor(child, { platform: { os: 'linux', architecture: `arch${n}` } }),
  )
  return manifestOf({ schemaVersion: 2, mediaType, manifests, ...extra }, mediaType)
}

let repositories = 0

/** A repository name that no other test of this process uses. */
export function newRepository(label = 'repo'): string {
  repositories += 1
  return `${label}/r${repositories}`
}

function insist(reply: Reply, ...statuses: number[]): Reply {
  if (statuses.includes(reply.status)) return reply
  throw new Error(`${reply.method} ${reply.path}: ${reply.status} ${reply.text.slice(0, 500)}`)
}

/** Pushes blobs in one request each; throws if one is refused. */
export async function pushBlobs(server: Server, repository: string, ...blobs: Content[]): Promise<void> {
  for (const { digest, bytes } of blobs) {
    const path = `/v2/${repository}/blobs/uploads/`
    const reply = insist(
      await server.request('POST', `${path}?digest=${digest}`, {
        body: bytes,
        headers: { 'Content-Type': OCTETS },
      }),
      201,
      202,
    )
    if (reply.status === 202) await finishUpload(server, reply.header('location'), digest, bytes)
  }
}

/** Opens an upload session and gives its location; throws if it is refused. */
export async function openUpload(server: Server, repository: string, query = ''): Promise<string> {
  const reply = insist(await server.request('POST', `/v2/${repository}/blobs/uploads/${query}`), 202)
  return reply.header('location')
}

/** Closes an upload with `body` as its last bytes; throws unless the blob was made. */
export async function finishUpload(
  server: Server,
  location: string,
  digest: string,
  body: Buffer = Buffer.alloc(0),
): Promise<Reply> {
  return insist(await server.request('PUT', withQuery(location, `digest=${digest}`), { body }), 201)
}

/**
 * Goes on with an upload as a client does that lost its connection: asks where it stands, sends the rest, and
 * closes it. A request that is still being put away may move that place once more; the refusal says so then.
 */
export async function resumeUpload(server: Server, location: string, content: Content): Promise<Reply> {
  const storedOf = (reply: Reply) => {
    const last = Number(/^0-(\d+)$/.exec(reply.header('range'))?.[1])
    return last === 0 ? 0 : last + 1 // one byte and none look alike: the offset is found out by a refusal then
  }
  let stored = storedOf(insist(await server.request('GET', location), 204))
  for (let tries = 0; stored < content.size && tries < 5; tries++) {
    const reply = await server.request('PATCH', location, {
      headers: { 'Content-Range': `${stored}-${content.size - 1}` },
      body: content.bytes.subarray(stored),
    })
    stored = storedOf(insist(reply, 202, 416))
  }
  return finishUpload(server, location, content.digest)
}

/** Puts a manifest, whatever the answer is. */
export function putManifest(
  server: Server,
  repository: string,
  reference: string,
  manifest: Manifest,
  headers: Record<string, string> = { 'Content-Type': manifest.mediaType },
): Promise<Reply> {
  return server.request('PUT', `/v2/${repository}/manifests/${reference}`, { headers, body: manifest.bytes })
}

/** Pushes the manifest's blobs and the manifest itself by `reference`; throws if anything is refused. */
export async function push(
  server: Server,
  repository: string,
  reference: string,
  manifest: Manifest,
): Promise<Reply> {
  await pushBlobs(server, repository, ...manifest.parts)
  return insist(await putManifest(server, repository, reference, manifest), 201)
}

/** Adds a parameter to a Location, which may have a query already. */
export function withQuery(location: string, query: string): string {
  return `${location}${location.includes('?') ? '&' : '?'}${query}`
}

/** The tags of a repository, or undefined when it is unknown. */
export async function tagsOf(server: Server, repository: string): Promise<string[] | undefined> {
  const reply = await server.request('GET', `/v2/${repository}/tags/list`)
  return reply.status === 200 ? reply.json<{ tags: string[] }>().tags : undefined
}

/** The path of the `rel="next"` link, or undefined when there is none. */
export function nextLink(reply: Reply): string | undefined {
  return /<([^>]+)>\s*;\s*rel="next"/.exec(reply.header('link'))?.[1]
}

/** The process ids of a process and all its descendants. */
export function processTree(pid: number): number[] {
  return [pid, ...childrenOf(pid).flatMap(processTree)]
}

/** The children of all threads of a process; none of what ends while it is looked at. */
function childrenOf(pid: number): number[] {
  try {
    const tasks = readdirSync(`/proc/${pid}/task`)
    return tasks.flatMap((task) => childrenOfTask(`/proc/${pid}/task/${task}`))
  } catch {
    return []
  }
}

function childrenOfTask(folder: string): number[] {
  try {
    return readFileSync(join(folder, 'children'), 'utf8').split(' ').filter(Boolean).map(Number)
  } catch {
    return []
  }
}

/** The blob files that a process and its descendants have open. */
export function openBlobFiles(pid: number): string[] {
  return openDescriptors(pid).filter((target) => /\/blobs\/sha\d+\/..\/[0-9a-f]{64,}/.test(target))
}

/** What the open descriptors of a process and its descendants point at. */
export function openDescriptors(pid: number): string[] {
  return processTree(pid).flatMap((id) =>
    readdirSync(`/proc/${id}/fd`).flatMap((fd) => {
      try {
        return [readlinkSync(`/proc/${id}/fd/${fd}`)]
      } catch {
        return [] // closed between the listing and the look
      }
    }),
  )
}
