import { randomBytes } from 'node:crypto'
import t, { type Test } from 'tap'
import { selfSigned } from '../certificate.js'
import { eventually, type Server, startServer } from '../harness.js'
import { digest, type FakeUpstream, startFakeUpstream } from './fake-upstream.js'
import { faultNamed } from './faults.js'
import { hasty, mirrorOf } from './pair.js'

/*
 * An upstream that is dead in one of ten ways: what is here is served all the same, soon, and says how old it is.
 */

/** What becomes of an upstream, and how somebody hears of what is not here. */
interface Way {
  readonly kill: (upstream: FakeUpstream) => unknown
  /** The mirror's settings after that. */
  readonly url?: string
  /** The answer for what is not here, and the reason in it. */
  readonly status: number
  readonly reason: RegExp
  /** Whether it is not even asked after some failures: other answers show that it is there. */
  readonly opensBreaker: boolean
}

const silent = { status: 502, opensBreaker: true }
const answering = (name: string) => (upstream: FakeUpstream) => {
  upstream.fault = () => faultNamed(name)
}

const tls = selfSigned({ names: ['localhost'] })
const secure = await startFakeUpstream(t, { tls })

const ways: Readonly<Record<string, Way>> = {
  refused: { ...silent, kill: (upstream) => upstream.stop(), reason: /refused the connection/ },
  dns: { ...silent, kill: () => {}, url: 'http://registry.invalid', reason: /has no address|did not answer/ },
  tls: { ...silent, kill: () => {}, url: secure.url.origin, reason: /self-signed certificate/ },
  401: { kill: answering('status 401'), status: 404, reason: /wants credentials/, opensBreaker: false },
  403: { kill: answering('status 403'), status: 404, reason: /wants credentials/, opensBreaker: false },
  404: { kill: answering('status 404'), status: 404, reason: /does not have it/, opensBreaker: false },
  429: { kill: answering('status 429'), status: 429, reason: /no more requests/, opensBreaker: false },
  500: { ...silent, kill: answering('status 500'), reason: /answered 500/ },
  503: { ...silent, kill: answering('status 503'), reason: /answered 503/ },
  hang: { ...silent, kill: answering('no answer'), reason: /did not answer in time|slow to answer/ },
}

const layer = randomBytes(50_000)

/** A server that has one image of each upstream, and the upstreams, which are dead by now. */
async function startWithDead(t: Test) {
  const upstreams = new Map<string, FakeUpstream>()
  for (const name of [...Object.keys(ways), 'dropped']) upstreams.set(name, await startFakeUpstream(t))
  const mirrorsOf = (change: (name: string) => Record<string, unknown>) =>
    [...upstreams].map(([name, upstream]) => ({
      ...mirrorOf(upstream, hasty),
      name: `${name}.test`,
      bareNames: false,
      freshness: '0s',
      ...change(name),
    }))
  const first = await startServer(t, { config: { mirrors: mirrorsOf(() => ({})) } })
  const images = new Map<string, string>()
  for (const [name, upstream] of upstreams) {
    images.set(name, upstream.addImage('app', 'latest', [layer]))
    const path = `/v2/${name}.test/app`
    for (const what of ['manifests/latest', `blobs/${digest(layer)}`]) {
      const { status } = await first.request('GET', `${path}/${what}`)
      if (status !== 200) throw new Error(`${name}: ${status}`)
    }
  }
  await first.stop()
  for (const [name, upstream] of upstreams) await (ways[name] ?? ways[404])?.kill(upstream)
  const config = {
    log: { level: 'warn' },
    mirrors: mirrorsOf((name) => ({
      ...(ways[name]?.url === undefined ? {} : { url: ways[name]?.url }),
      ...(name === 'dropped' ? { onUpstreamDeleted: 'drop' } : {}),
    })),
  }
  const server = await startServer(t, { config, data: first.data })
  for (const [name, { url }] of Object.entries(ways))
    if (url === secure.url.origin) upstreams.set(name, secure)
  for (const upstream of upstreams.values()) upstream.forget()
  return { server, upstreams, images }
}

/** GET, and how long it took, in milliseconds. */
async function timed(server: Server, path: string) {
  const started = performance.now()
  const reply = await server.request('GET', path, { unchecked: true })
  return { ...reply, took: performance.now() - started }
}

const { server, upstreams, images } = await startWithDead(t)

for (const [name, { reason, status, opensBreaker }] of Object.entries(ways)) {
  t.test(`R43, G32: the upstream is dead (${name}): what is here is served within a second`, async (t) => {
    const upstream = upstreams.get(name)
    const path = `/v2/${name}.test/app`
    const image = images.get(name) ?? ''

    // The same work without an upstream: how quick this machine is at the moment.
    const own = await timed(server, `${path}/manifests/${image}`)
    const byTag = await timed(server, `${path}/manifests/latest`)
    const { took } = await timed(server, `${path}/manifests/${image}`)
    t.equal(byTag.status, 200)
    t.equal(byTag.headers['docker-content-digest'], image)
    t.match(byTag.headers.warning, /^299 - "[^"]*this is what \w+\.test had at \d{4}-\d\d-\d\dT[^"]*"$/)
    t.match(byTag.headers.warning, reason)
    const bound = 1000 + 10 * Math.max(own.took, took)
    t.ok(byTag.took <= bound, `${byTag.took.toFixed(0)} ms of ${bound.toFixed(0)}`)
    t.comment(`${name}: ${byTag.took.toFixed(0)} ms`)

    const asked = upstream?.connections
    for (const what of [`manifests/${image}`, `blobs/${digest(layer)}`]) {
      const reply = await timed(server, `${path}/${what}`)
      t.equal(reply.status, 200, what)
      t.equal(reply.headers.warning, undefined, 'by digest it cannot be stale')
    }
    t.equal(upstream?.connections, asked, 'by digest the upstream is not asked')

    const missing = await timed(server, `${path}/manifests/other`)
    t.equal(missing.status, status)
    t.match(missing.errors[0]?.message, new RegExp(`${name}\\.test`), 'it names the upstream')
    t.match(missing.errors[0]?.message, reason, 'and the reason')

    if (opensBreaker) await breakerOpens(t, `${path}/manifests/latest`, () => upstream?.connections ?? 0)
  })
}

/** While an upstream is left alone, nothing is sent to it: then there is nothing to wait for either. */
async function breakerOpens(t: Test, path: string, connections: () => number): Promise<void> {
  let quiet = 0
  await eventually(
    'ten pulls without a request to the upstream',
    async () => {
      const before = connections()
      const reply = await timed(server, path)
      t.equal(reply.status, 200)
      if (!/is not asked/.test(String(reply.headers.warning))) return false
      t.equal(connections(), before, 'nothing was sent')
      quiet++
      return quiet === 10
    },
    30_000,
  )
}

t.test('R43: what is gone upstream is kept, or dropped where the configuration says so', async (t) => {
  const dropped = await timed(server, '/v2/dropped.test/app/manifests/latest')
  t.equal(dropped.status, 404)
  t.equal((await timed(server, '/v2/404.test/app/manifests/latest')).status, 200)
  const digestOfIt = images.get('dropped')
  t.equal(
    (await timed(server, `/v2/dropped.test/app/manifests/${digestOfIt}`)).status,
    200,
    'by digest it is here',
  )
})

t.test('no answer was a fault of the server', async (t) => {
  t.strictSame(
    server.logs().filter(({ status }) => status === 500),
    [],
  )
})

t.test(
  'an upstream that is dead is a warning in the log, with its name, and no fault of this server',
  (t) => {
    const lines = server.logs().filter(({ status }) => status === 502)
    t.ok(lines.length >= 6, `${lines.length} lines`)
    for (const { level, msg, reason } of lines) {
      t.same({ level, msg }, { level: 40, msg: 'request' })
      t.match(reason, /\w+\.test/)
    }
    t.same(
      server.logs().filter(({ level }) => Number(level) >= 50),
      [],
    )
    t.end()
  },
)
