import t from 'tap'
import { createAccessToken } from '../../src/auth/access-tokens.js'
import { commandsOn, did } from '../commands.js'
import { eventually, everyReplyKeptTheRules, image, push, randomBlob, type Server } from '../harness.js'
import { as, askToken, basic, getToken, password, postForm, startRegistry } from './fixture.js'

/*
 * The audit log of the server: one line for each login, token and deletion, with who and from where, and no secret.
 * What commands change is in cli-secrets.test.ts.
 */
const registry = await startRegistry(t, { config: { trustedProxies: ['127.0.0.1'] } })
const { server, access } = registry
await registry.addUser('root', { admin: true })
for (const name of ['ann', 'off']) await registry.addUser(name, { disabled: name === 'off' })
await registry.grant('user:ann', 'team/**', 'delete')

let addresses = 0
/** An address of the client that no other request has. */
const newAddress = () => `203.0.113.${++addresses}`

/** The same server, for a client at this address. */
function from(address: string, authorization: string): Server {
  const client = as(server, authorization)
  return {
    ...client,
    request: (method, path, options) =>
      client.request(method, path, {
        ...options,
        headers: { ...options?.headers, 'X-Forwarded-For': address },
      }),
  }
}

type Line = Record<string, unknown>

/** The audit lines about this address once there are as many, without what every line of the log has. */
async function auditOf(address: string, count: number): Promise<Line[]> {
  const lines = () => server.logs().filter((line) => line.audit !== undefined && line.remote === address)
  await eventually(`${count} audit lines of ${address}`, () => lines().length >= count)
  return lines().map(({ level, time, pid, hostname, name, worker, ...line }) => {
    if (level !== 30 || typeof time !== 'number') throw new Error('not a line of level info with a time')
    return line
  })
}

const entry = (event: string, user: string, remote: string, more: Line = {}): Line => ({
  audit: event,
  msg: event,
  user,
  remote,
  ...more,
})

const wrong = 'CANARY-wrong-password'

for (const [who, user, secret] of [
  ['a known user', 'ann', wrong],
  ['an unknown user', 'nobody-of-that-name', wrong],
  ['a disabled user with the right password', 'off', password],
  ['an access token that nobody has', 'ann', createAccessToken().text],
] as const) {
  t.test(`login refused: ${who}, on /v2/, at the token endpoint and with a form`, async (t) => {
    const addresses = [newAddress(), newAddress(), newAddress()] as const
    const client = (address: string) => from(address, basic(user, secret))
    t.equal((await client(addresses[0]).request('GET', '/v2/')).status, 401)
    t.equal((await askToken(client(addresses[1]), basic(user, secret))).status, 401)
    const form = { grant_type: 'password', username: user, password: secret, service: 'boathouse' }
    const reply = await postForm(server, form, { 'X-Forwarded-For': addresses[2] })
    t.equal(reply.status, 401)
    for (const address of addresses) {
      t.strictSame(await auditOf(address, 1), [entry('login refused', user, address)])
    }
    t.notOk(server.stderr().includes(secret), 'the password is nowhere in the log')
    t.notOk(server.stderr().includes(basic(user, secret).slice(6)), 'nor as it was sent')
  })
}

t.test('login refused: a token in the place of the name is not written down', async (t) => {
  const address = newAddress()
  const { text } = createAccessToken()
  t.equal((await from(address, basic(text, 'x')).request('GET', '/v2/')).status, 401)
  const [line] = await auditOf(address, 1)
  t.match(line, { audit: 'login refused', remote: address })
  t.notOk(server.stderr().includes(text))
})

t.test('login: one line for a password that was compared, none for one that is remembered', async (t) => {
  const [first, second] = [newAddress(), newAddress()]
  await registry.addUser('once')
  for (const address of [first, first, second]) {
    t.equal((await from(address, basic('once')).request('GET', '/v2/')).status, 200)
  }
  t.equal((await from(second, basic('once', wrong)).request('GET', '/v2/')).status, 401)
  t.strictSame(await auditOf(second, 1), [entry('login refused', 'once', second)])
  t.strictSame(await auditOf(first, 1), [entry('login', 'once', first)])
})

t.test('token: one line for each, with what it is for and who asked', async (t) => {
  const address = newAddress()
  const scopes = ['repository:team/app:pull,push', 'repository:other/app:pull']
  const reply = await askToken(from(address, basic('ann')), basic('ann'), scopes, { client_id: 'docker' })
  t.equal(reply.status, 200)
  const lines = await auditOf(address, 2)
  t.strictSame(lines, [
    entry('login', 'ann', address),
    entry('token', 'ann', address, { scope: 'repository:team/app:pull', client: 'docker' }),
  ])
  t.notOk(server.stderr().includes(reply.json<{ token: string }>().token))
})

t.test('token: one for nobody in particular has no name', async (t) => {
  const address = newAddress()
  t.equal((await askToken(from(address, basic('', '')), basic('', ''))).status, 200)
  t.strictSame(await auditOf(address, 1), [entry('token', '', address, { scope: '', client: '' })])
})

t.test('delete: one line for each tag, manifest and blob that goes, none for what does not', async (t) => {
  const address = newAddress()
  const layer = randomBlob(5000)
  const content = image({ layers: [layer] })
  await push(as(server, basic('root')), 'team/gone', '1', content)
  const ann = from(address, basic('ann'))
  const repository = 'team/gone'
  const blob = layer.digest
  const status = async (path: string) => (await ann.request('DELETE', `/v2/${repository}/${path}`)).status
  t.equal(await status('manifests/1'), 202)
  t.equal(await status(`manifests/${content.digest}`), 202)
  t.equal(await status(`blobs/${blob}`), 202)
  t.equal(await status('manifests/1'), 404)
  t.equal((await ann.request('DELETE', '/v2/other/app/manifests/1')).status, 403)
  t.equal((await ann.request('DELETE', `/v2/${repository}/blobs/${blob}`)).status, 404)
  const events = (await auditOf(address, 3)).filter(({ audit }) => audit !== 'login')
  t.strictSame(events, [
    entry('delete', 'ann', address, { repository, manifest: '1' }),
    entry('delete', 'ann', address, { repository, manifest: content.digest }),
    entry('delete', 'ann', address, { repository, blob }),
  ])
})

/** The lines of requests from this address once there are as many: who, and what came of it. */
async function requestsOf(address: string, count: number): Promise<Line[]> {
  const lines = () => server.logs().filter((line) => line.msg === 'request' && line.remote === address)
  await eventually(`${count} requests of ${address}`, () => lines().length >= count)
  return lines().map(({ route, status, user, accessToken, accessTokenId }) => ({
    route,
    status,
    ...(user === undefined ? {} : { user }),
    ...(accessToken === undefined ? {} : { accessToken, accessTokenId }),
  }))
}

t.test('S106: a refused request is logged with who sent it, where that is known', async (t) => {
  const address = newAddress()
  const token = await getToken(server, basic('ann'), ['repository:team/app:pull'])
  for (const authorization of [basic('ann'), `Bearer ${token}`])
    await from(address, authorization).request('PUT', '/v2/other/app/manifests/1')
  await from(address, basic('ann')).request('GET', '/v2/team/app/manifests/none')
  await postForm(
    server,
    { grant_type: 'password', username: 'ann', password, service: 'elsewhere' },
    { 'X-Forwarded-For': address },
  )
  await from(address, basic('ann', wrong)).request('GET', '/v2/')
  t.strictSame(await requestsOf(address, 5), [
    { route: 'putManifest', status: 403, user: 'ann' },
    { route: 'putManifest', status: 401, user: 'ann' },
    { route: 'getManifest', status: 404, user: 'ann' },
    { route: 'postToken', status: 400, user: 'ann' },
    { route: 'getBase', status: 401 },
  ])
})

t.test(
  'S106: requests, audit and the history of tags name the access token, by whatever way it is used',
  async (t) => {
    await registry.grant('user:ann', 'jobs/**', 'admin')
    const text = await registry.accessToken('ann', ['jobs/**:admin'], { name: 'nightly' })
    const accessTokenId = text.split('_')[1]
    const job = { user: 'ann', accessToken: 'nightly', accessTokenId }
    const scope = 'repository:jobs/app:pull,push,delete'
    const address = newAddress()
    const exchanged = await askToken(from(address, basic('ann', text)), basic('ann', text), [scope])
    const asked = { grant_type: 'refresh_token', refresh_token: text, scope }
    const refreshed = await postForm(server, asked, { 'X-Forwarded-For': address })
    const bearers = [exchanged, refreshed].map((reply) => `Bearer ${reply.json<{ token: string }>().token}`)
    for (const authorization of [basic('ann', text), ...bearers]) {
      const client = from(address, authorization)
      const manifest = image()
      await push(client, 'jobs/app', 'v1', manifest)
      t.equal((await client.request('DELETE', '/v2/jobs/app/manifests/v1')).status, 202)
      t.equal((await client.request('DELETE', `/v2/jobs/app/manifests/${manifest.digest}`)).status, 202)
      t.not((await client.request('DELETE', '/v2/elsewhere/app/manifests/v1')).status, 202)
    }
    const requests = await requestsOf(address, 2 + 3 * 6)
    for (const { route, status, ...who } of requests) t.strictSame(who, job, `${route} ${status}`)
    t.ok(requests.some(({ status }) => status === 403) && requests.some(({ status }) => status === 401))
    const audited = await auditOf(address, 1 + 2 + 3 * 2)
    t.same([...new Set(audited.map(({ audit }) => audit))].sort(), ['delete', 'login', 'token'])
    for (const { user, accessToken, accessTokenId, audit } of audited)
      t.strictSame({ user, accessToken, accessTokenId }, job, `${audit}`)

    await push(as(server, basic('ann')), 'jobs/app', 'v1', image())
    const run = commandsOn(server.data)
    const told = JSON.parse((await did(t, run('tag history jobs/app:v1 --json'))).stdout) as Line[]
    t.same(
      told.map(({ how, by, token }) => ({ how, by, token })),
      [
        { how: 'push', by: 'ann', token: null },
        ...Array.from({ length: 3 }, () => ['delete', 'push'])
          .flat()
          .map((how) => ({
            how,
            by: 'ann',
            token: { id: accessTokenId, name: 'nightly' },
          })),
      ],
    )
    await access.removeAccessToken('ann', 'nightly')
    t.match(
      (await did(t, run('tag history jobs/app:v1'))).stdout,
      /push +ann \(token nightly\) /,
      'also when it is gone',
    )
    t.notOk(server.stderr().includes(text.split('_')[2] ?? text), 'its secret is nowhere')
  },
)

everyReplyKeptTheRules(t)
