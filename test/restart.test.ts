import t from 'tap'
import {
  artifact,
  descriptor,
  everyReplyKeptTheRules,
  finishUpload,
  image,
  index,
  isError,
  newRepository,
  openUpload,
  push,
  pushBlobs,
  putManifest,
  RawConnection,
  randomBlob,
  resumeUpload,
  type Server,
  sha512,
  startServer,
} from './harness.js'

const ends = ['SIGTERM', 'SIGKILL'] as const

function end(server: Server, how: (typeof ends)[number]) {
  return how === 'SIGTERM' ? server.stop() : server.kill()
}

for (const [how, workers] of [
  ['SIGTERM', 2],
  ['SIGKILL', 1],
] as const) {
  t.test(
    `UP-08, UP-64, S72: an upload goes on after ${how} and a restart (${workers} workers)`,
    async (t) => {
      const first = await startServer(t, { config: { workers } })
      const repository = newRepository('restart')
      const content = randomBlob(600_000)
      const empty = await openUpload(first, repository)
      const location = await openUpload(first, repository, '?digest-algorithm=sha512')
      const patched = await first.request('PATCH', location, { body: content.bytes.subarray(0, 250_000) })
      t.equal(patched.status, 202)
      await end(first, how)

      const second = await startServer(t, { data: first.data, config: { workers } })
      const status = await second.request('GET', location)
      t.equal(status.status, 204)
      t.equal(status.header('range'), '0-249999', 'what was acknowledged is there')
      const stale = await second.request('PATCH', location, {
        headers: { 'Content-Range': '0-249999' },
        body: content.bytes.subarray(0, 250_000),
      })
      isError(t, stale, 416, 'RANGE_INVALID')
      const rest = await second.request('PATCH', patched.header('location'), {
        headers: { 'Content-Range': '250000-599999' },
        body: content.bytes.subarray(250_000),
      })
      t.equal(rest.status, 202)
      const digest = sha512(content.bytes)
      await finishUpload(second, rest.header('location'), digest)
      const read = await second.request('GET', `/v2/${repository}/blobs/${digest}`)
      t.ok(read.body.equals(content.bytes))
      t.equal((await second.request('GET', empty)).status, 204, 'a session without bytes as well')
      await second.stop()
    },
  )
}

t.test('UP-48, R22: an upload goes on after SIGKILL in the middle of a PATCH', async (t) => {
  const first = await startServer(t)
  const repository = newRepository('restart')
  const content = randomBlob(3_000_000)
  const location = await openUpload(first, repository)
  await first.request('PATCH', location, { body: content.bytes.subarray(0, 100_000) })
  const connection = await RawConnection.open(first)
  await connection.request(
    `PATCH ${location}`,
    ['Content-Length: 2900000'],
    content.bytes.subarray(100_000, 2_500_000),
  )
  await first.kill()
  const second = await startServer(t, { data: first.data })
  const status = await second.request('GET', location)
  t.equal(status.status, 204)
  t.ok(Number(status.header('range').slice(2)) >= 99_999, 'the acknowledged part at least')
  t.equal((await resumeUpload(second, location, content)).status, 201)
  const read = await second.request('GET', `/v2/${repository}/blobs/${content.digest}`)
  t.ok(read.body.equals(content.bytes))
  await second.stop()
})

for (const how of ends) {
  t.test(`MF-01, RF-10: tags, manifests, referrers, lists and blobs are the same after ${how}`, async (t) => {
    const first = await startServer(t)
    const repository = newRepository('restart')
    const manifest = image()
    await push(first, repository, 'v1', manifest)
    await putManifest(first, repository, `${manifest.digest512}?tag=long`, manifest)
    const list = index([manifest])
    await putManifest(first, repository, 'list', list)
    const referrer = artifact({ subject: descriptor(manifest), artifactType: 'application/x' })
    await push(first, repository, referrer.digest, referrer)
    const gone = randomBlob()
    await pushBlobs(first, repository, gone)
    await first.request('DELETE', `/v2/${repository}/blobs/${gone.digest}`)
    await putManifest(first, repository, 'gone', manifest)
    await first.request('DELETE', `/v2/${repository}/manifests/gone`)
    const paths = [
      '/v2/_catalog',
      `/v2/${repository}/tags/list`,
      `/v2/${repository}/referrers/${manifest.digest}`,
      ...['v1', 'long', 'list', 'gone', manifest.digest, referrer.digest].map(
        (reference) => `/v2/${repository}/manifests/${reference}`,
      ),
      ...[...manifest.parts, gone].map((part) => `/v2/${repository}/blobs/${part.digest}`),
    ]
    const look = (server: Server) =>
      Promise.all(
        paths.map(async (path) => {
          const { status, headers, body } = await server.request('GET', path)
          const digest = headers['docker-content-digest']
          return { path, status, type: headers['content-type'], digest, body: body.toString('hex') }
        }),
      )
    const before = await look(first)
    await end(first, how)
    const second = await startServer(t, { data: first.data })
    t.same(await look(second), before)
    await second.stop()
  })
}

everyReplyKeptTheRules(t)
