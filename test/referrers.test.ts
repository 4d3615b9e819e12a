import t, { type Test } from 'tap'
import {
  artifact,
  type Descriptor,
  descriptor,
  EMPTY_JSON,
  everyReplyKeptTheRules,
  image,
  index,
  isError,
  type Manifest,
  manifestOf,
  newRepository,
  nextLink,
  OCI_EMPTY,
  OCI_INDEX,
  push,
  pushBlobs,
  putManifest,
  type Reply,
  randomDigest,
  startServer,
} from './harness.js'

const server = await startServer(t)

const referrers = (repository: string, digest: string, query = '') =>
  server.request('GET', `/v2/${repository}/referrers/${digest}${query}`)

/** Asserts that the reply is an index in the exact form that clients compare, and gives its entries. */
function entriesOf(t: Test, reply: Reply): Descriptor[] {
  t.equal(reply.status, 200, reply.text.slice(0, 200))
  t.equal(reply.header('content-type'), OCI_INDEX)
  t.match(reply.header('cache-control'), /no-cache/, 'RF-15')
  const body = reply.json<{ schemaVersion: number; mediaType: string; manifests: Descriptor[] }>()
  t.equal(body.schemaVersion, 2)
  t.equal(body.mediaType, OCI_INDEX)
  t.ok(Array.isArray(body.manifests))
  return body.manifests
}

const digestsOf = (entries: Descriptor[]) => entries.map((entry) => entry.digest)

/** A repository with an image, and some manifests that refer to it. */
async function signed(t: Test, ...makers: ((subject: Descriptor) => Manifest)[]) {
  const repository = newRepository('referrers')
  const subject = image()
  await push(server, repository, 'app', subject)
  const made: Manifest[] = []
  for (const maker of makers) {
    const manifest = maker(descriptor(subject))
    const reply = await push(server, repository, manifest.digest, manifest)
    t.equal(reply.header('oci-subject'), subject.digest)
    made.push(manifest)
  }
  return { repository, subject, made }
}

const sbom = (subject: Descriptor) => artifact({ subject, artifactType: 'application/vnd.x.sbom+json' })
const signature = (subject: Descriptor) => artifact({ subject, artifactType: 'application/vnd.x.sig' })

t.test(
  'RF-01, RF-02, RF-03, T-26: an empty list for subjects and repositories that do not exist',
  async (t) => {
    const repository = newRepository('referrers')
    await push(server, repository, 'x', image())
    for (const name of [repository, 'never/pushed/at/all']) {
      for (const digest of [randomDigest(), image().digest512, `sha256:${'0'.repeat(64)}`]) {
        const reply = await referrers(name, digest)
        t.same(entriesOf(t, reply), [])
        t.notOk(reply.headers['oci-filters-applied'])
        t.notOk(reply.headers.link)
      }
    }
  },
)

t.test('RF-11: the probe of oras-go finds the API', async (t) => {
  const reply = await referrers('any/thing', `sha256:${'0'.repeat(64)}`)
  t.equal(reply.status, 200)
  t.equal(reply.header('content-type'), OCI_INDEX)
})

t.test(
  'RF-04, RF-09, RF-15: each entry has the type, size, artifact type and annotations of its manifest',
  async (t) => {
    const annotations = { 'org.example.a': 'ä "quoted"', b: '', c: 'x'.repeat(500) }
    const { repository, subject, made } = await signed(
      t,
      (subject) => artifact({ subject, artifactType: 'application/vnd.x+json', annotations }),
      (subject) => image({ extra: { subject } }),
      (subject) => artifact({ subject }),
      (subject) => index([], { extra: { subject, artifactType: 'application/vnd.index', annotations } }),
      (subject) => index([], { extra: { subject } }),
      (subject) => artifact({ subject, artifactType: '' }),
    )
    const expected = [
      { artifactType: 'application/vnd.x+json', annotations },
      { artifactType: 'application/vnd.oci.image.config.v1+json' },
      { artifactType: OCI_EMPTY },
      { artifactType: 'application/vnd.index', annotations },
      {},
      { artifactType: OCI_EMPTY },
    ].map((extra, n) => descriptor(made[n] as Manifest, extra))
    const entries = entriesOf(t, await referrers(repository, subject.digest))
    t.same(entries, expected, 'in the order of pushing (RF-09)')
  },
)

t.test('RF-05, T-55: the filter gives exact matches and says that it filtered', async (t) => {
  const { repository, subject, made } = await signed(t, sbom, signature, (subject) =>
    artifact({ subject, artifactType: 'application/vnd.x.sbom' }),
  )
  const [json, sig] = made
  for (const query of [
    '?artifactType=application/vnd.x.sbom%2Bjson',
    '?artifactType=application%2Fvnd.x.sbom%2Bjson',
    '?artifactType=application/vnd.x.sbom+json',
    '?artifactType=application/vnd.x.sbom%20json',
  ]) {
    const reply = await referrers(repository, subject.digest, query)
    t.same(digestsOf(entriesOf(t, reply)), [json?.digest], query)
    t.equal(reply.header('oci-filters-applied'), 'artifactType')
  }
  const none = await referrers(repository, subject.digest, '?artifactType=application/vnd.none')
  t.same(entriesOf(t, none), [])
  t.equal(none.header('oci-filters-applied'), 'artifactType')
  const byConfig = await referrers(repository, subject.digest, `?artifactType=${OCI_EMPTY}`)
  t.same(entriesOf(t, byConfig), [], 'the config type counts only without an artifactType')
  const one = await referrers(repository, subject.digest, '?artifactType=application/vnd.x.sig')
  t.same(digestsOf(entriesOf(t, one)), [sig?.digest])
  const all = await referrers(repository, subject.digest, '?other=1')
  t.equal(entriesOf(t, all).length, 3)
  t.notOk(all.headers['oci-filters-applied'], 'nothing filtered, nothing said')
})

t.test('RF-06: several filters mean any of them', async (t) => {
  const { repository, subject, made } = await signed(t, sbom, signature, (subject) => artifact({ subject }))
  const query = '?artifactType=application/vnd.x.sig&artifactType=application/vnd.x.sbom%2Bjson'
  const reply = await referrers(repository, subject.digest, query)
  t.same(digestsOf(entriesOf(t, reply)), [made[0]?.digest, made[1]?.digest])
  t.equal(reply.header('oci-filters-applied'), 'artifactType')
})

t.test('RF-07: a list is split only where it would pass 4 MiB, the filter stays in the link', async (t) => {
  const repository = newRepository('referrers')
  const subject = image()
  await push(server, repository, 'app', subject)
  await pushBlobs(server, repository, EMPTY_JSON)
  const pushed: string[] = []
  for (let n = 0; n < 14; n++) {
    const manifest = image({
      config: EMPTY_JSON,
      layers: [],
      extra: {
        subject: descriptor(subject),
        artifactType: n % 7 === 0 ? 'application/vnd.rare+x' : 'application/vnd.big+x',
        annotations: { n: String(n), pad: 'x'.repeat(450_000) },
      },
    })
    await putManifest(server, repository, manifest.digest, manifest)
    if (n % 7 !== 0) pushed.push(manifest.digest)
  }
  const seen: string[] = []
  let pages = 0
  let path: string | undefined =
    `/v2/${repository}/referrers/${subject.digest}?artifactType=application/vnd.big%2Bx`
  while (path !== undefined) {
    const reply: Reply = await server.request('GET', path)
    t.ok(reply.body.length <= 4 * 1024 * 1024, `a page of ${reply.body.length} bytes`)
    seen.push(...digestsOf(entriesOf(t, reply)))
    t.equal(reply.header('oci-filters-applied'), 'artifactType')
    path = nextLink(reply)
    if (path !== undefined) t.match(path, new RegExp(`^/v2/${repository}/referrers/${subject.digest}\\?`))
    pages++
    if (pages > 10) break
  }
  t.equal(pages, 2)
  t.same(seen, pushed, 'each once, in order')
})

t.test('RF-07: hundreds of small referrers come in one answer', async (t) => {
  const repository = newRepository('referrers')
  const subject = image()
  await push(server, repository, 'app', subject)
  await pushBlobs(server, repository, EMPTY_JSON)
  const count = 600
  const all = Array.from({ length: count }, (_, n) =>
    image({
      config: EMPTY_JSON,
      layers: [],
      extra: { subject: descriptor(subject), annotations: { n: `${n}` } },
    }),
  )
  for (let at = 0; at < count; at += 60)
    await Promise.all(
      all.slice(at, at + 60).map((manifest) => putManifest(server, repository, manifest.digest, manifest)),
    )
  const reply = await referrers(repository, subject.digest)
  t.same(digestsOf(entriesOf(t, reply)).sort(), all.map((manifest) => manifest.digest).sort())
  t.notOk(nextLink(reply))
})

t.test('RF-08: a bad digest gives 400', async (t) => {
  for (const digest of ['sha256:bad', 'latest', 'md5:abc', `sha256:${'G'.repeat(64)}`, '%20'])
    isError(t, await referrers('any/thing', digest), 400, 'DIGEST_INVALID')
})

t.test(
  'RF-10: a deleted referrer leaves the list at once, a deleted subject leaves the list alone',
  async (t) => {
    const { repository, subject, made } = await signed(t, sbom, signature)
    const [first, second] = made
    const gone = await server.request('DELETE', `/v2/${repository}/manifests/${first?.digest}`)
    t.equal(gone.status, 202)
    t.same(digestsOf(entriesOf(t, await referrers(repository, subject.digest))), [second?.digest])
    await server.request('DELETE', `/v2/${repository}/manifests/${subject.digest}`)
    t.same(digestsOf(entriesOf(t, await referrers(repository, subject.digest))), [second?.digest])
  },
)

t.test('MF-31: referrers pushed before their subject are listed when it comes', async (t) => {
  const repository = newRepository('referrers')
  const subject = image()
  const early = sbom(descriptor(subject))
  await push(server, repository, early.digest, early)
  t.same(digestsOf(entriesOf(t, await referrers(repository, subject.digest))), [early.digest])
  await push(server, repository, 'late', subject)
  t.same(digestsOf(entriesOf(t, await referrers(repository, subject.digest))), [early.digest])
})

t.test('MF-33: a referrer that is pushed again is listed once', async (t) => {
  const { repository, subject, made } = await signed(t, sbom)
  const manifest = made[0] as Manifest
  await putManifest(server, repository, manifest.digest, manifest)
  await putManifest(server, repository, 'tagged', manifest)
  await putManifest(server, repository, `${manifest.digest}?tag=a&tag=b`, manifest)
  t.same(digestsOf(entriesOf(t, await referrers(repository, subject.digest))), [manifest.digest])
  await server.request('DELETE', `/v2/${repository}/manifests/tagged`)
  t.same(digestsOf(entriesOf(t, await referrers(repository, subject.digest))), [manifest.digest])
})

t.test('RF-12, T-27: the tags of the old scheme are ordinary tags', async (t) => {
  const { repository, subject, made } = await signed(t, sbom)
  const hex = subject.digest.slice(7)
  for (const tag of [
    `sha256-${hex}`,
    `sha256-${hex}.sig`,
    `sha256-${hex}.att`,
    `sha512-${subject.digest512.slice(7, 71)}`,
  ]) {
    const fallback = index(made, { extra: { annotations: { tag } } })
    t.equal((await putManifest(server, repository, tag, fallback)).status, 201)
    const reply = await server.request('GET', `/v2/${repository}/manifests/${tag}`)
    t.equal(reply.header('docker-content-digest'), fallback.digest, tag)
    t.equal((await server.request('DELETE', `/v2/${repository}/manifests/${tag}`)).status, 202)
    isError(t, await server.request('GET', `/v2/${repository}/manifests/${tag}`), 404, 'MANIFEST_UNKNOWN')
  }
})

t.test('MF-34: what the index of an old client lists is in the API too', async (t) => {
  const { repository, subject, made } = await signed(t, sbom, signature)
  const fallback = index(made)
  await putManifest(server, repository, `sha256-${subject.digest.slice(7)}`, fallback)
  const entries = entriesOf(t, await referrers(repository, subject.digest))
  t.same(
    digestsOf(entries),
    made.map((manifest) => manifest.digest),
  )
})

t.test(
  'RF-14, RF-16: the referrers of a child, of its index and of other repositories are apart',
  async (t) => {
    const { repository, subject, made } = await signed(t, sbom)
    const list = index([subject])
    await putManifest(server, repository, 'index', list)
    const onIndex = signature(descriptor(list))
    await push(server, repository, onIndex.digest, onIndex)
    t.same(digestsOf(entriesOf(t, await referrers(repository, list.digest))), [onIndex.digest])
    t.same(digestsOf(entriesOf(t, await referrers(repository, subject.digest))), [made[0]?.digest])
    t.same(entriesOf(t, await referrers(newRepository('referrers'), subject.digest)), [])
  },
)

t.test('MF-41: referrers are kept apart by the algorithm of the subject', async (t) => {
  const { repository, subject } = await signed(t)
  const long = artifact({ subject: { ...descriptor(subject), digest: subject.digest512 } })
  await push(server, repository, long.digest, long)
  t.same(entriesOf(t, await referrers(repository, subject.digest)), [])
  t.same(digestsOf(entriesOf(t, await referrers(repository, subject.digest512))), [long.digest])
})

t.test('S53: manifests that refer to each other or to a referrer are only entries', async (t) => {
  const repository = newRepository('referrers')
  const first = artifact({ subject: descriptor(image()), annotations: { n: '1' } })
  const second = artifact({ subject: descriptor(first) })
  await push(server, repository, second.digest, second)
  await push(server, repository, first.digest, first)
  const third = artifact({ subject: descriptor(second) })
  await push(server, repository, third.digest, third)
  t.same(digestsOf(entriesOf(t, await referrers(repository, first.digest))), [second.digest])
  t.same(digestsOf(entriesOf(t, await referrers(repository, second.digest))), [third.digest])
})

t.test('RF-04, S56: annotations with the names of built-in members come back as they were', async (t) => {
  const repository = newRepository('referrers')
  const subject = image()
  await push(server, repository, 'app', subject)
  await pushBlobs(server, repository, EMPTY_JSON)
  const annotations = '{"__proto__":"p","constructor":"c","hasOwnProperty":"h","toString":"t"}'
  const base = image({
    config: EMPTY_JSON,
    layers: [],
    extra: { subject: descriptor(subject), annotations: 0 },
  })
  const manifest = manifestOf(
    base.bytes.toString().replace('"annotations":0', `"annotations":${annotations}`),
  )
  t.equal((await putManifest(server, repository, manifest.digest, manifest)).status, 201)
  const reply = await referrers(repository, subject.digest)
  for (const pair of annotations.slice(1, -1).split(','))
    t.ok(reply.text.includes(pair), `${pair} in ${reply.text}`)
})

everyReplyKeptTheRules(t)
