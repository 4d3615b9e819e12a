import { randomBytes } from 'node:crypto'
import t from 'tap'
import { parseDigest } from '../../src/oci/digest.js'
import { parseRepositoryName, parseTag } from '../../src/oci/reference.js'
import { eventually, pause, within } from '../harness.js'
import { type FakeExchange, type FakeReply, startFakeUpstream } from './fake-upstream.js'
import { faultNamed } from './faults.js'
import { clientOf, digestOf, drain, failureOf, hasty, latest, repository, user } from './fixture.js'

const layer = randomBytes(200_000)
const credentials = async () => user

t.test('PX-04: manifests by tag and digest, their type and bytes as they are', async (t) => {
  const fake = await startFakeUpstream(t)
  const manifest = parseDigest(fake.addImage(repository, latest, [layer]))
  const client = clientOf(t, fake.url)
  t.strictSame(await client.headManifest(repository, latest), { digest: manifest })
  const byTag = await client.getManifest(repository, latest)
  t.equal(byTag.digest, manifest)
  t.equal(byTag.mediaType, 'application/vnd.oci.image.manifest.v1+json')
  t.strictSame(await client.getManifest(repository, manifest), byTag)
  const accepted = String(fake.requests.at(-1)?.headers.accept).split(', ')
  t.equal(accepted.length, 6, 'six types are accepted')
  t.equal((await failureOf(client.getManifest(repository, parseTag('gone')))).failure, 'not-found')
})

t.test('a sha512 digest is checked with sha512', async (t) => {
  const fake = await startFakeUpstream(t)
  fake.addImage(repository, latest, [layer])
  const client = clientOf(t, fake.url)
  const wrong = parseDigest(`sha512:${'a'.repeat(128)}`)
  fake.fault =
    (exchange) =>
    ({ send }) =>
      send({ ...exchange.reply, status: 200, headers: {}, body: Buffer.from('{}') })
  t.match((await failureOf(client.getManifest(repository, wrong))).message, /do not have the digest sha512:a/)
})

t.test('MF-49: where HEAD is not known, or tells no digest, GET is asked', async (t) => {
  const fake = await startFakeUpstream(t)
  const manifest = fake.addImage(repository, latest, [layer])
  const client = clientOf(t, fake.url)
  const onHead = (reply: Partial<FakeReply>) => (exchange: FakeExchange) =>
    exchange.method === 'HEAD' ? () => exchange.send({ ...exchange.reply, ...reply }) : undefined
  for (const reply of [{ status: 405 }, { status: 501 }, { headers: {} }]) {
    fake.fault = onHead(reply)
    t.equal((await client.headManifest(repository, latest)).digest, manifest, JSON.stringify(reply))
  }
  t.equal(fake.asked('GET', /manifests/).length, 3)
})

t.test('PX-05: blobs from the beginning and from a byte on', async (t) => {
  const fake = await startFakeUpstream(t)
  fake.addImage(repository, latest, [layer])
  const client = clientOf(t, fake.url)
  t.equal(await client.headBlob(repository, digestOf(layer)), layer.length)
  const whole = await client.openBlob(repository, digestOf(layer), 0)
  t.match(whole, { size: layer.length, offset: 0 })
  t.ok((await drain(whole)).equals(layer))
  const part = await client.openBlob(repository, digestOf(layer), 70_001)
  t.match(part, { size: layer.length, offset: 70_001 })
  t.ok((await drain(part)).equals(layer.subarray(70_001)))

  fake.fault =
    () =>
    ({ send, reply }) =>
      send({ ...reply, status: 200, headers: {}, body: layer })
  const ignored = await client.openBlob(repository, digestOf(layer), 5)
  t.equal(ignored.offset, 0, 'an upstream that does not know ranges begins at the beginning')
  t.ok((await drain(ignored)).equals(layer))
  for (const range of [
    'bytes 4-199999/200000',
    'bytes 5-9/200000',
    'bytes 5-200000/200000',
    'octets 5-',
    undefined,
  ]) {
    fake.fault =
      () =>
      ({ send, reply }) =>
        send({ ...reply, headers: range === undefined ? {} : { 'content-range': range } })
    t.equal((await failureOf(client.openBlob(repository, digestOf(layer), 5))).failure, 'invalid', `${range}`)
  }
  await eventually('all connections are closed', () => fake.openConnections === 0)
})

t.test('R41: a reader that leaves ends the transfer; that is no failure of the upstream', async (t) => {
  const fake = await startFakeUpstream(t)
  fake.addImage(repository, latest, [randomBytes(1000)])
  const big = digestOf(layer)
  fake.addBlob(repository, layer)
  const client = clientOf(t, fake.url)
  fake.fault = () => faultNamed('a stall in the middle')
  const { body } = await client.openBlob(repository, big, 0)
  body.destroy()
  await eventually('the connection is closed', () => fake.openConnections === 0)

  const abort = new AbortController()
  const { body: second } = await client.openBlob(repository, big, 0, abort.signal)
  const ended = failureOf(drain({ body: second, size: undefined, offset: 0 }))
  abort.abort()
  t.equal((await ended).failure, 'unavailable')
  fake.fault = () => faultNamed('no answer')
  const early = new AbortController()
  const opening = failureOf(client.openBlob(repository, big, 0, early.signal))
  early.abort()
  t.match((await within(10_000, 'the abort', opening)).message, /asker left/)
  t.equal(client.health.failure, undefined)
})

t.test(
  'a reader that takes its time is not a failure; a blob that is slow but moves is not one either',
  async (t) => {
    const fake = await startFakeUpstream(t)
    const big = randomBytes(8_000_000)
    fake.addBlob(repository, big)
    const client = clientOf(t, fake.url, { timeouts: { ...hasty, idle: 2000 } })
    const { body } = await client.openBlob(repository, digestOf(big), 0)
    await pause(3000)
    const chunks: Buffer[] = []
    for await (const chunk of body) {
      if (chunks.length === 3) await pause(3000)
      chunks.push(chunk)
    }
    t.ok(Buffer.concat(chunks).equals(big))

    fake.fault =
      () =>
      ({ response }) => {
        response.writeHead(200, { 'content-length': '10000' })
        let sent = 0
        const timer = setInterval(() => {
          response.write(Buffer.alloc(1000))
          sent += 1000
          if (sent === 10_000) clearInterval(timer)
        }, 300)
      }
    t.equal((await drain(await client.openBlob(repository, digestOf(big), 0))).length, 10_000)
  },
)

t.test('TG-04, TG-07: tags page by page, by `last` and by links', async (t) => {
  const fake = await startFakeUpstream(t, { pageSize: 3 })
  const tags = Array.from({ length: 10 }, (_, n) => `v${n}`)
  for (const tag of tags) fake.addManifest(repository, tag, { schemaVersion: 2, tag })
  const client = clientOf(t, fake.url)
  t.strictSame(await client.listTags(repository, '', 100), { names: tags, more: false })
  t.strictSame(await client.listTags(repository, '', 4), { names: tags.slice(0, 4), more: true })
  t.strictSame(await client.listTags(repository, 'v7', 4), { names: ['v8', 'v9'], more: false })

  const list = (value: unknown, headers: Record<string, string> = {}) => {
    fake.fault =
      () =>
      ({ send }) =>
        send({ status: 200, headers, body: Buffer.from(JSON.stringify(value)) })
  }
  list({ tags })
  t.strictSame(
    await client.listTags(repository, 'v3', 2),
    { names: ['v4', 'v5'], more: true },
    'an upstream that knows neither n nor last',
  )
  list({ tags: ['a', null, 7, '', 'sha256:abc', '../x', 'b'] })
  t.strictSame(await client.listTags(repository, '', 10), { names: ['a', 'b'], more: false }, 'TG-01')
  list({ tags: null })
  t.strictSame(await client.listTags(repository, '', 10), { names: [], more: false })
  for (const link of ['<http://127.0.0.66/v2/x>; rel="next"', '</v2/other/name/tags/list>; rel=next']) {
    list({ tags: ['a'] }, { link })
    t.match(await failureOf(client.listTags(repository, '', 10)), {
      failure: 'invalid',
      message: /elsewhere/,
    })
  }
  fake.forget()
  list({ tags: [] }, { link: `</v2/${repository}/tags/list?n=1>; rel="next"` })
  await client.listTags(repository, '', 10)
  t.ok(fake.requests.length <= 20, 'links that go round are not followed for ever')
})

t.test('PX-09: referrers from the API, or from the tag where there is none', async (t) => {
  for (const hasReferrers of [true, false]) {
    const fake = await startFakeUpstream(t, { hasReferrers })
    const client = clientOf(t, fake.url)
    const subject = parseDigest(fake.addImage(repository, latest, [layer]))
    const mediaType = 'application/vnd.oci.image.manifest.v1+json'
    const artifactType = 'application/vnd.example.signature'
    const signature = { schemaVersion: 2, mediaType, artifactType, subject: { digest: subject } }
    const signed = fake.addManifest(repository, undefined, signature)
    const size = Buffer.from(JSON.stringify(signature)).length
    const entry = { mediaType, digest: signed, size, artifactType }
    if (!hasReferrers) {
      t.strictSame(await client.listReferrers(repository, subject), [], 'none yet')
      const index = { schemaVersion: 2, manifests: [entry, { digest: 'nonsense' }, null] }
      const type = 'application/vnd.oci.image.index.v1+json'
      fake.addManifest(repository, subject.replace(':', '-'), index, type)
    }
    t.match(await client.listReferrers(repository, subject), [entry], `the API: ${hasReferrers}`)
  }
})

t.test('PX-06: tokens are asked for once, and kept', async (t) => {
  const fake = await startFakeUpstream(t, { auth: 'bearer', user })
  fake.addImage(repository, latest, [layer])
  const client = clientOf(t, fake.url, { credentials, maxConnections: 50 })
  await Promise.all(Array.from({ length: 50 }, () => client.headManifest(repository, latest)))
  t.equal(fake.asked('GET', /^\/token/).length, 1, 'fifty askers share one token')
  t.match(fake.asked('GET', /^\/token/)[0]?.path, /service=fake&scope=repository%3Alibrary%2Fnginx%3Apull$/)
  fake.forget()
  await client.headManifest(repository, latest)
  t.equal(fake.requests.length, 1, 'the next request has it from the start')
  const narrow = clientOf(t, fake.url, { credentials, maxConnections: 1 })
  await within(
    10_000,
    'one connection is enough for the request and its token',
    narrow.headManifest(repository, latest),
  )
  fake.forget()
  const other = parseRepositoryName('library/other')
  fake.addImage(other, latest, [])
  await client.headManifest(other, latest)
  t.equal(fake.asked('GET', /^\/token/).length, 1, 'another repository has another token')
})

t.test('R47: tokens that live a second, and 50 pulls at a time: no 401 is seen', async (t) => {
  const fake = await startFakeUpstream(t, { auth: 'bearer', user, tokenLife: 1 })
  const manifest = fake.addImage(repository, latest, [layer])
  const client = clientOf(t, fake.url, { credentials })
  const end = Date.now() + 2500
  const pull = async () => {
    while (Date.now() < end) {
      t.equal((await client.getManifest(repository, latest)).digest, manifest)
      await drain(await client.openBlob(repository, digestOf(layer), 0))
    }
  }
  await Promise.all(Array.from({ length: 50 }, pull))
  const tokens = fake.asked('GET', /^\/token/).length
  t.ok(tokens >= 2 && tokens <= 8, `${tokens} tokens were asked for`)
})

t.test('a token that the upstream has forgotten is replaced', async (t) => {
  const fake = await startFakeUpstream(t, { auth: 'bearer', user })
  fake.addImage(repository, latest, [layer])
  const client = clientOf(t, fake.url, { credentials })
  await client.headManifest(repository, latest)
  let isFirst = true
  fake.forget()
  fake.fault = (exchange) => {
    if (!isFirst || !exchange.path.includes('manifests')) return undefined
    isFirst = false
    const challenge = `Bearer realm="${fake.url.origin}/token",service="fake",error="invalid_token"`
    return ({ send }) =>
      send({ status: 401, headers: { 'www-authenticate': challenge }, body: Buffer.alloc(0) })
  }
  await client.headManifest(repository, latest)
  t.equal(fake.asked('GET', /^\/token/).length, 1)
})

t.test('wrong credentials are `denied`, and so are none', async (t) => {
  for (const auth of ['basic', 'bearer'] as const) {
    const fake = await startFakeUpstream(t, { auth, user })
    fake.addImage(repository, latest, [layer])
    const wrong = clientOf(t, fake.url, { credentials: async () => ({ ...user, password: 'wrong' }) })
    const error = await failureOf(wrong.getManifest(repository, latest))
    t.equal(error.failure, 'denied', auth)
    t.notMatch(error.message, /wrong/)
    t.equal((await failureOf(clientOf(t, fake.url).headManifest(repository, latest))).failure, 'denied')
    const broken = clientOf(t, fake.url, {
      credentials: () => Promise.reject(new Error('secret.txt is gone')),
    })
    t.match(await failureOf(broken.headManifest(repository, latest)), {
      failure: 'denied',
      message: /cannot be read/,
    })
    const right = clientOf(t, fake.url, { credentials })
    await right.headManifest(repository, latest)
    fake.forget()
    await right.headManifest(repository, latest)
    t.equal(fake.requests.length, 1, `${auth} is remembered`)
  }
})

t.test('a token service that fails is a failure of its kind', async (t) => {
  const fake = await startFakeUpstream(t, { auth: 'bearer' })
  fake.addImage(repository, latest, [layer])
  const answers: [string, FakeReply][] = [
    ['denied', { status: 403, headers: {}, body: Buffer.alloc(0) }],
    ['unavailable', { status: 500, headers: {}, body: Buffer.alloc(0) }],
    ['invalid', { status: 404, headers: {}, body: Buffer.alloc(0) }],
    ['invalid', { status: 307, headers: { location: '/token2' }, body: Buffer.alloc(0) }],
    ['invalid', { status: 200, headers: {}, body: Buffer.from('<html>') }],
    ['invalid', { status: 200, headers: {}, body: Buffer.from('{"token":""}') }],
    ['invalid', { status: 200, headers: {}, body: Buffer.from('{"token":"a\\r\\nx: y"}') }],
    ['invalid', { status: 200, headers: {}, body: Buffer.alloc(65_537, 'x') }],
    ['rate-limited', { status: 429, headers: { 'retry-after': '5' }, body: Buffer.alloc(0) }],
  ]
  for (const [failure, reply] of answers) {
    fake.fault = ({ path }) => (path.startsWith('/token') ? ({ send }) => send(reply) : undefined)
    const error = await failureOf(clientOf(t, fake.url).headManifest(repository, latest))
    t.equal(error.failure, failure, `${reply.status} ${reply.body.subarray(0, 20)}`)
  }
})

t.test('RL-02: limits are read, and a 429 is obeyed', async (t) => {
  const fake = await startFakeUpstream(t)
  fake.addImage(repository, latest, [layer])
  const client = clientOf(t, fake.url)
  fake.fault =
    () =>
    ({ send, reply }) =>
      send({
        ...reply,
        headers: { ...reply.headers, 'ratelimit-limit': '100;w=21600', 'ratelimit-remaining': '76;w=21600' },
      })
  await client.headManifest(repository, latest)
  t.strictSame(client.health.rateLimit, { limit: 100, remaining: 76 })
  for (const name of ['status 429', 'status 429 until a date']) {
    const limited = clientOf(t, fake.url)
    fake.fault = () => faultNamed(name)
    const first = await failureOf(limited.getManifest(repository, latest))
    t.equal(first.failure, 'rate-limited')
    t.ok((first.retryAfter ?? 0) >= 6 && (first.retryAfter ?? 99) <= 60, `after ${first.retryAfter} s`)
    fake.forget()
    t.equal((await failureOf(limited.headManifest(repository, latest))).failure, 'rate-limited')
    t.equal(fake.requests.length, 0, 'nothing is asked until then')
    t.equal(limited.health.breaker, 'closed')
  }
  fake.fault =
    () =>
    ({ send, reply }) =>
      send({ ...reply, status: 429, headers: { 'retry-after': '1' } })
  const soon = clientOf(t, fake.url)
  await failureOf(soon.headManifest(repository, latest))
  fake.fault = () => undefined
  await eventually('it is asked again', () => soon.headManifest(repository, latest), 15_000)
})

t.test('R43: after three failures calls fail at once, until a probe succeeds', async (t) => {
  const fake = await startFakeUpstream(t)
  const manifest = fake.addImage(repository, latest, [layer])
  const failures: string[] = []
  const client = clientOf(t, fake.url, { onFailure: ({ message }) => failures.push(message) })
  await client.headManifest(repository, latest)
  await fake.stop()
  const begun = Date.now()
  for (let n = 0; n < 3; n++) {
    t.match(await failureOf(client.headManifest(repository, latest)), {
      failure: 'unavailable',
      message: /refused/,
    })
  }
  t.equal(failures.length, 3)
  const { retryAt = 0 } = client.health
  t.ok(retryAt > begun + 900 && retryAt <= Date.now() + 1001, `after ${retryAt - begun} ms`)
  t.match(client.health, { breaker: 'open', failure: /refused the connection/ })
  const calls = Array.from({ length: 100 }, () => failureOf(client.headManifest(repository, latest)))
  const errors = await Promise.all(calls)
  t.equal(failures.length, 3, 'a hundred calls fail without a connection tried')
  for (const error of errors) t.match(error, { failure: 'unavailable', message: /not asked/, retryAfter: 1 })

  await fake.start()
  fake.forget()
  fake.fault = () => faultNamed('status 503')
  let asked = 0
  await eventually('one probe', async () => {
    asked = Date.now()
    await Promise.all(Array.from({ length: 20 }, () => failureOf(client.headManifest(repository, latest))))
    return fake.requests.length > 0
  })
  t.equal(fake.requests.length, 1, 'one at a time')
  t.ok((client.health.retryAt ?? 0) > asked + 1900, 'the next pause is longer')
  fake.fault = () => undefined
  const answer = await eventually('it is asked again', () => client.headManifest(repository, latest), 15_000)
  t.equal(answer.digest, manifest)
  t.match(client.health, { breaker: 'closed', retryAt: undefined })
})

t.test('several URLs: the first that answers wins, one that is down is skipped', async (t) => {
  const first = await startFakeUpstream(t)
  const second = await startFakeUpstream(t, { address: '127.0.0.2' })
  const manifest = second.addImage(repository, latest, [layer])
  const client = clientOf(t, [first.url, second.url], { timeouts: hasty })
  const missing = await failureOf(client.getManifest(repository, latest))
  t.equal(missing.failure, 'not-found', 'not having it is an answer')
  t.equal(second.requests.length, 0)
  for (const name of ['status 500', 'a reset', 'status 429', 'no answer']) {
    first.fault = () => faultNamed(name)
    t.equal((await client.getManifest(repository, latest)).digest, manifest, name)
  }
  await first.stop()
  t.equal((await client.getManifest(repository, latest)).digest, manifest)
  t.equal(client.health.breaker, 'closed', 'one of them answers')
})

t.test('a URL may have a path; messages name upstream, host and reason', async (t) => {
  const fake = await startFakeUpstream(t)
  fake.addImage(repository, latest, [layer])
  const below = clientOf(t, new URL('/registry/', fake.url))
  const error = await failureOf(below.headManifest(repository, latest))
  t.equal(fake.requests.at(-1)?.path, `/registry/v2/${repository}/manifests/latest`)
  t.equal(error.message, `fake.example: ${fake.host} does not have it`)
})

t.test('more requests than connections wait for their turn, and too many are refused', async (t) => {
  const fake = await startFakeUpstream(t)
  fake.addImage(repository, latest, [layer])
  const client = clientOf(t, fake.url, { maxConnections: 2 })
  let most = 0
  fake.fault = () => {
    most = Math.max(most, fake.openConnections)
    return undefined
  }
  await Promise.all(Array.from({ length: 40 }, () => client.headManifest(repository, latest)))
  t.ok(most <= 4, `${most} connections at once`)
  fake.fault = () => faultNamed('no answer')
  const impatient = clientOf(t, fake.url, { maxConnections: 2, timeouts: hasty })
  const calls = Array.from({ length: 110 }, () => failureOf(impatient.headManifest(repository, latest)))
  const errors = await within(10_000, 'those who wait fail when the breaker opens', Promise.all(calls))
  t.ok(errors.some(({ message }) => /too many requests waiting/.test(message)))
})

t.test('close ends what runs and refuses what comes', async (t) => {
  const fake = await startFakeUpstream(t)
  fake.addBlob(repository, layer)
  const client = clientOf(t, fake.url)
  fake.fault = () => faultNamed('a stall in the middle')
  const blob = await client.openBlob(repository, digestOf(layer), 0)
  const read = failureOf(drain(blob))
  fake.fault = () => faultNamed('no answer')
  const asked = failureOf(client.headBlob(repository, digestOf(layer)))
  await eventually('both run', () => fake.openConnections === 2)
  await client.close()
  t.equal((await within(10_000, 'the blob', read)).failure, 'unavailable')
  t.match(await within(10_000, 'the request', asked), { failure: 'unavailable', message: /closed/ })
  t.match(await failureOf(client.headBlob(repository, digestOf(layer))), { failure: 'unavailable' })
  await eventually('no connection is left', () => fake.openConnections === 0)
})
