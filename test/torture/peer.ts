import { type ChildProcess, spawn } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { digestOf, type Image, makeImage } from './content.js'
import { Disk, filesystems, noPowerCuts } from './disk.js'
import { readWhole } from './options.js'
import { Random } from './random.js'
import { Wire } from './wire.js'

/*
 * The question of kill9.ts to another registry, in what all have in common: clients push images and move tags, the server is
 * killed or its disk loses power, and afterwards every tag must lead to what was acknowledged last (or to what was under
 * way), byte for byte.
 */

const help = `Usage: node dist/test/torture/peer.js [options]

  --rounds N       rounds (default 60)
  --power-cut FS   ext4 or xfs: cut the power in place of killing; needs root
  --seed N         repeats the choices of a run; every run prints its seed
`

const { values } = parseArgs({
  options: {
    help: { type: 'boolean', default: false },
    rounds: { type: 'string', default: '60' },
    'power-cut': { type: 'string' },
    seed: { type: 'string', default: String(randomInt(1, 2 ** 31)) },
  },
})
const seed = readWhole('seed', values.seed)
const folder = mkdtempSync(join(tmpdir(), 'boathouse-peer-'))
const clients = 8
const tagsPerClient = 4

/** A tag, and what it may lead to. */
interface Held {
  readonly repository: string
  readonly tag: string
  acknowledged: Image | undefined
  /** Pushes whose answer never came. */
  maybe: Image[]
  /** Whether it was found wrong, and nothing was acknowledged since: it counts once. */
  isBroken: boolean
}

let counted = 0
let child: ChildProcess | undefined
process.once('exit', () => signal('SIGKILL'))

function signal(name: NodeJS.Signals): void {
  try {
    if (child?.pid !== undefined) process.kill(-child.pid, name)
  } catch {
    // all of it has ended
  }
}

function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const probe = createServer().listen(0, '127.0.0.1', () => {
      const address = probe.address()
      probe.close(() => resolve(typeof address === 'object' ? (address?.port ?? 0) : 0))
    })
  })
}

function commandOf(data: string, port: number): readonly [string, readonly string[]] {
  const config = join(folder, 'config.yml')
  const storage = { filesystem: { rootdirectory: data }, delete: { enabled: true } }
  const text = { version: 0.1, log: { level: 'error' }, storage, http: { addr: `127.0.0.1:${port}` } }
  writeFileSync(config, JSON.stringify(text))
  return ['docker-registry', ['serve', config]]
}

/** @returns the port */
async function start(data: string): Promise<number> {
  const port = await freePort()
  const [program, args] = commandOf(data, port)
  child = spawn(program, args, { detached: true, stdio: 'ignore', env: { PATH: process.env.PATH } })
  const wire = new Wire(port)
  for (const deadline = performance.now() + 60_000; performance.now() < deadline; ) {
    const answer = await wire.send({ method: 'GET', path: '/v2/', fresh: true })
    if (typeof answer !== 'string' && answer.reply.status === 200) {
      wire.close()
      return port
    }
    await delay(20)
  }
  throw new Error('the server does not get ready')
}

async function status(wire: Wire, request: Parameters<Wire['send']>[0]) {
  const answer = await wire.send(request)
  return typeof answer === 'string' ? undefined : answer.reply
}

type Pushed = 'acknowledged' | 'refused' | 'lost'

/** Sends an image to a tag. */
async function push(wire: Wire, held: Held, image: Image): Promise<Pushed> {
  for (const { digest, bytes } of image.blobs) {
    const opened = await status(wire, { method: 'POST', path: `/v2/${held.repository}/blobs/uploads/` })
    if (opened === undefined) return 'lost'
    const url = new URL(String(opened.headers.location), 'http://localhost')
    url.searchParams.set('digest', digest)
    const path = `${url.pathname}${url.search}`
    const headers = { 'content-type': 'application/octet-stream' }
    const closed = await status(wire, { method: 'PUT', path, body: bytes, headers })
    if (closed === undefined) return 'lost'
    if (closed.status !== 201) return 'refused'
  }
  return tag(wire, held, image)
}

/** Lets a tag lead to an image whose layers are in its repository. */
async function tag(wire: Wire, held: Held, image: Image): Promise<Pushed> {
  const { mediaType, bytes } = image.manifest
  held.maybe.push(image)
  const path = `/v2/${held.repository}/manifests/${held.tag}`
  const done = await status(wire, {
    method: 'PUT',
    path,
    body: bytes,
    headers: { 'content-type': mediaType },
  })
  if (done === undefined) return 'lost'
  held.maybe.pop()
  if (done.status !== 201) return 'refused'
  held.acknowledged = image
  held.maybe = []
  held.isBroken = false
  counted++
  return 'acknowledged'
}

async function work(port: number, held: readonly Held[], random: Random, isOver: () => boolean) {
  const wire = new Wire(port)
  const known: Image[] = []
  while (!isOver()) {
    const one = random.pick(held)
    if (one === undefined) break
    const again = random.chance(0.8) ? random.pick(known) : undefined
    if (again !== undefined) {
      if ((await tag(wire, one, again)) === 'lost') break
      continue
    }
    const image = makeImage(random, [])
    if (image.blobs.some(({ digest }) => !digest.startsWith('sha256:'))) continue
    if (!image.manifest.digest.startsWith('sha256:')) continue
    const pushed = await push(wire, one, image)
    if (pushed === 'lost') break
    if (pushed === 'acknowledged') known.push(image)
  }
  wire.close()
}

/** What is wrong with a tag; then what it leads to is what it must lead to from now on. */
async function check(wire: Wire, held: Held): Promise<string | undefined> {
  const path = `/v2/${held.repository}/manifests/${held.tag}`
  const legal = [held.acknowledged, ...held.maybe]
  const accept = 'application/vnd.oci.image.manifest.v1+json'
  const reply = await status(wire, { method: 'GET', path, headers: { accept } })
  held.maybe = []
  if (reply === undefined) return `${path}: no answer`
  if (reply.status === 404 && legal.includes(undefined)) return undefined
  const found = legal.find((image) => image?.manifest.bytes.equals(reply.body))
  held.acknowledged = found
  if (reply.status !== 200) return `${path}: ${reply.status}`
  if (found === undefined) return `${path}: other bytes`
  for (const { digest } of found.blobs) {
    const blob = await status(wire, { method: 'GET', path: `/v2/${held.repository}/blobs/${digest}` })
    if (blob?.status !== 200 || digestOf(blob.body) !== digest)
      return `${path}: blob ${digest}: ${blob?.status}`
  }
  return undefined
}

async function torture(): Promise<void> {
  const filesystem = filesystems.find((name) => name === values['power-cut'])
  const obstacle = filesystem && noPowerCuts(filesystem)
  if (obstacle !== undefined) {
    console.log(`peer: skipped: ${obstacle}`)
    return
  }
  const disk = filesystem && new Disk(filesystem)
  const data = join(disk?.root ?? folder, 'data')
  const all = Array.from({ length: clients }, (_, client) =>
    Array.from(
      { length: tagsPerClient },
      (_, tag): Held => ({
        repository: `team/app${client}`,
        tag: `v${tag}`,
        acknowledged: undefined,
        maybe: [],
        isBroken: false,
      }),
    ),
  )
  const rounds = readWhole('rounds', values.rounds)
  const how = filesystem === undefined ? 'kill -9' : `power cuts on ${filesystem}`
  console.log(`peer: docker-registry, ${how}, seed ${seed}`)
  const faults = new Map<string, number>()
  let bad = 0
  for (let round = 1; round <= rounds + 1; round++) {
    const random = new Random(seed, 'round', round)
    const port = await start(data)
    const wire = new Wire(port)
    const wrong: string[] = []
    for (const held of all.flat()) {
      const fault = await check(wire, held)
      if (fault !== undefined && !held.isBroken) wrong.push(fault)
      held.isBroken = fault !== undefined
    }
    wire.close()
    if (wrong.length > 0) {
      bad++
      console.log(`round ${round - 1}: ${wrong.length} more tags, first ${wrong[0]}`)
      for (const text of wrong) {
        const kind = text.slice(text.indexOf(': ') + 2).replace(/sha256:\w+/, '…')
        faults.set(kind, (faults.get(kind) ?? 0) + 1)
      }
    }
    let isOver = round > rounds
    const working = all.map((held, at) =>
      work(port, held, new Random(seed, 'client', round, at), () => isOver),
    )
    if (!isOver) await delay(random.int(100, 600))
    isOver = true
    if (disk !== undefined) {
      signal('SIGSTOP')
      disk.cutPower()
    }
    const gone = new Promise((resolve) => child?.once('close', resolve))
    signal('SIGKILL')
    await Promise.all(working)
    await gone
    disk?.restore()
  }
  for (const [kind, count] of faults) console.log(`  ${count} × ${kind}`)
  console.log(
    `peer: docker-registry, ${how}: ${bad} bad rounds of ${rounds}, broken tags ${[...faults.values()].reduce((sum, count) => sum + count, 0)}, acknowledged pushes ${counted}`,
  )
}

for (const [name, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const) {
  process.once(name, () => process.exit(code))
}
if (values.help) console.log(help)
else {
  await torture()
  rmSync(folder, { recursive: true, force: true })
}
process.exit()
