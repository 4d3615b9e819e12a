import type { FakeExchange, FakeReply, Fault } from './fake-upstream.js'

/*
 * What upstreams do wrong, by name. Each takes the place of one honest answer; those that speak of a body leave
 * answers to HEAD alone where there is nothing to spoil.
 */

/** The head of an answer, as it goes over the wire. */
function head(reply: FakeReply, headers: Record<string, string> = {}): string {
  const fields = { 'content-length': String(reply.body.length), ...reply.headers, ...headers }
  const lines = Object.entries(fields).map(([name, value]) => `${name}: ${value}\r\n`)
  return `HTTP/1.1 ${reply.status} Fake\r\n${lines.join('')}\r\n`
}

/** Writes without any help of an HTTP library, then ends the connection unless told otherwise. */
function write({ socket }: FakeExchange, bytes: string | Buffer, thenEnd = true): void {
  socket.write(bytes)
  if (thenEnd) socket.end()
}

/** Writes the honest head, some of its fields changed, and a body; to HEAD the head alone. */
function writeBody(exchange: FakeExchange, body: Buffer, headers: Record<string, string> = {}): void {
  write(exchange, head(exchange.reply, headers), exchange.method === 'HEAD')
  if (exchange.method !== 'HEAD') write(exchange, body)
}

const chunkedHead = (reply: FakeReply) => {
  const fields = Object.entries(reply.headers).map(([name, value]) => `${name}: ${value}\r\n`)
  return `HTTP/1.1 ${reply.status} Fake\r\ntransfer-encoding: chunked\r\n${fields.join('')}\r\n`
}

/** An honest head, and so many sixteenths of the body behind it. */
const cut =
  (sixteenths: number): Fault =>
  (exchange) => {
    const { body } = exchange.reply
    writeBody(exchange, body.subarray(0, Math.floor((body.length * sixteenths) / 16)))
  }

const status =
  (code: number, headers: Record<string, string> = {}): Fault =>
  ({ send }) =>
    send({ status: code, headers, body: Buffer.from('no') })

const redirect =
  (location: (exchange: FakeExchange) => string, code = 307): Fault =>
  (exchange) =>
    exchange.send({ status: code, headers: { location: location(exchange) }, body: Buffer.alloc(0) })

const changed =
  (change: (reply: FakeReply) => Partial<FakeReply>): Fault =>
  ({ send, reply }) =>
    send({ ...reply, ...change(reply) })

/** Writes again and again until the other side has had enough. */
function forever({ socket }: FakeExchange, piece: string | Buffer): void {
  const more = () => {
    while (!socket.destroyed && socket.write(piece));
  }
  socket.on('drain', more)
  more()
}

/** Writes byte by byte. */
function drip({ socket }: FakeExchange, bytes: Buffer, every: number): void {
  let at = 0
  const timer = setInterval(() => {
    if (socket.destroyed || at === bytes.length) clearInterval(timer)
    else socket.write(bytes.subarray(at, ++at))
  }, every)
}

const flipped = (body: Buffer): Buffer => {
  const copy = Buffer.from(body)
  if (copy.length > 0) copy[copy.length >> 1] = (copy[copy.length >> 1] ?? 0) ^ 1
  return copy
}

const cuts = Object.fromEntries(
  Array.from({ length: 16 }, (_, sixteenths): [string, Fault] => [
    `cut at ${sixteenths}/16`,
    cut(sixteenths),
  ]),
)

/** A reset that arrives as one: the socket's own, below TLS or not. */
function reset({ request }: FakeExchange): void {
  request.socket.resetAndDestroy()
}

/** Another whole answer, which nobody asked for. */
export function extraAnswer(body: Buffer, digest: string): Buffer {
  const type = 'application/vnd.oci.image.manifest.v1+json'
  const headers = { 'content-type': type, 'docker-content-digest': digest }
  return Buffer.concat([Buffer.from(head({ status: 200, headers, body })), body])
}

/** All faults by name. */
export const faults: Readonly<Record<string, Fault>> = {
  ...cuts,
  'wrong bytes': changed(({ body }) => ({ body: flipped(body) })),
  'other bytes of the same length': changed(({ body }) => ({ body: Buffer.alloc(body.length, 'x') })),
  'no bytes': changed(() => ({ body: Buffer.alloc(0) })),
  'a length that is too small': (exchange) => {
    writeBody(exchange, exchange.reply.body, { 'content-length': String(exchange.reply.body.length - 1) })
  },
  'a length that is too large': (exchange) => {
    writeBody(exchange, exchange.reply.body, { 'content-length': String(exchange.reply.body.length + 1) })
  },
  'a length that is no number': (exchange) =>
    write(exchange, head(exchange.reply, { 'content-length': 'many' })),
  'a length of 2^60': (exchange) =>
    write(exchange, head(exchange.reply, { 'content-length': String(2 ** 60) }), false),
  'two lengths': (exchange) => {
    writeBody(exchange, exchange.reply.body, { 'Content-Length': '3' })
  },
  'a length and chunks': (exchange) =>
    write(exchange, `${head(exchange.reply, { 'transfer-encoding': 'chunked' })}3\r\nabc\r\n0\r\n\r\n`),
  'chunks that are cut off': (exchange) => write(exchange, `${chunkedHead(exchange.reply)}5\r\nabcde\r\n`),
  'chunks that are none': (exchange) => write(exchange, `${chunkedHead(exchange.reply)}zz\r\nabc\r\n`),
  'half of the body, and then its end': (exchange) => {
    const { body, headers } = exchange.reply
    const type = headers['content-type'] ?? ''
    write(exchange, `HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: ${type}\r\n\r\n`, false)
    write(exchange, body.subarray(0, body.length >> 1))
  },
  'a page for people': ({ send }) =>
    send({
      status: 200,
      headers: { 'content-type': 'text/html' },
      body: Buffer.from('<h1>Please log in</h1>'),
    }),
  'a body that is compressed': changed(({ headers }) => ({
    headers: { ...headers, 'content-encoding': 'gzip' },
    body: Buffer.from('H4sIAAAAAAAAA0tMSgYAwkEkNQMAAAA=', 'base64'),
  })),
  'the digest of other bytes': changed(({ headers, body }) => ({
    headers: { ...headers, 'docker-content-digest': `sha256:${'0'.repeat(64)}` },
    body,
  })),
  'a digest that is none': changed(({ headers }) => ({
    headers: { ...headers, 'docker-content-digest': 'sha256:../../etc/passwd' },
  })),
  'a reset': reset,
  'a reset in the middle': (exchange) => {
    const { reply, socket } = exchange
    socket.write(head(reply))
    socket.write(reply.body.subarray(0, reply.body.length >> 1), () => reset(exchange))
  },
  'no answer, and the end': ({ socket }) => socket.end(),
  'no answer': () => undefined,
  'headers without an end': (exchange) => write(exchange, 'HTTP/1.1 200 OK\r\ncontent-length: 3\r\n', false),
  'a stall in the middle': (exchange) => {
    write(exchange, head(exchange.reply), false)
    write(exchange, exchange.reply.body.subarray(0, exchange.reply.body.length >> 1), false)
  },
  'a byte now and then': (exchange) => {
    write(exchange, head(exchange.reply), false)
    drip(exchange, exchange.reply.body, 50)
  },
  'a header byte now and then': (exchange) => drip(exchange, Buffer.from(head(exchange.reply)), 50),
  'patience asked for without end': (exchange) => {
    const timer = setInterval(() => {
      if (exchange.socket.destroyed) clearInterval(timer)
      else exchange.socket.write('HTTP/1.1 103 Early Hints\r\n\r\n')
    }, 20)
  },
  'headers without a bound': (exchange) => {
    write(exchange, 'HTTP/1.1 200 OK\r\n', false)
    forever(exchange, `x-more: ${'y'.repeat(1000)}\r\n`)
  },
  'a body without a bound': (exchange) => {
    write(exchange, chunkedHead(exchange.reply), false)
    forever(exchange, `10000\r\n${'z'.repeat(65_536)}\r\n`)
  },
  'something that is not HTTP': (exchange) => write(exchange, 'SSH-2.0-OpenSSH_9.2\r\n'),
  'HTTP/0.9': (exchange) => write(exchange, exchange.reply.body),
  'an upgrade that nobody wanted': (exchange) =>
    write(
      exchange,
      'HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n',
      false,
    ),
  'a status of 99': (exchange) => write(exchange, 'HTTP/1.1 99 What\r\ncontent-length: 0\r\n\r\n'),
  'another answer behind the answer': (exchange) => {
    const { reply } = exchange
    const extra = extraAnswer(Buffer.from('{"evil":true}'), `sha256:${'e'.repeat(64)}`)
    write(
      exchange,
      Buffer.concat([
        Buffer.from(head(reply)),
        exchange.method === 'HEAD' ? Buffer.alloc(0) : reply.body,
        extra,
      ]),
      false,
    )
  },
  'status 204': ({ send }) => send({ status: 204, headers: {}, body: Buffer.alloc(0) }),
  'status 206 that was not asked for': changed(({ headers, body }) => ({
    status: 206,
    headers: { ...headers, 'content-range': `bytes 1-${body.length - 1}/${body.length}` },
    body: body.subarray(1),
  })),
  'status 304': ({ send }) => send({ status: 304, headers: {}, body: Buffer.alloc(0) }),
  'status 400': status(400),
  'status 401': status(401),
  'status 401 with a challenge of nobody': status(401, { 'www-authenticate': 'Negotiate' }),
  'status 401 with a challenge that is broken': status(401, {
    'www-authenticate': 'Bearer realm="never closed',
  }),
  'status 403': status(403),
  'status 404': status(404),
  'status 410': status(410),
  'status 416': status(416),
  'status 429': status(429, { 'retry-after': '7' }),
  'status 429 until a date': ({ send }) => {
    const until = new Date(Date.now() + 60_000).toUTCString()
    send({ status: 429, headers: { 'retry-after': until }, body: Buffer.alloc(0) })
  },
  'status 500': status(500),
  'status 502': status(502),
  'status 503': status(503, { 'retry-after': '3' }),
  'status 504': status(504),
  'a redirect to itself': redirect(({ path }) => path),
  'a redirect to ever new paths': redirect(({ path }) => `${path}x`, 302),
  'a redirect to nowhere': ({ send }) => send({ status: 302, headers: {}, body: Buffer.alloc(0) }),
  'a redirect to a file': redirect(() => 'file:///etc/passwd', 301),
  'a redirect to a broken URL': redirect(() => 'http://[::1', 308),
  'a redirect to the metadata service': redirect(() => 'http://169.254.169.254/latest/meta-data/', 303),
}

/** The fault with this name. A wrong name is no honest answer by mistake. */
export function faultNamed(name: string): Fault {
  const fault = faults[name]
  if (fault === undefined) throw new Error(`there is no fault "${name}"`)
  return fault
}
