import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { clientAddress } from '../src/http/origin.js'
import {
  eventually,
  everyReplyKeptTheRules,
  filesBelow,
  image,
  isError,
  newRepository,
  openUpload,
  processTree,
  push,
  randomBlob,
  type Server,
  startServer,
  withQuery,
} from './harness.js'

const server = await startServer(t, { config: { workers: 2 } })
const repository = newRepository('operations')
const manifest = image({ layers: [randomBlob(12_345)] })
await push(server, repository, 'v1', manifest)

/** The samples of /metrics: name, labels, value. */
async function metrics(at: Server) {
  const reply = await at.request('GET', '/metrics')
  const samples = reply.text
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('#'))
    .map((line) => {
      const [, name = '', labels = '', value = ''] = /^([a-zA-Z_:]\w*)(?:\{(.*)\})? (\S+)/.exec(line) ?? []
      return {
        name,
        labels: Object.fromEntries([...labels.matchAll(/(\w+)="([^"]*)"/g)].map((m) => [m[1], m[2]])),
        value: Number(value),
      }
    })
  const sum = (name: string, labels: Record<string, string> = {}) =>
    samples
      .filter((sample) => sample.name === name)
      .filter((sample) => Object.entries(labels).every(([key, value]) => sample.labels[key] === value))
      .reduce((total, sample) => total + sample.value, 0)
  return { reply, samples, sum }
}

t.test('start: three lines say where it listens, where the data is, and what to type', async (t) => {
  const lines = server.stdout()
  t.equal(lines.length, 3)
  t.match(lines[0], /^Boathouse \S+ is listening on http:\/\/127\.0\.0\.1:\d+$/)
  t.equal(lines[1], `Data is in ${server.data}`)
  t.match(lines[2], /docker push/)
  t.ok(lines[2]?.includes(String(server.port)))
})

t.test('/healthz and /readyz answer 200, to GET and HEAD, with any login', async (t) => {
  for (const path of ['/healthz', '/readyz']) {
    const reply = await server.request('GET', path)
    t.equal(reply.status, 200, path)
    t.match(reply.header('content-type'), /^(application\/json|text\/plain)/)
    t.equal((await server.request('HEAD', path)).status, 200)
    t.equal((await server.request('GET', path, { headers: { Authorization: 'Basic x' } })).status, 200)
    isError(t, await server.request('POST', path), 405, 'UNSUPPORTED')
  }
})

t.test('/metrics is in the text format of Prometheus and counts requests by route and status', async (t) => {
  const before = await metrics(server)
  t.equal(before.reply.status, 200)
  t.match(before.reply.header('content-type'), /^text\/plain; version=0\.0\.4/)
  for (let n = 0; n < 10; n++) {
    await server.request('GET', `/v2/${repository}/manifests/v1`, { fresh: true })
    await server.request('GET', `/v2/${repository}/manifests/nothing-${n}`, { fresh: true })
  }
  const total = 'boathouse_http_requests_total'
  await eventually('all workers have counted', async () => {
    const after = await metrics(server)
    return (
      after.sum(total, { status: '200', method: 'GET' }) -
        before.sum(total, { status: '200', method: 'GET' }) >=
        10 && after.sum(total, { status: '404' }) - before.sum(total, { status: '404' }) === 10
    )
  })
  const { samples } = await metrics(server)
  for (const line of samples.filter((sample) => sample.name === total))
    t.same(Object.keys(line.labels).sort(), ['method', 'route', 'status'])
  t.ok(samples.some((sample) => sample.name === 'boathouse_http_request_duration_seconds_bucket'))
})

t.test(
  '/metrics counts bytes in and out, uploads that are open, blobs and bytes stored, and the index',
  async (t) => {
    const before = await metrics(server)
    const size = 2_000_000
    const content = randomBlob(size)
    const location = await openUpload(server, repository)
    const open = await metrics(server)
    t.equal(open.sum('boathouse_open_uploads') - before.sum('boathouse_open_uploads'), 1)
    await server.request('PUT', withQuery(location, `digest=${content.digest}`), { body: content.bytes })
    await server.request('GET', `/v2/${repository}/blobs/${content.digest}`)
    const grown = await eventually('the bytes are counted', async () => {
      const now = await metrics(server)
      const received =
        now.sum('boathouse_http_received_bytes_total') - before.sum('boathouse_http_received_bytes_total')
      const sent = now.sum('boathouse_http_sent_bytes_total') - before.sum('boathouse_http_sent_bytes_total')
      return received >= size && sent >= size && now
    })
    t.equal(grown.sum('boathouse_blobs') - before.sum('boathouse_blobs'), 1, 'workers do not count twice')
    t.equal(grown.sum('boathouse_blob_bytes') - before.sum('boathouse_blob_bytes'), size)
    t.equal(grown.sum('boathouse_open_uploads'), before.sum('boathouse_open_uploads'))
    t.ok(grown.sum('boathouse_metadata_bytes') > 0)
  },
)

t.test('/metrics: no label grows with what clients send', async (t) => {
  for (let n = 0; n < 30; n++) {
    await server.request('GET', `/v2/unbounded-${n}/x/manifests/tag-${n}`)
    await server.request('GET', `/unbounded-${n}`)
    await server.request('GET', `/v2/${repository}/blobs/sha256:unbounded-${n}`)
    await server.request('POST', `/v2/${repository}/blobs/uploads/?digest=unbounded-${n}`)
    await server.request('GET', '/v2/', { headers: { 'User-Agent': `unbounded-${n}` } })
  }
  for (const method of ['PROPFIND', 'MKCOL', 'LOCK', 'PURGE', 'TRACE', 'SEARCH'])
    await server.request(method, '/v2/')
  const { reply, samples } = await metrics(server)
  t.notMatch(reply.text, /unbounded/)
  t.notMatch(reply.text, new RegExp(repository))
  const methods = new Set(samples.map((sample) => sample.labels.method).filter(Boolean))
  t.notOk(methods.has('PROPFIND'), 'methods of clients are no labels')
  t.ok(samples.length < 1500, `${samples.length} series`)
})

t.test('the log has one JSON line for each request, with method, path, status and time', async (t) => {
  const mark = `log-${Date.now()}`
  await server.request('GET', `/v2/${mark}/manifests/v1`)
  await server.request('HEAD', `/v2/${repository}/manifests/v1?${mark}`)
  const lines = await eventually('the line', () => {
    const found = server.logs().filter((line) => JSON.stringify(line).includes(`/v2/${mark}/`))
    return found.length > 0 && found
  })
  t.equal(lines.length, 1)
  t.match(lines[0], { method: 'GET', path: `/v2/${mark}/manifests/v1`, status: 404, level: 30 })
  t.type(lines[0]?.ms, 'number')
  t.type(lines[0]?.time, 'number')
})

t.test('the log has as many request lines as there were requests', async (t) => {
  const mark = `count-${Date.now()}`
  await Promise.all(
    Array.from({ length: 50 }, (_, n) =>
      server.request('GET', `/v2/${mark}/manifests/n${n}`, { fresh: n % 2 === 0 }),
    ),
  )
  const lines = () => server.logs().filter((line) => String(line.path).includes(mark))
  await eventually('fifty lines', () => lines().length === 50)
  t.equal(new Set(lines().map((line) => line.path)).size, 50)
})

t.test(
  'S63: no secret that a client sends reaches the log, the answers, the metrics, the disk or the process list',
  async (t) => {
    const canary = (n: number) => `c4n4ry${n}zzz`
    const requests: [string, string, Record<string, string>][] = [
      ['GET', '/v2/', { Authorization: `Basic ${Buffer.from(`user:${canary(1)}`).toString('base64')}` }],
      ['GET', `/v2/${repository}/manifests/v1`, { Authorization: `Bearer ${canary(2)}` }],
      ['GET', `/v2/${repository}/manifests/v1?_token=${canary(3)}&access_token=${canary(3)}`, {}],
      ['GET', `/v2/${repository}/nothing?password=${canary(4)}`, {}],
      ['GET', '/v2/', { Cookie: `session=${canary(5)}`, 'Proxy-Authorization': canary(5) }],
      [
        'GET',
        '/v2/',
        { 'X-Registry-Auth': canary(6), 'X-Api-Key': canary(6), Referer: `http://x/?t=${canary(6)}` },
      ],
      ['POST', `/v2/${repository}/blobs/uploads/?_state=${canary(7)}`, {}],
      ['PUT', `/v2/${repository}/manifests/x?token=${canary(8)}`, { 'Content-Type': `x/y; p=${canary(8)}` }],
      ['PROPFIND', `/v2/?x=${canary(9)}`, { Authorization: canary(9) }],
      ['GET', `/v1/search?q=x&secret=${canary(10)}`, { Authorization: `Basic ${canary(10)}` }],
    ]
    for (const [method, path, headers] of requests) {
      const reply = await server.request(method, path, { headers })
      t.notMatch(reply.text, /c4n4ry/, path)
    }
    const basic = Buffer.from(`user:${canary(1)}`).toString('base64')
    await server.request('GET', '/v2/last-of-the-canaries/tags/list')
    await eventually('the log is written', () => server.stderr().includes('last-of-the-canaries'))
    t.notMatch(server.stderr(), /c4n4ry/)
    t.notOk(server.stderr().includes(basic))
    t.notMatch((await metrics(server)).reply.text, /c4n4ry/)
    for (const file of filesBelow(server.data).filter((name) => !name.startsWith('blobs')))
      t.notOk(readFileSync(join(server.data, file)).includes('c4n4ry'), file)
    for (const pid of processTree(server.pid))
      t.notMatch(readFileSync(`/proc/${pid}/cmdline`, 'utf8'), /c4n4ry/)
  },
)

t.test('the log stays quiet at a higher level, and says nothing at all when silent', async (t) => {
  for (const level of ['warn', 'silent']) {
    const quiet = await startServer(t, { config: { log: { level } } })
    await quiet.request('GET', '/v2/never/pushed/manifests/x')
    await quiet.request('GET', '/v2/')
    await quiet.stop()
    t.equal(quiet.stderr(), '', level)
  }
})

t.test('pretty lines for people where they are asked for', async (t) => {
  const pretty = await startServer(t, { env: { BOATHOUSE_LOG_FORMAT: 'pretty' } })
  await pretty.request('GET', '/v2/')
  await eventually('a line', () => pretty.stderr().includes('/v2/'))
  t.notMatch(pretty.stderr(), /^\{/m)
  await pretty.stop()
})

everyReplyKeptTheRules(t)

t.test('addresses are written as people know them, also where both kinds are listened on', async (t) => {
  const addressOf = (ip: string) => clientAddress({ ip, protocol: 'http', host: undefined })
  t.equal(addressOf('::ffff:192.0.2.7'), '192.0.2.7')
  t.equal(clientAddress({ ip: undefined, protocol: 'http', host: undefined }), '', 'who has left has none')
  for (const ip of ['192.0.2.7', '::1', '2001:db8::7', '::ffff:c000:207']) t.equal(addressOf(ip), ip)
})
