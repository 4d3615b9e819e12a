import { rmSync } from 'node:fs'
import { makeAccessRows } from './access-rows.js'
import { MANIFEST_TYPE } from './image.js'
import type { Job } from './jobs.js'
import { runJob, runWrk } from './load.js'
import { type Memory, MemoryWatch, percentile } from './measure.js'
import { makeMirrorRows } from './mirror-rows.js'
import { MIB } from './payload.js'
import type { Server } from './server.js'
import {
  type Cores,
  observe,
  observeChild,
  observeJob,
  pushBlobs,
  type Side,
  seedImage,
  settle,
} from './side.js'

const GIB = 1024 * MIB
const REPOSITORY = 'bench/shared'
const TAGGED = 'bench/tagged'
const TAGS = 100_000
const PREPARE_LIMIT_SECONDS = 60

/** What one run of a row brought. */
export interface Sample {
  readonly value: number
  readonly cores?: Cores
  readonly memory?: Memory
  /** What a reader must know about this figure. */
  readonly note?: string
}

/** `ratio`: ours must be so many times better than the peer's; `at-most`, `at-least`: ours must keep within it. */
export interface Goal {
  readonly kind: 'ratio' | 'at-most' | 'at-least'
  readonly value: number
}

/** One line of the table. */
export interface Row {
  readonly id: string
  readonly title: string
  readonly unit: string
  readonly better: 'higher' | 'lower'
  readonly goal: Goal
  readonly repetitions: number
  /** The peer's share is left out unless asked for, because it takes long and no goal needs it. */
  readonly oursOnly?: boolean
  /** About something that the peer does not have, so that it can never run there. */
  readonly ofOursAlone?: boolean
  /** Disk that the row fills on each side, in GiB. */
  readonly disk: number
  /** Whether that is freed as soon as the sample is over, and not only at the end. */
  readonly frees?: boolean
  /** Makes what the row needs on this side; not timed. */
  prepare?(side: Side): Promise<void>
  /** Runs the load once, in at most so many seconds. */
  sample(side: Side, limitSeconds: number): Promise<Sample>
}

/** What the command line may change about the rows. */
export interface RowOptions {
  /** Length of each reading sample in seconds. */
  readonly seconds: number
  /** Length of the memory rows' pulls in seconds. */
  readonly memorySeconds: number
  /** How many blobs of 1 GiB are pushed at once. */
  readonly bigPushes: number
}

const image = (side: Side) =>
  side.once('image', async () => seedImage((await side.shared()).target, REPOSITORY))

const bigBlob = (side: Side) =>
  side.once('big blob', async () => (await pushBlobs(await side.shared(), REPOSITORY, 1, GIB))[0] ?? '')

const tags = (side: Side) =>
  side.once('tags', async () => side.registry.seedTags(await side.shared(), TAGGED, TAGS))

interface Reading {
  readonly id: string
  readonly title: string
  readonly goal: number
  readonly connections: number
  readonly threads: number
  path(side: Side): Promise<string>
}

function readingRow(reading: Reading, seconds: number): Row {
  const { connections, threads } = reading
  const load = async (side: Side, duration: number, limit: number) => {
    const server = await side.shared()
    const { host, port } = server.target
    const url = `http://${host}:${port}${await reading.path(side)}`
    const job = { url, connections, threads, seconds: duration, accept: MANIFEST_TYPE }
    return observe(
      server,
      () => runWrk(job, limit),
      () => duration,
    )
  }
  return {
    id: reading.id,
    title: reading.title,
    unit: 'req/s',
    better: 'higher',
    goal: { kind: 'ratio', value: reading.goal },
    repetitions: 3,
    disk: 0.1,
    async prepare(side) {
      await load(side, 1, PREPARE_LIMIT_SECONDS)
    },
    async sample(side, limit) {
      const { result, cores } = await load(side, seconds, limit)
      return { value: result, cores }
    },
  }
}

interface Pushing {
  readonly id: string
  readonly title: string
  readonly goal: number
  readonly blobs: number
  readonly size: number
  readonly repetitions: number
}

function pushingRow({ id, title, goal, blobs, size, repetitions }: Pushing): Row {
  return {
    id,
    title,
    unit: 'MiB/s',
    better: 'higher',
    goal: { kind: 'ratio', value: goal },
    repetitions,
    disk: (repetitions * blobs * size + 64 * MIB) / GIB,
    async prepare(side) {
      await pushBlobs(await side.shared(), REPOSITORY, blobs, (64 / blobs) * MIB)
    },
    async sample(side, limit) {
      const server = await side.shared()
      await settle(server.folder)
      const { target } = server
      const job = { kind: 'push', target, repository: REPOSITORY, parallel: blobs, blobs, size } as const
      const { result, cores } = await observeJob(server, () => runJob(job, limit))
      return { value: result.bytes / MIB / result.seconds, cores }
    },
  }
}

const streamRow: Row = {
  id: 'stream-get',
  title: 'GET one blob of 1 GiB, one connection',
  unit: 'MiB/s',
  better: 'higher',
  goal: { kind: 'ratio', value: 1.2 },
  repetitions: 7,
  disk: 1,
  async prepare(side) {
    await bigBlob(side)
    await streamRow.sample(side, PREPARE_LIMIT_SECONDS)
  },
  async sample(side, limit) {
    const server = await side.shared()
    const paths = [`/v2/${REPOSITORY}/blobs/${await bigBlob(side)}`]
    const job = { kind: 'pull', target: server.target, paths, connections: 1, requests: 1 } as const
    const { result, cores } = await observeJob(server, () => runJob(job, limit))
    return { value: result.bytes / MIB / result.seconds, cores }
  },
}

function imagesRow(seconds: number): Row {
  return {
    id: 'images',
    title: 'Push whole small images, 16 clients',
    unit: 'images/s',
    better: 'higher',
    goal: { kind: 'ratio', value: 2 },
    repetitions: 3,
    disk: 1,
    async sample(side, limit) {
      const server = await side.shared()
      await settle(server.folder)
      const job = { kind: 'images', target: server.target, clients: 16, seconds } as const
      const { result, cores } = await observeJob(server, () => runJob(job, limit))
      return { value: result.done / result.seconds, cores }
    },
  }
}

const pagesRow: Row = {
  id: 'tags-page',
  title: 'Page of 100 tags out of 100,000, p99',
  unit: 'ms',
  better: 'lower',
  goal: { kind: 'at-most', value: 5 },
  repetitions: 3,
  disk: 1.5,
  async prepare(side) {
    await tags(side)
  },
  async sample(side, limit) {
    const server = await side.shared()
    await settle(server.folder)
    const job: Job = {
      kind: 'pages',
      target: server.target,
      repository: TAGGED,
      tags: TAGS,
      pageSize: 100,
      connections: 4,
      requests: 3000,
      seconds: 4,
    }
    const { result, cores } = await observeJob(server, () => runJob(job, limit))
    const { latencies = [], bytes, done } = result
    const note = `${done} answers of ${Math.round(bytes / done / 1024)} KiB, median ${percentile(latencies, 0.5).toFixed(2)} ms`
    return { value: percentile(latencies, 0.99), cores, note }
  },
}

const readyRow: Row = {
  id: 'ready',
  title: 'Ready after start (the slower of first start and restart)',
  unit: 's',
  better: 'lower',
  goal: { kind: 'at-most', value: 0.7 },
  repetitions: 5,
  disk: 0.1,
  async sample(side) {
    const folder = side.freshFolder()
    const startAndStop = async () => {
      const server = await side.registry.start(folder)
      await server.stop()
      return server.readyMs
    }
    const { result, cores } = await observeChild(
      async () => [await startAndStop(), await startAndStop()] as const,
    )
    rmSync(folder, { recursive: true, force: true })
    const note = `first ${Math.round(result[0])} ms, restart ${Math.round(result[1])} ms`
    return { value: Math.max(...result) / 1000, cores, note }
  },
}

/** Runs a load against a server that has done nothing else since it started, and tells its peak memory. */
async function watched(
  side: Side,
  seed: ((server: Server) => Promise<void>) | undefined,
  load: (server: Server) => Promise<string>,
): Promise<Sample> {
  const folder = side.freshFolder()
  let server = await side.registry.start(folder)
  try {
    if (seed) {
      // What the seeding made the process hold must not count, so it is started again.
      await seed(server)
      await settle(folder)
      await server.stop()
      server = await side.registry.start(folder)
    }
    const watch = new MemoryWatch(server.pid)
    const note = await load(server).finally(() => watch.stop())
    const memory = watch.stop()
    return { value: memory.rss / MIB, memory, note }
  } finally {
    await server.stop()
    rmSync(folder, { recursive: true, force: true })
  }
}

function memoryRow(id: string, title: string, disk: number, oursOnly: boolean, sample: Row['sample']): Row {
  const goal = { kind: 'at-most', value: 400 } as const
  return {
    id,
    title,
    unit: 'MiB',
    better: 'lower',
    goal,
    repetitions: 1,
    oursOnly,
    disk,
    frees: true,
    sample,
  }
}

const gibibytes = (bytes: number) => `${(bytes / GIB).toFixed(1)} GiB`

function memoryPullRow(
  id: string,
  title: string,
  blobs: number,
  size: number,
  oursOnly: boolean,
  seconds: number,
): Row {
  return memoryRow(id, title, (blobs * size) / GIB, oursOnly, (side, limit) => {
    let paths: string[] = []
    const seed = async (server: Server) => {
      const digests = await pushBlobs(server, REPOSITORY, blobs, size)
      paths = digests.map((digest) => `/v2/${REPOSITORY}/blobs/${digest}`)
    }
    return watched(side, seed, async ({ target }) => {
      const job = { kind: 'pull', target, paths, connections: 64, seconds } as const
      const result = await runJob(job, limit)
      return `${gibibytes(result.bytes)} in ${result.seconds.toFixed(0)} s, ${result.done} pulls ended`
    })
  })
}

function memoryPushRow(
  id: string,
  title: string,
  parallel: number,
  blobs: number,
  size: number,
  oursOnly: boolean,
): Row {
  return memoryRow(id, title, (blobs * size) / GIB, oursOnly, (side, limit) =>
    watched(side, undefined, async ({ target }) => {
      const job = { kind: 'push', target, repository: REPOSITORY, parallel, blobs, size } as const
      const result = await runJob(job, limit)
      return `${gibibytes(result.bytes)} in ${result.seconds.toFixed(0)} s`
    }),
  )
}

/** All rows, in the order of the table. */
export function makeRows({ seconds, memorySeconds, bigPushes }: RowOptions): readonly Row[] {
  const manifest: Reading = {
    id: 'manifest-get',
    title: 'GET manifest by tag, 64 connections',
    goal: 10,
    connections: 64,
    threads: 1,
    path: async (side) => {
      await image(side)
      return `/v2/${REPOSITORY}/manifests/latest`
    },
  }
  const blob: Reading = {
    id: 'blob-get',
    title: 'GET blob of 1 MiB, 32 connections',
    goal: 1.5,
    connections: 32,
    threads: 1,
    path: async (side) => `/v2/${REPOSITORY}/blobs/${await image(side)}`,
  }
  const one = { id: 'push-one', title: 'Push one blob of 256 MiB', goal: 1.5, blobs: 1, size: 256 * MIB }
  const eight = {
    id: 'push-eight',
    title: 'Push 8 blobs of 64 MiB at once',
    goal: 1.5,
    blobs: 8,
    size: 64 * MIB,
  }
  const small = 32 * MIB
  const bigTitle = `Peak memory, ${bigPushes} pushes of 1 GiB at once`
  return [
    readingRow(manifest, seconds),
    readingRow(blob, seconds),
    streamRow,
    pushingRow({ ...one, repetitions: 5 }),
    pushingRow({ ...eight, repetitions: 5 }),
    imagesRow(seconds),
    pagesRow,
    readyRow,
    ...makeAccessRows(seconds),
    ...makeMirrorRows(seconds),
    memoryPullRow('memory-pull', 'Peak memory, 64 pulls of 32 MiB at once', 8, small, false, memorySeconds),
    memoryPushRow('memory-push', 'Peak memory, 32 pushes of 32 MiB at once', 32, 64, small, false),
    memoryPullRow('memory-pull-big', 'Peak memory, 64 pulls of 1 GiB at once', 1, GIB, true, memorySeconds),
    memoryPushRow('memory-push-big', bigTitle, bigPushes, bigPushes, GIB, true),
  ]
}
