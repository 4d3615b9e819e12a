import t from 'tap'
import {
  blob,
  DOCKER_MANIFEST,
  everyReplyKeptTheRules,
  finishUpload,
  image,
  isError,
  newRepository,
  OCI_INDEX,
  OCI_MANIFEST,
  openUpload,
  push,
  pushBlobs,
  putManifest,
  RawConnection,
  randomBlob,
  randomDigest,
  send,
  startServer,
  tagsOf,
  UUID,
  withQuery,
} from './harness.js'

const server = await startServer(t, { config: { auth: 'none' } }) // a proxy's requests are refused where nothing is written
const someImage = image()
const base = newRepository('base')
await push(server, base, 'latest', someImage)

t.test('BASE-01, BASE-04, G-08: GET /v2/ answers 200 and {} and names the protocol version', async (t) => {
  const reply = await server.request('GET', '/v2/')
  t.equal(reply.status, 200)
  t.equal(reply.text, '{}')
  t.equal(reply.header('content-type'), 'application/json')
  t.equal(reply.header('content-length'), '2')
  t.equal(reply.header('docker-distribution-api-version'), 'registry/2.0')
  t.notOk(reply.headers['www-authenticate'], 'nothing here needs a login')
})

t.test('BASE-05, G-10: HEAD /v2/ is GET without the body', async (t) => {
  const reply = await server.request('HEAD', '/v2/')
  t.equal(reply.status, 200)
  t.equal(reply.header('content-length'), '2')
  t.equal(reply.header('content-type'), 'application/json')
  t.equal(reply.body.length, 0)
})

t.test('BASE-07: the private signature extension is not announced', async (t) => {
  const reply = await server.request('GET', '/v2/')
  t.notOk(reply.headers['x-registry-supports-signatures'])
})

t.test('G-07: /v2 without its slash behaves as /v2/', async (t) => {
  for (const method of ['GET', 'HEAD']) {
    const reply = await server.request(method, '/v2')
    t.equal(reply.status, 200, method)
    t.equal(reply.header('content-length'), '2', method)
  }
})

t.test('G-07: an upload opens without the trailing slash too', async (t) => {
  const reply = await server.request('POST', `/v2/${base}/blobs/uploads`)
  t.equal(reply.status, 202)
  t.match(reply.header('location'), UUID)
})

t.test('G-01, S74: repositories may be named after the words of the protocol', async (t) => {
  const names = [
    ...['manifests', 'blobs', 'tags', 'referrers', 'uploads', 'v2', 'v1', 'healthz', 'metrics', 'search'],
    ...['a/manifests', 'a/blobs', 'a/tags', 'a/referrers', 'a/tags/list', 'a/blobs/uploads', 'a/manifests/b'],
    ...['tags/list', 'v2/v2', 'blobs/uploads', 'manifests/latest', 'manifests/manifests', 'a/b', 'a', 'a-b'],
    ...['referrers/referrers', 'v2/auth/token', 'token'],
  ]
  for (const name of names) {
    const pushed = image({ layers: [randomBlob(10)] })
    await push(server, name, 'list', pushed)
    const location = await openUpload(server, name)
    t.ok(location.startsWith(`/v2/${name}/blobs/uploads/`), `${name}: Location ${location}`)
    const last = randomBlob(5)
    await finishUpload(server, location, last.digest, last.bytes)
    for (const reference of ['list', pushed.digest]) {
      const manifest = await server.request('GET', `/v2/${name}/manifests/${reference}`)
      t.equal(manifest.text, pushed.bytes.toString(), `${name}: manifest ${reference}`)
    }
    const layer = pushed.parts[1]?.digest
    t.equal((await server.request('GET', `/v2/${name}/blobs/${layer}`)).status, 200, `${name}: layer`)
    t.equal((await server.request('GET', `/v2/${name}/blobs/${last.digest}`)).text, last.bytes.toString())
    t.same(await tagsOf(server, name), ['list'], `${name}: tags`)
    const referrers = await server.request('GET', `/v2/${name}/referrers/${pushed.digest}`)
    t.equal(referrers.status, 200, `${name}: referrers`)
  }
  const catalog = (await server.request('GET', '/v2/_catalog')).json<{ repositories: string[] }>()
  for (const name of names) t.ok(catalog.repositories.includes(name), `${name} is in the catalog`)
})

t.test(
  'G-01: the tags "manifests", "blobs", "tags", "uploads" and "referrers" are tags like others',
  async (t) => {
    const repository = newRepository('words')
    for (const tag of ['manifests', 'blobs', 'tags', 'uploads', 'referrers', 'list', '_catalog', 'v2']) {
      const pushed = image({ layers: [] })
      await push(server, repository, tag, pushed)
      const reply = await server.request('GET', `/v2/${repository}/manifests/${tag}`)
      t.equal(reply.header('docker-content-digest'), pushed.digest, tag)
    }
  },
)

t.test('G-02: every name of the grammar is a repository', async (t) => {
  const names = [
    ...['0', 'x', '0/1', 'a.b', 'a_b', 'a__b', 'b-c', 'a--b', 'a---------b', 'a.b_c__d--e/f.g', '1.2.3/4-5'],
    ...['a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p', `long/${'x'.repeat(195)}`, 'constructor'],
  ]
  for (const name of names) {
    await push(server, name, 'v1', image({ layers: [] }))
    t.same(await tagsOf(server, name), ['v1'], name)
  }
})

t.test(
  'G-02, T-59: a name outside the grammar is refused with NAME_INVALID, nothing is folded',
  async (t) => {
    for (const name of [
      'Upper',
      'a/B',
      'a..b',
      'a___b',
      '-a',
      'a-',
      '.a',
      'a/_b',
      'a/b.',
      'a_-b',
      'ä',
      'a b',
    ]) {
      const encoded = encodeURI(name)
      isError(t, await server.request('GET', `/v2/${encoded}/tags/list`), 400, 'NAME_INVALID')
      isError(t, await server.request('POST', `/v2/${encoded}/blobs/uploads/`), 400, 'NAME_INVALID')
      isError(t, await server.request('GET', `/v2/${encoded}/manifests/latest`), 400, 'NAME_INVALID')
      isError(t, await putManifest(server, encoded, 'latest', someImage), 400, 'NAME_INVALID')
      isError(t, await server.request('GET', `/v2/${encoded}/blobs/${randomDigest()}`), 400, 'NAME_INVALID')
      isError(
        t,
        await server.request('GET', `/v2/${encoded}/referrers/${randomDigest()}`),
        400,
        'NAME_INVALID',
      )
    }
  },
)

t.test('G-03: every tag of the grammar can be pushed, others give TAG_INVALID', async (t) => {
  const repository = newRepository('tags')
  await pushBlobs(server, repository, ...someImage.parts)
  for (const tag of ['_', '0', 'A', 'a.b-c_D', '1.0.0_x', 'x'.repeat(128), '_.-', 'latest..', 'a--']) {
    t.equal((await putManifest(server, repository, tag, someImage)).status, 201, tag)
    t.equal((await server.request('HEAD', `/v2/${repository}/manifests/${tag}`)).status, 200, tag)
  }
  for (const tag of ['x'.repeat(129), '.a', '-a', 'a+b', 'a%20b', 'a@b', 'a~b', '%C3%A4']) {
    isError(t, await putManifest(server, repository, tag, someImage), 400, 'TAG_INVALID')
  }
})

t.test('G-04, G-05: a reference with a colon is a digest, and a bad one is DIGEST_INVALID', async (t) => {
  const hex = someImage.digest.slice(7)
  const bad = [
    ...['sha256:baddigeststring', 'sha256:totallywrong', 'sha256:', ':', `${'sha256'}:${hex.toUpperCase()}`],
    ...[`sha256:${hex}0`, `sha256:${hex.slice(1)}`, `sha512:${hex}`, `md5:${hex.slice(32)}`, `SHA256:${hex}`],
    ...[`sha256:${hex.slice(1)}g`, `unknown:${hex}`, `blake3:${hex}`, `sha256::${hex}`, `sha256+b64:${hex}`],
    ...[`latest:${hex}`, 'a:b'],
  ]
  for (const digest of bad) {
    isError(t, await putManifest(server, base, digest, someImage), 400, 'DIGEST_INVALID')
    isError(t, await server.request('GET', `/v2/${base}/manifests/${digest}`), 400, 'DIGEST_INVALID')
    isError(t, await server.request('GET', `/v2/${base}/blobs/${digest}`), 400, 'DIGEST_INVALID')
    isError(t, await server.request('HEAD', `/v2/${base}/blobs/${digest}`), 400, 'DIGEST_INVALID')
    isError(t, await server.request('DELETE', `/v2/${base}/blobs/${digest}`), 400, 'DIGEST_INVALID')
    isError(t, await server.request('GET', `/v2/${base}/referrers/${digest}`), 400, 'DIGEST_INVALID')
  }
})

t.test('G-06, T-39: path segments are percent-decoded once', async (t) => {
  const encoded = someImage.digest.replace(':', '%3A')
  const lower = someImage.digest.replace(':', '%3a')
  for (const reference of [encoded, lower]) {
    const reply = await server.request('GET', `/v2/${base}/manifests/${reference}`)
    t.equal(reply.status, 200, reference)
    t.equal(reply.header('docker-content-digest'), someImage.digest)
  }
  const layer = someImage.parts[1]?.digest.replace(':', '%3A')
  t.equal((await server.request('GET', `/v2/${base}/blobs/${layer}`)).status, 200)
  t.equal((await server.request('GET', `/v2/${base}/referrers/${encoded}`)).status, 200)
  t.equal((await server.request('GET', `/v2/${base}/manifests/l%61test`)).status, 200, 'a tag')
  const name = base.replace('b', '%62')
  t.equal((await server.request('GET', `/v2/${name}/manifests/latest`)).status, 200, 'a name')
  const twice = someImage.digest.replace(':', '%253A')
  const reply = await server.request('GET', `/v2/${base}/manifests/${twice}`)
  t.equal(reply.status, 400, 'what is encoded twice is not decoded twice')
})

t.test('G-06: %2F, %00, dots, empty segments and broken escapes are refused', async (t) => {
  const flat = base.replace('/', '%2F')
  for (const path of [
    `/v2/${flat}/tags/list`,
    `/v2/${flat.toLowerCase()}/tags/list`,
    `/v2/${base}%00/tags/list`,
    `/v2/${base}/../${base}/tags/list`,
    `/v2/${base}/./tags/list`,
    `/v2/%2e%2e/${base}/tags/list`,
    `/v2//${base}/tags/list`,
    `/v2/${base}//tags/list`,
    `/v2/${base}/%zz/tags/list`,
    `/v2/${base}%/tags/list`,
    `/v2/${base}%c3%28/tags/list`,
  ]) {
    isError(t, await server.request('GET', path), 400, 'NAME_INVALID')
  }
  for (const reference of ['..', '%2e%2e', 'a%2Fb', 'a%00', '%ff', '%', '%c0%ae']) {
    const reply = await server.request('GET', `/v2/${base}/manifests/${reference}`)
    t.equal(reply.status, 400, reference)
  }
})

t.test('G-09: errors are errors[] with code and message, whatever the mistake', async (t) => {
  isError(t, await server.request('GET', `/v2/${base}/manifests/nothing`), 404, 'MANIFEST_UNKNOWN')
  isError(t, await server.request('GET', `/v2/${base}/manifests/${randomDigest()}`), 404, 'MANIFEST_UNKNOWN')
  isError(t, await server.request('GET', '/v2/never/pushed/manifests/latest'), 404, 'NAME_UNKNOWN')
  isError(t, await server.request('GET', '/v2/never/pushed/tags/list'), 404, 'NAME_UNKNOWN')
  isError(t, await server.request('GET', `/v2/${base}/blobs/${randomDigest()}`), 404, 'BLOB_UNKNOWN')
  const unknown = `/v2/${base}/blobs/uploads/01234567-89ab-4cde-8f01-23456789abcd`
  isError(t, await server.request('GET', unknown), 404, 'BLOB_UPLOAD_UNKNOWN')
  const broken = await server.request('PUT', `/v2/${base}/manifests/x`, {
    headers: { 'Content-Type': OCI_MANIFEST },
    body: '{"schemaVersion":',
  })
  isError(t, broken, 400, 'MANIFEST_INVALID')
})

t.test('G-10: HEAD of something missing has the headers of GET and no body', async (t) => {
  for (const path of [
    `/v2/${base}/manifests/nothing`,
    `/v2/${base}/blobs/${randomDigest()}`,
    '/v2/never/pushed/manifests/latest',
    `/v2/${base}/manifests/sha256:bad`,
  ]) {
    const get = await server.request('GET', path)
    const head = await server.request('HEAD', path)
    t.equal(head.status, get.status, path)
    t.equal(head.header('content-type'), get.header('content-type'), path)
    t.equal(head.header('content-length'), get.header('content-length'), path)
    t.equal(head.body.length, 0, path)
  }
})

t.test('G-10, G-11: HEAD has the same headers as GET, Content-Length among them', async (t) => {
  const layer = someImage.parts[1]?.digest
  for (const path of [
    '/v2/',
    `/v2/${base}/manifests/latest`,
    `/v2/${base}/manifests/${someImage.digest}`,
    `/v2/${base}/blobs/${layer}`,
  ]) {
    const get = await server.request('GET', path)
    const head = await server.request('HEAD', path)
    const comparable = ({ date, ...rest }: Record<string, unknown>) => rest
    t.same(comparable(head.headers), comparable(get.headers), path)
    t.equal(head.header('content-length'), String(get.body.length), path)
    t.equal(head.body.length, 0, path)
  }
})

t.test('G-12: nothing is compressed, even when the client would take it', async (t) => {
  const layer = someImage.parts[1]
  for (const accept of ['gzip', 'gzip, deflate, br', 'zstd;q=1.0, gzip;q=0.8, deflate;q=0.5', '*']) {
    const headers = { 'Accept-Encoding': accept }
    const manifest = await server.request('GET', `/v2/${base}/manifests/latest`, { headers })
    t.ok(manifest.body.equals(someImage.bytes), accept)
    const read = await server.request('GET', `/v2/${base}/blobs/${layer?.digest}`, { headers })
    t.ok(layer && read.body.equals(layer.bytes), accept)
    t.notOk(manifest.headers['content-encoding'] ?? read.headers['content-encoding'])
  }
})

t.test('G-13: content is never served as a page', async (t) => {
  const page = blob('<html><script>alert(1)</script></html>', 'text/html')
  const repository = newRepository('html')
  const posted = await server.request('POST', `/v2/${repository}/blobs/uploads/`, {
    headers: { 'Content-Type': 'text/html' },
    body: '',
  })
  await finishUpload(server, posted.header('location'), page.digest, page.bytes)
  const reply = await server.request('GET', `/v2/${repository}/blobs/${page.digest}`, {
    headers: { Accept: 'text/html' },
  })
  t.equal(reply.header('content-type'), 'application/octet-stream')
  t.equal(reply.header('x-content-type-options'), 'nosniff')
  t.notOk(reply.headers['content-disposition'])
  const wrong = await server.request('GET', '/v2/%3Cscript%3E/tags/list', {
    headers: { Accept: 'text/html' },
  })
  t.match(wrong.header('content-type'), /^application\/json/)
})

t.test('G-14, T-02: Location is a path, whatever host and scheme the client or a proxy name', async (t) => {
  const headers = {
    Host: 'localhost:444',
    'X-Forwarded-Proto': 'https',
    'X-Forwarded-Host': 'evil.example',
    'X-Forwarded-Prefix': '/x',
    Forwarded: 'host=evil.example;proto=https',
  }
  const opened = await server.request('POST', `/v2/${base}/blobs/uploads/`, { headers })
  t.match(opened.header('location'), new RegExp(`^/v2/${base}/blobs/uploads/${UUID.source}(\\?.*)?$`))
  const manifest = await server.request('PUT', `/v2/${base}/manifests/again`, {
    headers: { ...headers, 'Content-Type': OCI_MANIFEST },
    body: someImage.bytes,
  })
  t.equal(manifest.header('location'), `/v2/${base}/manifests/${someImage.digest}`)
})

t.test('G-15: clients may add parameters to a Location and sort them', async (t) => {
  const content = randomBlob(100)
  let location = await openUpload(server, base)
  const rebuilt = (extra: Record<string, string>) => {
    const url = new URL(location, 'http://x')
    const all = new URLSearchParams([...url.searchParams, ...Object.entries(extra)])
    all.sort()
    return `${url.pathname}?${all}`
  }
  const patched = await server.request('PATCH', rebuilt({ aa: '1', ns: 'docker.io', zz: 'ä b' }), {
    body: content.bytes,
  })
  t.equal(patched.status, 202)
  location = patched.header('location')
  const put = await server.request('PUT', rebuilt({ digest: content.digest, account: 'me', zz: '/' }), {
    body: '',
  })
  t.equal(put.status, 201)
})

t.test('G-16: blobs are streamed by the server itself, without redirect', async (t) => {
  const reply = await server.request('GET', `/v2/${base}/blobs/${someImage.parts[0]?.digest}`)
  t.equal(reply.status, 200)
  t.notOk(reply.headers.location)
})

t.test('G-17: a burst of pipelined requests is answered in order on one connection', async (t) => {
  const connection = await RawConnection.open(server)
  const paths = someImage.parts.map((part) => `/v2/${base}/blobs/${part.digest}`)
  const burst = Array.from({ length: 30 }, (_, n) => paths[n % paths.length] ?? '')
  await connection.send(burst.map((path) => `HEAD ${path} HTTP/1.1\r\nHost: x\r\n\r\n`).join(''))
  const replies = await connection.waitForReplies(burst.length, { bodiless: true })
  t.same(
    replies.map((reply) => reply.headers['docker-content-digest']),
    burst.map((path) => path.split('/').at(-1)),
  )
  t.notOk(connection.isClosed, 'and the connection stays')
  await connection.close()
})

t.test('G-18: a method that a path does not have gives 405, UNSUPPORTED and Allow', async (t) => {
  const digest = someImage.parts[1]?.digest ?? ''
  const upload = await openUpload(server, base)
  const table: [path: string, allowed: string[]][] = [
    ['/v2/', ['GET', 'HEAD']],
    ['/v2/_catalog', ['GET']],
    [`/v2/${base}/tags/list`, ['GET']],
    [`/v2/${base}/manifests/latest`, ['GET', 'HEAD', 'PUT', 'DELETE']],
    [`/v2/${base}/manifests/${someImage.digest}`, ['GET', 'HEAD', 'PUT', 'DELETE']],
    [`/v2/${base}/blobs/${digest}`, ['GET', 'HEAD', 'DELETE']],
    [`/v2/${base}/blobs/uploads/`, ['POST']],
    [upload, ['GET', 'HEAD', 'PATCH', 'PUT', 'DELETE']],
    [`/v2/${base}/referrers/${someImage.digest}`, ['GET']],
  ]
  for (const [path, allowed] of table) {
    for (const method of ['GET', 'PUT', 'POST', 'PATCH', 'DELETE', 'TRACE', 'PROPFIND', 'MKCOL']) {
      if (allowed.includes(method)) continue
      const reply = await server.request(method, path)
      isError(t, reply, 405, 'UNSUPPORTED')
      const named = reply.header('allow').split(/,\s*/)
      for (const name of allowed) t.ok(named.includes(name), `${method} ${path}: Allow names ${name}`)
      t.notOk(named.includes(method), `${method} ${path}: Allow does not name ${method}`)
    }
  }
  t.equal((await server.request('GET', upload)).status, 204, 'the upload is untouched')
})

t.test('G-18, S60: the body of a refused request is not taken for a request', async (t) => {
  const connection = await RawConnection.open(server)
  const hidden = 'GET /v2/_catalog HTTP/1.1\r\nHost: x\r\n\r\n'
  await connection.request(`POST /v2/${base}/tags/list`, [`Content-Length: ${hidden.length}`], hidden)
  await connection.request('GET /v2/')
  await connection.closed
  t.same(
    connection.replies().map((reply) => [reply.status, reply.headers.connection]),
    [[405, 'close']],
    'the connection ends behind the refusal',
  )
})

t.test('G-18: unknown paths below /v2/ give 404 with errors[], with every method', async (t) => {
  const paths = ['/v2/x', '/v2/a/b/c', '/v2/a/tags', '/v2/a/tags/lists', '/v2/a/manifests', '/v2/a/blobs']
  for (const path of [
    ...paths,
    '/v2/_oci/ext/discover',
    '/v2/a/_oci/ext/discover',
    '/v2/a/referrers',
    '/v2/_x',
  ]) {
    for (const method of ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE'])
      isError(t, await server.request(method, path), 404, 'NOT_FOUND')
  }
})

t.test('G-06, G-18: a path without its name or its reference is refused with 400', async (t) => {
  for (const method of ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE']) {
    for (const path of ['/v2/tags/list', '/v2/manifests/x', '/v2/blobs/x', '/v2/blobs/uploads/'])
      isError(t, await server.request(method, path), 400, 'NAME_INVALID')
  }
  isError(t, await server.request('GET', '/v2/a/manifests/'), 400, 'TAG_INVALID')
  isError(t, await server.request('GET', '/v2/a/blobs/'), 400, 'DIGEST_INVALID')
  isError(t, await server.request('GET', '/v2/a/referrers/'), 400, 'DIGEST_INVALID')
})

t.test('G-18: unknown paths outside /v2/ give 404', async (t) => {
  for (const path of ['/', '/v3/', '/v20', '/favicon.ico', '/V2/', '/v2x/', '/api', '/v1/images/x/json']) {
    const reply = await server.request('GET', path)
    t.equal(reply.status, 404, path)
    t.notMatch(reply.header('content-type'), /html/)
  }
})

t.test('G-19, T-38: unknown query parameters change nothing', async (t) => {
  const query = '?ns=docker.io&account=me&origin=x&future=%20&__proto__=1&constructor=2&=&&x'
  const layer = someImage.parts[1]?.digest
  for (const path of [
    '/v2/',
    `/v2/${base}/manifests/latest`,
    `/v2/${base}/blobs/${layer}`,
    `/v2/${base}/tags/list`,
    `/v2/${base}/referrers/${someImage.digest}`,
    '/v2/_catalog',
  ]) {
    t.equal((await server.request('GET', path + query)).status, 200, path)
  }
  const opened = await server.request('POST', `/v2/${base}/blobs/uploads/${query}`)
  t.equal(opened.status, 202)
})

t.test('G-21: OPTIONS is answered with 405 and Allow, without a login', async (t) => {
  for (const path of ['/v2/', `/v2/${base}/manifests/latest`, '/v2/_catalog', `/v2/${base}/blobs/uploads/`]) {
    const reply = await server.request('OPTIONS', path, {
      headers: { Origin: 'https://ui.example', 'Access-Control-Request-Method': 'GET' },
    })
    isError(t, reply, 405, 'UNSUPPORTED')
    t.match(reply.header('allow'), /GET|POST/, path)
    t.notOk(reply.headers['www-authenticate'])
  }
})

t.test('MF-42, G-12: a query or a fragment of a path never reaches a file', async (t) => {
  const reply = await server.request('GET', `/v2/${base}/manifests/latest?digest=../../../etc/passwd`)
  t.equal(reply.header('docker-content-digest'), someImage.digest)
})

t.test('T-44, G-17: connections are kept for longer than Go keeps them idle', async (t) => {
  const reply = await send(server.url, 'GET', '/v2/', { headers: { Connection: 'keep-alive' } })
  t.equal(reply.header('connection'), 'keep-alive')
  const seconds = Number(/timeout=(\d+)/.exec(reply.header('keep-alive'))?.[1])
  t.ok(seconds >= 120, `Keep-Alive: ${reply.header('keep-alive')}`)
})

t.test('T-44: the connection serves on after an error', async (t) => {
  const connection = await RawConnection.open(server)
  await connection.request('GET /v2/never/pushed/manifests/x')
  t.equal((await connection.reply()).status, 404)
  await connection.request('GET /v2/Bad/tags/list')
  t.equal((await connection.reply(1)).status, 400)
  await connection.request('GET /v2/')
  t.equal((await connection.reply(2)).status, 200)
  await connection.close()
})

t.test('T-10, MF-44: several Accept lines or one list, the same answer', async (t) => {
  const lines = [DOCKER_MANIFEST, OCI_MANIFEST, OCI_INDEX]
  for (const accept of [lines, lines.join(', '), '*/*']) {
    const reply = await server.request('GET', `/v2/${base}/manifests/latest`, { headers: { Accept: accept } })
    t.equal(reply.header('content-type'), OCI_MANIFEST, String(accept))
  }
})

t.test('T-58: bytes of a TLS hello get a 400, not a hang', async (t) => {
  const connection = await RawConnection.open(server)
  await connection.send(Buffer.from('16030100c8010000c40303', 'hex'))
  await connection.closed
  t.match(connection.text, /^HTTP\/1\.1 400 /)
})

t.test('UP-01, G-14: the Location of an upload keeps its shape through a session', async (t) => {
  const shape = new RegExp(`^/v2/${base}/blobs/uploads/${UUID.source}(\\?.*)?$`)
  const opened = await openUpload(server, base)
  const patched = await server.request('PATCH', opened, { body: 'abc' })
  const status = await server.request('GET', patched.header('location'))
  for (const location of [opened, patched.header('location'), status.header('location')])
    t.match(location, shape)
  await server.request('DELETE', withQuery(opened, 'x=1'))
})

everyReplyKeptTheRules(t)
