import {
  chmodSync,
  chownSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { commandsOn, did } from './commands.js'
import { blob, eventually, image, push, type Server, scratchDir, startServer } from './harness.js'

/** A user of the machine that is not root. */
const uid = 23_456
const asUser = ['setpriv', '--reuid', String(uid), '--regid', String(uid), '--clear-groups']
const isRoot = process.getuid?.() === 0
const needsRoot = isRoot ? false : 'only root can run commands on the folder of another user'

/** An empty folder that other users can reach, unlike the tests' own. */
function publicFolder(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'boathouse-owner-'))
  chmodSync(folder, 0o755)
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

/** A folder of the other user's. */
function folderOfUser(...path: string[]): string {
  const folder = join(...path)
  mkdirSync(folder)
  chownSync(folder, uid, uid)
  return folder
}

/** Everything in a folder, that folder not included. */
function below(folder: string): string[] {
  return readdirSync(folder, { recursive: true }).map((name) => join(folder, String(name)))
}

/** What in a folder is not this user's; a running server removes files meanwhile. */
function ofOthers(folder: string): string[] {
  return below(folder).filter((path) => {
    const stats = lstatSync(path, { throwIfNoEntry: false })
    return stats !== undefined && (stats.uid !== uid || stats.gid !== uid)
  })
}

/** What in a folder others may do anything with. */
function openIn(folder: string): string[] {
  return below(folder).flatMap((path) => {
    const stats = lstatSync(path, { throwIfNoEntry: false })
    if (stats === undefined) return []
    const mode = stats.mode & 0o777
    return mode === (stats.isDirectory() ? 0o700 : 0o600) ? [] : [`${path} ${mode.toString(8)}`]
  })
}

async function pushOne(server: Server, tag: string): Promise<void> {
  const layer = blob(Buffer.from(`a layer of ${tag}`))
  await push(server, 'team/app', tag, image({ layers: [layer] }))
}

t.test(
  'S78: what root commands make belongs to the owner of the data folder',
  { skip: needsRoot },
  async (t) => {
    const place = publicFolder(t)
    const data = folderOfUser(place, 'data')
    const config = { snapshots: { interval: '100ms' }, tokens: {}, quotas: ['**=1GiB'], auth: 'none' }
    const server = await startServer(t, { data, under: asUser, config })
    await pushOne(server, 'one')
    const run = commandsOn(data)
    const target = join(place, 'backup')
    await eventually(
      'there is a copy of the index',
      () =>
        readdirSync(data).includes('snapshots') &&
        readdirSync(join(data, 'snapshots')).some((name) => name.endsWith('.db')),
    )
    const beside = ['verify', 'gc', `backup ${target}`, 'quota', 'tag list team/app', 'key rotate']
    for (const words of beside) {
      await did(t, run(words))
      t.same(ofOthers(data), [], `beside the server: ${words}`)
    }
    await did(t, run('user add alice --admin', 'the admin pulls every rope\n'))
    await did(t, run('grant pull ** --to anonymous'))
    await did(t, run('grant push ** --to anonymous'))
    t.same(ofOthers(data), [], 'users and grants')
    await server.stop()
    for (const name of readdirSync(data).filter((one) => /\.lock$|^server\.pid$|^reserve$/.test(one))) {
      rmSync(join(data, name))
    }
    await did(t, run('verify'))
    await did(t, run('gc'))
    await did(t, run('restore --index --yes'))
    t.same(ofOthers(data), [], 'with the server stopped')

    // The server's own commands and the server go on.
    await did(t, run('verify', '', { uid }))
    const again = await startServer(t, { data, under: asUser, config })
    await pushOne(again, 'two')
    await again.stop()

    // What an earlier version left of root's is given back.
    for (const name of ['verifier.lock', 'collector.lock']) chownSync(join(data, name), 0, 0)
    await did(t, run('verify'))
    await did(t, run('gc'))
    t.same(ofOthers(data), [], 'given back')

    const rooted = await startServer(t, {
      data,
      config: { ...config, auth: 'none', disk: { reserve: '64KB', floor: '0B' } },
    })
    await pushOne(rooted, 'three')
    await rooted.request('POST', '/v2/team/app/blobs/uploads/')
    t.same(ofOthers(data), [], 'a server that root started')
    await rooted.stop()
    t.same(ofOthers(data), [], 'and stopped')
    await did(t, run('gc', '', { uid }))

    // A backup of root's, linked and copied, comes back to the other user's folder.
    t.ok(
      below(target).some((path) => lstatSync(path).uid === 0),
      'the backup is root’s',
    )
    const index = join(target, 'boathouse.db')
    t.equal(lstatSync(index).mode & 0o777, 0o600)
    for (const path of below(join(target, 'blobs')).filter((one) => lstatSync(one).isFile())) {
      rmSync(path) // what is linked is the user's: make it root's
      writeFileSync(path, 'a layer of one')
    }
    const fresh = folderOfUser(place, 'fresh')
    await commandsOn(fresh)(`restore ${target}`)
    t.same(ofOthers(fresh), [], 'what is brought back')
    t.same(openIn(fresh), [], 'is nobody else’s to read')
    const restored = await startServer(t, { data: fresh, under: asUser, config: { auth: 'none' } })
    await pushOne(restored, 'four')
  },
)

t.test('S94: the data folder is its owner’s alone, whatever it was, and so is a backup', async (t) => {
  const data = join(scratchDir(t), 'was-there')
  mkdirSync(data)
  chmodSync(data, 0o755)
  const under = ['bash', '-c', 'umask 0; exec "$@"', 'bash']
  const config = { disk: { reserve: '64KB', floor: '0B' }, snapshots: { interval: '100ms' } }
  const server = await startServer(t, { data, under, config: { ...config, workers: 2 } })
  await pushOne(server, 'one')
  await server.request('POST', '/v2/team/app/blobs/uploads/')
  await eventually('there is a copy of the index', () =>
    readdirSync(join(data, 'snapshots')).some((name) => name.endsWith('.db')),
  )
  t.same(openIn(data), [])
  t.equal(lstatSync(data).mode & 0o777, 0o700)

  const target = join(scratchDir(t), 'backup')
  mkdirSync(target)
  chmodSync(target, 0o755)
  const run = commandsOn(data)
  const umask = process.umask(0)
  try {
    await did(t, run(`backup ${target}`))
  } finally {
    process.umask(umask)
  }
  t.same(openIn(target), [], 'the backup')
  t.equal(lstatSync(target).mode & 0o777, 0o755, 'how others find it is its owner’s business')
  await server.stop()

  // As an earlier version left it.
  for (const folder of [data, target]) {
    for (const path of below(folder)) chmodSync(path, lstatSync(path).isDirectory() ? 0o755 : 0o644)
  }
  chmodSync(data, 0o2750)
  const again = await startServer(t, { data, config })
  t.equal(lstatSync(data).mode & 0o7777, 0o2700)
  await eventually('the blobs are closed, too', () => openIn(data).length === 0)
  await did(t, run(`backup ${target}`))
  t.same(openIn(target), [], 'the backup again')
  t.notMatch(again.stderr(), /others may be able to read/)
  await again.stop()

  chmodSync(data, 0o755)
  writeFileSync(join(data, 'notes.txt'), 'of somebody else\n', { mode: 0o644 })
  chmodSync(join(data, 'notes.txt'), 0o644)
  await startServer(t, { data, config })
  t.equal(lstatSync(data).mode & 0o777, 0o755, 'a folder with other things in it stays as it is')
  t.equal(lstatSync(join(data, 'notes.txt')).mode & 0o777, 0o644)
  t.equal(lstatSync(join(data, 'boathouse.db')).mode & 0o777, 0o600)
})
