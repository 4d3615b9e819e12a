import { randomBytes } from 'node:crypto'
import t from 'tap'
import { did } from '../commands.js'
import { eventually, type Server } from '../harness.js'
import { digest } from './fake-upstream.js'
import { holdBlob, startSyncing } from './sync-fixture.js'

/*
 * What people and their monitoring are told of mirrors, and what mirrors do by themselves.
 */

const name = 'library/app'
const images = [{ repository: name, tags: ['1'] }]

/** The values of the mirrors' metrics. */
async function metricsOf(server: Server): Promise<Record<string, number>> {
  const { text } = await server.request('GET', '/metrics', { fresh: true })
  const lines = text.matchAll(/^boathouse_mirror_(\w+)\{mirror="docker\.io"\} (\S+)$/gm)
  return Object.fromEntries([...lines].map(([, metric, value]) => [metric, Number(value)]))
}

t.test(
  'a schedule fetches ahead once, whatever the number of workers, and never twice at a time',
  async (t) => {
    const config = { workers: 2 }
    const { upstream, serve } = await startSyncing(t, { images, config, schedule: '* * * * * *' })
    const layer = randomBytes(100_000)
    upstream.addImage(name, '1', [layer])
    const { held, release } = holdBlob(upstream, layer)
    const server = await serve()
    const lines = (text: RegExp) => server.logs().filter(({ msg }) => text.test(String(msg)))
    await eventually('it is at it', held, 30_000)
    await eventually('two turns have been left out', () => lines(/this turn is left out/).length >= 2, 30_000)
    t.equal(upstream.asked('GET', /manifests\/1$/).length, 1)
    t.equal(upstream.asked('HEAD', /manifests\/1$/).length, 0)
    release()
    await eventually('more of them have ended', () => lines(/has fetched ahead/).length >= 3, 30_000)
    t.match(lines(/has fetched ahead/)[0], { mirror: 'docker.io', images: 1, complete: 1, failed: 0 })
    t.equal(upstream.asked('GET', /blobs/).length, 2, 'a config and a layer, each once')
    const heads = upstream.asked('HEAD', /manifests\/1$/).length
    t.ok(heads <= lines(/has fetched ahead/).length, `${heads} HEADs: one process does it`)
    t.match(await metricsOf(server), { last_sync_failures: 0 })
  },
)

t.test('a scheduled sync that fails says why, and the server goes on', async (t) => {
  const { serve, upstream } = await startSyncing(t, { images, schedule: '* * * * * *' })
  const server = await serve()
  const line = await eventually(
    'it is logged',
    () => server.logs().find(({ msg }) => msg === 'an image could not be fetched ahead'),
    30_000,
  )
  t.match(line, { level: 40, mirror: 'docker.io', image: `docker.io/${name}:1`, reason: /does not have it$/ })
  upstream.addImage(name, '1', [randomBytes(1000)])
  await eventually(
    'the next one succeeds',
    () => server.logs().some(({ complete }) => complete === 1),
    60_000,
  )
  t.equal((await server.stop()).code, 0)
})

t.test('the server stops while a scheduled sync is at work, and the next one goes on', async (t) => {
  const { serve, upstream } = await startSyncing(t, { images, schedule: '* * * * * *' })
  const layer = randomBytes(1_000_000)
  upstream.addImage(name, '1', [layer])
  let asked = 0
  upstream.fault = ({ path, method }) => {
    if (method !== 'GET' || !path.endsWith(digest(layer)) || asked++ > 0) return undefined
    return ({ response, reply }) => {
      response.writeHead(200, { 'content-length': String(reply.body.length) })
      response.write(reply.body.subarray(0, 500_000))
    }
  }
  const server = await serve()
  await eventually('it is at it', () => asked > 0, 30_000)
  t.equal((await server.stop()).code, 0)
  const again = await serve()
  await eventually('the rest has come', () => again.logs().some(({ complete }) => complete === 1), 30_000)
})

t.test('status and metrics tell how mirrors do, the same whichever worker is asked', async (t) => {
  const { upstream, run, serve } = await startSyncing(t, {
    images: [...images, { repository: name, tags: ['gone'] }],
    schedule: '0 3 1 1 *',
    config: { workers: 2 },
    mirror: { budget: '1MiB', freshness: '0s' },
  })
  const layers = [randomBytes(300_000), randomBytes(300_000)]
  upstream.addImage(name, '1', layers)
  const limits = { 'ratelimit-limit': '100;w=21600', 'ratelimit-remaining': '76;w=21600' }
  upstream.fault = ({ path }) =>
    path.includes('/manifests/')
      ? ({ send, reply }) => send({ ...reply, headers: { ...reply.headers, ...limits } })
      : undefined

  const fresh = await did(t, run('mirror', 'status'))
  t.match(fresh.stdout, /^docker\.io {2}http:\/\/127\.0\.0\.1:\d+\n {2}upstream {2}not asked yet\n/)
  t.match(fresh.stdout, /\n {2}sync {6}never yet; next at \d{4}-/)

  const server = await serve()
  t.match(await metricsOf(server), { hits_total: 0, misses_total: 0, held_bytes: 0, budget_bytes: 2 ** 20 })
  t.equal((await run('mirror', 'sync')).code, 1)
  for (const layer of [...layers, ...layers]) {
    const path = `/v2/docker.io/${name}/blobs/${digest(layer)}`
    t.equal((await server.request('GET', path, { fresh: true })).status, 200)
  }
  const path = `/v2/docker.io/${name}/manifests/missing`
  t.equal((await server.request('GET', path, { fresh: true })).status, 404)
  const expected = {
    hits_total: 4,
    misses_total: 1,
    saved_bytes_total: 1_200_000,
    evicted_blobs_total: 0,
    evicted_bytes_total: 0,
    budget_bytes: 2 ** 20,
    upstream_up: 1,
    breaker_open: 0,
    ratelimit_limit: 100,
    ratelimit_remaining: 76,
    last_sync_failures: 1,
  }
  const written = async () => {
    const { misses_total, hits_total } = await metricsOf(server)
    return misses_total === 1 && hits_total === 4
  }
  await eventually('both workers have written down what they did', written, 20_000)
  for (let asked = 0; asked < 4; asked++) {
    const metrics = await metricsOf(server)
    t.match(metrics, expected)
    t.ok(Number(metrics.held_bytes) > 600_000 && Number(metrics.held_bytes) < 601_000)
    t.ok(Number(metrics.fetched_bytes_total) > 600_000 && Number(metrics.fetched_bytes_total) < 602_000)
  }
  const { stdout } = await did(t, run('mirror', 'status', 'docker.io'))
  t.match(stdout, /\n {2}upstream {2}up, answered at \d{4}-/)
  t.match(
    stdout,
    /\n {2}served {4}4 hits, 1 misses \(80 % from here\); 1\.1 MiB saved, 586\.\d KiB fetched\n/,
  )
  t.match(stdout, /\n {2}holds {5}3 blobs, 586\.\d KiB of 1\.0 MiB\n/)
  t.match(stdout, /\n {2}quota {5}76 of 100 requests left\n/)
  t.match(
    stdout,
    /\n {2}sync {6}1 of 2 images at \S+, 1 failed \(docker\.io\/library\/app:gone: .*\); next at /,
  )

  await upstream.stop()
  for (let asked = 0; asked < 8; asked++) {
    const reply = await server.request('GET', `/v2/docker.io/${name}/manifests/1`, {
      fresh: true,
      unchecked: true,
    })
    t.equal(reply.status, 200)
  }
  const known = async () => {
    const { upstream_up, hits_total } = await metricsOf(server)
    return upstream_up === 0 && hits_total === 12
  }
  await eventually('each worker has written down what it knows', known, 20_000)
  const [mirror] = JSON.parse((await did(t, run('mirror', 'status', '--json'))).stdout)
  t.match(mirror, {
    name: 'docker.io',
    isConfigured: true,
    upstream: { state: 'down', failure: /refused the connection/, rateLimit: { limit: 100, remaining: 76 } },
    hits: 12,
    lastSync: { images: 2, complete: 1, failed: 1 },
  })
})

t.test('what a mirror gave back is counted', async (t) => {
  const { upstream, run, serve } = await startSyncing(t, { images, mirror: { budget: '1MiB' } })
  const server = await serve()
  for (let count = 0; count < 4; count++) {
    const layer = randomBytes(500_000)
    upstream.addBlob(name, layer)
    const path = `/v2/docker.io/${name}/blobs/${digest(layer)}`
    t.equal((await server.request('GET', path)).status, 200)
  }
  const counted = async () => {
    const { evicted_blobs_total, evicted_bytes_total, held_bytes } = await metricsOf(server)
    return evicted_blobs_total === 2 && evicted_bytes_total === 1_000_000 && held_bytes === 1_000_000
  }
  await eventually('two made room for two', counted)
  t.match(
    (await did(t, run('mirror', 'status'))).stdout,
    /2 blobs, 976\.6 KiB of 1\.0 MiB; 2 blobs, 976\.6 KiB, made room/,
  )
})

t.test('without mirrors there is nothing to tell', async (t) => {
  const { run } = await startSyncing(t, { images, config: { mirrors: [] } })
  t.match(
    (await did(t, run('mirror', 'status'))).stdout,
    /^There are no mirrors in the settings: name their file with --config\.$/m,
  )
  t.match(await run('mirror', 'sync'), {
    code: 1,
    stderr: /^There are no mirrors in the settings: name their file with --config\.$/m,
  })
})
