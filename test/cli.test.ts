import { chownSync, cpSync, existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import t from 'tap'
import { access } from '../src/commands/access.js'
import { type Command, Misuse, Refusal } from '../src/commands/command.js'
import { grant, revoke } from '../src/commands/grant.js'
import { key } from '../src/commands/key.js'
import { runServer } from '../src/commands/run-server.js'
import { token } from '../src/commands/token.js'
import { uploads } from '../src/commands/uploads.js'
import { user } from '../src/commands/user.js'
import { addUsers, commandsOn, did, offline, refused, runCommand, startCommand } from './commands.js'
import { filesBelow, scratchDir } from './harness.js'

const isRoot = process.getuid?.() === 0

const commands: Readonly<Record<string, Command>> = {
  serve: runServer,
  user,
  token,
  grant,
  revoke,
  access,
  key,
  uploads,
}

/** Runs a command in this process, for what is refused before anything is said; gives the refusal. */
async function failureOf(data: string, line: string): Promise<Error> {
  const [name = '', ...args] = line.split(' ')
  const command = commands[name]
  if (command === undefined) throw new Error(`there is no command ${name}`)
  try {
    const code = await command.run(name === 'serve' ? args : ['--data', data, ...args])
    return new Error(`it was done, with ${code}`)
  } catch (error) {
    if (error instanceof Error) return error
    throw error
  }
}

// ---------------------------------------------------------------------------------------------
// What is not well said, and what cannot be done
// ---------------------------------------------------------------------------------------------

t.test('misuse has exit code 2 and says what to type', async (t) => {
  const { run, data } = await offline(t)
  const before = snapshot(data)
  const misuses: Record<string, RegExp> = {
    user: /^Say what to do: .* user followed by one of add, passwd,/,
    'user swim': /^"[^"]*user[^"]*" is followed by one of add, passwd,/,
    'user toString': /^"[^"]*user[^"]*" is followed by/,
    'user add': /^NAME is missing\.$/,
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
    access: /^Say what to do: .* access/,
    'access explain bob': /^REPOSITORY is missing\./,
    'access apply': /^FILE is missing\./,
    uploads: /^Say what to do: .* uploads/,
    'uploads list a b': /^There are words after REPOSITORY/,
    'uploads cancel': /^Say which uploads:/,
    'uploads cancel a --user ann': /^Say which uploads:/,
    key: /^Say what to do: .* key/,
    'key rotate now': /^No words may follow here\./,
    'serve now': /^No words may follow here\./,
    'serve --log json': /^Unknown option '--log'\./,
  }
  for (const [line, words] of Object.entries(misuses)) {
    const failure = await failureOf(data, line)
    t.ok(failure instanceof Misuse, `${line}: ${failure.message}`)
    t.match(failure.message, words, line)
    t.match(failure.message, /^[^\n]+\.$/, 'in one line')
    t.notMatch(failure.message, /CANARY/, 'what may be a password is not repeated')
  }
  t.ok(sameFiles(snapshot(data), before), 'nothing was changed')

  const help = (words: string, command = '') =>
    new RegExp(`^${words}.*\\. "[^"]*${command}--help[^"]*" shows what there is\\.\\n$`)
  await refused(t, run('user add ann CANARY', 'secret words'), 2, help('There are words after NAME', 'user '))
  await refused(t, run('swim'), 2, help('There is no command "swim"'))
  await refused(t, runCommand(data, []), 2, help('Name a command'))
  await addUsers(t, run, 'ann')
  await refused(
    t,
    run('user remove ann', 'y\n'),
    2,
    help('There is no terminal to ask on: add --yes', 'user '),
  )
  t.match((await did(t, run('user list'))).stdout, /ann/)
})

function sameFiles(one: ReadonlyMap<string, string>, other: ReadonlyMap<string, string>): boolean {
  return one.size === other.size && [...one].every(([file, content]) => other.get(file) === content)
}

/** Every file below a folder with its content. */
function snapshot(folder: string): Map<string, string> {
  return new Map(filesBelow(folder).map((file) => [file, readFileSync(join(folder, file), 'latin1')]))
}

t.test('what cannot be done has exit code 1 and changes nothing', async (t) => {
  const { run, data } = await offline(t)
  await did(t, run('user add ann --group devs', 'secret words'))
  await did(t, run('token create --user ann --name ci'))
  const refusals: Record<string, RegExp> = {
    'user add ann': /^There is a user ann already: "[^"]*user passwd ann[^"]*" changes the password\.$/m,
    'user passwd bob': /^There is no user bob: "[^"]*user list[^"]*" shows who there is\.$/m,
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
  for (const [line, words] of Object.entries(refusals)) {
    const failure = await failureOf(data, line)
    t.ok(failure instanceof Refusal, `${line}: ${failure.message}`)
    t.match(failure.message, words, line)
  }
  await refused(
    t,
    run('user passwd bob', 'secret words'),
    1,
    /^There is no user bob: "[^"]*user list[^"]*" shows/,
  )
  writeFileSync(join(data, '..', 'file'), '')
  const nowhere = await run(`backup ${join(data, '..', 'file', 'copy')}`)
  t.match(
    nowhere,
    {
      code: 1,
      stdout: '',
      stderr: /^The folder of the backup .* cannot be used, a part of its path is not a folder .*\.\n$/,
    },
    'what the system refuses is a sentence',
  )
  const gone = await run('revoke pull,push team --to user:ann')
  t.match(gone, { code: 1, stdout: '' })
  const lines = gone.stderr.trimEnd().split('\n')
  t.strictSame(lines.slice(0, 2), [
    'There is no grant of pull team to user:ann.',
    'There is no grant of push team to user:ann.',
  ])
  t.match(lines.slice(2), [/^Nothing was changed: "[^"]*access list[^"]*" shows which grants there are\.$/])
  t.equal((await did(t, run('access export'))).stdout, 'groups:\n  devs:\n    - ann\ngrants: []\n')
})

t.test('passwords that nobody can have are refused, and none has to be typed for nothing', async (t) => {
  const { run, data } = await offline(t)
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
    stdout: /^There are no users: "[^"]*user add NAME --admin[^"]*"/,
  })
  await did(t, run('user add ann', 'ä'.repeat(512)))

  // Standard input stays open: whoever is refused for another reason is so at once.
  const taken = startCommand(['user', 'add', 'ann'], { env: { BOATHOUSE_DATA: data } })
  t.equal((await taken.done).code, 1)
  // One line is enough, although more could come.
  const line = startCommand(['user', 'passwd', 'ann'], { env: { BOATHOUSE_DATA: data } })
  line.write('secret ')
  line.write('words\n')
  t.equal((await line.done).code, 0)
})

t.test('users are listed for people and for programs, without a hash', async (t) => {
  const { run } = await offline(t)
  await did(t, run('user add ann --admin', 'secret words'))
  const added = await did(t, run('user add bob --group ops --group devs --group ops', 'secret words'))
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
  const { data } = await offline(t)
  const folder = scratchDir(t)
  const config = join(folder, 'boathouse.yaml')
  writeFileSync(config, `data: ${data}\n`)
  const add = (words: string[], env = {}) =>
    runCommand('', ['user', 'add', ...words], 'secret words', { env })
  await did(t, add(['a', '--data', data]))
  await did(t, add(['b'], { BOATHOUSE_DATA: data }))
  await did(t, add(['c', '--config', config]))
  await did(t, add(['d'], { BOATHOUSE_CONFIG: config }))
  await did(t, runCommand('', ['--data', data, 'user', '--admin', 'add', 'e'], 'secret words'))
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
    await refused(t, commandsOn(nowhere)(command, 'secret words'), 1, words)
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
    [0, /has an older form: start this version of the server there once\.$/m],
    [1, /has an older form: start this version of the server there once\.$/m],
    [99, /was written by a newer Boathouse: use the command of that version\.$/m],
  ] as const) {
    const { data, run } = await offline(t)
    const db = new Database(join(data, 'boathouse.db'))
    db.pragma(`user_version = ${version}`)
    db.pragma('wal_checkpoint(TRUNCATE)')
    db.close()
    const before = readFileSync(join(data, 'boathouse.db'))
    await refused(t, run('user list'), 1, words)
    await refused(t, run('user add ann', 'secret words'), 1, words)
    t.ok(readFileSync(join(data, 'boathouse.db')).equals(before), 'not a byte was changed')
  }
  const { data, run } = await offline(t)
  const db = new Database(join(data, 'boathouse.db'))
  db.exec('DROP TABLE access_grant')
  db.close()
  await refused(t, run('user list'), 1, /^The index of .* cannot be opened \([^[]+\): try again\.$/m)
  writeFileSync(join(data, 'boathouse.db'), 'this is no database, however long it may be. '.repeat(100))
  await refused(
    t,
    run('user list'),
    1,
    /^The index .* is damaged \(file is not a database\).*restore --index/,
  )
})

t.test(
  'a user who may not write there is told whom to be',
  { skip: !isRoot && 'only root can be another' },
  async (t) => {
    const { data } = await offline(t)
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
  const { data, run } = await offline(t)
  const owner = 65_534
  const everything = () =>
    ['', ...readdirSync(data, { recursive: true, encoding: 'utf8' })].map((name) => join(data, name))
  for (const path of everything()) chownSync(path, owner, owner)
  await did(t, run('user add ann', 'secret words'))
  await did(t, run('key rotate'))
  const others = everything().filter((path) => statSync(path).uid !== owner)
  t.strictSame(others, [])
  const keys = readdirSync(join(data, 'keys'))
  t.equal(keys.length, 2)
  for (const key of keys) t.equal(statSync(join(data, 'keys', key)).mode & 0o777, 0o600)
})

t.test('where the settings name a signing key, key rotate says so', async (t) => {
  const { data, run } = await offline(t)
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
  const { data, run } = await offline(t)
  const names = Array.from({ length: 6 }, (_, index) => `user-${index}`)
  const runs = await Promise.all(names.map((name) => run(`user add ${name} --group all`, 'secret words')))
  t.strictSame(
    runs.map(({ code }) => code),
    names.map(() => 0),
  )
  const same = await Promise.all(names.map(() => runCommand(data, ['user', 'add', 'one'], 'secret words')))
  t.strictSame(same.map(({ code }) => code).sort(), [0, 1, 1, 1, 1, 1], 'one name is taken once')
  t.match(
    (await did(t, run('access export'))).stdout,
    new RegExp(names.map((name) => `- ${name}\n`).join(' +')),
  )
})

t.test('S111: a new password has at least 8 characters; those that are there stay good', async (t) => {
  const { run } = await offline(t)
  const short =
    /^A new password has at least 8 characters, .* nothing was changed\..*"[^"]* token create[^"]*" makes/
  for (const password of ['x', 'seven!!', 'pässwör', '\u{1f512}'.repeat(7), 'e\u0301'.repeat(7)])
    await refused(t, run('user add ann --admin', `${password}\n`), 1, short)
  t.match((await did(t, run('user list'))).stdout, /^There are no users/)
  for (const [name, password] of [
    ['ann', 'eight ch'],
    ['bob', '\u{1f512}'.repeat(8)],
  ] as const)
    await did(t, run(`user add ${name}`, password))
  await refused(t, run('user passwd ann', 'x\n'), 1, short)
  await did(t, run('user passwd ann', 'another one\n'))
})

t.test('S111: the password of the first admin from a file is no shorter', async (t) => {
  const data = join(scratchDir(t), 'data')
  const file = join(scratchDir(t), 'password')
  const start = () =>
    startCommand(['serve', '--listen', '127.0.0.1:0'], {
      env: { BOATHOUSE_DATA: data, BOATHOUSE_AUTH: 'token', BOATHOUSE_ADMIN_PASSWORD_FILE: file },
    })
  writeFileSync(file, 'short\n')
  const { code, stdout, stderr } = await start().done
  t.equal(code, 1)
  t.match(
    `${stdout}${stderr}`,
    /admin\.passwordFile names a file whose password has less than 8 characters: .*\./,
  )
})

t.test('S111: the last admin goes only when that is said', async (t) => {
  const { run } = await offline(t)
  const file = join(scratchDir(t), 'access.yaml')
  writeFileSync(file, 'groups: {}\ngrants: []\n')
  const last =
    /^The last admin who can log in is ann: make another first with "[^"]* user admin NAME on[^"]*", or add --last-admin\./
  const states = async () =>
    (JSON.parse((await did(t, run('user list --json'))).stdout) as Record<string, unknown>[]).map(
      ({ name, admin, disabled }) =>
        `${name}${admin === true ? ' admin' : ''}${disabled === true ? ' disabled' : ''}`,
    )
  await did(t, run('user add ann --admin --group ops', 'secret words'))
  await did(t, run('user add bob --admin', 'secret words'))
  await did(t, run('user disable bob'))
  for (const line of ['user disable ann', 'user admin ann off', 'user remove ann --yes'])
    await refused(t, run(line), 1, last)
  // Groups and grants have no say in who is an admin.
  for (const line of [
    'user groups ann --none',
    `access apply ${file}`,
    'user disable bob',
    'user admin ann on',
  ])
    await did(t, run(line))
  t.strictSame(await states(), ['ann admin', 'bob admin disabled'])

  await did(t, run('user enable bob'))
  await did(t, run('user disable ann'))
  t.strictSame(await states(), ['ann admin disabled', 'bob admin'])
  await did(t, run('user remove ann --yes'))
  await did(t, run('user admin bob off --last-admin'))
  t.strictSame(await states(), ['bob'], 'where it is said, there is none')
  await did(t, run('user disable bob'))
  await did(t, run('user remove bob --yes'))
})

t.test('S111: of two admins who disable each other at once, one stays', async (t) => {
  const { run } = await offline(t)
  for (const name of ['ann', 'bob']) await did(t, run(`user add ${name} --admin`, 'secret words'))
  const runs = await Promise.all([run('user disable ann'), run('user disable bob')])
  t.same(runs.map(({ code }) => code).sort(), [0, 1])
})
