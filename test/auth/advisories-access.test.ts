import { createHash } from 'node:crypto'
import t from 'tap'
import { createAccessToken } from '../../src/auth/access-tokens.js'
import {
  descriptor,
  eventually,
  everyReplyKeptTheRules,
  finishUpload,
  image,
  index,
  isError,
  manifestOf,
  openUpload,
  pause,
  push,
  pushBlobs,
  putManifest,
  type Reply,
  randomBlob,
  randomDigest,
  type Server,
  withQuery,
} from '../harness.js'
import {
  accessOf,
  as,
  askToken,
  basic,
  bearer,
  challengeOf,
  claimsOf,
  getToken,
  inShort,
  password,
  pool,
  postForm,
  startTwins,
} from './fixture.js'

/*
 * What went wrong with authorization in other registries (reliability, S20 to S31), row by row.
 */
const { registry, server, access, app, layer, ann, ben, root } = await startTwins(t)
const good = await getToken(server, basic('ann'), ['repository:a/app:pull,push,delete', 'registry:catalog:*'])
/** A reply without what two requests for different digests differ in. */
function shapeOf(reply: Reply, digest: string): string {
  const headers = reply.rawHeaders.filter((_, at) => !/^date$/i.test(reply.rawHeaders[at - (at % 2)] ?? ''))
  return JSON.stringify([reply.status, headers, reply.text]).replaceAll(digest, 'DIGEST')
}

t.test('S20: a blob is readable through the repositories that link it, and no others', async (t) => {
  const unknown = randomDigest()
  for (const digest of [app.digest, ...app.parts.map((part) => part.digest)]) {
    for (const [method, path, headers] of [
      ['GET', 'blobs', {}],
      ['HEAD', 'blobs', {}],
      ['GET', 'blobs', { Range: 'bytes=0-0' }],
      ['GET', 'blobs', { 'If-None-Match': `"${digest}"` }],
      ['GET', 'manifests', {}],
      ['HEAD', 'manifests', {}],
      ['GET', 'manifests', { 'If-None-Match': `"${digest}"` }],
      ['DELETE', 'blobs', {}],
      ['DELETE', 'manifests', {}],
      ['GET', 'referrers', {}],
    ] as [string, string, Record<string, string>][]) {
      const foreign = await ben.request(method, `/v2/b/app/${path}/${digest}`, { headers })
      const random = await ben.request(method, `/v2/b/app/${path}/${unknown}`, {
        headers: Object.fromEntries(
          Object.entries(headers).map(([name, value]) => [name, value.replace(digest, unknown)]),
        ),
      })
      t.equal(
        shapeOf(foreign, digest),
        shapeOf(random, unknown),
        `${method} ${path} ${JSON.stringify(headers)}`,
      )
      if (path !== 'referrers') t.equal(foreign.status, 404)
    }
  }
})

t.test('S21: a mount needs the right to pull from the source', async (t) => {
  const secret = randomBlob(600)
  await pushBlobs(ann, 'a/secret', secret)
  const mount = (query: string) =>
    ben.request('POST', `/v2/b/app/blobs/uploads/?mount=${secret.digest}${query}`)
  const unknown = await ben.request('POST', `/v2/b/app/blobs/uploads/?mount=${randomDigest()}&from=a/secret`)
  const shape = (reply: Reply) => [reply.status, Object.keys(reply.headers).sort(), reply.text]
  for (const from of [
    '&from=a/secret',
    '',
    '&from=a/nothing',
    '&from=%00',
    '&from=A/Secret',
    '&from=b/app',
    '&from=a/secret&from=b/app',
    '&from=..%2Fa%2Fsecret',
  ]) {
    t.same(shape(await mount(from)), shape(unknown), from)
  }
  t.equal((await ben.request('HEAD', `/v2/b/app/blobs/${secret.digest}`)).status, 404)
  t.equal(
    (
      await as(server, basic('ray')).request(
        'POST',
        `/v2/a/x/blobs/uploads/?mount=${secret.digest}&from=a/secret`,
      )
    ).status,
    403,
  )
  t.equal(
    (await ann.request('POST', `/v2/a/x/blobs/uploads/?mount=${secret.digest}&from=a/secret`)).status,
    201,
  )

  // A mount is a use of the token at hand: without a source it must be for mounts, as its challenge says.
  const path = `/v2/a/y/blobs/uploads/?mount=${secret.digest}`
  const narrow = as(server, bearer(await getToken(server, basic('ann'), ['repository:a/y:pull,push'])))
  t.equal((await narrow.request('POST', path)).status, 202)
  const { scope = '' } = challengeOf(await server.request('POST', path))
  const asked = as(server, bearer(await getToken(server, basic('ann'), [scope])))
  t.equal((await asked.request('POST', path)).status, 201)
  // And a token that is less than its owner is less here, too.
  const machine = await registry.accessToken('ann', ['a/z:push'])
  const limited = as(server, basic('ann', machine))
  await eventually(
    'the access token is known',
    async () => (await limited.request('GET', '/v2/')).status === 200,
  )
  for (const query of [`mount=${secret.digest}`, `mount=${secret.digest}&from=a/secret`]) {
    t.equal((await limited.request('POST', `/v2/a/z/blobs/uploads/?${query}`)).status, 202, query)
  }
})

t.test('S22: an upload belongs to its repository and to whoever began it', async (t) => {
  await registry.addUser('ann2')
  await registry.grant('user:ann2', 'a/**', 'push')
  const ann2 = as(server, basic('ann2'))
  await eventually(
    'the second owner is known',
    async () => (await ann2.request('GET', '/v2/a/app/tags/list')).status === 200,
  )
  const location = await openUpload(ann, 'a/app')
  await ann.request('PATCH', location, { body: 'begun by ann' })
  const id = location.split('/').at(-1)?.split('?')[0]
  const digest = 'sha256:0000000000000000000000000000000000000000000000000000000000000000'
  const others: [string, Server, string, number][] = [
    ['somebody else with the same rights', ann2, location, 404],
    ['the administrator', root, location, 404],
    ['ann herself in another repository', ann, `/v2/a/other/blobs/uploads/${id}`, 404],
    ['ben in his repository', ben, `/v2/b/app/blobs/uploads/${id}`, 404],
    ['ben', ben, location, 403],
    ['the reader', as(server, basic('ray')), location, 403],
    ['nobody', server, location, 401],
  ]
  for (const [who, me, path, status] of others) {
    for (const [method, query, body] of [
      ['GET', '', undefined],
      ['HEAD', '', undefined],
      ['PATCH', '', 'stolen'],
      ['PUT', `digest=${digest}`, undefined],
      ['PUT', `digest=${digest}`, 'stolen'],
      ['DELETE', '', undefined],
    ] as const) {
      if (me === root && method === 'DELETE') continue // who administers may end any session (S100): below
      const reply = await me.request(
        method,
        query === '' ? path : withQuery(path, query),
        body === undefined ? {} : { body },
      )
      t.equal(reply.status, status, `${who}: ${method}`)
      if (status === 404 && method !== 'HEAD') t.equal(reply.code, 'BLOB_UPLOAD_UNKNOWN', `${who}: ${method}`)
    }
  }
  t.equal((await ann.request('GET', location)).header('range'), '0-11', 'nothing has touched it')
  t.equal((await root.request('DELETE', location)).status, 204, 'the administrator ends it')
  t.equal((await ann.request('GET', location)).status, 404)
})

t.test('S23: an immutable tag is not moved, whoever pushes and however', async (t) => {
  const [first, second] = [image({ layers: [layer] }), image({ layers: [layer] })]
  await push(ann, 'frozen/app', 'v1', first)
  await push(ann, 'frozen/app', 'latest', first)
  await pushBlobs(ann, 'frozen/app', ...second.parts)
  for (const me of [ann, root]) {
    isError(t, await putManifest(me, 'frozen/app', 'v1', second), 403, 'DENIED')
    isError(
      t,
      await putManifest(me, 'frozen/app', `${second.digest}?tag=fresh&tag=v1`, second),
      403,
      'DENIED',
    )
    isError(
      t,
      await putManifest(me, 'frozen/app', `${second.digest}?tag=v1&tag=fresh`, second),
      403,
      'DENIED',
    )
    const condition = { 'Content-Type': second.mediaType, 'If-Match': `"${first.digest}"` }
    isError(t, await putManifest(me, 'frozen/app', 'v1', second, condition), 403, 'DENIED')
  }
  t.equal((await ann.request('HEAD', '/v2/frozen/app/manifests/fresh')).status, 404, 'all or nothing')
  t.equal((await putManifest(ann, 'frozen/app', 'v1', first)).status, 201, 'the same again is no change')
  t.equal((await putManifest(ann, 'frozen/app', `${first.digest}?tag=v1&tag=v2`, first)).status, 201)
  t.equal((await putManifest(ann, 'frozen/app', 'latest', second)).status, 201, 'other tags move')
  t.equal(
    (await ann.request('GET', '/v2/frozen/app/manifests/v1')).header('docker-content-digest'),
    first.digest,
  )
})

t.test('S24: an immutable tag is not deleted, by no road', async (t) => {
  const child = image({ layers: [layer] })
  const list = index([child])
  await push(ann, 'frozen/list', child.digest, child)
  await push(ann, 'frozen/list', 'v1', list)
  for (const me of [ann, root]) {
    isError(t, await me.request('DELETE', '/v2/frozen/list/manifests/v1'), 403, 'DENIED')
    isError(t, await me.request('DELETE', `/v2/frozen/list/manifests/${list.digest}`), 403, 'DENIED')
    isError(t, await me.request('DELETE', `/v2/frozen/list/blobs/${layer.digest}`), 405, 'UNSUPPORTED')
  }
  t.equal((await ann.request('GET', '/v2/frozen/list/manifests/v1')).status, 200)
  // Whoever may push but not delete deletes nothing at all.
  await registry.addUser('writer')
  await registry.grant('user:writer', 'a/**', 'push')
  const writer = as(server, basic('writer'))
  await eventually(
    'the writer is known',
    async () => (await writer.request('GET', '/v2/a/app/tags/list')).status === 200,
  )
  for (const path of ['manifests/1', `manifests/${app.digest}`, `blobs/${layer.digest}`]) {
    isError(t, await writer.request('DELETE', `/v2/a/app/${path}`), 403, 'DENIED')
  }
})

t.test('S24: an image that an immutable tag reaches through an index is not deleted either', async (t) => {
  const child = image({ layers: [layer] })
  await push(ann, 'frozen/parts', child.digest, child)
  await push(ann, 'frozen/parts', 'v1', index([child]))
  isError(t, await ann.request('DELETE', `/v2/frozen/parts/manifests/${child.digest}`), 403, 'DENIED')
  t.equal((await ann.request('GET', `/v2/frozen/parts/manifests/${child.digest}`)).status, 200)
})

t.test('S25: a deleted blob is gone from its repository and stays in the others', async (t) => {
  let seed = 7
  const random = (below: number) => {
    seed = (seed * 1103515245 + 12345) % 2147483648
    return Math.floor((seed / 2147483648) * below)
  }
  const content = randomBlob(100)
  const holders = ['a/one', 'a/two', 'b/three']
  const meIn = (name: string) => (name.startsWith('a/') ? ann : ben)
  const held = new Set<string>()
  const wrong: string[] = []
  for (let round = 0; round < 10_000; round++) {
    const name = holders[random(3)] ?? ''
    switch (random(4)) {
      case 0:
        await pushBlobs(meIn(name), name, content)
        held.add(name)
        break
      case 1: {
        const { status } = await meIn(name).request('DELETE', `/v2/${name}/blobs/${content.digest}`)
        if (status !== (held.delete(name) ? 202 : 404)) wrong.push(`round ${round}: DELETE ${name} ${status}`)
        break
      }
      case 2: {
        const from = holders[random(3)] ?? ''
        const path = `/v2/${name}/blobs/uploads/?mount=${content.digest}&from=${from}`
        const { status, headers } = await meIn(name).request('POST', path)
        if (status === 202) await meIn(name).request('DELETE', String(headers.location))
        const mayPull = from.slice(0, 2) === name.slice(0, 2)
        const isMounted = held.has(name) || (held.has(from) && mayPull)
        if (status !== (isMounted ? 201 : 202))
          wrong.push(`round ${round}: mount ${from} → ${name} ${status}`)
        if (isMounted) held.add(name)
        break
      }
      default:
        for (const holder of holders) {
          const { status } = await meIn(holder).request(
            random(2) === 0 ? 'GET' : 'HEAD',
            `/v2/${holder}/blobs/${content.digest}`,
          )
          if (status !== (held.has(holder) ? 200 : 404)) wrong.push(`round ${round}: GET ${holder} ${status}`)
        }
    }
  }
  t.same(wrong, [])
})

t.test('S26: lists show what may be pulled, and unknown looks like forbidden', async (t) => {
  const names = async (me: Server) => {
    const reply = await me.request('GET', '/v2/_catalog')
    return reply.status === 200 ? reply.json<{ repositories: string[] }>().repositories : inShort(reply)
  }
  t.equal(await names(server), '401 UNAUTHORIZED for registry:catalog:*')
  const seen = await names(ben)
  t.ok(
    Array.isArray(seen) && seen.length > 0 && seen.every((name) => /^(b|reborn)\//.test(name)),
    String(seen),
  )
  const ray = as(server, basic('ray'))
  t.ok(
    String(await names(ray))
      .split(',')
      .every((name) => name.startsWith('a/')),
  )
  for (const method of ['GET', 'HEAD', 'DELETE']) {
    const [forbidden, missing] = await Promise.all(
      ['a/app', 'a/ppp'].map((name) => ben.request(method, `/v2/${name}/manifests/1`)),
    )
    if (forbidden !== undefined && missing !== undefined)
      t.equal(shapeOf(forbidden, 'a/app'), shapeOf(missing, 'a/ppp'), method)
  }
})

t.test('S27: fields that nobody asked for change nothing', async (t) => {
  const extra = {
    admin: 'true',
    is_admin: '1',
    isAdmin: 'true',
    role: 'admin',
    id: '1',
    sub: 'root',
    epoch: '1',
    access: '*',
    groups: 'admin',
    accessToken: 'x',
    '__proto__[isAdmin]': 'true',
    'constructor.prototype.isAdmin': 'true',
    __proto__: 'x',
  }
  const form = await postForm(server, {
    ...extra,
    grant_type: 'password',
    username: 'ray',
    password,
    scope: 'repository:a/app:*',
  })
  const query = await askToken(server, basic('ray'), ['repository:a/app:*'], extra)
  for (const reply of [form, query]) {
    const { token } = reply.json<{ token: string }>()
    t.equal(claimsOf(token).sub, 'ray')
    t.same(accessOf(token), ['a/app:pull'])
  }
  const odd = manifestOf({
    ...(JSON.parse(app.bytes.toString()) as object),
    admin: true,
    owner: 'ray',
    repository: 'b/app',
    tags: ['v9'],
    constructor: { prototype: { isAdmin: true } },
  })
  t.equal((await putManifest(ann, 'a/app', 'odd', odd)).status, 201)
  t.equal((await root.request('GET', '/v2/b/app/manifests/v9')).status, 404)
  t.same(await access.findUser('ray').then((user) => [user?.isAdmin, user?.groups]), [false, []])
  isError(
    t,
    await as(server, basic('ray')).request('PUT', '/v2/a/app/manifests/1', { body: app.bytes }),
    403,
    'DENIED',
  )
})

t.test('S28: ids of one tenant are worth nothing under the path of another', async (t) => {
  const session = (await openUpload(ann, 'a/app')).split('/').at(-1)
  const referrer = image({ layers: [layer], extra: { subject: descriptor(app) } })
  await push(ann, 'a/app', 'about', referrer)
  for (const path of [
    `blobs/uploads/${session}`,
    `manifests/${app.digest}`,
    `manifests/${referrer.digest}`,
    `blobs/${layer.digest}`,
  ]) {
    t.equal((await ben.request('GET', `/v2/b/app/${path}`)).status, 404, path)
  }
  for (const last of ['', '&last=0', '&last=-1', '&last=1', '&last=999999']) {
    const reply = await ben.request('GET', `/v2/b/app/referrers/${app.digest}?x=1${last}`)
    t.same(reply.json<{ manifests: unknown[] }>().manifests, [], `referrers${last}`)
  }
  const machine = await registry.accessToken('ann', ['a/**:pull'], { name: 'of ann' })
  await pause(300) // until the server knows of it
  for (const name of ['ben', 'root', '']) {
    t.equal(
      (await as(server, basic(name, machine)).request('GET', '/v2/')).status,
      401,
      `ann's access token as ${name}`,
    )
  }
  t.equal((await as(server, basic('ann', machine)).request('GET', '/v2/')).status, 200)
})

t.test('S29: 2,000 texts that other servers took for code, in every place', async (t) => {
  const seeds = [
    "'",
    '"',
    "' OR '1'='1",
    "'; DROP TABLE user;--",
    "1' UNION SELECT password_hash FROM user--",
    '%27%20OR%201=1',
    "') OR ('a'='a",
    '\\',
    '`',
    ';',
    '--',
    '/*',
    '*/',
    '0x27',
    "admin'--",
    '#{7*7}',
    '{{7*7}}',
    '$where',
    '[$ne]=1',
    '%00',
    '..%2f',
    'a%0d%0aX: y',
    '%',
    '_',
    '*',
    "\\' OR 1=1#",
    "' AND SLEEP(5)--",
    "' || (SELECT name FROM user LIMIT 1) || '",
    '1;ATTACH DATABASE',
    "' GLOB '*",
  ]
  const users = await access.listUsers()
  const faults: string[] = []
  let count = 0
  const texts = Array.from({ length: 70 }, (_, n) =>
    seeds.map((seed) => `${seed}${n % 7 === 0 ? seed : ''}${n}`),
  )
    .flat()
    .slice(0, 2000)
  await pool(8, texts, async (text, n) => {
    const coded = encodeURIComponent(text)
    const places: [string, string, Record<string, string>][] = [
      ['GET', `/v2/_catalog?last=${coded}&n=${coded}`, {}],
      ['GET', `/v2/a/app/tags/list?last=${coded}`, {}],
      ['GET', `/v2/a/app/manifests/${coded}`, {}],
      ['GET', `/v2/a/app/referrers/${app.digest}?artifactType=${coded}&last=${coded}`, {}],
      ['GET', `/v2/${coded}/tags/list`, {}],
      ['GET', `/v1/search?q=${coded}&n=${coded}`, {}],
      ['GET', `/auth/token?scope=repository:${coded}:pull&account=${coded}&client_id=${coded}`, {}],
      ['POST', `/v2/a/app/blobs/uploads/?mount=${coded}&from=${coded}&digest-algorithm=${coded}`, {}],
      ['GET', `/v2/a/app/blobs/uploads/${coded}`, {}],
      ['DELETE', `/v2/a/app/manifests/${coded}`, {}],
      ['GET', '/v2/a/app/manifests/1', { 'If-None-Match': text.replace(/[^ -~]/g, '') }],
      // A wrong login costs a hash: an access token in the password's place does not.
      [
        'GET',
        '/v2/',
        {
          Authorization: basic(text, createAccessToken().text),
          'X-Forwarded-For': `203.0.${n % 250}.${n >> 8}`,
        },
      ],
    ]
    const [method, path, headers] = places[n % places.length] ?? ['GET', '/v2/', {}]
    const reply = await ann.request(method, path, { headers: { ...headers } })
    count++
    if (reply.status >= 500) faults.push(`${method} ${path}: ${reply.status}`)
    if (/scrypt|password_hash|SQLITE|syntax error/i.test(reply.text))
      faults.push(`${method} ${path}: ${reply.text}`)
  })
  t.same(faults, [])
  t.equal(count, 2000)
  t.same(await access.listUsers(), users, 'the users are who they were')
})

t.test('S30: no rule hangs on what somebody chose to be called', async (t) => {
  const odd = [
    'anonymous',
    'authenticated',
    'scanner-1',
    'admin',
    'system',
    'group-devs',
    '**',
    'a',
    'robot$a',
  ]
  for (const name of odd) {
    await registry.addUser(name, { groups: ['anonymous', 'authenticated', 'admin', 'root', 'ann', '**'] })
  }
  await pause(300) // until the server knows of them
  await pool(2, odd, async (name) => {
    const token = await getToken(server, basic(name), [
      'repository:a/app:*',
      'registry:catalog:*',
      'repository:b/app:*',
      'repository:anonymous/x:*',
    ])
    t.same(accessOf(token), ['catalog:*'], name)
    t.equal((await as(server, basic(name)).request('GET', '/v2/a/app/tags/list')).status, 403, name)
  })
})

t.test('S31: answers are data, never a page, and nothing crosses origins', async (t) => {
  const markup = '<script>alert(1)</script>'
  const blob = randomBlob(10)
  await pushBlobs(ann, 'a/app', { ...blob, bytes: blob.bytes })
  const page = Buffer.from(`<html>${markup}</html>`)
  const location = await openUpload(ann, 'a/app')
  const digest = `sha256:${createHash('sha256').update(page).digest('hex')}`
  await finishUpload(ann, location, digest, page)
  const odd = image({
    layers: [layer],
    extra: { annotations: { [markup]: markup }, artifactType: 'application/vnd.x' },
  })
  await push(ann, 'a/app', 'html', odd)
  const replies = [
    await ann.request('GET', `/v2/a/app/blobs/${digest}`, { headers: { Accept: 'text/html' } }),
    await ann.request('GET', '/v2/a/app/manifests/html', { headers: { Accept: 'text/html' } }),
    await ann.request('GET', `/v2/a/app/manifests/${encodeURIComponent(markup)}`),
    await ann.request('GET', `/v2/a/app/tags/list?last=${encodeURIComponent(markup)}`),
    await ann.request('GET', `/v1/search?q=${encodeURIComponent(markup)}`),
    await server.request('GET', `/auth/token?service=${encodeURIComponent(markup)}`),
    await server.request('GET', `/${encodeURIComponent(markup)}`),
    await server.request('GET', '/v2/', { headers: { Accept: 'text/html', Origin: 'https://evil.test' } }),
    await as(server, basic(markup, markup)).request('GET', '/v2/'),
  ]
  for (const reply of replies) {
    t.equal(reply.header('x-content-type-options'), 'nosniff', `${reply.method} ${reply.path}`)
    t.notMatch(reply.header('content-type'), /html|svg|xml|javascript/, `${reply.method} ${reply.path}`)
    t.notOk(
      Object.keys(reply.headers).some((name) => name.startsWith('access-control-')),
      'no CORS',
    )
    t.notOk(reply.headers['set-cookie'], 'no cookie: nothing that a browser would send along')
    t.notOk(reply.status >= 300 && reply.status < 400, 'no redirect')
  }
  for (const [name, value] of [
    ['Cookie', `token=${good}`],
    ['X-Forwarded-User', 'root'],
    ['X-Remote-User', 'root'],
    ['Proxy-Authorization', basic('root')],
    ['X-Auth-Token', good],
    ['X-Registry-Auth', basic('root')],
  ] as const) {
    t.equal(
      (await server.request('GET', '/v2/', { headers: { [name]: value } })).status,
      401,
      `${name} is no login`,
    )
  }
  for (const query of [`access_token=${good}`, `_token=${good}`, `token=${good}`]) {
    t.equal((await server.request('GET', `/v2/?${query}`)).status, 401, 'neither is a parameter')
  }
  const preflight = await server.request('OPTIONS', '/v2/a/app/manifests/1', {
    headers: { Origin: 'https://evil.test', 'Access-Control-Request-Method': 'DELETE' },
  })
  t.equal(preflight.status, 405)
})

everyReplyKeptTheRules(t)
