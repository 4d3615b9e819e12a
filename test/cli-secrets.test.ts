import { spawnSync } from 'node:child_process'
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import bcrypt from 'bcryptjs'
import t from 'tap'
import { commandLine, commandsOn, did, offline, startCommand } from './commands.js'
import { eventually, filesBelow, scratchDir, startServer } from './harness.js'

t.test('--log json writes an audit line for each change, with no secret', async (t) => {
  const { run } = await offline(t)
  const file = join(scratchDir(t), 'access.yaml')
  writeFileSync(file, 'groups: {devs: [ann]}\ngrants: []\n')
  const htpasswd = join(scratchDir(t), 'htpasswd')
  writeFileSync(htpasswd, `imported:${bcrypt.hashSync('CANARY', 4)}\n`)
  const changes: [string, Record<string, unknown>][] = [
    ['user add ann --admin --group ops', { audit: 'user added', name: 'ann', admin: true, groups: ['ops'] }],
    ['user passwd ann', { audit: 'password changed', name: 'ann' }],
    ['user disable ann --last-admin', { audit: 'user disabled', name: 'ann' }],
    ['user enable ann', { audit: 'user enabled', name: 'ann' }],
    ['user admin ann off --last-admin', { audit: 'admin ended', name: 'ann' }],
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
    const { stderr, stdout } = await did(t, run(`${line} --log json`, 'CANARY-secret\n'))
    const logged = stderr.split('\n').filter((text) => text.startsWith('{'))
    t.equal(logged.length, 1, line)
    const { level, time, user, msg, ...rest } = JSON.parse(logged[0] ?? '{}') as Record<string, unknown>
    t.strictSame(rest, about)
    t.match({ level, time, user, msg }, { level: 30, time: Number, user: /./, msg: about.audit })
    t.notMatch(stderr + stdout.replace(/^bht_.*$/m, ''), /CANARY|bht_|\$2[aby]|\$scrypt/)
  }
  const quiet = await did(t, run('user add ann', 'CANARY-secret'))
  t.equal(quiet.stderr, '', 'without --log there is none')
  const unchanged = await run('user add ann --log json', 'CANARY-secret')
  t.notMatch(unchanged.stderr, /audit/, 'what did not happen is not logged')
})

t.test('passwords and tokens are in no argument, output, file or log', async (t) => {
  const server = await startServer(t, { env: { BOATHOUSE_AUTH: 'token' } })
  const run = commandsOn(server.data)
  const canary = 'canary-9f2c7e51'
  const loginOf = async (password: string) => {
    const credentials = Buffer.from(`ann:${password}`).toString('base64')
    return (await server.request('GET', '/v2/', { headers: { Authorization: `Basic ${credentials}` } }))
      .status
  }
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
  t.equal(await loginOf(canary), 200)

  const token = (await did(t, run('token create --user ann --name ci'))).stdout.trim()
  t.equal(await loginOf(token), 200)
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
    const { data, run } = await offline(t)
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
    t.match(
      added.stdout,
      /^Password for ann: \r\nThe same again: \r\nAdded the user ann\.\r\n(?:A server that only this machine reaches [^\r]*\r\n)?$/,
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

    const pasted = await onTerminal(
      ['user', 'passwd', 'ann'],
      [[/Password for ann: $/, 'twice and twice\rtwice and twice\r']],
    )
    t.equal(pasted.code, 0, 'both answers may come at once')
    t.notMatch(pasted.stdout, /twice/)

    const corrected = await onTerminal(
      ['user', 'passwd', 'ann'],
      [
        [/Password for ann: $/, 'wrong\x15all is rigjt\x7f\x7fht\r'],
        [/The same again: $/, 'all is right\r'],
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

    const kept = await onTerminal(['user', 'remove', 'ann'], [[/Remove the user ann .*\[y\/N\] /, '\r']])
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
