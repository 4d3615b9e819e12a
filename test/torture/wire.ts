import { Agent, type ClientRequest, type IncomingHttpHeaders, request as open } from 'node:http'
import type { Socket } from 'node:net'

/** Milliseconds after which a request without an answer counts as hanging. */
const patience = 60_000

/** Bytes of a body that are written at once. */
const pieceSize = 64 * 1024

/** One request. */
export interface Request {
  readonly method: string
  readonly path: string
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: Buffer
  /** Send the body without a length (chunked transfer). */
  readonly chunked?: boolean
  /** A connection of its own, so that another worker may get it. */
  readonly fresh?: boolean
  /** Leave after this many bytes of the body, without waiting for an answer. */
  readonly leaveAfter?: number
}

/** An answer that arrived whole. */
export interface Reply {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  readonly body: Buffer
}

/**
 * What a client knows after a request: the answer; that the request never left (`unsent`); or nothing, because
 * the connection died (`lost`) or nobody answered in time (`hung`).
 */
export type Answer = { readonly reply: Reply } | 'unsent' | 'lost' | 'hung'

/** The connection of one client to one server. */
export class Wire {
  readonly #agent = new Agent({ keepAlive: true, maxSockets: 1 })
  readonly #port: number

  constructor(port: number) {
    this.#port = port
  }

  /** Sends a request; never rejects. */
  send(request: Request): Promise<Answer> {
    return new Promise((resolve) => {
      const sent = open({
        host: '127.0.0.1',
        port: this.#port,
        method: request.method,
        path: request.path,
        headers: headersOf(request),
        agent: request.fresh || request.leaveAfter !== undefined ? false : this.#agent,
      })
      const timer = setTimeout(() => {
        resolve('hung')
        sent.destroy()
      }, patience)
      sent.once('close', () => {
        clearTimeout(timer)
        resolve('lost')
      })
      sent.once('error', (error: NodeJS.ErrnoException) => {
        resolve(error.code === 'ECONNREFUSED' ? 'unsent' : 'lost')
      })
      sent.once('response', (response) => {
        const chunks: Buffer[] = []
        const { statusCode: status = 0, headers } = response
        response.on('data', (chunk: Buffer) => chunks.push(chunk))
        response.once('error', () => resolve('lost'))
        response.once('end', () => {
          if (response.complete) resolve({ reply: { status, headers, body: Buffer.concat(chunks) } })
        })
      })
      sendBody(sent, request)
    })
  }

  close(): void {
    this.#agent.destroy()
  }
}

function headersOf({ headers, body, chunked }: Request): Record<string, string> {
  if (chunked === true) return { ...headers, 'Transfer-Encoding': 'chunked' }
  return body === undefined ? { ...headers } : { ...headers, 'Content-Length': String(body.length) }
}

function sendBody(sent: ClientRequest, { body, leaveAfter }: Request): void {
  if (body === undefined || leaveAfter === undefined) {
    for (let at = 0; body !== undefined && at < body.length; at += pieceSize) {
      sent.write(body.subarray(at, at + pieceSize))
    }
    sent.end()
    return
  }
  sent.once('socket', (socket: Socket) => {
    sent.write(body.subarray(0, leaveAfter), () => socket.destroySoon())
  })
}
