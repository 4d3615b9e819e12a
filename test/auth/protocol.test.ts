import { createHash, createPublicKey, generateKeyPairSync, type KeyObject } from 'node:crypto'
import { readdirSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { dataPaths } from '../../storage/data-folder.js'
import {
  eventually,
  everyReplyKeptTheRules,
  image,
  isError,
  openUpload,
  pause,
  push,
  pushBlobs,
  putManifest,
  RawConnection,
  randomBlob,
  randomDigest,
  runServerCommand,
  type Server,
  scratchDir,
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
  encode,
  getToken,
  hashOf,
  headerOf,
  inShort,
  password,
  postForm,
  signingKeyOf,
  signToken,
  startRegistry,
  tokenPath,
} from './fixture.js'

const registry = await startRegistry(t)
const { server } = registry
await registry.addUser('root', { admin: true })
for (const name of ['reader', 'pusher', 'nobody']) await registry.addUser(name)
await registry.grant('user:reader', 'team/**', 'pull')
await registry.grant('user:pusher', 'team/**', 'push')
await registry.grant('user:pusher', 'mine/**', 'admin')
await registry.grant('anonymous', 'public/**', 'pull')

const root = as(server, basic('root'))
const layer = randomBlob(2000)
await push(root, 'public/app', '1', image({ layers: [layer] }))
await push(root, 'team/app', '1', image({ layers: [layer] }))

/** The body of a token endpoint's answer. */
interface Answer {
  token: string
  access_token: string
  expires_in: number
  scope?: string
  refresh_token?: string
}

// ---------------------------------------------------------------------------------------------
// The challenge
// ---------------------------------------------------------------------------------------------

const digest = randomDigest()
const uploadPath = (repository: string) =>
  `/v2/${repository}/blobs/uploads/01234567-89ab-4cde-8f01-23456789abcd`
const urls: [string, string, string | undefined][] = [
  ['GET', '/v2/', undefined],
  ['HEAD', '/v2/', undefined],
  ['GET', '/v2', undefined],
  ['GET', '/v2/_catalog', 'registry:catalog:*'],
  ['GET', '/v2/a/b/manifests/1', 'repository:a/b:pull'],
  ['HEAD', '/v2/a/b/manifests/1', 'repository:a/b:pull'],
  ['GET', `/v2/a/b/manifests/${digest}`, 'repository:a/b:pull'],
  ['GET', `/v2/a/b/blobs/${digest}`, 'repository:a/b:pull'],
  ['HEAD', `/v2/a/b/blobs/${digest}`, 'repository:a/b:pull'],
  ['GET', '/v2/a/b/tags/list', 'repository:a/b:pull'],
  ['GET', `/v2/a/b/referrers/${digest}`, 'repository:a/b:pull'],
  ['POST', '/v2/a/b/blobs/uploads/', 'repository:a/b:pull,push'],
  ['POST', '/v2/a/b/blobs/uploads', 'repository:a/b:pull,push'],
  ['POST', `/v2/a/b/blobs/uploads/?digest=${digest}`, 'repository:a/b:pull,push'],
  ['GET', uploadPath('a/b'), 'repository:a/b:pull,push'],
  ['PATCH', uploadPath('a/b'), 'repository:a/b:pull,push'],
  ['PUT', `${uploadPath('a/b')}?digest=${digest}`, 'repository:a/b:pull,push'],
  ['DELETE', uploadPath('a/b'), 'repository:a/b:pull,push'],
  ['PUT', '/v2/a/b/manifests/1', 'repository:a/b:pull,push'],
  ['DELETE', '/v2/a/b/manifests/1', 'repository:a/b:pull,delete'],
  ['DELETE', `/v2/a/b/blobs/${digest}`, 'repository:a/b:pull,delete'],
]

t.test(
  'AU-01, AU-05, AU-08b, AU-12: every URL that refuses says what it takes, in the same words',
  async (t) => {
    for (const [method, path, scope] of urls) {
      const reply = await server.request(method, path)
      isError(t, reply, 401, 'UNAUTHORIZED')
      const expected = { realm: `${server.url}${tokenPath}`, service: 'boathouse' }
      t.same(challengeOf(reply), scope === undefined ? expected : { ...expected, scope }, `${method} ${path}`)
    }
  },
)

t.test('AU-02, UP-92: a mount is challenged for both repositories, in one scope value', async (t) => {
  const both = 'repository:a/b:pull,push repository:c/d:pull'
  for (const query of [`mount=${digest}&from=c/d`, `from=c%2Fd&mount=${encodeURIComponent(digest)}`]) {
    const reply = await server.request('POST', `/v2/a/b/blobs/uploads/?${query}`)
    t.equal(challengeOf(reply).scope, both, query)
  }
  const odd = await server.request(
    'POST',
    `/v2/a/b/blobs/uploads/?mount=${digest}&from=%22,Basic%20realm=%22`,
  )
  t.equal(
    challengeOf(odd).scope,
    'repository:a/b:pull,push',
    'a name that is none does not get into the header',
  )
})

t.test('AU-03: one scheme in one header line, whatever was sent', async (t) => {
  const sent = [
    undefined,
    'Basic Og==',
    basic('root', 'wrong'),
    'Bearer x',
    'Digest x',
    'Basic',
    'Negotiate abc',
    '',
  ]
  for (const authorization of sent) {
    const reply = await as(server, authorization).request('GET', '/v2/')
    t.equal(reply.status, 401, String(authorization))
    t.equal(challengeOf(reply).service, 'boathouse', String(authorization))
  }
})

t.test('AU-04: Basic does on every endpoint what a token does', async (t) => {
  const me = as(server, basic('pusher'))
  const manifest = image({ layers: [layer] })
  await push(me, 'mine/app', '1', manifest)
  const location = await openUpload(me, 'mine/app')
  t.equal((await me.request('PATCH', location, { body: 'abc' })).status, 202)
  t.equal((await me.request('GET', location)).status, 204)
  t.equal((await me.request('DELETE', location)).status, 204)
  for (const [method, path, status] of [
    ['GET', '/v2/', 200],
    ['GET', '/v2/_catalog', 200],
    ['GET', '/v2/mine/app/manifests/1', 200],
    ['HEAD', `/v2/mine/app/blobs/${layer.digest}`, 200],
    ['GET', '/v2/mine/app/tags/list', 200],
    ['GET', `/v2/mine/app/referrers/${manifest.digest}`, 200],
    ['GET', '/v1/search?q=mine', 200],
    ['DELETE', `/v2/mine/app/manifests/${manifest.digest}`, 202],
    ['DELETE', `/v2/mine/app/blobs/${layer.digest}`, 202],
  ] as const) {
    t.equal((await me.request(method, path)).status, status, `${method} ${path}`)
  }
})

t.test('AU-04: scheme names are read in any case, and odd values are wrong passwords', async (t) => {
  const value = basic('reader').slice('Basic '.length)
  for (const good of [`basic ${value}`, `BASIC ${value}`, `Basic  ${value} `]) {
    t.equal((await as(server, good).request('GET', '/v2/')).status, 200, good)
  }
  const token = await getToken(server, basic('reader'))
  t.equal((await as(server, `bearer ${token}`).request('GET', '/v2/')).status, 200, 'bearer in lower case')
  const bad = ['Basic', 'Basic ', 'Basic !!!!', `Basic ${encode('nocolon')}`, `Basic${value}`]
  for (const wrong of bad)
    isError(t, await as(server, wrong).request('GET', '/v2/'), 401, 'UNAUTHORIZED', wrong)
})

t.test('AU-06, BASE-06: a bad token and a poor token are both 401, with their names', async (t) => {
  for (const token of [
    'x',
    'a.b.c',
    encode('{}'),
    `${encode('{}')}.${encode('{}')}.`,
    'null',
    '0'.repeat(9000),
  ]) {
    const reply = await as(server, bearer(token)).request('GET', '/v2/')
    isError(t, reply, 401, 'UNAUTHORIZED', token.slice(0, 20))
    t.equal(challengeOf(reply).error, 'invalid_token', token.slice(0, 20))
  }
  const poor = await getToken(server, basic('reader'), ['repository:team/app:pull'])
  const reply = await as(server, bearer(poor)).request('POST', '/v2/team/app/blobs/uploads/')
  t.equal(inShort(reply), '401 UNAUTHORIZED insufficient_scope for repository:team/app:pull,push')
})

t.test('AU-07: a token that lacks the right is asked for a better one, a password is told no', async (t) => {
  for (const path of [
    '/v2/team/app/blobs/uploads/',
    '/v2/team/none/blobs/uploads/',
    '/v2/else/where/blobs/uploads/',
  ]) {
    const name = path.slice(4, -'/blobs/uploads/'.length)
    for (const asked of [[], [`repository:${name}:pull,push`]]) {
      const token = await getToken(server, basic('reader'), asked)
      const reply = await as(server, bearer(token)).request('POST', path)
      t.equal(inShort(reply), `401 UNAUTHORIZED insufficient_scope for repository:${name}:pull,push`)
    }
    isError(t, await as(server, basic('reader')).request('POST', path), 403, 'DENIED')
  }
})

t.test('AU-08: error= is there when a token was sent, and never otherwise', async (t) => {
  for (const authorization of [undefined, 'Basic Og==', basic('root', 'wrong'), basic('no one')]) {
    const reply = await as(server, authorization).request('GET', '/v2/team/app/manifests/1')
    t.equal(challengeOf(reply).error, undefined, String(authorization))
  }
  const anonymous = await getToken(server, undefined, ['repository:team/app:pull'])
  for (const authorization of [bearer('gone'), bearer(anonymous)]) {
    const reply = await as(server, authorization).request('GET', '/v2/team/app/manifests/1')
    t.match(challengeOf(reply).error, /^(invalid_token|insufficient_scope)$/)
  }
})

t.test('AU-09: the realm is the address that the client used, with its port', async (t) => {
  const realmFor = async (on: Server, headers: Record<string, string>) =>
    challengeOf(await on.request('GET', '/v2/', { headers })).realm
  for (const host of ['registry.test', 'registry.test:8443', '[::1]:5000', '192.0.2.7', 'localhost:1']) {
    t.equal(await realmFor(server, { Host: host }), `http://${host}${tokenPath}`)
  }
  const spoofed = {
    Host: 'a.test',
    'X-Forwarded-Host': 'evil.test',
    'X-Forwarded-Proto': 'https',
    Forwarded: 'host=e',
  }
  t.equal(
    await realmFor(server, spoofed),
    `http://a.test${tokenPath}`,
    'X-Forwarded-* from anybody counts nothing',
  )
})

t.test('AU-09: no Host can break out of the realm', async (t) => {
  for (const host of [
    'a",error="x',
    'a b',
    'user@evil.test',
    'evil.test/path?',
    "a'b",
    '%22',
    '"',
    'a\\"b',
  ]) {
    const connection = await RawConnection.open(server)
    await connection.request('GET /v2/', [`Host: ${host}`])
    const reply = await connection.reply()
    t.match(
      reply.headers['www-authenticate'] ?? 'none',
      /^(none|Bearer realm="http:\/\/[\w.:[\]-]+\/auth\/token",service="boathouse")$/,
      host,
    )
    await connection.close()
  }
  const old = await RawConnection.open(server)
  await old.send('GET /v2/ HTTP/1.0\r\n\r\n')
  t.match(
    (await old.reply()).headers['www-authenticate'],
    /realm="http:\/\/(localhost|127\.0\.0\.1)[:/]/,
    'without a Host',
  )
  await old.close()
})

t.test('AU-09, S57: X-Forwarded-* counts from trusted proxies alone', async (t) => {
  const behind = await startRegistry(t, { config: { trustedProxies: ['127.0.0.0/8'] } })
  const realmFor = async (headers: Record<string, string>) =>
    challengeOf(await behind.server.request('GET', '/v2/', { headers: { Host: 'inner:5000', ...headers } }))
      .realm
  t.equal(await realmFor({}), `http://inner:5000${tokenPath}`)
  const told = { 'X-Forwarded-Host': 'registry.test:8443', 'X-Forwarded-Proto': 'https' }
  t.equal(await realmFor(told), `https://registry.test:8443${tokenPath}`)
  t.equal(await realmFor({ ...told, 'X-Forwarded-Host': 'a"b' }), `https://localhost${tokenPath}`)
  for (const proto of ['https://evil.test/?', 'javascript', 'a"b', 'HTTPS ,http']) {
    t.match(
      await realmFor({ ...told, 'X-Forwarded-Proto': proto }),
      /^https?:\/\/registry\.test:8443\/auth\/token$/,
      proto,
    )
  }
  let marks = 0
  const lines = async (forwarded: string) => {
    const path = `/v2/mark/${++marks}/tags/list`
    await behind.server.request('GET', path, { headers: { 'X-Forwarded-For': forwarded } })
    const line = await eventually('the request is in the log', () =>
      behind.server.logs().find((entry) => entry.path === path),
    )
    return line.remote
  }
  t.equal(await lines('203.0.113.9'), '203.0.113.9', 'the log has the address of the client')
  t.equal(
    await lines('198.51.100.1, 203.0.113.9'),
    '203.0.113.9',
    'what the client itself says does not count',
  )
  t.equal(await lines('203.0.113.9, 127.0.0.3'), '203.0.113.9', 'a row of trusted proxies')
})

t.test('AU-09, AU-10, TK-08, TK-35: publicUrl and refresh tokens', async (t) => {
  const config = { publicUrl: 'https://registry.example.com:8443/', tokens: { refresh: true } }
  const other = await startRegistry(t, { config })
  const on = other.server
  await other.addUser('alice', { password: 'first password' })
  await other.addUser('bob')
  await other.grant('authenticated', 'team/**', 'push')
  const service = 'registry.example.com:8443'

  const challenge = challengeOf(
    await on.request('GET', '/v2/', { headers: { Host: 'elsewhere', 'X-Forwarded-Host': 'x' } }),
  )
  t.equal(challenge.realm, `https://registry.example.com:8443${tokenPath}`)
  t.equal(challenge.service, service, 'the service is the host of publicUrl')
  t.equal(claimsOf(await getToken(on, basic('bob'))).aud, service)
  isError(t, await askToken(on, basic('bob'), [], { service: 'boathouse' }), 400, 'REQUEST_INVALID')

  // Who asks for a refresh token gets one: GET with offline_token=true, POST with access_type=offline.
  const plain = (await askToken(on, basic('alice', 'first password'))).json<Answer>()
  t.notOk(plain.refresh_token, 'nobody else does')
  const offline = { offline_token: 'true', client_id: 'docker', account: 'alice' }
  const { refresh_token: fromGet = '' } = (
    await askToken(on, basic('alice', 'first password'), [], offline)
  ).json<Answer>()
  t.ok(fromGet)
  const form = {
    grant_type: 'password',
    username: 'alice',
    password: 'first password',
    access_type: 'offline',
    service,
  }
  const { refresh_token: fromPost = '' } = (await postForm(on, form)).json<Answer>()
  t.ok(fromPost)
  t.notOk((await askToken(on, undefined, [], offline)).json<Answer>().refresh_token, 'anonymous gets none')

  const refresh = (token: string, scope = 'repository:team/a:pull,push,delete') =>
    postForm(on, { grant_type: 'refresh_token', refresh_token: token, service, client_id: 'docker', scope })
  for (let round = 0; round < 3; round++) {
    const answer = (await refresh(fromGet)).json<Answer>()
    t.equal(
      answer.refresh_token,
      fromGet,
      'the same refresh token again: docker keeps the first one for ever',
    )
    t.same(accessOf(answer.access_token), ['team/a:pull,push'])
    t.equal(answer.scope, 'repository:team/a:pull,push')
    t.equal((await as(on, bearer(answer.access_token)).request('GET', '/v2/')).status, 200)
  }
  for (const wrong of [
    '',
    'x',
    `${fromGet}x`,
    fromGet.slice(0, -1),
    fromPost.slice(0, -2) + fromGet.slice(-2),
  ]) {
    isError(t, await refresh(wrong), 401, 'UNAUTHORIZED', `refresh token ${wrong.length} long`)
  }

  // Listed, kept as a hash, and revoked like other access tokens.
  const listed = await other.access.listAccessTokens('alice')
  t.equal(listed.length, 2)
  t.notOk(JSON.stringify(listed).includes(fromGet.slice(-20)), 'the secret is not kept')
  t.ok(
    listed.every(({ expiresAt = 0 }) => Math.abs(expiresAt - Date.now() - 90 * 86_400_000) < 600_000),
    '90 days',
  )
  const [one] = listed.filter(({ id }) => fromPost.includes(id))
  await other.access.removeAccessToken('alice', one?.name ?? '')
  await eventually(
    'a removed refresh token is dead',
    async () => (await refresh(fromPost)).status === 401,
    1500,
  )
  t.equal((await refresh(fromGet)).status, 200, 'the other one lives')
  await other.access.setPassword('alice', await hashOf('second password'))
  await eventually(
    'a changed password ends refresh tokens',
    async () => (await refresh(fromGet)).status === 401,
    1500,
  ).catch((error: Error) => t.fail(error.message))
  await on.stop()
})

t.test('AU-10: tokens are for the service and say so', async (t) => {
  const { aud, iss } = claimsOf(await getToken(server, basic('reader')))
  t.same({ aud, iss }, { aud: 'boathouse', iss: 'boathouse' })
})

t.test('AU-11: the realm has neither scheme in its path', async (t) => {
  t.notMatch(challengeOf(await server.request('GET', '/v2/')).realm, /basic|bearer/i)
})

t.test('AU-13, AN-02: empty credentials are anonymous, wrong ones are not', async (t) => {
  const path = '/v2/public/app/manifests/1'
  for (const authorization of [undefined, 'Basic Og==']) {
    t.equal((await as(server, authorization).request('GET', path)).status, 200, String(authorization))
  }
  for (const wrong of [
    basic('reader', 'wrong'),
    basic('reader', ''),
    basic('', 'x'),
    basic('no one'),
    'Bearer x',
    'Foo',
  ]) {
    isError(t, await as(server, wrong).request('GET', path), 401, 'UNAUTHORIZED', wrong)
  }
  for (const wrong of [
    basic('reader', 'wrong'),
    basic('reader', ''),
    basic('', 'x'),
    'Bearer x',
    'Foo',
    '',
  ]) {
    t.equal((await askToken(server, wrong)).status, 401, `the token endpoint: ${wrong}`)
  }
})

// ---------------------------------------------------------------------------------------------
// The token endpoint: GET
// ---------------------------------------------------------------------------------------------

const pull = (name: string) => `repository:${name}:pull`

t.test('TK-01: scopes are repeated, or listed in one parameter, or both', async (t) => {
  const wanted = ['team/a:pull', 'team/b:pull', 'team/c:pull']
  for (const scopes of [
    [pull('team/a'), pull('team/b'), pull('team/c')],
    [`${pull('team/a')} ${pull('team/b')} ${pull('team/c')}`],
    [`${pull('team/a')}  ${pull('team/b')} `, ` ${pull('team/c')}`, ''],
    [pull('team/a'), pull('team/a'), `${pull('team/b')} ${pull('team/c')} ${pull('team/a')}`],
  ]) {
    t.same(accessOf(await getToken(server, basic('reader'), scopes)), wanted, JSON.stringify(scopes))
  }
  t.equal((await server.request('GET', tokenPath)).status, 200, 'every parameter may be left out')
  const plus = await server.request('GET', `${tokenPath}?scope=${pull('public/a')}+${pull('public/b')}`)
  t.same(accessOf(plus.json<Answer>().token), ['public/a:pull', 'public/b:pull'], 'a plus is a space')
})

t.test('TK-02, TK-03, TK-04, T-60: what clients read in the answer', async (t) => {
  for (const reply of [
    await askToken(server, basic('reader'), [pull('team/app')]),
    await askToken(server, undefined),
    await postForm(server, { grant_type: 'password', username: 'reader', password, service: 'boathouse' }),
  ]) {
    t.equal(reply.status, 200)
    t.match(reply.header('content-type'), /^application\/json\b/)
    const answer = reply.json<Answer>()
    t.ok(answer.token.length > 0)
    t.equal(answer.access_token, answer.token)
    t.equal(answer.expires_in, 300)
    // T-60: clients then count from the answer on, whatever their clock says.
    t.notOk('issued_at' in answer, 'no issued_at')
    const { iat, exp } = claimsOf(answer.token) as { iat: number; exp: number }
    t.equal(exp - iat, answer.expires_in)
    t.notOk(answer.refresh_token)
  }
})

t.test('TK-03: a lifetime that clients would stretch cannot be set', async (t) => {
  const data = join(scratchDir(t), 'data')
  for (const [lifetime, code] of [
    ['59s', 2],
    ['0s', 2],
    ['2h', 2],
  ] as const) {
    const env = { BOATHOUSE_TOKENS_EXPIRE_AFTER: lifetime }
    const result = await runServerCommand(['serve', '--listen', '127.0.0.1:0', '--data', data], env)
    t.equal(result.code, code, lifetime)
    t.match(result.stderr, /BOATHOUSE_TOKENS_EXPIRE_AFTER/, lifetime)
  }
})

/** A token of the server with other times; seconds from now. */
function timed(token: string, times: { iat?: number; nbf?: number; exp?: number }, key?: KeyObject): string {
  const now = Math.floor(Date.now() / 1000)
  const moved = Object.fromEntries(Object.entries(times).map(([name, seconds]) => [name, now + seconds]))
  return signToken(headerOf(token), { ...claimsOf(token), ...moved }, key ?? signingKeyOf(server.data))
}

t.test('TK-03, S07: what has begun goes on when its token expires', async (t) => {
  const content = randomBlob(8 * 1024 * 1024)
  await pushBlobs(root, 'public/long', content)
  await push(root, 'public/long', '1', image({ layers: [content] }))
  const fresh = await getToken(server, basic('pusher'), [
    'repository:mine/long:pull,push',
    pull('public/long'),
  ])
  // Good for seven seconds or eight more: the leeway is a minute.
  const dying = bearer(timed(fresh, { iat: -400, nbf: -400, exp: -52 }))
  const me = as(server, dying)
  t.equal((await me.request('GET', '/v2/')).status, 200, 'it is good yet')

  const down = await RawConnection.open(server)
  down.socket.pause()
  await down.request(`GET /v2/public/long/blobs/${content.digest}`, [`Authorization: ${dying}`])
  const location = await openUpload(me, 'mine/long')
  const up = await RawConnection.open(server)
  await up.request(`PATCH ${location}`, [`Authorization: ${dying}`, 'Content-Length: 6'], 'abc')

  await eventually('the token has expired', async () => (await me.request('GET', '/v2/')).status === 401)
  await up.send('def')
  t.equal((await up.reply()).status, 202, 'the upload of a chunk ends well')
  down.socket.resume()
  t.equal((await down.reply()).body.length, content.size, 'the download of a layer ends whole')
  await Promise.all([up.close(), down.close()])

  const closing = withQuery(
    location,
    'digest=sha256:bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721',
  )
  t.equal(
    inShort(await me.request('PUT', closing)),
    '401 UNAUTHORIZED invalid_token for repository:mine/long:pull,push',
  )
  const renewed = as(server, bearer(fresh))
  t.equal((await renewed.request('GET', location)).header('range'), '0-5', 'the upload waits')
  t.equal((await renewed.request('PUT', closing)).status, 201, 'and ends with a new token')
})

t.test('TK-05: missing rights are left out, wrong passwords are 401, unknown services 400', async (t) => {
  const asked = [
    'repository:team/app:pull,push,delete',
    'repository:secret/app:pull',
    pull('public/x'),
    'registry:catalog:*',
  ]
  t.same(accessOf(await getToken(server, basic('reader'), asked)), [
    'team/app:pull',
    'public/x:pull',
    'catalog:*',
  ])
  t.same(accessOf(await getToken(server, basic('nobody'), ['repository:secret/app:pull,push,delete,*'])), [])
  const wrong = await askToken(server, basic('reader', 'wrong'), asked)
  isError(t, wrong, 401, 'UNAUTHORIZED')
  t.notOk(wrong.headers['set-cookie'])
  isError(t, await askToken(server, basic('reader'), [], { service: 'elsewhere' }), 400, 'REQUEST_INVALID')
  t.equal((await askToken(server, basic('reader'), [], { service: 'boathouse' })).status, 200)
})

t.test(
  'TK-06, AN-01, AN-03: an anonymous token pulls what is public and asks to log in for the rest',
  async (t) => {
    t.equal((await server.request('GET', '/v2/')).status, 401)
    for (const authorization of [undefined, 'Basic Og==']) {
      const token = await getToken(server, authorization, [
        pull('public/app'),
        'repository:team/app:pull,push',
      ])
      t.equal(claimsOf(token).sub, '')
      t.same(accessOf(token), ['public/app:pull'])
      const me = as(server, bearer(token))
      t.equal((await me.request('GET', '/v2/public/app/manifests/1')).status, 200)
      const answers = await Promise.all(
        ['team/app', 'team/not'].map(async (name) =>
          inShort(await me.request('GET', `/v2/${name}/manifests/1`)).replace(name, 'NAME'),
        ),
      )
      t.same(answers, Array(2).fill('401 UNAUTHORIZED insufficient_scope for repository:NAME:pull'))
    }
  },
)

t.test('TK-07, BASE-03: a token without scope is good for /v2/ and nothing else', async (t) => {
  const me = as(server, bearer(await getToken(server, basic('root'))))
  const base = await me.request('GET', '/v2/')
  t.equal(base.status, 200)
  t.equal(base.text, '{}')
  t.equal((await me.request('HEAD', '/v2/')).status, 200)
  for (const path of ['/v2/_catalog', '/v2/team/app/tags/list', '/v2/public/app/manifests/1']) {
    t.equal(challengeOf(await me.request('GET', path)).error, 'insufficient_scope', path)
  }
})

t.test('TK-08: no refresh token unless the settings say so', async (t) => {
  const reply = await askToken(server, basic('reader'), [], { offline_token: 'true', client_id: 'docker' })
  t.equal(reply.status, 200)
  t.notOk(reply.json<Answer>().refresh_token)
  const form = { grant_type: 'password', username: 'reader', password, access_type: 'offline' }
  t.notOk((await postForm(server, form)).json<Answer>().refresh_token)
})

t.test('TK-09: account is not who one is', async (t) => {
  const scopes = ['repository:team/app:pull,push,delete']
  const token = await getToken(server, basic('reader'), [])
  t.equal(claimsOf(token).sub, 'reader')
  for (const [authorization, name] of [
    [basic('reader'), 'reader'],
    [undefined, ''],
  ] as const) {
    const extra = { account: 'root', username: 'root', sub: 'root', user: 'root' }
    const { token } = (await askToken(server, authorization, scopes, extra)).json<Answer>()
    t.equal(claimsOf(token).sub, name)
  }
})

t.test('TK-10, TK-15, S13: malformed scopes are left out; the others count', async (t) => {
  const odd = [
    ...[
      '',
      ':',
      '::',
      ':::',
      'repository',
      'repository:',
      'repository::',
      'repository:team/app',
      'repository:team/app:',
    ],
    ...['repository::pull', 'repository:team/app:,', 'repository:team/app:PULL', 'Repository:team/app:pull'],
    ...[
      'repository:Team/App:pull',
      'repository:../app:pull',
      'repository:team/../app:pull',
      'repository:team//app:pull',
    ],
    ...[
      'repository:**:pull',
      'repository:team/*:pull',
      'repository:team/**:pull',
      'repository:*:*',
      '*',
      '*:*:*',
    ],
    ...[
      'repository:team/app\0:pull',
      'repository:team/äpp:pull',
      'repository:team%2Fapp:pull',
      'repository:/team/app:pull',
    ],
    ...[
      'registry:*:*',
      'registry::*',
      'registry:catalog',
      'registry:catalog:',
      'registry:catalog:pull',
      'registry:other:*',
    ],
    ...[
      'user:root:*',
      'artifact-repository:team/app:pull',
      'repository:__proto__:pull',
      'constructor:prototype:*',
    ],
    ...[`repository:${'a'.repeat(300)}:pull`, `repository:team/app:${'pull,'.repeat(500)}`],
    ...[
      "repository:team/app' OR 1=1--:pull",
      'repository:team/app"}]:pull',
      'repository:host:5000/team/app:pull',
    ],
  ]
  for (const scope of odd) {
    const reply = await askToken(server, basic('root'), [scope])
    t.equal(reply.status, 200, scope.slice(0, 60))
    t.same(accessOf(reply.json<Answer>().token), [], scope.slice(0, 60))
  }
  const good = pull('team/app')
  t.same(accessOf(await getToken(server, basic('reader'), [...odd.slice(0, 40), good])), ['team/app:pull'])
  t.same(
    accessOf(await getToken(server, basic('reader'), ['repository(plugin):team/app:pull'])),
    ['team/app:pull'],
    'a class',
  )
})

t.test('TK-10: 10,000 scopes are bounded, in the query and in a form', async (t) => {
  const many = Array.from({ length: 10_000 }, (_, n) => `repository:team/r${n}:pull`)
  const inQuery = await askToken(server, basic('reader'), many, {})
  t.match(inQuery.status, /^(400|414|431)$/, 'a query that long is refused')
  const short = many.map((_, n) => `a:b${n % 10}:c`)
  const inForm = await postForm(server, [
    ['grant_type', 'password'],
    ['username', 'reader'],
    ['password', password],
    ['scope', `${short.slice(0, 5000).join(' ')} ${pull('team/late')}`],
  ])
  t.equal(inForm.status, 200)
  t.ok(inForm.body.length < 8192, 'the answer is bounded')
  t.same(accessOf(inForm.json<Answer>().token), [], 'what comes after so many is not read')
  const repeated = await askToken(server, basic('reader'), many.slice(0, 400))
  t.equal(repeated.status, 200)
  const given = accessOf(repeated.json<Answer>().token)
  t.ok(given.length > 10 && given.length <= 100, `${given.length} of 400 scopes are given`)
})

t.test('JW-05: however many scopes are asked for, the token fits the header and is good', async (t) => {
  const long = (n: number) => `team/${'x'.repeat(180)}/${n}`
  const scopes = Array.from({ length: 100 }, (_, n) => `repository:${long(n)}:pull,push`)
  const form: [string, string][] = [
    ['grant_type', 'password'],
    ['username', 'pusher'],
    ['password', password],
    ...scopes.map((scope): [string, string] => ['scope', scope]),
  ]
  const { token } = (await postForm(server, form)).json<Answer>()
  t.ok(token.length <= 8192, `${token.length} characters`)
  t.ok(accessOf(token).length >= 10, 'the first ones are in')
  const me = as(server, bearer(token))
  t.equal((await me.request('GET', '/v2/')).status, 200, 'it is good')
  t.equal((await me.request('GET', `/v2/${long(0)}/tags/list`)).code, 'NAME_UNKNOWN', 'for what it names')
  const longest = Math.max(
    ...server
      .stderr()
      .split('\n')
      .map((line) => line.length),
  )
  t.ok(longest <= 4096, `the longest line of the log has ${longest} characters`)
})

t.test('TK-11: actions in any order, * is all that the user has', async (t) => {
  const given = async (name: string, scope: string) => accessOf(await getToken(server, basic(name), [scope]))
  t.same(await given('pusher', 'repository:team/app:pull,push'), ['team/app:pull,push'])
  t.same(await given('pusher', 'repository:team/app:push,pull'), ['team/app:pull,push'])
  t.same(await given('pusher', 'repository:team/app:push,pull,delete'), ['team/app:pull,push'])
  t.same(await given('pusher', 'repository:team/app:*'), ['team/app:pull,push'])
  t.same(await given('pusher', 'repository:mine/app:*'), ['mine/app:delete,pull,push'])
  t.same(await given('reader', 'repository:team/app:*'), ['team/app:pull'])
  t.same(await given('pusher', 'repository:mine/app:pull,unknown,delete'), ['mine/app:delete,pull'])
  const [onlyPush = ''] = await given('pusher', 'repository:mine/app:push')
  t.match(onlyPush, /push/)
  t.notMatch(onlyPush, /delete/)
})

t.test('TK-12, CT-02, V1-05b: podman finds the catalog scope by asking without it', async (t) => {
  const me = as(server, bearer(await getToken(server, basic('reader'))))
  const first = await me.request('GET', '/v2/_catalog')
  t.equal(inShort(first), '401 UNAUTHORIZED insufficient_scope for registry:catalog:*')
  for (const scope of [challengeOf(first).scope ?? '', 'registry:catalog:search']) {
    const again = as(server, bearer(await getToken(server, basic('reader'), [scope])))
    t.same((await again.request('GET', '/v2/_catalog')).json(), {
      repositories: ['public/app', 'public/long', 'team/app'],
    })
  }
  const anonymous = as(server, bearer(await getToken(server, undefined, ['registry:catalog:*'])))
  t.same((await anonymous.request('GET', '/v2/_catalog')).json(), {
    repositories: ['public/app', 'public/long'],
  })
})

t.test('TK-13, TK-14: nothing is kept, nothing is shared, other methods do no harm', async (t) => {
  const reply = await server.request('GET', tokenPath, { headers: { Origin: 'https://evil.test' } })
  t.match(reply.header('cache-control'), /no-store/)
  t.notOk(reply.headers['access-control-allow-origin'], 'no CORS')
  const withBody = await server.request('GET', `${tokenPath}?scope=${pull('public/app')}`, {
    body: 'grant_type=refresh_token',
  })
  t.equal(withBody.status, 200, 'a body on GET is ignored')
  const head = await server.request('HEAD', tokenPath)
  t.equal(head.body.length, 0)
  t.ok(head.status < 500)
  for (const method of ['OPTIONS', 'PUT', 'DELETE', 'PATCH']) {
    const other = await server.request(method, tokenPath)
    isError(t, other, 405, 'UNSUPPORTED')
    t.match(other.header('allow'), /GET.*POST/)
  }
})

// ---------------------------------------------------------------------------------------------
// The token endpoint: POST
// ---------------------------------------------------------------------------------------------

t.test('TK-30, TK-31: the password grant', async (t) => {
  const form = {
    ...{
      grant_type: 'password',
      username: 'pusher',
      password,
      service: 'boathouse',
      client_id: 'containerd-client',
    },
    scope: `repository:team/app:pull,push,delete ${pull('secret/app')} repository:mine/app:*`,
  }
  for (const type of [
    'application/x-www-form-urlencoded',
    'application/x-www-form-urlencoded; charset=utf-8',
  ]) {
    const reply = await postForm(server, form, { 'Content-Type': type })
    t.equal(reply.status, 200, type)
    const answer = reply.json<Answer>()
    t.same(accessOf(answer.access_token), ['team/app:pull,push', 'mine/app:delete,pull,push'])
    t.equal(answer.scope, 'repository:team/app:pull,push repository:mine/app:pull,push,delete')
    t.match(reply.header('cache-control'), /no-store/)
  }
  const repeats: [string, string][] = [
    ['grant_type', 'password'],
    ['username', 'pusher'],
    ['password', password],
    ['scope', pull('team/a')],
    ['scope', `${pull('team/b')} ${pull('team/c')}`],
  ]
  t.same(accessOf((await postForm(server, repeats)).json<Answer>().token), [
    'team/a:pull',
    'team/b:pull',
    'team/c:pull',
  ])
  const machine = await registry.accessToken('pusher', ['team/**:pull'])
  const asMachine = { ...form, password: machine }
  const reply = await eventually('the access token is known', async () => {
    const found = await postForm(server, asMachine)
    return found.status === 200 && found
  })
  t.same(
    accessOf(reply.json<Answer>().token),
    ['team/app:pull'],
    'an access token in the place of the password',
  )
})

t.test('TK-34: wrong passwords are 401, wrong grants 400', async (t) => {
  const good = { grant_type: 'password', username: 'reader', password }
  for (const wrong of [
    { ...good, password: 'wrong' },
    { ...good, password: '' },
    { ...good, username: 'no one' },
    { grant_type: 'password' },
    { ...good, grant_type: 'refresh_token' },
    { grant_type: 'refresh_token', refresh_token: password },
  ]) {
    isError(t, await postForm(server, wrong), 401, 'UNAUTHORIZED', JSON.stringify(wrong))
  }
  for (const grant_type of [
    '',
    'PASSWORD',
    'authorization_code',
    'client_credentials',
    'toString',
    '__proto__',
    'x\0',
  ]) {
    const reply = await postForm(server, { ...good, grant_type })
    isError(t, reply, 400, 'REQUEST_INVALID', grant_type)
    t.notOk(reply.text.includes('token":'))
  }
  isError(
    t,
    await postForm(server, { username: 'reader', password }),
    400,
    'REQUEST_INVALID',
    'no grant type',
  )
  isError(t, await server.request('POST', tokenPath), 400, 'REQUEST_INVALID', 'no body')
  isError(
    t,
    await postForm(server, { ...good, service: 'elsewhere' }),
    400,
    'REQUEST_INVALID',
    'another service',
  )
  const json = { body: JSON.stringify(good), headers: { 'Content-Type': 'application/json' } }
  isError(t, await server.request('POST', tokenPath, json), 400, 'REQUEST_INVALID', 'JSON')
})

t.test('TK-30: oversized and odd forms are refused, not read', async (t) => {
  const large = `grant_type=password&username=reader&password=${password}&filler=${'x'.repeat(70_000)}`
  for (const chunked of [false, true]) {
    const reply = await server.request('POST', tokenPath, { body: large, chunked, fresh: true })
    t.match(reply.status, /^(400|413)$/, `${chunked}`)
    t.notOk(reply.text.includes('access_token'))
  }
  const huge = await server.request('POST', tokenPath, {
    body: Buffer.alloc(8 * 1024 * 1024, 'x'),
    fresh: true,
  })
  t.match(huge.status, /^(400|413)$/)
  for (const body of ['%', '%zz=%', '=', '&&&&', '\0'.repeat(100), 'grant_type', 'a=b&'.repeat(15_000)]) {
    const reply = await server.request('POST', tokenPath, { body })
    t.equal(reply.status, 400, JSON.stringify(body.slice(0, 20)))
  }
})

t.test('TK-36: the log says who got a token, from where, with which client', async (t) => {
  await postForm(server, {
    grant_type: 'password',
    username: 'reader',
    password,
    client_id: 'client-of-tk-36',
  })
  const line = await eventually('a line of the token', () =>
    server.logs().find((entry) => entry.audit === 'token' && entry.client === 'client-of-tk-36'),
  )
  t.match(line, { user: 'reader', remote: '127.0.0.1' })
})

// ---------------------------------------------------------------------------------------------
// The tokens themselves
// ---------------------------------------------------------------------------------------------

/** RFC 7638: the SHA-256 of the key's required members, in their order. */
function thumbprint(key: KeyObject): string {
  const { crv, kty, x } = createPublicKey(key).export({ format: 'jwk' })
  return createHash('sha256').update(JSON.stringify({ crv, kty, x })).digest('base64url')
}

t.test('JW-01, JW-02, JW-04: header and claims', async (t) => {
  const token = await getToken(server, basic('reader'), [pull('team/app'), 'registry:catalog:*'])
  t.same(headerOf(token), { alg: 'EdDSA', typ: 'JWT', kid: thumbprint(signingKeyOf(server.data)) })
  const claims = claimsOf(token) as {
    iat: number
    nbf: number
    exp: number
    jti: string
    sub: string
    access: unknown
  }
  t.equal(claims.sub, 'reader')
  t.ok(Math.abs(claims.iat - Date.now() / 1000) < 5)
  t.equal(claims.nbf, claims.iat - 10)
  t.equal(claims.exp, claims.iat + 300)
  t.same(claims.access, [
    { type: 'repository', name: 'team/app', actions: ['pull'] },
    { type: 'registry', name: 'catalog', actions: ['*'] },
  ])
  t.not(claims.jti, claimsOf(await getToken(server, basic('reader'))).jti)
})

t.test('JW-03, S06: clocks may differ by a minute', async (t) => {
  const token = await getToken(server, basic('reader'))
  const statusOf = async (changed: string) =>
    (await as(server, bearer(changed)).request('GET', '/v2/')).status
  t.equal(await statusOf(timed(token, { exp: -50 })), 200, 'expired 50 s ago')
  t.equal(await statusOf(timed(token, { exp: -63 })), 401, 'expired 63 s ago')
  t.equal(await statusOf(timed(token, { nbf: 50, iat: 50 })), 200, 'from in 50 s')
  t.equal(await statusOf(timed(token, { nbf: 65 })), 401, 'from in 65 s')
  t.equal(await statusOf(timed(token, { exp: -63 }, generateKeyPairSync('ed25519').privateKey)), 401)
})

t.test('JW: the keys are where nobody else reads them, and a restart keeps them', async (t) => {
  const folder = dataPaths(server.data).keys
  t.equal(statSync(folder).mode & 0o777, 0o700)
  for (const name of readdirSync(folder)) t.equal(statSync(join(folder, name)).mode & 0o777, 0o600, name)

  const one = await startRegistry(t)
  await one.addUser('reader')
  const token = await getToken(one.server, basic('reader'))
  await one.server.stop()
  const again = await startRegistry(t, { data: one.server.data })
  t.equal(
    (await as(again.server, bearer(token)).request('GET', '/v2/')).status,
    200,
    'a token from before the restart',
  )
  await again.server.stop()
})

t.test('JW: a configured key signs, and what other keys signed before stays good', async (t) => {
  const one = await startRegistry(t)
  await one.addUser('reader')
  const before = await getToken(one.server, basic('reader'))
  await one.server.stop()
  const { privateKey } = generateKeyPairSync('ed25519')
  const keyFile = join(scratchDir(t), 'signing.pem')
  writeFileSync(keyFile, privateKey.export({ type: 'pkcs8', format: 'pem' }))
  const config = { tokens: { keyFile } }
  const again = await startRegistry(t, { data: one.server.data, config })
  const token = await getToken(again.server, basic('reader'))
  t.equal(headerOf(token).kid, thumbprint(privateKey))
  for (const good of [token, before]) {
    t.equal((await as(again.server, bearer(good)).request('GET', '/v2/')).status, 200)
  }
  await again.server.stop()
})

t.test(
  'JW: a key file that is replaced is taken up without a restart; one that is broken is not',
  async (t) => {
    const keyFile = join(scratchDir(t), 'signing.pem')
    const [first, second] = [
      generateKeyPairSync('ed25519').privateKey,
      generateKeyPairSync('ed25519').privateKey,
    ]
    const pem = (key: KeyObject) => key.export({ type: 'pkcs8', format: 'pem' })
    writeFileSync(keyFile, pem(first))
    const one = await startRegistry(t, { config: { tokens: { keyFile }, workers: 2 } })
    await one.addUser('reader')
    const newToken = () => getToken(one.server, basic('reader'))
    const isGood = async (token: string) =>
      (await one.server.request('GET', '/v2/', { fresh: true, headers: { Authorization: bearer(token) } }))
        .status === 200
    const before = await newToken()
    t.equal(headerOf(before).kid, thumbprint(first))

    writeFileSync(`${keyFile}.new`, pem(second))
    renameSync(`${keyFile}.new`, keyFile)
    const after = await eventually('a token of the new key', async () => {
      const token = await newToken()
      return headerOf(token).kid === thumbprint(second) && token
    })
    for (let n = 0; n < 10; n++) {
      t.ok(await isGood(before), 'what the old key signed stays good')
      t.ok(await isGood(after), 'what the new key signed is good on every worker')
    }
    // Nothing that was ever verified would show whether the old key still verifies: this one is new to everybody.
    t.ok(await isGood(signToken(headerOf(before), { ...claimsOf(before), jti: 'another' }, first)))

    writeFileSync(keyFile, 'half a k')
    const said = (text: string) => () => one.server.stderr().includes(text)
    await eventually('the fault is in the log', async () => {
      await newToken()
      return said('the new signing key cannot be used: the old one stays')()
    })
    t.equal(headerOf(await newToken()).kid, thumbprint(second))
    t.ok(said('took up the new signing key')())
    t.notOk(said('half a k')(), 'what is in the file is no matter of logs')
    rmSync(keyFile)
    await pause(1200) // longer than a worker leaves between two looks
    t.equal(headerOf(await newToken()).kid, thumbprint(second), 'a file that is gone')
    writeFileSync(keyFile, pem(first))
    await eventually(
      'the first key signs again',
      async () => headerOf(await newToken()).kid === thumbprint(first),
    )
    t.ok(await isGood(after))
  },
)

t.test('JW: a key file that holds no Ed25519 key stops the start with a sentence', async (t) => {
  const folder = scratchDir(t)
  const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey.export({
    type: 'pkcs8',
    format: 'pem',
  })
  for (const [name, text] of [
    ['rsa', rsa],
    ['empty', ''],
    ['words', 'no key'],
  ] as const) {
    const file = join(folder, `${name}.pem`)
    writeFileSync(file, text)
    const args = ['serve', '--listen', '127.0.0.1:0', '--data', join(folder, 'data')]
    const env = { BOATHOUSE_AUTH: 'token', BOATHOUSE_WORKERS: '1', BOATHOUSE_TOKENS_KEY_FILE: file }
    const { code, stderr, stdout } = await runServerCommand(args, env)
    t.match(code, /^[12]$/, name)
    t.equal(stdout, '', `${name}: it does not say that it listens`)
    t.match(stderr, /key/i, name)
    t.notMatch(stderr, /\n {4}at /, `${name}: no stack`)
  }
})

t.test('AU: pushing with a token, as docker does it', async (t) => {
  const token = await getToken(server, basic('pusher'), [
    'repository:team/pushed:pull,push',
    pull('public/app'),
  ])
  const me = as(server, bearer(token))
  const manifest = image({ layers: [layer] })
  t.equal((await me.request('HEAD', `/v2/team/pushed/blobs/${layer.digest}`)).status, 404)
  const mount = `/v2/team/pushed/blobs/uploads/?mount=${layer.digest}&from=public/app`
  t.equal((await me.request('POST', mount)).status, 201, 'a mount from what the token names')
  await pushBlobs(me, 'team/pushed', ...manifest.parts.slice(0, 1))
  t.equal((await putManifest(me, 'team/pushed', '1', manifest)).status, 201)
  const elsewhere = `/v2/team/pushed/blobs/uploads/?mount=${layer.digest}&from=team/app`
  t.equal((await me.request('POST', elsewhere)).status, 201, 'a mount is judged by the rights of the user')
})

everyReplyKeptTheRules(t)
