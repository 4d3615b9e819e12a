import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import t, { type Test } from 'tap'
import { migrate, schemaVersion } from '../storage/migrations.js'
import { commandLine, type Run, runCommand } from './commands.js'
import {
  eventually,
  filesBelow,
  image,
  type Manifest,
  push,
  pushBlobs,
  putManifest,
  runServerCommand,
  type Server,
  scratchDir,
  startServer,
} from './harness.js'
import { noTracing } from './stores/processes.js'

t.setTimeout(580_000)

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

/** Pushes an image; once more when the push took longer than the grace, and its blobs had gone by then. */
async function pushWithin(
  grace: number,
  server: Server,
  repository: string,
  tag: string,
  one: Manifest,
): Promise<void> {
  for (;;) {
    const begun = performance.now()
    await pushBlobs(server, repository, ...one.parts)
    const reply = await putManifest(server, repository, tag, one)
    if (reply.status === 201) return
    const isLate = performance.now() - begun > grace && reply.code === 'MANIFEST_BLOB_UNKNOWN'
    if (!isLate) throw new Error(`${repository}:${tag}: ${reply.status} ${reply.text}`)
  }
}

t.test(
  'a backup under pushes, deletes and collections holds every image that was acknowledged',
  async (t) => {
    const grace = 3000
    const server = await startServer(t, {
      config: { workers: 2, gc: { interval: '100ms', grace: `${grace}ms`, untagged: '300ms' } },
    })
    const kept: Manifest[] = []
    for (let at = 0; at < 20; at++) {
      const one = image()
      await push(server, 'kept/app', `v${at}`, one)
      kept.push(one)
    }
    let isOver = false
    const later: { at: number; manifest: Manifest }[] = []
    const load = Array.from({ length: 3 }, async (_, lane) => {
      for (let at = 0; !isOver; at++) {
        const one = image()
        await pushWithin(grace, server, `load/app${lane}`, `v${at}`, one)
        later.push({ at: performance.now(), manifest: one })
        await server.request('DELETE', `/v2/load/app${lane}/manifests/v${at - 3}`)
      }
    })
    const target = join(scratchDir(t), 'backup')
    const first = await succeeded(t, backUp(server, target))
    t.same(first.missing, [])
    const second = await succeeded(t, backUp(server, target))
    t.same(second.missing, [])
    isOver = true
    await Promise.all(load)

    const data = join(scratchDir(t), 'restored')
    await succeeded(t, runCommand(data, ['restore', target, '--json']))
    const restored = await startServer(t, { data })
    const faults: string[] = []
    for (const [at, one] of kept.entries())
      faults.push(...(await pullsWhole(restored, 'kept/app', `v${at}`, one)))
    t.same(faults, [], 'all that was there before')
    const pushedTwice = image()
    await push(restored, 'kept/app', 'new', pushedTwice)
    t.same(await pullsWhole(restored, 'kept/app', 'new', pushedTwice), [])
    const verified = await runCommand(data, ['verify', '--rate', 'unlimited', '--json'])
    t.equal(verified.code, 0, 'every blob that the index names is there, whole')
    const { repositories } = JSON.parse((await restored.request('GET', '/v2/_catalog')).text) as {
      repositories: string[]
    }
    for (const name of repositories) {
      const { tags } = (await restored.request('GET', `/v2/${name}/tags/list`)).json<{ tags: string[] }>()
      for (const tag of tags) {
        const reply = await restored.request('GET', `/v2/${name}/manifests/${tag}`)
        t.equal(reply.status, 200, `${name}:${tag}`)
        const body = reply.json<{ config: { digest: string }; layers: { digest: string }[] }>()
        for (const { digest } of [body.config, ...body.layers]) {
          t.equal((await restored.request('GET', `/v2/${name}/blobs/${digest}`)).status, 200)
        }
      }
    }
    t.ok(later.length > 0, 'there was load')
  },
)

t.test('a backup is incremental, forgets what was deleted, and links where it can', async (t) => {
  const server = await startServer(t, { config: { gc: { interval: '24d', grace: '10ms' } } })
  const [one, other] = [image(), image()]
  await push(server, 'team/app', 'one', one)
  await push(server, 'team/app', 'other', other)
  const target = join(scratchDir(t), 'backup')
  t.match(await succeeded(t, backUp(server, target)), {
    blobs: 6,
    newBlobs: 6,
    linked: 6,
    tags: 2,
    missing: [],
  })
  const [, hex = ''] = (one.parts[0]?.digest ?? '').split(':')
  t.equal(statSync(join(target, 'blobs', 'sha256', hex.slice(0, 2), hex)).nlink, 2, 'no byte was copied')
  t.match(await succeeded(t, backUp(server, target)), { blobs: 6, newBlobs: 0 })
  await server.request('DELETE', `/v2/team/app/manifests/${one.digest}`)
  await eventually('it is collected', async () => {
    await runCommand(server.data, ['gc'], '', { env: { BOATHOUSE_GC_GRACE: '10ms' } })
    return !existsSync(join(server.data, 'blobs', 'sha256', hex.slice(0, 2), hex))
  })
  t.match(await succeeded(t, backUp(server, target)), { blobs: 3, newBlobs: 0 })
  t.equal(filesBelow(join(target, 'blobs')).length, 3, 'what nobody needs is not kept')

  const inside = await backUp(server, join(server.data, 'backup'))
  t.match(inside, { code: 1, stderr: /outside of the data folder/ })
})

t.test('a backup with a blob that is gone says so', async (t) => {
  const server = await startServer(t)
  const one = image()
  await push(server, 'team/app', 'one', one)
  const [, hex = ''] = (one.parts[0]?.digest ?? '').split(':')
  rmSync(join(server.data, 'blobs', 'sha256', hex.slice(0, 2), hex))
  const run = await backUp(server, join(scratchDir(t), 'backup'))
  t.equal(run.code, 1)
  t.match(JSON.parse(run.stdout), { missing: [one.parts[0]?.digest], blobs: 2 })
})

t.test('a restore wants an empty folder and a backup; an interrupted one goes on', async (t) => {
  const server = await startServer(t)
  const one = image()
  await push(server, 'team/app', 'one', one)
  const scratch = scratchDir(t)
  const target = join(scratch, 'backup')
  await succeeded(t, backUp(server, target))
  t.match(await runCommand(server.data, ['restore', target]), { code: 1, stderr: /is not empty/ })
  t.match(await runCommand(join(scratch, 'x'), ['restore', join(scratch, 'none')]), {
    code: 1,
    stderr: /There is no backup in/,
  })
  const data = join(scratch, 'half')
  mkdirSync(join(data, 'blobs'), { recursive: true })
  writeFileSync(join(data, 'restoring'), '')
  const refused = await runServerCommand(['serve', '--listen', '127.0.0.1:0', '--data', data])
  t.equal(refused.code, 1)
  t.match(refused.stderr, /A restore into .* was interrupted/)
  await succeeded(t, runCommand(data, ['restore', target, '--json']))
  const restored = await startServer(t, { data })
  t.same(await pullsWhole(restored, 'team/app', 'one', one), [])
})

t.test(
  'a restore that was killed in its last moment can be repeated; one that was used since cannot',
  async (t) => {
    const server = await startServer(t)
    const one = image()
    await push(server, 'team/app', 'one', one)
    const target = join(scratchDir(t), 'backup')
    t.equal((await runCommand(server.data, ['backup', target])).code, 0)
    await server.stop()
    const data = join(scratchDir(t), 'data')
    t.equal((await runCommand(data, ['restore', target])).code, 0)
    // All is in place, and nobody was told.
    const again = await runCommand(data, ['restore', target])
    t.equal(again.code, 0, again.stderr)
    const restored = await startServer(t, { data })
    t.equal((await restored.request('GET', '/v2/team/app/manifests/one')).status, 200)
    await restored.stop()
    t.match(await runCommand(data, ['restore', target]), { code: 1, stderr: /is not empty/ })
  },
)

t.test(
  'R52: a restore to a disk that fails says so, loses no blob, and goes on',
  { skip: noTracing() ?? false },
  async (t) => {
    const server = await startServer(t)
    const one = image()
    await push(server, 'team/app', 'one', one)
    const scratch = scratchDir(t)
    const target = join(scratch, 'backup')
    await succeeded(t, backUp(server, target))
    for (const [call, path] of [
      ['rename'],
      ['link'],
      ['fsync'],
      ['openat', 'openat/workers.lock'],
      ['opendir', 'backup/keys'],
    ] as const) {
      const data = join(scratch, call)
      const about = path === undefined ? [] : ['-P', join(scratch, path)]
      const failing = call === 'opendir' ? 'openat' : call
      // A lock's file is made first, and opened by SQLite then, which alone must not fail.
      const when = call === 'openat' ? '1+' : '1'
      const inject = `inject=${failing}:error=EIO:when=${when}`
      const under = ['strace', '-f', '-o', '/dev/null', ...about, '-e', inject]
      const command = [...under, ...commandLine('restore', target, '--data', data)]
      const failed = await runCommand(data, [], '', { command, env: { UV_USE_IO_URING: '0' } })
      t.match(
        failed,
        { code: 1, stdout: '', stderr: /EIO|\(unable to open database file\): see to the disk/ },
        call,
      )
      t.notMatch(failed.stderr, /\n\s+at /, 'it is told in a sentence')
      const again = await succeeded(t, runCommand(data, ['restore', target, '--json']))
      t.match(again, { blobs: one.parts.length, missing: [] }, `after ${call} the same restore goes on`)
    }
  },
)

t.test('a backup to a disk whose quota is used up says so', { skip: noTracing() ?? false }, async (t) => {
  const server = await startServer(t)
  await push(server, 'team/app', 'one', image())
  const target = join(scratchDir(t), 'backup')
  const words = ['strace', '-f', '-o', '/dev/null', '-e', 'inject=link:error=EDQUOT']
  const command = [...words, ...commandLine('backup', target)]
  t.match(await runCommand(server.data, [], '', { command, env: { UV_USE_IO_URING: '0' } }), {
    code: 1,
    stderr: /^The quota of this disk is used up: make room on it, then run the same command again\.\n$/,
  })
})

t.test('the server copies its index, and a copy brings it back', async (t) => {
  const server = await startServer(t, {
    config: { snapshots: { interval: '100ms', keep: 3 }, gc: { grace: '5s', interval: '50ms' } },
  })
  const one = image()
  await push(server, 'team/app', 'one', one)
  const folder = join(server.data, 'snapshots')
  const names = () => (existsSync(folder) ? readdirSync(folder).filter((name) => name.endsWith('.db')) : [])
  const before = names()
  await eventually(
    'three new copies',
    () => names().length === 3 && names().every((name) => !before.includes(name)),
  )
  t.match(await runCommand(server.data, ['restore', '--index', '--yes']), {
    code: 1,
    stderr: /stop it first/,
  })
  await server.stop()
  const kept = names()
  t.equal(kept.length, 3)
  for (const name of kept) {
    const db = new Database(join(folder, name), { readonly: true })
    t.equal(db.pragma('integrity_check', { simple: true }), 'ok')
    db.close()
  }
  const later = image()
  const again = await startServer(t, {
    data: server.data,
    config: { snapshots: { interval: '24d' }, gc: { grace: '5s', interval: '50ms' } },
  })
  await push(again, 'team/app', 'later', later)
  await again.stop()

  writeFileSync(
    join(server.data, 'boathouse.db'),
    'this is no database at all, and it is long enough to be one'.repeat(99),
  )
  const damaged = readFileSync(join(server.data, 'boathouse.db'))
  const refused = await runServerCommand(['serve', '--listen', '127.0.0.1:0', '--data', server.data])
  t.equal(refused.code, 1)
  t.match(refused.stderr, /^The index .*boathouse\.db is damaged .*"[^"]*restore --index[^"]*"[^\n]*\.\n$/)
  t.ok(readFileSync(join(server.data, 'boathouse.db')).equals(damaged), 'nothing was written to it')
  t.match(await runCommand(server.data, ['restore', '--index']), { code: 2, stderr: /--yes/ })

  const report = await succeeded(t, runCommand(server.data, ['restore', '--index', '--yes', '--json']))
  t.match(report, { tags: 1, manifests: 1, blobs: 3, unknown: 3, missing: 0 })
  t.ok(readFileSync(join(String(report.keptIn), 'boathouse.db')).equals(damaged), 'the damaged one is kept')
  const back = await startServer(t, {
    data: server.data,
    config: { gc: { grace: '10ms', interval: '50ms' } },
  })
  t.same(await pullsWhole(back, 'team/app', 'one', one), [])
  t.equal((await back.request('GET', '/v2/team/app/manifests/later')).status, 404)
  await eventually('a collection has looked', () => /too many files|older index/.test(back.stderr()))
  t.equal(filesBelow(join(server.data, 'blobs')).length, 6, 'what the older index forgot stays on the disk')
  await back.stop()
  const calm = await startServer(t, { data: server.data })
  await push(calm, 'team/app', 'later', later)
  t.same(await pullsWhole(calm, 'team/app', 'later', later), [])
})

t.test('a start removes the copies of the index that are too many, also when it makes none', async (t) => {
  const server = await startServer(t)
  const folder = join(server.data, 'snapshots')
  const copies = () => (existsSync(folder) ? readdirSync(folder).filter((name) => name.endsWith('.db')) : [])
  const [newest = ''] = await eventually('a copy', () => copies().length === 1 && copies())
  await server.stop()
  // As a kill leaves it that came before the old ones were removed.
  for (const day of ['01', '02', '03']) {
    cpSync(join(folder, newest), join(folder, `index-2020-01-${day}T00-00-00-000Z.db`))
  }
  const again = await startServer(t, { data: server.data, config: { snapshots: { keep: 2 } } })
  await eventually('the old ones to go', () => copies().length === 2)
  t.strictSame(copies().sort(), ['index-2020-01-03T00-00-00-000Z.db', newest])
  await again.stop()
})

t.test('before a migration the index is copied', async (t) => {
  const server = await startServer(t, { config: { snapshots: { keep: 0 } } })
  await server.stop()
  const version = schemaVersion
  for (const end of ['', '-wal', '-shm']) rmSync(join(server.data, `boathouse.db${end}`), { force: true })
  const db = new Database(join(server.data, 'boathouse.db'))
  db.pragma('journal_mode = WAL')
  migrate(db, version - 1)
  db.close()
  const again = await startServer(t, { data: server.data, config: { snapshots: { keep: 0 } } })
  await again.stop()
  const [name = ''] = readdirSync(join(server.data, 'snapshots'))
  t.match(name, new RegExp(`-before-v${version}\\.db$`))
  const copy = new Database(join(server.data, 'snapshots', name), { readonly: true })
  t.equal(copy.pragma('user_version', { simple: true }), version - 1)
  copy.close()
})

/** Pages that are damaged in a quick run; `node dist/test/backup.test.js --every-page` damages each. */
const everyPage = process.argv.includes('--every-page')
const sampled = 6

t.test('R57: an index with a damaged page is refused or harmless, and never gives wrong bytes', async (t) => {
  const server = await startServer(t)
  const images = Array.from({ length: 12 }, () =>
    image({ extra: { annotations: { text: 'x'.repeat(3000) } } }),
  )
  for (const [at, one] of images.entries()) await push(server, `team/app${at % 3}`, `v${at}`, one)
  await server.stop()
  const pristine = join(scratchDir(t), 'pristine')
  cpSync(server.data, pristine, { recursive: true })
  const bytes = readFileSync(join(pristine, 'boathouse.db'))
  const pages = bytes.length / 4096
  const step = everyPage ? 1 : Math.max(1, Math.floor(pages / sampled))
  let refusals = 0
  let harmless = 0
  for (let page = 0; page < pages; page += step) {
    const data = join(scratchDir(t), `page-${page}`)
    cpSync(pristine, data, { recursive: true })
    const damaged = Buffer.from(bytes)
    for (let at = page * 4096 + 100; at < page * 4096 + 4096; at += 97)
      damaged[at] = (damaged[at] ?? 0) ^ 0x10
    writeFileSync(join(data, 'boathouse.db'), damaged)
    const running = await startServer(t, { data, config: { snapshots: { keep: 0 } } }).catch(
      (error: Error) => error,
    )
    if (running instanceof Error) {
      refusals++
      if (!/is damaged .*restore --index/.test(running.message)) t.fail(`page ${page}: ${running.message}`)
    } else {
      harmless++
      const wrong: string[] = []
      for (const [at, one] of images.entries()) {
        const path = `/v2/team/app${at % 3}/manifests/v${at}`
        const reply = await running.request('GET', path).catch(() => undefined)
        if (reply?.status === 200 && !reply.body.equals(one.bytes)) wrong.push(`page ${page}: ${path}`)
      }
      t.same(wrong, [])
      await running.kill()
    }
    rmSync(data, { recursive: true })
  }
  t.ok(refusals > 0, `${refusals} refused, ${harmless} harmless of ${pages} pages`)
})
