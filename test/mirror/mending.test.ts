import { randomBytes } from 'node:crypto'
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import t, { type Test } from 'tap'
import { dataPaths } from '../../storage/data-folder.js'
import { runCommand, startCommand } from '../commands.js'
import { eventually, type Server, scratchDir } from '../harness.js'
import { digest } from './fake-upstream.js'
import { startPair } from './pair.js'
import { holdBlob, slow } from './sync-fixture.js'

t.setTimeout(120_000)

const name = 'library/app'

interface Finding {
  what: string
  problem: string
  digest: string
  isMended: boolean
  mirrors: string[]
}

/** `boathouse verify` with the settings of the test's first server. */
async function verify(t: Test, server: Server) {
  const config = join(scratchDir(t), 'config-1.yaml')
  const words = ['verify', '--json', '--rate', 'unlimited', '--restart', '--config', config]
  const { code, stdout, stderr } = await runCommand(server.data, words)
  const report = JSON.parse(stdout) as { problems: number; mended: number; findings: Finding[] }
  return { code, stderr, ...report }
}

function fileOf(server: Server, bytes: Buffer): string {
  const hex = digest(bytes).slice('sha256:'.length)
  return join(server.data, 'blobs', 'sha256', hex.slice(0, 2), hex)
}

function flipBit(path: string): void {
  const bytes = readFileSync(path)
  bytes[bytes.length >> 1] = (bytes[bytes.length >> 1] ?? 0) ^ 4
  writeFileSync(path, bytes)
}

function alterManifests(server: Server): void {
  const db = new Database(dataPaths(server.data).database)
  const rows = db.prepare<[], { id: number; bytes: Buffer }>('SELECT id, bytes FROM manifest').all()
  for (const { id, bytes } of rows) {
    bytes[10] = (bytes[10] ?? 0) ^ 1
    db.prepare('UPDATE manifest SET bytes = ? WHERE id = ?').run(bytes, id)
  }
  db.close()
}

t.test('R63: what a mirror lost, a verification fetches from its upstream, hash-checked', async (t) => {
  const { upstream, server, pull } = await startPair(t, { mirror: { freshness: '1h' } })
  const layers = [randomBytes(50_000), randomBytes(60_000), randomBytes(70_000)] as const
  upstream.addImage(name, 'v1', layers)
  const manifest = (await pull(`/v2/${name}/manifests/v1`)).body
  for (const layer of layers) t.ok((await pull(`/v2/${name}/blobs/${digest(layer)}`)).body.equals(layer))
  await eventually('all of it is stored', async () =>
    /^boathouse_open_uploads 0$/m.test((await server.request('GET', '/metrics')).text),
  )
  const [altered, missing, whole] = layers
  flipBit(fileOf(server, altered))
  rmSync(fileOf(server, missing))
  alterManifests(server)
  upstream.forget()
  const report = await verify(t, server)
  t.match(report, { code: 0, problems: 3, mended: 3 }, report.stderr)
  for (const finding of report.findings) t.ok(finding.isMended, `${finding.what} ${finding.digest}`)
  t.ok(readFileSync(fileOf(server, altered)).equals(altered))
  t.ok(readFileSync(fileOf(server, missing)).equals(missing))
  t.ok(upstream.requests.length > 0)
  t.notOk(
    upstream.requests.some(({ path }) => path.includes(digest(whole))),
    'what is whole is not asked for',
  )
  upstream.fault =
    () =>
    ({ response }) =>
      response.destroy()
  upstream.forget()
  t.ok((await pull(`/v2/${name}/manifests/v1`)).body.equals(manifest))
  for (const layer of layers) t.ok((await pull(`/v2/${name}/blobs/${digest(layer)}`)).body.equals(layer))
  t.match(await verify(t, server), { code: 0, problems: 0 })
})

t.test('R63: while the upstream is away it stays lost, and comes when somebody asks later', async (t) => {
  const { upstream, server, pull } = await startPair(t)
  const layer = randomBytes(50_000)
  upstream.addImage(name, 'v1', [layer])
  await pull(`/v2/${name}/manifests/v1`)
  await pull(`/v2/${name}/blobs/${digest(layer)}`)
  await eventually('it is stored', async () =>
    /^boathouse_open_uploads 0$/m.test((await server.request('GET', '/metrics')).text),
  )
  flipBit(fileOf(server, layer))
  upstream.fault =
    () =>
    ({ response }) =>
      response.destroy()
  const report = await verify(t, server)
  t.match(report, {
    code: 1,
    problems: 1,
    mended: 0,
    findings: [{ isMended: false, mirrors: ['docker.io'] }],
  })
  t.match(report.stderr, /could not be fetched again/)
  upstream.fault = () => undefined
  const again = await eventually('the upstream is asked again', async () => {
    const reply = await pull(`/v2/${name}/blobs/${digest(layer)}`)
    return reply.status === 200 && reply
  })
  t.ok(again.body.equals(layer))
  t.match(await verify(t, server), { code: 0, problems: 0 })
})

t.test('a client finishes what a verification was killed over', async (t) => {
  const { upstream, server, pull } = await startPair(t, {
    config: { workers: 2 },
  })
  const layer = randomBytes(3_000_000)
  upstream.addImage(name, 'v1', [layer])
  await pull(`/v2/${name}/manifests/v1`) // a layer alone would be that of a push (decision 0022)
  await pull(`/v2/${name}/blobs/${digest(layer)}`)
  await eventually('it is stored', () => existsSync(fileOf(server, layer)))
  rmSync(fileOf(server, layer))
  const { held } = holdBlob(upstream, layer)
  const config = join(scratchDir(t), 'config-1.yaml')
  const verification = startCommand([
    'verify',
    '--rate',
    'unlimited',
    '--config',
    config,
    '--data',
    server.data,
  ])
  await eventually('it is being fetched', held, slow)
  verification.child.kill('SIGKILL')
  await verification.done
  t.ok((await pull(`/v2/${name}/blobs/${digest(layer)}`)).body.equals(layer))
  t.match(await verify(t, server), { code: 0, problems: 0 })
})

t.test('an altered manifest of a mirror is not served: it comes from the upstream again', async (t) => {
  const { upstream, server, pull } = await startPair(t, { mirror: { freshness: '1h' } })
  upstream.addImage(name, 'v1', [randomBytes(100)])
  const manifest = (await pull(`/v2/${name}/manifests/v1`)).body
  for (const reference of ['v1', digest(manifest)]) {
    alterManifests(server)
    const got = await pull(`/v2/${name}/manifests/${reference}`)
    t.equal(got.status, 200)
    t.ok(got.body.equals(manifest), reference)
  }
  alterManifests(server)
  upstream.fault =
    () =>
    ({ response }) =>
      response.destroy()
  t.not((await pull(`/v2/${name}/manifests/${digest(manifest)}`)).status, 200, 'never with other bytes')
})
