import t from 'tap'
import { Accounts } from '../../src/auth/accounts.js'
import { Passwords, type Verdict } from '../../src/auth/passwords.js'
import { Throttle } from '../../src/auth/throttle.js'
import { refreshTokenPrefix } from '../../storage/access-store.js'
import { eventually, everyReplyKeptTheRules, image, push, pushBlobs, randomBlob } from '../harness.js'
import {
  accessOf,
  as,
  askToken,
  basic,
  bearer,
  challengeOf,
  claimsOf,
  getToken,
  hashOf,
  inShort,
  password,
  postForm,
  startRegistry,
} from './fixture.js'

/*
 * What is got with a credential: never more rights than it has, never a longer life (docs/decisions/0021).
 */
const registry = await startRegistry(t, { config: { tokens: { refresh: true }, log: { level: 'warn' } } })
const { server, access } = registry
await registry.addUser('root', { admin: true })
for (const name of ['ann', 'ben', 'changed', 'disabled', 'removed', 'busy', 'held'])
  await registry.addUser(name)
await registry.grant('authenticated', 'team/**', 'push')
await registry.grant('anonymous', 'public/**', 'pull')
const root = as(server, basic('root'))
// All that is waited for comes before the first test: tap ends when it has none left.
const otherHash = await hashOf('another password')
await push(root, 'prod/app', '1', image())
await push(root, 'team/app', '1', image())

interface Answer {
  token: string
  access_token: string
  refresh_token?: string
  scope: string
  expires_in: number
}

const everything = ['repository:prod/app:pull,push,delete', 'repository:team/app:pull,push,delete']

/** Every way to ask for a refresh token, with a secret in the place of the password. */
const roads: Record<string, (user: string, secret: string) => Promise<Answer>> = {
  'GET with offline_token': async (user, secret) =>
    (await askToken(server, basic(user, secret), everything, { offline_token: 'true' })).json<Answer>(),
  'the password grant': async (user, secret) =>
    (
      await postForm(server, {
        grant_type: 'password',
        username: user,
        password: secret,
        access_type: 'offline',
        scope: everything.join(' '),
      })
    ).json<Answer>(),
  'the refresh grant': async (_user, secret) => refresh(secret),
  'a refresh token in the place of the password, after a refresh': async (user, secret) => {
    const { refresh_token: first = '' } = await refresh(secret)
    const again = await askToken(server, basic(user, first), everything, { offline_token: 'true' })
    return refresh(again.json<Answer>().refresh_token ?? '')
  },
}

async function refresh(token: string): Promise<Answer> {
  const form = { grant_type: 'refresh_token', refresh_token: token, scope: everything.join(' ') }
  return (await postForm(server, form)).json<Answer>()
}

const idsOf = async (user: string) => (await access.listAccessTokens(user)).map(({ id }) => id).sort()

for (const [road, ask] of Object.entries(roads)) {
  t.test(`S86: an access token begets nothing that can do more, or lasts longer: ${road}`, async (t) => {
    const expiresAt = Date.now() + 100_000
    const machine = await registry.accessToken('root', ['team/**:pull'], { name: `ci of ${road}`, expiresAt })
    const before = await idsOf('root')
    const { token, refresh_token: given = '', expires_in: lifetime } = await ask('root', machine)
    const got = [token]
    for (const secret of given === '' ? [] : [given]) {
      const second = await refresh(secret)
      got.push(second.token)
      t.equal(
        inShort(
          await server.request('GET', '/v2/prod/app/manifests/1', {
            headers: { Authorization: basic('root', secret) },
          }),
        ),
        '403 DENIED',
        'in the place of the password',
      )
      t.same(accessOf(second.token), ['team/app:pull'], 'exchanged again')
    }
    for (const one of got) {
      t.same(accessOf(one), ['team/app:pull'], 'for no more than the access token')
      const { exp } = claimsOf(one) as { exp: number }
      t.ok(exp * 1000 <= expiresAt, 'and not beyond its end')
      t.equal((await as(server, bearer(one)).request('GET', '/v2/team/app/manifests/1')).status, 200)
      t.equal((await as(server, bearer(one)).request('GET', '/v2/prod/app/manifests/1')).status, 401)
      t.equal((await as(server, bearer(one)).request('DELETE', '/v2/team/app/manifests/1')).status, 401)
    }
    t.ok(lifetime <= 100, 'the client is told how long it lasts')
    t.same(await idsOf('root'), before, 'nothing was made that has a life of its own')

    await access.removeAccessToken('root', `ci of ${road}`)
    await eventually('what it begot ends with it', async () => {
      const replies = await Promise.all(got.map((one) => as(server, bearer(one)).request('GET', '/v2/')))
      return replies.every(({ status }) => status === 401)
    })
    const late = await postForm(server, { grant_type: 'refresh_token', refresh_token: given })
    t.equal(late.status, 401, 'no refresh after it was revoked')
    t.equal((await as(server, basic('root', given)).request('GET', '/v2/')).status, 401)
  })
}

t.test('S86: what an access token begot ends when its time is over', async (t) => {
  const expiresAt = Date.now() + 2500
  const machine = await registry.accessToken('root', ['team/**:pull'], { name: 'short', expiresAt })
  const { token, refresh_token: given = '' } = await (roads['GET with offline_token'] ?? refresh)(
    'root',
    machine,
  )
  await eventually('the bearer token ends', async () => {
    return (await as(server, bearer(token)).request('GET', '/v2/')).status === 401
  })
  t.ok(Date.now() >= expiresAt, 'not before')
  t.equal((await postForm(server, { grant_type: 'refresh_token', refresh_token: given })).status, 401)
})

t.test('S86: a password begets a refresh token with all rights, which lives as before', async (t) => {
  const { refresh_token: given = '' } = await (roads['the password grant'] ?? refresh)('ann', password)
  t.same(accessOf((await refresh(given)).token), ['team/app:pull,push'])
  t.equal((await refresh(given)).refresh_token, given, 'the same again')
})

// ---------------------------------------------------------------------------------------------
// What changes while something is issued
// ---------------------------------------------------------------------------------------------

for (const [user, change, comeBack] of [
  ['changed', () => access.setPassword('changed', otherHash), async () => undefined],
  ['disabled', () => access.setDisabled('disabled', true), () => access.setDisabled('disabled', false)],
  [
    'removed',
    async () => {
      await access.removeUser('removed')
      await access.addUser({ name: 'removed', passwordHash: otherHash, isAdmin: false }, Date.now())
    },
    async () => undefined,
  ],
] satisfies [string, () => Promise<unknown>, () => Promise<unknown>][]) {
  t.test(`S87: no refresh token survives that its user was ${user} while it was issued`, async (t) => {
    const road = roads['GET with offline_token'] ?? refresh
    const given: string[] = []
    // What was read about the user counts as current for a moment: what is asked for in it is the matter.
    const thieves = Promise.all(
      Array.from({ length: 4 }, async () => {
        for (;;) {
          const { refresh_token: one } = await road(user, password)
          if (one === undefined) return
          given.push(one)
        }
      }),
    )
    await eventually('the thieves are at work', () => given.length > 20)
    await change()
    await thieves
    await comeBack()
    await eventually('the change is known', async () => {
      const { status } = await askToken(
        server,
        basic(user, user === 'disabled' ? password : 'another password'),
      )
      return status === 200
    })
    t.equal((await access.listAccessTokens(user)).length, 0, 'none is there')
    const last = given.slice(-20)
    const replies = await Promise.all(
      last.map((one) => postForm(server, { grant_type: 'refresh_token', refresh_token: one })),
    )
    t.same(replies.filter(({ status }) => status === 200).length, 0, 'none of the last is good')
  })
}

/** Compares when it is told to: what happens meanwhile is the test's. */
class HeldPasswords extends Passwords {
  begun: () => void = () => undefined
  goOn: Promise<void> = Promise.resolve()

  override async verify(): Promise<Verdict> {
    this.begun()
    await this.goOn
    return { isRight: true, isOutdated: false }
  }
}

for (const [what, change] of Object.entries({
  'a changed password': () => access.setPassword('held', otherHash),
  'a user who was disabled': () => access.setDisabled('held', true),
  'a user who was removed': () => access.removeUser('held'),
})) {
  t.test(`S87: a password that is compared while it ends proves nothing: ${what}`, async (t) => {
    const passwords = new HeldPasswords()
    t.teardown(() => passwords.close())
    const throttle = new Throttle()
    const accounts = new Accounts(access, { passwords, throttle, onLogin: () => undefined })
    let goOn: () => void = () => undefined
    passwords.goOn = new Promise((resolve) => {
      goOn = resolve
    })
    const begun = new Promise<void>((resolve) => {
      passwords.begun = resolve
    })
    const login = accounts.login('held', password, '192.0.2.1')
    await begun
    await change()
    // The old rights count as current for a moment: the comparison takes longer than that.
    await eventually('what was read is old', () => accounts.recentVersion === undefined)
    goOn()
    t.equal(await login, undefined)
    t.equal(await accounts.recall('held', 1, undefined), undefined, 'and nothing of it is remembered')
    await access.addUser({ name: 'held', passwordHash: otherHash, isAdmin: false }, Date.now())
    await access.setDisabled('held', false)
  })
}

// ---------------------------------------------------------------------------------------------
// How many
// ---------------------------------------------------------------------------------------------

t.test('S103: a user has a hundred refresh tokens, and those that are used stay', async (t) => {
  const road = roads['GET with offline_token'] ?? refresh
  const inUse = (await road('busy', password)).refresh_token ?? ''
  const idOf = (text: string) => text.split('_')[1] ?? ''
  await access.touchAccessTokens([idOf(inUse)], Date.now())
  const own = await registry.accessToken('busy', ['team/**:pull'], { name: 'ci' })
  const given: string[] = []
  for (let round = 0; round < 300; round++) given.push((await road('busy', password)).refresh_token ?? '')
  const listed = await access.listAccessTokens('busy')
  const refreshTokens = listed.filter(({ name }) => name.startsWith(refreshTokenPrefix))
  t.equal(refreshTokens.length, 100)
  const ids = new Set(listed.map(({ id }) => id))
  t.ok(ids.has(idOf(inUse)), 'one that was used gives way to none that was not')
  t.ok(ids.has(idOf(own)), 'access tokens with a name of their own do not count')
  t.ok(ids.has(idOf(given.at(-1) ?? '')), 'the newest is there')
  t.notOk(ids.has(idOf(given[0] ?? '')), 'the oldest is not')
  t.equal(
    (await postForm(server, { grant_type: 'refresh_token', refresh_token: given.at(-1) ?? '' })).status,
    200,
  )
  t.equal((await postForm(server, { grant_type: 'refresh_token', refresh_token: inUse })).status, 200)
})

t.test('S103: refresh tokens whose time is over go, whoever they belong to', async (t) => {
  const epoch = (await access.findUser('ben'))?.epoch ?? 0
  const one = { user: 'ben', secretHash: 'x', scopes: [], createdAt: 0, expiresAt: 5 }
  t.equal(
    await access.addRefreshToken({ ...one, id: 'old', name: `${refreshTokenPrefix}old` }, epoch, 100),
    true,
  )
  await access.addAccessToken({ ...one, id: 'named', name: 'old' })
  await (roads['GET with offline_token'] ?? refresh)('ann', password)
  t.same(await idsOf('ben'), ['named'], 'one that somebody named stays and is listed as over')
})

// ---------------------------------------------------------------------------------------------
// What a token is for bounds what it is used for
// ---------------------------------------------------------------------------------------------

t.test('S91: a token mounts from no repository that it may not pull from', async (t) => {
  const [first, second, third, open] = [randomBlob(500), randomBlob(500), randomBlob(500), randomBlob(500)]
  await pushBlobs(root, 'other/secret', first, second, third)
  await pushBlobs(root, 'public/app', open)
  const tokenFor = async (...scopes: string[]) =>
    as(server, bearer(await getToken(server, basic('root'), scopes)))
  const narrow = await tokenFor('repository:mine/x:pull,push')
  const mount = (digest: string, from?: string) =>
    `/v2/mine/x/blobs/uploads/?mount=${digest}${from === undefined ? '' : `&from=${from}`}`
  for (const [digest, source] of [
    [first.digest, 'other/secret'],
    [first.digest, undefined],
    [open.digest, 'public/app'],
    [open.digest, undefined],
  ] as const) {
    const what = `from ${source ?? 'wherever'}`
    t.equal((await narrow.request('POST', mount(digest, source))).status, 202, `${what}: an ordinary session`)
    t.equal((await narrow.request('HEAD', `/v2/mine/x/blobs/${digest}`)).status, 404, `${what}: nothing came`)
    t.equal(
      (await narrow.request('GET', `/v2/${source ?? 'other/secret'}/blobs/${digest}`)).status,
      401,
      what,
    )
  }
  const catalog = await tokenFor('repository:mine/x:pull,push', 'registry:catalog:*')
  for (const source of ['other/secret', undefined])
    t.equal(
      (await catalog.request('POST', mount(first.digest, source))).status,
      202,
      'a catalog is no source',
    )

  // What clients are told to ask for is enough: with a source, and without.
  for (const [digest, source] of [
    [first.digest, 'other/secret'],
    [second.digest, undefined],
  ] as const) {
    const path = mount(digest, source)
    const { scope = '' } = challengeOf(await server.request('POST', path))
    t.equal((await (await tokenFor(scope)).request('POST', path)).status, 201, scope)
    t.equal((await narrow.request('HEAD', `/v2/mine/x/blobs/${digest}`)).status, 200)
  }

  // A token for mounts is worth what its owner is.
  await registry.grant('user:ben', 'mine/**', 'push')
  await eventually('the grant is known', async () => {
    const token = await getToken(server, basic('ben'), ['repository:mine/x:push'])
    return accessOf(token).length > 0
  })
  const scopes = ['repository:mine/x:pull,push', 'registry:mount:*', 'repository:other/secret:pull']
  const ben = as(server, bearer(await getToken(server, basic('ben'), scopes)))
  for (const source of ['other/secret', undefined])
    t.equal((await ben.request('POST', mount(third.digest, source))).status, 202)
  t.equal((await ben.request('HEAD', `/v2/mine/x/blobs/${third.digest}`)).status, 404)
})

t.test('S91: search shows a token no names beyond what it is for', async (t) => {
  const search = async (...scopes: string[]) => {
    const token = await getToken(server, basic('root'), scopes)
    const path = '/v1/search?q=app'
    const reply = await server.request('GET', path, { headers: { Authorization: bearer(token) } })
    return reply
      .json<{ results: { name: string }[] }>()
      .results.map(({ name }) => name)
      .sort()
  }
  t.same(await search(), [])
  t.same(await search('repository:team/app:pull'), ['team/app'])
  t.same(await search('registry:mount:*'), [])
  t.same(await search('registry:catalog:search'), ['prod/app', 'team/app'])
  const narrow = as(
    server,
    bearer(await getToken(server, basic('root'), ['repository:team/app:pull', 'registry:mount:*'])),
  )
  t.equal(
    inShort(await narrow.request('GET', '/v2/_catalog')),
    '401 UNAUTHORIZED insufficient_scope for registry:catalog:*',
  )
  const manifest = image()
  await push(root, 'prod/app', '2', manifest)
  for (const path of [`referrers/${manifest.digest}`, 'tags/list', 'manifests/2'])
    t.equal((await narrow.request('GET', `/v2/prod/app/${path}`)).status, 401, path)
})

everyReplyKeptTheRules(t)
