import t, { type Test } from 'tap'
import {
  artifact,
  blob,
  type Content,
  DOCKER_LIST,
  DOCKER_MANIFEST,
  descriptor,
  EMPTY_JSON,
  everyReplyKeptTheRules,
  finishUpload,
  image,
  index,
  isError,
  type Manifest,
  manifestOf,
  newRepository,
  OCI_CONFIG,
  OCI_EMPTY,
  OCI_INDEX,
  OCI_LAYER,
  OCI_MANIFEST,
  openUpload,
  push,
  pushBlobs,
  putManifest,
  type Reply,
  randomBlob,
  randomDigest,
  startServer,
  tagsOf,
} from './harness.js'

const server = await startServer(t, {
  config: { manifests: { sparse: ['sparse/**', 'mirror/one', 'lib/*'] } },
})
const limit = 4 * 1024 * 1024

const get = (repository: string, reference: string, headers: Record<string, string | string[]> = {}) =>
  server.request('GET', `/v2/${repository}/manifests/${reference}`, { headers })

/** Asserts the answer to a stored manifest (MF-02). */
function isStored(t: Test, reply: Reply, repository: string, digest: string) {
  t.equal(reply.status, 201, reply.text)
  t.equal(reply.header('location'), `/v2/${repository}/manifests/${digest}`)
  t.equal(reply.header('docker-content-digest'), digest)
  t.equal(reply.header('content-length'), '0')
}

/** Asserts that `reference` gives exactly this manifest, by GET and HEAD (MF-01, MF-40). */
async function isServed(
  t: Test,
  repository: string,
  reference: string,
  manifest: Manifest,
  digest = manifest.digest,
) {
  const reply = await get(repository, reference)
  t.equal(reply.status, 200, `${reference}: ${reply.status} ${reply.code}`)
  t.ok(reply.body.equals(manifest.bytes), `${reference}: the exact bytes`)
  const head = await server.request('HEAD', `/v2/${repository}/manifests/${reference}`)
  for (const { headers, status } of [reply, head]) {
    t.equal(status, 200)
    t.equal(headers['content-type'], manifest.mediaType)
    t.equal(headers['content-length'], String(manifest.size))
    t.equal(headers['docker-content-digest'], digest)
    t.equal(headers.etag, `"${digest}"`)
  }
}

/** A repository that holds an image's blobs, and the image's members to build variants from. */
async function workshop(): Promise<{ repository: string; config: Content; layer: Content }> {
  const repository = newRepository('made')
  const config = blob('{"architecture":"amd64","os":"linux"}', OCI_CONFIG)
  const layer = randomBlob(200)
  await pushBlobs(server, repository, config, layer)
  return { repository, config, layer }
}

t.test('MF-01, MF-02, MF-40, MF-49: a manifest is stored byte for byte, whatever its layout', async (t) => {
  const { repository, config, layer } = await workshop()
  const [c, l] = [JSON.stringify(descriptor(config)), JSON.stringify(descriptor(layer))]
  const texts = [
    `{"schemaVersion":2,"mediaType":"${OCI_MANIFEST}","config":${c},"layers":[${l}]}`,
    `\n\t {  "layers" :[ ${l} , ${l}\n],"config":\r\n${c}, "schemaVersion": 2}  \n\n`,
    `{"schemaVersion":2,"config":${c},"layers":[],"annotations":{"\\u0061\\/b":"\\ud83d\\ude00 é \\u0000"}}`,
    `{"schemaVersion":2,"config":${c},"layers":[${l}],"x":[1.0,1e2,-0,12345678901234567890,1E-7,null,true]}`,
    `{"schemaVersion":2.0,"config":${c},"layers":[${l}]}`,
  ]
  for (const text of texts) {
    const manifest = manifestOf(text)
    const byTag = await putManifest(server, repository, 'exact', manifest)
    isStored(t, byTag, repository, manifest.digest)
    isStored(t, await putManifest(server, repository, manifest.digest, manifest), repository, manifest.digest)
    await isServed(t, repository, 'exact', manifest)
    await isServed(t, repository, manifest.digest, manifest)
    const there = await server.request('GET', byTag.header('location'))
    t.ok(there.body.equals(manifest.bytes), 'and at its Location')
    t.equal(there.header('content-type'), OCI_MANIFEST)
  }
})

t.test('MF-03, E-01: by digest the bytes must have that digest', async (t) => {
  const { repository, config, layer } = await workshop()
  const manifest = image({ config, layers: [layer] })
  const spaced = { ...manifest, bytes: Buffer.concat([manifest.bytes, Buffer.from('  ')]) }
  for (const digest of [manifest.digest, manifest.digest512, randomDigest()])
    isError(t, await putManifest(server, repository, digest, spaced), 400, 'DIGEST_INVALID')
  isError(t, await get(repository, manifest.digest), 404, 'NAME_UNKNOWN')
  t.equal((await putManifest(server, repository, manifest.digest, manifest)).status, 201)
})

t.test('MF-03, MF-41, T-07: a manifest pushed by sha512 is served under sha512', async (t) => {
  const { repository, config, layer } = await workshop()
  const manifest = image({ config, layers: [layer] })
  const reply = await putManifest(server, repository, manifest.digest512, manifest)
  isStored(t, reply, repository, manifest.digest512)
  await isServed(t, repository, manifest.digest512, manifest, manifest.digest512)
})

t.test('MF-04: pushing a tag moves it, the old manifest stays; the same again is 201', async (t) => {
  const { repository, config, layer } = await workshop()
  const first = image({ config, layers: [layer] })
  const second = image({ config, layers: [layer, layer] })
  for (const manifest of [first, first, second, second, first]) {
    isStored(t, await putManifest(server, repository, 'latest', manifest), repository, manifest.digest)
    await isServed(t, repository, 'latest', manifest)
  }
  await isServed(t, repository, second.digest, second)
  t.same(await tagsOf(server, repository), ['latest'])
})

t.test('MF-05, MF-40, T-08: parameters of the Content-Type are dropped', async (t) => {
  const { repository, config, layer } = await workshop()
  const manifest = image({ config, layers: [layer] })
  for (const type of [
    `${OCI_MANIFEST}; charset=utf-8`,
    `${OCI_MANIFEST};charset="UTF-8"; x=y`,
    ` ${OCI_MANIFEST} `,
  ]) {
    const reply = await putManifest(server, repository, 'typed', manifest, { 'Content-Type': type })
    t.equal(reply.status, 201, type)
    await isServed(t, repository, 'typed', manifest)
  }
})

t.test('MF-05, S52: a mediaType other than the Content-Type is refused', async (t) => {
  const { repository, config, layer } = await workshop()
  const oci = image({ config, layers: [layer] })
  const list = index([])
  const pairs: [Manifest, string][] = [
    [oci, DOCKER_MANIFEST],
    [oci, OCI_INDEX],
    [oci, 'application/json'],
    [oci, 'text/plain'],
    [list, OCI_MANIFEST],
    [list, DOCKER_LIST],
  ]
  for (const [manifest, type] of pairs) {
    const reply = await putManifest(server, repository, 'typed', manifest, { 'Content-Type': type })
    isError(t, reply, 400, 'MANIFEST_INVALID', type)
  }
  const odd = manifestOf({ ...JSON.parse(oci.bytes.toString()), mediaType: 5 })
  isError(t, await putManifest(server, repository, 'typed', odd), 400, 'MANIFEST_INVALID')
})

t.test('MF-05, T-12: without a mediaType the Content-Type counts, without both the members do', async (t) => {
  const { repository, config, layer } = await workshop()
  const body = { schemaVersion: 2, config: descriptor(config), layers: [descriptor(layer)] }
  for (const type of [OCI_MANIFEST, DOCKER_MANIFEST]) {
    const helm = manifestOf(body, type)
    t.equal((await putManifest(server, repository, 'helm', helm)).status, 201)
    await isServed(t, repository, 'helm', helm)
  }
  const bare = manifestOf({ ...body, annotations: { bare: 'yes' } })
  t.equal((await putManifest(server, repository, 'bare', bare, {})).status, 201)
  await isServed(t, repository, 'bare', bare)
  const list = manifestOf({ schemaVersion: 2, manifests: [descriptor(bare)] }, OCI_INDEX)
  t.equal((await putManifest(server, repository, 'bare-index', list, {})).status, 201)
  await isServed(t, repository, 'bare-index', list)
  const docker = image({ config, layers: [layer], mediaType: DOCKER_MANIFEST })
  t.equal((await putManifest(server, repository, 'own', docker, {})).status, 201)
  await isServed(t, repository, 'own', docker)
})

t.test('MF-06, T-54: the Docker and OCI types are stored as they are', async (t) => {
  const { repository, config, layer } = await workshop()
  for (const type of [OCI_MANIFEST, DOCKER_MANIFEST]) {
    const manifest = image({ config, layers: [layer], mediaType: type })
    isStored(t, await putManifest(server, repository, 'x', manifest), repository, manifest.digest)
    await isServed(t, repository, 'x', manifest)
    for (const listType of [OCI_INDEX, DOCKER_LIST]) {
      const list = index([manifest], { mediaType: listType })
      isStored(t, await putManifest(server, repository, 'y', list), repository, list.digest)
      await isServed(t, repository, 'y', list)
    }
  }
})

t.test('MF-06: the artifact manifest of early clients is stored as well', async (t) => {
  const { repository, layer } = await workshop()
  const type = 'application/vnd.oci.artifact.manifest.v1+json'
  const body = { mediaType: type, artifactType: 'application/x', blobs: [descriptor(layer)] }
  const manifest = manifestOf(body, type)
  isStored(t, await putManifest(server, repository, 'x', manifest), repository, manifest.digest)
  await isServed(t, repository, 'x', manifest)
  const missing = manifestOf({ ...body, blobs: [descriptor(randomBlob())] }, type)
  isError(t, await putManifest(server, repository, 'x', missing), 400, 'MANIFEST_BLOB_UNKNOWN')
})

t.test('MF-06, T-53: schema 1 is refused in words that say so', async (t) => {
  const { repository } = await workshop()
  const body = { schemaVersion: 1, name: repository, tag: 'x', fsLayers: [], history: [], signatures: [] }
  for (const type of ['v1+prettyjws', 'v1+json']) {
    const manifest = manifestOf(body, `application/vnd.docker.distribution.manifest.${type}`)
    const reply = await putManifest(server, repository, 'x', manifest)
    isError(t, reply, 400, 'MANIFEST_INVALID')
    t.match(reply.errors[0]?.message, /schema version 1 is not supported/)
  }
  const plain = await putManifest(server, repository, 'x', manifestOf(body), {
    'Content-Type': 'application/json',
  })
  isError(t, plain, 400, 'MANIFEST_INVALID')
})

t.test('MF-06: unknown types of manifest are refused', async (t) => {
  const { repository, config, layer } = await workshop()
  const body = { schemaVersion: 2, config: descriptor(config), layers: [descriptor(layer)] }
  for (const type of ['application/json', 'text/plain', 'application/vnd.x+json', 'x', '__proto__', '/']) {
    const reply = await putManifest(server, repository, 'x', manifestOf(body, type))
    isError(t, reply, 400, 'MANIFEST_INVALID', type)
  }
})

t.test('MF-07: what the registry does not know passes', async (t) => {
  const { repository, config } = await workshop()
  const odd = randomBlob(30, 'application/vnd.nobody.knows+thing')
  const oddConfig = blob('not even json', 'application/vnd.odd.config')
  await pushBlobs(server, repository, odd, oddConfig)
  const manifests = [
    image({ config: oddConfig, layers: [odd] }),
    image({ config, layers: [] }),
    image({ config, layers: [odd, odd, odd] }),
    image({ config, layers: [odd], extra: { artifactType: 'application/vnd.x', 'org.x': { deep: [[1]] } } }),
    image({
      config,
      layers: [odd],
      extra: { annotations: { '': '', constructor: 'y', a: 'b' } },
    }),
    image({ config, layers: [odd], extra: { annotations: {}, hello: 'world', schemaVersions: 1 } }),
    manifestOf({
      schemaVersion: 2,
      mediaType: OCI_MANIFEST,
      config: descriptor(config, { custom: true, annotations: { a: 'b' }, platform: null }),
      layers: [descriptor(odd, { x: [1, 2], artifactType: 'y' })],
    }),
    index([]),
    index([], { extra: { annotations: { a: 'b' }, custom: [1], artifactType: 'application/vnd.x' } }),
    index([], { mediaType: DOCKER_LIST }),
  ]
  for (const manifest of manifests) {
    isStored(t, await putManifest(server, repository, 'odd', manifest), repository, manifest.digest)
    await isServed(t, repository, 'odd', manifest)
  }
})

t.test('MF-07: a body that has not the structure of a manifest is refused', async (t) => {
  const { repository, config, layer } = await workshop()
  const c = descriptor(config)
  const l = descriptor(layer)
  const base = { schemaVersion: 2, mediaType: OCI_MANIFEST, config: c, layers: [l] }
  const bodies: unknown[] = [
    ...[
      '',
      ' ',
      'null',
      'true',
      '2',
      '"text"',
      '[]',
      '{}',
      '{',
      '{"schemaVersion":2',
      'nonsense',
      '{"a":1}{"b":2}',
    ],
    ...[`${JSON.stringify(base)}x`, `[${JSON.stringify(base)}]`, JSON.stringify(base).replaceAll('"', "'")],
    { ...base, schemaVersion: undefined },
    { ...base, schemaVersion: 3 },
    { ...base, schemaVersion: '2' },
    { ...base, schemaVersion: null },
    { ...base, config: undefined },
    { ...base, config: null },
    { ...base, config: [c] },
    { ...base, config: 'sha256:x' },
    { ...base, config: { ...c, digest: undefined } },
    { ...base, config: { ...c, digest: 5 } },
    { ...base, config: { ...c, mediaType: undefined } },
    { ...base, layers: undefined },
    { ...base, layers: null },
    { ...base, layers: {} },
    { ...base, layers: [null] },
    { ...base, layers: [[l]] },
    { ...base, layers: ['sha256:x'] },
    { ...base, layers: [{ ...l, digest: 'sha256:bad' }] },
    { ...base, layers: [{ ...l, digest: l.digest.toUpperCase() }] },
    { ...base, layers: [{ ...l, digest: '../../../etc/passwd' }] },
    { ...base, annotations: { a: 1 } },
    { ...base, annotations: ['a'] },
  ]
  for (const body of bodies) {
    const manifest = manifestOf(body)
    const reply = await putManifest(server, repository, 'bad', manifest)
    isError(t, reply, 400, 'MANIFEST_INVALID', manifest.bytes.toString().slice(0, 300))
  }
  for (const manifests of [undefined, null, {}, [null], ['x'], [{}], [{ ...l, digest: 'x' }]]) {
    const manifest = manifestOf({ schemaVersion: 2, mediaType: OCI_INDEX, manifests }, OCI_INDEX)
    const reply = await putManifest(server, repository, 'bad', manifest)
    isError(t, reply, 400, 'MANIFEST_INVALID', manifest.bytes.toString())
  }
  isError(t, await get(repository, 'bad'), 404, 'NAME_UNKNOWN')
})

t.test(
  'MF-08, MF-09, S51: 4 MiB are taken, a byte more is refused with 413, with and without a length',
  async (t) => {
    const { repository, config, layer } = await workshop()
    const sized = (size: number) => {
      const plain = image({ config, layers: [layer], extra: { annotations: { pad: '' } } })
      const text = plain.bytes.toString().replace('"pad":""', `"pad":"${'x'.repeat(size - plain.size)}"`)
      return manifestOf(text)
    }
    for (const chunked of [false, true]) {
      const send = (manifest: Manifest) =>
        server.request('PUT', `/v2/${repository}/manifests/large`, {
          headers: { 'Content-Type': OCI_MANIFEST },
          body: manifest.bytes,
          chunked,
          fresh: true,
        })
      for (const size of [limit - 1, limit]) {
        const manifest = sized(size)
        t.equal(manifest.size, size)
        isStored(t, await send(manifest), repository, manifest.digest)
        await isServed(t, repository, 'large', manifest)
      }
      for (const size of [limit + 1, limit + 100_000])
        isError(t, await send(sized(size)), 413, 'SIZE_INVALID', `${size}${chunked ? ' chunked' : ''}`)
    }
  },
)

t.test('MF-10: each missing blob of an image is named', async (t) => {
  const { repository, config, layer } = await workshop()
  const missing = [randomBlob(), randomBlob()]
  const cases: [Manifest, string[]][] = [
    [image({ config, layers: [layer, ...missing] }), missing.map((content) => content.digest)],
    [image({ config: blob('{"x":1}'), layers: [layer] }), [blob('{"x":1}').digest]],
    [image({ config, layers: [...missing, ...missing] }), missing.map((content) => content.digest)],
  ]
  for (const [manifest, digests] of cases) {
    const reply = await putManifest(server, repository, 'missing', manifest)
    isError(t, reply, 400, 'MANIFEST_BLOB_UNKNOWN')
    t.ok(
      reply.errors.every((entry) => entry.code === 'MANIFEST_BLOB_UNKNOWN'),
      'each entry has the code',
    )
    t.same(reply.errors.map((entry) => entry.detail).sort(), digests.sort(), 'one entry for each')
  }
})

t.test('MF-10, G-09: of many missing blobs twenty are named: clients can read the answer', async (t) => {
  const { repository, config } = await workshop()
  const layers = Array.from({ length: 500 }, () => randomBlob(8))
  const reply = await putManifest(server, repository, 'missing', image({ config, layers }))
  isError(t, reply, 400, 'MANIFEST_BLOB_UNKNOWN')
  t.ok(reply.body.length <= 8192, `${reply.body.length} bytes`)
  const missing = new Set(layers.map((layer) => layer.digest))
  t.equal(reply.errors.length, 20)
  t.ok(reply.errors.every((entry) => missing.has(String(entry.detail))))
})

t.test('MF-10, BL-02: blobs of other repositories do not count', async (t) => {
  const { config, layer } = await workshop()
  const reply = await putManifest(server, newRepository('else'), 'x', image({ config, layers: [layer] }))
  isError(t, reply, 400, 'MANIFEST_BLOB_UNKNOWN')
})

t.test('MF-10: layers that lie elsewhere need not be here', async (t) => {
  const { repository, config } = await workshop()
  const types = [
    'application/vnd.oci.image.layer.nondistributable.v1.tar',
    'application/vnd.oci.image.layer.nondistributable.v1.tar+gzip',
    'application/vnd.oci.image.layer.nondistributable.v1.tar+zstd',
    'application/vnd.docker.image.rootfs.foreign.diff.tar.gzip',
  ]
  for (const type of types) {
    const manifest = image({ config, layers: [randomBlob(10, type)] })
    isStored(t, await putManifest(server, repository, 'foreign', manifest), repository, manifest.digest)
  }
  const urls = manifestOf({
    schemaVersion: 2,
    mediaType: OCI_MANIFEST,
    config: descriptor(config),
    layers: [descriptor(randomBlob(), { urls: ['https://elsewhere.example/layer'] })],
  })
  isStored(t, await putManifest(server, repository, 'urls', urls), repository, urls.digest)
})

t.test('MF-10, DL-06: the children of an index must be here, as manifests or as blobs', async (t) => {
  const { repository, config, layer } = await workshop()
  const child = image({ config, layers: [layer] })
  const missing = image()
  const reply = await putManifest(server, repository, 'index', index([child, missing]))
  isError(t, reply, 400, 'MANIFEST_BLOB_UNKNOWN')
  t.same(reply.errors.map((entry) => entry.detail).sort(), [child.digest, missing.digest].sort())
  await putManifest(server, repository, child.digest, child)
  const good = index([child])
  isStored(t, await putManifest(server, repository, 'index', good), repository, good.digest)
  const nested = index([good, child])
  isStored(t, await putManifest(server, repository, 'nested', nested), repository, nested.digest)
  await isServed(t, repository, 'nested', nested)
})

t.test('MF-10, T-11: an index of blobs (a build cache) is taken', async (t) => {
  const { repository, layer } = await workshop()
  const config = blob('{"layers":[]}', 'application/vnd.buildkit.cacheconfig.v0')
  await pushBlobs(server, repository, config)
  const cache = manifestOf(
    { schemaVersion: 2, mediaType: OCI_INDEX, manifests: [descriptor(layer), descriptor(config)] },
    OCI_INDEX,
  )
  isStored(t, await putManifest(server, repository, 'cache', cache), repository, cache.digest)
  await isServed(t, repository, 'cache', cache)
})

t.test('MF-10: a repository set to be sparse takes manifests whose parts are missing', async (t) => {
  for (const repository of ['sparse/a', 'sparse/a/b/c', 'mirror/one', 'lib/x']) {
    const missing = image()
    for (const manifest of [missing, index([image(), image()])]) {
      const reply = await putManifest(server, repository, 'x', manifest)
      isStored(t, reply, repository, manifest.digest)
      await isServed(t, repository, 'x', manifest)
    }
  }
  for (const repository of [
    'sparse',
    'sparsely/a',
    'mirror/one/x',
    'mirror/two',
    'lib/x/y',
    'x/sparse/a',
    'lib',
  ]) {
    const reply = await putManifest(server, repository, 'x', image())
    isError(t, reply, 400, 'MANIFEST_BLOB_UNKNOWN', repository)
  }
})

t.test('MF-11, S54: a size other than the stored one is refused', async (t) => {
  const { repository, config, layer } = await workshop()
  const sizes: unknown[] = [
    layer.size + 1,
    layer.size - 1,
    0,
    -1,
    2 ** 53,
    1.5,
    `${layer.size}`,
    null,
    undefined,
  ]
  for (const size of [...sizes, true, [], {}]) {
    const bad = manifestOf({
      schemaVersion: 2,
      mediaType: OCI_MANIFEST,
      config: descriptor(config),
      layers: [{ ...descriptor(layer), size }],
    })
    isError(t, await putManifest(server, repository, 'size', bad), 400, 'MANIFEST_INVALID', `size ${size}`)
  }
  for (const literal of ['1e400', '-0.1', '99999999999999999999']) {
    const text = image({ config, layers: [layer] }).bytes.toString()
    const bad = manifestOf(text.replace(`"size":${layer.size}`, `"size":${literal}`))
    isError(t, await putManifest(server, repository, 'size', bad), 400, 'MANIFEST_INVALID', literal)
  }
  const wrongConfig = manifestOf({
    schemaVersion: 2,
    mediaType: OCI_MANIFEST,
    config: { ...descriptor(config), size: 1 },
    layers: [],
  })
  isError(t, await putManifest(server, repository, 'size', wrongConfig), 400, 'MANIFEST_INVALID')
})

t.test('MF-11: a size that disagrees with a stored child of an index is refused', async (t) => {
  const { repository, config, layer } = await workshop()
  const child = image({ config, layers: [layer] })
  await putManifest(server, repository, child.digest, child)
  const bad = index([{ ...child, size: child.size + 1 }])
  isError(t, await putManifest(server, repository, 'size', bad), 400, 'MANIFEST_INVALID')
})

t.test('MF-12: the empty config is an ordinary blob', async (t) => {
  const repository = newRepository('empty')
  const manifest = image({ config: EMPTY_JSON, layers: [EMPTY_JSON] })
  isError(t, await putManifest(server, repository, 'x', manifest), 400, 'MANIFEST_BLOB_UNKNOWN')
  await pushBlobs(server, repository, EMPTY_JSON)
  isStored(t, await putManifest(server, repository, 'x', manifest), repository, manifest.digest)
  t.equal(EMPTY_JSON.digest, 'sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a')
})

t.test('MF-12: inline data must be what its descriptor says', async (t) => {
  const { repository, config, layer } = await workshop()
  const withData = (data: unknown) =>
    manifestOf({
      schemaVersion: 2,
      mediaType: OCI_MANIFEST,
      config: descriptor(config, { data }),
      layers: [descriptor(layer)],
    })
  const good = withData(config.bytes.toString('base64'))
  isStored(t, await putManifest(server, repository, 'data', good), repository, good.digest)
  await isServed(t, repository, 'data', good)
  const other = Buffer.from(config.bytes)
  other.write('X')
  for (const data of [other.toString('base64'), '', 'e30=', 5, {}, null, '!!!', config.bytes.toString()])
    isError(t, await putManifest(server, repository, 'data', withData(data)), 400, 'MANIFEST_INVALID')
})

t.test('MF-12: a blob that stands inline need not be pushed', async (t) => {
  const repository = newRepository('inline')
  const manifest = manifestOf({
    schemaVersion: 2,
    mediaType: OCI_MANIFEST,
    artifactType: 'application/vnd.x',
    config: { mediaType: OCI_EMPTY, digest: EMPTY_JSON.digest, size: 2, data: 'e30=' },
    layers: [{ mediaType: OCI_EMPTY, digest: EMPTY_JSON.digest, size: 2, data: 'e30=' }],
  })
  isStored(t, await putManifest(server, repository, 'x', manifest), repository, manifest.digest)
})

t.test('MF-17, R30: readers of a tag that is being pushed see an old or a new manifest, whole', async (t) => {
  const { repository, config, layer } = await workshop()
  const versions = Array.from({ length: 8 }, (_, n) =>
    image({ config, layers: [layer], extra: { annotations: { n: String(n) } } }),
  )
  const known = new Map(versions.map((version) => [version.digest, version.bytes.toString()]))
  await putManifest(server, repository, 'hot', versions[0] as Manifest)
  let reading = true
  const readers = Array.from({ length: 4 }, async () => {
    let reads = 0
    while (reading) {
      const reply = await get(repository, 'hot')
      t.equal(known.get(reply.header('docker-content-digest')), reply.text)
      reads++
    }
    return reads
  })
  for (let round = 0; round < 10; round++)
    await Promise.all(versions.map((version) => putManifest(server, repository, 'hot', version)))
  reading = false
  for (const reads of await Promise.all(readers)) t.ok(reads > 0)
  const last = versions.at(-1) as Manifest
  await putManifest(server, repository, 'hot', last)
  await isServed(t, repository, 'hot', last)
})

t.test('MF-18: a conditional push goes through only when the tag stands as the client thinks', async (t) => {
  const { repository, config, layer } = await workshop()
  const [first, second, third] = ['1', '2', '3'].map((n) =>
    image({ config, layers: [layer], extra: { annotations: { n } } }),
  ) as [Manifest, Manifest, Manifest]
  const put = (manifest: Manifest, condition: Record<string, string>) =>
    putManifest(server, repository, 'cas', manifest, { 'Content-Type': OCI_MANIFEST, ...condition })
  isError(t, await put(first, { 'If-Match': `"${first.digest}"` }), 412, 'PRECONDITION_FAILED')
  isError(t, await put(first, { 'If-Match': '*' }), 412, 'PRECONDITION_FAILED')
  t.equal((await put(first, { 'If-None-Match': '*' })).status, 201)
  isError(t, await put(second, { 'If-None-Match': '*' }), 412, 'PRECONDITION_FAILED')
  isError(t, await put(second, { 'If-Match': `"${third.digest}"` }), 412, 'PRECONDITION_FAILED')
  await isServed(t, repository, 'cas', first)
  t.equal((await put(second, { 'If-Match': `"${first.digest}"` })).status, 201)
  t.equal((await put(third, { 'If-Match': `"${first.digest}", "${second.digest}"` })).status, 201)
  t.equal((await put(first, { 'If-Match': '*' })).status, 201)
  await isServed(t, repository, 'cas', first)
  const conditional = (reference: string, manifest: Manifest, condition: Record<string, string>) =>
    putManifest(server, repository, reference, manifest, { 'Content-Type': OCI_MANIFEST, ...condition })
  const several = `${second.digest}?tag=cas&tag=new`
  const refused = await conditional(several, second, { 'If-Match': `"${third.digest}"` })
  isError(t, refused, 412, 'PRECONDITION_FAILED')
  isError(t, await get(repository, 'new'), 404, 'MANIFEST_UNKNOWN')
  t.equal((await conditional(several, second, { 'If-Match': `"${first.digest}"` })).status, 201)
  const byDigest = await conditional(third.digest, third, { 'If-None-Match': '*' })
  isError(t, byDigest, 412, 'PRECONDITION_FAILED', 'by digest: it is there')
})

t.test('MF-18, S85: a condition of a push with several tags is about all of them', async (t) => {
  const { repository, config, layer } = await workshop()
  const [first, second] = ['1', '2'].map((n) =>
    image({ config, layers: [layer], extra: { annotations: { n } } }),
  ) as [Manifest, Manifest]
  const put = (tags: string[], manifest: Manifest, condition: Record<string, string>) =>
    putManifest(
      server,
      repository,
      `${manifest.digest}?${tags.map((tag) => `tag=${tag}`).join('&')}`,
      manifest,
      { 'Content-Type': OCI_MANIFEST, ...condition },
    )
  const absent = { 'If-None-Match': '*' }
  t.equal((await put(['a', 'b'], first, absent)).status, 201, 'none of them is there')
  for (const tags of [
    ['new', 'b'],
    ['b', 'new'],
    ['new', 'newer', 'a'],
  ]) {
    isError(t, await put(tags, second, absent), 412, 'PRECONDITION_FAILED', tags.join())
    isError(t, await get(repository, 'new'), 404, 'MANIFEST_UNKNOWN', 'nothing was stored')
  }
  const others = { 'If-None-Match': `"${first.digest}"` }
  isError(t, await put(['new', 'b'], second, others), 412, 'PRECONDITION_FAILED', 'one points there')
  t.equal((await put(['c'], second, absent)).status, 201)

  const same = { 'If-Match': `"${first.digest}"` }
  isError(t, await put(['a', 'c'], second, same), 412, 'PRECONDITION_FAILED', 'one has moved')
  isError(t, await put(['new', 'newer'], second, same), 412, 'PRECONDITION_FAILED', 'none is there')
  isError(t, await put(['new'], second, { 'If-Match': '*' }), 412, 'PRECONDITION_FAILED')
  await isServed(t, repository, 'a', first)
  t.equal((await put(['new', 'a', 'b'], second, same)).status, 201, 'all that are there stand as before')
  for (const tag of ['new', 'a', 'b']) await isServed(t, repository, tag, second)
})

t.test('MF-18, MF-17: of many conditional pushes at once exactly one goes through', async (t) => {
  const { repository, config, layer } = await workshop()
  const all = Array.from({ length: 10 }, (_, n) =>
    image({ config, layers: [layer], extra: { annotations: { n: String(n) } } }),
  )
  const replies = await Promise.all(
    all.map((manifest) =>
      putManifest(server, repository, 'one', manifest, {
        'Content-Type': OCI_MANIFEST,
        'If-None-Match': '*',
      }),
    ),
  )
  t.equal(replies.filter((reply) => reply.status === 201).length, 1)
  t.equal(replies.filter((reply) => reply.status === 412).length, 9)
})

t.test('MF-20, MF-21: one push by digest makes several tags', async (t) => {
  const { repository, config, layer } = await workshop()
  const manifest = image({ config, layers: [layer] })
  const tags = Array.from({ length: 100 }, (_, n) => `t${String(n).padStart(3, '0')}`)
  const query = tags.map((tag) => `tag=${tag}`).join('&')
  const reply = await putManifest(server, repository, `${manifest.digest}?${query}`, manifest)
  isStored(t, reply, repository, manifest.digest)
  t.same(
    reply
      .header('oci-tag')
      .split(/\s*,\s*/)
      .sort(),
    tags,
  )
  t.same(await tagsOf(server, repository), tags)
  for (const tag of ['t000', 't050', 't099']) await isServed(t, repository, tag, manifest)
})

t.test('MF-20: a tag named twice is made once; tags move to the new manifest', async (t) => {
  const { repository, config, layer } = await workshop()
  await putManifest(server, repository, 'a', image({ config, layers: [] }))
  const manifest = image({ config, layers: [layer] })
  const reply = await putManifest(server, repository, `${manifest.digest}?tag=a&tag=b&tag=a`, manifest)
  t.equal(reply.status, 201)
  t.same([...new Set(reply.header('oci-tag').split(/\s*,\s*/))].sort(), ['a', 'b'])
  await isServed(t, repository, 'a', manifest)
  await isServed(t, repository, 'b', manifest)
})

t.test('MF-21: more than a hundred tags are refused with 414 and none is made', async (t) => {
  const { repository, config, layer } = await workshop()
  const manifest = image({ config, layers: [layer] })
  const query = Array.from({ length: 101 }, (_, n) => `tag=t${n}`).join('&')
  const reply = await putManifest(server, repository, `${manifest.digest}?${query}`, manifest)
  isError(t, reply, 414, 'TAG_INVALID')
  isError(t, await get(repository, manifest.digest), 404, 'NAME_UNKNOWN')
})

t.test('MF-22: tag parameters with a tag reference are refused', async (t) => {
  const { repository, config, layer } = await workshop()
  const manifest = image({ config, layers: [layer] })
  const reply = await putManifest(server, repository, 'main?tag=other', manifest)
  isError(t, reply, 400, 'TAG_INVALID')
  isError(t, await get(repository, 'main'), 404, 'NAME_UNKNOWN')
})

t.test('MF-23: one bad tag refuses all, and nothing is made', async (t) => {
  const { repository, config, layer } = await workshop()
  const manifest = image({ config, layers: [layer] })
  for (const bad of ['.x', 'a%20b', '', 'x'.repeat(129), 'a%2Fb', manifest.digest, '-', 'a,b']) {
    const reference = `${manifest.digest}?tag=good&tag=${bad}`
    isError(t, await putManifest(server, repository, reference, manifest), 400, 'TAG_INVALID', bad)
    isError(t, await get(repository, 'good'), 404, 'NAME_UNKNOWN')
  }
})

t.test('MF-24, MF-25: tags made with a sha512 digest answer with that digest', async (t) => {
  const { repository, config, layer } = await workshop()
  const manifest = image({ config, layers: [layer] })
  const reference = `${manifest.digest512}?tag=long&tag=longer`
  const reply = await putManifest(server, repository, reference, manifest)
  isStored(t, reply, repository, manifest.digest512)
  await isServed(t, repository, 'long', manifest, manifest.digest512)
  await isServed(t, repository, 'longer', manifest, manifest.digest512)
  await isServed(t, repository, manifest.digest512, manifest, manifest.digest512)
  isStored(t, await putManifest(server, repository, 'plain', manifest), repository, manifest.digest)
  await isServed(t, repository, 'plain', manifest, manifest.digest)
  await isServed(t, repository, 'long', manifest, manifest.digest512)
})

t.test('MF-10: parts named by sha512 are found under that digest', async (t) => {
  const repository = newRepository('sha512')
  const layer = randomBlob(90)
  const config = blob('{"os":"linux"}', OCI_CONFIG)
  const long = ({ bytes, mediaType }: Content) => ({
    bytes,
    mediaType,
    size: bytes.length,
    digest: manifestOf(bytes).digest512,
  })
  const manifest = image({ config: long(config), layers: [long(layer)] })
  isError(
    t,
    await putManifest(server, repository, manifest.digest512, manifest),
    400,
    'MANIFEST_BLOB_UNKNOWN',
  )
  for (const part of manifest.parts)
    await finishUpload(server, await openUpload(server, repository), part.digest, part.bytes)
  isStored(
    t,
    await putManifest(server, repository, manifest.digest512, manifest),
    repository,
    manifest.digest512,
  )
  const list = index([{ ...manifest, digest: manifest.digest512 }])
  isStored(t, await putManifest(server, repository, list.digest512, list), repository, list.digest512)
})

t.test(
  'MF-30, MF-31: a push with a subject is answered with OCI-Subject, whether the subject is there or not',
  async (t) => {
    const repository = newRepository('subject')
    const subject = image()
    const reference = descriptor(subject)
    await pushBlobs(server, repository, EMPTY_JSON)
    const referrer = artifact({ subject: reference, artifactType: 'application/vnd.x' })
    t.equal((await push(server, repository, referrer.digest, referrer)).header('oci-subject'), subject.digest)
    await push(server, repository, 'there', subject)
    const again = await putManifest(server, repository, 'sig', referrer)
    t.equal(again.header('oci-subject'), subject.digest, 'once more, by tag')
    const list = index([subject], { extra: { subject: reference } })
    const reply = await putManifest(server, repository, list.digest, list)
    t.equal(reply.header('oci-subject'), subject.digest, 'an index')
    const long = artifact({ subject: { ...reference, digest: subject.digest512 } })
    t.equal((await push(server, repository, 'long', long)).header('oci-subject'), subject.digest512)
    const none = await push(server, repository, 'none', image())
    t.notOk(none.headers['oci-subject'], 'no subject, no header')
  },
)

t.test('MF-32: a subject must be a descriptor; in Docker types it is any other member', async (t) => {
  const { repository, config, layer } = await workshop()
  for (const subject of ['x', 5, [], {}, { digest: 'sha256:bad', size: 1, mediaType: 'x' }, { digest: 5 }]) {
    const manifest = image({ config, layers: [layer], extra: { subject } })
    const reply = await putManifest(server, repository, 'x', manifest)
    isError(t, reply, 400, 'MANIFEST_INVALID', JSON.stringify(subject))
  }
  const docker = image({
    config,
    layers: [layer],
    mediaType: DOCKER_MANIFEST,
    extra: { subject: descriptor(image()) },
  })
  const reply = await putManifest(server, repository, 'docker', docker)
  t.equal(reply.status, 201)
  t.notOk(reply.headers['oci-subject'])
})

t.test('MF-41, MF-04: the digest header echoes the digest asked for, by tag it is sha256', async (t) => {
  const { repository, config, layer } = await workshop()
  const manifest = image({ config, layers: [layer] })
  await putManifest(server, repository, 'both', manifest)
  await putManifest(server, repository, manifest.digest512, manifest)
  await isServed(t, repository, 'both', manifest)
  await isServed(t, repository, manifest.digest, manifest)
  await isServed(t, repository, manifest.digest512, manifest, manifest.digest512)
})

t.test('MF-42, T-09, T-10: what is stored is served whatever Accept says', async (t) => {
  const { repository, config, layer } = await workshop()
  const manifests = [
    image({ config, layers: [layer] }),
    image({ config, layers: [layer], mediaType: DOCKER_MANIFEST }),
  ]
  const accepts = [
    ...[
      undefined,
      '*/*',
      'text/html',
      OCI_MANIFEST,
      DOCKER_MANIFEST,
      OCI_INDEX,
      DOCKER_LIST,
      'application/json',
    ],
    ...['', ', ,', 'garbage', `${OCI_INDEX};q=0.1, ${OCI_MANIFEST};q=0`, `${DOCKER_MANIFEST}, */*`],
    [DOCKER_LIST, OCI_INDEX, 'application/vnd.docker.distribution.manifest.v1+prettyjws'],
  ]
  for (const manifest of manifests) {
    await putManifest(server, repository, 'x', manifest)
    for (const accept of accepts) {
      for (const reference of ['x', manifest.digest]) {
        const reply = await get(repository, reference, accept === undefined ? {} : { Accept: accept })
        t.equal(reply.status, 200, String(accept))
        t.equal(reply.header('content-type'), manifest.mediaType, String(accept))
        t.ok(reply.body.equals(manifest.bytes))
      }
    }
  }
})

t.test('MF-43: an index is served as it is to those who did not ask for one', async (t) => {
  const { repository, config, layer } = await workshop()
  const child = image({ config, layers: [layer] })
  await putManifest(server, repository, child.digest, child)
  const list = index([child], { mediaType: DOCKER_LIST })
  await putManifest(server, repository, 'list', list)
  const reply = await get(repository, 'list', { Accept: DOCKER_MANIFEST })
  t.equal(reply.header('content-type'), DOCKER_LIST)
  t.ok(reply.body.equals(list.bytes))
})

t.test('MF-45: If-None-Match in all its forms gives 304 without a body', async (t) => {
  const { repository, config, layer } = await workshop()
  const manifest = image({ config, layers: [layer] })
  await putManifest(server, repository, 'etag', manifest)
  const { digest } = manifest
  for (const condition of [
    `"${digest}"`,
    digest,
    `W/"${digest}"`,
    '*',
    `"x", "${digest}"`,
    `"x",W/"${digest}" , "y"`,
  ]) {
    for (const reference of ['etag', digest]) {
      for (const method of ['GET', 'HEAD']) {
        const reply = await server.request(method, `/v2/${repository}/manifests/${reference}`, {
          headers: { 'If-None-Match': condition },
        })
        t.equal(reply.status, 304, `${method} ${condition}`)
        t.equal(reply.header('etag'), `"${digest}"`)
        t.equal(reply.header('docker-content-digest'), digest)
        t.equal(reply.body.length, 0)
      }
    }
  }
  for (const condition of [`"${randomDigest()}"`, '"x"', '', digest.slice(0, -1), `"${digest}x"`, '""']) {
    const reply = await get(repository, 'etag', { 'If-None-Match': condition })
    t.equal(reply.status, 200, `"${condition}" is not it`)
  }
  const gone = await get(repository, 'nothing', { 'If-None-Match': '*' })
  isError(t, gone, 404, 'MANIFEST_UNKNOWN')
})

t.test('MF-45: what a digest names may be cached for good, what a tag names may not', async (t) => {
  const { repository, config, layer } = await workshop()
  const manifest = image({ config, layers: [layer] })
  await putManifest(server, repository, 'cached', manifest)
  const byDigest = (await get(repository, manifest.digest)).header('cache-control')
  t.match(byDigest, /max-age=31536000/)
  t.match(byDigest, /immutable/)
  t.match((await get(repository, 'cached')).header('cache-control'), /no-cache/)
})

t.test('MF-46: a Range on a manifest is ignored: the whole comes', async (t) => {
  const { repository, config, layer } = await workshop()
  const manifest = image({ config, layers: [layer] })
  await putManifest(server, repository, 'range', manifest)
  for (const reference of ['range', manifest.digest]) {
    for (const range of ['bytes=10-', `bytes=${manifest.size}-`, 'bytes=0-1,4-5']) {
      const reply = await get(repository, reference, { Range: range })
      t.equal(reply.status, 200, range)
      t.ok(reply.body.equals(manifest.bytes))
    }
  }
})

t.test(
  'MF-47: unknown tags and digests give MANIFEST_UNKNOWN, unknown repositories NAME_UNKNOWN',
  async (t) => {
    const { repository, config, layer } = await workshop()
    await putManifest(server, repository, 'known', image({ config, layers: [layer] }))
    for (const reference of ['unknown', 'Known', randomDigest(), image().digest512]) {
      isError(t, await get(repository, reference), 404, 'MANIFEST_UNKNOWN')
      isError(t, await get('no/such/repository', reference), 404, 'NAME_UNKNOWN')
      t.equal((await server.request('HEAD', `/v2/${repository}/manifests/${reference}`)).status, 404)
    }
    const other = newRepository('other')
    await push(server, other, 'own', image())
    isError(t, await get(other, 'known'), 404, 'MANIFEST_UNKNOWN')
  },
)

t.test('MF-48, BL-17: a blob is no manifest (404), and is then found among the blobs', async (t) => {
  const { repository, config, layer } = await workshop()
  await putManifest(server, repository, 'x', image({ config, layers: [layer] }))
  isError(t, await get(repository, layer.digest), 404, 'MANIFEST_UNKNOWN')
  t.equal((await server.request('HEAD', `/v2/${repository}/blobs/${layer.digest}`)).status, 200)
})

t.test('S53: self-made knots of indexes are answered', async (t) => {
  const { repository, config, layer } = await workshop()
  let top = image({ config, layers: [layer] })
  await putManifest(server, repository, top.digest, top)
  for (let level = 0; level < 60; level++) {
    top = index([top, top], { extra: { annotations: { level: String(level) } } })
    t.equal((await putManifest(server, repository, top.digest, top)).status, 201)
  }
  t.equal((await putManifest(server, repository, 'diamond', top)).status, 201)
  t.equal((await get(repository, 'diamond')).status, 200)
  t.equal((await server.request('DELETE', `/v2/${repository}/manifests/${top.digest}`)).status, 202)
})

t.test('S53: an index of ten thousand children is answered', async (t) => {
  const { repository, config, layer } = await workshop()
  const child = image({ config, layers: [layer] })
  await putManifest(server, repository, child.digest, child)
  const repeated = index(Array.from({ length: 10_000 }, () => child))
  const distinct = index(Array.from({ length: 10_000 }, () => randomBlob(4)))
  t.equal((await putManifest(server, repository, 'many', repeated)).status, 201)
  isError(t, await putManifest(server, repository, 'many', distinct), 400, 'MANIFEST_BLOB_UNKNOWN')
})

t.test('S44, MF-11: descriptors that share a digest must each be right', async (t) => {
  const { repository, config } = await workshop()
  const same = manifestOf({
    schemaVersion: 2,
    mediaType: OCI_MANIFEST,
    config: descriptor(config),
    layers: [{ ...descriptor(config), mediaType: OCI_LAYER }, descriptor(config)],
  })
  isStored(t, await putManifest(server, repository, 'same', same), repository, same.digest)
  const lying = manifestOf({
    schemaVersion: 2,
    mediaType: OCI_MANIFEST,
    config: descriptor(config),
    layers: [{ ...descriptor(config), size: config.size + 5 }],
  })
  isError(t, await putManifest(server, repository, 'lying', lying), 400, 'MANIFEST_INVALID')
})

everyReplyKeptTheRules(t)
