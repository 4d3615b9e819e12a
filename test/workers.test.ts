import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import {
  type Content,
  eventually,
  everyReplyKeptTheRules,
  filesBelow,
  finishUpload,
  image,
  isError,
  type Manifest,
  newRepository,
  OCI_MANIFEST,
  openUpload,
  processTree,
  push,
  pushBlobs,
  putManifest,
  RawConnection,
  type Reply,
  randomBlob,
  resumeUpload,
  sha512,
  startServer,
  tagsOf,
  withQuery,
} from './harness.js'

/*
 * Several processes serve one port: connections go round among them, so that requests which each open their
 * own reach all of them in turn. Every test here uses `fresh` connections for that.
 */
const workers = 3
const server = await startServer(t, { config: { workers, log: { level: 'warn' } } })

const fresh = (method: string, path: string, body?: Buffer, headers: Record<string, string> = {}) =>
  server.request(method, path, { fresh: true, headers, ...(body === undefined ? {} : { body }) })

const times = <T>(count: number, make: (n: number) => Promise<T>): Promise<T[]> =>
  Promise.all(Array.from({ length: count }, (_, n) => make(n)))

/*
 * One request on an upload stands still, another one waits for its turn: begun here, since the wait is long, and
 * looked at by the last test.
 */
const waited = (async () => {
  const location = await openUpload(server, newRepository('workers'))
  const still = await RawConnection.open(server)
  await still.request(`PATCH ${location}`, ['Content-Length: 600'], Buffer.alloc(300))
  await eventually(
    'the first request has its turn',
    () => filesBelow(join(server.data, 'uploads')).length > 0,
  )
  const started = Date.now()
  const reply = await fresh('PATCH', location, Buffer.alloc(1000), { 'Content-Range': '0-999' })
  return { location, still, reply, seconds: (Date.now() - started) / 1000 }
})()

t.test('workers: as many processes as are set serve one port', async (t) => {
  t.equal(processTree(server.pid).length, workers + 1)
})

t.test('UP-08: each chunk of an upload may reach another worker', async (t) => {
  const repository = newRepository('workers')
  for (const digestOf of [
    (content: Content) => content.digest,
    (content: Content) => sha512(content.bytes),
  ]) {
    const content = randomBlob(90_000)
    const opened = await fresh('POST', `/v2/${repository}/blobs/uploads/`)
    const first = opened.header('location')
    let location = first
    for (let at = 0; at < content.size; at += 10_000) {
      const chunk = content.bytes.subarray(at, at + 10_000)
      const reply = await fresh('PATCH', location, chunk, { 'Content-Range': `${at}-${at + 9999}` })
      t.equal(reply.status, 202, reply.text)
      location = reply.header('location')
      const status = await fresh('GET', first)
      t.equal(status.status, 204)
      t.equal(status.header('range'), `0-${at + 9999}`, 'the others know at once')
      const again = await fresh('PATCH', first, chunk, { 'Content-Range': `${at}-${at + 9999}` })
      isError(t, again, 416, 'RANGE_INVALID')
    }
    const put = await fresh('PUT', withQuery(location, `digest=${digestOf(content)}`), Buffer.alloc(0))
    t.equal(put.status, 201, put.text)
    for (const reply of await times(4, () => fresh('GET', `/v2/${repository}/blobs/${digestOf(content)}`)))
      t.ok(reply.body.equals(content.bytes))
    for (const reply of await times(4, () => fresh('GET', first))) t.equal(reply.status, 404)
  }
})

t.test('UP-44, UP-64: appending without ranges through all workers, and the hash is right', async (t) => {
  const repository = newRepository('workers')
  const content = randomBlob(3_000_000)
  const location = await openUpload(server, repository)
  for (let at = 0; at < content.size; at += 500_000) {
    const reply = await fresh('PATCH', location, content.bytes.subarray(at, at + 500_000))
    t.equal(reply.status, 202)
  }
  t.equal((await finishUpload(server, location, content.digest)).status, 201)
})

/** Pushes a blob in one of several ways, on connections of its own. */
async function pushSomehow(repository: string, digest: string, bytes: Buffer, way: number): Promise<Reply> {
  const uploads = `/v2/${repository}/blobs/uploads/`
  if (way % 4 === 0) return fresh('POST', `${uploads}?digest=${digest}`, bytes)
  const opened = await fresh('POST', uploads)
  let location = opened.header('location')
  if (way % 4 === 1) return fresh('PUT', withQuery(location, `digest=${digest}`), bytes)
  const pieces = way % 4 === 2 ? 1 : 3
  const size = Math.ceil(bytes.length / pieces)
  for (let at = 0; at < bytes.length; at += size) {
    const patched = await fresh('PATCH', location, bytes.subarray(at, at + size))
    if (patched.status !== 202) return patched
    location = patched.header('location')
  }
  return fresh('PUT', withQuery(location, `digest=${digest}`), Buffer.alloc(0))
}

t.test(
  'R20: 64 clients push one digest at once, one of them wrong bytes: the right ones get 201, one file',
  async (t) => {
    const before = filesBelow(join(server.data, 'uploads')).length
    for (const shared of [true, false]) {
      const repository = newRepository('workers')
      const content = randomBlob(200_000)
      const wrong = randomBlob(200_000)
      const wrongOne = 17
      const replies = await times(64, (n) =>
        pushSomehow(
          shared ? repository : `${repository}/${n % 8}`,
          content.digest,
          n === wrongOne ? wrong.bytes : content.bytes,
          n,
        ),
      )
      for (const [n, reply] of replies.entries()) {
        if (n === wrongOne) isError(t, reply, 400, 'DIGEST_INVALID')
        else t.equal(reply.status, 201, `client ${n}: ${reply.text}`)
      }
      const hex = content.digest.slice(7)
      const files = filesBelow(join(server.data, 'blobs')).filter((file) => file.includes(hex))
      t.same(files, [`sha256/${hex.slice(0, 2)}/${hex}`])
      const where = shared ? repository : `${repository}/3`
      const read = await fresh('GET', `/v2/${where}/blobs/${content.digest}`)
      t.equal(createHash('sha256').update(read.body).digest('hex'), hex)
    }
    t.equal(filesBelow(join(server.data, 'uploads')).length, before, 'and nothing is left of the uploads')
  },
)

t.test('R28, UP-47: of PATCHes for one place on several workers exactly one is taken', async (t) => {
  const repository = newRepository('workers')
  const content = randomBlob(400_000)
  for (let round = 0; round < 6; round++) {
    const location = await openUpload(server, repository)
    const range = { 'Content-Range': `0-${content.size - 1}` }
    const replies = await times(4, () => fresh('PATCH', location, content.bytes, range))
    const taken = replies.filter((reply) => reply.status === 202)
    t.equal(taken.length, 1, `round ${round}`)
    for (const reply of replies.filter((reply) => reply.status !== 202))
      isError(t, reply, 416, 'RANGE_INVALID')
    t.equal((await fresh('GET', location)).header('range'), `0-${content.size - 1}`)
    t.equal((await finishUpload(server, location, content.digest)).status, 201)
  }
})

t.test(
  'UP-47: while one worker reads a PATCH another does not write, and the loser learns the offset',
  async (t) => {
    const repository = newRepository('workers')
    const content = randomBlob(1000)
    const location = await openUpload(server, repository)
    const slow = await RawConnection.open(server)
    await slow.request(`PATCH ${location}`, ['Content-Length: 600'], content.bytes.subarray(0, 300))
    const status = await fresh('GET', location)
    t.equal(status.status, 204, 'the status is told meanwhile')
    const file = new URL(location, server.url).pathname.split('/').at(-1) ?? ''
    await eventually('the first has its turn', () => existsSync(join(server.data, 'uploads', file)))
    const second = fresh('PATCH', location, content.bytes, { 'Content-Range': '0-999' })
    await slow.send(content.bytes.subarray(300, 600))
    t.equal((await slow.reply()).status, 202)
    const refused = await second
    isError(t, refused, 416, 'RANGE_INVALID')
    t.equal(refused.header('range'), '0-599')
    await slow.close()
    t.equal((await resumeUpload(server, location, content)).status, 201)
  },
)

t.test(
  'UP-60, UP-62: of closing PUTs on several workers none is answered wrongly, and the blob is there',
  async (t) => {
    const repository = newRepository('workers')
    for (let round = 0; round < 5; round++) {
      const content = randomBlob(100_000)
      const location = await openUpload(server, repository)
      await fresh('PATCH', location, content.bytes)
      const target = withQuery(location, `digest=${content.digest}`)
      const replies = await times(4, () => fresh('PUT', target, Buffer.alloc(0)))
      t.ok(
        replies.every((reply) => reply.status === 201),
        replies.map((reply) => `${reply.status} ${reply.code}`).join(),
      )
      t.ok((await fresh('GET', `/v2/${repository}/blobs/${content.digest}`)).body.equals(content.bytes))
    }
  },
)

t.test('R21: readers of a blob that is being pushed see 404 or all of it', async (t) => {
  const repository = newRepository('workers')
  for (let round = 0; round < 12; round++) {
    const content = randomBlob(700_000)
    const path = `/v2/${repository}/blobs/${content.digest}`
    let pushing = true
    const readers = times(3, async (n) => {
      const seen = new Set<number>()
      while (pushing || !seen.has(200)) {
        const reply = await fresh(n === 0 ? 'HEAD' : 'GET', path)
        seen.add(reply.status)
        if (reply.status === 200 && n > 0 && !reply.body.equals(content.bytes)) t.fail('a partial blob')
        if (reply.status === 200 && reply.header('content-length') !== String(content.size))
          t.fail(`a length of ${reply.header('content-length')}`)
        if (reply.status !== 200 && reply.status !== 404) t.fail(`${reply.status} ${reply.text}`)
      }
      return seen
    })
    const pushed = await pushSomehow(repository, content.digest, content.bytes, round)
    pushing = false
    t.equal(pushed.status, 201)
    for (const seen of await readers) t.ok(seen.has(200))
  }
})

t.test('MF-04, MF-17, R30: what one worker was told all of them know at once', async (t) => {
  const repository = newRepository('workers')
  const versions = Array.from({ length: 6 }, (_, n) =>
    image({ layers: [], extra: { annotations: { n: String(n) } } }),
  )
  for (const version of versions) await pushBlobs(server, repository, ...version.parts)
  for (const version of [...versions, ...versions.toReversed()]) {
    const put = await fresh('PUT', `/v2/${repository}/manifests/moving`, version.bytes, {
      'Content-Type': OCI_MANIFEST,
    })
    t.equal(put.status, 201)
    for (const reply of await times(6, () => fresh('GET', `/v2/${repository}/manifests/moving`)))
      t.equal(reply.header('docker-content-digest'), version.digest)
  }
  t.equal((await fresh('DELETE', `/v2/${repository}/manifests/moving`)).status, 202)
  for (const reply of await times(6, () => fresh('GET', `/v2/${repository}/manifests/moving`)))
    t.equal(reply.status, 404)
})

t.test(
  'MF-17, R30: writers and readers of tags on all workers see whole manifests, and no tag doubles',
  async (t) => {
    const repository = newRepository('workers')
    const versions = Array.from({ length: 8 }, (_, n) =>
      image({ layers: [], extra: { annotations: { n: String(n) } } }),
    )
    const texts = new Map(versions.map((version) => [version.digest, version.bytes.toString()]))
    for (const version of versions) await push(server, repository, 'a', version)
    let writing = true
    const readers = times(4, async () => {
      while (writing) {
        const reply = await fresh('GET', `/v2/${repository}/manifests/a`)
        if (texts.get(reply.header('docker-content-digest')) !== reply.text)
          t.fail(`${reply.status} ${reply.text}`)
        const tags = await fresh('GET', `/v2/${repository}/tags/list`)
        const names = tags.json<{ tags: string[] }>().tags
        if (new Set(names).size !== names.length) t.fail(`tags ${names}`)
      }
    })
    await times(8, async (n) => {
      for (let round = 0; round < 8; round++) {
        const version = versions[(n + round) % versions.length] as Manifest
        const reference = round % 2 === 0 ? 'a' : `${version.digest}?tag=a&tag=b&tag=c${n}`
        const put = await putManifest(server, repository, reference, version)
        t.equal(put.status, 201, put.text)
      }
    })
    writing = false
    await readers
    const last = versions[3] as Manifest
    await putManifest(server, repository, `${last.digest}?tag=a&tag=b`, last)
    const [a, b] = await Promise.all(
      ['a', 'b'].map((tag) => fresh('GET', `/v2/${repository}/manifests/${tag}`)),
    )
    t.equal(a?.header('docker-content-digest'), last.digest)
    t.equal(b?.header('docker-content-digest'), last.digest)
    t.same(await tagsOf(server, repository), ['a', 'b', ...Array.from({ length: 8 }, (_, n) => `c${n}`)])
  },
)

t.test('MF-18: of conditional pushes on several workers exactly one goes through', async (t) => {
  const repository = newRepository('workers')
  const versions = Array.from({ length: 8 }, (_, n) =>
    image({ layers: [], extra: { annotations: { n: String(n) } } }),
  )
  for (const version of versions) await pushBlobs(server, repository, ...version.parts)
  const headers = { 'Content-Type': OCI_MANIFEST, 'If-None-Match': '*' }
  const replies = await times(8, (n) =>
    fresh('PUT', `/v2/${repository}/manifests/once`, versions[n]?.bytes, headers),
  )
  t.same(replies.map((reply) => reply.status).sort(), [201, ...Array<number>(7).fill(412)])
})

t.test('UP-07: the limit on open uploads holds over all workers', async (t) => {
  const limited = await startServer(t, { config: { workers: 2, uploads: { maxPerRepository: 5 } } })
  const replies = await times(12, () =>
    limited.request('POST', '/v2/limited/blobs/uploads/', { fresh: true }),
  )
  t.equal(replies.filter((reply) => reply.status === 202).length, 5)
  t.equal(replies.filter((reply) => reply.status === 429).length, 7)
  await limited.stop()
})

t.test(
  'UP-47: who waits too long for another request on the upload gets 416, and the first goes on',
  async (t) => {
    const { location, still, reply, seconds } = await waited
    isError(t, reply, 416, 'RANGE_INVALID')
    t.equal(reply.header('range'), '0-0')
    t.ok(seconds > 5, `after ${seconds} s`)
    await still.send(Buffer.alloc(300))
    t.equal((await still.reply()).status, 202)
    t.equal((await fresh('GET', location)).header('range'), '0-599')
    t.equal((await fresh('DELETE', location)).status, 204)
    await still.close()
  },
)

t.test('a worker that dies alone is replaced, also on a port that the system has chosen', async (t) => {
  const alone = await startServer(t, { config: { workers: 2, log: { level: 'info', format: 'json' } } })
  for (const [round, place] of [0, 1, 0].entries()) {
    process.kill(processTree(alone.pid).slice(1)[place] ?? 0, 'SIGKILL')
    const served = () => alone.stderr().match(/a new worker serves/g)?.length ?? 0
    await eventually('a new worker serves', () => served() === round + 1, 30_000)
  }
  t.notMatch(alone.stderr(), /could not start/, 'none of them found the port taken')
})

t.test('UP-47, R32: a worker that dies is replaced, and the upload it was reading goes on', async (t) => {
  const repository = newRepository('workers')
  const content = randomBlob(900_000)
  const location = await openUpload(server, repository)
  const connection = await RawConnection.open(server)
  await connection.request(
    `PATCH ${location}`,
    [`Content-Length: ${content.size}`],
    content.bytes.subarray(0, 500_000),
  )
  await eventually('the worker has read some', () => filesBelow(join(server.data, 'uploads')).length > 0)
  const before = processTree(server.pid).slice(1)
  for (const pid of before) {
    process.kill(pid, 'SIGKILL')
    await eventually('another worker', () => {
      const now = processTree(server.pid).slice(1)
      return now.length === workers && !now.includes(pid)
    })
  }
  await connection.closed
  // A connection that was handed to a worker as it died is lost: it is given up soon, and another one opened.
  const ask = () => server.request('GET', '/readyz', { fresh: true, timeout: 1000 })
  await eventually('requests are served', async () => (await ask()).status === 200, 15_000)
  t.equal((await resumeUpload(server, location, content)).status, 201)
  t.ok((await fresh('GET', `/v2/${repository}/blobs/${content.digest}`)).body.equals(content.bytes))
})

everyReplyKeptTheRules(t)

t.test(
  'a worker that dies takes no connection with it: who was on the way to it is told, at once',
  async (t) => {
    const pair = await startServer(t, { config: { workers: 2 } })
    const victim = processTree(pair.pid)[1] ?? 0
    // It takes nothing any more: connections that go round to it are under way when it dies.
    process.kill(victim, 'SIGSTOP')
    const connections = await times(12, async () => {
      const connection = await RawConnection.open(pair)
      await connection.request('GET /v2/')
      return connection
    })
    const unanswered = () => connections.filter((one) => one.replies().length === 0 && !one.isClosed)
    await eventually('the other worker serves', () => unanswered().length <= 2)
    t.ok(unanswered().length > 0, 'some were on the way')
    process.kill(victim, 'SIGKILL')
    await eventually('each is answered or closed', () => unanswered().length === 0)
  },
)
