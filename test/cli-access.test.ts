import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { parse } from 'yaml'
import { addUsers, commandLine, did, offline, refused, startCommand } from './commands.js'
import { scratchDir } from './harness.js'

t.test('access explain names the rule that decides', async (t) => {
  const { run } = await offline(t)
  await addUsers(t, run, 'bob', 'eve', 'off', 'root')
  await did(t, run('user admin root on'))
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
  const { run } = await offline(t)
  const file = join(scratchDir(t), 'access.yaml')
  await addUsers(t, run, 'alice', 'bob', '1e3', 'null', 'constructor', '__proto__')
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
  const exported = {
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
  }
  t.equal(JSON.stringify(parse(text)), JSON.stringify(exported))
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
  const { run } = await offline(t)
  await addUsers(t, run, 'alice')
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

t.test('long answers reach slow readers whole', async (t) => {
  const { data, run } = await offline(t)
  const entries = Array.from(
    { length: 3000 },
    (_, index) => `- {to: anonymous, permissions: [pull], repositories: [team-${index}/**]}`,
  )
  await did(t, run('access apply -', `groups: {}\ngrants:\n${entries.join('\n')}\n`))
  const line = commandLine('access', 'list', '--data', data).map((word) => `'${word}'`)
  const slow = startCommand([], { command: ['sh', '-c', `${line.join(' ')} | (sleep 1; cat)`] })
  const { stdout } = await slow.done
  t.equal(stdout.split('\n').length, 3002)
  const cut = startCommand([], { command: ['sh', '-c', `${line.join(' ')} | head -n 1`] })
  t.match(
    await cut.done,
    { stdout: /^TO +PERMISSION +REPOSITORIES\n$/, stderr: '' },
    'or as far as they read',
  )
})
