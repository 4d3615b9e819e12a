import {
  closeSync,
  cpSync,
  existsSync,
  fstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { listSnapshots, removeOldSnapshots } from '../storage/file-snapshots.js'
import { lockFile } from '../storage/sqlite-lock.js'
import { addUsers, commandsOn, did, type Run, runCommand, startCommand } from './commands.js'
import {
  eventually,
  filesBelow,
  image,
  type Manifest,
  push,
  pushBlobs,
  randomBlob,
  type Server,
  scratchDir,
  startServer,
} from './harness.js'
import { Random } from './torture/random.js'

/* Backups of what rots, of who may log in, and those that are interrupted. */

t.setTimeout(280_000)

async function pullsWhole(server: Server, repository: string, reference: string, manifest: Manifest) {
  const faults: string[] = []
  const reply = await server.request('GET', `/v2/${repository}/manifests/${reference}`)
  if (!reply.body.equals(manifest.bytes)) faults.push(`${repository}:${reference}: ${reply.status}`)
  for (const { digest, bytes } of manifest.parts) {
    const got = await server.request('GET', `/v2/${repository}/blobs/${digest}`)
    if (!got.body.equals(bytes)) faults.push(`${repository}@${digest}: ${got.status}`)
  }
  return faults
}

function backUp(server: { data: string }, target: string, ...words: string[]): Promise<Run> {
  return runCommand(server.data, ['backup', target, '--json', ...words])
}

async function succeeded(t: Test, running: Promise<Run>): Promise<Record<string, unknown>> {
  const run = await running
  t.equal(run.code, 0, (run.stdout + run.stderr).slice(0, 1000))
  return JSON.parse(run.stdout) as Record<string, unknown>
}

function fileBelow(folder: string, digest: string): string {
  const hex = digest.slice('sha256:'.length)
  return join(folder, 'blobs', 'sha256', hex.slice(0, 2), hex)
}

/** Holds a lock that a command holds while it is at work. */
function atWork(t: Test, path: string): () => void {
  const { release } = lockFile(path, 'exclusive', 0)
  t.teardown(release)
  return release
}

t.test('two backups to one folder do not go on at once', async (t) => {
  const server = await startServer(t)
  await push(server, 'team/app', 'one', image())
  const target = join(scratchDir(t), 'backup')
  await succeeded(t, backUp(server, target))
  const end = atWork(t, join(target, 'backup.lock'))
  t.match(await backUp(server, target), {
    code: 1,
    stderr: /^Another backup to .* is at work: wait for its end\.\n$/,
  })
  end()
  await succeeded(t, backUp(server, target))
})

t.test('a backup that is brought up to date never has half a key', async (t) => {
  const server = await startServer(t, { config: { auth: 'token' } })
  const target = join(scratchDir(t), 'backup')
  await succeeded(t, backUp(server, target))
  const [key = ''] = readdirSync(join(target, 'keys'))
  const before = openSync(join(target, 'keys', key), 'r')
  t.teardown(() => closeSync(before))
  await succeeded(t, backUp(server, target))
  t.not(fstatSync(before).ino, statSync(join(target, 'keys', key)).ino, 'a new file takes its place')
  t.ok(
    readFileSync(before).equals(readFileSync(join(server.data, 'keys', key))),
    'the old one was not touched',
  )
})

t.test('an older index waits for commands that work on what is stored, and they for it', async (t) => {
  const server = await startServer(t)
  await eventually(
    'a copy',
    () =>
      existsSync(join(server.data, 'snapshots')) &&
      readdirSync(join(server.data, 'snapshots')).some((name) => name.endsWith('.db')),
  )
  await server.stop()
  for (const name of ['collector.lock', 'verifier.lock', 'sync.lock']) {
    const end = atWork(t, join(server.data, name))
    const refused = await runCommand(server.data, ['restore', '--index', '--yes'])
    t.match(refused, { code: 1, stderr: /^A command is at work in .*: wait for its end\.\n$/ }, name)
    end()
  }
  writeFileSync(join(server.data, 'restoring'), '')
  for (const words of [
    ['gc'],
    ['verify'],
    ['tag', 'list', 'team/app'],
    ['backup', join(scratchDir(t), 'backup')],
  ]) {
    const refused = await runCommand(server.data, words)
    t.match(refused, { code: 1, stderr: /^A restore into .* was interrupted: run the same/ }, words.join(' '))
  }
  await succeeded(t, runCommand(server.data, ['restore', '--index', '--yes', '--json']))
  t.equal((await runCommand(server.data, ['gc'])).code, 0)
})

t.test('a copy of the index from a time to come is no newer than the others, and goes first', async (t) => {
  const folder = scratchDir(t)
  const day = (number: number) =>
    new Date(Date.now() + number * 86_400_000).toISOString().replaceAll(/[:.]/g, '-')
  const names = [400, 300, -1, -2, -3].map((number) => `index-${day(number)}.db`)
  for (const name of names) writeFileSync(join(folder, name), '')
  const [ahead, lessAhead, ...real] = names
  const listed = async () => (await listSnapshots(folder)).map(({ name }) => name)
  t.strictSame(await listed(), [...real, ahead, lessAhead])
  await removeOldSnapshots(folder, 2)
  t.strictSame(await listed(), real.slice(0, 2))
})

t.test('a command on a damaged index says what helps', async (t) => {
  const server = await startServer(t)
  await server.stop()
  writeFileSync(
    join(server.data, 'boathouse.db'),
    'this is no database at all, and it is long enough'.repeat(99),
  )
  const refused = await runCommand(server.data, ['gc'])
  t.match(refused, {
    code: 1,
    stderr: /^The index .*boathouse\.db is damaged .*"[^"]*restore --index[^"]*"[^\n]*\.\n$/,
  })
})

/** A backup on another filesystem has copies; here they are made of links. */
function unlink(target: string): void {
  for (const name of filesBelow(join(target, 'blobs'))) {
    const path = join(target, 'blobs', name)
    const { atime, mtime } = statSync(path)
    cpSync(path, `${path}-copy`)
    utimesSync(`${path}-copy`, atime, mtime)
    renameSync(`${path}-copy`, path)
  }
}

for (const isLinked of [true, false]) {
  const kind = isLinked ? 'links' : 'copies'
  t.test(`a blob that rots and is pushed again is right in the next backup, of ${kind}`, async (t) => {
    const server = await startServer(t)
    const one = image()
    await push(server, 'team/app', 'one', one)
    const scratch = scratchDir(t)
    const target = join(scratch, 'backup')
    await succeeded(t, backUp(server, target))
    if (!isLinked) unlink(target)
    const [victim] = one.parts
    if (victim === undefined) throw new Error('an image has parts')
    const bytes = Buffer.from(victim.bytes)
    bytes[0] = (bytes[0] ?? 0) ^ 1
    writeFileSync(fileBelow(server.data, victim.digest), bytes)
    t.equal((await runCommand(server.data, ['verify', '--rate', 'unlimited'])).code, 1)

    t.match(await succeeded(t, backUp(server, target)), { blobs: 2, missing: [], damaged: 1 })
    const told = await runCommand(server.data, ['backup', target])
    t.match(told, { code: 0, stderr: /^Damaged blobs: 1\..*"[^"]*verify[^"]*" names the images/m })
    t.ok(existsSync(fileBelow(target, victim.digest)), 'what may be the last copy is not removed')
    const early = join(scratch, 'early')
    await succeeded(t, runCommand(early, ['restore', target, '--json']))
    const isSaved = (await runCommand(early, ['verify', '--rate', 'unlimited'])).code === 0
    t.equal(isSaved, !isLinked, 'a copy had the right bytes, a link shares the wrong ones')

    await pushBlobs(server, 'team/app', victim)
    const last = await succeeded(t, backUp(server, target))
    t.match(last, { blobs: 3, newBlobs: isLinked ? 1 : Number, missing: [], damaged: 0 })
    const data = join(scratch, 'late')
    await succeeded(t, runCommand(data, ['restore', target, '--json']))
    const restored = await startServer(t, { data })
    t.same(await pullsWhole(restored, 'team/app', 'one', one), [])
  })
}

t.test(
  'a backup and what is restored from it keep users, grants, tokens and keys, for their owner alone',
  async (t) => {
    const server = await startServer(t, { config: { auth: 'token' } })
    await addUsers(t, commandsOn(server.data), 'ann')
    await did(t, runCommand(server.data, ['grant', 'push', 'team/**', '--to', 'user:ann']))
    const before = await did(t, runCommand(server.data, ['access', 'export']))
    const scratch = scratchDir(t)
    const target = join(scratch, 'backup')
    mkdirSync(target, { mode: 0o755 })
    await succeeded(t, backUp(server, target))
    const data = join(scratch, 'restored')
    await succeeded(t, runCommand(data, ['restore', target, '--json']))
    const after = await did(t, runCommand(data, ['access', 'export']))
    t.equal(after.stdout, before.stdout)
    for (const folder of [target, data]) {
      const keys = readdirSync(join(folder, 'keys'))
      t.ok(keys.length > 0)
      for (const file of ['boathouse.db', ...keys.map((name) => join('keys', name))]) {
        t.equal(
          statSync(join(folder, file)).mode & 0o077,
          0,
          `${file} of ${folder === data ? 'data' : 'backup'}`,
        )
      }
    }
    const restored = await startServer(t, { data, config: { auth: 'token' } })
    const basic = { Authorization: `Basic ${Buffer.from('ann:secret').toString('base64')}` }
    const login = await restored.request(
      'GET',
      '/auth/token?service=boathouse&scope=repository:team/app:push',
      {
        headers: basic,
      },
    )
    t.equal(login.status, 200, login.text.slice(0, 200))
  },
)

/** Ends a command with SIGKILL at some moment, again and again, until one comes to its end. */
async function killedUntilDone(t: Test, data: string, words: string[], random: Random): Promise<number> {
  for (let kills = 0; ; kills++) {
    const running = startCommand(words, { env: { BOATHOUSE_DATA: data } })
    const timer = setTimeout(() => running.child.kill('SIGKILL'), random.int(100, 200 * 2 ** kills))
    const { code, stderr } = await running.done
    clearTimeout(timer)
    if (code === 0) return kills
    if (code !== null) t.fail(`${words[0]} after ${kills} kills: ${stderr}`)
    if (code !== null) return kills
  }
}

t.test('backup and restore that are killed at any moment go on, and what comes of it is whole', async (t) => {
  const random = new Random('kill -9 of backup and restore', 1)
  const server = await startServer(t)
  const images = Array.from({ length: 8 }, () => image({ layers: [randomBlob(200_000), randomBlob(100)] }))
  const scratch = scratchDir(t)
  const target = join(scratch, 'backup')
  let kills = 0
  for (const [at, one] of images.entries()) {
    await push(server, 'team/app', `v${at}`, one)
    if (at % 4 === 3) kills += await killedUntilDone(t, server.data, ['backup', target], random)
  }
  const data = join(scratch, 'restored')
  kills += await killedUntilDone(t, data, ['restore', target], random)
  t.ok(kills > 0, `${kills} times killed`)
  t.notOk(existsSync(join(data, 'restoring')))
  const restored = await startServer(t, { data })
  for (const [at, one] of images.entries()) {
    t.same(await pullsWhole(restored, 'team/app', `v${at}`, one), [])
  }
  const left = filesBelow(target).filter((name) => name.endsWith('.new') || name.startsWith('next'))
  t.same(left, [], 'no left-overs')
})

/** Stops a command as soon as the folder that it makes is there; tries again when that was too late. */
async function stopped(t: Test, words: string[], data: string, folder: string): Promise<Run> {
  for (let tries = 0; tries < 20; tries++) {
    const running = startCommand(words, { env: { BOATHOUSE_DATA: data } })
    await eventually('it has begun', () => existsSync(folder))
    running.child.kill('SIGINT')
    const run = await running.done
    if (run.code !== 0) return run
    rmSync(folder, { recursive: true })
  }
  t.fail(`${words[0]} was never stopped in time`)
  return { code: null, stdout: '{}', stderr: '' }
}

t.test('a backup or a restore that is told to stop says how it goes on, in JSON too', async (t) => {
  const server = await startServer(t)
  for (let count = 0; count < 40; count++) await push(server, 'team/app', `v${count}`, image())
  const target = join(scratchDir(t), 'backup')
  const words = ['backup', target, '--json']
  const run = await stopped(t, words, server.data, target)
  t.match(run, { code: 1, stderr: /^Interrupted: the next backup goes on from here/m })
  t.match(JSON.parse(run.stdout), { interrupted: true, tags: 40, missing: [] })
  const whole = await succeeded(t, backUp(server, target))
  t.match(whole, { interrupted: false, tags: 40, blobs: 120, missing: [] })

  const data = join(scratchDir(t), 'restored')
  const half = await stopped(t, ['restore', target, '--json'], data, data)
  t.match(half, { code: 1, stderr: /^Interrupted: run the same command again/m })
  t.match(JSON.parse(half.stdout), { interrupted: true, tags: 40 })
  const restored = await succeeded(t, runCommand(data, ['restore', target, '--json']))
  t.match(restored, { interrupted: false, tags: 40, blobs: 120, missing: [] })
})
