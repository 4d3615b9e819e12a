import { randomBytes } from 'node:crypto'
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import Database from 'better-sqlite3'
import t, { type Test } from 'tap'
import { type Run, runCommand, startCommand } from './commands.js'
import {
  blob,
  type Content,
  eventually,
  filesBelow,
  image,
  isError,
  push,
  pushBlobs,
  putManifest,
  randomBlob,
  type Server,
  startServer,
} from './harness.js'

t.setTimeout(120_000)

interface Finding {
  problem: string
  what: string
  digest: string
  how: string
  isMended: boolean
  mirrors: string[]
  tags: { repository: string; tag: string }[]
}

interface Report {
  interrupted: boolean
  blobs: number
  bytes: number
  manifests: number
  problems: number
  healed: number
  orphans: number
  orphanBytes: number
  orphanDigests: string[]
  mended: number
  indexFaults: string[]
  findings: Finding[]
}

function fileOf(data: string, digest: string): string {
  const [algorithm = '', hex = ''] = digest.split(':')
  return join(data, 'blobs', algorithm, hex.slice(0, 2), hex)
}

function flipBit(path: string): void {
  const bytes = readFileSync(path)
  const at = bytes.length >> 1
  bytes[at] = (bytes[at] ?? 0) ^ 1
  writeFileSync(path, bytes)
}

function verify(data: string, ...words: string[]): Promise<Run> {
  return runCommand(data, ['verify', '--rate', 'unlimited', ...words])
}

async function verified(t: Test, server: Server, code: number, ...words: string[]): Promise<Report> {
  const run = await verify(server.data, '--json', ...words)
  t.equal(run.code, code, (run.stdout + run.stderr).slice(0, 2000))
  return JSON.parse(run.stdout) as Report
}

function pull(server: Server, { digest }: Content, method = 'GET') {
  return server.request(method, `/v2/team/app/blobs/${digest}`)
}

t.test('R63: one flipped bit among 200 blobs is found, put aside, and healed by a push', async (t) => {
  const server = await startServer(t)
  const layers = Array.from({ length: 199 }, (_, at) => randomBlob(500 + at))
  const whole = image({ layers })
  await push(server, 'team/app', 'v1', whole)
  const sound = await verified(t, server, 0)
  t.match(sound, { blobs: 200, manifests: 1, problems: 0, findings: [], indexFaults: [] })
  t.equal(
    sound.bytes,
    whole.parts.reduce((sum, { size }) => sum + size, 0),
    'every byte was read',
  )

  const victim = layers[77] ?? whole
  flipBit(fileOf(server.data, victim.digest))
  const report = await verified(t, server, 1)
  t.match(report, { problems: 1, blobs: 200 })
  t.match(report.findings, [
    { problem: 'altered', digest: victim.digest, tags: [{ repository: 'team/app', tag: 'v1' }] },
  ])
  t.notOk(existsSync(fileOf(server.data, victim.digest)), 'it is no blob any more')
  t.match(filesBelow(join(server.data, 'quarantine')), [new RegExp(victim.digest.slice(7))])
  isError(t, await pull(server, victim), 503, 'UNAVAILABLE')
  t.match((await pull(server, victim)).text, /damaged/)
  t.equal((await pull(server, victim, 'HEAD')).status, 404, 'whoever is about to push it sends it')
  isError(t, await putManifest(server, 'team/app', 'v2', whole), 400, 'MANIFEST_BLOB_UNKNOWN')
  const mounted = await server.request(
    'POST',
    `/v2/other/app/blobs/uploads/?mount=${victim.digest}&from=team/app`,
  )
  t.equal(mounted.status, 202, 'it cannot be mounted')
  t.match(await verified(t, server, 1), { problems: 1 }, 'it stays known')

  await pushBlobs(server, 'team/app', victim)
  t.ok((await pull(server, victim)).body.equals(victim.bytes), 'a push brings it back')
  t.equal((await putManifest(server, 'team/app', 'v2', whole)).status, 201)
  t.match(await verified(t, server, 0), { problems: 0 })
})

t.test('R63: a cut, a missing and an unreadable blob, and an orphan', async (t) => {
  const server = await startServer(t)
  const [cut, grown, missing, folder, kept] = [1, 2, 3, 4, 5].map(() => randomBlob(3000)) as [
    Content,
    Content,
    Content,
    Content,
    Content,
  ]
  await push(server, 'team/app', 'v1', image({ layers: [cut, grown, missing, folder, kept] }))
  truncateSync(fileOf(server.data, cut.digest), 2999)
  appendFileSync(fileOf(server.data, grown.digest), 'x')
  rmSync(fileOf(server.data, missing.digest))
  const aside = join(dirname(fileOf(server.data, folder.digest)), 'aside')
  renameSync(fileOf(server.data, folder.digest), aside)
  mkdirSync(fileOf(server.data, folder.digest))
  const report = await verified(t, server, 1)
  const byDigest = new Map(report.findings.map((finding) => [finding.digest, finding]))
  t.match(byDigest.get(cut.digest), { problem: 'altered', how: /2999 bytes/ })
  t.match(byDigest.get(grown.digest), { problem: 'altered', how: /3001 bytes/ })
  t.match(byDigest.get(missing.digest), { problem: 'missing' })
  t.match(byDigest.get(folder.digest), { problem: 'unreadable' })
  t.equal(report.problems, 4)
  t.ok(existsSync(fileOf(server.data, folder.digest)), 'what cannot be read is left where it is')

  rmSync(fileOf(server.data, folder.digest), { recursive: true })
  renameSync(aside, fileOf(server.data, folder.digest))
  writeFileSync(fileOf(server.data, missing.digest), missing.bytes)
  const second = await verified(t, server, 1)
  t.match(second, { problems: 2, healed: 1 }, 'bytes that are right again are served again')
  t.ok((await pull(server, missing)).body.equals(missing.bytes))
  t.ok((await pull(server, folder)).body.equals(folder.bytes))
})

t.test(
  'a read that the system refuses is no damage',
  { skip: process.getuid?.() !== 0 && 'needs root' },
  async (t) => {
    const server = await startServer(t)
    const content = randomBlob()
    await pushBlobs(server, 'team/app', content)
    const path = fileOf(server.data, content.digest)
    rmSync(path)
    // A link is never followed: reading it fails, whoever asks.
    const { symlinkSync } = await import('node:fs')
    symlinkSync('/etc/hostname', path)
    const report = await verified(t, server, 1)
    t.match(report.findings, [{ problem: 'unreadable', how: /ELOOP/ }])
    rmSync(path)
    writeFileSync(path, content.bytes)
    t.match(await verified(t, server, 0), { problems: 0, healed: 0 })
  },
)

t.test('a file that no row knows is told of, and left', async (t) => {
  const server = await startServer(t)
  await pushBlobs(server, 'team/app', randomBlob())
  const stranger = blob(randomBytes(100))
  writeFileSync(fileOf(server.data, stranger.digest), stranger.bytes)
  t.match(await verified(t, server, 0), { orphans: 0 }, 'one that has just come may get its row')
  t.ok(existsSync(fileOf(server.data, stranger.digest)))
})

t.test('an altered manifest is found, and never served', async (t) => {
  const server = await startServer(t)
  const whole = image()
  await push(server, 'team/app', 'v1', whole)
  await server.stop()
  const db = new Database(join(server.data, 'boathouse.db'))
  const bytes = Buffer.from(whole.bytes)
  bytes[20] = (bytes[20] ?? 0) ^ 1
  db.prepare('UPDATE manifest SET bytes = ?').run(bytes)
  db.close()
  const again = await startServer(t, { data: server.data })
  isError(t, await again.request('GET', '/v2/team/app/manifests/v1'), 503, 'UNAVAILABLE')
  const report = await verified(t, again, 1)
  t.match(report.findings, [
    { what: 'manifest', digest: whole.digest, tags: [{ repository: 'team/app', tag: 'v1' }] },
  ])
})

t.test('some repositories alone', async (t) => {
  const server = await startServer(t)
  const [one, other] = [randomBlob(), randomBlob()]
  await push(server, 'team/app', 'v1', image({ layers: [one] }))
  await push(server, 'other/app', 'v1', image({ layers: [other] }))
  flipBit(fileOf(server.data, other.digest))
  t.match(await verified(t, server, 0, 'team/app'), { blobs: 2, problems: 0 })
  t.match(await verified(t, server, 1, 'other/app'), { blobs: 2, problems: 1 })
  const wrong = await verify(server.data, 'Not A Name')
  t.equal(wrong.code, 2)
})

t.test('the rate is kept, and what was interrupted goes on', async (t) => {
  const server = await startServer(t)
  const count = 64
  for (let n = 0; n < count; n++) await pushBlobs(server, 'team/app', randomBlob(32 * 1024))
  const running = startCommand(['verify', '--rate', '128KiB', '--json'], {
    env: { BOATHOUSE_DATA: server.data },
  })
  const begin = performance.now()
  await eventually('it has the lock', () => existsSync(join(server.data, 'verifier.lock')))
  const second = await verify(server.data)
  t.equal(second.code, 1)
  t.match(second.stderr, /Another verification is at work/)
  await new Promise((resolve) => setTimeout(resolve, 1700))
  running.child.kill('SIGINT')
  const run = await running.done
  t.equal(run.code, 1)
  const first = JSON.parse(run.stdout) as Report
  const seconds = (performance.now() - begin) / 1000
  t.ok(first.interrupted)
  t.ok(first.blobs > 0 && first.blobs < count, `${first.blobs} blobs`)
  t.ok(first.bytes <= 128 * 1024 * (seconds + 1), `${first.bytes} bytes in ${seconds} s`)
  const rest = await verified(t, server, 0)
  t.equal(rest.blobs, count, 'each was looked at once')
  t.equal(rest.interrupted, false)
  t.equal((await verified(t, server, 0)).blobs, count, 'the next one begins anew')
})

t.test('the server verifies by its schedule', async (t) => {
  const server = await startServer(t, {
    config: { verify: { rate: 'unlimited', schedule: '* * * * * *' }, log: { level: 'info' } },
  })
  const content = randomBlob()
  await push(server, 'team/app', 'v1', image({ layers: [content] }))
  flipBit(fileOf(server.data, content.digest))
  await eventually('it is found', () => /altered: blob sha256:/.test(server.stderr()))
  isError(t, await pull(server, content), 503, 'UNAVAILABLE')
})

t.test('while images are pushed again and again, no push is lost to a verification', async (t) => {
  const server = await startServer(t, { config: { gc: { interval: '50ms', grace: '24h' } } })
  const contents = Array.from({ length: 6 }, () => randomBlob(20_000))
  await pushBlobs(server, 'team/app', ...contents)
  const faults: string[] = []
  for (let round = 0; round < 4; round++) {
    for (const { digest } of contents) {
      if (existsSync(fileOf(server.data, digest))) flipBit(fileOf(server.data, digest))
    }
    const [run] = await Promise.all([
      verify(server.data, '--json'),
      pushBlobs(server, 'team/app', ...contents),
    ])
    if (run.code !== 0 && run.code !== 1) faults.push(run.stderr)
    for (const content of contents) {
      const got = await pull(server, content)
      if (got.status === 200 && got.body.equals(content.bytes)) continue
      faults.push(`${content.digest}: ${got.status}`)
    }
  }
  t.same(faults, [])
})
