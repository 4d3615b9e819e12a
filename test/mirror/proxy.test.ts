import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import * as http from 'node:http'
import { type AddressInfo, connect, type Socket } from 'node:net'
import t, { type Test } from 'tap'
import { ProxyChoice } from '../../src/mirror/proxy.js'
import { selfSigned } from '../certificate.js'
import { eventually } from '../harness.js'
import { startFakeUpstream } from './fake-upstream.js'
import { clientOf, digestOf, drain, failureOf, latest, repository, user } from './fixture.js'

const layer = randomBytes(500_000)

/** An HTTP proxy that leads every name to one address. Writes down what it is asked for. */
async function startProxy(t: Test, address: string) {
  const asked: string[] = []
  const sockets = new Set<Socket>()
  const keep = (socket: Socket) => {
    sockets.add(socket.on('error', () => undefined).once('close', () => sockets.delete(socket)))
    return socket
  }
  const server = http.createServer((request, response) => {
    asked.push(`${request.method} ${request.url} ${request.headers['proxy-authorization'] ?? ''}`.trim())
    const { port, pathname, search } = new URL(request.url ?? '')
    const { host: _, ...headers } = request.headers
    const options = {
      address,
      host: address,
      port,
      path: pathname + search,
      method: request.method ?? '',
      headers,
    }
    const onward = http.request(options, (answer) => {
      response.writeHead(answer.statusCode ?? 500, answer.headers)
      answer.pipe(response)
    })
    onward.on('error', () => response.destroy()).end()
  })
  server.on('connection', keep).on('connect', (request: http.IncomingMessage, socket: Socket) => {
    asked.push(`CONNECT ${request.url} ${request.headers['proxy-authorization'] ?? ''}`.trim())
    const onward = keep(connect(Number(request.url?.split(':')[1]), address))
    onward.once('connect', () => socket.write('HTTP/1.1 200 OK\r\n\r\n'))
    onward.pipe(socket).pipe(onward)
    onward.once('close', () => socket.destroy())
    socket.on('error', () => undefined).once('close', () => onward.destroy())
  })
  server.listen(0, '127.0.0.9')
  await once(server, 'listening')
  t.teardown(async () => {
    for (const socket of sockets) socket.destroy()
    server.close()
    await once(server, 'close')
  })
  const { port } = server.address() as AddressInfo
  return { url: `127.0.0.9:${port}`, asked, openConnections: () => sockets.size }
}

const neverResolve = () => Promise.reject(new Error('a name was looked up'))

t.test('through a proxy: TLS in a tunnel, plain HTTP in whole URLs, names left to the proxy', async (t) => {
  const tls = selfSigned({ names: ['registry.test'] })
  for (const options of [{ tls }, {}]) {
    const fake = await startFakeUpstream(t, { address: '127.0.0.2', auth: 'basic', user, ...options })
    const manifest = fake.addImage(repository, latest, [layer])
    const proxy = await startProxy(t, '127.0.0.2')
    const protocol = 'tls' in options ? 'https' : 'http'
    const client = clientOf(t, new URL(`${protocol}://registry.test:${fake.port}`), {
      credentials: async () => user,
      ca: tls.certificate,
      resolve: neverResolve,
      proxy: { httpProxy: `http://me:pass@${proxy.url}`, httpsProxy: `http://me:pass@${proxy.url}` },
    })
    t.equal((await client.headManifest(repository, latest)).digest, manifest, protocol)
    t.ok((await drain(await client.openBlob(repository, digestOf(layer), 0))).equals(layer))
    const basic = `Basic ${Buffer.from('me:pass').toString('base64')}`
    const line =
      protocol === 'https' ? `CONNECT registry.test:${fake.port} ${basic}` : / http:\/\/registry\.test:/
    t.match(proxy.asked[0], line)
    t.match(proxy.asked[0], basic)
    t.equal(fake.requests[0]?.headers['proxy-authorization'], protocol === 'https' ? undefined : basic)
    await eventually('all is closed again', () => proxy.openConnections() === 0)
    const blocked = clientOf(t, new URL(`${protocol}://127.0.0.2:${fake.port}`), {
      proxy: { httpProxy: proxy.url, httpsProxy: proxy.url },
      redirectHosts: ['10.0.0.1'],
    })
    fake.fault =
      () =>
      ({ send }) =>
        send({ status: 307, headers: { location: `${protocol}://10.0.0.1/x` }, body: Buffer.alloc(0) })
    if (protocol === 'http')
      t.match((await failureOf(blocked.headManifest(repository, latest))).message, /private/)
  }
})

t.test('a proxy that is down is a failure, and no way round it is taken', async (t) => {
  const fake = await startFakeUpstream(t)
  const client = clientOf(t, fake.url, { proxy: { httpProxy: '127.0.0.9:1', httpsProxy: '127.0.0.9:1' } })
  t.equal((await failureOf(client.headManifest(repository, latest))).failure, 'unavailable')
  t.equal(fake.connections, 0)
})

t.test('which URLs go through a proxy', async (t) => {
  const choice = new ProxyChoice({
    httpProxy: 'proxy.test:3128',
    httpsProxy: 'https://secure-proxy.test',
    noProxy: 'localhost, .internal,example.com:8443, 10.0.0.0/8,[::1]',
  })
  const cases: [string, string | undefined][] = [
    ['http://a.test', 'http://proxy.test:3128/'],
    ['https://a.test', 'https://secure-proxy.test/'],
    ['https://localhost:5000', undefined],
    ['https://a.internal', undefined],
    ['https://internal', undefined],
    ['https://notinternal', 'https://secure-proxy.test/'],
    ['https://example.com', 'https://secure-proxy.test/'],
    ['https://example.com:8443', undefined],
    ['https://sub.example.com:8443', undefined],
    ['https://10.9.8.7', undefined],
    ['https://11.9.8.7', 'https://secure-proxy.test/'],
  ]
  for (const [url, proxy] of cases) t.equal(choice.for(new URL(url))?.href, proxy, url)
  t.equal(new ProxyChoice({ httpsProxy: 'p:1', noProxy: '*' }).for(new URL('https://a')), undefined)
  t.equal(new ProxyChoice({ httpsProxy: '' }).for(new URL('https://a')), undefined)
  t.throws(
    () => new ProxyChoice({ httpsProxy: 'http://user:secret@' }),
    /^HTTPS_PROXY is not a URL$|HTTPS_PROXY/,
  )
  t.throws(() => new ProxyChoice({ httpProxy: 'socks5://p:1' }), /must begin with http/)
})
