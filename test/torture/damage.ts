import { spawnSync } from 'node:child_process'
import { randomInt } from 'node:crypto'
import {
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { type Image, makeImage } from './content.js'
import { readWhole } from './options.js'
import { Random } from './random.js'
import { type RunningServer, StartError, startServer } from './server.js'
import { type Reply, Wire } from './wire.js'

/*
 * Damage in the data folder of a stopped server (reliability R57, R58, G09): pages of the index, blocks of its log after a
 * kill, any file. The server either starts, and serves no wrong byte, or says in a line what is wrong and what to do, and
 * has not touched the index.
 */

const help = `Usage: node dist/test/torture/damage.js [options]

  --pages N        pages of the index that are damaged, each in three ways (default: all)
  --blocks N       blocks of its log, the same (default: all)
  --files N        damages to any file (default 300)
  --seed N         repeats the choices of a run; every run prints its seed
`

const main = fileURLToPath(new URL('../../src/main.js', import.meta.url))
const pageSize = 4096
const { values } = parseArgs({
  options: {
    help: { type: 'boolean', default: false },
    pages: { type: 'string', default: '1000000' },
    blocks: { type: 'string', default: '1000000' },
    files: { type: 'string', default: '300' },
    seed: { type: 'string', default: String(randomInt(1, 2 ** 31)) },
  },
})
const seed = readWhole('seed', values.seed)
const random = new Random(seed, 'damage')
const folder = mkdtempSync(join(tmpdir(), 'boathouse-damage-'))
const log = join(folder, 'server.log')
process.once('exit', () => rmSync(folder, { recursive: true, force: true }))

/** What was pushed. */
interface Pushed {
  readonly repository: string
  readonly tag: string
  readonly image: Image
}

function start(data: string): Promise<RunningServer> {
  writeFileSync(log, '')
  return startServer({
    main,
    data,
    log,
    workers: 1,
    expireAfter: 3600,
    env: { BOATHOUSE_SNAPSHOTS_KEEP: '0' },
  })
}

async function expectStatus(wire: Wire, status: number, request: Parameters<Wire['send']>[0]): Promise<void> {
  const answer = await wire.send(request)
  if (typeof answer === 'string' || answer.reply.status !== status) {
    const got = typeof answer === 'string' ? answer : `${answer.reply.status} ${answer.reply.body}`
    throw new Error(`${request.method} ${request.path}: ${got}`)
  }
}

async function push(port: number, { repository, tag, image }: Pushed): Promise<void> {
  const wire = new Wire(port)
  for (const { digest, bytes } of image.blobs) {
    const path = `/v2/${repository}/blobs/uploads/?digest=${digest}`
    await expectStatus(wire, 201, { method: 'POST', path, body: bytes })
  }
  const { bytes, mediaType } = image.manifest
  const path = `/v2/${repository}/manifests/${tag}`
  await expectStatus(wire, 201, { method: 'PUT', path, body: bytes, headers: { 'content-type': mediaType } })
  wire.close()
}

function newImages(count: number): Pushed[] {
  return Array.from({ length: count }, (_, at) => {
    for (;;) {
      const image = makeImage(random, [])
      const { digest, bytes } = image.manifest
      if (digest.startsWith('sha256:') && bytes.length < 2 ** 20)
        return { repository: `team/app${at % 3}`, tag: `v${at}`, image }
    }
  })
}

/** What a server shows that is wrong; refusals and deaths are not. */
async function wrongBytes(port: number, pushed: readonly Pushed[]): Promise<string[]> {
  const wire = new Wire(port)
  const wrong: string[] = []
  for (const { repository, tag, image } of pushed) {
    const { digest, bytes } = image.manifest
    const all: [string, Buffer][] = [
      [`manifests/${tag}`, bytes],
      [`manifests/${digest}`, bytes],
      ...image.blobs.map((blob): [string, Buffer] => [`blobs/${blob.digest}`, blob.bytes]),
    ]
    for (const [path, expected] of all) {
      const answer = await wire.send({ method: 'GET', path: `/v2/${repository}/${path}`, fresh: true })
      const reply: Reply | undefined = typeof answer === 'string' ? undefined : answer.reply
      if (reply?.status === 200 && !reply.body.equals(expected)) wrong.push(`${repository}/${path}`)
      if (answer === 'hung') wrong.push(`${repository}/${path} hung`)
    }
  }
  wire.close()
  return wrong
}

const counts = { served: 0, refused: 0, found: 0, failed: 0 }

function fail(what: string, why: string): void {
  counts.failed++
  console.log(`not ok - ${what}: ${why}`)
}

const indexFiles = (data: string) =>
  ['boathouse.db', 'boathouse.db-wal'].map((name) =>
    existsSync(join(data, name)) ? readFileSync(join(data, name)) : Buffer.alloc(0),
  )

/** Starts a server on a damaged folder and judges what it does. */
async function tryStart(what: string, data: string, pushed: readonly Pushed[], touched?: string) {
  const before = indexFiles(data)
  let server: RunningServer
  try {
    server = await start(data)
  } catch (error) {
    if (!(error instanceof StartError)) throw error
    return judgeRefusal(what, readFileSync(log, 'utf8'), { before, after: indexFiles(data) })
  }
  const wrong = await wrongBytes(server.port, pushed)
  server.killAll()
  await server.gone
  if (wrong.length === 0) counts.served++
  else if (touched?.startsWith('blobs/') === true) judgeRot(what, data, wrong)
  else fail(what, `wrong bytes: ${wrong.join(', ')}`)
}

function judgeRefusal(
  what: string,
  said: string,
  { before, after }: { before: readonly Buffer[]; after: readonly Buffer[] },
): void {
  const lines = said.trimEnd().split('\n')
  if (before.some((bytes, at) => after[at]?.equals(bytes) !== true))
    fail(what, 'the refused start has changed the index')
  else if (lines.length !== 1 || /^\s+at /m.test(said)) fail(what, `not one line: ${said.slice(0, 300)}`)
  else if (/damaged/.test(said) && !/restore --index/.test(said)) fail(what, `no help: ${said}`)
  else counts.refused++
}

/** Flipped bits in a blob are the client's to see, by its digest, until they are looked for. */
function judgeRot(what: string, data: string, wrong: readonly string[]): void {
  const { stdout, stderr } = spawnSync(process.execPath, [main, 'verify', '--data', data, '--json'], {
    encoding: 'utf8',
    env: { PATH: process.env.PATH },
  })
  const digest = /sha\d+:[0-9a-f]+/.exec(wrong[0] ?? '')?.[0] ?? 'nothing'
  if (`${stdout}${stderr}`.includes(digest)) counts.found++
  else fail(what, `verify does not find ${digest}: ${stdout.slice(0, 300)} ${stderr.slice(0, 300)}`)
}

const ways = ['zeros', 'a flipped bit', 'other bytes'] as const

function damageBlock(bytes: Buffer, at: number, way: (typeof ways)[number]): Buffer {
  const damaged = Buffer.from(bytes)
  const end = Math.min(at + pageSize, bytes.length)
  if (way === 'zeros') damaged.fill(0, at, end)
  else if (way === 'other bytes') random.bytes(end - at).copy(damaged, at)
  else {
    const place = random.int(at, end - 1)
    damaged[place] = (damaged[place] ?? 0) ^ (1 << random.int(0, 7))
  }
  return damaged
}

async function damageBlocks(pristine: string, pushed: readonly Pushed[], name: string, most: number) {
  const bytes = readFileSync(join(pristine, name))
  const blocks = Math.ceil(bytes.length / pageSize)
  const all = Array.from({ length: blocks }, (_, at) => at)
  while (all.length > most) all.splice(random.int(0, all.length - 1), 1)
  const data = join(folder, 'data')
  for (const block of all) {
    for (const way of all.length < blocks ? [random.pick(ways) ?? 'zeros'] : ways) {
      rmSync(data, { recursive: true, force: true })
      cpSync(pristine, data, { recursive: true })
      writeFileSync(join(data, name), damageBlock(bytes, block * pageSize, way))
      await tryStart(`block ${block} of ${name}: ${way}`, data, pushed)
    }
  }
  return `${blocks} blocks of ${name}`
}

function filesOf(root: string): string[] {
  return readdirSync(root, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(root, join(entry.parentPath, entry.name)))
    .toSorted()
}

async function damageFiles(pristine: string, pushed: readonly Pushed[], count: number): Promise<void> {
  const names = filesOf(pristine).filter((name) => !name.startsWith('boathouse.db'))
  const others = names.filter((name) => !name.startsWith('blobs/'))
  const data = join(folder, 'data')
  for (let round = 0; round < count; round++) {
    rmSync(data, { recursive: true, force: true })
    cpSync(pristine, data, { recursive: true })
    const name = random.pick(random.chance(0.4) ? others : names) ?? ''
    const path = join(data, name)
    const { size } = statSync(path)
    const how = random.pick(['gone', 'cut off', 'longer', 'emptied', ...ways] as const) ?? 'gone'
    if (how === 'gone') rmSync(path)
    else if (how === 'cut off') truncateSync(path, random.int(0, Math.max(0, size - 1)))
    else if (how === 'emptied') truncateSync(path, 0)
    else if (how === 'longer') writeFileSync(path, random.bytes(100), { flag: 'a' })
    else if (size > 0) writeFileSync(path, damageBlock(readFileSync(path), 0, how))
    await tryStart(`${name}: ${how}`, data, pushed, name)
  }
}

async function torture(): Promise<boolean> {
  console.log(`damage: seed ${seed}`)
  const stopped = join(folder, 'stopped')
  const killed = join(folder, 'killed')
  const pushed = newImages(12)
  let server = await start(stopped)
  for (const one of pushed) await push(server.port, one)
  server.stop()
  await server.gone
  server = await start(stopped)
  const later = newImages(4).map((one, at) => ({ ...one, tag: `later${at}` }))
  for (const one of later) await push(server.port, one)
  server.killAll()
  await server.gone
  cpSync(stopped, killed, { recursive: true })
  server = await start(stopped)
  server.stop()
  await server.gone
  const all = [...pushed, ...later]
  const pages = await damageBlocks(stopped, all, 'boathouse.db', readWhole('pages', values.pages))
  const blocks = await damageBlocks(killed, all, 'boathouse.db-wal', readWhole('blocks', values.blocks))
  await damageFiles(stopped, all, readWhole('files', values.files))
  const { served, refused, found, failed } = counts
  console.log(
    `damage: ${pages}, ${blocks}; started and right ${served}, refused in words ${refused}, found by verify ${found}`,
  )
  console.log(`${served + refused + found} passed, ${failed} failed`)
  return failed === 0
}

for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const) {
  process.once(signal, () => process.exit(code))
}
if (values.help) console.log(help)
else process.exitCode = (await torture()) ? 0 : 1
