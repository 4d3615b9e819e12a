import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import t from 'tap'
import {
  closeKeptConnections,
  eventually,
  everyReplyKeptTheRules,
  filesBelow,
  image,
  newRepository,
  OCI_MANIFEST,
  openDescriptors,
  openUpload,
  push,
  pushBlobs,
  RawConnection,
  randomBlob,
  randomDigest,
  startServer,
  withQuery,
} from './harness.js'

const server = await startServer(t, {
  config: { workers: 2, log: { level: 'warn' }, uploads: { expireAfter: '2s' } },
})
const repository = newRepository('leaks')
const content = randomBlob(4_000_000)
const manifest = image()
await pushBlobs(server, repository, content)
await push(server, repository, 'x', manifest)

const files = (of = server) => filesBelow(join(of.data, 'uploads'))

async function openUploads(of = server): Promise<number> {
  const { text } = await of.request('GET', '/metrics', { fresh: true })
  return Number(/^boathouse_open_uploads (\d+)/m.exec(text)?.[1])
}

/** Descriptors that are neither the index's nor a folder's, by what they are. */
function descriptors() {
  closeKeptConnections()
  const open = openDescriptors(server.pid)
  return {
    sockets: open.filter((target) => target.startsWith('socket:')).length,
    content: open.filter((target) => /\/(blobs|uploads)\/.*[0-9a-f]{8}/.test(target)).length,
    all: open.length,
  }
}

/** Runs `one` for each of `count` numbers, `at` at a time. */
async function many(count: number, at: number, one: (n: number) => Promise<void>): Promise<void> {
  let next = 0
  await Promise.all(
    Array.from({ length: at }, async () => {
      while (next < count) await one(next++)
    }),
  )
}

/** Waits until as few descriptors are open as before. */
async function backTo(before: ReturnType<typeof descriptors>) {
  return eventually(`descriptors as before (${JSON.stringify(before)})`, () => {
    const now = descriptors()
    return now.content === 0 && now.sockets <= before.sockets + 2 && now.all <= before.all + 5 && now
  }).catch((error: Error) => {
    throw new Error(`${error.message}, but ${JSON.stringify(descriptors())}`)
  })
}

// One of each kind first: what is opened once and kept is no leak.
await many(8, 4, (n) => abortDownload(n))
await many(8, 4, (n) => abortUpload(n))
await eventually('the first uploads have expired', async () => (await openUploads()) === 0)

async function abortDownload(n: number): Promise<void> {
  const connection = await RawConnection.open(server)
  const range =
    n % 3 === 0 ? [`Range: bytes=${n * 1000}-`] : n % 3 === 1 ? ['Range: bytes=0-9,100-3000000'] : []
  await connection.request(`GET /v2/${repository}/blobs/${content.digest}`, range)
  if (n % 5 !== 0) await eventually('the first bytes', () => connection.receivedBytes > 0)
  if (n % 2 === 0) await connection.abort()
  else await connection.close()
}

async function abortUpload(n: number): Promise<void> {
  const connection = await RawConnection.open(server)
  const part = content.bytes.subarray(0, (n * 977) % 120_000)
  const length = ['Content-Length: 200000']
  const chunked = ['Transfer-Encoding: chunked']
  if (n % 4 === 0) {
    await connection.request(`POST /v2/${repository}/blobs/uploads/?digest=${randomDigest()}`, length, part)
  } else if (n % 4 === 1) {
    await connection.request(`PATCH ${await openUpload(server, repository)}`, length, part)
  } else if (n % 4 === 2) {
    const location = withQuery(await openUpload(server, repository), `digest=${randomDigest()}`)
    await connection.request(`PUT ${location}`, chunked, Buffer.concat([Buffer.from('30000\r\n'), part]))
  } else {
    const headers = [`Content-Type: ${OCI_MANIFEST}`, ...length]
    await connection.request(`PUT /v2/${repository}/manifests/cut`, headers, part)
  }
  if (n % 2 === 0) await connection.abort()
  else await connection.close()
}

t.test('S61, G25, BL-14: 500 aborted downloads leave no descriptor behind', async (t) => {
  const before = descriptors()
  await many(500, 16, abortDownload)
  const after = await backTo(before)
  t.equal(after.content, 0)
  const read = await server.request('GET', `/v2/${repository}/blobs/${content.digest}`)
  t.ok(read.body.equals(content.bytes))
})

t.test('R25, G25, UP-10, UP-25: 500 aborted uploads leave no descriptor, file or row behind', async (t) => {
  const before = descriptors()
  await many(500, 16, abortUpload)
  const after = await backTo(before)
  t.equal(after.content, 0)
  await eventually('no session is left', async () => (await openUploads()) === 0, 15_000)
  await eventually('no file is left', () => files().length === 0)
  t.equal((await server.request('GET', `/v2/${repository}/manifests/cut`)).status, 404)
  await push(server, repository, 'after', image())
})

t.test('UP-24, UP-25: refused and aborted single pushes leave no session to expire', async (t) => {
  const patient = await startServer(t, { config: { workers: 2, uploads: { expireAfter: '1h' } } })
  await many(50, 10, async () => {
    const bad = `/v2/${repository}/blobs/uploads/?digest=${randomDigest()}`
    const reply = await patient.request('POST', bad, { body: content.bytes.subarray(0, 5000) })
    t.equal(reply.status, 400)
    const connection = await RawConnection.open(patient)
    await connection.request(`POST ${bad}`, ['Content-Length: 5000'], 'abc')
    await connection.abort()
  })
  await eventually('none after', async () => (await openUploads(patient)) === 0, 20_000)
  await eventually('no file', () => files(patient).length === 0)
})

t.test('S61: connections that ask and never read, or never ask, leave nothing either', async (t) => {
  const before = descriptors()
  await many(200, 20, async (n) => {
    const connection = await RawConnection.open(server)
    connection.socket.pause()
    if (n % 2 === 0) await connection.request(`GET /v2/${repository}/blobs/${content.digest}`)
    else await connection.send('GET /v2/ HT')
    connection.socket.destroy()
    await connection.closed
  })
  t.equal((await backTo(before)).content, 0)
})

t.test(
  'R61: with 64 descriptors and 500 clients the server lives, and tells whom it cannot serve',
  async (t) => {
    const tight = await startServer(t, { config: { workers: 1, log: { level: 'fatal' } } })
    await push(tight, 'tight', 'x', manifest)
    await pushBlobs(tight, 'tight', content)
    closeKeptConnections()
    const atRest = openDescriptors(tight.pid).length
    // Node needs more of them to load its modules than it is left with here.
    execFileSync('prlimit', ['--pid', String(tight.pid), '--nofile=64:64'])
    const crowd = await Promise.all(
      Array.from({ length: 500 }, () => RawConnection.open(tight).catch(() => undefined)),
    )
    for (const connection of crowd) void connection?.request(`HEAD /v2/tight/blobs/${content.digest}`)
    const counts: Record<string, number> = {}
    // Those for whom there is no descriptor are closed, or wait in the queue of the system.
    const answered = crowd.map((connection) =>
      connection?.waitForReplies(1, { bodiless: true, within: 10_000 }).catch(() => 'waits' as const),
    )
    for (const replies of await Promise.all(answered)) {
      const reply = replies === 'waits' ? undefined : replies?.[0]
      const kind =
        reply === undefined
          ? replies === 'waits'
            ? replies
            : 'closed'
          : `${reply.status}${/^retry-after: [1-9]/im.test(reply.head) ? ', later' : ''}`
      counts[kind] = (counts[kind] ?? 0) + 1
    }
    t.comment(counts)
    t.ok((counts.closed ?? 0) + (counts.waits ?? 0) > 400, 'there was no descriptor for most')
    t.same(
      Object.keys(counts).filter((kind) => !['closed', 'waits', '200', '503, later'].includes(kind)),
      [],
    )

    await t.test('a push and a pull beside them are refused with a time to come back, or done', async (t) => {
      const held = crowd.filter((connection) => connection !== undefined && !connection.isClosed)
      t.ok(held.length >= 2, `${held.length} connections are kept`)
      const [first, second] = held
      await first?.request(`GET /v2/tight/blobs/${content.digest}`)
      const blob = randomBlob()
      const head = [`Content-Length: ${blob.bytes.length}`, 'Content-Type: application/octet-stream']
      await second?.request(`POST /v2/tight/blobs/uploads/?digest=${blob.digest}`, head, blob.bytes)
      await eventually('answers', () => (first?.receivedBytes ?? 0) > 0 && (second?.receivedBytes ?? 0) > 0)
      for (const connection of [first, second]) t.match(connection?.text, /HTTP\/1\.1 (?:200|201|503) /)
    })

    await Promise.all(crowd.map((connection) => connection?.close()))
    const read = await eventually('an answer when they have left', async () => {
      const reply = await tight
        .request('GET', '/v2/tight/manifests/x', { fresh: true, unchecked: true })
        .catch(() => undefined)
      return reply?.status === 200 && reply
    })
    t.ok(read.body.equals(manifest.bytes))
    // Their connections are closed here, and only then there.
    await eventually('their descriptors are free', () => openDescriptors(tight.pid).length <= atRest + 8)
    await push(tight, 'tight', 'after', image())
    const stopped = await tight.stop()
    t.same(stopped, { code: 0, signal: null }, tight.stderr() || 'it stops')
  },
)

everyReplyKeptTheRules(t)
