import { randomBytes } from 'node:crypto'
import t, { type Test } from 'tap'
import { eventually, RawConnection, type Server, startServer, within } from '../harness.js'
import { digest, type FakeUpstream, startFakeUpstream } from './fake-upstream.js'

/*
 * A mirror in front of an upstream that we control: what is asked of it, and what the client gets.
 */

interface Pair {
  readonly upstream: FakeUpstream
  readonly server: Server
  pull(path: string): ReturnType<Server['request']>
}

async function startPair(
  t: Test,
  mirror: Record<string, unknown> = {},
  config: Record<string, unknown> = {},
): Promise<Pair> {
  const upstream = await startFakeUpstream(t)
  const server = await startServer(t, {
    config: {
      mirrors: [{ name: 'docker.io', url: upstream.url.origin, bareNames: true, ...mirror }],
      ...config,
    },
  })
  return { upstream, server, pull: (path) => server.request('GET', path) }
}

t.test('MI-41: an image is pulled by its path, once from upstream and then from here', async (t) => {
  const { upstream, server, pull } = await startPair(t)
  const layer = randomBytes(300_000)
  const image = upstream.addImage('library/nginx', 'latest', [layer])
  const manifest = await pull('/v2/docker.io/library/nginx/manifests/latest')
  t.equal(manifest.status, 200)
  t.equal(manifest.headers['docker-content-digest'], image)
  const blob = await pull(`/v2/docker.io/library/nginx/blobs/${digest(layer)}`)
  t.equal(blob.status, 200)
  t.ok(blob.body.equals(layer))
  await eventually('the blob is stored', async () => {
    upstream.forget()
    const again = await pull(`/v2/docker.io/library/nginx/blobs/${digest(layer)}`)
    t.ok(again.body.equals(layer))
    return upstream.requests.length === 0
  })
  t.equal((await pull('/v2/docker.io/library/nginx/manifests/latest')).status, 200)
  t.equal((await pull(`/v2/docker.io/library/nginx/manifests/${image}`)).status, 200)
  t.equal(upstream.requests.length, 0, 'neither the tag, which is fresh, nor the digest is asked for again')
  t.same((await pull('/v2/_catalog')).json(), { repositories: ['docker.io/library/nginx'] })
  t.equal(server.faults.length, 0)
})

t.test('PX-08: a name of one segment lies below library', async (t) => {
  const { upstream, pull } = await startPair(t)
  upstream.addImage('library/nginx', 'latest', [randomBytes(10)])
  t.equal((await pull('/v2/docker.io/nginx/manifests/latest')).status, 200)
  t.equal((await pull('/v2/nginx/manifests/latest')).status, 200)
  t.equal(upstream.asked('GET', /manifests/).length, 1)
})

t.test('MI-21, MI-22: ns= names the upstream and is answered; an unknown one is ignored', async (t) => {
  const { upstream, server, pull } = await startPair(t)
  const image = upstream.addImage('library/nginx', 'latest', [randomBytes(10)])
  const reply = await pull('/v2/library/nginx/manifests/latest?ns=docker.io')
  t.equal(reply.status, 200)
  t.equal(reply.headers['oci-namespace'], 'docker.io')
  t.equal(reply.headers['docker-content-digest'], image)
  const tags = await pull('/v2/library/nginx/tags/list?ns=docker.io')
  t.same(tags.json(), { name: 'library/nginx', tags: ['latest'] })
  const unknown = await pull('/v2/library/nginx/manifests/nothing?ns=evil.example')
  t.equal(unknown.status, 404)
  t.equal(unknown.headers['oci-namespace'], undefined)
  t.equal(server.faults.length, 0)
})

t.test('MI-02: a bare name falls to the mirror, and a local repository wins', async (t) => {
  const { upstream, server, pull } = await startPair(t)
  upstream.addImage('library/app', 'latest', [randomBytes(10)])
  t.equal((await pull('/v2/library/app/manifests/latest')).status, 200)
  upstream.addImage('team/app', 'latest', [randomBytes(10)])
  const body = JSON.stringify({
    schemaVersion: 2,
    mediaType: 'application/vnd.oci.image.index.v1+json',
    manifests: [],
  })
  const headers = { 'Content-Type': 'application/vnd.oci.image.index.v1+json' }
  const pushed = await server.request('PUT', '/v2/team/app/manifests/mine', { headers, body })
  t.equal(pushed.status, 201)
  upstream.forget()
  t.equal((await pull('/v2/team/app/manifests/mine')).status, 200)
  t.equal((await pull('/v2/team/app/manifests/latest')).status, 404, 'never looked up upstream')
  t.equal(upstream.requests.length, 0)
})

t.test(
  'a bare name that the mirror may not fetch is this server’s own: no look for it goes upstream',
  async (t) => {
    const { upstream, server, pull } = await startPair(t, { deny: ['team/**'] })
    const layer = randomBytes(10)
    upstream.addImage('team/app', 'latest', [layer])
    t.equal((await server.request('HEAD', `/v2/team/app/blobs/${digest(layer)}`)).status, 404)
    t.equal((await pull('/v2/team/app/manifests/latest')).status, 404)
    t.equal((await server.request('POST', '/v2/team/app/blobs/uploads/')).status, 202)
    t.equal(upstream.requests.length, 0)
    t.equal((await pull('/v2/docker.io/team/app/manifests/latest')).status, 403, 'by its path it is refused')
  },
)

t.test('PX-07: a mirrored repository is closed to pushes and deletes', async (t) => {
  const { upstream, server } = await startPair(t)
  upstream.addImage('library/nginx', 'latest', [randomBytes(10)])
  for (const [method, path] of [
    ['POST', '/v2/docker.io/library/nginx/blobs/uploads/'],
    ['PUT', '/v2/docker.io/library/nginx/manifests/latest'],
    ['DELETE', '/v2/docker.io/library/nginx/manifests/latest'],
    ['POST', '/v2/library/nginx/blobs/uploads/?ns=docker.io'],
  ] as const) {
    const reply = await server.request(method, path, { body: method === 'PUT' ? '{}' : '' })
    t.equal(reply.status, 405, `${method} ${path}`)
    t.equal(reply.json<{ errors: { code: string }[] }>().errors[0]?.code, 'UNSUPPORTED')
  }
  t.equal((await server.request('POST', '/v2/nginx/blobs/uploads/')).status, 202, 'a bare name is free')
})

t.test('PX-03: many clients of one cold blob make one upstream request', async (t) => {
  const { upstream, server } = await startPair(t, {}, { workers: 2 })
  const layer = randomBytes(8_000_000)
  upstream.addImage('library/big', 'latest', [layer])
  t.equal((await server.request('GET', '/v2/docker.io/library/big/manifests/latest')).status, 200)
  const path = `/v2/docker.io/library/big/blobs/${digest(layer)}`
  const replies = await Promise.all(Array.from({ length: 40 }, () => server.request('GET', path)))
  t.ok(replies.every((reply) => reply.status === 200 && reply.body.equals(layer)))
  t.equal(upstream.blobBytesSent(digest(layer)), layer.length)
  t.equal(upstream.asked('GET', /blobs/).length, 1)
})

t.test('PX-01: when the upstream is gone, what is here is served at once and says so', async (t) => {
  const { upstream, server, pull } = await startPair(t, { freshness: '0s' })
  const image = upstream.addImage('library/nginx', 'latest', [randomBytes(10)])
  t.equal((await pull('/v2/docker.io/library/nginx/manifests/latest')).status, 200)
  await upstream.stop()
  const stale = await within(10_000, 'an answer', pull('/v2/docker.io/library/nginx/manifests/latest'))
  t.equal(stale.status, 200)
  t.equal(stale.headers['docker-content-digest'], image)
  t.match(stale.headers.warning, /^299 - "docker\.io: [^"]*"$/)
  const missing = await pull('/v2/docker.io/library/other/manifests/latest')
  t.equal(missing.status, 502)
  t.match(missing.text, /docker\.io: 127\.0\.0\.1:\d+ refused the connection/)
  t.same(
    server.faults.filter((fault) => !fault.includes('UPSTREAM_UNAVAILABLE')),
    [],
  )
})

t.test('a tag that moves upstream is followed after its freshness, with one HEAD', async (t) => {
  const { upstream, server, pull } = await startPair(t, { freshness: '0s' })
  const first = upstream.addImage('library/nginx', 'latest', [randomBytes(10)])
  t.equal(
    (await pull('/v2/docker.io/library/nginx/manifests/latest')).headers['docker-content-digest'],
    first,
  )
  upstream.forget()
  // The upstream answers when all have asked: what is sent before a request that is answered has been read before it.
  let release = () => {}
  const released = new Promise<void>((resolve) => {
    release = resolve
  })
  upstream.fault =
    () =>
    async ({ send, reply }) => {
      await released
      send(reply)
    }
  const askers = await Promise.all(
    Array.from({ length: 20 }, async () => {
      const asker = await RawConnection.open(server)
      await asker.request('GET /v2/docker.io/library/nginx/manifests/latest')
      return asker
    }),
  )
  for (let n = 0; n < 3; n++) t.equal((await server.request('GET', '/v2/', { fresh: true })).status, 200)
  await eventually('the upstream is asked', () => upstream.requests.length > 0)
  release()
  const replies = (await Promise.all(askers.map((asker) => asker.waitForReplies(1)))).flat()
  t.equal(replies.filter((reply) => reply.status === 200).length, 20)
  t.strictSame(
    upstream.requests.map(({ method }) => method),
    ['HEAD'],
  )
  upstream.fault = () => undefined
  const second = upstream.addImage('library/nginx', 'latest', [randomBytes(10)])
  t.equal(
    (await pull('/v2/docker.io/library/nginx/manifests/latest')).headers['docker-content-digest'],
    second,
  )
})
