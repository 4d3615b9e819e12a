import { rmSync } from 'node:fs'
import { get } from 'node:http'
import { MANIFEST_TYPE } from './image.js'
import type { Target } from './jobs.js'
import { runJob, runWrk } from './load.js'
import { median } from './measure.js'
import { MIB } from './payload.js'
import { peer } from './peer.js'
import type { Row, Sample } from './rows.js'
import type { Server } from './server.js'
import { observe, pushBlobs, type Side, seedImage, settle } from './side.js'
import { SlowLine } from './slow-line.js'

const REPOSITORY = 'bench/shared'
const GIB = 1024 * MIB
const PREPARE_LIMIT_SECONDS = 60

/** What an upstream far away sends in a second. */
const LINE_BYTES = 5 * MIB
const HERD = 200

/** Bytes a second of a fast line in a building. */
const GIGABIT = 125_000_000
const HERD_BLOB = 100 * MIB

/** Turns that are not counted: a new server becomes faster for some seconds, and not everywhere at once. */
const warmUp = 4

/** The upstream of all mirrors here: docker-registry, whichever side asks it. */
const upstream = (side: Side): Promise<Server> =>
  side.once('upstream', async () => {
    const server = await peer.start(side.freshFolder())
    side.owns(server)
    return server
  })

const bigBlob = (side: Side): Promise<string> =>
  side.once('upstream blob', async () => (await pushBlobs(await upstream(side), REPOSITORY, 1, GIB))[0] ?? '')

/** Does something with a mirror that holds nothing, and removes it. */
async function withMirror<T>(side: Side, of: Target, work: (mirror: Mirror) => Promise<T>): Promise<T> {
  const { startMirror } = side.registry
  if (startMirror === undefined) throw new Error(`${side.registry.name} is no mirror`)
  const folder = side.freshFolder()
  const mirror = await startMirror(folder, of)
  try {
    return await work(mirror)
  } finally {
    await mirror.stop()
    rmSync(folder, { recursive: true, force: true })
  }
}

/** A mirror, and what the names of its repositories begin with. */
export interface Mirror extends Server {
  readonly prefix: string
}

const urlOf = ({ target }: { readonly target: Target }, path: string) =>
  `http://${target.host}:${target.port}${path}`

/** Seconds that a number of clients need for one blob, each on its own connection. */
async function pull(target: Target, path: string, clients: number, limit: number): Promise<number> {
  const job = { kind: 'pull', target, paths: [path], connections: clients, requests: clients } as const
  return (await runJob(job, limit)).seconds
}

/** What a hit costs more than a pull of what was pushed to the same server. */
function hitRow(
  id: string,
  title: string,
  connections: number,
  seconds: number,
  what: 'blob' | 'manifest',
): Row {
  const prepared = (side: Side) =>
    side.once('warm mirror', async () => {
      const source = await upstream(side)
      const layer = await seedImage(source.target, REPOSITORY)
      const { startMirror } = side.registry
      if (startMirror === undefined) throw new Error(`${side.registry.name} is no mirror`)
      const mirror = await startMirror(side.freshFolder(), source.target)
      side.owns(mirror)
      const own = await seedImage(mirror.target, REPOSITORY)
      const hits = { manifest: 'manifests/latest', blob: `blobs/${layer}` }
      for (const path of Object.values(hits)) {
        await pull(mirror.target, `/v2/${mirror.prefix}${REPOSITORY}/${path}`, 1, PREPARE_LIMIT_SECONDS)
      }
      return { mirror, hits, locals: { manifest: 'manifests/latest', blob: `blobs/${own}` } }
    })
  const turns = async (side: Side, count: number, limit: number): Promise<Sample> => {
    const { mirror, hits, locals } = await prepared(side)
    const hit = `/v2/${mirror.prefix}${REPOSITORY}/${hits[what]}`
    const local = `/v2/${REPOSITORY}/${locals[what]}`
    const job = { connections, threads: 1, seconds: 1, accept: MANIFEST_TYPE }
    const rates = { hit: 0, local: 0 }
    const load = async () => {
      for (let n = 0; n < count; n += 1) {
        for (const kind of n % 2 === 0 ? (['hit', 'local'] as const) : (['local', 'hit'] as const)) {
          const url = urlOf(mirror, kind === 'hit' ? hit : local)
          rates[kind] += (await runWrk({ ...job, url }, limit)) / count
        }
      }
    }
    const { cores } = await observe(mirror, load, () => 2 * count)
    const note = `the last: ${rates.hit.toFixed(0)} req/s from the mirror, ${rates.local.toFixed(0)} of its own`
    return { value: rates.hit / rates.local, cores, note }
  }
  return {
    id,
    title,
    unit: '×',
    better: 'higher',
    goal: { kind: 'at-least', value: 0.95 },
    repetitions: 7,
    ofOursAlone: true,
    disk: 0.1,
    prepare: async (side) => {
      await turns(side, warmUp, PREPARE_LIMIT_SECONDS)
    },
    sample: (side, limit) => turns(side, Math.ceil(seconds / 2), limit),
  }
}

const coldRow: Row = {
  id: 'mirror-cold',
  title: 'Cold pull of 1 GiB: through the mirror / from the upstream',
  unit: '×',
  better: 'higher',
  goal: { kind: 'at-least', value: 0.8 },
  repetitions: 3,
  disk: 2,
  async prepare(side) {
    await bigBlob(side)
  },
  async sample(side, limit) {
    const source = await upstream(side)
    const blob = await bigBlob(side)
    const direct = await pull(source.target, `/v2/${REPOSITORY}/blobs/${blob}`, 1, limit)
    return withMirror(side, source.target, async (mirror) => {
      await settle(mirror.folder)
      const path = `/v2/${mirror.prefix}${REPOSITORY}/blobs/${blob}`
      const { result, cores } = await observe(
        [source, mirror],
        () => pull(mirror.target, path, 1, limit),
        (seconds) => seconds,
      )
      const note = `the last: ${direct.toFixed(2)} s from the upstream, ${result.toFixed(2)} s through the mirror`
      return { value: direct / result, cores, note }
    })
  },
}

const coldLineRow: Row = {
  id: 'mirror-cold-line',
  title: 'The same of 256 MiB, over a line of 1 Gbit/s to the upstream',
  unit: '×',
  better: 'higher',
  goal: { kind: 'at-least', value: 0.8 },
  repetitions: 3,
  disk: 1,
  async sample(side, limit) {
    const source = await upstream(side)
    const [blob] = await side.once('line blob', () => pushBlobs(source, REPOSITORY, 1, 256 * MIB))
    const line = new SlowLine(source.target, GIGABIT)
    try {
      const target = await line.open()
      const direct = await pull(target, `/v2/${REPOSITORY}/blobs/${blob}`, 1, limit)
      return await withMirror(side, target, async (mirror) => {
        const through = await pull(mirror.target, `/v2/${mirror.prefix}${REPOSITORY}/blobs/${blob}`, 1, limit)
        const note = `the last: ${direct.toFixed(2)} s from the upstream, ${through.toFixed(2)} s through the mirror`
        return { value: direct / through, note }
      })
    } finally {
      line.close()
    }
  },
}

/** Milliseconds until the first byte of a blob has come. Resolves when the rest has come, too. */
function firstByte(target: Target, path: string): Promise<number> {
  const begin = performance.now()
  return new Promise((resolve, reject) => {
    get(urlOf({ target }, path), { agent: false }, (answer) => {
      if (answer.statusCode !== 200) reject(new Error(`the answer has status ${answer.statusCode}`))
      let waited = 0
      answer.once('data', () => {
        waited = performance.now() - begin
        answer.resume()
      })
      answer.on('end', () => resolve(waited)).on('error', reject)
    }).on('error', reject)
  })
}

const firstByteRow: Row = {
  id: 'mirror-first-byte',
  title: 'First byte of a cold blob of 8 MiB: later than from the upstream',
  unit: 'ms',
  better: 'lower',
  goal: { kind: 'at-most', value: 20 },
  repetitions: 3,
  disk: 0.2,
  async sample(side) {
    const source = await upstream(side)
    const blobs = await side.once('small upstream blobs', () => pushBlobs(source, REPOSITORY, 9, 8 * MIB))
    return withMirror(side, source.target, async (mirror) => {
      const later: number[] = []
      await firstByte(mirror.target, `/v2/${mirror.prefix}${REPOSITORY}/blobs/${blobs[0]}`)
      for (const blob of blobs.slice(1)) {
        await settle(mirror.folder) // no blob pays for the bytes of the one before
        const direct = await firstByte(source.target, `/v2/${REPOSITORY}/blobs/${blob}`)
        later.push(
          (await firstByte(mirror.target, `/v2/${mirror.prefix}${REPOSITORY}/blobs/${blob}`)) - direct,
        )
      }
      return { value: median(later) }
    })
  },
}

/** Two rows of one load: how much longer all need than one alone, and what the upstream sent for them. */
function herdRow(id: string, title: string, pick: (herd: Herd) => number, goal: number): Row {
  return {
    id,
    title,
    unit: '×',
    better: 'lower',
    goal: { kind: 'at-most', value: goal },
    repetitions: 1,
    oursOnly: true,
    disk: 0.5,
    async sample(side, limit) {
      const herd = await side.once('herd', () => runHerd(side, limit))
      const note = `${HERD} clients ${herd.all.toFixed(1)} s, one ${herd.one.toFixed(1)} s, over a line of ${LINE_BYTES / MIB} MiB/s`
      return { value: pick(herd), note }
    },
  }
}

interface Herd {
  /** Seconds. */
  readonly one: number
  readonly all: number
  /** Bytes that the upstream sent for all. */
  readonly bytes: number
}

async function runHerd(side: Side, limit: number): Promise<Herd> {
  const source = await upstream(side)
  const [blob] = await pushBlobs(source, REPOSITORY, 1, HERD_BLOB)
  const measure = async (clients: number) => {
    const line = new SlowLine(source.target, LINE_BYTES)
    try {
      return await withMirror(side, await line.open(), async (mirror) => {
        const path = `/v2/${mirror.prefix}${REPOSITORY}/blobs/${blob}`
        const before = line.bytes
        return { seconds: await pull(mirror.target, path, clients, limit), bytes: line.bytes - before }
      })
    } finally {
      line.close()
    }
  }
  const { seconds: one } = await measure(1)
  const { seconds: all, bytes } = await measure(HERD)
  return { one, all, bytes }
}

/** What mirrors are measured by. @param seconds length of each reading sample */
export function makeMirrorRows(seconds: number): readonly Row[] {
  return [
    hitRow('mirror-manifest', 'GET manifest by tag: from the mirror / local', 64, seconds, 'manifest'),
    hitRow('mirror-blob', 'GET blob of 1 MiB: from the mirror / local', 32, seconds, 'blob'),
    coldRow,
    coldLineRow,
    firstByteRow,
    herdRow(
      'herd-time',
      `${HERD} clients of one cold blob of 100 MiB: time of all / of one`,
      (herd) => herd.all / herd.one,
      1.5,
    ),
    herdRow(
      'herd-bytes',
      'The same: bytes from the upstream / of the blob',
      (herd) => herd.bytes / HERD_BLOB,
      1.01,
    ),
  ]
}
