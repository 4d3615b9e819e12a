import t, { type Test } from 'tap'
import {
  eventually,
  everyReplyKeptTheRules,
  finishUpload,
  image,
  isError,
  newRepository,
  OCI_MANIFEST,
  openUpload,
  pause,
  push,
  pushBlobs,
  RawConnection,
  type RawReply,
  randomBlob,
  randomDigest,
  resumeUpload,
  startServer,
} from './harness.js'

const server = await startServer(t, { config: { timeouts: { idle: '2s' } } })
const repository = newRepository('node')
const someImage = image()
await push(server, repository, 'x', someImage)
const layer = someImage.parts[1]?.digest ?? ''

/** Asserts that a raw reply is an error of the form that clients can read (G-09). */
function isRawError(t: Test, reply: RawReply | undefined, status: number, what: string) {
  t.equal(reply?.status, status, `${what}: ${reply?.head.split('\r\n')[0] ?? 'no reply'}`)
  t.match(reply?.headers['content-type'], /^application\/json/, what)
  const body = JSON.parse(reply?.body || '{}') as { errors?: { code: string; message: string }[] }
  t.match(body.errors?.[0]?.code, /^[A-Z][A-Z0-9_]*$/, `${what}: ${reply?.body}`)
  t.ok(body.errors?.[0]?.message, what)
}

t.test('T-43, BL-15: an upload may take as long as it likes while bytes arrive', async (t) => {
  const patient = await startServer(t, { config: { timeouts: { idle: '6s' } } })
  const content = randomBlob(18)
  const location = await openUpload(patient, repository)
  const connection = await RawConnection.open(patient)
  await connection.request(`PATCH ${location}`, ['Content-Length: 18'])
  for (const byte of content.bytes) {
    await connection.send(Buffer.from([byte]))
    await pause(450) // in all 8.1 s, with a limit of 6 s on standing still
  }
  t.equal((await connection.reply()).status, 202)
  await connection.close()
  await finishUpload(patient, location, content.digest)
})

t.test('T-43, UP-48: a body that stands still is given up, and the upload can go on', async (t) => {
  const content = randomBlob(2000)
  const location = await openUpload(server, repository)
  const connection = await RawConnection.open(server)
  await connection.request(`PATCH ${location}`, ['Content-Length: 2000'], content.bytes.subarray(0, 500))
  await connection.closed
  const reply = connection.replies()[0]
  if (reply !== undefined) isRawError(t, reply, 408, 'an answer before the end')
  await resumeUpload(server, location, content)
})

t.test('T-43, S59: a manifest body that stands still is given up', async (t) => {
  const connection = await RawConnection.open(server)
  const headers = [`Content-Type: ${OCI_MANIFEST}`, 'Content-Length: 1000']
  await connection.request(`PUT /v2/${repository}/manifests/slow`, headers, '{')
  await connection.closed
  const reply = connection.replies()[0]
  if (reply !== undefined) isRawError(t, reply, 408, 'an answer before the end')
  t.equal((await server.request('GET', `/v2/${repository}/manifests/slow`)).status, 404)
})

t.test('S59, BL-15: a reader that stands still is given up, others are served meanwhile', async (t) => {
  const big = randomBlob(30_000_000)
  await pushBlobs(server, repository, big)
  const connection = await RawConnection.open(server)
  connection.socket.pause()
  await connection.request(`GET /v2/${repository}/blobs/${big.digest}`)
  t.equal((await server.request('GET', '/v2/')).status, 200)
  await eventually('the log has the aborted request', () =>
    server.logs().some((line) => JSON.stringify(line).includes(big.digest)),
  )
  connection.socket.resume()
  await connection.closed
  t.ok(connection.text.length < big.size, 'cut short')
})

t.test('T-44: the connection is kept for 120 s or more', async (t) => {
  const connection = await RawConnection.open(server)
  await connection.request('GET /v2/')
  const reply = await connection.reply()
  t.ok(Number(/timeout=(\d+)/.exec(reply.headers['keep-alive'] ?? '')?.[1]) >= 120)
  await pause(3000) // longer than the limit on standing still
  await connection.request('GET /v2/')
  t.equal((await connection.reply(1)).status, 200, 'a connection without request may stand still')
  await connection.close()
})

t.test('T-62, G-17: a client that closes each connection, and one of HTTP/1.0', async (t) => {
  const closing = await RawConnection.open(server)
  await closing.request('GET /v2/', ['Connection: close'])
  await closing.closed
  t.equal(closing.replies()[0]?.status, 200)
  t.equal(closing.replies()[0]?.headers.connection, 'close')
  const old = await RawConnection.open(server)
  await old.send('GET /v2/ HTTP/1.0\r\n\r\n')
  await old.closed
  t.equal(old.replies()[0]?.status, 200)
  t.equal(old.replies()[0]?.body, '{}')
})

t.test('JW-05, T-48: headers of 24 KiB pass, too large ones get 431 in the form of an error', async (t) => {
  const reply = await server.request('GET', '/v2/', {
    headers: { Authorization: `Bearer ${'x'.repeat(24_000)}` },
  })
  t.equal(reply.status, 200)
  const connection = await RawConnection.open(server)
  await connection.request('GET /v2/', [`Authorization: Bearer ${'x'.repeat(70_000)}`])
  await connection.closed
  isRawError(t, connection.replies()[0], 431, 'large headers')
  const many = await RawConnection.open(server)
  await many.request(
    'GET /v2/',
    Array.from({ length: 3000 }, (_, n) => `X-${n}: y`),
  )
  const answer = (await many.waitForReplies(1))[0]
  t.equal(answer?.status, 200, 'many small ones pass')
  await many.close()
})

t.test('G-09: a very long path is an error like others', async (t) => {
  for (const length of [1000, 10_000, 30_000]) {
    const reply = await server.request('GET', `/v2/${'a'.repeat(length)}/tags/list`)
    isError(t, reply, 400, 'NAME_INVALID', `${length}`)
  }
  const connection = await RawConnection.open(server)
  await connection.request(`GET /v2/${'a'.repeat(100_000)}/tags/list`)
  await connection.closed
  isRawError(t, connection.replies()[0], 431, 'a path of 100 kB')
})

t.test('UP-28: Expect: 100-continue is answered 100 when the session is there', async (t) => {
  const content = randomBlob(300)
  const location = await openUpload(server, repository)
  const connection = await RawConnection.open(server)
  const headers = ['Content-Length: 300', 'Expect: 100-continue']
  await connection.request(`PATCH ${location}`, headers)
  t.equal((await connection.reply()).status, 100)
  await connection.send(content.bytes)
  t.equal((await connection.reply(1)).status, 202)
  await finishUpload(server, location, content.digest)
  const manifest = image({ layers: [] })
  await pushBlobs(server, repository, ...manifest.parts)
  const before = connection.replies().length
  await connection.request(`PUT /v2/${repository}/manifests/expect`, [
    `Content-Type: ${OCI_MANIFEST}`,
    `Content-Length: ${manifest.size}`,
    'Expect: 100-Continue',
  ])
  t.equal((await connection.reply(before)).status, 100)
  await connection.send(manifest.bytes)
  t.equal((await connection.reply(before + 1)).status, 201)
  await connection.close()
})

t.test('UP-28, T-46: what will be refused is refused in place of the 100', async (t) => {
  const unknown = `/v2/${repository}/blobs/uploads/01234567-89ab-4cde-8f01-23456789abcd`
  const location = await openUpload(server, repository)
  const cases: [line: string, status: number, extra?: string][] = [
    [`PATCH ${unknown}`, 404],
    [`PUT ${unknown}?digest=${randomDigest()}`, 404],
    [`PUT ${location}?digest=sha256:bad`, 400],
    [`PATCH ${location}`, 416, 'Content-Range: 700-100699'],
    ['PATCH /v2/Bad/blobs/uploads/x', 400],
    [`PUT /v2/${repository}/manifests/.bad`, 400],
    [`POST /v2/${repository}/tags/list`, 405],
    ['PUT /v2/unknown', 404],
  ]
  for (const [line, status, extra] of cases) {
    const connection = await RawConnection.open(server)
    const headers = ['Content-Length: 100000', 'Expect: 100-continue', ...(extra ? [extra] : [])]
    await connection.request(line, headers)
    isRawError(t, await connection.reply(), status, line)
    await connection.close()
  }
  t.equal((await server.request('GET', location)).status, 204, 'the session is as before')
})

t.test('UP-28: an unknown expectation is ignored', async (t) => {
  const connection = await RawConnection.open(server)
  await connection.request('GET /v2/', ['Expect: miracles'])
  t.equal((await connection.reply()).status, 200)
  await connection.close()
})

t.test('T-45, MF-09: an early refusal reaches a client that sends its whole body first', async (t) => {
  const location = await openUpload(server, repository)
  const unknown = `/v2/${repository}/blobs/uploads/01234567-89ab-4cde-8f01-23456789abcd`
  const cases: [line: string, size: number, status: number, extra?: string][] = [
    [`PATCH ${unknown}`, 1_000_000, 404],
    [`PATCH ${location}`, 1_000_000, 416, 'Content-Range: 5-1000004'],
    [`PUT ${location}?digest=sha256:bad`, 1_000_000, 400],
    [`PUT /v2/${repository}/manifests/large`, 5_000_000, 413, `Content-Type: ${OCI_MANIFEST}`],
    ['PATCH /v2/Bad/blobs/uploads/x', 500_000, 400],
    ['PUT /v2/nothing', 500_000, 404],
    [`DELETE /v2/${repository}/tags/list`, 500_000, 405],
  ]
  for (const [line, size, status, extra] of cases) {
    for (const chunked of [false, true]) {
      const connection = await RawConnection.open(server)
      const framing = chunked ? 'Transfer-Encoding: chunked' : `Content-Length: ${size}`
      await connection.request(line, [framing, ...(extra ? [extra] : [])])
      const chunk = Buffer.alloc(100_000, 32)
      for (let sent = 0; sent < size; sent += chunk.length) {
        if (chunked) await connection.send(`${chunk.length.toString(16)}\r\n`)
        await connection.send(chunk)
        if (chunked) await connection.send('\r\n')
      }
      if (chunked) await connection.send('0\r\n\r\n')
      isRawError(t, await connection.reply(), status, `${line} ${framing}`)
      await connection.close()
    }
  }
  t.equal((await server.request('GET', location)).header('range'), '0-0', 'nothing was stored')
})

t.test('T-45: an early refusal of an endless body ends the connection in time', async (t) => {
  const connection = await RawConnection.open(server)
  const unknown = `/v2/${repository}/blobs/uploads/01234567-89ab-4cde-8f01-23456789abcd`
  await connection.request(`PATCH ${unknown}`, ['Transfer-Encoding: chunked'])
  const chunk = Buffer.concat([Buffer.from('10000\r\n'), Buffer.alloc(65_536), Buffer.from('\r\n')])
  const started = Date.now()
  let sent = 0
  while (!connection.isClosed && sent < 2_000_000_000 && Date.now() - started < 15_000) {
    await connection.send(chunk)
    sent += chunk.length
  }
  t.ok(connection.isClosed, `given up after ${sent} bytes`)
  isRawError(t, connection.replies()[0], 404, 'the refusal')
})

t.test('section 16: 204, 304, 201 and 202 are framed as HTTP has it', async (t) => {
  const connection = await RawConnection.open(server)
  const location = await openUpload(server, repository)
  await connection.request(`GET ${location}`)
  const status = await connection.reply()
  t.equal(status.status, 204)
  t.notOk('content-length' in status.headers, 'no length on 204')
  t.notOk('transfer-encoding' in status.headers)
  await connection.request(`GET /v2/${repository}/blobs/${layer}`, ['If-None-Match: *'])
  const unchanged = await connection.reply(1)
  t.equal(unchanged.status, 304)
  t.notOk('transfer-encoding' in unchanged.headers)
  await connection.request(`DELETE ${location}`)
  t.equal((await connection.reply(2)).status, 204)
  await connection.request(`POST /v2/${repository}/blobs/uploads/`, ['Content-Length: 0'])
  t.equal((await connection.reply(3)).headers['content-length'], '0')
  await connection.request(`HEAD /v2/${repository}/blobs/${layer}`)
  await eventually('the HEAD', () => connection.text.includes(layer))
  await connection.close()
})

t.test('MF-05, section 16: no charset is added to any type', async (t) => {
  for (const path of [
    '/v2/',
    `/v2/${repository}/manifests/x`,
    `/v2/${repository}/referrers/${randomDigest()}`,
  ]) {
    const reply = await server.request('GET', path)
    t.notMatch(reply.header('content-type'), /charset/, path)
  }
})

t.test('G-09, UP-45: bodies where none is expected are dropped, whatever their type', async (t) => {
  const paths = ['/v2/', '/v2/_catalog', `/v2/${repository}/tags/list`, `/v2/${repository}/blobs/${layer}`]
  for (const path of paths) {
    for (const type of ['application/json', 'text/plain', 'x']) {
      const reply = await server.request('GET', path, { headers: { 'Content-Type': type }, body: '{"broken' })
      t.equal(reply.status, 200, `${path} ${type}`)
    }
  }
})

t.test(
  'S60: malformed framing is refused with 400 and the connection closed, nothing is smuggled',
  async (t) => {
    const inner = 'GET /v2/smuggled/tags/list HTTP/1.1\r\nHost: x\r\n\r\n'
    const target = `/v2/${repository}/blobs/uploads/`
    const post = (headers: string, body: string) =>
      `POST ${target} HTTP/1.1\r\nHost: x\r\n${headers}\r\n\r\n${body}`
    const cases: Record<string, string> = {
      'both lengths': post('Content-Length: 5\r\nTransfer-Encoding: chunked', `0\r\n\r\n${inner}`),
      'both lengths, turned': post('Transfer-Encoding: chunked\r\nContent-Length: 5', `0\r\n\r\n${inner}`),
      'two transfer codings': post(
        'Transfer-Encoding: chunked\r\nTransfer-Encoding: identity',
        `0\r\n\r\n${inner}`,
      ),
      'a list of codings that does not end in chunked': post(
        'Transfer-Encoding: chunked, identity',
        `0\r\n\r\n${inner}`,
      ),
      'an unknown coding': post('Transfer-Encoding: xchunked', `0\r\n\r\n${inner}`),
      'two equal lengths': post('Content-Length: 0\r\nContent-Length: 0', inner),
      'two lengths': post('Content-Length: 0\r\nContent-Length: 50', inner),
      'a list of lengths': post('Content-Length: 0, 0', inner),
      'a negative length': post('Content-Length: -1', inner),
      'a signed length': post('Content-Length: +5', inner),
      'a hexadecimal length': post('Content-Length: 0x5', inner),
      'a length with a letter': post('Content-Length: 5a', inner),
      'an empty length': post('Content-Length:', inner),
      'a length beyond 64 bits': post('Content-Length: 99999999999999999999999', inner),
      'white space before the colon': post('Content-Length : 5', `abcde${inner}`),
      'white space before the coding': post('Transfer-Encoding : chunked', `0\r\n\r\n${inner}`),
      'a folded header': post('X-Fold: a\r\n Transfer-Encoding: chunked', `0\r\n\r\n${inner}`),
      'a folded first header': `POST ${target} HTTP/1.1\r\n Host: x\r\n\r\n`,
      'a header without colon': post('Nonsense', inner),
      'a header without name': post(': value', inner),
      'NUL in a header': post('X-Nul: a\0b', inner),
      'NUL in a header name': post('X\0Nul: a', inner),
      'bare CR in a header': post('X-Cr: a\rb', inner),
      'bare LF line ends': `GET /v2/ HTTP/1.1\nHost: x\n\n`,
      'a bare LF before a coding': post('X: a\nTransfer-Encoding: chunked', `0\r\n\r\n${inner}`),
      'a chunk size that is none': post('Transfer-Encoding: chunked', `zz\r\n\r\n0\r\n\r\n${inner}`),
      'a negative chunk size': post('Transfer-Encoding: chunked', `-1\r\n\r\n0\r\n\r\n${inner}`),
      'a chunk size with 0x': post('Transfer-Encoding: chunked', `0x5\r\nabcde\r\n0\r\n\r\n${inner}`),
      'a chunk size beyond 64 bits': post('Transfer-Encoding: chunked', `${'f'.repeat(17)}\r\nabc${inner}`),
      'a chunk longer than said': post('Transfer-Encoding: chunked', `3\r\nabcdef\r\n0\r\n\r\n${inner}`),
      'a chunk ended by a bare LF': post('Transfer-Encoding: chunked', `3\nabc\n0\n\n${inner}`),
      'no Host': 'GET /v2/ HTTP/1.1\r\n\r\n',
      'two Hosts': 'GET /v2/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n',
      'HTTP/3.0': 'GET /v2/ HTTP/3.0\r\nHost: x\r\n\r\n',
      'HTTP/1.10': 'GET /v2/ HTTP/1.10\r\nHost: x\r\n\r\n',
      'HTTP/0.9': 'GET /v2/\r\n\r\n',
      'no version': 'GET /v2/ FOO\r\nHost: x\r\n\r\n',
      'a lower-case method': 'get /v2/ HTTP/1.1\r\nHost: x\r\n\r\n',
      'an unknown method': 'BREW /v2/ HTTP/1.1\r\nHost: x\r\n\r\n',
      'a space in the path': 'GET /v2/ a HTTP/1.1\r\nHost: x\r\n\r\n',
      'a control character in the path': 'GET /v2/\x01 HTTP/1.1\r\nHost: x\r\n\r\n',
      'raw bytes in the path': 'GET /v2/\xff\xfe/tags/list HTTP/1.1\r\nHost: x\r\n\r\n',
      'the preface of HTTP/2': 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
      garbage: '\0\x01\x02\x03\r\n\r\n',
    }
    for (const [what, bytes] of Object.entries(cases)) {
      const connection = await RawConnection.open(server)
      await connection.send(Buffer.from(bytes, 'latin1'))
      const first = (await connection.waitForReplies(1))[0]
      isRawError(t, first, 400, what)
      connection.socket.end()
      await connection.closed
      t.ok(
        connection.replies().every((reply) => !reply.body.includes('NAME_UNKNOWN')),
        `${what}: no second request`,
      )
    }
    t.equal((await server.request('GET', '/v2/')).status, 200, 'and the server lives')
    t.notOk(
      server.stderr().includes('/v2/smuggled'),
      'no line of the log names what stood inside of the bodies',
    )
  },
)

t.test('S60: chunk extensions without end are not read without end', async (t) => {
  const connection = await RawConnection.open(server)
  await connection.request(`POST /v2/${repository}/blobs/uploads/?digest=${layer}`, [
    'Transfer-Encoding: chunked',
  ])
  await connection.send('1;')
  const part = 'x'.repeat(65_536)
  let sent = 0
  while (!connection.isClosed && sent < 200_000_000) {
    await connection.send(part)
    sent += part.length
  }
  t.ok(connection.isClosed, `closed after ${sent} bytes`)
  t.ok(sent < 100_000_000)
})

t.test('S60: trailers and small chunk extensions are harmless', async (t) => {
  const content = randomBlob(3)
  const connection = await RawConnection.open(server)
  await connection.request(`POST /v2/${repository}/blobs/uploads/?digest=${content.digest}`, [
    'Transfer-Encoding: chunked',
    'Trailer: X-Sum',
  ])
  const chunk = Buffer.concat([
    Buffer.from('3;name=value\r\n'),
    content.bytes,
    Buffer.from('\r\n0\r\nX-Sum: 1\r\n\r\n'),
  ])
  await connection.send(chunk)
  t.equal((await connection.reply()).status, 201)
  await connection.request('GET /v2/')
  t.equal((await connection.reply(1)).status, 200, 'the connection is in step')
  await connection.close()
})

t.test('S60, G-06: an absolute request target means its path', async (t) => {
  const connection = await RawConnection.open(server)
  await connection.request(`GET http://registry.test/v2/${repository}/tags/list`)
  const reply = await connection.reply()
  t.equal(reply.status, 200)
  t.same(JSON.parse(reply.body), { name: repository, tags: ['expect', 'x'] })
  await connection.request('OPTIONS *')
  t.ok((await connection.reply(1)).status < 500)
  await connection.close()
})

t.test('S60: CONNECT and Upgrade change nothing', async (t) => {
  const connect = await RawConnection.open(server)
  await connect.send('CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n\r\n')
  await connect.closed
  t.notMatch(connect.text, /^HTTP\/1\.1 200/)
  const upgrade = await RawConnection.open(server)
  await upgrade.request('GET /v2/', [
    'Connection: Upgrade, HTTP2-Settings',
    'Upgrade: h2c',
    'HTTP2-Settings: x',
  ])
  t.equal((await upgrade.reply()).status, 200)
  await upgrade.close()
  const socket = await RawConnection.open(server)
  await socket.request('GET /v2/', ['Connection: Upgrade', 'Upgrade: websocket', 'Sec-WebSocket-Key: x'])
  t.equal((await socket.reply()).status, 200)
  await socket.close()
})

t.test('S59: hundreds of half-sent requests do not stand in the way', async (t) => {
  const slow = await Promise.all(Array.from({ length: 200 }, () => RawConnection.open(server)))
  await Promise.all(slow.map((connection) => connection.send('GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow: ')))
  for (let n = 0; n < 20; n++) t.equal((await server.request('GET', '/v2/', { fresh: true })).status, 200)
  await Promise.all(slow.map((connection) => connection.close()))
})

everyReplyKeptTheRules(t)
