import { randomInt } from 'node:crypto'
import { makeGcRows } from './gc-rows.js'
import { MANIFEST_TYPE } from './image.js'
import { runJob } from './load.js'
import { percentile } from './measure.js'
import { MIB } from './payload.js'
import type { Row, Sample } from './rows.js'
import {
  LARGE_REPOSITORY,
  LARGE_TAGS,
  REPOSITORIES,
  repositoryName,
  seedBlob,
  seedTag,
  TAGS_EACH,
} from './scale.js'
import type { Server } from './server.js'
import { observeChild, observeJob, pushBlobs, type Side, settle } from './side.js'

/** Different questions that a row asks in turn. */
const QUESTIONS = 2000
/** Bytes that are verified. */
const VERIFIED = 8 * 256 * MIB
/** How many repositories a user with few rights may pull from: 100 here and 1 there. */
const FEW_RIGHTS = ['team-073/**', 'team-099/app-099']

/** The folder with the large registry; made once. */
const largeFolder = (side: Side) =>
  side.once('large folder', async () => {
    const folder = side.freshFolder()
    const begin = performance.now()
    await side.registry.seedLarge(folder)
    await settle(folder)
    return { folder, seconds: (performance.now() - begin) / 1000 }
  })

/** The server on it, which the rows about questions share. It starts when the first of them asks for it. */
const largeServer = (side: Side) =>
  side.once('large server', async () => {
    const server = await side.registry.start((await largeFolder(side)).folder)
    side.owns(server)
    return server
  })

/** Starts a server, has it do something, and ends it. */
async function during<T>(start: Promise<Server>, work: (server: Server) => Promise<T>): Promise<T> {
  const server = await start
  try {
    return await work(server)
  } finally {
    await server.stop()
  }
}

function readyRow(id: string, title: string, prepare: (side: Side, folder: string) => Promise<void>): Row {
  return {
    id,
    title,
    unit: 's',
    better: 'lower',
    goal: { kind: 'at-most', value: 2 },
    repetitions: 3,
    oursOnly: true,
    disk: 0.3,
    async prepare(side) {
      await largeFolder(side)
    },
    async sample(side) {
      const { folder, seconds } = await largeFolder(side)
      await prepare(side, folder)
      const { result, cores } = await observeChild(() =>
        during(side.registry.start(folder), async ({ readyMs }) => readyMs),
      )
      return { value: result / 1000, cores, note: `loaded in ${seconds.toFixed(0)} s` }
    },
  }
}

/** Leaves what a server leaves that is killed while images are pushed. */
async function breakOff(side: Side, folder: string): Promise<void> {
  const server = await side.registry.start(folder)
  const job = { kind: 'images', target: server.target, clients: 16, seconds: 3 } as const
  const pushes = runJob(job, 20).catch(() => undefined) // its connections break
  await new Promise((resolve) => setTimeout(resolve, 2000))
  await server.kill()
  await pushes
}

interface Questions {
  readonly id: string
  readonly title: string
  readonly method?: 'GET' | 'HEAD'
  readonly ofOursAlone?: boolean
  readonly headers?: Readonly<Record<string, string>>
  /** One of the questions, by chance. */
  readonly path: () => string
}

const random = (count: number) => randomInt(count)
const anyRepository = () => repositoryName(random(REPOSITORIES))

const anySearch = () => `/v1/search?q=${['app', 'team-073', 'team-07', 'p-099', 'nothing', 'a'][random(6)]}`

const questions: readonly Questions[] = [
  {
    id: 'scale-tags-page',
    title: 'Page of 100 tags out of 100,000, p99',
    path: () => `/v2/${LARGE_REPOSITORY}/tags/list?n=100&last=${seedTag(random(LARGE_TAGS))}`,
  },
  {
    id: 'scale-tags-small',
    title: 'Tags of one repository out of 10,000, p99',
    path: () => `/v2/${anyRepository()}/tags/list?n=100`,
  },
  {
    id: 'scale-catalog',
    title: 'Page of 100 repositories out of 10,000, p99',
    path: () => `/v2/_catalog?n=100&last=${anyRepository()}`,
  },
  {
    id: 'scale-search',
    title: 'Search among 10,000 repositories, p99',
    ofOursAlone: true,
    headers: { 'X-Docker-Token': 'true' },
    path: anySearch,
  },
  {
    id: 'scale-resolve',
    title: 'HEAD manifest by one tag out of 1,000,000, p99',
    method: 'HEAD',
    // The peer has the first tag of each repository alone.
    path: () =>
      random(2) === 0
        ? `/v2/${anyRepository()}/manifests/${seedTag(0)}`
        : `/v2/${LARGE_REPOSITORY}/manifests/${seedTag(random(LARGE_TAGS))}`,
  },
  {
    id: 'scale-manifest',
    title: 'GET manifest by one tag out of 1,000,000, p99',
    ofOursAlone: true,
    path: () => `/v2/${anyRepository()}/manifests/${seedTag(random(TAGS_EACH))}`,
  },
  {
    id: 'scale-head-blob',
    title: 'HEAD one blob out of 100,000, p99',
    method: 'HEAD',
    path: () => {
      const repository = anyRepository()
      return `/v2/${repository}/blobs/${seedBlob(repository, random(2)).digest}`
    },
  },
]

async function ask(
  server: Server,
  { path, method = 'GET', headers }: Pick<Questions, 'path' | 'method' | 'headers'>,
  login: { readonly authorization?: string } = {},
): Promise<Sample> {
  const job = {
    kind: 'asks',
    target: { ...server.target, ...login },
    method,
    paths: Array.from({ length: QUESTIONS }, path),
    headers: { Accept: MANIFEST_TYPE, ...headers },
    connections: 4,
    requests: 3000,
    seconds: 4,
  } as const
  const { result, cores } = await observeJob(server, () => runJob(job, 60))
  const { latencies = [], done } = result
  const note = `${done} answers, median ${percentile(latencies, 0.5).toFixed(2)} ms`
  return { value: percentile(latencies, 0.99), cores, note }
}

function questionRow(question: Questions): Row {
  return {
    id: question.id,
    title: question.title,
    unit: 'ms',
    better: 'lower',
    goal: { kind: 'at-most', value: 5 },
    repetitions: 3,
    ...(question.ofOursAlone === true ? { ofOursAlone: true } : {}),
    disk: 0.3,
    async prepare(side) {
      await ask(await largeServer(side), question)
    },
    async sample(side) {
      return ask(await largeServer(side), question)
    },
  }
}

/** What somebody sees who may see little. */
function fewRightsRow(id: string, title: string, path: () => string): Row {
  return {
    id,
    title,
    unit: 'ms',
    better: 'lower',
    goal: { kind: 'at-most', value: 5 },
    repetitions: 3,
    ofOursAlone: true,
    disk: 0.3,
    async prepare(side) {
      const { basic, ...server } = await fewRightsServer(side)
      await ask(server, { path }, { authorization: basic })
    },
    async sample(side) {
      const { basic, ...server } = await fewRightsServer(side)
      return ask(server, { path }, { authorization: basic })
    },
  }
}

const fewRightsServer = (side: Side) =>
  side.once('few rights', async () => {
    if (side.registry.startGuarded === undefined) throw new Error(`${side.registry.name} has no users`)
    await (await largeServer(side)).stop()
    const { folder } = await largeFolder(side)
    const server = await side.registry.startGuarded(folder, { pull: FEW_RIGHTS })
    side.owns(server)
    return server
  })

/** Whether pushes get slower as the registry grows: images a second into the large one, and into an empty one. */
const pushRow: Row = {
  id: 'scale-push',
  title: 'Push small images: into the large registry / into an empty one',
  unit: '×',
  better: 'higher',
  goal: { kind: 'at-least', value: 0.83 },
  repetitions: 3,
  ofOursAlone: true,
  disk: 0.3,
  async sample(side, limit) {
    const large = await largeServer(side)
    const empty = await side.once('empty server', async () => {
      const server = await side.registry.start(side.freshFolder())
      side.owns(server)
      return server
    })
    const push = async (server: Server) => {
      await settle(server.folder)
      const job = { kind: 'images', target: server.target, clients: 16, seconds: 3 } as const
      const { result, cores } = await observeJob(server, () => runJob(job, limit))
      return { rate: result.done / result.seconds, cores }
    }
    const first = await push(empty)
    const { rate, cores } = await push(large)
    const second = await push(empty)
    const ofEmpty = (first.rate + second.rate) / 2
    const note = `the last: ${rate.toFixed(0)} images/s into the large one, ${ofEmpty.toFixed(0)} into the empty one`
    return { value: rate / ofEmpty, cores, note }
  },
}

const verifyRow: Row = {
  id: 'verify',
  title: 'boathouse verify --rate unlimited, on one core',
  unit: 'MiB/s',
  better: 'higher',
  goal: { kind: 'at-least', value: 800 },
  repetitions: 3,
  ofOursAlone: true,
  disk: VERIFIED / 1024 / MIB,
  async sample(side) {
    const folder = await side.once('verified', async () => {
      const made = side.freshFolder()
      await during(side.registry.start(made), (server) => pushBlobs(server, 'bench/verified', 8, 256 * MIB))
      await settle(made)
      return made
    })
    const { verify } = side.registry
    if (verify === undefined) throw new Error(`${side.registry.name} verifies nothing`)
    const { result, cores } = await observeChild(() => verify(folder))
    return { value: result.bytes / MIB / result.seconds, cores }
  },
}

/** What a registry is like when it is large. */
export function makeScaleRows({ garbage }: { readonly garbage: number }): readonly Row[] {
  return [
    ...makeGcRows(garbage),
    verifyRow,
    readyRow('scale-ready', 'Ready after start, 1,000,000 tags and 100,000 blobs', async () => undefined),
    readyRow('scale-ready-killed', 'The same after kill -9 under pushes', breakOff),
    ...questions.map(questionRow),
    pushRow,
    fewRightsRow(
      'scale-catalog-few',
      'Page of 100 for a user who may see 101 of 10,000 repositories, p99',
      () => `/v2/_catalog?n=100${random(2) === 0 ? '' : `&last=${anyRepository()}`}`,
    ),
    fewRightsRow('scale-search-few', 'Search of the same user, p99', anySearch),
  ]
}
