import { execFileSync, spawn } from 'node:child_process'
import {
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import Database from 'better-sqlite3'
import t, { type Test } from 'tap'
import { dataPaths } from '../storage/data-folder.js'
import { schemaVersion } from '../storage/migrations.js'
import { commandLine, did, offline, type Run, refused, runCommand, startCommand } from './commands.js'
import {
  blob,
  eventually,
  filesBelow,
  image,
  push,
  pushBlobs,
  runServerCommand,
  type Server,
  scratchDir,
  startServer,
} from './harness.js'

t.setTimeout(600_000)

const uid = 23_457
const needsRoot = process.getuid?.() === 0 ? false : 'only root can run commands as another user'

// ---------------------------------------------------------------------------------------------
// S105: folders that cannot be used
// ---------------------------------------------------------------------------------------------

/** A command refuses with one sentence that names the path, and does not speak of ports. */
async function named(t: Test, running: Promise<Run>, path: string, what: RegExp): Promise<void> {
  const { code, stderr } = await running
  t.ok(code === 1 || code === 2, `exit code ${code}`)
  t.match(stderr, what)
  t.ok(stderr.includes(path), `${path} is in: ${stderr}`)
  t.match(stderr, /^[A-Z][^\n]+\.\n$/, 'in one sentence')
  t.notMatch(stderr, /\.js:\d+|may not use that port|^E[A-Z]+:/)
}

t.test('S105: a folder in an odd place is told in a sentence with its path and its setting', async (t) => {
  const place = scratchDir(t)
  const file = join(place, 'file')
  writeFileSync(file, '')
  symlinkSync(join(place, 'nowhere', 'at', 'all'), join(place, 'dangling'))
  symlinkSync(join(place, 'loop'), join(place, 'loop'))
  const odd = [
    file,
    join(file, 'below'),
    join(place, 'dangling'),
    join(place, 'loop', 'a'),
    join(place, 'x'.repeat(300)),
  ]
  const { data } = await offline(t)
  for (const path of odd) {
    await named(t, runCommand(path, ['serve', '--listen', '0']), path, /data folder .*--data/)
    await named(t, runCommand(data, ['backup', path]), path, /^The folder of the backup /)
  }
  const backup = join(place, 'backup')
  await did(t, runCommand(data, ['backup', backup]))
  for (const path of odd.slice(0, 2)) {
    await named(t, runCommand(path, ['restore', backup]), path, /data folder .*--data/)
    await named(t, runCommand(path, ['user', 'list']), path, /registry in .*--data|cannot be used.*--data/)
    await named(t, runCommand(path, ['restore', '--list']), path, /--data/)
  }
})

t.test('S105: a folder of another user is told, whatever the port', { skip: needsRoot }, async (t) => {
  const place = mkdtempSync(join(tmpdir(), 'boathouse-told-'))
  t.teardown(() => rmSync(place, { recursive: true, force: true }))
  chmodSync(place, 0o755)
  const closed = join(place, 'closed')
  mkdirSync(closed, { mode: 0o700 })
  const readable = join(place, 'readable')
  mkdirSync(readable, { mode: 0o755 })
  for (const path of [closed, join(closed, 'below'), readable, join(readable, 'below')]) {
    const running = runCommand(path, ['serve', '--listen', '0'], '', { uid })
    await named(t, running, path, /data folder .* cannot be used, this user may not use it .*--data/)
  }
  const data = join(place, 'data')
  mkdirSync(data)
  chownSync(data, uid, uid)
  const server = await startServer(t, {
    data,
    under: ['setpriv', '--reuid', String(uid), '--regid', String(uid), '--clear-groups'],
  })
  for (const path of [closed, join(closed, 'below'), readable, join(readable, 'below')]) {
    await named(
      t,
      runCommand(data, ['backup', path], '', { uid }),
      path,
      /^The folder of the backup .*may not use it/,
    )
    await named(t, runCommand(data, ['restore', path], '', { uid }), path, /folder of the backup|no backup/)
  }
  t.equal((await server.request('GET', '/v2/')).status, 200)
})

// ---------------------------------------------------------------------------------------------
// S107: SIGHUP
// ---------------------------------------------------------------------------------------------

for (const workers of [1, 2]) {
  t.test(
    `S107: without a terminal SIGHUP ends nothing, and the log says so (workers: ${workers})`,
    async (t) => {
      const server = await startServer(t, { config: { workers } })
      process.kill(-server.pid, 'SIGHUP')
      await eventually('it is logged', () => server.logs().some(({ signal }) => signal === 'SIGHUP'))
      process.kill(-server.pid, 'SIGHUP')
      t.equal((await server.request('GET', '/v2/', { fresh: true })).status, 200)
      t.same(await server.stop(), { code: 0, signal: null })
    },
  )
}

/** Runs a command on a terminal of its own, says its process, and takes the terminal away when its input ends. */
const onTerminal = `
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0: os.execvp(sys.argv[1], sys.argv[1:])
print(pid, flush=True)
sys.stdin.read()
os.close(terminal)
_, status = os.waitpid(pid, 0)
print(os.waitstatus_to_exitcode(status), flush=True)
`

t.test('S107: when its terminal goes the server stops in order', async (t) => {
  const data = join(scratchDir(t), 'data')
  const words = commandLine('serve', '--listen', '127.0.0.1:0', '--data', data)
  const child = spawn('python3', ['-c', onTerminal, ...words], { stdio: ['pipe', 'pipe', 'inherit'] })
  let output = ''
  child.stdout.on('data', (chunk: Buffer) => {
    output += chunk
  })
  const ended = new Promise((resolve) => child.on('close', resolve))
  const isReady = () => existsSync(join(data, 'snapshots')) && filesBelow(join(data, 'snapshots')).length > 0
  await eventually('the server is at work', isReady, 120_000)
  child.stdin.end()
  await ended
  t.equal(output.split('\n')[1], '0', 'it ended as it was told')
  const db = new Database(dataPaths(data).database, { readonly: true })
  t.equal(db.prepare('SELECT is_stopped FROM service').pluck().get(), 1, 'the stop is noted')
  db.close()
})

// ---------------------------------------------------------------------------------------------
// S108: names that are not there
// ---------------------------------------------------------------------------------------------

t.test('S108: a name that nobody has ends a command with 1, and a sentence', async (t) => {
  const { data, run } = await offline(t)
  for (const words of ['tag list nope', 'tag list nope --json', 'verify nope', 'verify nope --json']) {
    await refused(t, run(words), 1, /^There is no repository nope: /)
  }
  const config = join(scratchDir(t), 'retention.yaml')
  writeFileSync(config, 'retention: {rules: [{repositories: ["**"], keep: [{newest: 1}]}]}\n')
  await refused(t, run(`retention --dry-run nope --config ${config}`), 1, /nope/)
  await did(t, run(`retention --dry-run nope/** --config ${config}`))
  for (const words of ['tag history nope', `gc --explain sha256:${'0'.repeat(64)}`]) {
    t.equal((await run(words)).code, 1, words)
  }
  for (const words of [
    'token list --user nope',
    'user groups nope',
    'mirror status nope',
    'mirror sync nope',
  ]) {
    t.equal((await run(words)).code, 1, words)
  }
  const server = await startServer(t, { data })
  await push(server, 'team/app', 'one', image())
  await did(t, run('tag list team/app'))
  await did(t, run('verify team/app'))
  await server.request('DELETE', '/v2/team/app/manifests/one')
  await did(t, run('tag list team/app'))
  await refused(
    t,
    runCommand(join(scratchDir(t), 'none'), ['restore', '--list']),
    1,
    /^There is no registry in /,
  )
})

// ---------------------------------------------------------------------------------------------
// S109: commands that are printed
// ---------------------------------------------------------------------------------------------

/** Types a command as it was printed, at another place and with another environment. */
function type(command: string, input = ''): { code: number; output: string } {
  const env = { PATH: process.env.PATH, HOME: process.env.HOME }
  try {
    const output = execFileSync('sh', ['-c', command], { cwd: '/', env, input, encoding: 'utf8' })
    return { code: 0, output }
  } catch (error) {
    const { status, stderr } = error as { status: number; stderr: string }
    return { code: status, output: stderr }
  }
}

t.test('S109: what a start and a command print can be typed as it is', async (t) => {
  const data = join(scratchDir(t), "a folder that isn't simple")
  const server = await startServer(t, { data, config: { auth: 'token' } })
  const hint = /^Add the first user: (.*)$/.exec(server.stdout()[2] ?? '')?.[1] ?? ''
  t.match(hint, / user add NAME --admin /)
  const logged = server.logs().find(({ msg }) => /there are no users/.test(String(msg)))
  t.ok(String(logged?.msg).includes(hint), 'the log says the same')
  t.same(type(hint.replace('NAME', 'alice'), 'the admin pulls every rope\n'), {
    code: 0,
    output: 'Added the admin alice.\n',
  })
  const { stderr } = await runCommand(data, ['user', 'passwd', 'bob'], 'secret\n')
  const [, command = ''] = /^There is no user bob: "(.*)" shows who there is\.\n$/.exec(stderr) ?? []
  t.match(type(command), { code: 0, output: /^NAME +STATE[\s\S]*alice +admin/ })
  const misuse = await runCommand(data, ['user', 'swim'])
  const [, help = ''] = /"([^"]* --help)" shows what there is\.\n$/.exec(misuse.stderr) ?? []
  t.match(type(help), { code: 0, output: /^Users: who may log in/ })
  const general = await runServerCommand(['--help'])
  const [, name = ''] = /^Here boathouse stands for: (.*)$/m.exec(general.stdout) ?? []
  t.match(type(`${name} --version`), { code: 0, output: /^\d+\.\d+/ })
  const wrong = await runServerCommand(['serve'], { BOATHOUSE_NONSENSE: '1' })
  const [, settings = ''] = /not a setting: (.* serve --help) lists all settings\./.exec(wrong.stderr) ?? []
  t.match(type(settings), { code: 0, output: /^Run the registry/ })
})

t.test('S109: where boathouse is a command it is printed as one', async (t) => {
  const folder = join(scratchDir(t), 'bin')
  mkdirSync(folder)
  symlinkSync(commandLine()[1] ?? '', join(folder, 'boathouse'))
  const { data } = await offline(t)
  const env = { BOATHOUSE_DATA: data, PATH: `${folder}:${process.env.PATH}` }
  const running = startCommand(['user', 'list'], { env })
  running.end()
  t.match((await running.done).stdout, /^There are no users: "boathouse user add NAME --admin --data /)
})

t.test('S109: the address of all addresses can be typed', async (t) => {
  const server = await startServer(t, { config: { auth: 'none' }, args: ['--listen', '[::]:0'] }).catch(
    (error: Error) => error,
  )
  if (server instanceof Error) {
    t.match(server.message, /does not have that address|EAFNOSUPPORT/, 'a machine without IPv6')
    return
  }
  t.match(server.stdout()[0], /listening on http:\/\/localhost:\d+, on all addresses$/)
  t.equal((await server.request('GET', '/v2/')).status, 200)
})

// ---------------------------------------------------------------------------------------------
// S110: an older index
// ---------------------------------------------------------------------------------------------

const fixtures = fileURLToPath(new URL('../../test/fixtures/', import.meta.url))

/** Makes an index as an earlier version left it. */
function makeOldIndex(path: string, version: number): void {
  const db = new Database(path)
  db.exec(readFileSync(join(fixtures, `schema-${version}.sql`), 'utf8'))
  db.close()
}

t.test(
  'S110: a copy of the index from an older version comes back, and nothing is left behind',
  async (t) => {
    const versions = readdirSync(fixtures).flatMap((name) => /^schema-(\d+)\.sql$/.exec(name)?.[1] ?? [])
    t.ok(versions.length > 1)
    for (const version of versions.map(Number)) {
      const { data, run } = await offline(t)
      const name = `index-2024-01-02T03-04-05-006Z-before-v${version + 1}.db`
      mkdirSync(join(data, 'snapshots'), { recursive: true })
      makeOldIndex(join(data, 'snapshots', name), version)
      const { stdout } = await did(t, run(`restore --index ${name} --yes`))
      t.match(stdout, /^The index is that of 2024-01-02/)
      const db = new Database(dataPaths(data).database, { readonly: true })
      t.equal(Number(db.pragma('user_version', { simple: true })), schemaVersion)
      t.ok(Number(db.prepare('SELECT count(*) FROM manifest').pluck().get()) > 0, 'with what it held')
      db.close()
      t.same(
        readdirSync(data).filter((one) => /restored|\.new|restoring/.test(one)),
        [],
      )
      await did(
        t,
        run('tag list nope').then((run) => ({ ...run, code: run.code === 1 ? 0 : run.code })),
      )
    }
  },
)

t.test('S110: a backup from an older version is restored, too', async (t) => {
  const place = scratchDir(t)
  const backup = join(place, 'old backup')
  mkdirSync(backup)
  makeOldIndex(join(backup, 'boathouse.db'), 2)
  const fresh = join(place, 'fresh')
  const { code, stdout, stderr } = await runCommand(fresh, ['restore', backup])
  t.equal(code, 1, 'its blobs are missing')
  t.match(stdout, /^missing in the backup: /m, stderr)
  const server = await startServer(t, { data: fresh, config: { auth: 'none' } })
  t.equal((await server.request('GET', '/v2/_catalog')).status, 200)
})

t.test('S110: what is no index, or a newer one, is refused, and leaves nothing', async (t) => {
  const { data, run } = await offline(t)
  const snapshots = join(data, 'snapshots')
  mkdirSync(snapshots, { recursive: true })
  const before = filesBelow(data)
  const newer = 'index-2024-01-02T03-04-05-006Z.db'
  copyFileSync(dataPaths(data).database, join(snapshots, newer))
  const db = new Database(join(snapshots, newer))
  db.pragma(`user_version = ${schemaVersion + 1}`)
  db.pragma('journal_mode = DELETE')
  db.close()
  const other = 'index-2024-01-02T03-04-05-007Z.db'
  new Database(join(snapshots, other)).exec('CREATE TABLE a (b)').close()
  await refused(t, run(`restore --index ${newer} --yes`), 1, /was written by a newer Boathouse/)
  await refused(t, run(`restore --index ${other} --yes`), 1, /is no index of Boathouse/)
  const after = filesBelow(data).filter((name) => !name.startsWith('snapshots/') && !name.endsWith('.lock'))
  t.same(
    after,
    before.filter((name) => !name.endsWith('.lock')),
  )
})

// ---------------------------------------------------------------------------------------------
// S113: damage that nobody minds
// ---------------------------------------------------------------------------------------------

function damage(server: Server, digest: string): void {
  const hex = digest.slice('sha256:'.length)
  writeFileSync(join(server.data, 'blobs', 'sha256', hex.slice(0, 2), hex), 'other bytes')
}

t.test('S113: a damaged blob that nothing needs does not keep a verification failing', async (t) => {
  const server = await startServer(t, { config: { gc: { grace: '1h', interval: '1h' } } })
  const lost = blob('a layer of a push that never ended')
  const needed = blob('a layer of an image without a tag')
  const untagged = image({ layers: [needed] })
  await pushBlobs(server, 'team/app', lost)
  await push(server, 'team/app', untagged.digest, untagged)
  damage(server, lost.digest)
  const first = await runCommand(server.data, ['verify', '--rate', 'unlimited'])
  t.equal(first.code, 0, first.stdout + first.stderr)
  t.match(
    first.stdout,
    new RegExp(`altered: blob ${lost.digest}: .*nothing needs it: it goes with a garbage collection`),
  )
  t.match(first.stdout, /all is well, 1 damaged that nothing needs/)
  t.equal((await runCommand(server.data, ['verify', '--rate', 'unlimited'])).code, 0, 'nor the next one')
  t.match((await server.request('GET', '/metrics')).text, /^boathouse_damaged_blobs 0$/m)
  t.equal((await server.request('HEAD', `/v2/team/app/blobs/${lost.digest}`)).status, 404)
  await pushBlobs(server, 'team/app', lost)
  t.equal((await server.request('GET', `/v2/team/app/blobs/${lost.digest}`)).text, lost.bytes.toString())

  damage(server, needed.digest)
  const second = await runCommand(server.data, ['verify', '--rate', 'unlimited'])
  t.equal(second.code, 1, 'what a manifest names is a problem')
  t.ok(
    second.stdout.includes(
      `no tag needs it, but team/app@${untagged.digest}; push that again to mend it, or delete it`,
    ),
  )
  t.match((await server.request('GET', '/metrics')).text, /^boathouse_damaged_blobs 1$/m)
  await server.request('DELETE', `/v2/team/app/manifests/${untagged.digest}`)
  const third = await runCommand(server.data, ['verify', '--rate', 'unlimited'])
  t.equal(third.code, 1, 'it can be brought back')
  t.match(third.stdout, /\(deleted\); push that again to mend it, or wait/)
})

// ---------------------------------------------------------------------------------------------
// S114: metrics
// ---------------------------------------------------------------------------------------------

t.test('S114: the metrics are named as Prometheus wants them', async (t) => {
  const server = await startServer(t, {
    config: { workers: 2, quotas: ['**=1GiB'], mirrors: [{ name: 'docker.io', budget: '1GiB' }] },
  })
  await push(server, 'team/app', 'one', image())
  const { text } = await server.request('GET', '/metrics')
  const types = [...text.matchAll(/^# TYPE (\S+) (\S+)$/gm)]
  t.ok(types.length > 40)
  for (const [, name = '', type] of types) {
    t.match(text, new RegExp(`^# HELP ${name} \\S`, 'm'), `${name} is described`)
    t.equal(name.endsWith('_total'), type === 'counter', `${name} is a ${type}`)
    t.notMatch(
      name,
      /_(?:count|sum|bucket)$|[A-Z]|__|_(?:ms|milliseconds|kb|mb|percent|gauge|counter)(?:_|$)/,
    )
  }
  const program = ['/usr/bin/promtool', '/usr/local/bin/promtool'].find((path) => existsSync(path))
  if (program === undefined) t.comment('promtool is not here: the rules above are its')
  else execFileSync(program, ['check', 'metrics'], { input: text, stdio: ['pipe', 'ignore', 'pipe'] })
})
