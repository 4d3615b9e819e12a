import { randomBytes } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { connect } from 'node:net'
import t, { type Test } from 'tap'
import {
  blob,
  closeKeptConnections,
  eventually,
  everyReplyKeptTheRules,
  image,
  manifestOf,
  newRepository,
  OCI_MANIFEST,
  openBlobFiles,
  processTree,
  push,
  pushBlobs,
  putManifest,
  RawConnection,
  randomBlob,
  type Server,
  startServer,
} from './harness.js'

/*
 * What a client can make the server hold: connections, requests behind each other, answers that nobody takes, bodies that
 * do not come to an end.
 */

const megabyte = 1024 * 1024

/** A manifest of just below 4 MiB. */
function largeManifest() {
  const base = image({ layers: [] })
  const text = JSON.stringify({ ...JSON.parse(base.bytes.toString()), annotations: { x: '' } })
  const filler = 'x'.repeat(4 * megabyte - text.length - 1)
  return manifestOf(text.replace('"x":""', `"x":"${filler}"`), OCI_MANIFEST, base.parts)
}

/** Megabytes of memory that the server's processes hold. */
function residentOf({ pid }: Server): number {
  const pages = processTree(pid).map((id) => {
    const status = existsSync(`/proc/${id}/status`) ? readFileSync(`/proc/${id}/status`, 'utf8') : ''
    return Number(/VmRSS:\s+(\d+)/.exec(status)?.[1] ?? 0)
  })
  return pages.reduce((sum, kilobytes) => sum + kilobytes, 0) / 1024
}

/** A connection that reads nothing of what is sent to it. */
async function deaf(server: Server): Promise<RawConnection> {
  const connection = await RawConnection.open(server)
  connection.socket.pause()
  return connection
}

/** How often a bound was met. */
async function timesMet(server: Server, bound: string): Promise<number> {
  const { text } = await server.request('GET', '/metrics', { fresh: true })
  return Number(new RegExp(`^boathouse_bounds_met_total\\{bound="${bound}"\\} (\\d+)$`, 'm').exec(text)?.[1])
}

const server = await startServer(t, { config: { timeouts: { idle: '2s' } } })
const repository = newRepository('bounds')
const large = largeManifest()
await push(server, repository, 'large', large)
const bigBlob = randomBlob(30 * megabyte) // more than the system keeps for a reader
const smallBlob = randomBlob(10)
await pushBlobs(server, repository, bigBlob, smallBlob)

t.test('S95: pipelined requests are begun one after the other, and answered in order', async (t) => {
  const before = residentOf(server)
  const connection = await deaf(server)
  const requests = 90
  await connection.send(
    `GET /v2/${repository}/manifests/large HTTP/1.1\r\nHost: localhost\r\n\r\n`.repeat(requests),
  )
  for (let n = 0; n < 20; n++) t.equal((await server.request('GET', '/v2/')).status, 200)
  t.ok(
    residentOf(server) - before < 150,
    `${Math.round(residentOf(server) - before)} MiB for ${requests} answers`,
  )
  await connection.close()

  const files = await Promise.all(
    Array.from({ length: 3 }, async () => {
      const reader = await deaf(server)
      await reader.send(
        `GET /v2/${repository}/blobs/${bigBlob.digest} HTTP/1.1\r\nHost: localhost\r\n\r\n`.repeat(90),
      )
      return reader
    }),
  )
  await eventually('they are being answered', () => openBlobFiles(server.pid).length > 0)
  t.equal((await server.request('GET', '/v2/', { fresh: true })).status, 200)
  t.ok(openBlobFiles(server.pid).length <= files.length, 'a file for each connection at the most')
  await Promise.all(files.map((file) => file.close()))
})

t.test(
  'S95, G-17: a hundred small requests in one write are answered, each with its own answer',
  async (t) => {
    const connection = await RawConnection.open(server)
    const paths = Array.from({ length: 100 }, (_, n) => `/v2/${repository}/manifests/none-${n}`)
    await connection.send(paths.map((path) => `GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`).join(''))
    const replies = await connection.waitForReplies(paths.length, { within: 120_000 })
    t.equal(replies.length, paths.length)
    t.same(
      replies.map(({ status, body }) => [status, /none-\d+/.exec(body)?.[0]]),
      paths.map((path) => [404, path.split('/').at(-1)]),
    )
    await connection.close()
  },
)

t.test('S95: bodies and wrong requests behind an answer in the making do not touch it', async (t) => {
  const connection = await RawConnection.open(server)
  const content = blob(randomBytes(200_000))
  const post = `POST /v2/${repository}/blobs/uploads/?digest=${content.digest} HTTP/1.1\r\nHost: localhost\r\nContent-Length: ${content.size}\r\n\r\n`
  const get = `GET /v2/${repository}/blobs/${bigBlob.digest} HTTP/1.1\r\nHost: localhost\r\n\r\n`
  await connection.send(
    Buffer.concat([Buffer.from(get + post), content.bytes, Buffer.from(`${get}no HTTP\r\n\r\n`)]),
  )
  await connection.closed
  const replies = connection.replies()
  t.same(
    replies.map(({ status }) => status),
    [200, 201, 200, 400],
  )
  t.equal(replies[0]?.body.length, bigBlob.size)
  t.equal(replies[2]?.body.length, bigBlob.size)
})

t.test(
  'S95: connections are bounded, those without a request give way, and who is refused is told so',
  async (t) => {
    const small = await startServer(t, { config: { limits: { connections: 20, perAddress: 15 } } })
    await push(small, 'few', 'x', image())
    await pushBlobs(small, 'few', bigBlob)
    closeKeptConnections()
    const silent = await Promise.all(Array.from({ length: 40 }, () => RawConnection.open(small)))
    const reply = await small.request('GET', '/v2/few/manifests/x', { fresh: true })
    t.equal(reply.status, 200, 'who asks is served')
    await eventually('silent ones were closed', () => silent.filter(({ isClosed }) => isClosed).length >= 25)
    t.ok((await timesMet(small, 'connections_per_address')) > 0)

    const busy: RawConnection[] = []
    await eventually('as many are busy as may be', async () => {
      const reader = await deaf(small)
      await reader.request(`GET /v2/few/blobs/${bigBlob.digest}`)
      busy.push(reader)
      return openBlobFiles(small.pid).length >= 15
    })
    const refused = await eventually('all of them are busy', async () => {
      const connection = await RawConnection.open(small)
      await connection.request('GET /v2/')
      await connection.waitForReplies(1)
      const [reply] = connection.replies()
      await connection.close()
      return reply?.status === 429 && reply
    })
    t.match(refused.head, /^retry-after: 1$/im)
    t.match(refused.body, /^\{"errors":\[\{"code":"TOOMANYREQUESTS","message":"[^"]+"\}\]\}$/)
    // Another address has room of its own.
    const other = connect({ port: small.port, host: small.host, localAddress: '127.0.0.2' })
    other.write('GET /v2/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n')
    let text = ''
    other.on('data', (chunk) => {
      text += chunk
    })
    await new Promise((resolve) => other.once('close', resolve))
    t.match(text, /^HTTP\/1\.1 200 /)
    await Promise.all([...busy, ...silent].map((connection) => connection.close()))
    await eventually('it takes all again', async () => {
      const reply = await small
        .request('GET', '/v2/', { fresh: true, unchecked: true })
        .catch(() => undefined)
      return reply?.status === 200
    })
  },
)

t.test('S95: the clients of a trusted proxy are not one address', async (t) => {
  const behind = await startServer(t, {
    config: { trustedProxies: '127.0.0.1', limits: { perAddress: 2 }, auth: 'none' },
  })
  await pushBlobs(behind, 'proxied', bigBlob)
  const open = async (client: string) => {
    const reader = await deaf(behind)
    await reader.request(`GET /v2/proxied/blobs/${bigBlob.digest}`, [`X-Forwarded-For: ${client}`])
    return reader
  }
  const readers = await Promise.all(
    ['192.0.2.1', '192.0.2.1', '192.0.2.2', '192.0.2.3', '192.0.2.4'].map((client) => open(client)),
  )
  await eventually('all of them are served', () => openBlobFiles(behind.pid).length === 5)
  const ask = (client: string) =>
    behind.request('GET', '/v2/', { headers: { 'X-Forwarded-For': client }, fresh: true })
  t.equal((await ask('192.0.2.1')).status, 429, 'one that has two requests under way')
  t.equal((await ask('192.0.2.2')).status, 200)
  await Promise.all(readers.map((reader) => reader.close()))
  await eventually('its requests have ended', async () => (await ask('192.0.2.1')).status === 200)
})

t.test('S96: whoever takes nothing of an answer is cut off, whatever the answer is', async (t) => {
  const tagged = image()
  await pushBlobs(server, repository, ...tagged.parts)
  const query = (page: number) =>
    Array.from({ length: 100 }, (_, n) => `tag=tag-${page}-${n}-${'x'.repeat(110)}`).join('&')
  for (let page = 0; page < 10; page++)
    await putManifest(server, repository, `${tagged.digest}?${query(page)}`, tagged)
  const path = (rest: string) => `/v2/${repository}/${rest}`
  const get = (path: string, times = 1) => `GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`.repeat(times)
  const kinds: Record<string, string> = {
    'a blob': get(path(`blobs/${bigBlob.digest}`)),
    manifests: get(path('manifests/large'), 10),
    lists: get(path('tags/list'), 90),
    'a blob behind a small one':
      get(path(`blobs/${smallBlob.digest}`)) + get(path(`blobs/${bigBlob.digest}`)),
    'ranges of a blob': `GET ${path(`blobs/${bigBlob.digest}`)} HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-20000000,1-20000000\r\n\r\n`,
  }
  const before = await timesMet(server, 'standstill')
  const readers = await Promise.all(
    Object.entries(kinds).map(async ([kind, requests]) => {
      const reader = await deaf(server)
      await reader.send(requests)
      return { kind, reader }
    }),
  )
  await eventually(
    'all of them are cut off',
    async () => (await timesMet(server, 'standstill')) >= before + readers.length,
    120_000,
  )
  for (const { kind, reader } of readers) {
    reader.socket.resume()
    await reader.closed
    t.pass(kind)
  }
})

t.test('S96: a client that takes little by little is served to the end', async (t) => {
  const connection = await RawConnection.open(server)
  await connection.request(`GET /v2/${repository}/manifests/large`, ['Connection: close'])
  connection.socket.on('data', () => {
    connection.socket.pause()
    setTimeout(() => connection.socket.resume(), 30)
  })
  await connection.closed
  t.equal(connection.replies()[0]?.body.length, large.size)
})

t.test(
  'S96: a chunked body that says nothing is refused, before its first byte and behind an answer',
  async (t) => {
    const head = `POST /v2/${repository}/blobs/uploads/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n`
    for (const before of ['', 'GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n']) {
      const connection = await RawConnection.open(server)
      await connection.send(before + head)
      const seen = before === '' ? 0 : 1
      const reply = await connection.reply(seen)
      t.equal(reply.status, 408)
      t.match(reply.body, /"code":"REQUEST_TIMEOUT"/)
      await connection.close()
    }
  },
)

t.test(
  'S97: bodies of manifests share a memory; who stands still gives way, who moves is served',
  async (t) => {
    const busy = await startServer(t, { config: { limits: { bodyMemory: '16MiB' } } })
    const before = residentOf(busy)
    const size = 4 * megabyte
    const part = Buffer.alloc(size - 1000, 'x')
    const stalled = await Promise.all(
      Array.from({ length: 12 }, async () => {
        const connection = await RawConnection.open(busy)
        await connection.request('PUT /v2/stalled/manifests/x', [
          `Content-Type: ${OCI_MANIFEST}`,
          `Content-Length: ${size}`,
        ])
        void connection.send(part)
        return connection
      }),
    )
    const dripping = setInterval(() => {
      for (const connection of stalled) void connection.send('x')
    }, 500)
    t.teardown(() => clearInterval(dripping))

    const slow = image()
    await pushBlobs(busy, 'honest', ...slow.parts)
    const honest = await RawConnection.open(busy)
    await honest.request('PUT /v2/honest/manifests/slow', [
      `Content-Type: ${OCI_MANIFEST}`,
      `Content-Length: ${slow.size}`,
    ])
    for (let at = 0; at < slow.size; at += 100) {
      await honest.send(slow.bytes.subarray(at, at + 100))
      t.equal((await push(busy, 'honest', 'quick', slow)).status, 201)
    }
    t.equal((await honest.reply()).status, 201, 'one that comes in pieces')
    await push(busy, 'honest', 'large', large)

    await eventually(
      'all that stood still were refused',
      () => stalled.every(({ isClosed }) => isClosed),
      120_000,
    )
    for (const connection of stalled) {
      const [reply] = connection.replies()
      if (reply === undefined) continue // it sent on, and was reset before it read
      t.equal(reply.status, 408)
      t.match(reply.body, /^\{"errors":\[\{"code":"REQUEST_TIMEOUT","message":"[^"]+"\}\]\}$/)
    }
    t.ok(
      stalled.some((connection) => connection.replies().length > 0),
      'and told so',
    )
    t.ok((await timesMet(busy, 'body_memory')) > 0)
    t.ok(residentOf(busy) - before < 200, `${Math.round(residentOf(busy) - before)} MiB more`)
    const { text } = await busy.request('GET', '/metrics')
    t.match(text, /^boathouse_body_memory_bytes 0$/m, 'all of it was given back')
  },
)

t.test('S97: a body in pieces of a byte takes no more than its size', async (t) => {
  const before = residentOf(server)
  const connection = await RawConnection.open(server)
  await connection.request(`PUT /v2/${repository}/manifests/crumbs`, [
    `Content-Type: ${OCI_MANIFEST}`,
    'Transfer-Encoding: chunked',
  ])
  const crumbs = '1\r\n{\r\n'.repeat(10_000)
  for (let n = 0; n < 40; n++) await connection.send(crumbs)
  t.ok(residentOf(server) - before < 100, `${Math.round(residentOf(server) - before)} MiB more`)
  await connection.send('0\r\n\r\n')
  t.equal((await connection.reply()).status, 400)
  await connection.close()
})

t.test('S95, S97: what was asked for in one crowd is given back', async (t: Test) => {
  closeKeptConnections()
  const { text } = await server.request('GET', '/metrics', { fresh: true })
  t.match(text, /^boathouse_answer_memory_bytes 0$/m)
  t.match(text, /^boathouse_body_memory_bytes 0$/m)
})

everyReplyKeptTheRules(t)
