import { spawnSync } from 'node:child_process'
import { mkdirSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import {
  everyReplyKeptTheRules,
  filesBelow,
  image,
  push,
  runServerCommand,
  scratchDir,
  startServer,
} from './harness.js'

t.test('R65: a second server on the data folder is refused in words, the first goes on', async (t) => {
  const workers = 2
  const first = await startServer(t, { config: { workers } })
  const manifest = image()
  await push(first, 'in/use', 'x', manifest)
  const refused = await runServerCommand(['serve', '--listen', '127.0.0.1:0', '--data', first.data])
  t.ok(refused.code !== 0 && refused.code !== null, `exit code ${refused.code}`)
  t.equal(refused.stdout, '', 'it never listens')
  t.match(refused.stderr, /in use|already|another/i, refused.stderr)
  t.ok(refused.stderr.includes(first.data), 'it names the folder')
  t.notMatch(refused.stderr, /\.js:\d+/, 'a sentence, not a stack')
  t.equal((await first.request('GET', '/v2/in/use/manifests/x')).status, 200)
  await push(first, 'in/use', 'y', image())

  await first.kill()
  const second = await startServer(t, { data: first.data, config: { workers } })
  t.equal((await second.request('GET', '/v2/in/use/manifests/x')).status, 200, 'SIGKILL leaves no lock')
  await second.stop()
  const third = await startServer(t, { data: first.data, config: { workers } })
  t.equal((await third.request('GET', '/v2/in/use/manifests/y')).status, 200)
  await third.stop()
})

t.test('S73: a data folder with a difficult name works', async (t) => {
  const data = join(scratchDir(t), `a?b#c&d %20'";é $(x)`)
  for (let round = 0; round < 2; round++) {
    const server = await startServer(t, { data })
    await push(server, 'difficult', `v${round}`, image())
    const tags = await server.request('GET', '/v2/difficult/tags/list')
    t.equal(tags.json<{ tags: string[] }>().tags.length, round + 1)
    await server.stop()
  }
  t.ok(filesBelow(data).includes('boathouse.db'))
})

t.test(
  'start: faults of the configuration are told together, one sentence each, before the port opens',
  async (t) => {
    const file = join(scratchDir(t), 'bad.yaml')
    writeFileSync(file, 'workers: many\nlisten: 5000x\nuploads:\n  expireAfter: soon\nunknownSetting: 1\n')
    const { code, stdout, stderr } = await runServerCommand(['serve', '--config', file])
    t.equal(code, 2)
    t.equal(stdout, '')
    for (const name of ['workers', 'listen', 'uploads.expireAfter', 'unknownSetting'])
      t.ok(stderr.includes(name), `${name} in: ${stderr}`)
    t.ok(stderr.trim().split('\n').length >= 4)
    t.notMatch(stderr, /\.js:\d+/)
  },
)

t.test('start: on an address that others can reach, nobody does anything without auth: none', async (t) => {
  const closed = await startServer(t, { args: ['--listen', '0.0.0.0:0'] })
  const base = await closed.request('GET', '/v2/', { unchecked: true })
  t.equal(base.status, 401)
  t.match(base.header('www-authenticate'), /^Bearer realm=/)
  t.equal((await closed.request('POST', '/v2/a/blobs/uploads/')).status, 401)
  t.equal((await closed.request('GET', '/v2/a/tags/list')).status, 401)
  await closed.stop()
  const open = await startServer(t, { config: { auth: 'none' }, args: ['--listen', '0.0.0.0:0'] })
  t.match(open.stdout()[0], /listening on http:\/\/0\.0\.0\.0:\d+/)
  t.equal((await open.request('GET', '/v2/')).status, 200)
  t.equal((await open.request('POST', '/v2/a/blobs/uploads/')).status, 202)
  await open.stop()
})

t.test('start: a port that is taken, and a folder that cannot be made, are told in a sentence', async (t) => {
  const first = await startServer(t)
  const scratch = scratchDir(t)
  writeFileSync(join(scratch, 'file'), '')
  const cases = [
    ['--listen', `127.0.0.1:${first.port}`, '--data', join(scratch, 'other')],
    ['--listen', '127.0.0.1:0', '--data', join(scratch, 'file', 'data')],
  ]
  for (const words of cases) {
    for (const workers of ['1', '2']) {
      const { code, stdout, stderr } = await runServerCommand(['serve', ...words], {
        BOATHOUSE_WORKERS: workers,
      })
      t.ok(code !== 0 && code !== null, `exit code ${code}`)
      t.equal(stdout, '')
      t.notMatch(stderr, /\.js:\d+/, stderr)
      t.ok(stderr.length > 10)
    }
  }
  await first.stop()
})

t.test('start: a lock that cannot be opened is told in a sentence that says what to do', async (t) => {
  const data = scratchDir(t)
  mkdirSync(join(data, 'server.lock'))
  const { code, stdout, stderr } = await runServerCommand([
    'serve',
    '--listen',
    '127.0.0.1:0',
    '--data',
    data,
  ])
  t.ok(code !== 0 && code !== null, `exit code ${code}`)
  t.equal(stdout, '')
  t.match(stderr, /^A file of the index, or a lock, could not be used \(.*\): see to the disk, .*\.\n$/)
})

/** What dies in the middle of a change of a database, when part of it is in the file and may not stay there. */
const dieInTheMiddle = `
  import Database from 'better-sqlite3'
  const db = new Database(process.argv[1])
  db.pragma('journal_mode = DELETE')
  db.pragma('cache_size = 1')
  db.exec('BEGIN; DELETE FROM tag; CREATE TABLE half (bytes)')
  db.prepare('INSERT INTO half WITH RECURSIVE n (i) AS (SELECT 1 UNION SELECT i + 1 FROM n WHERE i < 500) SELECT randomblob(3000) FROM n').run()
  process.kill(process.pid, 'SIGKILL')
`

t.test('R59: an index whose change was cut off before it had a log is made whole by the start', async (t) => {
  const first = await startServer(t)
  const manifest = image()
  await push(first, 'cut/off', 'x', manifest)
  await first.stop()
  const database = join(first.data, 'boathouse.db')
  const died = spawnSync(process.execPath, ['--input-type=module', '-e', dieInTheMiddle, database])
  t.equal(died.signal, 'SIGKILL', died.stderr.toString())
  t.ok(statSync(`${database}-journal`).size > 512, 'there is something to undo')
  const second = await startServer(t, { data: first.data })
  t.equal((await second.request('GET', '/v2/cut/off/manifests/x')).status, 200)
  await second.stop()
})

t.test('start: --version and --help answer and end', async (t) => {
  const version = await runServerCommand(['--version'])
  t.equal(version.code, 0)
  t.match(version.stdout, /\d+\.\d+\.\d+/)
  const help = await runServerCommand(['--help'])
  t.equal(help.code, 0)
  t.match(help.stdout, /serve/)
  const wrong = await runServerCommand(['swim'])
  t.equal(wrong.code, 2)
  t.equal(wrong.stdout, '')
})

everyReplyKeptTheRules(t)
