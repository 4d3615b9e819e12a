import { execFileSync, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { type AddressInfo, connect, createServer, isIPv4, type Socket } from 'node:net'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { eventually, type Server, scratchDir, startServer } from '../harness.js'
import { type FakeUpstream, startFakeUpstream } from './fake-upstream.js'
import { secrets, user } from './fixture.js'
import { startNameServer } from './nameserver.js'

/*
 * A real server in a network of its own, in which every address answers: those that must not be connected to, and
 * hosts of the public internet that want credentials which are not theirs. It is counted what comes to their sockets.
 */

const mark = 'BOATHOUSE_TEST_NETWORK'
const isInside = process.env[mark] !== undefined

/** Nobody but who names them may be connected to these. */
const forbidden = [
  ...['10.0.0.1', '10.255.255.254', '100.64.0.1', '100.127.255.254', '127.0.0.66', '127.255.255.253'],
  ...[
    '169.254.169.254',
    '169.254.170.2',
    '172.16.0.1',
    '172.31.255.254',
    '192.0.0.1',
    '192.0.2.1',
    '192.88.99.1',
  ],
  ...['192.168.0.1', '192.168.255.254', '198.18.0.1', '198.51.100.1', '203.0.113.1', '240.0.0.1', '::1'],
  ...[
    '::ffff:10.0.0.1',
    '::ffff:127.0.0.66',
    '::ffff:169.254.169.254',
    '64:ff9b::a00:1',
    '64:ff9b::a9fe:a9fe',
  ],
  ...['64:ff9b:1::1', '100::1', '2001::1', '2001:db8::1', '2002:7f00:1::1', '2002:a9fe:a9fe::1', '3fff::1'],
  ...['fc00::1', 'fd12:3456::1', 'fec0::1'],
]
/** Public addresses: they may be connected to, but credentials are not for them. */
const hostile = Array.from({ length: 30 }, (_, n) => `8.8.${n}.8`)
/** What clients send to log in here, and is nobody else's. */
const clientSecret = 'client-secret-2b91'
const headers = {
  Authorization: `Basic ${Buffer.from(`client:${clientSecret}`).toString('base64')}`,
  Cookie: `session=${clientSecret}`,
}
const allSecrets = [...secrets, clientSecret, Buffer.from(`client:${clientSecret}`).toString('base64')]

/** Why there can be no network of its own here; undefined when there can. */
function obstacle(): string | undefined {
  if (process.getuid?.() !== 0) return 'needs root, for a network of its own'
  const tried = spawnSync('unshare', [
    '-n',
    '-m',
    'sh',
    '-c',
    'ip link set lo up && ip -6 addr add fc00::1/128 dev lo',
  ])
  return tried.status === 0 ? undefined : 'needs unshare, ip, and a kernel with network namespaces and IPv6'
}

/** Names of hosts, by what they lead to. */
const forbiddenName = (n: number) => `host${n}.forbidden.test`
const hostileName = (n: number) => `host${n}.hostile.test`

/** Gives the machine all these addresses, and names to them; all of it ends with this process. */
async function prepareNetwork(t: Test): Promise<void> {
  const run = (...words: string[]) => execFileSync(words[0] ?? '', words.slice(1), { stdio: 'pipe' })
  run('mount', '--make-rprivate', '/')
  run('ip', 'link', 'set', 'lo', 'up')
  const own = ['127.0.0.9', ...forbidden, ...hostile].filter(
    (address) => !/^(127\.|::1$|::ffff:)/.test(address),
  )
  for (const address of own) run('ip', 'addr', 'add', `${address}/${isIPv4(address) ? 32 : 128}`, 'dev', 'lo')
  const names = [
    ...forbidden.map((address, n) => `${address} ${forbiddenName(n)}`),
    ...hostile.map((address, n) => `${address} ${hostileName(n)}`),
  ]
  for (const [file, lines] of [
    ['hosts', ['127.0.0.1 localhost', ...names]],
    ['resolv.conf', ['nameserver 127.0.0.53']],
    ['nsswitch.conf', ['hosts: files dns']],
  ] as const) {
    const path = join(scratchDir(t), file)
    writeFileSync(path, `${lines.join('\n')}\n`)
    run('mount', '--bind', path, `/etc/${file}`)
  }
}

/** What came to the sockets of all addresses on port 80. */
interface Net {
  readonly port: number
  /** Addresses that were connected to. */
  readonly connected: string[]
  /** All bytes that came, by address. */
  readonly received: Map<string, string>
}

/** Listens on all addresses; takes what comes and says 200 to it. */
async function startNet(t: Test): Promise<Net> {
  const sockets = new Set<Socket>()
  const connected: string[] = []
  const received = new Map<string, string>()
  const server = createServer((socket) => {
    sockets.add(socket)
    const address = socket.localAddress ?? ''
    connected.push(address)
    socket
      .on('error', () => undefined)
      .on('data', (bytes) => {
        received.set(address, `${received.get(address) ?? ''}${bytes.toString('latin1')}`)
        socket.end('HTTP/1.1 200 OK\r\ncontent-length: 18\r\n\r\n{"token":"caught"}')
      })
  })
  server.listen(80, '::')
  await once(server, 'listening')
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return { port: (server.address() as AddressInfo).port, connected, received }
}

/** Connects as anybody could: what does not count connections would find none later. */
async function tryAll({ connected }: Net): Promise<number> {
  for (const address of [...forbidden, ...hostile]) {
    const socket = connect(80, address)
    await once(socket, 'connect')
    socket.destroy()
  }
  await eventually(
    'all connections are counted',
    () => connected.length === forbidden.length + hostile.length,
  )
  return connected.splice(0).length
}

const mirrorName = (kind: string, n: number) => `${kind}${n}.test`

/** Everything that a client can ask a mirror for. Nothing of it may end in a 500. */
async function askEverything(t: Test, server: Server, mirror: string): Promise<string[]> {
  const digest = `sha256:${'a'.repeat(64)}`
  const said: string[] = []
  for (const path of [
    `blobs/${digest}`,
    'manifests/latest',
    `manifests/${digest}`,
    'tags/list',
    `referrers/${digest}`,
  ]) {
    // A blob with wrong bytes is broken off.
    const reply = await server
      .request('GET', `/v2/${mirror}/app/${path}`, { headers, unchecked: true })
      .catch(() => undefined)
    if (reply?.status === 500) t.fail(`${mirror}/${path}: ${reply.text}`)
    said.push(reply?.text ?? '')
  }
  return said
}

/** An address as it stands in a URL. */
const literalOf = (address: string) =>
  new URL(`http://${isIPv4(address) ? address : `[${address}]`}`).hostname

const base = (upstream: FakeUpstream) => ({
  url: upstream.url.origin,
  ...user,
  public: true,
  idleTimeout: '5s',
  redirects: ['*.forbidden.test', '*.hostile.test', ...forbidden.map(literalOf)],
})

/** Sends everybody who asks on, to a place that the path's first word tells. */
function misguide(upstream: FakeUpstream): void {
  const statuses = [301, 302, 303, 307, 308]
  const realms = [
    (host: string) => `http://${host}/token`,
    (host: string) => `https://${host}/token`,
    (host: string) => `http://127.0.0.1@${host}/token`,
    (host: string) => `http://${upstream.host}@${host}/token`,
    (host: string) => `http://${host}\\\\@${upstream.host}/token`,
    (host: string) => `//${host}/token`,
  ]
  upstream.fault = ({ path, request }) => {
    const [, kind, number] = /^\/v2\/(redirect|literal|hostile|realm)(\d+)\//.exec(path) ?? []
    const n = Number(number)
    const host = kind === 'redirect' ? forbiddenName(n) : hostileName(n)
    const address = forbidden[n] ?? ''
    const literal = literalOf(address)
    // Who wants to redirect may ask for credentials first: the server has its pass then.
    if (kind === 'realm') {
      const realm = realms[n % realms.length]?.(host)
      return ({ send }) =>
        send({
          status: 401,
          headers: { 'www-authenticate': `Bearer realm="${realm}",service="x"` },
          body: Buffer.alloc(0),
        })
    }
    if (request.headers.authorization === undefined) {
      return ({ send }) =>
        send({ status: 401, headers: { 'www-authenticate': 'Basic realm="x"' }, body: Buffer.alloc(0) })
    }
    const location = `http://${kind === 'literal' ? literal : host}${path}`
    return ({ send }) =>
      send({ status: statuses[n % 5] ?? 307, headers: { location }, body: Buffer.alloc(0) })
  }
}

function hasSecret(text: string): boolean {
  return allSecrets.some((secret) => text.includes(secret))
}

async function run(t: Test): Promise<void> {
  const net = await startNet(t)
  t.equal(
    await tryAll(net),
    forbidden.length + hostile.length,
    'every socket can be connected to, and counts',
  )
  const upstream = await startFakeUpstream(t)
  misguide(upstream)

  /** Starts a server with a mirror for each number, asks each for everything. @returns what they said */
  const askMirrors = async (
    kind: string,
    count: number,
    settings: (n: number) => Record<string, unknown> = () => ({}),
  ) => {
    const mirrors = Array.from({ length: count }, (_, n) => ({
      name: mirrorName(kind, n),
      ...base(upstream),
      ...settings(n),
    }))
    const server = await startServer(t, { config: { mirrors } })
    const said = []
    for (let n = 0; n < count; n++) said.push((await askEverything(t, server, mirrorName(kind, n))).join())
    const log = server.stderr()
    t.notOk(hasSecret(log), 'no secret is in the log')
    await server.stop()
    return said
  }
  const own = (kind: string) => (n: number) => ({ url: `${upstream.url.origin}/v2-of/${kind}${n}` })
  upstream.fault = withPrefix(upstream.fault)

  await t.test(`S42: 0 connections to ${forbidden.length} forbidden addresses`, async (t) => {
    t.ok(forbidden.length >= 30)
    for (const [kind, said] of [
      ['redirect', await askMirrors('redirect', forbidden.length, own('redirect'))],
      ['literal', await askMirrors('literal', forbidden.length, own('literal'))],
      [
        'url',
        await askMirrors('url', forbidden.length, (n) => ({
          url: `http://${forbiddenName(n)}`,
          username: undefined,
          password: undefined,
        })),
      ],
    ] as const) {
      const refused = said.filter((text) => /private or reserved address/.test(text)).length
      t.equal(refused, forbidden.length, `${kind}: all were refused for their address`)
      t.strictSame(net.connected, [], `${kind}: 0 connections`)
    }
    t.comment(
      `${forbidden.length} forbidden addresses, each by redirect, by literal and as upstream: ${net.connected.length} connections`,
    )
  })

  await t.test(`S40, S41: 0 bytes of credentials at ${hostile.length} hostile destinations`, async (t) => {
    t.ok(hostile.length >= 25)
    upstream.forget()
    await askMirrors('realm', hostile.length, own('realm'))
    t.ok(upstream.requests.length >= hostile.length, 'the upstream was asked')
    t.strictSame(net.connected, [], 'nobody went to another token service')
    await askMirrors('hostile', hostile.length, own('hostile'))
    t.equal(new Set(net.connected).size, hostile.length, 'redirects led to all of them')
    const leaked = [...net.received].filter(
      ([, bytes]) => hasSecret(bytes) || /authorization|cookie/i.test(bytes),
    )
    t.strictSame(leaked, [], 'none has got a credential')
    const sent = JSON.stringify(upstream.requests)
    t.ok(
      secrets.some((secret) => sent.includes(secret)),
      'the upstream has its own',
    )
    t.notOk(sent.includes(clientSecret), 'but none of a client')
    t.comment(
      `${net.connected.length} connections to ${net.received.size} hostile hosts, ${leaked.length} with credentials`,
    )
    net.connected.length = 0
  })

  await t.test('S42: a name server that changes its mind', async (t) => {
    let lookups = 0
    const rebound = await startFakeUpstream(t, { address: '127.0.0.9' })
    rebound.addBlob('app', Buffer.from('right'))
    await startNameServer(t, '127.0.0.53', () => (lookups++ % 2 === 0 ? '127.0.0.9' : '169.254.169.254'))
    const mirrors = [
      { name: 'rebind.test', url: `http://rebind.elsewhere:${rebound.port}`, addresses: ['127.0.0.9'] },
    ]
    const server = await startServer(t, { config: { mirrors } })
    const said: string[] = []
    for (let n = 0; n < 30; n++) {
      said.push((await server.request('GET', `/v2/rebind.test/app/tags/list`, { unchecked: true })).text)
    }
    t.ok(rebound.requests.length > 0, 'it is asked where it may be')
    t.ok(
      said.some((text) => /169\.254\.169\.254, a private or reserved address/.test(text)),
      'and nowhere else',
    )
    t.strictSame(net.connected, [])
    t.comment(
      `${lookups} lookups, ${rebound.requests.length} requests, ${net.connected.length} connections elsewhere`,
    )
  })
}

/** Mirrors share one upstream: the base path in their URL tells them apart. */
function withPrefix(fault: FakeUpstream['fault']): FakeUpstream['fault'] {
  return (exchange) => fault({ ...exchange, path: exchange.path.replace(/^\/v2-of\/(\w+)\/v2\//, '/v2/$1/') })
}

if (isInside) {
  await prepareNetwork(t)
  await run(t)
} else {
  const skip = obstacle() ?? false
  const words = ['-n', '-m', process.execPath, fileURLToPath(import.meta.url)]
  const env = { ...process.env, [mark]: 'yes' }
  if (skip !== false) t.test('G33, S40, S41, S42: in a network of its own', { skip }, async () => undefined)
  else await t.spawn('unshare', words, { env }, 'G33, S40, S41, S42: in a network of its own')
}
