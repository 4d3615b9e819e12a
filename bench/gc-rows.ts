import { readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import type { Moment } from './jobs.js'
import { runJob } from './load.js'
import { LockWatch } from './lock-watch.js'
import { percentile } from './measure.js'
import type { Row, Sample } from './rows.js'
import { databaseOf, recordGarbage, writeGarbage } from './scale-loader.js'
import type { Server } from './server.js'
import { observe, type Side, settle } from './side.js'

/** Blobs that the peer collects: fewer, because it takes longer. */
const PEER_BLOBS = 20_000
/** Small images that are pushed meanwhile: about a fifth of what two cores can take. */
const IMAGES_PER_SECOND = 40
const CLIENTS = 16

/** Until when the server and its clients warm up, and until when pushes are measured without a collection. */
const WARM_SECONDS = 3
const IDLE_SECONDS = 12
/** Between two collections of the server: the second one begins when the garbage is there. */
const INTERVAL_SECONDS = 15
const LOAD_SECONDS = 300
const GRACE_SECONDS = 3600

/** What one collection under pushes brought. */
interface Collection {
  /** Blobs a second. */
  readonly rate: Sample
  /** The 99th percentile of pushes during it, divided by that before it. */
  readonly slowdown: Sample
  /** Milliseconds. */
  readonly longestLock: Sample
}

/** The line that the server logs at the end of a collection: `time` is that end, `ms` how long it took. */
interface Ended {
  readonly time: number
  readonly ms: number
  readonly blobs: number
}

function readEnded(server: Server, count: number): Ended | undefined {
  const log = readFileSync(join(server.folder, 'output.log'), 'utf8')
  for (const line of log.split('\n')) {
    if (!line.includes('"collected garbage"')) continue
    const { time, ms, blobs } = JSON.parse(line) as { time: string | number; ms: number; blobs: number }
    if (blobs >= count) return { time: new Date(time).getTime(), ms, blobs }
  }
  return undefined
}

/** Milliseconds that each push took that ended between two moments, sorted. */
function latencies(moments: readonly Moment[], from: number, to: number): readonly number[] {
  return moments
    .filter(({ end }) => end >= from && end <= to)
    .map(({ milliseconds }) => milliseconds)
    .sort((a, b) => a - b)
}

/** The folder with the files of the garbage; the index does not know them yet. */
const garbageFolder = (side: Side, count: number) =>
  side.once('garbage', async () => {
    const folder = side.freshFolder()
    await writeGarbage(join(folder, 'data'), count)
    await settle(folder)
    return folder
  })

/** Waits until the server has collected the garbage, which it is given at the right moment. */
async function collect(server: Server, count: number): Promise<Ended> {
  await delay(IDLE_SECONDS * 1000)
  recordGarbage(join(server.folder, 'data'), count, 2 * GRACE_SECONDS * 1000)
  for (;;) {
    await delay(500)
    const ended = readEnded(server, count)
    if (ended !== undefined) return ended
  }
}

async function collectUnderPushes(side: Side, count: number, limit: number): Promise<Collection> {
  const folder = await garbageFolder(side, count)
  const settings = { BOATHOUSE_GC_INTERVAL: `${INTERVAL_SECONDS}s`, BOATHOUSE_GC_GRACE: `${GRACE_SECONDS}s` }
  const server = await side.registry.start(folder, settings)
  const begin = Date.now()
  const watch = new LockWatch(databaseOf(join(folder, 'data')))
  const job = {
    kind: 'steady',
    target: server.target,
    clients: CLIENTS,
    perSecond: IMAGES_PER_SECOND,
  } as const
  const stop = new AbortController()
  try {
    const load = () => runJob({ ...job, seconds: LOAD_SECONDS }, limit, stop.signal)
    const collected = async () => {
      const ended = await collect(server, count)
      stop.abort()
      return ended
    }
    const { result, cores } = await observe(
      server,
      () => Promise.all([load(), collected()]),
      ([{ seconds }]) => seconds,
      ([{ cpuSeconds }]) => cpuSeconds,
    )
    const [{ moments = [] }, { time, ms, blobs }] = result
    const idle = [begin + WARM_SECONDS * 1000, begin + IDLE_SECONDS * 1000] as const
    const before = latencies(moments, ...idle)
    const within = latencies(moments, time - ms, time)
    const text = (some: readonly number[]) =>
      `${some.length} images, median ${percentile(some, 0.5).toFixed(1)} ms, p99 ${percentile(some, 0.99).toFixed(1)} ms`
    const locked = watch.longest(...idle).toFixed(1)
    return {
      rate: { value: (blobs / ms) * 1000, cores },
      slowdown: {
        value: percentile(within, 0.99) / percentile(before, 0.99),
        cores,
        note: `before: ${text(before)}; during: ${text(within)}`,
      },
      longestLock: { value: watch.longest(time - ms, time), cores, note: `before: ${locked} ms` },
    }
  } finally {
    watch.stop()
    await server.stop()
    rmSync(folder, { recursive: true, force: true })
  }
}

/** Rows of one load. */
function collectionRow(
  count: number,
  row: Pick<Row, 'id' | 'title' | 'unit' | 'better' | 'goal'>,
  pick: (collection: Collection) => Sample,
): Row {
  return {
    ...row,
    repetitions: 1,
    oursOnly: row.id !== 'gc-rate',
    disk: 1,
    frees: true,
    async prepare(side) {
      if (side.registry.collectOffline === undefined) await garbageFolder(side, count)
    },
    async sample(side, limit) {
      if (side.registry.collectOffline !== undefined) {
        const seconds = await side.registry.collectOffline(side.freshFolder(), PEER_BLOBS)
        return { value: PEER_BLOBS / seconds, note: `${PEER_BLOBS} blobs, nothing else going on` }
      }
      return pick(await side.once('collection', () => collectUnderPushes(side, count, limit)))
    },
  }
}

/** What collecting garbage costs those who push meanwhile. @param count blobs that are collected */
export function makeGcRows(count: number): readonly Row[] {
  return [
    collectionRow(
      count,
      {
        id: 'gc-rate',
        title: `Collecting ${count.toLocaleString('en')} blobs, 40 images a second being pushed`,
        unit: 'blobs/s',
        better: 'higher',
        goal: { kind: 'at-least', value: 2000 },
      },
      ({ rate }) => rate,
    ),
    collectionRow(
      count,
      {
        id: 'gc-push',
        title: 'The same: p99 of pushing an image, during / before',
        unit: '×',
        better: 'lower',
        goal: { kind: 'at-most', value: 2 },
      },
      ({ slowdown }) => slowdown,
    ),
    collectionRow(
      count,
      {
        id: 'gc-lock',
        title: 'The same: longest that the index was locked',
        unit: 'ms',
        better: 'lower',
        goal: { kind: 'at-most', value: 50 },
      },
      ({ longestLock }) => longestLock,
    ),
  ]
}
