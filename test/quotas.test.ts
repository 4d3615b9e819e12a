import { chmodSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import {
  type Content,
  eventually,
  everyReplyKeptTheRules,
  filesBelow,
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
  tagsOf,
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
  t.match(await useOf(second, 'team/**'), { pattern: 'team/**', limit: 1024, used: sum, deleted: 0 })
  t.equal((await useOf(second, '**')).used, 2 * sum, 'a blob counts in each repository that links it')
  isOver(t, await startPush(second, 'team/app'), 'team/**', 'a quota below what is used')
  t.equal((await second.request('GET', '/v2/team/app/manifests/x')).status, 200, 'removes nothing')
  await endWell(t, second)

  const third = await startServer(t, { data: first.data, config: { quotas: ['**=2GiB'] } })
  t.match(await useOf(third, '**'), { pattern: '**', limit: 2 * 1024 ** 3, used: 2 * sum })
  await t.rejects(useOf(third, 'team/**'), 'the other one is gone')
  t.equal((await startPush(third, 'team/app')).status, 202)
  const { stdout } = await runServerCommand(['quota', '--data', third.data])
  t.match(stdout, /^REPOSITORIES +QUOTA +USED +FREE\n\*\* +2\.0 GiB +\d+\.\d KiB +2\.0 GiB$/m)
  await endWell(t, third)
})

/** The command that a refusal names, as words. */
function commandIn(reply: Reply): string[] {
  const [, words = ''] = /"boathouse ([^"]+)"/.exec(reply.errors[0]?.message ?? '') ?? []
  return words.split(' ').map((word) => word.replace(/^'(.*)'$/, '$1'))
}

function bytesOf(data: string): number {
  const blobs = join(data, 'blobs')
  return filesBelow(blobs).reduce((sum, file) => sum + statSync(join(blobs, file)).size, 0)
}

const wholeBlob = (server: Server, repository: string, { digest, bytes }: Content) =>
  server.request('POST', `${uploadsOf(repository)}?digest=${digest}`, { body: bytes })

t.test('S81, S101: what was deleted counts while it is on the disk, and can be given up', async (t) => {
  const config = { quotas: ['team/**=1MB'], gc: { grace: '1h' }, tags: { undo: '1h' } }
  const server = await startServer(t, { config })
  const first = image({ layers: [randomBlob(600_000)] })
  await push(server, 'team/app', 'v1', first)
  const { used } = await useOf(server, 'team/**')
  const remove = async () => {
    for (const path of [`manifests/${first.digest}`, ...first.parts.map(({ digest }) => `blobs/${digest}`)]) {
      t.equal((await server.request('DELETE', `/v2/team/app/${path}`)).status, 202, path)
    }
  }
  await remove()
  t.equal((await useOf(server, 'team/**')).used, used, 'all of it is there still')
  const second = randomBlob(600_000)
  isOver(t, await wholeBlob(server, 'team/app', second), 'team/**', 'no room for more')

  const restore = await runServerCommand(['tag', 'restore', 'team/app:v1', '--data', server.data])
  t.equal(restore.code, 0, restore.stderr)
  t.equal((await useOf(server, 'team/**')).used, used, 'undoing adds nothing')
  t.equal((await server.request('GET', '/v2/team/app/manifests/v1')).status, 200)

  await remove()
  const elsewhere = newRepository('elsewhere')
  const refused = await wholeBlob(server, 'team/other', second)
  isOver(t, refused, 'team/**', 'in every repository of the quota')
  await pushBlobs(server, elsewhere, ...first.parts.slice(0, 1))
  const freed = await runServerCommand([...commandIn(refused), '--data', server.data])
  t.equal(freed.code, 0, freed.stderr)
  t.match(freed.stdout, /^Gave up 1 deleted manifests and 4 changes of tags that are gone; freed \d+ blobs/)
  t.equal((await useOf(server, 'team/**')).used, 0)
  t.equal(bytesOf(server.data), first.parts[0]?.bytes.length, 'what another repository has stays')
  t.equal((await wholeBlob(server, 'team/app', second)).status, 201, 'and there is room')
  await endWell(t, server)
})

t.test('S81: giving up what was deleted keeps what is needed, or relied on since', async (t) => {
  const config = { quotas: ['**=10MB'], gc: { grace: '1h' }, tags: { undo: '1h' } }
  const server = await startServer(t, { config })
  const [shared, gone, wanted] = [randomBlob(1000), randomBlob(2000), randomBlob(3000)]
  const kept = image({ layers: [shared] })
  const deleted = image({ layers: [shared, gone, wanted], config: kept.parts[0] as Content })
  await push(server, 'team/app', 'kept', kept)
  await push(server, 'team/app', 'deleted', deleted)
  await push(server, 'other', 'kept', image({ layers: [gone] }))
  t.equal((await server.request('DELETE', `/v2/team/app/manifests/${deleted.digest}`)).status, 202)
  await pushBlobs(server, 'team/app', wanted)
  const freed = await runServerCommand(['quota', 'free', 'team/*', '--json', '--data', server.data])
  t.match(JSON.parse(freed.stdout), { pattern: 'team/*', manifests: 1, blobs: 0, bytes: 0 })
  for (const { digest } of [...kept.parts, wanted]) {
    t.equal((await server.request('GET', `/v2/team/app/blobs/${digest}`)).status, 200)
  }
  t.equal((await server.request('HEAD', `/v2/team/app/blobs/${gone.digest}`)).status, 404)
  t.equal((await server.request('GET', `/v2/other/blobs/${gone.digest}`)).status, 200)
  const restore = await runServerCommand(['tag', 'restore', 'team/app:deleted', '--data', server.data])
  t.not(restore.code, 0, 'it was given up for good')
  await endWell(t, server)
})

t.test(
  'S101: tags, their history, deleted manifests and open uploads are bounded by a quota, too',
  async (t) => {
    const server = await startServer(t, { config: { quotas: ['team/*=1MB', 'open/*=1MB'] } })
    const manifest = image({ layers: [] })
    await push(server, 'team/app', manifest.digest, manifest)
    const tagged = async (round: number) => {
      const query = Array.from({ length: 100 }, (_, n) => `tag=t${round}-${n}-${'x'.repeat(110)}`).join('&')
      return putManifest(server, 'team/app', `${manifest.digest}?${query}`, manifest)
    }
    let rounds = 0
    let reply = await tagged(rounds)
    while (reply.status === 201 && rounds < 20) reply = await tagged(++rounds)
    t.equal(reply.status, 403, reply.text)
    t.match(reply.errors[0]?.message, /^quota team\/\* is exhausted: entries .* take \d+ of 1048576 bytes/)
    t.ok(rounds >= 4 && rounds <= 7, `${rounds * 100} tags and as many changes`)
    t.equal((await tagged(0)).status, 201, 'what is there may be pushed again')
    const [name = ''] = (await tagsOf(server, 'team/app')) ?? []
    t.equal((await server.request('DELETE', `/v2/team/app/manifests/${name}`)).status, 202, 'deletes go on')
    t.equal((await server.request('GET', '/v2/team/app/manifests/t1-1-'.concat('x'.repeat(110)))).status, 200)

    const locations: string[] = []
    for (let open = 0; open < 300; open++) {
      const started = await startPush(server, `open/app${open % 3}`)
      if (started.status !== 202) {
        t.equal(started.code, 'DENIED')
        break
      }
      locations.push(started.header('location'))
    }
    t.ok(locations.length <= 256, `${locations.length} uploads were opened`)
    t.equal((await server.request('DELETE', locations[0] ?? '')).status, 204)
    t.equal((await startPush(server, 'open/app1')).status, 202, 'one that ended makes room')
    await endWell(t, server)
  },
)

t.test('S82: a push that mends a damaged blob needs no room for it', async (t) => {
  const server = await startServer(t, { config: { quotas: ['team/*=100000B'] } })
  const layer = randomBlob(60_000)
  await push(server, 'team/app', 'x', image({ layers: [layer] }))
  const damage = async () => {
    const hex = layer.digest.slice('sha256:'.length)
    const file = join(server.data, 'blobs', 'sha256', hex.slice(0, 2), hex)
    chmodSync(file, 0o600)
    writeFileSync(file, Buffer.alloc(60_000))
    const { stdout } = await runServerCommand(['verify', '--rate', 'unlimited', '--data', server.data])
    t.match(stdout, /push it again to mend it/)
    t.equal((await server.request('HEAD', `/v2/team/app/blobs/${layer.digest}`)).status, 404)
  }
  const before = (await useOf(server, 'team/*')).used
  const isMended = async (what: string) => {
    t.equal((await server.request('GET', `/v2/team/app/blobs/${layer.digest}`)).status, 200, what)
    t.equal((await useOf(server, 'team/*')).used, before)
  }
  await damage()
  t.equal((await wholeBlob(server, 'team/app', layer)).status, 201)
  await isMended('at once')

  await damage()
  const location = await openUpload(server, 'team/app')
  const patch = await server.request('PATCH', location, { body: layer.bytes, chunked: true })
  t.equal(patch.status, 202, patch.text)
  const last = patch.header('location')
  t.equal((await server.request('PUT', `${last}?digest=${layer.digest}`)).status, 201)
  await isMended('in chunks, without a length')

  await damage()
  const other = randomBlob(50_000)
  isOver(t, await wholeBlob(server, 'team/app', other), 'team/*', 'another blob has no room')
  const odd = await openUpload(server, 'team/app')
  const sent = await server.request('PATCH', odd, { body: other.bytes, chunked: true })
  t.equal(sent.status, 202, 'it may be the one')
  const put = await server.request('PUT', `${sent.header('location')}?digest=${other.digest}`)
  isOver(t, put, 'team/*', 'it is not')
  t.equal((await server.request('DELETE', sent.header('location'))).status, 204)
  const moved = await wholeBlob(server, 'team/new', randomBlob(50_000))
  isOver(t, moved, 'team/*', 'nor has another repository')
  t.equal((await wholeBlob(server, 'team/app', layer)).status, 201)
  await isMended('after all that')
  await endWell(t, server)
})

function startPush(server: Server, repository: string): Promise<Reply> {
  return server.request('POST', uploadsOf(repository))
}

everyReplyKeptTheRules(t)
