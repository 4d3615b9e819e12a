import t, { type Test } from 'tap'
import { isEverythingOn, startServerWithFeatures } from './everything.js'
import {
  artifact,
  blob,
  type Content,
  type Descriptor,
  DOCKER_LIST,
  DOCKER_MANIFEST,
  descriptor,
  EMPTY_JSON,
  eventually,
  everyReplyKeptTheRules,
  image,
  index,
  type Manifest,
  manifestOf,
  newRepository,
  nextLink,
  OCI_INDEX,
  OCI_MANIFEST,
  OCTETS,
  RawConnection,
  type Reply,
  type RequestOptions,
  randomBlob,
  tagsOf,
} from './harness.js'

/*
 * What the clients send, in their order, with the headers that matter, and what each of them insists on in the
 * answers. The clients themselves are run elsewhere; this needs none of them.
 */

const server = await startServerWithFeatures(t, { manifests: { sparse: ['mirror/**'] } })

const schema1 = 'application/vnd.docker.distribution.manifest.v1+prettyjws'
const dockerAccept = [OCI_INDEX, DOCKER_LIST, schema1, 'application/json', DOCKER_MANIFEST, OCI_MANIFEST]
const containerdAccept = [DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX, '*/*'].join(', ')
const ggcrAccept = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST].join(',')

/** One client: its User-Agent, and whether it opens a connection for each request. */
function client(agent: string, fresh = false) {
  return (method: string, path: string, options: RequestOptions = {}) =>
    server.request(method, path, {
      fresh,
      ...options,
      headers: { 'User-Agent': agent, 'Accept-Encoding': 'gzip', ...options.headers },
    })
}

type Client = ReturnType<typeof client>

/** Rebuilds a Location as Go's clients do: the query parsed, the digest added, the whole sorted and encoded. */
function goQuery(location: string, parameters: Record<string, string>): string {
  const url = new URL(location, server.url)
  for (const [name, value] of Object.entries(parameters)) url.searchParams.append(name, value)
  url.searchParams.sort()
  return `${url.pathname}?${url.searchParams}`
}

/** What docker reads of each answer about an upload: `Sscanf("%d-%d")`, with the end not before the start. */
function dockerRange(t: Test, reply: Reply) {
  const [, start, end] = /^(\d+)-(\d+)$/.exec(reply.header('range')) ?? []
  t.ok(start !== undefined && Number(end) >= Number(start), `docker reads the Range ${reply.header('range')}`)
  t.ok(reply.header('docker-upload-uuid'))
}

async function dockerPushBlob(t: Test, docker: Client, name: string, content: Content, from?: string) {
  const head = await docker('HEAD', `/v2/${name}/blobs/${content.digest}`)
  t.equal(head.status, 404, 'not there yet')
  if (from !== undefined) {
    const query = `from=${encodeURIComponent(from)}&mount=${encodeURIComponent(content.digest)}`
    const mount = await docker('POST', `/v2/${name}/blobs/uploads/?${query}`, { body: '' })
    if (mount.status === 201) {
      t.equal(mount.header('docker-content-digest'), content.digest)
      const mounted = await docker('HEAD', `/v2/${name}/blobs/${content.digest}`)
      t.equal(mounted.header('content-length'), String(content.size))
      return 'mounted'
    }
    t.equal(mount.status, 202)
    dockerRange(t, mount)
    t.equal((await docker('DELETE', mount.header('location'))).status, 204, 'given up')
  }
  const opened = await docker('POST', `/v2/${name}/blobs/uploads/`, { body: '' })
  t.equal(opened.status, 202)
  dockerRange(t, opened)
  const patched = await docker('PATCH', opened.header('location'), { body: content.bytes, chunked: true })
  t.equal(patched.status, 202)
  dockerRange(t, patched)
  const put = await docker('PUT', goQuery(patched.header('location'), { digest: content.digest }), {
    body: '',
  })
  t.equal(put.status, 201)
  const after = await docker('HEAD', `/v2/${name}/blobs/${content.digest}`)
  t.equal(after.status, 200)
  t.equal(after.header('content-length'), String(content.size))
  return 'pushed'
}

async function dockerPull(t: Test, docker: Client, name: string, tag: string, manifest: Manifest) {
  t.equal((await docker('GET', '/v2/')).header('docker-distribution-api-version'), 'registry/2.0')
  const accept = { Accept: dockerAccept }
  const head = await docker('HEAD', `/v2/${name}/manifests/${tag}`, { headers: accept })
  t.equal(head.status, 200)
  t.equal(head.header('content-length'), String(manifest.size))
  t.equal(head.header('content-type'), manifest.mediaType)
  const digest = head.header('docker-content-digest')
  const got = await docker('GET', `/v2/${name}/manifests/${digest}`, { headers: accept })
  t.ok(got.body.equals(manifest.bytes))
  t.equal(got.header('content-type'), manifest.mediaType)
  const blobs = await Promise.all(
    manifest.parts.map((part) => docker('GET', `/v2/${name}/blobs/${part.digest}`)),
  )
  for (const [n, reply] of blobs.entries())
    t.ok(reply.body.equals(manifest.parts[n]?.bytes ?? Buffer.alloc(0)))
}

t.test('section 13, docker: push, push again, mount into another repository, pull', async (t) => {
  const docker = client(
    'docker/20.10.24+dfsg1 go/go1.19.8 git-commit/5d6db84 kernel/6.1 os/linux arch/amd64',
    true,
  )
  const manifest = image({ mediaType: DOCKER_MANIFEST, layers: [randomBlob(150_000), randomBlob(10)] })
  const name = newRepository('docker')
  t.equal((await docker('GET', '/v2/')).status, 200)
  for (const part of manifest.parts)
    t.equal(await dockerPushBlob(t, docker, name, part, 'not/there'), 'pushed')
  const put = await docker('PUT', `/v2/${name}/manifests/latest`, {
    headers: { 'Content-Type': DOCKER_MANIFEST },
    body: manifest.bytes,
  })
  t.equal(put.status, 201)
  t.equal(put.header('docker-content-digest'), manifest.digest, 'docker insists on it')
  await dockerPull(t, docker, name, 'latest', manifest)

  for (const part of manifest.parts)
    t.equal((await docker('HEAD', `/v2/${name}/blobs/${part.digest}`)).status, 200, 'Layer already exists')
  const other = newRepository('docker')
  for (const part of manifest.parts)
    t.equal(await dockerPushBlob(t, docker, other, part, name), 'mounted', 'Mounted from')
  await docker('PUT', `/v2/${other}/manifests/latest`, {
    headers: { 'Content-Type': DOCKER_MANIFEST },
    body: manifest.bytes,
  })
  await dockerPull(t, docker, other, 'latest', manifest)
})

t.test('section 13, docker: a layer that was cut goes on by Range', async (t) => {
  const docker = client('docker/20.10.24', true)
  const name = newRepository('docker')
  const content = randomBlob(3_000_000)
  await dockerPushBlob(t, docker, name, content)
  const cut = await RawConnection.open(server)
  await cut.request(`GET /v2/${name}/blobs/${content.digest}`)
  await cut.waitForReplies(1, { within: 5000, bodiless: true })
  await cut.abort()
  const rest = await docker('GET', `/v2/${name}/blobs/${content.digest}`, {
    headers: { Range: 'bytes=1000000-' },
  })
  t.equal(rest.status, 206, 'anything else is an error for docker')
  t.equal(rest.header('content-range'), 'bytes 1000000-2999999/3000000')
  t.ok(rest.body.equals(content.bytes.subarray(1_000_000)))
})

t.test('section 13, docker: pull -a goes through the tags', async (t) => {
  const docker = client('docker/20.10.24', true)
  const name = newRepository('docker')
  const manifests = [image({ layers: [] }), image({ layers: [] })]
  for (const [n, manifest] of manifests.entries()) {
    for (const part of manifest.parts) await dockerPushBlob(t, docker, name, part)
    const headers = { 'Content-Type': OCI_MANIFEST }
    await docker('PUT', `/v2/${name}/manifests/v${n}`, { headers, body: manifest.bytes })
  }
  const list = await docker('GET', `/v2/${name}/tags/list`)
  t.same(list.json<{ tags: string[] }>().tags, ['v0', 'v1'])
  for (const [n, manifest] of manifests.entries()) await dockerPull(t, docker, name, `v${n}`, manifest)
})

t.test(
  'section 13, docker manifest create and push: mounts, children by digest, the list by tag (T-52)',
  async (t) => {
    const docker = client('docker/28.2.2', true)
    const [first, second, target] = [
      newRepository('docker'),
      newRepository('docker'),
      newRepository('docker'),
    ]
    const children = [image({ mediaType: DOCKER_MANIFEST }), image({ mediaType: DOCKER_MANIFEST })]
    for (const [n, child] of children.entries()) {
      const source = n === 0 ? first : second
      for (const part of child.parts) await dockerPushBlob(t, docker, source, part)
      const headers = { 'Content-Type': DOCKER_MANIFEST }
      await docker('PUT', `/v2/${source}/manifests/x`, { headers, body: child.bytes })
      for (const part of child.parts) {
        const query = `from=${encodeURIComponent(source)}&mount=${encodeURIComponent(part.digest)}`
        const mount = await docker('POST', `/v2/${target}/blobs/uploads/?${query}`, { body: '' })
        t.equal(mount.status, 201, 'anything else stops the push')
      }
      const put = await docker('PUT', `/v2/${target}/manifests/${child.digest}`, {
        headers,
        body: child.bytes,
      })
      t.equal(put.status, 201)
    }
    const list = index(children, { mediaType: DOCKER_LIST })
    const put = await docker('PUT', `/v2/${target}/manifests/multi`, {
      headers: { 'Content-Type': DOCKER_LIST },
      body: list.bytes,
    })
    t.equal(put.status, 201)
    const inspected = await docker('GET', `/v2/${target}/manifests/multi`, {
      headers: { Accept: dockerAccept },
    })
    t.ok(inspected.body.equals(list.bytes))
  },
)

async function containerdPushBlob(t: Test, name: string, content: Content, ns = '') {
  const head = await client('containerd/1.7.24')('HEAD', `/v2/${name}/blobs/${content.digest}${ns}`)
  if (head.status === 200) return
  t.equal(head.status, 404)
  const connection = await RawConnection.open(server)
  await connection.request(`POST /v2/${name}/blobs/uploads/${ns}`, ['User-Agent: containerd/1.7.24'])
  const opened = await connection.reply()
  t.equal(opened.status, 202, 'a POST without any length')
  const location = new URL(opened.headers.location ?? '', server.url)
  location.searchParams.set('digest', content.digest)
  await connection.request(
    `PUT ${location.pathname}${location.search}`,
    [`Content-Length: ${content.size}`, `Content-Type: ${OCTETS}`],
    content.bytes,
  )
  t.equal((await connection.reply(1)).status, 201)
  await connection.close()
}

async function containerdPushManifest(t: Test, name: string, reference: string, manifest: Manifest) {
  const containerd = client('containerd/1.7.24')
  const accept = { Accept: `${manifest.mediaType}, */*` }
  const head = await containerd('HEAD', `/v2/${name}/manifests/${reference}`, { headers: accept })
  if (head.header('docker-content-digest') === manifest.digest) return
  const put = await containerd('PUT', `/v2/${name}/manifests/${reference}`, {
    headers: { 'Content-Type': manifest.mediaType },
    body: manifest.bytes,
  })
  t.equal(put.status, 201)
  t.equal(put.header('docker-content-digest'), manifest.digest)
}

async function containerdFetch(t: Test, name: string, content: Content, ns = '') {
  const reply = await client('containerd/1.7.24')('GET', `/v2/${name}/manifests/${content.digest}${ns}`, {
    headers: {
      Accept: `${content.mediaType}, */*`,
      'Accept-Encoding': 'zstd;q=1.0, gzip;q=0.8, deflate;q=0.5',
    },
  })
  t.ok(reply.body.equals(content.bytes))
}

t.test(
  'section 13, containerd: an index with two platforms and attestations, pushed and pulled, with ns',
  async (t) => {
    const name = newRepository('ctr')
    const shared = randomBlob(70_000)
    const children = [image({ layers: [shared, randomBlob(50)] }), image({ layers: [shared] })]
    const attestation = image({ layers: [randomBlob(90, 'application/vnd.in-toto+json')] })
    const all = [...children, attestation]
    for (const child of all) {
      await Promise.all(child.parts.map((part) => containerdPushBlob(t, name, part)))
      await containerdPushManifest(t, name, child.digest, child)
    }
    const list = index(all, { extra: { annotations: { 'org.opencontainers.image.created': '2025' } } })
    await containerdPushManifest(t, name, 'v1', list)

    // Where docker.io is mirrored, its name means what is there.
    for (const ns of ['', `?ns=${isEverythingOn() ? 'registry.example' : 'docker.io'}`]) {
      const resolved = await client('containerd/1.7.24')('HEAD', `/v2/${name}/manifests/v1${ns}`, {
        headers: { Accept: containerdAccept },
      })
      t.equal(resolved.header('docker-content-digest'), list.digest)
      t.equal(resolved.header('content-length'), String(list.size))
      t.equal(resolved.header('content-type'), OCI_INDEX)
      await containerdFetch(t, name, list, ns)
      for (const child of all) {
        await containerdFetch(t, name, child, ns)
        for (const part of child.parts) {
          const got = await client('containerd/1.7.24')('GET', `/v2/${name}/blobs/${part.digest}${ns}`, {
            headers: { Accept: `${part.mediaType}, */*` },
          })
          t.ok(got.body.equals(part.bytes))
        }
      }
    }
  },
)

t.test(
  'section 13, MF-16, MF-48, containerd: the same tag again is not pushed again; a digest falls from manifests to blobs',
  async (t) => {
    const name = newRepository('ctr')
    const manifest = image()
    for (const part of manifest.parts) await containerdPushBlob(t, name, part)
    await containerdPushManifest(t, name, 'v1', manifest)
    await containerdPushManifest(t, name, 'v1', manifest)
    const layer = manifest.parts[1]?.digest
    const containerd = client('containerd/1.7.24')
    t.equal((await containerd('HEAD', `/v2/${name}/manifests/${layer}`)).status, 404)
    t.equal((await containerd('HEAD', `/v2/${name}/blobs/${layer}`)).status, 200)
  },
)

t.test(
  'section 13, containerd 2.1: a layer fetched in parallel by open-ended ranges that are cut (BL-12)',
  async (t) => {
    const name = newRepository('ctr')
    const content = randomBlob(4_000_000)
    await containerdPushBlob(t, name, content)
    const size = 1_000_000
    const chunks = await Promise.all(
      [0, 1, 2, 3].map(async (n) => {
        const connection = await RawConnection.open(server)
        await connection.request(`GET /v2/${name}/blobs/${content.digest}`, [`Range: bytes=${n * size}-`])
        await eventually('one chunk', () => connection.receivedBytes > size + 500 || connection.isClosed)
        const text = connection.text
        await connection.abort()
        t.match(text, /^HTTP\/1\.1 206 /)
        const start = text.indexOf('\r\n\r\n') + 4
        return Buffer.from(text.slice(start, start + size), 'latin1')
      }),
    )
    t.ok(Buffer.concat(chunks).equals(content.bytes))
  },
)

async function podmanPushBlob(t: Test, podman: Client, name: string, content: Content, from?: string) {
  if ((await podman('HEAD', `/v2/${name}/blobs/${content.digest}`)).status === 200) return
  if (from !== undefined) {
    const path = `/v2/${name}/blobs/uploads/?mount=${content.digest}&from=${from}`
    const mount = await podman('POST', path, { body: '' })
    t.ok([201, 202].includes(mount.status))
    if (mount.status === 201) return
    t.equal((await podman('DELETE', mount.header('location'))).status, 204)
  }
  const opened = await podman('POST', `/v2/${name}/blobs/uploads/`, { body: '' })
  t.equal(opened.status, 202)
  const patched = await podman('PATCH', opened.header('location'), {
    headers: { 'Content-Type': OCTETS },
    body: content.bytes,
    chunked: true,
  })
  t.equal(patched.status, 202)
  const put = await podman('PUT', goQuery(patched.header('location'), { digest: content.digest }), {
    headers: { 'Content-Type': OCTETS },
    body: '',
  })
  t.equal(put.status, 201, 'podman accepts nothing else')
}

t.test('section 13, podman and skopeo: copy in, inspect, copy all, list tags, delete', async (t) => {
  const podman = client('containers/5.24.1 (github.com/containers/image)')
  const name = newRepository('podman')
  const manifest = image()
  t.equal((await podman('GET', '/v2/')).status, 200)
  for (const part of manifest.parts) await podmanPushBlob(t, podman, name, part, 'some/where')
  const refused = await podman('PUT', `/v2/${name}/manifests/v1`, {
    headers: { 'Content-Type': schema1 },
    body: JSON.stringify({ schemaVersion: 1, name, tag: 'v1', fsLayers: [], history: [], signatures: [] }),
  })
  t.equal(refused.code, 'MANIFEST_INVALID', 'the word on which it tries the next format')
  const put = await podman('PUT', `/v2/${name}/manifests/v1`, {
    headers: { 'Content-Type': OCI_MANIFEST },
    body: manifest.bytes,
  })
  t.equal(put.status, 201)
  const accept = { Accept: [OCI_MANIFEST, DOCKER_MANIFEST, schema1, DOCKER_LIST, OCI_INDEX] }
  const got = await podman('GET', `/v2/${name}/manifests/v1`, { headers: accept })
  t.ok(got.body.equals(manifest.bytes))
  const signatures = await podman('GET', `/v2/${name}/manifests/sha256-${manifest.digest.slice(7)}.sig`)
  t.equal(signatures.status, 404)

  const list = index([manifest])
  await podman('PUT', `/v2/${name}/manifests/all`, {
    headers: { 'Content-Type': OCI_INDEX },
    body: list.bytes,
  })
  t.same((await podman('GET', `/v2/${name}/tags/list`)).json(), { name, tags: ['all', 'v1'] })

  const toDelete = await podman('GET', `/v2/${name}/manifests/v1`, { headers: accept })
  const digest = toDelete.header('docker-content-digest')
  t.equal((await podman('DELETE', `/v2/${name}/manifests/${digest}`)).status, 202)
  t.same(await tagsOf(server, name), ['all'])
})

t.test(
  'section 13, skopeo --multi-arch=index-only: an index whose children stay away, where that is allowed',
  async (t) => {
    const skopeo = client('skopeo/1.18')
    const list = index([image(), image()])
    const put = (name: string) =>
      skopeo('PUT', `/v2/${name}/manifests/x`, { headers: { 'Content-Type': OCI_INDEX }, body: list.bytes })
    t.equal((await put('mirror/some/image')).status, 201)
    t.equal((await put('strict/some/image')).code, 'MANIFEST_BLOB_UNKNOWN')
  },
)

t.test('section 13, podman: a zstd:chunked pull asks for many ranges at once (BL-07)', async (t) => {
  const podman = client('containers/5.24.1 (github.com/containers/image)')
  const name = newRepository('podman')
  const content = randomBlob(200_000)
  await podmanPushBlob(t, podman, name, content)
  const ranges = Array.from({ length: 60 }, (_, n) => [n * 3000, n * 3000 + 1499 + n] as const)
  const reply = await podman('GET', `/v2/${name}/blobs/${content.digest}`, {
    headers: { Range: `bytes=${ranges.map(([from, to]) => `${from}-${to}`).join(',')}` },
  })
  t.equal(reply.status, 206)
  const boundary = /boundary=([A-Za-z0-9]+)$/.exec(reply.header('content-type'))?.[1] ?? ''
  const parts = reply.body.toString('latin1').split(`--${boundary}`).slice(1, -1)
  t.equal(parts.length, ranges.length, 'one part each')
  for (const [n, part] of parts.entries()) {
    const [from, to] = ranges[n] ?? [0, 0]
    const body = part.slice(part.indexOf('\r\n\r\n') + 4, -2)
    t.ok(Buffer.from(body, 'latin1').equals(content.bytes.subarray(from, to + 1)), `part ${n}`)
  }
})

t.test('section 13, podman search: ping, v1 without login (404), then the catalog', async (t) => {
  const podman = client('containers/5.24.1 (github.com/containers/image)')
  t.equal((await podman('GET', '/v2/')).status, 200)
  t.equal((await podman('GET', '/v1/search?n=25&q=podman')).status, 404)
  const names: string[] = []
  let path: string | undefined = '/v2/_catalog'
  while (path !== undefined) {
    const reply: Reply = await podman('GET', path)
    names.push(...reply.json<{ repositories: string[] }>().repositories)
    path = nextLink(reply)
  }
  t.ok(names.some((name) => name.includes('podman')))
})

t.test(
  'section 13, buildkit: an index of blobs as cache, and an image as cache, exported and imported (T-11)',
  async (t) => {
    const name = newRepository('buildkit')
    const layers = [randomBlob(500), randomBlob(600)]
    const config = blob('{"layers":[{"blob":"x"}],"records":[]}', 'application/vnd.buildkit.cacheconfig.v0')
    for (const part of [...layers, config]) await containerdPushBlob(t, name, part)
    const asIndex = manifestOf(
      {
        schemaVersion: 2,
        mediaType: OCI_INDEX,
        manifests: [...layers, config].map((part) =>
          descriptor(part, { annotations: { 'buildkit/createdat': '2025-01-01T00:00:00Z' } }),
        ),
      },
      OCI_INDEX,
    )
    await containerdPushManifest(t, name, 'cache', asIndex)
    const asImage = image({ config, layers })
    await containerdPushManifest(t, name, 'cache-image', asImage)
    for (const [tag, manifest] of [
      ['cache', asIndex],
      ['cache-image', asImage],
    ] as const) {
      const buildkit = client('buildkit/v0.20')
      const head = await buildkit('HEAD', `/v2/${name}/manifests/${tag}`, {
        headers: { Accept: containerdAccept },
      })
      t.equal(head.header('docker-content-digest'), manifest.digest)
      await containerdFetch(t, name, manifest)
      for (const part of [...layers, config])
        t.ok((await buildkit('GET', `/v2/${name}/blobs/${part.digest}`)).body.equals(part.bytes))
    }
  },
)

t.test(
  'section 13, crane and ko: JSON typed POSTs, origin in mounts, one comma list of Accept',
  async (t) => {
    const crane = client('crane/0.20 go-containerregistry/0.20')
    const name = newRepository('crane')
    const manifest = image()
    t.equal((await crane('GET', '/v2/')).status, 200)
    for (const part of manifest.parts) {
      t.equal((await crane('HEAD', `/v2/${name}/blobs/${part.digest}`)).status, 404)
      const query = `from=other%2Frepo&mount=${encodeURIComponent(part.digest)}&origin=registry.test`
      const opened = await crane('POST', `/v2/${name}/blobs/uploads/?${query}`, {
        headers: { 'Content-Type': 'application/json' },
        body: '',
      })
      t.equal(opened.status, 202, 'and the session is used as it is')
      const patched = await crane('PATCH', opened.header('location'), { body: part.bytes })
      t.equal(patched.status, 202)
      const put = await crane('PUT', goQuery(patched.header('location'), { digest: part.digest }), {
        body: '',
      })
      t.equal(put.status, 201)
    }
    t.equal((await crane('HEAD', `/v2/${name}/manifests/${manifest.digest}`)).status, 404)
    const put = await crane('PUT', `/v2/${name}/manifests/v1`, {
      headers: { 'Content-Type': OCI_MANIFEST },
      body: manifest.bytes,
    })
    t.ok([200, 201, 202].includes(put.status))
    const head = await crane('HEAD', `/v2/${name}/manifests/v1`, { headers: { Accept: ggcrAccept } })
    for (const header of ['content-type', 'content-length', 'docker-content-digest'])
      t.ok(head.header(header), `crane needs ${header}`)
    t.same((await crane('GET', `/v2/${name}/tags/list?n=1000`)).json<{ tags: string[] }>().tags, ['v1'])
    t.equal((await crane('GET', '/v2/_catalog?n=10000')).status, 200)
    t.equal((await crane('DELETE', `/v2/${name}/manifests/${manifest.digest}`)).status, 202)
  },
)

async function orasPush(t: Test, oras: Client, name: string, reference: string, manifest: Manifest) {
  for (const part of manifest.parts) {
    if ((await oras('HEAD', `/v2/${name}/blobs/${part.digest}`)).status === 200) continue
    const opened = await oras('POST', `/v2/${name}/blobs/uploads/`, { body: '' })
    const put = await oras('PUT', goQuery(opened.header('location'), { digest: part.digest }), {
      headers: { 'Content-Type': OCTETS },
      body: part.bytes,
    })
    t.equal(put.status, 201, 'oras accepts nothing else')
  }
  let reply: Reply | undefined
  for (const target of [manifest.digest, reference]) {
    reply = await oras('PUT', `/v2/${name}/manifests/${target}`, {
      headers: { 'Content-Type': manifest.mediaType },
      body: manifest.bytes,
    })
    t.equal(reply.status, 201)
  }
  return reply
}

async function orasReferrers(t: Test, oras: Client, name: string, digest: string, type?: string) {
  const query = type === undefined ? '' : `?artifactType=${encodeURIComponent(type)}`
  const reply = await oras('GET', `/v2/${name}/referrers/${digest}${query}`)
  t.equal(reply.status, 200)
  t.equal(reply.header('content-type'), OCI_INDEX, 'compared as it stands')
  return reply.json<{ manifests: Descriptor[] }>().manifests
}

t.test('section 13, oras: push, attach, discover, fetch; no fallback tag comes to be (T-64)', async (t) => {
  const oras = client('oras/1.2.2')
  const name = newRepository('oras')
  t.same(await orasReferrers(t, oras, name, `sha256:${'0'.repeat(64)}`), [], 'the probe')
  const app = artifact({ artifactType: 'application/vnd.acme.app', annotations: { a: 'b' } })
  t.equal((await oras('HEAD', `/v2/${name}/manifests/${app.digest}`)).status, 404)
  await orasPush(t, oras, name, 'v1', app)
  const attached = artifact({ subject: descriptor(app), artifactType: 'application/vnd.acme.sbom+json' })
  const reply = await orasPush(t, oras, name, attached.digest, attached)
  t.equal(reply?.header('oci-subject'), app.digest, 'without it oras writes a fallback tag')
  const found = await orasReferrers(t, oras, name, app.digest, 'application/vnd.acme.sbom+json')
  t.same(
    found.map((entry) => entry.digest),
    [attached.digest],
  )
  const resolved = await oras('HEAD', `/v2/${name}/manifests/v1`, { headers: { Accept: containerdAccept } })
  t.equal(resolved.header('docker-content-digest'), app.digest)
  const fetched = await oras('GET', `/v2/${name}/manifests/${app.digest}`, {
    headers: { Accept: OCI_MANIFEST },
  })
  t.equal(fetched.header('content-type'), OCI_MANIFEST)
  const seek = await oras('GET', `/v2/${name}/blobs/${app.parts[1]?.digest}`, {
    headers: { Range: 'bytes=5-9' },
  })
  t.equal(seek.status, 206)
  t.same(await tagsOf(server, name), ['v1'])
})

t.test('section 13, cosign: the bundle as a referrer, the signature tag of the older layout', async (t) => {
  const cosign = client('cosign/v3.0.0 (linux; amd64)')
  const name = newRepository('cosign')
  const app = image()
  await orasPush(t, client('crane'), name, 'v1', app)
  t.same(await orasReferrers(t, cosign, name, app.digest), [])
  const type = 'application/vnd.dev.sigstore.bundle.v0.3+json'
  const bundle = image({
    config: EMPTY_JSON,
    layers: [blob('{"mediaType":"bundle"}', type)],
    extra: { subject: descriptor(app), artifactType: type },
  })
  t.equal((await orasPush(t, cosign, name, bundle.digest, bundle))?.header('oci-subject'), app.digest)
  t.same(
    (await orasReferrers(t, cosign, name, app.digest, type)).map((entry) => entry.digest),
    [bundle.digest],
  )
  const tag = `sha256-${app.digest.slice(7)}.sig`
  t.equal((await cosign('GET', `/v2/${name}/manifests/${tag}`)).status, 404)
  const first = image({ layers: [blob('one', 'application/vnd.dev.cosign.simplesigning.v1+json')] })
  await orasPush(t, cosign, name, tag, first)
  const second = image({ layers: [...first.parts.slice(1), blob('two')] })
  await orasPush(t, cosign, name, tag, second)
  const verified = await cosign('GET', `/v2/${name}/manifests/${tag}`, { headers: { Accept: ggcrAccept } })
  t.ok(verified.body.equals(second.bytes))
})

t.test('section 13, notation: a signature with subject, and the old index is not asked for', async (t) => {
  const notation = client('notation/1.3')
  const name = newRepository('notation')
  const app = image()
  await orasPush(t, notation, name, 'v1', app)
  const type = 'application/vnd.cncf.notary.signature'
  const signature = image({
    config: blob('{}', type),
    layers: [blob('jws', 'application/jose+json')],
    extra: { subject: descriptor(app), annotations: { 'io.cncf.notary.x509chain.thumbprint#S256': '["x"]' } },
  })
  t.equal((await orasPush(t, notation, name, signature.digest, signature))?.header('oci-subject'), app.digest)
  const [found] = await orasReferrers(t, notation, name, app.digest, type)
  t.equal(found?.digest, signature.digest)
  t.same(found?.annotations, { 'io.cncf.notary.x509chain.thumbprint#S256': '["x"]' })
})

t.test(
  'section 13, helm: a chart without mediaType, its provenance, the plus in its version (T-12)',
  async (t) => {
    const helm = client('Helm/3.18.0')
    const name = newRepository('charts')
    const config = blob('{"name":"app","version":"1.0.0+x"}', 'application/vnd.cncf.helm.config.v1+json')
    const chart = randomBlob(2000, 'application/vnd.cncf.helm.chart.content.v1.tar+gzip')
    const provenance = blob('signed', 'application/vnd.cncf.helm.chart.provenance.v1.prov')
    const manifest = manifestOf(
      {
        schemaVersion: 2,
        config: descriptor(config),
        layers: [descriptor(chart), descriptor(provenance)],
        annotations: { 'org.opencontainers.image.version': '1.0.0+x' },
      },
      OCI_MANIFEST,
      [config, chart, provenance],
    )
    await orasPush(t, helm, name, '1.0.0_x', manifest)
    const tags = await helm('GET', `/v2/${name}/tags/list`)
    t.same(tags.json<{ tags: string[] }>().tags, ['1.0.0_x'])
    const pulled = await helm('GET', `/v2/${name}/manifests/1.0.0_x`, { headers: { Accept: OCI_MANIFEST } })
    t.equal(pulled.header('content-type'), OCI_MANIFEST)
    t.ok(pulled.body.equals(manifest.bytes))
    for (const part of manifest.parts)
      t.ok((await helm('GET', `/v2/${name}/blobs/${part.digest}`)).body.equals(part.bytes))
  },
)

t.test(
  'section 13, regclient: chunks that go on from the headers of a refusal, anonymous mounts, cancel',
  async (t) => {
    const regctl = client('regclient/regctl')
    const name = newRepository('regclient')
    const content = randomBlob(90_000)
    const opened = await regctl('POST', `/v2/${name}/blobs/uploads/?digest-algorithm=sha256`, { body: '' })
    t.equal(opened.header('oci-chunk-min-length'), '')
    let location = opened.header('location')
    let at = 0
    let refusals = 0
    while (at < content.size) {
      // One chunk in three is sent from a wrong place, as after an answer that got lost.
      const start = at > 0 && at % 30_000 === 0 && refusals < at / 30_000 ? at - 10_000 : at
      const end = Math.min(start + 10_000, content.size) - 1
      const reply = await regctl('PATCH', location, {
        headers: { 'Content-Range': `${start}-${end}`, 'Content-Type': OCTETS },
        body: content.bytes.subarray(start, end + 1),
      })
      if (start === at) t.equal(reply.status, 202)
      else {
        t.equal(reply.status, 416)
        refusals++
      }
      at = Number(reply.header('range').slice(2)) + 1
      location = reply.header('location')
    }
    t.equal(refusals, 2)
    const put = await regctl('PUT', goQuery(location, { digest: content.digest }), { body: '' })
    t.equal(put.status, 201)
    const mounted = await regctl('POST', `/v2/${name}-copy/blobs/uploads/?mount=${content.digest}`, {
      body: '',
    })
    t.equal(mounted.status, 201)
    const cancelled = await regctl('POST', `/v2/${name}/blobs/uploads/`, { body: '' })
    t.equal((await regctl('DELETE', cancelled.header('location'))).status, 204)
  },
)

t.test(
  'section 13, scanners: tags by pages, HEAD of manifests with a login that is not asked for',
  async (t) => {
    const renovate = client('RenovateBot/38')
    const name = newRepository('scanned')
    const manifest = image({ layers: [] })
    for (const tag of ['1.0', '1.1', '1.2', '2.0', '2.1'])
      await orasPush(t, client('oras'), name, tag, manifest)
    const seen: string[] = []
    let path: string | undefined = `/v2/${name}/tags/list?n=2`
    while (path !== undefined) {
      const reply: Reply = await renovate('GET', path, { headers: { Authorization: 'Basic Og==' } })
      seen.push(...reply.json<{ tags: string[] }>().tags)
      path = nextLink(reply)
    }
    t.same(seen, ['1.0', '1.1', '1.2', '2.0', '2.1'])
    const head = await renovate('HEAD', `/v2/${name}/manifests/2.1`, {
      headers: { Authorization: 'Bearer x' },
    })
    t.equal(head.status, 200)
  },
)

everyReplyKeptTheRules(t)
