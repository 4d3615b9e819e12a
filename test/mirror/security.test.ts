import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import t, { type Test } from 'tap'
import { AddressGuard, type Resolve } from '../../src/mirror/addresses.js'
import { parseDigest } from '../../src/oci/digest.js'
import { parseTag } from '../../src/oci/reference.js'
import { selfSigned } from '../certificate.js'
import { within } from '../harness.js'
import { digest, type FakeUpstream, type Fault, startFakeUpstream, startTrap } from './fake-upstream.js'
import { extraAnswer, faultNamed } from './faults.js'
import { clientOf, digestOf, drain, failureOf, hasty, latest, repository, secrets, user } from './fixture.js'

const credentials = async () => user
const layer = randomBytes(50_000)

/** Names of the tests, and where they lead: every one of them is permitted, so that only the rule in question stops. */
const names: Readonly<Record<string, string>> = {
  'registry.test': '127.0.0.2',
  'auth.test': '127.0.0.3',
  'cdn.test': '127.0.0.4',
}
const resolve: Resolve = async (name) => [{ address: names[name] ?? '127.0.0.66', family: 4 }]
const addresses = ['127.0.0.0/8']
const tls = selfSigned({ names: [...Object.keys(names), 'localhost'] })
const trusting = { resolve, addresses, ca: tls.certificate, credentials }

const named = (name: string, fake: FakeUpstream) => new URL(`${fake.url.protocol}//${name}:${fake.port}`)

function sentSecrets(fake: FakeUpstream): boolean {
  const seen = JSON.stringify(fake.requests)
  return secrets.some((secret) => seen.includes(secret))
}

const challenge =
  (realm: string): Fault =>
  ({ send }) =>
    send({
      status: 401,
      headers: { 'www-authenticate': `Bearer realm="${realm}",service="fake",scope="repository:x:pull"` },
      body: Buffer.alloc(0),
    })

t.test('S40: credentials go to the upstream’s own token service and to no other', async (t) => {
  const fake = await startFakeUpstream(t, { address: '127.0.0.2', tls })
  const trap = await startTrap(t)
  const neighbour = await startTrap(t, '127.0.0.2')
  const own = named('registry.test', fake)
  const realms = [
    `https://${trap.host}/token`,
    `http://${trap.host}/token`,
    `https://evil.test:${trap.port}/token`,
    `http://registry.test:${fake.port}/token`,
    `http://169.254.169.254/latest/meta-data/`,
    `https://registry.test@evil.test:${trap.port}/token`,
    `https://registry.test:${fake.port}@evil.test:${trap.port}/token`,
    `https://user:password@registry.test:${fake.port}/token`,
    `https://registry.test.evil.test:${trap.port}/token`,
    `https://evil-registry.test:${trap.port}/token`,
    `https://sub.registry.test:${trap.port}/token`,
    `https://registry.test.:${trap.port}/token`,
    `https://registry.test:${neighbour.port}/token`,
    `https://2130706498:${trap.port}/token`,
    `https://0x7f000042:${trap.port}/token`,
    `https://[::ffff:127.0.0.66]:${trap.port}/token`,
    `https://evil.test:${trap.port}\\@registry.test/token`,
    `https://evil.test:${trap.port}#@registry.test:${fake.port}/token`,
    `//evil.test:${trap.port}/token`,
    `/token`,
    '',
    'file:///etc/passwd',
    'javascript:alert(1)',
  ]
  for (const realm of realms) {
    fake.fault = () => challenge(realm)
    const client = clientOf(t, own, trusting)
    t.equal((await failureOf(client.getManifest(repository, latest))).failure, 'invalid', realm)
  }
  t.equal(trap.connections() + neighbour.connections(), 0, 'nobody else was connected to')
  t.notOk(sentSecrets(fake), 'not even the upstream saw a credential')

  const service = await startFakeUpstream(t, { address: '127.0.0.3', tls, user })
  fake.fault = () => challenge(`https://auth.test:${service.port}/token`)
  const refused = clientOf(t, own, { ...trusting, realms: ['auth.test'] })
  t.equal((await failureOf(refused.getManifest(repository, latest))).failure, 'invalid', 'another port')
  t.equal(service.connections, 0)
  fake.fault = () => challenge(`http://auth.test:${service.port}/token`)
  const plain = clientOf(t, own, { ...trusting, realms: [`auth.test:${service.port}`] })
  t.match(
    (await failureOf(plain.getManifest(repository, latest))).message,
    /without TLS/,
    'a configured host',
  )
  t.equal(service.connections, 0)
  fake.fault = () => challenge(`https://auth.test:${service.port}/token`)
  const client = clientOf(t, own, { ...trusting, realms: [`auth.test:${service.port}`] })
  t.equal(
    (await failureOf(client.getManifest(repository, latest))).failure,
    'denied',
    'a configured one is asked',
  )
  t.ok(sentSecrets(service), 'with the credentials')
  t.notOk(sentSecrets(fake), 'which the upstream itself does not see')
})

t.test('S40: a token service that redirects is not followed', async (t) => {
  const fake = await startFakeUpstream(t, { auth: 'bearer', user })
  const trap = await startTrap(t)
  fake.fault = ({ path }) =>
    path.startsWith('/token')
      ? ({ send }) =>
          send({ status: 307, headers: { location: `http://${trap.host}/` }, body: Buffer.alloc(0) })
      : undefined
  const client = clientOf(t, fake.url, { credentials, redirectHosts: [trap.host], addresses })
  t.equal((await failureOf(client.headManifest(repository, latest))).failure, 'invalid')
  t.equal(trap.connections(), 0)
})

const redirectTo =
  (location: string, status = 307): Fault =>
  ({ send }) =>
    send({ status, headers: { location }, body: Buffer.alloc(0) })

t.test('S41: a redirect takes no credentials along', async (t) => {
  const fake = await startFakeUpstream(t, { address: '127.0.0.2', auth: 'basic', user })
  const cdn = await startFakeUpstream(t, { address: '127.0.0.4' })
  const twin = await startFakeUpstream(t, { address: '127.0.0.2' })
  const trap = await startTrap(t)
  for (const store of [cdn, twin]) store.addBlob(repository, layer)
  const path = `/v2/${repository}/blobs/${digest(layer)}`
  const options = { credentials, addresses, redirectHosts: [cdn.host, twin.host] }
  for (const target of [cdn, twin]) {
    for (const status of [301, 302, 303, 307, 308]) {
      fake.fault = () => redirectTo(`http://${target.host}${path}?signature=sesame`, status)
      const blob = await clientOf(t, fake.url, options).openBlob(repository, digestOf(layer), 7)
      t.ok((await drain(blob)).equals(layer.subarray(7)), `${status} is followed, with the range`)
    }
    t.equal(target.requests.length, 5)
    t.notOk(
      target.requests.some(({ headers }) => headers.authorization !== undefined),
      'without Authorization',
    )
  }
  fake.fault = () => redirectTo(`http://${trap.host}${path}`)
  const refused = await failureOf(clientOf(t, fake.url, options).openBlob(repository, digestOf(layer), 0))
  t.match(refused, { failure: 'invalid', message: /not configured/ })
  t.equal(trap.connections(), 0)

  cdn.fault = () => faultNamed('status 500')
  fake.fault = () => redirectTo(`http://${cdn.host}${path}?signature=sesame`)
  const error = await failureOf(clientOf(t, fake.url, options).openBlob(repository, digestOf(layer), 0))
  t.equal(error.message, `fake.example: ${cdn.host} answered 500`, 'no word of the signature')
})

t.test('S41: who has left the upstream’s origin comes back without credentials', async (t) => {
  const fake = await startFakeUpstream(t, { address: '127.0.0.2', auth: 'basic', user })
  const cdn = await startFakeUpstream(t, { address: '127.0.0.4' })
  fake.addImage(repository, latest, [layer])
  const client = clientOf(t, fake.url, { credentials, addresses, redirectHosts: [cdn.host] })
  await client.headManifest(repository, latest)
  fake.forget()
  cdn.fault = () => redirectTo(`${fake.url.origin}/v2/private/manifests/latest`)
  fake.fault = ({ path }) => (path.includes('private') ? undefined : redirectTo(`http://${cdn.host}/x`))
  t.equal((await failureOf(client.getManifest(repository, latest))).failure, 'denied')
  t.equal(fake.asked('GET', /private/)[0]?.headers.authorization, undefined)
})

t.test('S41: TLS is not given up; five hops are followed, six are not', async (t) => {
  const secure = await startFakeUpstream(t, { address: '127.0.0.2', tls })
  const plain = await startFakeUpstream(t, { address: '127.0.0.4' })
  secure.fault = () => redirectTo(`http://cdn.test:${plain.port}/x`)
  const options = { ...trusting, redirectHosts: [`cdn.test:${plain.port}`] }
  const error = await failureOf(
    clientOf(t, named('registry.test', secure), options).headManifest(repository, latest),
  )
  t.match(error, { failure: 'invalid', message: /without TLS/ })
  t.equal(plain.connections, 0)

  const fake = await startFakeUpstream(t)
  const manifest = fake.addImage(repository, latest, [layer])
  const hops = (most: number) => {
    let hop = 0
    fake.fault = ({ path }) => (hop++ < most ? redirectTo(path, 302) : undefined)
  }
  hops(5)
  t.equal((await clientOf(t, fake.url).getManifest(repository, latest)).digest, manifest)
  hops(6)
  t.equal((await failureOf(clientOf(t, fake.url).getManifest(repository, latest))).failure, 'invalid')
})

t.test('S42: which addresses may be connected to', async (t) => {
  const guard = new AddressGuard([], [new URL('https://registry.test')])
  const refused = [
    '127.0.0.1 127.255.255.255 0.0.0.0 10.1.2.3 100.64.0.1 169.254.169.254 172.16.0.1 172.31.255.255 192.168.0.1',
    '192.0.2.1 198.18.0.1 198.51.100.7 203.0.113.9 224.0.0.1 240.0.0.1 255.255.255.255',
    ':: ::1 ::ffff:127.0.0.1 ::ffff:a9fe:a9fe ::ffff:10.0.0.1 0:0:0:0:0:ffff:7f00:1 ::127.0.0.1 fc00::1 fd12::1',
    'fe80::1 fe80::1%eth0 fec0::1 ff02::1 64:ff9b::7f00:1 64:ff9b::10.0.0.1 64:ff9b::169.254.169.254 64:ff9b:1::1',
    '2002:7f00:1:: 2001::1 2001:db8::1 100::1 nonsense 1.2.3',
  ]
  for (const address of refused.join(' ').split(' '))
    t.notOk(guard.permits('registry.test', address), address)
  const open = '8.8.8.8 172.32.0.1 100.128.0.1 2606:4700::1111 2a00:1450::5 ::ffff:8.8.8.8 64:ff9b::808:808'
  for (const address of open.split(' ')) t.ok(guard.permits('registry.test', address), address)

  const naming = new AddressGuard(
    ['10.1.0.0/16', 'fd00::/8'],
    [new URL('http://127.0.0.1:5000'), new URL('http://localhost:5000'), new URL('http://[::1]:5000')],
  )
  for (const [host, address, isPermitted] of [
    ['127.0.0.1', '127.0.0.1', true],
    ['localhost', '127.0.0.1', true],
    ['localhost', '::1', true],
    ['localhost', '10.0.0.1', false],
    ['::1', '::1', true],
    ['cdn.test', '127.0.0.1', false],
    ['127.0.0.2', '127.0.0.2', false],
    ['registry.test', '10.1.2.3', true],
    ['registry.test', '::ffff:10.1.2.3', true],
    ['registry.test', '10.2.0.1', false],
    ['registry.test', 'fd12::1', true],
  ] as const) {
    t.equal(naming.permits(host, address), isPermitted, `${host} at ${address}`)
  }
  for (const wrong of ['10.0.0.0/33', 'nonsense', '10.0.0.0/8/8', 'fd00::/129', '']) {
    t.throws(() => new AddressGuard([wrong], []), /not an IP address/, wrong)
  }
})

t.test('S42: the address that is connected to is the one that was checked', async (t) => {
  const fake = await startFakeUpstream(t, { address: '127.0.0.2' })
  const trap = await startTrap(t, '127.0.0.66', fake.port)
  const manifest = fake.addImage(repository, latest, [layer])
  const own = named('registry.test', fake)
  let answers: string[][] = []
  let lookups = 0
  const flipping: Resolve = async () => {
    lookups++
    return (answers.shift() ?? ['127.0.0.66']).map((address) => ({ address, family: 4 }))
  }
  const client = clientOf(t, own, { resolve: flipping, addresses: ['127.0.0.2'] })
  answers = [['127.0.0.2'], ['127.0.0.66'], ['127.0.0.66', '127.0.0.2'], ['10.0.0.1', '127.0.0.66']]
  t.equal((await client.headManifest(repository, latest)).digest, manifest)
  t.equal(lookups, 1, 'one lookup for one connection')
  t.match(await failureOf(client.headManifest(repository, latest)), {
    failure: 'unavailable',
    message: /leads to 127\.0\.0\.66, a private or reserved address/,
  })
  t.equal((await client.headManifest(repository, latest)).digest, manifest, 'of several, what is allowed')
  t.match((await failureOf(client.headManifest(repository, latest))).message, /10\.0\.0\.1/)

  fake.fault = () => redirectTo(`http://127.0.0.66:${fake.port}/x`)
  const literal = clientOf(t, own, { resolve, addresses: ['127.0.0.2'], redirectHosts: [trap.host] })
  t.match(
    (await failureOf(literal.headManifest(repository, latest))).message,
    /private or reserved/,
    'undici#2019',
  )
  t.equal(trap.connections(), 0)
  t.equal(
    await clientOf(t, new URL(`http://127.0.0.2:${fake.port}`))
      .headBlob(repository, digestOf(layer))
      .catch(({ failure }) => failure),
    'invalid',
    'a configured address names itself',
  )
})

t.test('S42: name servers that fail', async (t) => {
  const own = new URL('http://registry.test:5000')
  const failing =
    (code: string): Resolve =>
    () =>
      Promise.reject(Object.assign(new Error(code), { code }))
  for (const [broken, reason] of [
    [failing('ENOTFOUND'), /name is not known/],
    [failing('EAI_AGAIN'), /no name server answered/],
    [async () => [], /has no address|private|could not/],
    [() => new Promise<never>(() => undefined), /did not answer in time/],
  ] as const) {
    const client = clientOf(t, own, { resolve: broken, timeouts: hasty })
    const error = await within(10_000, 'a failure', failureOf(client.headManifest(repository, latest)))
    t.match(error, { failure: 'unavailable', message: reason })
  }
})

t.test('S43: an answer that nobody asked for is the answer to nothing', async (t) => {
  const evil = extraAnswer(Buffer.from('{"evil":true}'), `sha256:${'e'.repeat(64)}`)
  for (const when of ['at once', 'before the next'] as const) {
    const poisoner = await startPoisoner(t, evil, when)
    const client = clientOf(t, poisoner.url)
    for (let n = 0; n < 20; n++) {
      const tag = parseTag(`v${n}`)
      const wanted = poisoner.digestOf(tag)
      t.equal((await client.getManifest(repository, tag)).digest, wanted)
      t.equal((await client.headManifest(repository, tag)).digest, wanted)
    }
    t.equal(poisoner.connections(), 40, `each request had its own connection: ${when}`)
  }

  const fake = await startFakeUpstream(t, { auth: 'bearer', user, tokenLife: 1 })
  fake.fault = ({ reply }) =>
    reply.status === 200 ? faultNamed('another answer behind the answer') : undefined
  const asking = clientOf(t, fake.url, { credentials })
  const tags = Array.from({ length: 30 }, (_, n) => parseTag(`v${n}`))
  const digests = tags.map((tag) => fake.addManifest(repository, tag, { schemaVersion: 2, tag }))
  const answers = await Promise.all(tags.map((tag) => asking.headManifest(repository, tag)))
  t.strictSame(
    answers.map(({ digest }) => digest),
    digests,
    'tokens and tags are their own',
  )
})

/** A server that puts another answer behind each of its own, at once or when the next request comes. */
async function startPoisoner(t: Test, evil: Buffer, when: 'at once' | 'before the next') {
  const manifestOf = (tag: string) => Buffer.from(JSON.stringify({ schemaVersion: 2, tag }))
  const sockets = new Set<Socket>()
  let connections = 0
  const server = createServer((socket) => {
    connections++
    sockets.add(socket)
    let requests = 0
    socket
      .on('error', () => undefined)
      .on('data', (bytes) => {
        const [, method, tag = ''] = /^(HEAD|GET) \S+\/(\S+)/.exec(bytes.toString('latin1')) ?? []
        if (requests++ > 0) socket.write(evil)
        const body = manifestOf(tag)
        const head = `HTTP/1.1 200 OK\r\nconnection: keep-alive\r\ncontent-length: ${body.length}\r\ndocker-content-digest: ${digest(body)}\r\n\r\n`
        socket.write(Buffer.concat([Buffer.from(head), method === 'GET' ? body : Buffer.alloc(0)]))
        if (when === 'at once') socket.write(evil)
      })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(async () => {
    for (const socket of sockets) socket.destroy()
    server.close()
    await once(server, 'close')
  })
  const { port } = server.address() as AddressInfo
  return {
    url: new URL(`http://127.0.0.1:${port}`),
    connections: () => connections,
    digestOf: (tag: string) => digest(manifestOf(tag)),
  }
}

t.test('S45: a certificate that is not right ends it, and TLS is not done without', async (t) => {
  const yesterday = new Date(Date.now() - 3_600_000)
  const cases = [
    { tls: selfSigned({ names: ['registry.test'] }), trusted: false, reason: /self-signed certificate/ },
    { tls: selfSigned({ names: ['registry.test'], until: yesterday }), trusted: true, reason: /has expired/ },
    { tls: selfSigned({ names: ['other.test'] }), trusted: true, reason: /for another name/ },
  ]
  const before = process.env.NODE_TLS_REJECT_UNAUTHORIZED
  t.teardown(() => {
    if (before === undefined) delete process.env.NODE_TLS_REJECT_UNAUTHORIZED
    else process.env.NODE_TLS_REJECT_UNAUTHORIZED = before
  })
  for (const check of [undefined, '0']) {
    if (check !== undefined) process.env.NODE_TLS_REJECT_UNAUTHORIZED = check
    for (const { tls, trusted, reason } of cases) {
      const fake = await startFakeUpstream(t, { address: '127.0.0.2', tls })
      const ca = trusted ? tls.certificate : undefined
      const client = clientOf(t, named('registry.test', fake), { ...trusting, ca })
      t.match(await failureOf(client.headManifest(repository, latest)), {
        failure: 'unavailable',
        message: reason,
      })
      t.equal(fake.requests.length, 0, 'nothing was asked')
      t.equal(fake.connections, 1, 'and nothing tried again')
    }
  }
  const plain = await startFakeUpstream(t, { address: '127.0.0.2' })
  const client = clientOf(t, new URL(`https://registry.test:${plain.port}`), trusting)
  t.equal((await failureOf(client.headManifest(repository, latest))).failure, 'unavailable')
  t.equal(plain.requests.length, 0)
  const good = await startFakeUpstream(t, { address: '127.0.0.2', tls, auth: 'basic', user })
  const manifest = good.addImage(repository, latest, [layer])
  const right = clientOf(t, named('registry.test', good), trusting)
  t.equal((await right.headManifest(repository, latest)).digest, manifest, 'a further authority is trusted')
})

t.test('S46: endless answers end, and memory stays as it is', async (t) => {
  const fake = await startFakeUpstream(t)
  const subject = parseDigest(fake.addImage(repository, latest, [layer]))
  const entry = JSON.stringify({ mediaType: 'application/json', digest: subject, size: 1 })
  const type = 'application/vnd.oci.image.index.v1+json'
  const page = (path: string, entries: string, headers: Record<string, string>): Fault => {
    const body = Buffer.from(path.includes('tags') ? `{"tags":[${entries}]}` : `{"manifests":[${entries}]}`)
    return ({ send }) => send({ status: 200, headers: { 'content-type': type, ...headers }, body })
  }
  const before = process.memoryUsage().rss
  for (const name of ['a body without a bound', 'a byte now and then', 'headers without a bound']) {
    fake.fault = () => faultNamed(name)
    const client = clientOf(t, fake.url, { timeouts: hasty })
    await Promise.all([
      failureOf(client.getManifest(repository, latest)),
      failureOf(client.listTags(repository, '', 1000)),
      failureOf(client.listReferrers(repository, subject)),
    ])
  }
  // A million referrers: in pages that go on for ever, and on one page.
  const many = Array(1000).fill(entry).join(',')
  fake.fault = ({ path }) => page(path, many, { link: `<?last=x>; rel="next"` })
  fake.forget()
  t.equal((await failureOf(clientOf(t, fake.url).listReferrers(repository, subject))).failure, 'invalid')
  t.ok(fake.requests.length <= 12, `${fake.requests.length} pages`)
  const huge = Buffer.from(`{"manifests":[${Array(50_000).fill(entry).join(',')}]}`)
  fake.fault =
    () =>
    ({ send }) =>
      send({ status: 200, headers: { 'content-type': type }, body: huge })
  t.equal((await failureOf(clientOf(t, fake.url).listReferrers(repository, subject))).failure, 'invalid')
  fake.fault = ({ path }) => page(path, '"a"', { link: `</v2/${repository}/tags/list?last=a>; rel="next"` })
  const { names } = await clientOf(t, fake.url).listTags(repository, '', 100_000)
  t.ok(names.length <= 20, 'pages that go round are not read for ever')
  const grown = (process.memoryUsage().rss - before) / 1024 / 1024
  t.ok(grown < 64, `memory grew by ${Math.round(grown)} MiB, the upstream’s own included`)
})
