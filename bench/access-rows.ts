import { MANIFEST_TYPE } from './image.js'
import { runJob, runWrk } from './load.js'
import { MemoryWatch, median, percentile } from './measure.js'
import { MIB } from './payload.js'
import type { Row, Sample } from './rows.js'
import type { GuardedServer, Server } from './server.js'
import { observe, type Side, seedImage } from './side.js'

const REPOSITORY = 'bench/shared'
const MANIFEST = `/v2/${REPOSITORY}/manifests/latest`
const PREPARE_LIMIT_SECONDS = 60

const FLOOD_SECONDS = 30
const IDLE_SECONDS = 6
/** Honest clients come from the attackers' address and from another one. */
const ADDRESSES = ['127.0.0.1', '127.0.0.2']

const urlOf = ({ target }: Server, path: string) => `http://${target.host}:${target.port}${path}`

/** A guarded server with an image, and the digest of the image's first layer. */
function guardedImage(side: Side, name: string): Promise<{ server: GuardedServer; layer: string }> {
  return side.once(`image of ${name}`, async () => {
    const server = await side.guarded(name)
    const target = { ...server.target, authorization: server.basic }
    return { server, layer: await seedImage(target, REPOSITORY) }
  })
}

/** The server that asks nobody, with the image that the rows about reading have there too. */
async function openImage(side: Side): Promise<Server> {
  const server = await side.shared()
  await side.once('image', () => seedImage(server.target, REPOSITORY))
  return server
}

/** What reading by tag costs more when the server asks who reads. */
function tokenRow(seconds: number): Row {
  const turns = async (side: Side, count: number, limit: number): Promise<Sample> => {
    const { server } = await guardedImage(side, 'guarded')
    const open = await openImage(side)
    const job = { connections: 64, threads: 1, seconds: 1, accept: MANIFEST_TYPE }
    const authorization = `Bearer ${await server.token(REPOSITORY)}`
    const rates = { token: 0, none: 0 }
    const withToken = async () => {
      rates.token += (await runWrk({ ...job, url: urlOf(server, MANIFEST), authorization }, limit)) / count
    }
    const without = async () => {
      rates.none += (await runWrk({ ...job, url: urlOf(open, MANIFEST) }, limit)) / count
    }
    // Short turns, and many: how connections fall to the workers differs from one turn to the next.
    const load = async () => {
      for (let n = 0; n < count; n += 1) {
        for (const turn of n % 2 === 0 ? [withToken, without] : [without, withToken]) await turn()
      }
    }
    const { cores } = await observe([server, open], load, () => 2 * count)
    const note = `the last: ${rates.token.toFixed(0)} req/s with a token, ${rates.none.toFixed(0)} without auth`
    return { value: rates.token / rates.none, cores, note }
  }
  return {
    id: 'manifest-token',
    title: 'GET manifest by tag: with a token / without auth',
    unit: '×',
    better: 'higher',
    goal: { kind: 'at-least', value: 0.85 },
    repetitions: 5,
    ofOursAlone: true,
    disk: 0.1,
    async prepare(side) {
      await turns(side, 1, PREPARE_LIMIT_SECONDS)
    },
    sample: (side, limit) => turns(side, Math.ceil(seconds / 2), limit),
  }
}

/** What a flood of wrong logins did to those who pull meanwhile, and to the server's memory. */
interface Flood {
  readonly slowdown: Sample
  readonly growth: Sample
}

/**
 * Brings a server to the size that it has in use, since the memory of a new one grows with any requests: full speed
 * for 3 seconds, and a few mistyped passwords, from an address that nobody else comes from.
 */
async function warmUp(server: GuardedServer, token: string): Promise<void> {
  const job = { url: urlOf(server, MANIFEST), connections: 64, threads: 1, seconds: 3 }
  await runWrk({ ...job, accept: MANIFEST_TYPE, authorization: `Bearer ${token}` }, PREPARE_LIMIT_SECONDS)
  const target = { ...server.target, from: '127.0.0.3' }
  const typing = { connections: 10, perSecond: 10, seconds: 2 }
  await runJob({ kind: 'flood', target, paths: ['/v2/'], user: 'somebody', ...typing }, PREPARE_LIMIT_SECONDS)
}

const mib = (bytes: number) => `${(bytes / MIB).toFixed(0)} MiB`

const memoryOf = (server: GuardedServer) => new MemoryWatch(server.pid).stop()

async function flood(side: Side): Promise<Flood> {
  const { server, layer } = await guardedImage(side, 'flooded')
  const token = await server.token(REPOSITORY)
  const visits = {
    kind: 'visits',
    target: { ...server.target, authorization: `Bearer ${token}` },
    from: ADDRESSES,
    paths: [MANIFEST, `/v2/${REPOSITORY}/blobs/${layer}`],
    clients: 20,
    perSecond: 100,
  } as const
  const attack = {
    kind: 'flood',
    target: server.target,
    paths: ['/auth/token?service=boathouse', '/v2/'],
    user: server.user,
    connections: 50,
    perSecond: 1000,
    seconds: FLOOD_SECONDS,
  } as const
  const cold = memoryOf(server)
  await warmUp(server, token)
  const { latencies: idle = [] } = await runJob({ ...visits, seconds: IDLE_SECONDS }, PREPARE_LIMIT_SECONDS)
  const before = memoryOf(server)
  const watch = new MemoryWatch(server.pid)
  const both = () =>
    Promise.all([
      runJob(attack, PREPARE_LIMIT_SECONDS),
      runJob({ ...visits, seconds: FLOOD_SECONDS }, PREPARE_LIMIT_SECONDS),
    ])
  const { result, cores } = await observe(server, both, () => FLOOD_SECONDS).finally(() => watch.stop())
  const memory = watch.stop()
  const [wrong, { latencies = [] }] = result
  const p99 = { idle: percentile(idle, 0.99), flooded: percentile(latencies, 0.99) }
  const statuses = Object.entries(wrong.statuses ?? {}).map(([status, count]) => `${count} × ${status}`)
  const ms = (value: number) => `${value.toFixed(2)} ms`
  const medians = `median ${ms(median(idle))} and ${ms(median(latencies))}`
  const figures = `p99 ${ms(p99.idle)} idle, ${ms(p99.flooded)} flooded; ${medians}`
  const note = `${figures}; ${latencies.length} pulls; wrong logins: ${statuses.join(', ')}`
  return {
    slowdown: { value: p99.flooded / p99.idle, cores, note },
    growth: {
      value: (memory.rss - before.rss) / MIB,
      cores,
      memory,
      note: `from ${mib(before.rss)} after some use; ${mib(cold.rss)} when new`,
    },
  }
}

function floodRow(
  id: string,
  title: string,
  unit: string,
  goal: number,
  pick: (flood: Flood) => Sample,
): Row {
  return {
    id,
    title,
    unit,
    better: 'lower',
    goal: { kind: 'at-most', value: goal },
    repetitions: 1,
    ofOursAlone: true,
    disk: 0.1,
    // Both figures come from one flood.
    sample: async (side) => pick(await side.once('flood', () => flood(side))),
  }
}

/** Tokens for a client whose password is remembered. */
function issueRow(seconds: number): Row {
  const load = async (side: Side, duration: number, limit: number) => {
    const server = await side.guarded('one-core', true)
    const url = urlOf(server, `/auth/token?service=boathouse&scope=repository:${REPOSITORY}:pull`)
    const job = { url, connections: 16, threads: 1, seconds: duration, authorization: server.basic }
    return observe(
      server,
      () => runWrk(job, limit),
      () => duration,
    )
  }
  return {
    id: 'token-issue',
    title: 'Tokens for a remembered login, server on one core',
    unit: 'req/s',
    better: 'higher',
    goal: { kind: 'at-least', value: 1500 },
    repetitions: 3,
    ofOursAlone: true,
    disk: 0.1,
    async prepare(side) {
      const server = await side.guarded('one-core', true)
      await server.token(REPOSITORY) // the one slow comparison of the password
      await load(side, 1, PREPARE_LIMIT_SECONDS)
    },
    async sample(side, limit) {
      const { result, cores } = await load(side, seconds, limit)
      return { value: result, cores }
    },
  }
}

/** The rows about logins and tokens. */
export function makeAccessRows(seconds: number): readonly Row[] {
  const flooded = `${FLOOD_SECONDS} s of 1,000 wrong logins a second`
  return [
    tokenRow(seconds),
    issueRow(seconds),
    floodRow('flood-pulls', `p99 of pulls, ${flooded}: flooded / idle`, '×', 2, ({ slowdown }) => slowdown),
    floodRow('flood-memory', `Memory that ${flooded} take`, 'MiB', 64, ({ growth }) => growth),
  ]
}
