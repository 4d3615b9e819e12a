import { text } from 'node:stream/consumers'
import { setTimeout as delay } from 'node:timers/promises'
import { type Answer, Connection, expectStatus, type Question } from './connection.js'
import { type Image, MANIFEST_TYPE, makeImages } from './image.js'
import {
  type AsksJob,
  type FloodJob,
  type ImagesJob,
  type Job,
  type JobResult,
  type Moment,
  type PagesJob,
  type PullJob,
  type PushJob,
  type SeedJob,
  type SteadyJob,
  type TagsJob,
  type Target,
  tagName,
  type VisitsJob,
} from './jobs.js'
import { digestOf, makePayloads, type Payload } from './payload.js'

// The load generator: a process of its own, so that its processor time can be told from everything else's.
// It reads one job as JSON from standard input and prints one result as JSON.

const SMALL_LAYERS = [16 * 1024, 64 * 1024]
/** More images than any server here can take in a second; they are made before the clock starts. */
const IMAGES_PER_SECOND = 2500

type Counts = Pick<JobResult, 'done' | 'bytes'> &
  Pick<Partial<JobResult>, 'digests' | 'latencies' | 'moments' | 'statuses'>

/** Runs the part of a job that counts, with the clock and the processor time around it. */
async function timed(work: () => Promise<Counts>): Promise<JobResult> {
  const cpu = process.cpuUsage()
  const start = process.hrtime.bigint()
  const counts = await work()
  const seconds = Number(process.hrtime.bigint() - start) / 1e9
  const used = process.cpuUsage(cpu)
  return { ...counts, seconds, cpuSeconds: (used.user + used.system) / 1e6 }
}

/** Runs `count` copies of a worker at once and fails with the first that fails. */
async function together(count: number, worker: (n: number) => Promise<void>): Promise<void> {
  await Promise.all(Array.from({ length: count }, (_, n) => worker(n)))
}

async function onOwnConnection(target: Target, question: Question): Promise<Answer> {
  const connection = await Connection.open(target)
  try {
    return await connection.send({ ...question, headers: { ...question.headers, Connection: 'close' } })
  } finally {
    connection.close()
  }
}

/** The path to go on with after an upload step, with the digest added when it is the last. */
function locationOf(answer: Answer, digest?: string): string {
  const url = new URL(answer.headers.get('location') ?? '', 'http://localhost')
  if (digest) url.searchParams.set('digest', digest)
  return url.pathname + url.search
}

async function pushAsDocker(target: Target, repository: string, payload: Payload): Promise<void> {
  const path = `/v2/${repository}/blobs/uploads/`
  const started = await onOwnConnection(target, { method: 'POST', path, body: [] })
  expectStatus(started, 202, 'POST of an upload')
  const framed = payload.framedParts()
  const patched = await onOwnConnection(target, { method: 'PATCH', path: locationOf(started), framed })
  expectStatus(patched, 202, 'PATCH of an upload')
  const closing = locationOf(patched, payload.digest)
  expectStatus(await onOwnConnection(target, { method: 'PUT', path: closing, body: [] }), 201, 'closing PUT')
}

function runPush(job: PushJob): Promise<JobResult> {
  const payloads = makePayloads(job.size, job.blobs)
  const queue = payloads.values()
  return timed(async () => {
    await together(job.parallel, async () => {
      for (const payload of queue) await pushAsDocker(job.target, job.repository, payload)
    })
    return {
      done: job.blobs,
      bytes: job.blobs * job.size,
      digests: payloads.map((payload) => payload.digest),
    }
  })
}

function runPull(job: PullJob): Promise<JobResult> {
  const { requests = Number.POSITIVE_INFINITY, seconds, paths } = job
  let started = 0
  let done = 0
  let bytes = 0
  return timed(async () => {
    const connections: Connection[] = []
    let over = false
    const cut = () => {
      over = true
      for (const connection of connections) connection.close()
    }
    const timer = seconds === undefined ? undefined : setTimeout(cut, seconds * 1000)
    await together(job.connections, async (n) => {
      const connection = await Connection.open(job.target)
      connections.push(connection)
      const path = paths[n % paths.length] ?? '/'
      try {
        while (!over && started < requests) {
          started += 1
          const answer = await connection.send({ method: 'GET', path })
          expectStatus(answer, 200, `GET ${path}`)
          done += 1
          bytes += answer.bytes
        }
      } catch (error) {
        if (!over) throw error
        bytes += connection.received
      } finally {
        connection.close()
      }
    })
    clearTimeout(timer)
    return { done, bytes }
  })
}

async function pushMonolithic(
  connection: Connection,
  repository: string,
  digest: string,
  body: Buffer[],
): Promise<void> {
  const head = await connection.send({ method: 'HEAD', path: `/v2/${repository}/blobs/${digest}` })
  expectStatus(head, 404, 'HEAD of a blob not there yet')
  const started = await connection.send({
    method: 'POST',
    path: `/v2/${repository}/blobs/uploads/`,
    body: [],
  })
  expectStatus(started, 202, 'POST of an upload')
  const headers = { 'Content-Type': 'application/octet-stream' }
  const put = await connection.send({ method: 'PUT', path: locationOf(started, digest), headers, body })
  expectStatus(put, 201, 'PUT of a blob')
}

async function pushImage(
  connection: Connection,
  repository: string,
  tag: string,
  image: Image,
): Promise<void> {
  for (const layer of image.layers) {
    await pushMonolithic(connection, repository, layer.digest, [...layer.parts()])
  }
  await pushMonolithic(connection, repository, image.config.digest, [image.config.bytes])
  const path = `/v2/${repository}/manifests/${tag}`
  const head = await connection.send({ method: 'HEAD', path, headers: { Accept: MANIFEST_TYPE } })
  expectStatus(head, 404, 'HEAD of a manifest not there yet')
  const headers = { 'Content-Type': MANIFEST_TYPE }
  const put = await connection.send({ method: 'PUT', path, headers, body: [image.manifest] })
  expectStatus(put, 201, 'PUT of a manifest')
}

function runImages(job: ImagesJob): Promise<JobResult> {
  const images = makeImages(SMALL_LAYERS, Math.ceil(job.seconds * IMAGES_PER_SECOND))
  const size = SMALL_LAYERS.reduce((sum, bytes) => sum + bytes, 0)
  const queue = images.entries()
  // A repository and its tags are told apart by the process, so that several runs can follow each other.
  const run = process.pid
  return timed(async () => {
    const end = performance.now() + job.seconds * 1000
    let done = 0
    await together(job.clients, async (n) => {
      const connection = await Connection.open(job.target)
      for (const [number, image] of queue) {
        await pushImage(connection, `bench/images-${n}`, `r${run}-${number}`, image)
        done += 1
        if (performance.now() >= end) break
      }
      connection.close()
    })
    return { done, bytes: done * size }
  })
}

async function runSeed(job: SeedJob): Promise<JobResult> {
  const [image] = makeImages(job.layers, 1)
  if (!image) throw new Error('no image was made')
  return timed(async () => {
    const connection = await Connection.open(job.target)
    await pushImage(connection, job.repository, job.tag, image)
    connection.close()
    const digests = image.layers.map((layer) => layer.digest)
    return { done: 1, bytes: 0, digests }
  })
}

async function runTags(job: TagsJob): Promise<JobResult> {
  const [image] = makeImages([1024], 1)
  if (!image) throw new Error('no image was made')
  return timed(async () => {
    const connection = await Connection.open(job.target)
    await pushImage(connection, job.repository, job.source, image)
    const path = `/v2/${job.repository}/manifests/${digestOf(image.manifest)}`
    for (let n = 0; n < job.count; n += job.perRequest) {
      const length = Math.min(job.perRequest, job.count - n)
      const query = Array.from({ length }, (_, i) => `tag=${tagName(n + i)}`).join('&')
      const headers = { 'Content-Type': MANIFEST_TYPE }
      const put = await connection.send({
        method: 'PUT',
        path: `${path}?${query}`,
        headers,
        body: [image.manifest],
      })
      expectStatus(put, 201, 'PUT of a manifest with many tags')
    }
    connection.close()
    return { done: job.count, bytes: 0 }
  })
}

function runPages(job: PagesJob): Promise<JobResult> {
  const latencies: number[] = []
  let bytes = 0
  return timed(async () => {
    const end = performance.now() + job.seconds * 1000
    let started = 0
    await together(job.connections, async () => {
      const connection = await Connection.open(job.target)
      while (started < job.requests && performance.now() < end) {
        started += 1
        const last = tagName(Math.floor(Math.random() * job.tags))
        const path = `/v2/${job.repository}/tags/list?n=${job.pageSize}&last=${last}`
        const before = performance.now()
        const answer = await connection.send({ method: 'GET', path })
        latencies.push(performance.now() - before)
        expectStatus(answer, 200, 'GET of a tag list')
        bytes += answer.bytes
      }
      connection.close()
    })
    return { done: latencies.length, bytes, latencies: latencies.sort((a, b) => a - b) }
  })
}

/**
 * Does something at evenly spaced moments, on any of these connections that is free; when none is, later. Ends when
 * the time is over, with whatever was done.
 * @param work is told the moment that it was due at
 */
async function paced(
  connections: readonly Connection[],
  { perSecond, seconds }: { readonly perSecond: number; readonly seconds: number },
  work: (connection: Connection, n: number, due: number) => Promise<void>,
  isOver?: () => boolean,
): Promise<void> {
  const start = performance.now()
  const end = start + seconds * 1000
  let next = 0
  await together(connections.length, async (i) => {
    const connection = connections[i]
    for (let n = next++; connection && n < perSecond * seconds; n = next++) {
      const due = start + (n * 1000) / perSecond
      const early = due - performance.now()
      if (early > 0) await delay(early)
      if (performance.now() > end || isOver?.() === true) break
      await work(connection, n, due)
    }
    connection?.close()
  })
}

/** What could not begin when it was due has waited since then; but a timer's lateness is our own. */
function beginOf(due: number): number {
  const now = performance.now()
  return now - due > 20 ? due : now
}

async function runSteady(job: SteadyJob): Promise<JobResult> {
  const images = makeImages(SMALL_LAYERS, job.perSecond * job.seconds)
  const connections = await Promise.all(
    Array.from({ length: job.clients }, () => Connection.open(job.target)),
  )
  const moments: Moment[] = []
  let isOver = false
  process.once('SIGTERM', () => {
    isOver = true
  })
  return timed(async () => {
    const push = async (connection: Connection, n: number, due: number) => {
      const image = images[n]
      if (image === undefined) return
      const since = beginOf(due)
      await pushImage(connection, `bench/steady-${n % job.clients}`, `r${process.pid}-${n}`, image)
      const end = performance.now()
      moments.push({ end: performance.timeOrigin + end, milliseconds: end - since })
    }
    await paced(connections, job, push, () => isOver)
    return { done: moments.length, bytes: 0, moments }
  })
}

function runAsks(job: AsksJob): Promise<JobResult> {
  const { target, method, paths, headers, requests } = job
  const latencies: number[] = []
  let bytes = 0
  return timed(async () => {
    const end = performance.now() + job.seconds * 1000
    let started = 0
    await together(job.connections, async () => {
      const connection = await Connection.open(target)
      while (started < requests && performance.now() < end) {
        const path = paths[started % paths.length] ?? '/'
        started += 1
        const before = performance.now()
        const answer = await connection.send({ method, path, headers })
        latencies.push(performance.now() - before)
        expectStatus(answer, 200, `${method} ${path}`)
        bytes += answer.bytes
      }
      connection.close()
    })
    return { done: latencies.length, bytes, latencies: latencies.sort((a, b) => a - b) }
  })
}

async function runVisits(job: VisitsJob): Promise<JobResult> {
  const { target, from, paths, clients } = job
  const connections = await Promise.all(
    Array.from({ length: clients }, (_, i) => {
      const address = from[i % from.length]
      return Connection.open(address === undefined ? target : { ...target, from: address })
    }),
  )
  const latencies: number[] = []
  let bytes = 0
  return timed(async () => {
    await paced(connections, job, async (connection, _, due) => {
      const since = beginOf(due)
      for (const path of paths) {
        const answer = await connection.send({ method: 'GET', path })
        expectStatus(answer, 200, `GET ${path}`)
        bytes += answer.bytes
      }
      latencies.push(performance.now() - since)
    })
    return { done: latencies.length, bytes, latencies: latencies.sort((a, b) => a - b) }
  })
}

async function runFlood(job: FloodJob): Promise<JobResult> {
  const { target, paths, user } = job
  const connections = await Promise.all(
    Array.from({ length: job.connections }, () => Connection.open(target)),
  )
  const statuses: Record<string, number> = {}
  const latencies: number[] = []
  return timed(async () => {
    await paced(connections, job, async (connection, n) => {
      const name = n % 2 === 0 ? user : `nobody-${n}`
      const login = Buffer.from(`${name}:wrong-${process.pid}-${n}`).toString('base64')
      const path = paths[n % paths.length] ?? '/'
      const begin = performance.now()
      const answer = await connection.send({
        method: 'GET',
        path,
        headers: { Authorization: `Basic ${login}` },
      })
      latencies.push(performance.now() - begin)
      if (answer.status !== 401) expectStatus(answer, 429, 'a wrong login')
      statuses[answer.status] = (statuses[answer.status] ?? 0) + 1
    })
    return { done: latencies.length, bytes: 0, statuses, latencies: latencies.sort((a, b) => a - b) }
  })
}

function run(job: Job): Promise<JobResult> {
  switch (job.kind) {
    case 'push':
      return runPush(job)
    case 'pull':
      return runPull(job)
    case 'images':
      return runImages(job)
    case 'seed':
      return runSeed(job)
    case 'tags':
      return runTags(job)
    case 'pages':
      return runPages(job)
    case 'visits':
      return runVisits(job)
    case 'flood':
      return runFlood(job)
    case 'steady':
      return runSteady(job)
    case 'asks':
      return runAsks(job)
  }
}

const job = JSON.parse(await text(process.stdin)) as Job
process.stdout.write(`${JSON.stringify(await run(job))}\n`)
