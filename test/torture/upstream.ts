import { randomInt } from 'node:crypto'
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { type FakeExchange, FakeUpstream, type Fault } from '../mirror/fake-upstream.js'
import { faults } from '../mirror/faults.js'
import { checkFolder } from './checker.js'
import { Random } from './random.js'
import { type RunningServer, startServer } from './server.js'
import type { StoredIndex } from './stored.js'
import { type KnownRepository, makeRepository, makeSharedLayers } from './upstream-content.js'
import {
  ask,
  blobHead,
  blobPull,
  digestPull,
  makePull,
  type Pull,
  referrersPull,
  tagPull,
  tagsPull,
} from './upstream-pulls.js'

/*
 * Pulls through a mirror whose upstream does whatever upstreams do wrong, moves its tags and lets its tokens end
 * after a second, while it and the server die and come back: nothing wrong may be served or kept, nobody may wait
 * for ever, and no answer may be a 500 or a 401 (reliability G30, R40, R47).
 */

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '10' },
    pulls: { type: 'string', default: '200' },
    seed: { type: 'string', default: String(randomInt(1, 2 ** 31)) },
    clients: { type: 'string', default: '8' },
  },
})
const number = (text: string) => {
  const value = Number(text)
  if (!Number.isSafeInteger(value) || value < 1) throw new Error(`${text} is no number`)
  return value
}
const rounds = number(values.rounds)
const pulls = number(values.pulls)
const seed = number(values.seed)
const clients = number(values.clients)

const folder = mkdtempSync(join(tmpdir(), 'boathouse-upstream-'))
const data = join(folder, 'data')
const user = { username: 'mirror', password: 'sesame-open-7f3a' }
const upstream = new FakeUpstream({ auth: 'bearer', user, tokenLife: 1 })
const repositories: KnownRepository[] = []
const violations: string[] = []
const counts: Record<string, number> = {}
const asked: Record<string, number> = {}
/** Pairs of something asked for and a fault that the upstream had for it. */
const met = new Set<string>()

const short429: Fault = ({ send }) =>
  send({ status: 429, headers: { 'retry-after': '1' }, body: Buffer.from('no') })
/** What obeys a delay of minutes leaves the rest of a round idle: it gets a short one. */
const allFaults: Readonly<Record<string, Fault>> = {
  ...Object.fromEntries(Object.entries(faults).filter(([name]) => !name.includes('429'))),
  'status 429': short429,
}
const names = Object.keys(allFaults)
/** A list has no digest: nobody can see that a letter of it has changed. */
const unseenInLists = ['wrong bytes']
/** Paths behind `/v2/` about which a HEAD was answered wrongly. */
const lies = new Set<string>()

/** Chooses what the upstream does to a request. */
function faultFor(
  { method, path }: FakeExchange,
  fault: string | undefined,
  isHit: boolean,
): Fault | undefined {
  if (fault === undefined || !isHit) return undefined
  const kind = /\/(manifests|blobs|tags|referrers)\/|^\/(token)/.exec(path)
  const what = kind?.[1] ?? kind?.[2] ?? 'other'
  if (['tags', 'referrers'].includes(what) && unseenInLists.includes(fault)) return undefined
  if (method === 'HEAD' && what === 'blobs') lies.add(path.slice('/v2/'.length))
  met.add(`${method} ${what}: ${fault}`)
  return allFaults[fault]
}

const allowed = [200, 206, 404, 416, 429, 502, 503]

/** What is wrong with how a pull ended. */
function judge(pull: Pull, got: Awaited<ReturnType<typeof ask>>): string | undefined {
  if (got === 'hung') return 'hung'
  if (got === 'lost' || !got.isWhole) return undefined
  const { status, body } = got
  if (!allowed.includes(status)) return `ended with ${status}: ${body}`
  if (status === 416 && pull.headers?.range === undefined) return 'ended with 416'
  if (status < 400) return pull.judge(got)
  const isError = pull.method === 'HEAD' || body.toString().startsWith('{"errors":[{')
  return isError ? undefined : `ended with ${status} and without errors: ${body}`
}

async function pullOne(random: Random, port: number): Promise<void> {
  const repository = random.pick(repositories.slice(-40))
  if (repository === undefined) throw new Error('an upstream without repositories')
  const pull = makePull(random, repository, (path) => !lies.has(path))
  const form = random.pick([
    `/v2/docker.io/${pull.path}`,
    `/v2/${pull.path}?ns=docker.io`,
    `/v2/${pull.path}`,
  ])
  const leaveAt = random.chance(0.15) ? random.int(1, 200_000) : undefined
  const got = await ask(port, { ...pull, path: form ?? '' }, leaveAt)
  const outcome = typeof got === 'string' ? got : `${got.status}${got.isWhole ? '' : ' cut'}`
  counts[outcome] = (counts[outcome] ?? 0) + 1
  asked[pull.kind] = (asked[pull.kind] ?? 0) + 1
  const fault = judge(pull, got)
  if (fault !== undefined) violations.push(`${pull.method} ${form} ${fault}`)
  // While the breaker is open, asking on and on tells nothing.
  if (typeof got !== 'string' && [429, 502].includes(got.status)) await delay(60)
}

function start(random: Random, freshness = random.pick(['0s', '300ms', '1h'])): Promise<RunningServer> {
  const config = join(folder, 'config.yaml')
  const mirror = {
    name: 'docker.io',
    url: upstream.url.origin,
    ...user,
    bareNames: true,
    idleTimeout: '1s',
    freshness,
    public: random.chance(0.5),
  }
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

/** No tag points where the upstream's never pointed; the checker knows that bytes and digests agree. */
function checkTags(index: StoredIndex): void {
  for (const { name, tags } of repositories) {
    for (const [tag, digest] of index.repositories.get(`docker.io/${name}`)?.tags ?? []) {
      if (tags.get(tag)?.includes(digest) !== true) violations.push(`${name}:${tag} is kept as ${digest}`)
    }
  }
}

/** Changes what the upstream does wrong, lets it die now and then, and moves tags. */
async function misbehave(random: Random, isGoingOn: () => boolean): Promise<void> {
  while (isGoingOn()) {
    // Three failures in a row open the breaker: what is asked then tells little.
    const share = random.weighted({ 0: 4, 5: 4, 15: 4, 100: 1 })
    const only = random.chance(0.3) ? random.pick(names) : undefined
    upstream.fault = (exchange) =>
      faultFor(exchange, only ?? random.pick(names), random.int(1, 100) <= Number(share))
    const moved = random.pick(repositories.slice(-40))
    const target = random.pick([...(moved?.manifests.values() ?? [])])
    if (moved !== undefined && target !== undefined) moved.moveTag('latest', target)
    if (random.chance(0.05)) {
      await upstream.stop()
      await delay(random.int(10, 300))
      await upstream.start()
    }
    await delay(random.int(20, 200))
  }
}

async function round(at: number): Promise<void> {
  const random = new Random(seed, 'round', at)
  const shared = makeSharedLayers(random)
  for (let n = 0; n < pulls / 20; n++) {
    repositories.push(makeRepository(upstream, `r${random.int(0, 3)}/app${at}-${n}`, random, shared))
  }
  const server = await start(random)
  let left = pulls
  const work = async (client: number) => {
    const own = new Random(seed, 'client', at, client)
    while (left-- > 0) await pullOne(own, server.port)
  }
  const workers = Array.from({ length: clients }, (_, client) => work(client))
  const all = Promise.all([...workers, misbehave(random, () => left > 0)])
  const isKilled = random.chance(0.7)
  while (left > (isKilled ? 10 : 0)) await delay(20)
  if (isKilled) server.killAll()
  else server.stop()
  await all
  await server.gone
  upstream.fault = () => undefined
  const check = checkFolder(data, { mayBeMissing: () => true })
  violations.push(...check.violations)
  checkTags(check.index)
}

/** Everything that a repository has, as it is now and whole. */
function everything(repository: KnownRepository): Pull[] {
  const subjects = [...repository.referrers.keys()]
  return [
    ...[...repository.tags.keys()].map((tag) => tagPull(repository, tag, 'GET', true)),
    ...[...repository.manifests.values()].map((manifest) => digestPull(manifest)),
    ...repository.blobs.flatMap((blob) => [blobHead(blob, () => true), blobPull(blob)]),
    tagsPull(repository, true),
    ...subjects.map((subject) => referrersPull(repository, subject, true)),
  ]
}

/** With the faults over, everything can be pulled, and nothing half done is left. */
async function finish(): Promise<void> {
  const server = await start(new Random(seed, 'end'), '0s')
  const all = repositories.flatMap(everything)
  for (const pull of all) {
    // What was kept of an older try may be wrong: then it is thrown away now, and the next try is right.
    let fault: string | undefined = 'is not there'
    for (let tries = 0; fault !== undefined && tries < 2; tries++) {
      const got = await ask(server.port, { ...pull, path: `/v2/docker.io/${pull.path}` })
      const isThere = typeof got !== 'string' && got.status === 200 && got.isWhole
      fault = isThere ? pull.judge(got) : `ended with ${typeof got === 'string' ? got : got.status}`
    }
    if (fault !== undefined) violations.push(`in the end, ${pull.method} ${pull.path} ${fault}`)
  }
  server.stop()
  await server.gone
  violations.push(...checkFolder(data, { isCleanStop: true, mayBeMissing: () => true }).violations)
  for (const name of readdirSync(join(data, 'uploads'))) violations.push(`uploads/${name} is left over`)
  console.log(`upstream: ${all.length} things pulled in the end`)
}

/** @returns whether it went without a violation */
async function step(name: string, work: () => Promise<void>): Promise<boolean> {
  const before = violations.length
  await work()
  for (const violation of violations.slice(before)) console.log(`${name}: ${violation.slice(0, 500)}`)
  return violations.length === before
}

const mostViolations = 20
const begin = performance.now()
await upstream.start()
console.log(`upstream: seed ${seed}, ${names.length} faults`)
const results: boolean[] = []
for (let at = 1; at <= rounds && violations.length < mostViolations; at++) {
  results.push(await step(`round ${at}`, () => round(at)))
}
results.push(await step('end', finish))
await upstream.stop()
if (violations.length === 0) rmSync(folder, { recursive: true, force: true })
else console.log(`upstream: replay with --seed ${seed}; the data folder is kept in ${folder}`)
const sum = Object.values(counts).reduce((one, other) => one + other, 0)
console.log(`upstream: ${sum} pulls: ${JSON.stringify(asked)}; answers: ${JSON.stringify(counts)}`)
console.log(
  `upstream: ${met.size} pairs of request and fault; ${((performance.now() - begin) / 1000).toFixed(0)} s; violations ${violations.length}`,
)
const failed = results.filter((isRight) => !isRight).length
console.log(`${results.length - failed} passed, ${failed} failed`)
process.exit(failed === 0 ? 0 : 1)
