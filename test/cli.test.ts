import { spawnSync } from 'node:child_process'
import { chownSync, cpSync, existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import bcrypt from 'bcryptjs'
import Database from 'better-sqlite3'
import t, { type Test } from 'tap'
import { parse } from 'yaml'
import { type CommandOptions, commandLine, type Run, runCommand, startCommand } from './commands.js'
import {
  eventually,
  everyReplyKeptTheRules,
  filesBelow,
  image,
  push,
  type Server,
  scratchDir,
  startServer,
} from './harness.js'

const isRoot = process.getuid?.() === 0

/** A data folder that a server has prepared and left. */
const prepared = join(scratchDir(t), 'prepared')

t.before(async () => {
  const server = await startServer(t, { data: prepared, env: { BOATHOUSE_AUTH: 'token' } })
  await server.stop()
})

let copies = 0

/** A data folder of the test's own, without a server, and what runs commands on it. */
function offline(t: Test) {
  const data = join(scratchDir(t), `copy-${copies++}`)
  cpSync(prepared, data, { recursive: true })
  return { data, run: commandsOn(data) }
}

function commandsOn(data: string) {
  return (args: string, input = '', options: CommandOptions = {}) =>
    runCommand(data, args.split(' '), input, options)
}

/** Asserts that a command did what it was told, and gives what it said. */
async function did(t: Test, running: Promise<Run>): Promise<Run> {
  const run = await running
  t.equal(run.code, 0, run.stdout + run.stderr)
  return run
}

/** Asserts that a command refused with this exit code and these words, and said nothing else. */
async function refused(t: Test, running: Promise<Run>, code: 1 | 2, words: RegExp): Promise<void> {
  const run = await running
  t.equal(run.code, code, run.stderr)
  t.match(run.stderr, words)
  t.match(run.stderr, /^[A-Z"–-][^\n]+[.]\n$/, 'in one line')
  t.equal(run.stdout, '')
  t.notMatch(run.stderr, /\.js:\d+|node:internal/, 'without a stack')
}

function basic(name: string, password: string): Record<string, string> {
  return { Authorization: `Basic ${Buffer.from(`${name}:${password}`).toString('base64')}` }
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
 * Asserts that both workers come to answer so within a second from now. Workers take connections in turn; the
 * log says who answered.
 */
async function soonEverywhere(
  t: Test,
  server: Server,
  status: number,
  path: string,
  headers: Record<string, string>,
  what: string,
): Promise<void> {
  const started = Date.now()
  for (;;) {
    const mark = `probe-${++marks}`
    const statuses = new Set<number>()
    for (let probe = 0; probe < 6; probe++) {
      statuses.add(await statusOf(server, path, { ...headers, 'User-Agent': mark }))
    }
    const elapsed = Date.now() - started
    if (statuses.size === 1 && statuses.has(status)) {
      t.ok(elapsed < 1000, `${what}: everywhere after ${elapsed} ms`)
      const workers = await eventually('the log tells of the probes', () => {
        const lines = server.logs().filter(({ agent }) => agent === mark)
        return lines.length === 6 && new Set(lines.map(({ worker }) => worker))
      })
      t.equal(workers.size, 2, 'both workers were asked')
      return
    }
    if (elapsed > 5000) {
      t.fail(`${what}: still ${[...statuses].join()} after ${elapsed} ms`)
      return
    }
  }
}

/** A server with two workers that asks for logins, and what runs commands on its data. */
async function online(t: Test) {
  const server = await startServer(t, {
    env: { BOATHOUSE_AUTH: 'token' },
    config: { workers: 2 },
  })
  return { server, run: commandsOn(server.data) }
}

// ---------------------------------------------------------------------------------------------
// Together with a running server
// ---------------------------------------------------------------------------------------------

t.test('users: add, passwd, disable, enable and remove hold on all workers within a second', async (t) => {
  const { server, run } = await online(t)
  t.match(server.stderr(), /there are no users.*boathouse user add NAME --admin/)
  t.equal(await statusOf(server, '/v2/', basic('ann', 'first')), 401)

  const added = await did(t, run('user add ann --admin', 'first\n'))
  t.equal(added.stdout, 'Added the admin ann.\n')
  t.equal(added.stderr, '')
  await soonEverywhere(t, server, 200, '/v2/', basic('ann', 'first'), 'the login')
  t.equal(await statusOf(server, '/v2/', basic('ann', 'First')), 401, 'another password')

  const manifest = image()
  await push({ ...server, request: authorized(server, basic('ann', 'first')) }, 'team/app', 'v1', manifest)
  const tags = '/v2/team/app/tags/list'
  const old = await bearer(server, 'ann', 'first', 'repository:team/app:pull')
  await soonEverywhere(t, server, 200, tags, old, 'a bearer token')

  await did(t, run('user passwd ann', 'second\r\nnot this line\n'))
  await soonEverywhere(t, server, 401, tags, old, 'a token from before passwd')
  t.equal(await statusOf(server, '/v2/', basic('ann', 'first')), 401)
  t.equal(await statusOf(server, '/v2/', basic('ann', 'second')), 200)

  const newer = await bearer(server, 'ann', 'second', 'repository:team/app:pull')
  await soonEverywhere(t, server, 200, tags, newer, 'a new bearer token')
  const disabled = await did(t, run('user disable ann'))
  t.match(disabled.stdout, /^Disabled ann/)
  await soonEverywhere(t, server, 401, tags, newer, 'a token of somebody disabled')
  await soonEverywhere(t, server, 401, '/v2/', basic('ann', 'second'), 'a login of somebody disabled')
  t.match((await did(t, run('user disable ann'))).stdout, /already/, 'once more changes nothing')

  await did(t, run('user enable ann'))
  await soonEverywhere(t, server, 200, '/v2/', basic('ann', 'second'), 'the login of somebody enabled')
  t.equal(await statusOf(server, tags, newer), 401, 'what ended with disabling stays ended')

  await did(t, run('user admin ann off'))
  await soonEverywhere(t, server, 403, tags, basic('ann', 'second'), 'an admin that is none any more')
  await did(t, run('user admin ann on'))
  await soonEverywhere(t, server, 200, tags, basic('ann', 'second'), 'an admin again')

  await did(t, run('user remove ann --yes'))
  await soonEverywhere(t, server, 401, '/v2/', basic('ann', 'second'), 'the login of somebody removed')
})

/** The harness's request, with these headers on each. */
function authorized(server: Server, headers: Record<string, string>): Server['request'] {
  return (method, path, options = {}) =>
    server.request(method, path, { ...options, headers: { ...headers, ...options.headers } })
}

t.test('grants hold at once: user, group, authenticated, anonymous', async (t) => {
  const { server, run } = await online(t)
  for (const name of ['bob', 'eve']) await did(t, run(`user add ${name}`, `${name} secret`))
  await did(t, run('user add root --admin', 'root secret'))
  await push(
    { ...server, request: authorized(server, basic('root', 'root secret')) },
    'team/app',
    'v1',
    image(),
  )
  const tags = '/v2/team/app/tags/list'
  const bob = basic('bob', 'bob secret')
  const eve = basic('eve', 'eve secret')

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
  await refused(t, run('revoke pull team/** --to user:bob'), 1, /Nothing was changed/).catch(() => undefined)

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
    /line 10: /,
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
  await did(t, run('user add ann --admin', 'secret'))
  await push({ ...server, request: authorized(server, basic('ann', 'secret')) }, 'app', 'v1', image())
  const tags = '/v2/app/tags/list'
  const before = await bearer(server, 'ann', 'secret', 'repository:app:pull')
  t.equal((await did(t, run('key list'))).stdout.match(/signs$/gm)?.length, 1)

  await did(t, run('key rotate'))
  t.match((await did(t, run('key list'))).stdout, /^KEY +USE\n\S+ +signs\n\S+ +verifies what it signed\n$/)
  const idOf = ({ Authorization: header = '' }) =>
    (JSON.parse(Buffer.from(header.slice(7).split('.')[0] ?? '', 'base64url').toString()) as { kid: string })
      .kid
  // Tokens of either key are taken by either worker, also while not all have seen the new one.
  let refusals = 0
  await eventually('the new key signs', async () => {
    const fresh = await bearer(server, 'ann', 'secret', 'repository:app:pull')
    for (let probe = 0; probe < 4; probe++) if ((await statusOf(server, tags, fresh)) !== 200) refusals++
    if ((await statusOf(server, tags, before)) !== 200) refusals++
    return idOf(fresh) !== idOf(before)
  })
  t.equal(refusals, 0)
  await soonEverywhere(t, server, 200, tags, before, 'a token of the old key')
})

// ---------------------------------------------------------------------------------------------
// Access: explain, export, apply
// ---------------------------------------------------------------------------------------------

t.test('access explain names the rule that decides', async (t) => {
  const { run } = offline(t)
  for (const name of ['bob', 'eve', 'off']) await did(t, run(`user add ${name}`, 'secret'))
  await did(t, run('user add root --admin --group devs', 'secret'))
  await did(t, run('user groups bob devs'))
  await did(t, run('user disable off'))
  t.match(await did(t, run('access list')), {
    stdout: 'There are no grants: admins may do everything, all others nothing.\n',
  })
  await did(t, run('grant push team/** --to group:devs'))
  await did(t, run('grant delete team/app --to user:bob'))
  await did(t, run('grant pull public/* --to anonymous'))
  await did(t, run('grant admin shared --to authenticated'))
  const explain = async (user: string, repository: string) =>
    (await did(t, run(`access explain ${user} ${repository}`))).stdout.trimEnd().split('\n')

  t.strictSame(await explain('bob', 'team/app'), [
    'pull: yes: grant push team/** to group:devs',
    'push: yes: grant push team/** to group:devs',
    'delete: yes: grant delete team/app to user:bob',
  ])
  t.strictSame(await explain('bob', 'team/other'), [
    'pull: yes: grant push team/** to group:devs',
    'push: yes: grant push team/** to group:devs',
    'delete: no: no grant fits',
  ])
  t.strictSame(await explain('eve', 'team/app'), [
    'pull: no: no grant fits',
    'push: no: no grant fits',
    'delete: no: no grant fits',
  ])
  t.strictSame(await explain('eve', 'shared'), [
    'pull: yes: grant admin shared to authenticated',
    'push: yes: grant admin shared to authenticated',
    'delete: yes: grant admin shared to authenticated',
  ])
  t.strictSame(await explain('anonymous', 'public/a'), [
    'pull: yes: grant pull public/* to anonymous',
    'push: no: no grant fits',
    'delete: no: no grant fits',
  ])
  t.strictSame(await explain('anonymous', 'shared'), [
    'pull: no: no grant fits',
    'push: no: no grant fits',
    'delete: no: no grant fits',
  ])
  t.strictSame(await explain('root', 'anything/at/all'), [
    'pull: yes: user is an admin',
    'push: yes: user is an admin',
    'delete: yes: user is an admin',
  ])
  t.strictSame(await explain('off', 'public/a'), [
    'pull: no: user off is disabled',
    'push: no: user off is disabled',
    'delete: no: user off is disabled',
  ])
  await refused(t, run('access explain nobody team/app'), 1, /^There is no user nobody: /)
  await refused(t, run('access explain bob Team/App'), 2, /^REPOSITORY is a name such as team\/app/)
  await refused(t, run('access explain bob team/app:v1'), 2, /without a tag/)

  t.strictSame(JSON.parse((await did(t, run('access list --json'))).stdout), [
    { to: 'anonymous', permission: 'pull', repositories: 'public/*' },
    { to: 'authenticated', permission: 'admin', repositories: 'shared' },
    { to: 'group:devs', permission: 'push', repositories: 'team/**' },
    { to: 'user:bob', permission: 'delete', repositories: 'team/app' },
  ])
})

t.test('access export and apply are one way and back, and apply is exact', async (t) => {
  const { run } = offline(t)
  const file = join(scratchDir(t), 'access.yaml')
  for (const name of ['alice', 'bob', '1e3', 'null', 'constructor', '__proto__']) {
    await did(t, run(`user add ${name}`, 'secret'))
  }
  for (const name of ['alice', 'bob', '__proto__']) await did(t, run(`user groups ${name} devs true`))
  await did(t, run('user groups 1e3 7 constructor'))
  await did(t, run('grant pull,push team/** --to group:devs'))
  await did(t, run('grant pull,push mirror/* --to group:devs'))
  await did(t, run('grant pull ** --to group:empty'))
  await did(t, run('grant admin ** --to user:null'))
  await did(t, run('grant pull public --to anonymous'))

  t.match(await did(t, run(`access export ${file}`)), { stdout: `Wrote groups and grants to ${file}.\n` })
  const text = readFileSync(file, 'utf8')
  t.equal((await did(t, run('access export'))).stdout, text, 'standard output has the same')
  t.strictSame(parse(text), {
    groups: {
      '7': ['1e3'],
      constructor: ['1e3'],
      devs: ['__proto__', 'alice', 'bob'],
      empty: [],
      true: ['__proto__', 'alice', 'bob'],
    },
    grants: [
      { to: 'anonymous', permissions: ['pull'], repositories: ['public'] },
      { to: 'group:devs', permissions: ['pull', 'push'], repositories: ['mirror/*', 'team/**'] },
      { to: 'group:empty', permissions: ['pull'], repositories: ['**'] },
      { to: 'user:null', permissions: ['admin'], repositories: ['**'] },
    ],
  })
  t.equal(
    (await did(t, run(`access apply ${file}`))).stdout,
    'Groups and grants are what the file says already.\n',
  )

  const wanted = [
    'groups: {devs: [alice, 1e3], ops: [], "7": [__proto__, constructor]}',
    'grants:',
    '- {to: group:devs, permissions: [push], repositories: [team/**]}',
    '- {to: authenticated, permissions: [pull], repositories: ["**"]}',
  ].join('\n')
  const changes = [
    '- member 1e3 of group:7',
    '- member 1e3 of group:constructor',
    '- member __proto__ of group:devs',
    '- member bob of group:devs',
    '- member __proto__ of group:true',
    '- member alice of group:true',
    '- member bob of group:true',
    '- grant pull public to anonymous',
    '- grant pull mirror/* to group:devs',
    '- grant push mirror/* to group:devs',
    '- grant pull team/** to group:devs',
    '- grant pull ** to group:empty',
    '- grant admin ** to user:null',
    '+ member 1e3 of group:devs',
    '+ member __proto__ of group:7',
    '+ member constructor of group:7',
    '+ grant pull ** to authenticated',
  ]
  const dry = await did(t, run('access apply - --dry-run', wanted))
  t.strictSame(dry.stdout.trimEnd().split('\n').sort(), [...changes].sort())
  t.equal(dry.stderr, 'Nothing was changed: this was a dry run.\n')
  t.equal((await did(t, run('access export'))).stdout, text, 'a dry run changes nothing')

  const applied = await did(t, run('access apply -', wanted))
  t.strictSame(applied.stdout.trimEnd().split('\n').sort(), [...changes].sort())
  t.equal(applied.stderr, 'Changed 17 of groups and grants.\n')
  t.strictSame(parse((await did(t, run('access export'))).stdout), {
    groups: { '7': ['__proto__', 'constructor'], devs: ['1e3', 'alice'] },
    grants: [
      { to: 'authenticated', permissions: ['pull'], repositories: ['**'] },
      { to: 'group:devs', permissions: ['push'], repositories: ['team/**'] },
    ],
  })
  await did(t, run('access apply -', text))
  t.equal((await did(t, run('access export'))).stdout, text, 'and back')
  await did(t, run('access apply -', 'groups: {}\ngrants: []'))
  t.equal(
    (await did(t, run('access export'))).stdout,
    'groups: {}\ngrants: []\n',
    'nothing is left when it is told',
  )
})

t.test('access apply tells all faults of a file together, and changes nothing', async (t) => {
  const { run } = offline(t)
  await did(t, run('user add alice', 'secret'))
  await did(t, run('user groups alice devs'))
  await did(t, run('grant push team/** --to group:devs'))
  const before = (await did(t, run('access export'))).stdout
  const faultsOf = async (text: string) => {
    const { code, stdout, stderr } = await run('access apply -', text)
    t.equal(code, 1)
    t.equal(stdout, '')
    const lines = stderr.trimEnd().split('\n')
    t.equal(lines.pop(), 'Nothing was changed.')
    return lines.map((line) => line.replace(/^standard input: /, ''))
  }
  const text = [
    'groups:',
    '  devs: [alice, bob]',
    '  "bad name": []',
    '  ops: carol',
    'grants:',
    '- {to: user:dave, permissions: [push, rule], repositories: [team/**, "*"]}',
    '- {to: group:qa, permissions: [], repositories: [a/B]}',
    '- {to: everybody, permission: [pull], repositories: [a]}',
    '- alice',
    'extra: 1',
  ].join('\n')
  t.strictSame(await faultsOf(text), [
    'the file: "extra" does not belong there: write groups, grants.',
    'group "devs": there is no user "bob".',
    'group "bad name": The name of a group has 1 to 64 letters, digits or . _ - @ +, and does not begin with -.',
    'group "ops": write a list such as [alice, bob], or [] for nobody.',
    'grant 1: there is no user "dave".',
    'grant 1: "rule" is none of the permissions pull, push, delete, admin.',
    'grant 1: The repository pattern "*" is ambiguous: write ** to mean all repositories.',
    'grant 2: the group qa is not among the groups: write "qa: []" there when it has no members.',
    'grant 2: permissions: write a list such as [pull, push].',
    'grant 2: The repository pattern "a/B" has the segment "B", which is neither part of a repository name, nor *, nor ** at the end.',
    'grant 3: "permission" does not belong there: write to, permissions, repositories.',
    'grant 3: permissions is missing.',
    'grant 3: to is "everybody": write user:NAME, group:NAME, authenticated or anonymous.',
    'grant 4 does not have what it needs: write to, permissions, repositories.',
  ])
  t.strictSame(await faultsOf(''), ['the file does not have what it needs: write groups, grants.'])
  t.strictSame(
    await faultsOf('grants: []'),
    ['the file: groups is missing.'],
    'an omission takes nothing away',
  )
  t.strictSame(await faultsOf('groups:\ngrants:'), [
    'groups are no names with lists of users: write "groups: {}" when there are none.',
    'grants is no list of entries: write "grants: []" when there are none.',
  ])
  const alias =
    'it holds a YAML alias that leads nowhere or too far: put quotes round a pattern that begins with *, as in "**".'
  t.strictSame(
    await faultsOf('groups: {}\ngrants:\n- to: anonymous\n  permissions: [pull]\n  repositories:\n  - **\n'),
    [alias],
  )
  t.strictSame(await faultsOf('groups: &a {a: *a}\ngrants: []').then((faults) => faults.length), 1)
  t.match(await faultsOf('groups: {}\ngroups: {}\ngrants: []'), [
    /^it is not valid YAML: Map keys must be unique/,
  ])
  t.match(await faultsOf('groups: [\n'), [/^it is not valid YAML: /])
  t.match(await faultsOf('['.repeat(20_000)), [/^it is not valid YAML: /])
  const many = `groups: {devs: [${Array.from({ length: 60 }, (_, index) => `u${index}`).join(', ')}]}\ngrants: []`
  const faults = await faultsOf(many)
  t.equal(faults.length, 51)
  t.equal(faults.at(-1), 'there are 10 more faults.')
  t.equal((await did(t, run('access export'))).stdout, before)
  await refused(
    t,
    run('access apply missing.yaml'),
    1,
    /^Cannot read missing\.yaml, which does not exist\.$/m,
  )
  await refused(t, run(`access export ${join(scratchDir(t), 'no', 'folder')}`), 1, /^Cannot write /)
})

// ---------------------------------------------------------------------------------------------
// What is not well said, and what cannot be done
// ---------------------------------------------------------------------------------------------

t.test('misuse has exit code 2 and says what to type', async (t) => {
  const { run, data } = offline(t)
  const before = snapshot(data)
  const misuses: Record<string, RegExp> = {
    swim: /^There is no command "swim"\. "boathouse --help"/,
    user: /^Say what to do: boathouse user followed by one of add, passwd,/,
    'user swim': /^"boathouse user" is followed by one of add, passwd,/,
    'user toString': /^"boathouse user" is followed by/,
    'user add': /^NAME is missing\. "boathouse user --help"/,
    'user add ann CANARY': /^There are words after NAME\./,
    'user add ann --password CANARY': /^A password is no argument/,
    'user add ann --password=CANARY': /^A password is no argument/,
    'user passwd ann -pass CANARY': /^A password is no argument/,
    'user add ann -pCANARY': /^Unknown option '-p'\./,
    'user add ann:CANARY': /^The name of a user has 1 to 64 letters/,
    'user add -ann': /^Unknown option '-a'\./,
    'user add -- -ann': /^The name of a user has/,
    'user add ann/b': /^The name of a user has/,
    'user add änn': /^The name of a user has/,
    'user add anonymous': /^No user can be called anonymous/,
    'user add ann --group': /^Option '-g?-?group <value>' argument missing\./,
    'user add ann --group bad/group': /^The name of a group has/,
    'user groups ann devs --none': /^Name groups, or write --none\./,
    'user admin ann maybe': /^Write on or off after the name\./,
    'user list extra': /^No words may follow here\./,
    'user list --log xml': /^--log takes the word json\./,
    'token create --user ann': /^--name is missing\./,
    'token create --name ci': /^--user is missing\./,
    'token create --user ann --name bad/name': /^The name of a token has/,
    'token create --user ann --name ci --scope team/**': /^Write a scope as 'team\/\*\*:pull,push'/,
    'token create --user ann --name ci --scope *:pull': /write \*\* to mean all/,
    'token create --user ann --name ci --scope **:rule': /^The permissions are pull, push, delete, admin/,
    'token create --user ann --name ci --scope **:': /^The permissions are/,
    'token create --user ann --name ci --expires 90': /^--expires takes a time such as 12h or 90d/,
    'token create --user ann --name ci --expires 0d': /^--expires takes/,
    'token create --user ann --name ci --expires 3651d': /^--expires takes/,
    'token create --user ann --name ci --expires 1.5d': /^--expires takes/,
    grant: /^PERMISSION is missing\./,
    'grant pull': /^PATTERN is missing\./,
    'grant pull team/**': /^--to WHOM is missing\./,
    'grant pull a b --to anonymous': /^There are words after PATTERN: quote it/,
    'grant pull * --to anonymous': /write \*\* to mean all repositories/,
    'grant pull Team --to anonymous': /has the segment "Team"/,
    'grant read team --to anonymous': /^The permissions are/,
    'grant pull, team --to anonymous': /^The permissions are/,
    'grant pull team --to everybody': /^Write to whom: user:NAME/,
    'grant pull team --to user:': /^The name of a user has/,
    'grant pull team --to user:anonymous': /^No user can be called anonymous/,
    'grant pull team --to group:a/b': /^The name of a group has/,
    access: /^Say what to do: boathouse access/,
    'access explain bob': /^REPOSITORY is missing\./,
    'access apply': /^FILE is missing\./,
    key: /^Say what to do: boathouse key/,
    'key rotate now': /^No words may follow here\./,
    'serve now': /^No words may follow here\./,
    'serve --log json': /^Unknown option '--log'\./,
    'user remove ann': /^$/,
  }
  const { 'user remove ann': _, ...table } = misuses
  for (const [line, words] of Object.entries(table)) {
    const args = line === '' ? [] : line.split(' ')
    const result = await runCommand(data, args, 'secret\n')
    t.equal(result.code, 2, line)
    t.match(result.stderr, words, line)
    t.match(result.stderr, / "boathouse [a-z ]*--help" shows what there is\.\n$/, 'and points to the help')
    t.notMatch(result.stderr, /CANARY/, 'what may be a password is not repeated')
    t.equal(result.stdout, '')
  }
  await did(t, run('user add ann', 'secret'))
  await refused(t, run('user remove ann', 'y\n'), 2, /^There is no terminal to ask on: add --yes\./)
  const none = await runCommand(data, [])
  t.match(none, { code: 2, stdout: '', stderr: /^Name a command\. "boathouse --help"/ })
  await did(t, run('user remove ann --yes'))
  t.ok(before.size > 0)
})

/** Every file below a folder with its content. */
function snapshot(folder: string): Map<string, string> {
  return new Map(filesBelow(folder).map((file) => [file, readFileSync(join(folder, file), 'latin1')]))
}

t.test('what cannot be done has exit code 1 and changes nothing', async (t) => {
  const { run } = offline(t)
  await did(t, run('user add ann --group devs', 'secret'))
  await did(t, run('token create --user ann --name ci'))
  const refusals: Record<string, RegExp> = {
    'user add ann': /^There is a user ann already: "boathouse user passwd ann" changes the password\.$/m,
    'user passwd bob': /^There is no user bob: "boathouse user list" shows who there is\.$/m,
    'user disable bob': /^There is no user bob/,
    'user enable bob': /^There is no user bob/,
    'user admin bob on': /^There is no user bob/,
    'user groups bob': /^There is no user bob/,
    'user groups bob devs': /^There is no user bob/,
    'user remove bob --yes': /^There is no user bob/,
    'user remove Ann --yes': /^There is no user Ann/,
    'token create --user bob --name ci': /^There is no user bob/,
    'token create --user ann --name ci':
      /^ann has a token ci already: revoke it first, or choose another name\.$/m,
    'token list --user bob': /^There is no user bob/,
    'token revoke --user bob --name ci': /^There is no user bob/,
    'token revoke --user ann --name cd': /^ann has no such token: /,
    'grant pull team --to user:bob': /^There is no user bob/,
  }
  for (const [line, words] of Object.entries(refusals)) await refused(t, run(line, 'secret'), 1, words)
  const gone = await run('revoke pull,push team --to user:ann')
  t.match(gone, { code: 1, stdout: '' })
  t.strictSame(gone.stderr.trimEnd().split('\n'), [
    'There is no grant of pull team to user:ann.',
    'There is no grant of push team to user:ann.',
    'Nothing was changed: "boathouse access list" shows which grants there are.',
  ])
  t.equal((await did(t, run('access export'))).stdout, 'groups:\n  devs:\n    - ann\ngrants: []\n')
})

t.test('passwords that nobody can have are refused, and none has to be typed for nothing', async (t) => {
  const { run, data } = offline(t)
  await refused(t, run('user add ann', ''), 1, /^The password is empty/)
  await refused(t, run('user add ann', '\nsecret\n'), 1, /^The password is empty/)
  await refused(t, run('user add ann', '\r\n'), 1, /^The password is empty/)
  await refused(t, run('user add ann', 'a\0b\n'), 1, /^A password has at most 1024 bytes and no NUL/)
  await refused(t, run('user add ann', 'x'.repeat(1025)), 1, /^A password has at most 1024 bytes/)
  await refused(t, run('user add ann', 'x'.repeat(1_000_000)), 1, /^A password has at most 1024 bytes/)
  const latin1 = startCommand(['user', 'add', 'ann'], { env: { BOATHOUSE_DATA: data } })
  latin1.child.stdin?.end(Buffer.from('p\xe4ss\n', 'latin1'))
  await refused(t, latin1.done, 1, /^The password is not UTF-8 text/)
  t.match(await did(t, run('user list')), {
    stdout: /^There are no users: "boathouse user add NAME --admin"/,
  })
  await did(t, run('user add ann', 'ä'.repeat(512)))

  // Standard input stays open: whoever is refused for another reason is so at once.
  const taken = startCommand(['user', 'add', 'ann'], { env: { BOATHOUSE_DATA: data } })
  t.equal((await taken.done).code, 1)
  // One line is enough, although more could come.
  const line = startCommand(['user', 'passwd', 'ann'], { env: { BOATHOUSE_DATA: data } })
  line.write('sec')
  line.write('ret\n')
  t.equal((await line.done).code, 0)
})

t.test('users are listed for people and for programs, without a hash', async (t) => {
  const { run } = offline(t)
  await did(t, run('user add ann --admin', 'secret'))
  const added = await did(t, run('user add bob --group ops --group devs --group ops', 'secret'))
  t.equal(added.stdout, 'Added the user bob to ops, devs.\n')
  await did(t, run('user disable bob'))
  t.equal((await did(t, run('user groups bob'))).stdout, 'bob is in devs, ops.\n')
  t.equal((await did(t, run('user groups ann'))).stdout, 'ann is in no group.\n')
  const { stdout } = await did(t, run('user list'))
  t.match(
    stdout,
    /^NAME {2}STATE +GROUPS +CREATED\nann +admin +- +20\S+Z\nbob +disabled +devs, ops +20\S+Z\n$/,
  )
  const list = JSON.parse((await did(t, run('user list --json'))).stdout) as Record<string, unknown>[]
  t.match(list, [
    { name: 'ann', admin: true, disabled: false, groups: [] },
    { name: 'bob', admin: false, disabled: true, groups: ['devs', 'ops'] },
  ])
  t.strictSame(Object.keys(list[0] ?? {}), ['name', 'admin', 'disabled', 'groups', 'created'])
})

t.test('--help tells of every command, and of the details of each', async (t) => {
  const { stdout } = await did(t, runCommand('', ['--help']))
  for (const command of ['serve', 'user', 'token', 'grant', 'revoke', 'access', 'key']) {
    t.match(stdout, new RegExp(`^ {2}boathouse ${command} `, 'm'))
    const details = (await did(t, runCommand('', [command, '--help']))).stdout
    t.match(details, new RegExp(`^ {2}boathouse ${command} `, 'm'), command)
    t.equal((await did(t, runCommand('', [command, 'list', '-h']))).stdout, details, `${command} list -h`)
    const longest = Math.max(...details.split('\n').map((line) => line.length))
    t.ok(longest <= 120, `${command}: ${longest} columns`)
  }
  t.match(await did(t, runCommand('', ['--version'])), { stdout: /^\d+\.\d+\.\d+\n$/ })
})

// ---------------------------------------------------------------------------------------------
// The data folder
// ---------------------------------------------------------------------------------------------

t.test('a data folder comes from flag, variable or file, and commands never make one', async (t) => {
  const { data } = offline(t)
  const folder = scratchDir(t)
  const config = join(folder, 'boathouse.yaml')
  writeFileSync(config, `data: ${data}\n`)
  const add = (words: string[], env = {}) => runCommand('', ['user', 'add', ...words], 'secret', { env })
  await did(t, add(['a', '--data', data]))
  await did(t, add(['b'], { BOATHOUSE_DATA: data }))
  await did(t, add(['c', '--config', config]))
  await did(t, add(['d'], { BOATHOUSE_CONFIG: config }))
  await did(t, runCommand('', ['--data', data, 'user', '--admin', 'add', 'e'], 'secret'))
  const users = (await did(t, runCommand(data, ['user', 'list', '--json']))).stdout
  t.strictSame(
    (JSON.parse(users) as { name: string }[]).map(({ name }) => name),
    ['a', 'b', 'c', 'd', 'e'],
  )

  const nowhere = join(folder, 'nowhere')
  const words =
    /^There is no registry in .*nowhere: name its data folder with --data, or start the server there once\.$/m
  for (const command of [
    'user list',
    'user add ann',
    'grant pull a --to anonymous',
    'key rotate',
    'access export',
  ]) {
    await refused(t, commandsOn(nowhere)(command, 'secret'), 1, words)
  }
  t.notOk(existsSync(nowhere))
  const file = join(folder, 'a-file')
  writeFileSync(file, '')
  await refused(t, commandsOn(file)('user list'), 1, /^There is no registry in /)
  await refused(t, commandsOn(folder)('user list'), 1, /^There is no registry in /)
  t.strictSame(
    readdirSync(folder).filter((name) => name.startsWith('boathouse.db')),
    [],
  )

  const wrong = await add(['f', '--data', data], { BOATHOUSE_WORKERS: 'many', BOATHOUSE_NONSENSE: '1' })
  t.equal(wrong.code, 2, 'faults of the configuration are told as serve tells them')
  t.equal(wrong.stderr.trimEnd().split('\n').length, 2)
})

t.test('a data folder of another version is refused and left as it is', async (t) => {
  for (const [version, words] of [
    [0, /^There|has an older form: start this version of the server there once\.$/m],
    [1, /has an older form: start this version of the server there once\.$/m],
    [99, /was written by a newer Boathouse: use the command of that version\.$/m],
  ] as const) {
    const { data, run } = offline(t)
    const db = new Database(join(data, 'boathouse.db'))
    db.pragma(`user_version = ${version}`)
    db.pragma('wal_checkpoint(TRUNCATE)')
    db.close()
    const before = snapshot(data)
    await refused(t, run('user list'), 1, words)
    await refused(t, run('user add ann', 'secret'), 1, words)
    t.strictSame(snapshot(data), before)
  }
  const { data, run } = offline(t)
  writeFileSync(join(data, 'boathouse.db'), 'this is no database, however long it may be. '.repeat(100))
  await refused(t, run('user list'), 1, /^The index in .* cannot be read \(file is not a database\)/)
})

t.test(
  'a user who may not write there is told whom to be',
  { skip: !isRoot && 'only root can be another' },
  async (t) => {
    const { data } = offline(t)
    const nobody = 65_534
    const probe = startCommand(['--version'], { uid: nobody })
    if ((await probe.done).code !== 0) {
      t.comment('the program itself is out of reach of others here')
      return
    }
    const running = startCommand(['user', 'list', '--data', data], { uid: nobody })
    await refused(
      t,
      running.done,
      1,
      /^This user may not write to .*: run the command as the user that the server runs as\.$/m,
    )
  },
)

t.test("root's commands leave the files to their owner", { skip: !isRoot && 'needs root' }, async (t) => {
  const { data, run } = offline(t)
  const owner = 65_534
  const everything = () =>
    ['', ...readdirSync(data, { recursive: true, encoding: 'utf8' })].map((name) => join(data, name))
  for (const path of everything()) chownSync(path, owner, owner)
  await did(t, run('user add ann', 'secret'))
  await did(t, run('key rotate'))
  const others = everything().filter((path) => statSync(path).uid !== owner)
  t.strictSame(others, [])
  const keys = readdirSync(join(data, 'keys'))
  t.equal(keys.length, 2)
  for (const key of keys) t.equal(statSync(join(data, 'keys', key)).mode & 0o777, 0o600)
})

t.test('where the settings name a signing key, key rotate says so', async (t) => {
  const { data, run } = offline(t)
  const [made = ''] = readdirSync(join(data, 'keys'))
  const keyFile = join(scratchDir(t), 'key.pem')
  cpSync(join(data, 'keys', made), keyFile)
  const options = { env: { BOATHOUSE_TOKENS_KEY_FILE: keyFile } }
  await refused(
    t,
    run('key rotate', '', options),
    1,
    /^The key in .*key\.pem signs, as tokens\.keyFile says: put another key there instead\.$/m,
  )
  t.match(
    (await did(t, run('key list', '', options))).stdout,
    /key\.pem +signs\n\S+ +verifies what it signed\n$/,
  )
  t.strictSame(readdirSync(join(data, 'keys')), [made])
})

t.test('commands at the same time all take effect', async (t) => {
  const { data, run } = offline(t)
  const names = Array.from({ length: 6 }, (_, index) => `user-${index}`)
  const runs = await Promise.all(names.map((name) => run(`user add ${name} --group all`, 'secret')))
  t.strictSame(
    runs.map(({ code }) => code),
    names.map(() => 0),
  )
  const same = await Promise.all(names.map(() => runCommand(data, ['user', 'add', 'one'], 'secret')))
  t.strictSame(same.map(({ code }) => code).sort(), [0, 1, 1, 1, 1, 1], 'one name is taken once')
  t.match(
    (await did(t, run('access export'))).stdout,
    new RegExp(names.map((name) => `- ${name}\n`).join(' +')),
  )
})

// ---------------------------------------------------------------------------------------------
// Secrets
// ---------------------------------------------------------------------------------------------

t.test('--log json writes an audit line for each change, with no secret', async (t) => {
  const { run } = offline(t)
  const file = join(scratchDir(t), 'access.yaml')
  writeFileSync(file, 'groups: {devs: [ann]}\ngrants: []\n')
  const htpasswd = join(scratchDir(t), 'htpasswd')
  writeFileSync(htpasswd, `imported:${bcrypt.hashSync('CANARY', 4)}\n`)
  const changes: [string, Record<string, unknown>][] = [
    ['user add ann --admin --group ops', { audit: 'user added', name: 'ann', admin: true, groups: ['ops'] }],
    ['user passwd ann', { audit: 'password changed', name: 'ann' }],
    ['user disable ann', { audit: 'user disabled', name: 'ann' }],
    ['user enable ann', { audit: 'user enabled', name: 'ann' }],
    ['user admin ann off', { audit: 'admin ended', name: 'ann' }],
    ['user groups ann devs', { audit: 'groups set', name: 'ann', groups: ['devs'] }],
    [`user import ${htpasswd}`, { audit: 'user added', name: 'imported', admin: false, imported: true }],
    [
      'token create --user ann --name ci --scope a:pull --expires never',
      { audit: 'token created', owner: 'ann', name: 'ci', scopes: ['a:pull'], expires: 'never' },
    ],
    ['token revoke --user ann --name ci', { audit: 'token revoked', owner: 'ann', name: 'ci' }],
    ['grant pull a --to user:ann', { audit: 'grant added', grant: 'grant pull a to user:ann' }],
    ['revoke pull a --to user:ann', { audit: 'grant removed', grant: 'grant pull a to user:ann' }],
    ['user groups ann --none', { audit: 'groups set', name: 'ann', groups: [] }],
    [`access apply ${file}`, { audit: 'access applied', changes: ['+ member ann of group:devs'] }],
    ['key rotate', { audit: 'key rotated' }],
    ['user remove ann --yes', { audit: 'user removed', name: 'ann' }],
  ]
  for (const [line, about] of changes) {
    const { stderr, stdout } = await did(t, run(`${line} --log json`, 'CANARY\n'))
    const logged = stderr.split('\n').filter((text) => text.startsWith('{'))
    t.equal(logged.length, 1, line)
    const { level, time, user, msg, ...rest } = JSON.parse(logged[0] ?? '{}') as Record<string, unknown>
    t.strictSame(rest, about)
    t.match({ level, time, user, msg }, { level: 30, time: Number, user: /./, msg: about.audit })
    t.notMatch(stderr + stdout.replace(/^bht_.*$/m, ''), /CANARY|bht_|\$2[aby]|\$scrypt/)
  }
  const quiet = await did(t, run('user add ann', 'CANARY'))
  t.equal(quiet.stderr, '', 'without --log there is none')
  const unchanged = await run('user add ann --log json', 'CANARY')
  t.notMatch(unchanged.stderr, /audit/, 'what did not happen is not logged')
})

t.test('passwords and tokens are in no argument, output, file or log', async (t) => {
  const { server, run } = await online(t)
  const canary = 'canary-9f2c7e51'
  const running = startCommand(['user', 'add', 'ann'], { env: { BOATHOUSE_DATA: server.data } })
  // The command has started when it has opened the data folder; then it waits for its password.
  await eventually('the command has the index open', () =>
    readdirSync(`/proc/${running.child.pid}/fd`).some((fd) => {
      try {
        return (
          statSync(`/proc/${running.child.pid}/fd/${fd}`).ino ===
          statSync(join(server.data, 'boathouse.db')).ino
        )
      } catch {
        return false
      }
    }),
  )
  running.write(canary)
  t.notOk(processesThatMention(canary))
  running.write('\n')
  const { code, stdout, stderr } = await running.done
  t.equal(code, 0)
  t.notMatch(stdout + stderr, canary)
  t.equal(await statusOf(server, '/v2/', basic('ann', canary)), 200)

  const token = (await did(t, run('token create --user ann --name ci'))).stdout.trim()
  t.equal(await statusOf(server, '/v2/', basic('ann', token)), 200)
  const secret = token.split('_').slice(2).join('_')
  await did(t, run('user passwd ann', `${canary}-2\n`))
  t.notOk(processesThatMention(canary) || processesThatMention(secret))
  for (const file of filesBelow(server.data)) {
    const content = readFileSync(join(server.data, file), 'latin1')
    t.notOk(content.includes(canary) || content.includes(secret), file)
  }
  const listed = await Promise.all(
    ['user list --json', 'token list --json', 'access list --json', 'access export', 'key list'].map((line) =>
      run(line),
    ),
  )
  for (const { stdout, stderr } of listed)
    t.notMatch(stdout + stderr, new RegExp(`${canary}|${secret}|scrypt`))
  t.notMatch(server.stderr() + server.stdout().join(), new RegExp(`${canary}|${secret}`))
})

/** Whether some process has the text in its command line or environment. */
function processesThatMention(text: string): boolean {
  const pids = readdirSync('/proc').filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
  return pids.some((pid) =>
    ['cmdline', 'environ'].some((name) => {
      try {
        return readFileSync(join('/proc', pid, name), 'latin1').includes(text)
      } catch {
        return false // it has ended, or is somebody else's
      }
    }),
  )
}

const hasScript = spawnSync('script', ['--version']).status === 0

t.test(
  'on a terminal the password is asked for twice and not shown',
  { skip: !hasScript && 'needs script' },
  async (t) => {
    const { data, run } = offline(t)
    /** Runs a command on a terminal and answers its prompts. */
    const onTerminal = async (args: string[], answers: [prompt: RegExp, answer: string][]) => {
      const line = commandLine(...args, '--data', data)
        .map((word) => `'${word}'`)
        .join(' ')
      const running = startCommand(args, { command: ['script', '-qec', line, '/dev/null'] })
      for (const [prompt, answer] of answers) {
        await eventually(`the prompt ${prompt}`, () => prompt.test(running.output()))
        running.write(answer)
      }
      return running.done
    }

    const added = await onTerminal(
      ['user', 'add', 'ann'],
      [
        [/Password for ann: $/, 'pass wörd!\r'],
        [/The same again: $/, 'pass wörd!\r'],
      ],
    )
    t.equal(added.code, 0, added.stdout)
    t.equal(
      added.stdout,
      'Password for ann: \r\nThe same again: \r\nAdded the user ann.\r\n',
      'nothing was shown',
    )
    t.match(await did(t, run('user list')), { stdout: /ann/ })

    const differing = await onTerminal(
      ['user', 'passwd', 'ann'],
      [
        [/Password for ann: $/, 'one\r'],
        [/The same again: $/, 'two\r'],
      ],
    )
    t.equal(differing.code, 1)
    t.match(differing.stdout, /The two passwords differ: nothing was changed\./)
    t.notMatch(differing.stdout, /one|two\r/)

    const pasted = await onTerminal(['user', 'passwd', 'ann'], [[/Password for ann: $/, 'twice\rtwice\r']])
    t.equal(pasted.code, 0, 'both answers may come at once')
    t.notMatch(pasted.stdout, /twice/)

    const corrected = await onTerminal(
      ['user', 'passwd', 'ann'],
      [
        [/Password for ann: $/, 'wrong\x15rigjt\x7f\x7fht\r'],
        [/The same again: $/, 'right\r'],
      ],
    )
    t.equal(corrected.code, 0, 'a line can be edited unseen')

    for (const [key, what] of [
      ['\x03', 'control-C'],
      ['\x04', 'control-D'],
    ] as const) {
      const stopped = await onTerminal(['user', 'add', 'bob'], [[/Password for bob: $/, key]])
      t.equal(stopped.code, 1, what)
      t.match(stopped.stdout, /Stopped: nothing was changed\./, what)
    }
    t.notMatch((await did(t, run('user list'))).stdout, /bob/)

    const kept = await onTerminal(['user', 'remove', 'ann'], [[/Remove the user ann .*\[y\/N\] $/, '\r']])
    t.equal(kept.code, 1)
    t.match((await did(t, run('user list'))).stdout, /ann/)
    const removed = await onTerminal(
      ['user', 'remove', 'ann'],
      [[/Remove the user ann .*\[y\/N\] /, 'yes\r']],
    )
    t.equal(removed.code, 0)
    t.notMatch((await did(t, run('user list'))).stdout, /ann/)
  },
)

everyReplyKeptTheRules(t)
