import { randomBytes } from 'node:crypto'
import t, { type Test } from 'tap'
import { as, basic, bearer, getToken, startRegistry } from '../auth/fixture.js'
import {
  descriptor,
  eventually,
  image,
  manifestOf,
  OCI_INDEX,
  OCI_LAYER,
  OCI_MANIFEST,
  push,
  pushBlobs,
  putManifest,
  randomBlob,
  type Server,
} from '../harness.js'
import { digest, type FakeUpstream, startFakeUpstream } from './fake-upstream.js'
import { faultNamed } from './faults.js'
import { mirrorOf, startPair } from './pair.js'

/*
 * With `bareNames` a name that nobody knows is one that is about to be pushed, or one to be pulled from upstream. The
 * requests are those that the clients send, in their order (docs/decisions/0022).
 */

const accept = { Accept: 'application/vnd.oci.image.manifest.v1+json, */*' }

/** Ways in which an upstream does not help. */
const states: Readonly<Record<string, (upstream: FakeUpstream) => unknown>> = {
  up: () => undefined,
  down: (upstream) => upstream.stop(),
  'answering 500': (upstream) => {
    upstream.fault = () => faultNamed('status 500')
  },
  'allowing no more requests': (upstream) => {
    upstream.fault =
      () =>
      ({ send }) =>
        send({ status: 429, headers: { 'retry-after': '30' }, body: Buffer.from('{}') })
  },
  'having every name': (upstream) => {
    upstream.fault =
      ({ path }) =>
      ({ send }) =>
        send({
          status: 200,
          headers: { 'content-type': 'application/vnd.oci.image.manifest.v1+json' },
          body: path.includes('/manifests/') ? image().bytes : Buffer.from('anything'),
        })
  },
}

/** Looks for the layers first, as all clients do but docker, then for the manifest, as containerd, oras and crane do. */
async function pushLikeContainerd(t: Test, me: Server, name: string): Promise<void> {
  const content = image({ layers: [randomBlob(100)] })
  for (const { digest } of content.parts) {
    const found = await me.request('HEAD', `/v2/${name}/blobs/${digest}`)
    t.equal(found.status, 404, `${name}: HEAD of a layer`)
  }
  const looked = await me.request('HEAD', `/v2/${name}/manifests/1`, { headers: accept })
  t.equal(looked.status, 404, `${name}: HEAD of the manifest`)
  t.equal((await push(me, name, '1', content)).status, 201, `${name}: push`)
  const pulled = await me.request('GET', `/v2/${name}/manifests/1`, { headers: accept })
  t.ok(pulled.body.equals(content.bytes), `${name}: pull of what was pushed`)
}

for (const [state, prepare] of Object.entries(states)) {
  t.test(`S76: a new name is pushed without asking an upstream that is ${state}`, async (t) => {
    const { upstream, server } = await startPair(t)
    await prepare(upstream)
    upstream.forget()
    for (const name of ['team/new', 'new', `team/${'x'.repeat(249)}`])
      await pushLikeContainerd(t, server, name)
    t.strictSame(upstream.requests, [], 'no name was told')

    // What looks for a manifest alone may be a push as well as a pull: it is looked for, and a push goes on.
    const isThere = state === 'having every name'
    for (const [method, path] of [
      ['HEAD', 'manifests/1'],
      ['HEAD', `manifests/${digest('nothing')}`],
      ['GET', 'manifests/sha256-0123.sig'],
      ['GET', 'tags/list'],
      ['HEAD', 'tags/list'],
    ] as const) {
      const reply = await server.request(method, `/v2/team/other/${path}`, { headers: accept })
      if (isThere) t.ok([200, 404].includes(reply.status), `${method} ${path}: ${reply.status}`)
      else t.equal(reply.status, 404, `${method} ${path}`)
      if (state === 'up' || isThere) continue
      t.match(reply.header('warning'), /^299 - "docker\.io: 127\.0\.0\.1:\d+ [^"]+"$/, 'it says why')
      t.match(reply.header('retry-after'), /^\d+$/, 'and that it is so for now')
      if (method === 'GET') t.match(reply.text, /_UNKNOWN".*docker\.io: 127\.0\.0\.1/)
    }
  })
}

/** docker with `registry-mirrors`: HEAD of the tag, GET by digest, GET of the layers; podman and crane leave out the HEAD. */
async function pullLikeDocker(t: Test, me: Server, name: string, layer: Buffer, query = ''): Promise<void> {
  const head = await me.request('HEAD', `/v2/${name}/manifests/latest${query}`, { headers: accept })
  t.equal(head.status, 200, `${name}: HEAD of the tag`)
  const path = `/v2/${name}/manifests/${head.header('docker-content-digest')}${query}`
  t.equal((await me.request('GET', path, { headers: accept })).status, 200, `${name}: the manifest`)
  for (const method of ['HEAD', 'GET']) {
    const blob = await me.request(method, `/v2/${name}/blobs/${digest(layer)}${query}`)
    t.equal(blob.status, 200, `${name}: ${method} of a layer`)
    t.equal(blob.header('content-length'), String(layer.length))
  }
}

t.test('S76: without logins, bare names are pulled as before, a layer after its manifest', async (t) => {
  const { upstream, server } = await startPair(t, { mirror: { freshness: '0s', onUpstreamDeleted: 'drop' } })
  const layer = randomBytes(1000)
  upstream.addImage('library/app', 'latest', [layer])
  await pullLikeDocker(t, server, 'library/app', layer)
  upstream.addImage('library/other', 'latest', [layer])
  upstream.forget()
  const path = `/v2/library/other/blobs/${digest(layer)}`
  for (const method of ['GET', 'HEAD']) t.equal((await server.request(method, path)).status, 404, method)
  t.strictSame(upstream.requests, [], 'nothing of the name ever came from there')
  const manifest = await server.request('GET', '/v2/library/other/manifests/latest')
  t.equal(manifest.status, 200, 'GET is a pull, whatever was looked for before')
  for (const method of ['HEAD', 'GET']) t.equal((await server.request(method, path)).status, 200, method)

  // R07: what a bare name finds is lent to a push to it: the layer that is here and the one that is not yet, and a child.
  const own = image({ layers: [] })
  const layers = [{ mediaType: OCI_LAYER, digest: digest(layer), size: layer.length }]
  for (const name of ['library/app', 'library/third']) {
    const child = upstream.addImage(name, 'latest', [layer])
    const found = await server.request('GET', `/v2/${name}/manifests/latest`)
    t.equal(
      (await server.request('HEAD', `/v2/${name}/blobs/${digest(layer)}`)).status,
      200,
      'told to be here',
    )
    await pushBlobs(server, name, ...own.parts)
    const [config] = own.parts.map((part) => descriptor(part))
    const mine = manifestOf({ schemaVersion: 2, mediaType: OCI_MANIFEST, config, layers })
    t.equal((await putManifest(server, name, 'mine', mine)).status, 201, `${name}: my image with their layer`)
    const children = [{ mediaType: OCI_MANIFEST, digest: child, size: found.body.length }]
    const index = manifestOf({ schemaVersion: 2, mediaType: OCI_INDEX, manifests: children }, OCI_INDEX)
    const put = await putManifest(server, name, 'all', index)
    t.equal(put.status, 201, `${name}: my index with their image: ${put.text}`)
    upstream.forget()
    const blob = await server.request('GET', `/v2/${name}/blobs/${digest(layer)}`)
    t.ok(blob.body.equals(layer), 'it is here')
    t.equal((await server.request('GET', `/v2/${name}/manifests/${child}`)).status, 200)
    t.strictSame(upstream.requests, [])
  }
  const stranger = manifestOf({ schemaVersion: 2, mediaType: OCI_MANIFEST, config: layers[0], layers })
  t.equal(
    (await putManifest(server, 'team/none', '1', stranger)).code,
    'MANIFEST_BLOB_UNKNOWN',
    'of this name alone',
  )

  // A Boathouse as upstream that cannot tell says 404, too: that is for now, and no reason to drop a tag.
  upstream.fault =
    () =>
    ({ send }) =>
      send({ status: 404, headers: { 'retry-after': '1' }, body: Buffer.from('{}') })
  const stale = await server.request('GET', '/v2/docker.io/library/app/manifests/latest')
  t.equal(stale.status, 200)
  t.match(stale.header('warning'), /answered 404/)
  upstream.fault = () => undefined
})

const accounts = { root: { admin: true }, dev: {} }

t.test('S76: with logins', async (t) => {
  const upstream = await startFakeUpstream(t)
  const registry = await startRegistry(t, { config: { mirrors: [mirrorOf(upstream)] } })
  const { server } = registry
  for (const [name, plan] of Object.entries(accounts)) await registry.addUser(name, plan)
  await registry.grant('anonymous', 'docker.io/**', 'pull')
  await registry.grant('user:dev', 'team/**', 'push')
  const withToken = async (user: string | undefined, scope: string) =>
    as(server, bearer(await getToken(server, user === undefined ? undefined : basic(user), [scope])))

  await t.test('S76: who pushes with a token asks nobody, whatever he looks for', async (t) => {
    upstream.addImage('team/taken', '1', [randomBytes(10)])
    for (const user of ['dev', 'root']) {
      const name = `team/new-by-${user}`
      const me = await withToken(user, `repository:${name}:pull,push`)
      for (const path of ['manifests/1', `manifests/${digest('nothing')}`, `blobs/${digest('nothing')}`]) {
        for (const method of ['GET', 'HEAD']) {
          t.equal((await me.request(method, `/v2/${name}/${path}`)).status, 404, `${user}: ${method} ${path}`)
        }
      }
      await pushLikeContainerd(t, me, name)
    }
    await pushLikeContainerd(t, await withToken('dev', 'repository:team/taken:pull,push'), 'team/taken')
    t.strictSame(upstream.requests, [], 'no name was told, also where the upstream has it')
  })

  await t.test('S76: bare names are pulled by everybody, whether he may push or not', async (t) => {
    const pullers: [string, Server][] = [
      ['nothing', as(server, undefined)],
      ['admin', as(server, basic('root'))],
      ['user', as(server, basic('dev'))],
      ['anonymous-token', await withToken(undefined, 'repository:library/anonymous-token:pull')],
      ['admin-token', await withToken('root', 'repository:library/admin-token:pull')],
      ['user-token', await withToken('dev', 'repository:library/user-token:pull')],
    ]
    for (const [name, me] of pullers) {
      const layer = randomBytes(1000)
      upstream.addImage(`library/${name}`, 'latest', [layer])
      await pullLikeDocker(t, me, `library/${name}`, layer)
    }
    const layer = randomBytes(1000)
    upstream.addImage('library/byns', 'latest', [layer])
    await pullLikeDocker(t, as(server, undefined), 'library/byns', layer, '?ns=docker.io')
    const narrow = await withToken('root', 'repository:library/byns:pull')
    const refused = await narrow.request('GET', '/v2/library/admin/manifests/latest')
    t.equal(refused.status, 401, 'a token for another name')
  })

  await t.test(
    'S76: what is asked before the login is told where to log in, and the push goes on',
    async (t) => {
      await upstream.stop()
      for (const [method, path] of [
        ['HEAD', 'manifests/1'],
        ['GET', 'manifests/1'],
        ['HEAD', `blobs/${digest('nothing')}`],
        ['POST', 'blobs/uploads/'],
      ] as const) {
        const reply = await server.request(method, `/v2/team/new/${path}`)
        t.equal(reply.status, 401, `${method} ${path}`)
        t.match(reply.header('www-authenticate'), /scope="repository:team\/new:pull(,push)?"$/)
      }
      await pushLikeContainerd(t, await withToken('dev', 'repository:team/new:pull,push'), 'team/new')
      // Whoever has said that he is nobody who may push is told what is wrong.
      const anonymous = await withToken(undefined, 'repository:library/absent:pull')
      const refused = await anonymous.request('GET', '/v2/library/absent/manifests/1')
      t.equal(refused.status, 502)
      t.equal(refused.code, 'UPSTREAM_UNAVAILABLE')
    },
  )

  await t.test(
    'S76: who may pull a name, but nothing of the mirror, is told that it is not there',
    async (t) => {
      await registry.revoke('anonymous', 'docker.io/**', 'pull')
      const me = as(server, basic('dev'))
      await eventually('the grant is gone', async () => {
        return (await me.request('GET', '/v2/docker.io/library/absent/manifests/1')).status === 403
      })
      upstream.forget()
      t.equal((await me.request('GET', '/v2/team/newest/manifests/1')).code, 'NAME_UNKNOWN')
      await pushLikeContainerd(t, me, 'team/newest')
    },
  )
})
