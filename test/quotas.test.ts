import t, { type Test } from 'tap'
import {
  eventually,
  everyReplyKeptTheRules,
  image,
  newRepository,
  openUpload,
  push,
  pushBlobs,
  putManifest,
  RawConnection,
  type Reply,
  randomBlob,
  runServerCommand,
  type Server,
  startServer,
  withQuery,
} from './harness.js'
import { checkFolder } from './torture/checker.js'

interface Use {
  readonly pattern: string
  readonly limit: number
  readonly used: number
}

/** What the command tells of one quota. */
async function useOf(server: Server, pattern: string): Promise<Use> {
  const { code, stdout, stderr } = await runServerCommand(['quota', '--json', '--data', server.data])
  if (code !== 0) throw new Error(stderr)
  const found = (JSON.parse(stdout) as Use[]).find((quota) => quota.pattern === pattern)
  if (found === undefined) throw new Error(`there is no quota ${pattern}`)
  return found
}

/** Asserts the refusal of a push that does not fit. */
function isOver(t: Test, reply: Reply, pattern: string, what: string) {
  t.equal(reply.status, 403, `${what}: ${reply.text}`)
  t.equal(reply.code, 'DENIED', what)
  t.match(
    reply.errors[0]?.message,
    /^quota \S+ is exhausted: \d+ of \d+ bytes are used or on their way, .*push again$/,
    what,
  )
  t.match(reply.errors[0]?.detail, { quota: pattern, limit: Number, used: Number }, what)
}

/** Stops the server and looks whether the sums are those of what is there (I10). */
async function endWell(t: Test, server: Server) {
  t.same(await server.stop(), { code: 0, signal: null })
  t.same(checkFolder(server.data, { isCleanStop: true }).violations, [])
}

const uploadsOf = (repository: string) => `/v2/${repository}/blobs/uploads/`

t.test('S75: a chunked body under a quota arrives whole, whatever its size', async (t) => {
  const server = await startServer(t, { config: { quotas: ['team/*=400MB'] } })
  const repository = newRepository('team')
  for (const size of [1, 1770, 60_000, 70_000, 1_100_000, 33_700_000]) {
    const layer = randomBlob(size)
    const location = await openUpload(server, repository)
    // Head, body and its end in one write: all of it is here before the first answer of the quota.
    const chunked = [`${size.toString(16)}\r\n`, layer.bytes, '\r\n0\r\n\r\n'].map((part) =>
      Buffer.from(part),
    )
    const connection = await RawConnection.open(server)
    await connection.request(`PATCH ${location}`, ['Transfer-Encoding: chunked'], Buffer.concat(chunked))
    const reply = await connection.reply()
    await connection.close()
    t.equal(reply.status, 202, `${size} bytes: ${reply.body}`)
    t.equal(reply.headers.range, `0-${size - 1}`, `${size} bytes`)
    t.equal(
      (await server.request('PUT', withQuery(location, `digest=${layer.digest}`))).status,
      201,
      `${size} bytes`,
    )
  }
  await endWell(t, server)
})

t.test('UP-10, MF-15: every step of a push that does not fit under a quota is refused', async (t) => {
  const server = await startServer(t, { config: { quotas: ['team/*=1MB'] } })
  const repository = newRepository('team')
  const uploads = uploadsOf(repository)
  const first = image({ layers: [randomBlob(600_000)] })
  await push(server, repository, 'x', first)
  const before = await useOf(server, 'team/*')
  const sizes = [first, ...first.parts].map(({ bytes }) => bytes.length)
  t.equal(
    before.used,
    sizes.reduce((sum, size) => sum + size, 0),
    'blobs and manifests count',
  )
  const large = randomBlob(500_000)

  await t.test('a whole blob and a chunk, by the length they announce', async (t) => {
    const whole = await server.request('POST', `${uploads}?digest=${large.digest}`, { body: large.bytes })
    isOver(t, whole, 'team/*', 'POST')
    const location = await openUpload(server, repository)
    isOver(t, await server.request('PATCH', location, { body: large.bytes }), 'team/*', 'PATCH')
    const put = await server.request('PUT', `${location}?digest=${large.digest}`, { body: large.bytes })
    isOver(t, put, 'team/*', 'PUT')
    t.equal((await server.request('HEAD', location)).header('range'), '0-0')
    t.equal((await server.request('DELETE', location)).status, 204)
  })

  await t.test('a body of unknown length, when the last byte that fits has come', async (t) => {
    const location = await openUpload(server, repository)
    const over = await server.request('PATCH', location, { body: large.bytes, chunked: true })
    isOver(t, over, 'team/*', 'PATCH')
    const fits = await server.request('PATCH', location, {
      body: large.bytes.subarray(0, 300_000),
      chunked: true,
    })
    t.equal(fits.status, 202, 'less of it fits')
    t.equal((await useOf(server, 'team/*')).used, before.used + 300_000, 'open uploads count')
    isOver(t, await server.request('PATCH', location, { body: large.bytes }), 'team/*', 'the next chunk')
    t.equal((await server.request('DELETE', location)).status, 204)
    t.equal((await useOf(server, 'team/*')).used, before.used, 'and no more when they are cancelled')
  })

  await t.test('a mount, and a manifest', async (t) => {
    const elsewhere = newRepository('elsewhere')
    await pushBlobs(server, elsewhere, large)
    const mount = `${uploads}?mount=${large.digest}&from=${elsewhere}`
    isOver(t, await server.request('POST', mount), 'team/*', 'mount')
    await pushBlobs(server, repository, randomBlob(1_000_000 - before.used - 100))
    isOver(t, await putManifest(server, repository, 'y', image({ layers: [] })), 'team/*', 'manifest')
    const again = await putManifest(server, repository, 'y', first)
    t.equal(again.status, 201, 'a manifest that is there adds nothing')
  })

  await t.test('the start of an upload when nothing is left; other repositories do not mind', async (t) => {
    await pushBlobs(server, repository, randomBlob(100))
    isOver(t, await server.request('POST', uploads), 'team/*', 'start')
    isOver(t, await server.request('POST', uploadsOf(newRepository('team'))), 'team/*', 'a new repository')
    t.equal((await server.request('POST', uploadsOf('other/app'))).status, 202)
    t.equal((await server.request('POST', uploadsOf('team/app/deep'))).status, 202)
    t.equal((await server.request('GET', `/v2/${repository}/manifests/x`)).status, 200, 'pulls go on')
    const { text } = await server.request('GET', '/metrics')
    t.match(text, /^boathouse_quota_used_bytes\{quota="team\/\*"\} 1000000$/m)
    t.match(text, /^boathouse_quota_limit_bytes\{quota="team\/\*"\} 1000000$/m)
  })
  await endWell(t, server)
})

t.test('many pushes at once through two workers never exceed a quota together', async (t) => {
  const limit = 3_000_000
  const server = await startServer(t, { config: { workers: 2, quotas: ['team/*=3MB', '**=100MB'] } })
  const pushes = Array.from({ length: 24 }, async (_, at) => {
    const repository = `team/app${at % 5}`
    const content = randomBlob(400_000)
    if (at % 2 === 0) {
      const path = `${uploadsOf(repository)}?digest=${content.digest}`
      return (await server.request('POST', path, { body: content.bytes, fresh: true })).status
    }
    const start = await server.request('POST', uploadsOf(repository), { fresh: true })
    if (start.status !== 202) return start.status
    const options = { body: content.bytes, chunked: true, fresh: true }
    return (await server.request('PATCH', start.header('location'), options)).status
  })
  const statuses = await Promise.all(pushes)
  t.same(
    [...new Set(statuses)].filter((status) => ![201, 202, 403].includes(status)),
    [],
  )
  const stored = statuses.filter((status) => status === 201 || status === 202).length
  t.ok(stored >= 1 && stored <= 7, `${stored} of 24 fit`)
  const { used } = await useOf(server, 'team/*')
  t.equal(used, stored * 400_000, 'what is told is what is stored')
  t.ok(used <= limit)
  t.equal((await useOf(server, '**')).used, used, 'both quotas count it')
  await endWell(t, server)
})

t.test('what is deleted, collected and left behind by a killed server does not count', async (t) => {
  const config = { quotas: ['team/*=10MB'], gc: { grace: '3s', interval: '100ms' } }
  const server = await startServer(t, { config })
  const manifest = image({ layers: [randomBlob(2_000_000)] })
  const pushed = await push(server, 'team/app', 'x', manifest)
  const path = `/v2/team/app/manifests/${pushed.header('docker-content-digest')}`
  t.equal((await server.request('DELETE', path)).status, 202)
  await eventually(
    'the layers do not count any more',
    async () => {
      return (await useOf(server, 'team/*')).used === 0
    },
    30_000,
  )

  const location = await openUpload(server, 'team/app')
  t.equal((await server.request('PATCH', location, { body: randomBlob(5000).bytes })).status, 202)
  const half = server
    .request('PATCH', location, { headers: { 'Content-Length': '6000000' }, body: 'x', unchecked: true })
    .catch(() => undefined)
  await eventually('what is announced counts', async () => (await useOf(server, 'team/*')).used === 6_005_000)
  await server.kill()
  await half
  const next = await startServer(t, { data: server.data, config })
  t.equal((await useOf(next, 'team/*')).used, 5000, 'a dead process holds no room')
  await endWell(t, next)
})

t.test('quotas are taken up at the start, with what is there already', async (t) => {
  const first = await startServer(t)
  const manifest = image({ layers: [randomBlob(50_000)] })
  await push(first, 'team/app', 'x', manifest)
  await push(first, 'other', 'x', manifest)
  await openUpload(first, 'team/new')
  await endWell(t, first)
  const sum = [manifest, ...manifest.parts].reduce((bytes, part) => bytes + part.bytes.length, 0)

  const second = await startServer(t, {
    data: first.data,
    config: { quotas: ['team/**=1KiB', '**=1GiB'] },
  })
  t.same(await useOf(second, 'team/**'), { pattern: 'team/**', limit: 1024, used: sum })
  t.equal((await useOf(second, '**')).used, 2 * sum, 'a blob counts in each repository that links it')
  isOver(t, await startPush(second, 'team/app'), 'team/**', 'a quota below what is used')
  t.equal((await second.request('GET', '/v2/team/app/manifests/x')).status, 200, 'removes nothing')
  await endWell(t, second)

  const third = await startServer(t, { data: first.data, config: { quotas: ['**=2GiB'] } })
  t.same(await useOf(third, '**'), { pattern: '**', limit: 2 * 1024 ** 3, used: 2 * sum })
  await t.rejects(useOf(third, 'team/**'), 'the other one is gone')
  t.equal((await startPush(third, 'team/app')).status, 202)
  const { stdout } = await runServerCommand(['quota', '--data', third.data])
  t.match(stdout, /^REPOSITORIES +QUOTA +USED +FREE\n\*\* +2\.0 GiB +\d+\.\d KiB +2\.0 GiB$/m)
  await endWell(t, third)
})

function startPush(server: Server, repository: string): Promise<Reply> {
  return server.request('POST', uploadsOf(repository))
}

everyReplyKeptTheRules(t)
