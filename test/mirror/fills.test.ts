import { randomBytes } from 'node:crypto'
import { readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from 'node:fs'
import * as http from 'node:http'
import { Socket } from 'node:net'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { eventually, filesBelow, type Server, startServer } from '../harness.js'
import {
  digest,
  type FakeExchange,
  type FakeUpstream,
  type Fault,
  startFakeUpstream,
} from './fake-upstream.js'
import { hasty, mirrorOf, startPair } from './pair.js'

/*
 * Blobs that come in while they are sent: whatever the upstream does, whoever leaves and whoever dies, what a client
 * gets whole is right.
 */

const name = 'library/big'

/** What a client has got of an answer: all of it, or what came before the connection broke. */
interface Got {
  readonly status: number
  readonly isWhole: boolean
  readonly body: Buffer
}

/** GET on a connection of its own. @param onBytes hears how many bytes have come, and may leave */
function get(server: Server, path: string, onBytes: (count: number, leave: () => void) => void = () => {}) {
  return new Promise<Got>((resolve) => {
    const lost = () => resolve({ status: 0, isWhole: false, body: Buffer.alloc(0) })
    const request = http.get(`${server.url}${path}`, { agent: false }, (response) => {
      const chunks: Buffer[] = []
      let count = 0
      const end = () => {
        const { statusCode: status = 0, complete } = response
        resolve({ status, isWhole: complete, body: Buffer.concat(chunks) })
      }
      response.on('data', (chunk: Buffer) => {
        chunks.push(chunk)
        count += chunk.length
        onBytes(count, () => response.destroy())
      })
      response.on('error', end).on('close', end)
    })
    request.setTimeout(20_000, () => request.destroy())
    request.on('error', lost)
  })
}

const blobPath = (bytes: Buffer) => `/v2/docker.io/${name}/blobs/${digest(bytes)}`

/** Faults for the GETs of blobs, one after the other; honest when there are no more. */
function answerBlobs(upstream: FakeUpstream, ...inTurn: Fault[]): void {
  upstream.fault = ({ method, path }) =>
    method === 'GET' && path.includes('/blobs/') ? inTurn.shift() : undefined
}

function writeHead({ socket, reply }: FakeExchange, length: number): void {
  socket.write(
    `HTTP/1.1 ${reply.status} Fake\r\ncontent-type: application/octet-stream\r\ncontent-length: ${length}\r\n\r\n`,
  )
}

/** Some bytes of a body that says to have `length`, and the end. */
const part =
  (length: number, bytes: Buffer): Fault =>
  (exchange) => {
    writeHead(exchange, length)
    exchange.socket.write(bytes, () => exchange.socket.end())
  }

const flippedAt = (body: Buffer, at: number): Buffer => {
  const copy = Buffer.from(body)
  copy[at] = (copy[at] ?? 0) ^ 1
  return copy
}

/** No answer that came whole had other bytes. */
function allRight(t: Test, got: readonly Got[], right: Buffer): void {
  const wrong = got.filter(({ status, isWhole, body }) => status === 200 && isWhole && !body.equals(right))
  t.equal(wrong.length, 0, 'nobody got wrong bytes as if they were whole')
}

/** The bytes before an absolute position and no more, however often they are asked for; then this becomes of the line. */
const upTo =
  (position: number, end: (exchange: FakeExchange) => void): Fault =>
  (exchange) => {
    const start = Number(/bytes=(\d+)/.exec(exchange.request.headers.range ?? '')?.[1] ?? 0)
    const head = Object.entries({ ...exchange.reply.headers, 'content-length': exchange.reply.body.length })
    const lines = head.map(([field, value]) => `${field}: ${value}\r\n`).join('')
    const bytes = exchange.reply.body.subarray(0, Math.max(0, position - start))
    exchange.socket.write(`HTTP/1.1 ${exchange.reply.status} Fake\r\n${lines}\r\n`)
    exchange.socket.write(bytes, () => end(exchange))
  }

const ends: Readonly<Record<string, (exchange: FakeExchange) => void>> = {
  'the connection ends': ({ socket }) => socket.end(),
  'the connection is reset': ({ socket }) =>
    socket instanceof Socket ? socket.resetAndDestroy() : socket.destroy(),
  'nothing more comes': () => undefined,
}

for (const [way, end] of Object.entries(ends)) {
  t.test(`R40: at each sixteenth of a blob ${way}: short for the client, nothing is kept`, async (t) => {
    // An upstream for each: after some failures one is left alone for a while.
    const cuts = await Promise.all(
      Array.from({ length: 16 }, async (_, sixteenths) => {
        const upstream = await startFakeUpstream(t)
        const layer = randomBytes(160_000)
        upstream.addBlob(name, layer)
        upstream.fault = ({ method }) => (method === 'GET' ? upTo(sixteenths * 10_000, end) : undefined)
        const mirror = { ...mirrorOf(upstream, hasty), name: `cut${sixteenths}.test`, bareNames: false }
        return { upstream, layer, mirror, path: `/v2/${mirror.name}/${name}/blobs/${digest(layer)}` }
      }),
    )
    const server = await startServer(t, { config: { mirrors: cuts.map(({ mirror }) => mirror) } })
    const got = await Promise.all(cuts.map(({ path }) => get(server, path)))
    for (const [sixteenths, { status, isWhole, body }] of got.entries()) {
      const what = `${sixteenths}/16: ${status}, ${body.length} bytes`
      if (status === 200) {
        const sent = cuts[sixteenths]?.layer.subarray(0, sixteenths * 10_000)
        t.notOk(isWhole, what)
        t.ok(sent?.subarray(0, body.length).equals(body), what)
      } else t.equal(status, 502, what) // it failed before the client was told anything
    }
    t.same(filesBelow(join(server.data, 'blobs')), [], 'the cache keeps nothing')
    for (const { upstream } of cuts) upstream.fault = () => undefined
    await Promise.all(
      cuts.map(async ({ path, layer }, sixteenths) => {
        const again = await eventually(
          `${sixteenths}/16: a pull`,
          async () => {
            const reply = await get(server, path)
            return reply.status === 200 && reply
          },
          60_000,
        )
        t.ok(again.isWhole && again.body.equals(layer), `${sixteenths}/16: the next pull fetches it`)
      }),
    )
  })
}

t.test('R40: an upstream that names two sizes is not believed', async (t) => {
  const { upstream, server } = await startPair(t)
  const layer = randomBytes(300_000)
  upstream.addBlob(name, layer)
  answerBlobs(upstream, part(200_000, layer.subarray(0, 150_000)))
  allRight(t, [await get(server, blobPath(layer))], layer)
  const again = await get(server, blobPath(layer))
  t.ok(again.body.equals(layer), 'the next pull is right')
})

t.test('R40: pieces of two answers that do not fit are nobody’s blob', async (t) => {
  const { upstream, server } = await startPair(t)
  const layer = randomBytes(300_000)
  upstream.addBlob(name, layer)
  const whole: Fault = ({ send }) => send({ status: 200, headers: {}, body: layer })
  answerBlobs(upstream, part(300_000, flippedAt(layer, 5).subarray(0, 150_000)), whole)
  allRight(t, [await get(server, blobPath(layer))], layer)
  t.ok((await get(server, blobPath(layer))).body.equals(layer), 'the next pull is right')
})

t.test('an upstream that was cut off and knows no ranges: the pull goes on all the same', async (t) => {
  const { upstream, server } = await startPair(t)
  const layer = randomBytes(300_000)
  upstream.addBlob(name, layer)
  const whole: Fault = ({ send }) => send({ status: 200, headers: {}, body: layer })
  answerBlobs(upstream, part(300_000, layer.subarray(0, 150_000)), whole)
  const got = await get(server, blobPath(layer))
  t.ok(got.isWhole && got.body.equals(layer))
})

t.test('R40: who follows a fill on another worker does not get wrong bytes either', async (t) => {
  const { upstream, server } = await startPair(t, { config: { workers: 2 } })
  const layer = randomBytes(300_000)
  upstream.addBlob(name, layer)
  let finish: () => void = () => undefined
  const wrong = flippedAt(layer, 7)
  const held: Fault = (exchange) => {
    writeHead(exchange, layer.length)
    exchange.socket.write(wrong.subarray(0, 290_000))
    finish = () => exchange.socket.end(wrong.subarray(290_000))
  }
  answerBlobs(upstream, held)
  let begun = 0
  const clients = Array.from({ length: 24 }, () => {
    let isNew = true
    return get(server, blobPath(layer), (count) => {
      if (isNew && count >= 200_000) begun++
      isNew &&= count < 200_000
    })
  })
  await eventually('all have most of it', () => begun === clients.length, 30_000)
  finish()
  // Who comes while it goes wrong makes a new fill of the same name at once.
  const late = Array.from({ length: 6 }, () => get(server, blobPath(layer)))
  allRight(t, await Promise.all([...clients, ...late]), layer)
  t.ok((await get(server, blobPath(layer))).body.equals(layer), 'the next pull is right')
})

t.test('a worker that is killed loses no byte that came: another goes on from there', async (t) => {
  const { upstream, server } = await startPair(t, { config: { workers: 2 } })
  const layer = randomBytes(4_000_000)
  upstream.addBlob(name, layer)
  const half = layer.length / 2
  const stuck: Fault = (exchange) => {
    writeHead(exchange, layer.length)
    exchange.socket.write(layer.subarray(0, half))
  }
  const asked: string[] = []
  let isFirst = true
  upstream.fault = ({ method, path, request }) => {
    if (method !== 'GET' || !path.includes('/blobs/')) return undefined
    asked.push(request.headers.range ?? 'all')
    const fault = isFirst ? stuck : undefined
    isFirst = false
    return fault
  }
  let begun = 0
  const clients = Array.from({ length: 16 }, () => {
    let isNew = true
    return get(server, blobPath(layer), (count) => {
      if (isNew && count >= half) begun++
      isNew &&= count < half
    })
  })
  await eventually('all have half of it', () => begun === clients.length, 30_000)
  // Whoever holds the connection to the upstream is the one at work.
  process.kill(leaderOf(server.pid, upstream.port), 'SIGKILL')
  const got = await Promise.all(clients)
  allRight(t, got, layer)
  t.ok(
    got.some(({ isWhole, body }) => isWhole && body.equals(layer)),
    'the clients of the other worker are served',
  )
  t.strictSame(asked, ['all', `bytes=${half}-`])
})

/** The child of a process that has an open connection to a port (Linux). */
function leaderOf(parent: number, port: number): number {
  const hex = port.toString(16).toUpperCase().padStart(4, '0')
  const rows = readFileSync('/proc/net/tcp', 'utf8').split('\n').slice(1)
  const inodes = new Set(
    rows
      .map((row) => row.trim().split(/\s+/))
      .flatMap((row) => (row[2]?.endsWith(`:${hex}`) ? [row[9]] : [])),
  )
  for (const pid of readdirSync('/proc').filter((entry) => /^\d+$/.test(entry))) {
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ').at(-1)?.split(' ') ?? []
      if (Number(stat[1]) !== parent) continue
      if (socketsOf(pid).some((inode) => inodes.has(inode))) return Number(pid)
    } catch {
      // It has ended.
    }
  }
  throw new Error('no worker is connected to the upstream')
}

function socketsOf(pid: string): (string | undefined)[] {
  const folder = `/proc/${pid}/fd`
  return readdirSync(folder).map((fd) => /^socket:\[(\d+)\]$/.exec(readlinkSync(`${folder}/${fd}`))?.[1])
}

t.test('R41, G31: the first client leaves at 10 %, and still there is one request', async (t) => {
  const { upstream, server } = await startPair(t)
  const layer = randomBytes(3_000_000)
  upstream.addBlob(name, layer)
  let finish: () => void = () => undefined
  const held: Fault = (exchange) => {
    writeHead(exchange, layer.length)
    exchange.socket.write(layer.subarray(0, 400_000))
    finish = () => exchange.socket.end(layer.subarray(400_000))
  }
  answerBlobs(upstream, held)
  const first = await get(server, blobPath(layer), (count, leave) => {
    if (count >= 300_000) leave()
  })
  t.notOk(first.isWhole)
  let hasBegun = false
  const late = get(server, blobPath(layer), (count) => {
    hasBegun ||= count >= 300_000
  })
  await eventually('who comes late gets at once what is there', () => hasBegun, 30_000)
  finish()
  t.ok((await late).body.equals(layer))
  await upstream.stop()
  t.ok((await get(server, blobPath(layer))).body.equals(layer), 'a hit')
  t.equal(upstream.asked('GET', /blobs/).length, 1)
})

t.test('R41: a fill that everybody has left is finished', async (t) => {
  const { upstream, server } = await startPair(t)
  const layer = randomBytes(3_000_000)
  upstream.addBlob(name, layer)
  await get(server, blobPath(layer), (_, leave) => leave())
  await eventually('it is stored', () => filesBelow(join(server.data, 'blobs')).length === 1)
  await upstream.stop()
  t.ok((await get(server, blobPath(layer))).body.equals(layer))
})

t.test('R44: a blob whose file is gone, or cut, is fetched again', async (t) => {
  const { upstream, server, pull } = await startPair(t)
  const layer = randomBytes(100_000)
  upstream.addBlob(name, layer)
  for (const damage of [
    (path: string) => rmSync(path),
    (path: string) => writeFileSync(path, layer.subarray(0, 10)),
  ]) {
    t.equal((await pull(blobPath(layer))).status, 200)
    const file = await eventually('it is stored and recorded', async () => {
      const { text } = await server.request('GET', '/metrics')
      return /^boathouse_open_uploads 0$/m.test(text) ? filesBelow(join(server.data, 'blobs'))[0] : undefined
    })
    damage(join(server.data, 'blobs', file))
    const again = await pull(blobPath(layer))
    t.equal(again.status, 200)
    t.ok(again.body.equals(layer))
  }
})

t.test('PX-05: ranges of a cold blob', async (t) => {
  const { upstream, pull } = await startPair(t)
  for (const range of ['0-0', '10-20', '99999-', '-5', '50000-', '0-9,99990-99999']) {
    const layer = randomBytes(100_000)
    upstream.addBlob(name, layer)
    upstream.forget()
    const cold = await pull(blobPath(layer), { Range: `bytes=${range}` })
    t.equal(cold.status, 206, range)
    const warm = await pull(blobPath(layer), { Range: `bytes=${range}` })
    if (!range.includes(',')) {
      t.equal(cold.headers['content-range'], warm.headers['content-range'], range)
      t.ok(cold.body.equals(warm.body), range)
    }
    t.equal(upstream.asked('GET', /blobs/).length, 1)
  }
  const layer = randomBytes(1000)
  upstream.addBlob(name, layer)
  t.equal((await pull(blobPath(layer), { Range: 'bytes=1000-' })).status, 416)
})

t.test('blobs of no byte, and of one or two', async (t) => {
  const { upstream, pull } = await startPair(t)
  for (const size of [0, 1, 2]) {
    const blob = randomBytes(size)
    upstream.addBlob(name, blob)
    for (const kind of ['cold', 'warm']) {
      const reply = await pull(blobPath(blob))
      t.equal(reply.status, 200, `${size} bytes, ${kind}`)
      t.ok(reply.body.equals(blob))
    }
  }
})

t.test('a blob over uploads.maxBlobSize is refused without a fault, and leaves nothing', async (t) => {
  const { upstream, server, pull } = await startPair(t, { config: { uploads: { maxBlobSize: '1MiB' } } })
  const layer = randomBytes(1_200_000)
  upstream.addBlob(name, layer)
  const chunked: Fault = ({ response }) => {
    response.writeHead(200)
    response.end(layer)
  }
  for (const fault of [undefined, chunked]) {
    if (fault !== undefined) answerBlobs(upstream, fault)
    const reply = await pull(blobPath(layer))
    t.ok(reply.status >= 400 && reply.status !== 500, `${reply.status}`)
    t.ok(reply.errors.length > 0)
  }
  await eventually('nothing is left', () => filesBelow(join(server.data, 'uploads')).length === 0)
})

t.test('R40: a transfer that fails before its first byte ends in a clear error', async (t) => {
  const { upstream, pull } = await startPair(t)
  const layer = randomBytes(1000)
  upstream.addBlob(name, layer)
  upstream.fault = ({ method }) => (method === 'GET' ? part(1000, Buffer.alloc(0)) : undefined)
  const reply = await pull(blobPath(layer))
  t.equal(reply.status, 502)
  t.equal(reply.code, 'UPSTREAM_UNAVAILABLE')
  t.match(reply.text, /docker\.io/)
})
