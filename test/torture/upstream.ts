import { randomInt } from 'node:crypto'
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { get } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { FakeUpstream } from '../mirror/fake-upstream.js'
import { faults } from '../mirror/faults.js'
import { checkFolder } from './checker.js'
import { digestOf } from './content.js'
import { Random } from './random.js'
import { type RunningServer, startServer } from './server.js'

/*
 * Pulls through a mirror whose upstream does whatever upstreams do wrong, while it and the server die and come back:
 * nothing wrong may be served or kept (reliability G30).
 */

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '10' },
    pulls: { type: 'string', default: '200' },
    seed: { type: 'string', default: String(randomInt(1, 2 ** 31)) },
    clients: { type: 'string', default: '8' },
  },
})
const [rounds, pulls, seed, clients] = [values.rounds, values.pulls, values.seed, values.clients].map(Number)
const folder = mkdtempSync(join(tmpdir(), 'boathouse-upstream-'))
const data = join(folder, 'data')
const upstream = new FakeUpstream({})
const violations: string[] = []
const counts: Record<string, number> = {}
/** What obeys a delay of minutes leaves the rest of a round idle. */
const names = Object.keys(faults).filter((name) => !name.includes('429') && !name.includes('503'))
const sizes = [0, 1, 100, 50_000, 100_000, 300_000, 1_100_000]
const objects: { path: string; bytes: Buffer }[] = []

function addImages(random: Random, round: number): void {
  for (let at = 0; at < (pulls ?? 0) / 8; at++) {
    const name = `r${random.int(0, 3)}/app${round}-${at}`
    const layers = [random, random].map(() => random.bytes(random.pick(sizes) ?? 0))
    upstream.addImage(name, 'latest', layers)
    for (const bytes of layers) objects.push({ path: `${name}/blobs/${digestOf(bytes)}`, bytes })
  }
}

interface Got {
  readonly status: number
  readonly isWhole: boolean
  readonly body: Buffer
  readonly range: string | undefined
}

function pull(port: number, path: string, headers: Record<string, string>, leaveAt: number) {
  return new Promise<Got | 'lost' | 'hung'>((resolve) => {
    const timer = setTimeout(() => {
      resolve('hung')
      request.destroy()
    }, 30_000)
    const request = get({ host: '127.0.0.1', port, path, headers, agent: false }, (response) => {
      const chunks: Buffer[] = []
      let count = 0
      const { statusCode: status = 0 } = response
      response.on('data', (chunk: Buffer) => {
        chunks.push(chunk)
        count += chunk.length
        if (count >= leaveAt) response.destroy()
      })
      response
        .on('error', () => undefined)
        .on('close', () => {
          clearTimeout(timer)
          const range = response.headers['content-range']
          resolve({ status, isWhole: response.complete, body: Buffer.concat(chunks), range })
        })
    })
    request.on('error', () => {
      clearTimeout(timer)
      resolve('lost')
    })
  })
}

const allowed = [200, 206, 404, 416, 429, 502, 503, 507]

async function pullOne(random: Random, port: number): Promise<void> {
  const { path, bytes } = random.pick(objects.slice(-(pulls ?? 0) / 3)) ?? {
    path: '',
    bytes: Buffer.alloc(0),
  }
  const form = random.pick([`/v2/docker.io/${path}`, `/v2/${path}?ns=docker.io`, `/v2/${path}`]) ?? ''
  const first = random.int(0, Math.max(0, bytes.length - 1))
  const hasRange = random.chance(0.2) && bytes.length > 0
  const last = random.chance(0.5) ? '' : String(random.int(first, bytes.length - 1))
  const leaveAt = random.chance(0.15) ? random.int(1, 200_000) : Number.POSITIVE_INFINITY
  const got = await pull(port, form, hasRange ? { range: `bytes=${first}-${last}` } : {}, leaveAt)
  const outcome = typeof got === 'string' ? got : `${got.status}${got.isWhole ? '' : ' cut'}`
  counts[outcome] = (counts[outcome] ?? 0) + 1
  if (got === 'hung') violations.push(`${form} hung`)
  if (typeof got === 'string' || !got.isWhole) return
  if (!allowed.includes(got.status)) violations.push(`${form} ended with ${got.status}: ${got.body}`)
  if (got.status === 200 && !got.body.equals(bytes)) violations.push(`${form} was served wrong`)
  if (got.status === 206) {
    const [, from = '0', to = '0'] = /^bytes (\d+)-(\d+)/.exec(got.range ?? '') ?? []
    if (!got.body.equals(bytes.subarray(Number(from), Number(to) + 1)))
      violations.push(`${form} was served wrong in part`)
  }
  if (got.status >= 400 && !got.body.toString().startsWith('{"errors":[{'))
    violations.push(`${form} ended with ${got.status} and without errors: ${got.body}`)
}

function start(random: Random): Promise<RunningServer> {
  const config = join(folder, 'config.yaml')
  const mirror = { name: 'docker.io', url: upstream.url.origin, bareNames: true, idleTimeout: '1s' }
  writeFileSync(config, JSON.stringify({ mirrors: [mirror] }))
  return startServer({
    main: fileURLToPath(new URL('../../src/main.js', import.meta.url)),
    data,
    log: join(folder, 'server.log'),
    workers: random.int(1, 2),
    expireAfter: 600,
    env: { BOATHOUSE_CONFIG: config },
  })
}

async function round(number: number): Promise<void> {
  const random = new Random(seed ?? 0, 'round', number)
  addImages(random, number)
  const server = await start(random)
  let fault: string | undefined
  let share = 0
  upstream.fault = () => (fault !== undefined && random.chance(share) ? faults[fault] : undefined)
  let left = pulls ?? 0
  const work = async (at: number) => {
    const own = new Random(seed ?? 0, 'client', number, at)
    while (left-- > 0) await pullOne(own, server.port)
  }
  const change = async () => {
    while (left > 0) {
      fault = random.pick(names)
      share = random.pick([0, 0.2, 0.5, 1]) ?? 0
      if (random.chance(0.05)) {
        await upstream.stop()
        await delay(random.int(10, 300))
        await upstream.start()
      }
      await delay(random.int(20, 200))
    }
  }
  const isKilled = random.chance(0.7)
  const all = Promise.all([...Array.from({ length: clients ?? 8 }, (_, at) => work(at)), change()])
  while (left > (isKilled ? 20 : 0)) await delay(20)
  if (isKilled) server.killAll()
  else server.stop()
  await all
  await server.gone
  upstream.fault = () => undefined
  const check = checkFolder(data, { mayBeMissing: () => true })
  violations.push(...check.violations)
  console.log(`round ${number}: ${JSON.stringify(counts)}, violations ${violations.length}`)
}

/** With the faults over, everything can be pulled, and nothing half done is left. */
async function finish(): Promise<void> {
  const server = await start(new Random(seed ?? 0, 'end'))
  for (const { path, bytes } of objects) {
    const got = await pull(server.port, `/v2/docker.io/${path}`, {}, Number.POSITIVE_INFINITY)
    const isRight = typeof got !== 'string' && got.status === 200 && got.isWhole && got.body.equals(bytes)
    if (isRight) continue
    // What was kept of an older try may be wrong: then it is thrown away now, and the next try is right.
    const again = await pull(server.port, `/v2/docker.io/${path}`, {}, Number.POSITIVE_INFINITY)
    if (typeof again === 'string' || !again.body.equals(bytes))
      violations.push(`${path} cannot be pulled in the end`)
  }
  server.stop()
  await server.gone
  violations.push(...checkFolder(data, { isCleanStop: true, mayBeMissing: () => true }).violations)
  for (const name of readdirSync(join(data, 'uploads'))) violations.push(`uploads/${name} is left over`)
}

await upstream.start()
console.log(`upstream: seed ${seed}, ${names.length} faults`)
for (let number = 1; number <= (rounds ?? 0) && violations.length < 20; number++) await round(number)
await finish()
await upstream.stop()
for (const violation of violations.slice(0, 20)) console.log(violation)
if (violations.length === 0) rmSync(folder, { recursive: true, force: true })
else console.log(`upstream: replay with --seed ${seed}; the data folder is kept in ${folder}`)
console.log(`upstream: ${JSON.stringify(counts)}, violations ${violations.length}`)
console.log(violations.length === 0 ? `${rounds} passed, 0 failed` : '0 passed, 1 failed')
process.exit(violations.length === 0 ? 0 : 1)
