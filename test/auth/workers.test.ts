import { Agent } from 'node:http'
import t from 'tap'
import { dataPaths } from '../../storage/data-folder.js'
import { KeyStore } from '../../storage/key-store.js'
import { eventually, everyReplyKeptTheRules, pause, processTree, type Reply } from '../harness.js'
import { basic, bearer, hashOf, headerOf, inShort, pool, startRegistry, tokenPath } from './fixture.js'

/*
 * Several processes serve one port and remember who is who, each for itself. What is revoked must be over on all
 * of them within a second, and what one of them issues must be good on the others.
 */
const registry = await startRegistry(t, { config: { workers: 2 } })
const { server, access } = registry

const users = {
  byPassword: ['disabled', 'changed', 'removed', 'replaced'],
  byToken: ['disabled', 'changed', 'removed', 'replaced', 'ungrouped', 'demoted', 'ungranted', 'machinist'],
}
await registry.addUser('rotator')
for (const name of users.byToken)
  await registry.addUser(name, { admin: name === 'demoted', groups: name === 'ungrouped' ? ['devs'] : [] })
await registry.grant('group:devs', 'team/**', 'push')
for (const name of ['disabled', 'changed', 'removed', 'replaced', 'ungranted', 'machinist'])
  await registry.grant(`user:${name}`, 'team/**', 'push')
const machine = await registry.accessToken('machinist', ['team/**:pull'], { name: 'machine' })
const survivor = await registry.accessToken('changed', ['team/**:pull'])

type Ask = (authorization: string, path?: string) => Promise<Reply>

/** One connection, and with it one worker. */
interface Line {
  ask: Ask
  agent: Agent
  worker: unknown
}

async function openLine(name: string): Promise<Line> {
  const agent = new Agent({ keepAlive: true, maxSockets: 1 })
  t.teardown(() => agent.destroy())
  const ask: Ask = (authorization, path = '/v2/') =>
    server.request('GET', path, { agent, headers: { Authorization: authorization } })
  const marker = `/v2/marker/${name}/tags/list`
  await ask('Basic Og==', marker)
  const line = await eventually('the request is in the log', () =>
    server.logs().find(({ path }) => path === marker),
  )
  return { ask, agent, worker: line.worker }
}

/** A line to each of the two workers. */
async function openLines(): Promise<Line[]> {
  const lines: Line[] = []
  for (let n = 0; lines.length < 2 && n < 20; n++) {
    const line = await openLine(`line-${n}`)
    if (lines.every(({ worker }) => worker !== line.worker)) lines.push(line)
    else line.agent.destroy()
  }
  if (lines.length < 2) throw new Error('two workers were not found')
  return lines
}

const lines = await openLines()
const [one, two] = lines as [Line, Line]
const onBoth = (authorization: string, path?: string) => pool(2, lines, ({ ask }) => ask(authorization, path))

async function newToken(ask: Ask, authorization: string, scope = ''): Promise<string> {
  const reply = await ask(authorization, `${tokenPath}?scope=${scope}`)
  if (reply.status !== 200) throw new Error(`no token: ${reply.text}`)
  return reply.json<{ token: string }>().token
}

t.test('workers: two processes serve, and each line leads to one of them', async (t) => {
  t.equal(processTree(server.pid).length, 3)
  t.not(one.worker, two.worker)
})

t.test('JW: rotation: a token of the new key is good on every worker at once', async (t) => {
  const keys = new KeyStore(dataPaths(server.data).keys)
  const old = await newToken(one.ask, basic('rotator'))
  const fromOther = await newToken(two.ask, basic('rotator'))
  t.same(headerOf(fromOther), headerOf(old), 'both sign with one key')

  // Workers look for new keys from time to time. The second one has just looked when the key comes, and the first
  // one looks afterwards.
  await pause(1200)
  t.equal((await two.ask(bearer(`${fromOther.slice(0, -3)}AAA`))).status, 401)
  await keys.add(Date.now())
  const signed = await newToken(one.ask, basic('rotator'))
  const seen = await two.ask(bearer(signed))
  t.equal(inShort(seen), '200', `key ${headerOf(signed).kid === headerOf(old).kid ? 'old' : 'new'}`)

  await eventually('the new key signs on both workers', async () => {
    const kids = await pool(2, lines, async ({ ask }) => headerOf(await newToken(ask, basic('rotator'))).kid)
    return kids.every((kid) => kid !== headerOf(old).kid)
  })
  for (const token of [old, fromOther]) {
    for (const reply of await onBoth(bearer(token)))
      t.equal(inShort(reply), '200', 'tokens of the old key stay good')
  }
})

t.test('JW: rotation under load refuses nobody', async (t) => {
  const keys = new KeyStore(dataPaths(server.data).keys)
  const kids = new Set<unknown>()
  const refused = new Set<string>()
  const until = performance.now() + 2500
  let rotated = false
  while (performance.now() < until || (kids.size < 2 && performance.now() < until + 20_000)) {
    const tokens = await pool(2, lines, ({ ask }) => newToken(ask, basic('rotator')))
    for (const token of tokens) {
      kids.add(headerOf(token).kid)
      for (const reply of await onBoth(bearer(token))) if (reply.status !== 200) refused.add(inShort(reply))
    }
    if (!rotated) await keys.add(Date.now())
    rotated = true
  }
  t.same([...refused], [])
  t.equal(kids.size, 2, 'the new key has come into use')
})

const path = '/v2/team/none/tags/list'
const scope = 'repository:team/none:pull,push'

t.test('JW-06, S05: what is revoked is over within a second, on every worker', async (t) => {
  const credentials: Record<string, string> = {
    'machine, as password': basic('machinist', machine),
    'machine, exchanged': bearer(await newToken(one.ask, basic('machinist', machine), scope)),
    'access token of who changed the password': basic('changed', survivor),
  }
  for (const name of users.byPassword) credentials[`${name}, password`] = basic(name)
  for (const name of users.byToken)
    credentials[`${name}, token`] = bearer(await newToken(one.ask, basic(name), scope))
  for (const [who, authorization] of Object.entries(credentials)) {
    for (const reply of await onBoth(authorization, path))
      t.equal(reply.code, 'NAME_UNKNOWN', `before: ${who}`)
  }

  const newHash = await hashOf('another password')
  await access.setDisabled('disabled', true)
  await access.setPassword('changed', newHash)
  await access.removeUser('removed')
  await access.removeUser('replaced')
  await access.addUser({ name: 'replaced', passwordHash: newHash, isAdmin: true }, Date.now())
  await access.setGroups('ungrouped', [])
  await access.setAdmin('demoted', false)
  await registry.revoke('user:ungranted', 'team/**', 'push')
  await access.removeAccessToken('machinist', 'machine')
  await pause(1000) // the promise that is tested here

  const better = '401 UNAUTHORIZED insufficient_scope for repository:team/none:pull'
  const invalid = '401 UNAUTHORIZED invalid_token for repository:team/none:pull'
  const login = '401 UNAUTHORIZED for repository:team/none:pull'
  const after: Record<string, string> = {
    'machine, as password': login,
    'machine, exchanged': invalid,
    'access token of who changed the password': '404 NAME_UNKNOWN',
    'disabled, password': login,
    'disabled, token': invalid,
    'changed, password': login,
    'changed, token': invalid,
    'removed, password': login,
    'removed, token': invalid,
    'replaced, password': login,
    'replaced, token': invalid,
    'ungrouped, token': better,
    'demoted, token': better,
    'ungranted, token': better,
    'machinist, token': '404 NAME_UNKNOWN',
  }
  t.same(Object.keys(after).sort(), Object.keys(credentials).sort(), 'all of them are tried')
  for (const [who, expected] of Object.entries(after)) {
    const replies = await onBoth(credentials[who] ?? '', path)
    t.same(replies.map(inShort), [expected, expected], who)
  }
})

t.test('JW-06: what is granted anew works within a second, too', async (t) => {
  const authorization = bearer(await newToken(two.ask, basic('ungranted'), scope))
  for (const reply of await onBoth(authorization, path)) t.equal(reply.status, 401)
  await registry.grant('user:ungranted', 'team/**', 'push')
  await access.setDisabled('disabled', false)
  await pause(1000) // the promise that is tested here
  const renewed = bearer(await newToken(one.ask, basic('ungranted'), scope))
  t.same((await onBoth(renewed, path)).map(inShort), ['404 NAME_UNKNOWN', '404 NAME_UNKNOWN'])
  t.same((await onBoth(basic('disabled'), path)).map(inShort), ['404 NAME_UNKNOWN', '404 NAME_UNKNOWN'])
})

everyReplyKeptTheRules(t)
