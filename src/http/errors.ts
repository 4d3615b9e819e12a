import { type IncomingMessage, type OutgoingHttpHeaders, type ServerResponse, STATUS_CODES } from 'node:http'
import type { Duplex } from 'node:stream'
import { ChallengeError } from '../auth/access.js'
import { type ErrorEntry, type ErrorKind, RegistryError, UploadRangeError } from '../oci/errors.js'
import { send, standardHeaders } from './exchange.js'
import { uploadHeaders } from './upload-headers.js'

/**
 * The one place where an error becomes a reply: `errors[]` as JSON, below and outside of `/v2/` alike
 * (protocol G-09).
 * @param challenge writes the header that goes with a 401
 * @returns the refusal that was sent, for the log
 */
export function replyError(
  request: IncomingMessage,
  response: ServerResponse,
  error: unknown,
  challenge: (error: ChallengeError) => string,
): RegistryError {
  const refusal = toRegistryError(error)
  if (response.headersSent) {
    // Half a reply is out: only a broken connection tells the client that it is not whole.
    request.socket.destroy()
    return refusal
  }
  const body = errorBody(refusal.entries)
  // Docker shows the body of no 5xx, but the words of the status line: they must say what is wrong.
  if (isForPeople(refusal.kind)) response.statusMessage = statusLineOf(refusal.message)
  send(
    request,
    response,
    refusal.status,
    {
      ...headersOf(refusal, challenge),
      'Content-Type': 'application/json',
      'Content-Length': body.byteLength,
    },
    request.method === 'HEAD' ? undefined : body,
  )
  return refusal
}

function isForPeople(kind: ErrorKind): boolean {
  return kind.startsWith('UPSTREAM_') || kind === 'BLOB_DAMAGED' || kind === 'STORAGE_FULL'
}

function statusLineOf(message: string): string {
  return message.replaceAll(/[^ -~]+/g, ' ').slice(0, 200)
}

function toRegistryError(error: unknown): RegistryError {
  if (error instanceof RegistryError) return error
  return new RegistryError('UNKNOWN', undefined, { cause: error })
}

function headersOf(
  refusal: RegistryError,
  challenge: (error: ChallengeError) => string,
): OutgoingHttpHeaders {
  const headers: OutgoingHttpHeaders = {}
  if (refusal instanceof ChallengeError) headers['WWW-Authenticate'] = challenge(refusal)
  if (refusal instanceof UploadRangeError) Object.assign(headers, uploadHeaders(refusal))
  if (refusal instanceof MethodError) headers.Allow = refusal.allowed.join(', ')
  if (refusal instanceof UnsatisfiableRangeError) headers['Content-Range'] = `bytes */${refusal.size}`
  if (refusal.retryAfter !== undefined) headers['Retry-After'] = refusal.retryAfter
  return headers
}

function errorBody(entries: readonly ErrorEntry[]): Buffer {
  return Buffer.from(JSON.stringify({ errors: entries }))
}

/** A path that exists, asked with a method that does not (405). */
export class MethodError extends RegistryError {
  readonly allowed: readonly string[]

  constructor(allowed: readonly string[]) {
    super('UNSUPPORTED', `this path takes ${allowed.join(', ')}`)
    this.allowed = allowed
  }
}

/** A range that lies outside of the content (416). */
export class UnsatisfiableRangeError extends RegistryError {
  readonly size: number

  /** @param size of the content, in bytes */
  constructor(size: number) {
    super('RANGE_INVALID')
    this.size = size
  }
}

/** Statuses of what Node's HTTP parser refuses before there is a request. */
const parserErrors: Readonly<Record<string, RegistryError>> = {
  HPE_HEADER_OVERFLOW: new RegistryError('REQUEST_HEADERS_TOO_LARGE'),
  ERR_HTTP_REQUEST_TIMEOUT: new RegistryError('REQUEST_TIMEOUT'),
}

/** The refusal that goes with what Node's HTTP parser found. */
export function parserRefusal({ code = '' }: { code?: string }): RegistryError {
  return (
    (Object.hasOwn(parserErrors, code) ? parserErrors[code] : undefined) ??
    new RegistryError('REQUEST_INVALID')
  )
}

/** Milliseconds that a client has to read the refusal of its connection. */
const farewell = 2000

/** Replies where there is no request, in the same shape, and closes the connection. */
export function refuseOnSocket(socket: Duplex, refusal: RegistryError): void {
  if (!socket.writable) {
    socket.destroy()
    return
  }
  const { status, entries } = refusal
  const body = errorBody(entries)
  const again = refusal.retryAfter === undefined ? '' : `Retry-After: ${refusal.retryAfter}\r\n`
  socket.end(
    `HTTP/1.1 ${status} ${STATUS_CODES[status] ?? ''}\r\n` +
      Object.entries(standardHeaders)
        .map(([name, value]) => `${name}: ${value}\r\n`)
        .join('') +
      `Content-Type: application/json\r\nContent-Length: ${body.byteLength}\r\n${again}Connection: close\r\n\r\n${body}`,
  )
  // What is closed while bytes of the client are unread is reset, and the client may lose the answer.
  const timer = setTimeout(() => socket.destroy(), farewell)
  socket.once('close', () => clearTimeout(timer))
}
