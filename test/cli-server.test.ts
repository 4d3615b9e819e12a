import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import bcrypt from 'bcryptjs'
import t, { type Test } from 'tap'
import { addUsers, commandsOn, did, refused } from './commands.js'
import {
  eventually,
  everyReplyKeptTheRules,
  image,
  push,
  type Server,
  scratchDir,
  startServer,
} from './harness.js'

/** A server with two workers that asks for logins, and what runs commands on its data. */
async function online(t: Test) {
  const server = await startServer(t, { env: { BOATHOUSE_AUTH: 'token' }, config: { workers: 2 } })
  return { server, run: commandsOn(server.data) }
}

function basic(name: string, password: string): Record<string, string> {
  return { Authorization: `Basic ${Buffer.from(`${name}:${password}`).toString('base64')}` }
}

/** The harness's server, with these headers on each request. */
function as(server: Server, headers: Record<string, string>): Server {
  return {
    ...server,
    request: (method, path, options = {}) =>
      server.request(method, path, { ...options, headers: { ...headers, ...options.headers } }),
  }
}

/** The status of one request on a connection of its own. */
async function statusOf(
  server: Server,
  path: string,
  headers: Record<string, string>,
  method = 'GET',
): Promise<number> {
  return (await server.request(method, path, { headers, fresh: true })).status
}

/** A bearer token for these scopes. */
async function bearer(
  server: Server,
  name: string,
  password: string,
  scope: string,
): Promise<Record<string, string>> {
  const path = `/auth/token?service=boathouse&scope=${encodeURIComponent(scope)}`
  const reply = await server.request('GET', path, { headers: basic(name, password), fresh: true })
  if (reply.status !== 200) throw new Error(`no token for ${name}: ${reply.status} ${reply.text}`)
  return { Authorization: `Bearer ${reply.json<{ token: string }>().token}` }
}

let marks = 0

/**
 * Asserts that both workers come to answer with this status, and that no request that begins a second from now
 * or later is answered otherwise. Workers take connections in turn; the log says who answered.
 */
async function soonEverywhere(
  t: Test,
  server: Server,
  status: number,
  path: string,
  headers: Record<string, string>,
  what: string,
): Promise<void> {
  const changed = Date.now()
  const answered = new Set<unknown>()
  let last = 0
  while (answered.size < 2 && last < 1000) {
    const mark = `probe-${++marks}`
    const begun = Date.now() - changed
    const actual = await statusOf(server, path, { ...headers, 'User-Agent': mark })
    const line = await eventually('the log tells of the probe', () =>
      server.logs().find(({ agent }) => agent === mark),
    )
    if (actual === status) answered.add(line.worker)
    else {
      answered.clear()
      last = begun
    }
    if (begun > 20_000) break
  }
  t.ok(
    last < 1000 && answered.size === 2,
    `${what}: ${status} from both workers, last otherwise after ${last} ms`,
  )
}

t.test('users: add, passwd, disable, enable and remove hold on all workers within a second', async (t) => {
  const { server, run } = await online(t)
  t.match(server.stderr(), /there are no users.* user add NAME --admin/)
  t.match(server.stdout()[2], /^Add the first user: .* user add NAME --admin --config /)
  t.equal(await statusOf(server, '/v2/', basic('ann', 'first words')), 401)

  const added = await did(t, run('user add ann --admin', 'first words\n'))
  t.equal(added.stdout, 'Added the admin ann.\n')
  t.match(added.stderr, /^(?:A server that only this machine reaches [^\n]+\n)?$/)
  await soonEverywhere(t, server, 200, '/v2/', basic('ann', 'first words'), 'the login')
  t.equal(await statusOf(server, '/v2/', basic('ann', 'First words')), 401, 'another password')

  const manifest = image()
  await push(as(server, basic('ann', 'first words')), 'team/app', 'v1', manifest)
  const tags = '/v2/team/app/tags/list'
  const old = await bearer(server, 'ann', 'first words', 'repository:team/app:pull')
  await soonEverywhere(t, server, 200, tags, old, 'a bearer token')

  await did(t, run('user passwd ann', 'second words\r\nnot this line\n'))
  await soonEverywhere(t, server, 401, tags, old, 'a token from before passwd')
  t.equal(await statusOf(server, '/v2/', basic('ann', 'first words')), 401)
  t.equal(await statusOf(server, '/v2/', basic('ann', 'second words')), 200)

  const newer = await bearer(server, 'ann', 'second words', 'repository:team/app:pull')
  await soonEverywhere(t, server, 200, tags, newer, 'a new bearer token')
  const disabled = await did(t, run('user disable ann --last-admin'))
  t.match(disabled.stdout, /^Disabled ann/)
  await soonEverywhere(t, server, 401, tags, newer, 'a token of somebody disabled')
  await soonEverywhere(t, server, 401, '/v2/', basic('ann', 'second words'), 'a login of somebody disabled')
  t.match((await did(t, run('user disable ann --last-admin'))).stdout, /already/, 'once more changes nothing')

  await did(t, run('user enable ann'))
  await soonEverywhere(t, server, 200, '/v2/', basic('ann', 'second words'), 'the login of somebody enabled')
  t.equal(await statusOf(server, tags, newer), 401, 'what ended with disabling stays ended')

  await did(t, run('user admin ann off --last-admin'))
  await soonEverywhere(t, server, 403, tags, basic('ann', 'second words'), 'an admin that is none any more')
  await did(t, run('user admin ann on'))
  await soonEverywhere(t, server, 200, tags, basic('ann', 'second words'), 'an admin again')

  await did(t, run('user remove ann --yes --last-admin'))
  await soonEverywhere(t, server, 401, '/v2/', basic('ann', 'second words'), 'the login of somebody removed')
})

t.test('grants hold at once: user, group, authenticated, anonymous', async (t) => {
  const { server, run } = await online(t)
  await addUsers(t, run, 'bob', 'eve', 'root')
  await did(t, run('user admin root on'))
  await push(as(server, basic('root', 'secret')), 'team/app', 'v1', image())
  const tags = '/v2/team/app/tags/list'
  const bob = basic('bob', 'secret')
  const eve = basic('eve', 'secret')

  await soonEverywhere(t, server, 403, tags, bob, 'without a grant')
  t.equal(
    (await did(t, run('grant pull team/** --to user:bob'))).stdout,
    'Granted pull team/** to user:bob.\n',
  )
  await soonEverywhere(t, server, 200, tags, bob, 'a grant to a user')
  t.equal(await statusOf(server, tags, eve), 403)
  t.match((await did(t, run('grant pull team/** --to user:bob'))).stdout, /was granted already/)
  await did(t, run('revoke pull team/** --to user:bob'))
  await soonEverywhere(t, server, 403, tags, bob, 'a revoked grant')

  const empty = await did(t, run('grant pull,push team/app --to group:devs'))
  t.match(empty.stderr, /^Nobody is in the group devs yet/)
  await did(t, run('user groups bob devs ops'))
  await soonEverywhere(t, server, 200, tags, bob, 'a grant to a group')
  t.equal(await statusOf(server, '/v2/team/app/blobs/uploads/', bob, 'POST'), 202, 'with push')
  t.equal(await statusOf(server, tags, eve), 403, 'others are in no group')
  t.match((await did(t, run('grant delete team/app --to group:devs'))).stderr, /^$/, 'now it has a member')
  await did(t, run('user groups bob --none'))
  await soonEverywhere(t, server, 403, tags, bob, 'somebody who left the group')

  await did(t, run('grant pull ** --to authenticated'))
  await soonEverywhere(t, server, 200, tags, eve, 'a grant to all who log in')
  t.equal(await statusOf(server, tags, {}), 401)
  await did(t, run('grant pull team/app --to anonymous'))
  await soonEverywhere(t, server, 200, tags, {}, 'a grant to everybody')
})

t.test('access tokens: printed once, limited to their scope, revoked within a second', async (t) => {
  const { server, run } = await online(t)
  await did(t, run('user add ci', 'ci secret'))
  await did(t, run('grant push team/** --to user:ci'))
  const made = await did(t, run('token create --user ci --name build --scope team/app:pull --expires 1h'))
  t.match(made.stdout, /^bht_[\w-]+\n$/, 'the token is alone on standard output')
  t.match(made.stderr, /^Made the token build of ci for team\/app:pull, good until 20\d\d-/)
  const token = made.stdout.trim()
  t.notMatch(made.stderr, token)

  await soonEverywhere(t, server, 200, '/v2/', basic('ci', token), 'a login with the token')
  const uploads = '/v2/team/app/blobs/uploads/'
  t.equal(await statusOf(server, uploads, basic('ci', token), 'POST'), 403, 'the scope has no push')
  t.equal(await statusOf(server, uploads, basic('ci', 'ci secret'), 'POST'), 202, 'its owner has')
  t.equal(await statusOf(server, '/v2/', basic('eve', token)), 401, 'it is good for its owner alone')

  const all = (await did(t, run('token create --user ci --name all --json'))).stdout
  const { expires, ...described } = JSON.parse(all) as { token: string; expires: string }
  t.match(described, { user: 'ci', name: 'all', scopes: ['**:admin'], used: null, token: /^bht_/ })
  t.ok(Math.abs(Date.parse(expires) - Date.now() - 90 * 86_400_000) < 60_000, '90 days unless written')
  t.equal(
    await statusOf(server, uploads, basic('ci', described.token), 'POST'),
    202,
    'all that its owner may',
  )
  t.equal(
    await statusOf(server, '/v2/other/blobs/uploads/', basic('ci', described.token), 'POST'),
    403,
    'and no more',
  )
  await did(t, run('token create --user ci --name forever --expires never'))
  const short = (await did(t, run('token create --user ci --name short --expires 1s'))).stdout.trim()
  await eventually(
    'the token is over',
    async () => (await statusOf(server, '/v2/', basic('ci', short))) === 401,
  )

  const table = (await did(t, run('token list'))).stdout
  t.match(table, /^USER +NAME +SCOPES +EXPIRES +LAST USED\n/)
  t.match(table, /\nci +build +team\/app:pull +20\S+Z +/)
  t.match(table, /\nci +forever +\*\*:admin +never +never\n/)
  t.match(table, /\nci +short .*\(over\)/)
  const list = JSON.parse((await did(t, run('token list --user ci --json'))).stdout) as { name: string }[]
  t.strictSame(
    list.map(({ name }) => name),
    ['all', 'build', 'forever', 'short'],
  )
  t.notMatch(JSON.stringify(list), /bht_|secret|hash/i)

  const session = await bearer(server, 'ci', token, 'repository:team/app:pull')
  await soonEverywhere(t, server, 404, '/v2/team/app/tags/list', session, 'a bearer token got with it')
  await did(t, run('token revoke --user ci --name build'))
  await soonEverywhere(t, server, 401, '/v2/team/app/tags/list', session, 'what was got with a revoked token')
  await soonEverywhere(t, server, 401, '/v2/', basic('ci', token), 'a revoked token')
  t.equal(await statusOf(server, '/v2/', basic('ci', 'ci secret')), 200, 'its owner is not touched')
})

t.test('an htpasswd file is imported; other hashes and existing names are named', async (t) => {
  const { server, run } = await online(t)
  await did(t, run('user add old', 'old secret'))
  const hash = bcrypt.hashSync('bcrypt secret', 5)
  const file = join(scratchDir(t), 'htpasswd')
  const lines = [
    '# users',
    `one:${hash}`,
    '',
    `two:${hash.replace('$2b$', '$2y$')}\r`,
    `old:${hash}`,
    'md5:$apr1$YgJ1zVhb$Xk0z7b3hGk1FJ6ZcKqv0D/',
    'sha:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=',
    'plain:in-the-clear',
    `-bad:${hash}`,
    'nothing',
    `dear:$2y$31$${'a'.repeat(53)}`,
  ]
  writeFileSync(file, lines.join('\n'))
  const first = await run(`user import ${file}`)
  t.equal(first.code, 1, 'some lines could not be taken')
  t.equal(first.stdout, 'Added 2 users, left 1 that were there, skipped 6 lines.\n')
  const said = first.stderr.trimEnd().split('\n')
  t.match(said, [
    /^Left old as it was/,
    /line 6: the hash of md5 is MD5 \(apr1\), and only bcrypt/,
    /line 7: the hash of sha is SHA-1, /,
    /line 8: the hash of plain is of an unknown kind, /,
    /line 9: The name of a user has /,
    /line 10: there is no colon/,
    /line 11: the hash of dear is bcrypt, but malformed or of an unusual cost/,
  ])
  t.equal(said.length, 7)
  t.notMatch(first.stderr, /\$apr1|\{SHA\}|in-the-clear|\$2[aby]/, 'no hash is shown')

  await soonEverywhere(t, server, 200, '/v2/', basic('one', 'bcrypt secret'), 'the login of an imported user')
  t.equal(await statusOf(server, '/v2/', basic('two', 'bcrypt secret')), 200)
  t.equal(await statusOf(server, '/v2/', basic('one', 'bcrypt secreT')), 401)
  t.equal(await statusOf(server, '/v2/', basic('old', 'old secret')), 200, 'who was there keeps the password')
  t.equal(await statusOf(server, '/v2/', basic('old', 'bcrypt secret')), 401)

  writeFileSync(file, `one:${hash}\n`)
  const again = await did(t, run(`user import ${file}`))
  t.equal(again.stdout, 'Added 0 users, left 1 that were there, skipped 0 lines.\n')
  t.match(await did(t, run('user import -', `three:${hash}`)), { stdout: /^Added 1 users/ })
  await refused(t, run('user import missing'), 1, /^Cannot read missing, which does not exist\.$/m)
})

t.test('a rotated key signs, and what the old one signed stays good', async (t) => {
  const { server, run } = await online(t)
  await did(t, run('user add ann --admin', 'secret words'))
  await push(as(server, basic('ann', 'secret words')), 'app', 'v1', image())
  const tags = '/v2/app/tags/list'
  const before = await bearer(server, 'ann', 'secret words', 'repository:app:pull')
  t.equal((await did(t, run('key list'))).stdout.match(/signs$/gm)?.length, 1)

  await did(t, run('key rotate'))
  t.match((await did(t, run('key list'))).stdout, /^KEY +USE\n\S+ +signs\n\S+ +verifies what it signed\n$/)
  const idOf = ({ Authorization: header = '' }) =>
    (JSON.parse(Buffer.from(header.slice(7).split('.')[0] ?? '', 'base64url').toString()) as { kid: string })
      .kid
  // Tokens of either key are taken by either worker, also while not all have seen the new one.
  let refusals = 0
  await eventually('the new key signs', async () => {
    const fresh = await bearer(server, 'ann', 'secret words', 'repository:app:pull')
    for (let probe = 0; probe < 4; probe++) if ((await statusOf(server, tags, fresh)) !== 200) refusals++
    if ((await statusOf(server, tags, before)) !== 200) refusals++
    return idOf(fresh) !== idOf(before)
  })
  t.equal(refusals, 0)
  await soonEverywhere(t, server, 200, tags, before, 'a token of the old key')
})

everyReplyKeptTheRules(t)
