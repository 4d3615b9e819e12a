import { MANIFEST_TYPE } from './image.js'
import type { JobResult, Target } from './jobs.js'
import { runJob, runWrk } from './load.js'
import { MIB } from './payload.js'
import type { Row, Sample } from './rows.js'
import type { Server } from './server.js'
import { type Mirrored, observe, pushBlobs, type Side, seedImage, settle } from './side.js'

const REPOSITORY = 'bench/shared'
const LIMIT_SECONDS = 60

/** Turns of a second of each kind in one sample of a hit. */
const HIT_TURNS = 1
const COLD_SIZE = 1024 * MIB
const SHARED_SIZE = 100 * MIB
const CLIENTS = 200
/** Twice what one client needs, about: who has not ended by then is counted as cut. */
const CROWD_SECONDS = 18
/** So slow that many clients and one can be compared: faster lines would measure the machine's loopback. */
const LINE_BYTES_PER_SECOND = 12 * MIB

const open = (side: Side) => side.mirrored('open', Number.POSITIVE_INFINITY)
const slow = (side: Side) => side.mirrored('slow', LINE_BYTES_PER_SECOND)

const urlOf = ({ target }: Server, path: string) => `http://${target.host}:${target.port}${path}`

/** The same image pushed to the server and behind it; where a mirror takes no pushes, to one of its make beside it. */
function bothImages(side: Side) {
  return side.once('mirrored image', async () => {
    const { upstream, mirror } = await open(side)
    const local = mirror.takesPushes ? mirror : await side.shared()
    const [remoteLayer, localLayer] = [
      await seedImage(upstream.target, REPOSITORY),
      await seedImage(local.target, REPOSITORY),
    ]
    return { mirror, local, remoteLayer, localLayer }
  })
}

type Images = Awaited<ReturnType<typeof bothImages>>

function hitRow(id: string, title: string, connections: number, what: (layer: string) => string): Row {
  const turns = async (
    { mirror, local, remoteLayer, localLayer }: Images,
    count: number,
    limit: number,
  ): Promise<Sample> => {
    const job = { connections, threads: 1, seconds: 1, accept: MANIFEST_TYPE }
    const rates = { hit: 0, local: 0 }
    const hit = async () => {
      const path = `/v2/${mirror.prefix}${REPOSITORY}/${what(remoteLayer)}`
      rates.hit += (await runWrk({ ...job, url: urlOf(mirror, path) }, limit)) / count
    }
    const ownPull = async () => {
      const path = `/v2/${REPOSITORY}/${what(localLayer)}`
      rates.local += (await runWrk({ ...job, url: urlOf(local, path) }, limit)) / count
    }
    const load = async () => {
      for (let n = 0; n < count; n += 1) {
        for (const turn of n % 2 === 0 ? [hit, ownPull] : [ownPull, hit]) await turn()
      }
    }
    const servers = mirror === local ? [mirror] : [mirror, local]
    const { cores } = await observe(servers, load, () => 2 * count)
    const note = `the last: ${rates.hit.toFixed(0)} req/s of hits, ${rates.local.toFixed(0)} of local pulls`
    return { value: rates.hit / rates.local, cores, note }
  }
  return {
    id,
    title,
    unit: '×',
    better: 'higher',
    goal: { kind: 'at-least', value: 0.95 },
    repetitions: 3,
    disk: 0.1,
    async prepare(side) {
      await turns(await bothImages(side), 1, LIMIT_SECONDS)
    },
    sample: async (side, limit) => turns(await bothImages(side), HIT_TURNS, limit),
  }
}

/** One blob that the mirror has not got yet. */
async function newBlob({ upstream }: Mirrored, size: number): Promise<string> {
  const [digest = ''] = await pushBlobs(upstream, REPOSITORY, 1, size)
  await settle(upstream.folder)
  return digest
}

function pull(
  target: Target,
  prefix: string,
  digest: string,
  clients: number,
  limit: number,
): Promise<JobResult> {
  const paths = [`/v2/${prefix}${REPOSITORY}/blobs/${digest}`]
  return runJob(
    { kind: 'pull', target, paths, connections: clients, requests: clients, seconds: CROWD_SECONDS },
    limit,
  )
}

/** What a cold pull is to a pull from the upstream: its rate, and how much later its first byte comes. */
interface Cold {
  readonly rate: Sample
  readonly delay: Sample
}

async function cold(side: Side, limit: number): Promise<Cold> {
  const mirrored = await open(side)
  const digest = await newBlob(mirrored, COLD_SIZE)
  const direct = await pull(mirrored.upstream.target, '', digest, 1, limit)
  const { mirror } = mirrored
  const load = () => pull(mirror.target, mirror.prefix, digest, 1, limit)
  const { result, cores } = await observe(mirror, load, ({ seconds }) => seconds)
  const rates = [result, direct].map(({ bytes, seconds }) => (bytes / MIB / seconds).toFixed(0))
  const first = [result, direct].map(({ firstByteMs = Number.NaN }) => firstByteMs)
  const note = `the last: ${rates.join(' MiB/s cold, ')} MiB/s from the upstream; first byte after ${first.map((ms) => ms.toFixed(1)).join(' and ')} ms`
  return {
    rate: { value: direct.seconds / result.seconds, cores, note },
    delay: { value: (first[0] ?? Number.NaN) - (first[1] ?? Number.NaN), cores, note },
  }
}

/** Two rows about the same pulls: each sample of the second is one of the first's, where that ran. */
function coldRows(): Row[] {
  const taken = new WeakMap<Side, Cold[]>()
  const shared = { repetitions: 2, disk: 8, better: 'higher' } as const
  const rate: Row = {
    ...shared,
    id: 'mirror-cold',
    title: 'Cold pull of 1 GiB: mirror / upstream itself',
    unit: '×',
    goal: { kind: 'at-least', value: 0.8 },
    async sample(side, limit) {
      const figures = await cold(side, limit)
      taken.set(side, [...(taken.get(side) ?? []), figures])
      return figures.rate
    },
  }
  const delay: Row = {
    ...shared,
    id: 'mirror-first',
    title: 'First byte of a cold pull: after the upstream’s',
    unit: 'ms',
    better: 'lower',
    goal: { kind: 'at-most', value: 20 },
    sample: async (side, limit) => (taken.get(side)?.shift() ?? (await cold(side, limit))).delay,
  }
  return [rate, delay]
}

/** Many clients and one, each with a blob that is nowhere but at the upstream. */
async function crowd(side: Side, limit: number): Promise<{ time: Sample; bytes: Sample }> {
  const mirrored = await slow(side)
  const { mirror, line } = mirrored
  const alone = await pull(mirror.target, mirror.prefix, await newBlob(mirrored, SHARED_SIZE), 1, limit)
  const digest = await newBlob(mirrored, SHARED_SIZE)
  const before = line?.received() ?? Number.NaN
  const load = () => pull(mirror.target, mirror.prefix, digest, CLIENTS, limit)
  const { result, cores } = await observe(mirror, load, ({ seconds }) => seconds)
  const share = ((line?.received() ?? Number.NaN) - before) / SHARED_SIZE
  const note = `${result.done} of ${CLIENTS} served after ${result.seconds.toFixed(1)} s, one alone after ${alone.seconds.toFixed(1)} s`
  return {
    time: { value: result.seconds / alone.seconds, cores, note },
    bytes: { value: Math.round(share * 100) / 100, cores, note },
  }
}

function crowdRow(id: string, title: string, goal: number, pick: 'time' | 'bytes'): Row {
  return {
    id,
    title,
    unit: '×',
    better: 'lower',
    goal: { kind: 'at-most', value: goal },
    repetitions: 1,
    disk: 1,
    // Both figures come from one crowd.
    sample: async (side, limit) => (await side.once('crowd', () => crowd(side, limit)))[pick],
  }
}

/** The rows about the mirror. */
export function makeMirrorRows(): readonly Row[] {
  const clients = `${CLIENTS} clients on one cold blob of 100 MiB`
  return [
    hitRow('mirror-manifest', 'GET manifest by tag: hit / local', 64, () => 'manifests/latest'),
    hitRow('mirror-blob', 'GET blob of 1 MiB: hit / local', 32, (layer) => `blobs/${layer}`),
    ...coldRows(),
    crowdRow('mirror-crowd', `${clients}: last one / one alone`, 1.5, 'time'),
    // A little more than once: heads of answers come over the line, too.
    crowdRow('mirror-bytes', `${clients}: bytes from upstream / its size`, 1.01, 'bytes'),
  ]
}
