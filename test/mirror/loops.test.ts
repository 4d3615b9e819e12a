import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:net'
import t, { type Test } from 'tap'
import { runCommand } from '../commands.js'
import { image, push, randomBlob, randomDigest, type Server, startServer } from '../harness.js'
import { digest, startFakeUpstream } from './fake-upstream.js'
import { mirrorOf } from './pair.js'

/*
 * S84: registries that are each other's upstreams. What has come round is answered from what is here (RFC 9110, 7.6.3).
 */

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  server.close()
  await once(server, 'close')
  if (address === null || typeof address === 'string') throw new Error('no port')
  return address.port
}

const mirrorAt = (port: number, settings: Record<string, unknown> = {}) => ({
  name: 'peer',
  url: `http://127.0.0.1:${port}`,
  bareNames: true,
  freshness: '0s',
  idleTimeout: '1m',
  ...settings,
})

/** Servers of which each has the next one as its upstream, and the last one the first. */
async function startRing(t: Test, count: number) {
  const ports = await Promise.all(Array.from({ length: count }, freePort))
  const settings = ports.map((_, at) => mirrorAt(ports[(at + 1) % count] ?? 0))
  const start = (port: number, at: number) =>
    startServer(t, { port, config: { workers: at === 0 ? 2 : 1, mirrors: [settings[at]] } })
  return { servers: await Promise.all(ports.map(start)), settings }
}

const statusOf = async (server: Server | undefined, path: string, method = 'GET') =>
  (await server?.request(method, path, { unchecked: true, fresh: true, timeout: 120_000 }))?.status

for (const count of [1, 2, 3]) {
  t.test(`S84: a ring of ${count}: what one has all serve, and what none has is 404`, async (t) => {
    const { servers, settings } = await startRing(t, count)
    const [first, last] = [servers[0], servers[count - 1]]
    if (first === undefined || last === undefined) throw new Error('no ring')
    const layer = randomBlob(3000)
    const kept = image({ layers: [layer] })
    await push(last, 'team/one', '1', kept)
    await push(last, 'team/two', '1', kept)
    t.equal(await statusOf(first, '/v2/team/one/manifests/1'), 200)
    t.equal(await statusOf(first, `/v2/team/one/blobs/${layer.digest}`), 200)
    const missing = randomDigest()
    for (const path of [
      'nothing/manifests/1',
      `nothing/manifests/${missing}`,
      `nothing/blobs/${missing}`,
      'peer/nothing/manifests/1',
      `peer/nothing/blobs/${missing}`,
    ]) {
      const reply = await first.request('GET', `/v2/${path}`, { unchecked: true, timeout: 120_000 })
      t.equal(reply.status, 404, path)
      // A layer below a bare name that the mirror has nothing of is asked for nowhere (decision 0022).
      const isAsked = path.startsWith('peer/') || path.includes('/manifests/')
      t.match(reply.text, isAsked ? /does not have it/ : /blob unknown/)
    }
    for (const path of [`fresh/blobs/${missing}`, 'fresh/manifests/1']) {
      t.equal(await statusOf(first, `/v2/${path}`, 'HEAD'), 404, `a push of a new name looks for ${path}`)
    }
    t.equal(await statusOf(first, '/v2/nothing/tags/list'), 404)
    t.equal(await statusOf(first, `/v2/peer/nothing/referrers/${missing}`), 200)
    // All of them are asked at once: none may wait for one that waits for it.
    const at = ['both/manifests/1', `both/manifests/${missing}`, `both/blobs/${randomDigest()}`]
    const all = at.flatMap((path) => servers.map((server) => statusOf(server, `/v2/${path}`)))
    t.strictSame([...new Set(await Promise.all(all))], [404])
    t.equal(await statusOf(first, '/v2/team/two/manifests/1'), 200, 'nobody is believed to be down')

    const mirrors = [{ ...settings[0], sync: { images: [{ repository: 'nothing', tags: ['2'] }] } }]
    const env = { BOATHOUSE_MIRRORS: JSON.stringify(mirrors) }
    const synced = await runCommand(first.data, ['mirror', 'sync', '--json'], '', { env })
    t.match(synced.stdout, /"state":\s*"failed"/)
    t.match(synced.stdout, /does not have it|come round in a circle/, 'a sync ends as well')
  })
}

t.test(
  'S84: a chain of registries works, and Via tells its end who is in it, and nothing else',
  async (t) => {
    const upstream = await startFakeUpstream(t)
    const layer = randomBytes(2000)
    for (const tag of ['1', '2']) upstream.addImage('team/app', tag, [layer])
    const outer = await startServer(t, {
      config: { auth: 'none', workers: 2, mirrors: [mirrorOf(upstream, { name: 'peer' })] },
    })
    const inner = await startServer(t, { config: { auth: 'none', mirrors: [mirrorAt(outer.port)] } })
    const headers = { via: '1.1 proxy.secret.example, 1.0 boathouse' }
    const pulled = await inner.request('GET', '/v2/team/app/manifests/1', { headers })
    t.equal(pulled.status, 200)
    const blob = await inner.request('GET', `/v2/team/app/blobs/${digest(layer)}`, { headers })
    t.ok(blob.body.equals(layer))
    const seen = () => [...new Set(upstream.requests.map(({ headers }) => headers.via))]
    const through = seen()
    t.equal(through.length, 1, 'one name for each installation, whatever process asks')
    t.match(through[0], /^1\.1 boathouse-[0-9a-f]{32}, 1\.1 boathouse-[0-9a-f]{32}$/)
    upstream.forget()
    t.equal((await outer.request('GET', '/v2/team/app/manifests/2', { headers })).status, 200)
    const own = seen()
    t.equal(through[0]?.split(', ')[1], own[0])
    const sync = { images: [{ repository: 'team/app', tags: ['1'] }] }
    const env = { BOATHOUSE_MIRRORS: JSON.stringify([mirrorOf(upstream, { name: 'peer', sync })]) }
    upstream.forget()
    t.equal((await runCommand(outer.data, ['mirror', 'sync'], '', { env })).code, 0)
    t.strictSame(seen(), own, 'a sync is the same installation')
    const round = await outer.request('GET', '/v2/team/app/manifests/1', { headers: { via: own[0] ?? '' } })
    t.equal(round.status, 200, 'what is here is served to who has come round, too')
    for (const path of ['manifests/nothing', `manifests/${randomDigest()}`, `blobs/${randomDigest()}`]) {
      const refused = await outer.request('GET', `/v2/team/app/${path}`, { headers: { via: own[0] ?? '' } })
      t.equal(refused.status, 404)
      t.match(refused.text, /come round in a circle/)
    }
    t.strictSame([...new Set(seen())], own, 'and nobody is asked')
    const doubted = '/v2/team/app/manifests/later'
    const detour = through[0]?.split(', ')[0] ?? ''
    t.equal((await outer.request('GET', doubted, { headers: { via: detour } })).status, 404)
    upstream.addImage('team/app', 'later', [layer])
    t.equal((await outer.request('GET', doubted)).status, 200, 'what was said to a circle is not remembered')
    const many = Array.from({ length: 30 }, () => `1.1 boathouse-${randomBytes(16).toString('hex')}`)
    const far = await outer.request('GET', '/v2/team/app/manifests/3', { headers: { via: many.join(', ') } })
    t.equal(far.status, 404, 'who has come very far goes no further')
  },
)
