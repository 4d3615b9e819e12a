import { fork } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { existsSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { type Blob, digestOf, makeImage } from './content.js'
import { readWhole } from './options.js'
import { Random } from './random.js'
import { type RunningServer, startServer } from './server.js'
import type { Target } from './siege-attacks.js'
import { type Reply, type Request, Wire } from './wire.js'

const help = `Usage: node dist/test/torture/siege.js [options]

Attacks a server from other addresses in all ways at once that hold connections, memory, the event loop or the writer,
while honest clients pull and push. They must be answered, with what they asked for; memory stays below a bound; nothing
is left of the attackers when they have gone. Prints how long the honest ones waited, before and meanwhile.

  --seconds N      how long (default 60)
  --memory N       MiB that all processes of the server may have together (default 400)
  --seed N         repeats the images of a run; every run prints its seed
  --workers N      worker processes of the server (default 2)
  --dir DIR        put the data folder below DIR (default: the system's temporary folder)
  --server FILE    the server's compiled main.js (default: the one this was compiled with)
`

interface Options {
  readonly seconds: number
  readonly memory: number
  readonly seed: number
  readonly workers: number
  readonly dir: string
  readonly server: string
}

/** @throws Error with a sentence for the user */
function parseCommandLine(args: readonly string[]): Options | undefined {
  const { values } = parseArgs({
    args: [...args],
    options: {
      help: { type: 'boolean', default: false },
      seconds: { type: 'string', default: '60' },
      memory: { type: 'string', default: '400' },
      seed: { type: 'string', default: String(randomInt(1, 2 ** 31)) },
      workers: { type: 'string', default: '2' },
      dir: { type: 'string', default: tmpdir() },
      server: { type: 'string', default: fileURLToPath(new URL('../../src/main.js', import.meta.url)) },
    },
  })
  if (values.help) return undefined
  if (!existsSync(values.server)) throw new Error(`there is no server at ${values.server}`)
  const { seconds, memory, seed, workers, dir, server } = values
  return {
    seconds: readWhole('seconds', seconds),
    memory: readWhole('memory', memory),
    seed: readWhole('seed', seed),
    workers: readWhole('workers', workers),
    dir,
    server,
  }
}

const ociManifest = 'application/vnd.oci.image.manifest.v1+json'

/** Milliseconds that requests took, by what they were. */
type Waits = Map<'pull' | 'push' | 'list', number[]>

/** Pulls, pushes and lists, one request after the other, and holds every answer to what it must be. */
class HonestClient {
  readonly #name: string
  readonly #random: Random
  readonly #wire: Wire
  readonly #report: (violation: string) => void
  #waits: Waits = new Map()
  #pushed = 0

  constructor(name: string, random: Random, wire: Wire, report: (violation: string) => void) {
    this.#name = name
    this.#random = random
    this.#wire = wire
    this.#report = report
  }

  /** Works until then. @returns how long its requests took */
  async work(until: number): Promise<Waits> {
    this.#waits = new Map()
    while (performance.now() < until) {
      await this.#pushAndPull()
      await delay(20)
    }
    return this.#waits
  }

  async #pushAndPull(): Promise<void> {
    const { blobs, manifest } = makeImage(this.#random, [])
    const base = `/v2/honest/${this.#name}`
    for (const { bytes, digest } of blobs) {
      await this.#ask('push', 201, {
        method: 'POST',
        path: `${base}/blobs/uploads/?digest=${digest}`,
        body: bytes,
        headers: { 'Content-Type': 'application/octet-stream' },
      })
    }
    const tag = `${base}/manifests/t${this.#pushed++ % 50}`
    const headers = { 'Content-Type': manifest.mediaType }
    await this.#ask('push', 201, { method: 'PUT', path: tag, body: manifest.bytes, headers })
    for (let time = 0; time < 4; time++) {
      const pulled = await this.#ask('pull', 200, {
        method: 'GET',
        path: tag,
        headers: { Accept: ociManifest },
      })
      if (pulled !== undefined && !pulled.body.equals(manifest.bytes))
        this.#report(`${tag}: another manifest`)
      for (const { bytes, digest } of blobs) {
        const blob = await this.#ask('pull', 200, { method: 'GET', path: `${base}/blobs/${digest}` })
        if (blob !== undefined && !blob.body.equals(bytes)) this.#report(`${digest}: other bytes`)
      }
    }
    await this.#ask('list', 200, { method: 'GET', path: `${base}/tags/list` })
  }

  async #ask(kind: 'pull' | 'push' | 'list', status: number, request: Request): Promise<Reply | undefined> {
    const begin = performance.now()
    const answer = await this.#wire.send(request)
    const wait = performance.now() - begin
    const waits = this.#waits.get(kind) ?? []
    this.#waits.set(kind, waits)
    waits.push(wait)
    if (typeof answer === 'string') {
      this.#report(`${request.method} ${request.path}: no answer (${answer})`)
      return undefined
    }
    if (answer.reply.status === status) return answer.reply
    this.#report(
      `${request.method} ${request.path}: ${answer.reply.status} ${answer.reply.body.toString().slice(0, 200)}`,
    )
    return undefined
  }
}

/** The greatest of all but the worst hundredth, in milliseconds. */
function p99(waits: readonly number[]): number {
  const sorted = waits.toSorted((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * 0.99))] ?? 0
}

/** What the processes of a server hold. */
interface Held {
  /** MiB that are resident, pages that processes share counted for each. */
  readonly resident: number
  /** MiB, shared pages counted once. */
  readonly proportional: number
  /** Open ones, but for one of each folder of blobs: a process keeps those open that it has used. */
  readonly descriptors: number
}

const blobFolder = /\/blobs\/sha\d+\/[0-9a-f]{2}$/

function isCounted(target: string, at: number, all: readonly string[]): boolean {
  return !blobFolder.test(target) || all.indexOf(target) !== at
}

function targetsOf(pid: number): string[] {
  const folder = `/proc/${pid}/fd`
  return readdirSync(folder).flatMap((fd) => {
    try {
      return [readlinkSync(join(folder, fd))]
    } catch {
      return [] // closed meanwhile
    }
  })
}

function heldBy(server: RunningServer): Held {
  const pids = [server.pid, ...server.workerIds()]
  const sum = (read: (pid: number) => number) => pids.reduce((all, pid) => all + read(pid), 0)
  const kibibytes = (file: string, field: string) => (pid: number) =>
    Number(
      new RegExp(`^${field}:\\s+(\\d+)`, 'm').exec(readFileSync(`/proc/${pid}/${file}`, 'utf8'))?.[1] ?? 0,
    )
  return {
    resident: sum(kibibytes('status', 'VmRSS')) / 1024,
    proportional: sum(kibibytes('smaps_rollup', 'Pss')) / 1024,
    descriptors: sum((pid) => targetsOf(pid).filter(isCounted).length),
  }
}

/** Pushes what the attackers ask for. */
async function prepare(wire: Wire): Promise<Omit<Target, 'port' | 'seconds'>> {
  const repository = 'siege/target'
  const put = async (path: string, body: Buffer, type = 'application/octet-stream', method = 'PUT') => {
    const answer = await wire.send({ method, path, body, headers: { 'Content-Type': type } })
    if (typeof answer === 'string' || answer.reply.status !== 201) {
      const why = typeof answer === 'string' ? answer : `${answer.reply.status} ${answer.reply.body}`
      throw new Error(`${path} cannot be pushed: ${why}`)
    }
  }
  const pushBlob = ({ digest, bytes }: Blob) =>
    put(`/v2/${repository}/blobs/uploads/?digest=${digest}`, bytes, undefined, 'POST')
  const blobOf = (bytes: Buffer): Blob => ({ bytes, digest: digestOf(bytes) })
  const config = blobOf(Buffer.from('{}'))
  const large = blobOf(new Random('siege', 'blob').bytes(4 * 1024 * 1024))
  for (const blob of [config, large]) await pushBlob(blob)
  const manifest = (more: object) =>
    Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        mediaType: ociManifest,
        artifactType: 'a/b',
        config: { mediaType: 'a/b', digest: config.digest, size: 2 },
        layers: [],
        ...more,
      }),
    )
  const subject = manifest({ annotations: { text: 'x'.repeat(4 * 1024 * 1024 - 1000) } })
  await put(`/v2/${repository}/manifests/large`, subject, ociManifest)
  const descriptor = { mediaType: ociManifest, digest: digestOf(subject), size: subject.length }
  for (let at = 0; at < 16; at++) {
    const names = Array.from({ length: 250_000 }, (_, name) => [`${at}-${name}`, ''])
    const referrer = manifest({ subject: descriptor, annotations: Object.fromEntries(names) })
    await put(`/v2/${repository}/manifests/${digestOf(referrer)}`, referrer, ociManifest)
  }
  return {
    repository,
    largeManifest: `/v2/${repository}/manifests/large`,
    largeBlob: `/v2/${repository}/blobs/${large.digest}`,
    referrers: `/v2/${repository}/referrers/${descriptor.digest}`,
  }
}

/** Starts the attackers. @returns how often each of them came, when they have gone */
function attack(target: Target): Promise<Record<string, number>> {
  const child = fork(fileURLToPath(new URL('siege-attacks.js', import.meta.url)), { stdio: 'inherit' })
  process.once('exit', () => child.kill('SIGKILL'))
  child.send(target)
  return new Promise((resolve, reject) => {
    child.once('message', (counts: Record<string, number>) => resolve(counts))
    child.once('error', reject)
    child.once('exit', (code) => reject(new Error(`the attackers ended with ${code}`)))
  })
}

/** Answers of 500 and above that the server counted. */
async function countFailures(wire: Wire): Promise<string[]> {
  const answer = await wire.send({ method: 'GET', path: '/metrics' })
  if (typeof answer === 'string') return [`/metrics: ${answer}`]
  const lines = answer.reply.body.toString().split('\n')
  return lines.filter((line) => /^boathouse_http_requests_total\{.*status="5\d\d".*\} [1-9]/.test(line))
}

/** @returns whether all is well */
async function besiege(options: Options): Promise<boolean> {
  const { seed, seconds, memory } = options
  const folder = mkdtempSync(join(options.dir, 'boathouse-siege-'))
  console.log(`siege: seed ${seed}`)
  const violations: string[] = []
  const report = (violation: string) => {
    violations.push(violation)
    if (violations.length <= 20) console.log(violation)
  }
  const server = await startServer({
    main: options.server,
    data: join(folder, 'data'),
    log: join(folder, 'server.log'),
    workers: options.workers,
    expireAfter: 3600,
    env: { BOATHOUSE_TIMEOUTS_IDLE: '10s' },
  })
  const wires = Array.from({ length: 3 }, () => new Wire(server.port))
  const clients = wires.map((wire, at) => new HonestClient(`c${at}`, new Random(seed, at), wire, report))
  const own = new Wire(server.port)
  const target = { ...(await prepare(own)), port: server.port, seconds }
  const work = async (milliseconds: number) => {
    const until = performance.now() + milliseconds
    return mergeWaits(await Promise.all(clients.map((client) => client.work(until))))
  }
  await work(5000) // what is done first is slower
  const idle = await work(15_000)
  const before = heldBy(server)
  const most = {
    resident: before.resident,
    proportional: before.proportional,
    descriptors: before.descriptors,
  }
  const watch = setInterval(() => {
    const now = heldBy(server)
    most.resident = Math.max(most.resident, now.resident)
    most.proportional = Math.max(most.proportional, now.proportional)
    most.descriptors = Math.max(most.descriptors, now.descriptors)
  }, 250)
  const [counts, besieged] = await Promise.all([attack(target), work(seconds * 1000)])
  clearInterval(watch)
  const left = await leftAfter(server, before)
  for (const line of await countFailures(own)) report(`answers of 500 and above: ${line}`)
  if (most.resident > memory) report(`the server had ${most.resident.toFixed(0)} MiB, more than ${memory}`)
  if (left.descriptors > before.descriptors) {
    report(`${left.descriptors} descriptors are open in place of ${before.descriptors}`)
  }
  for (const wire of [own, ...wires]) wire.close()
  server.stop()
  const code = await server.gone
  if (code !== 0) report(`the server ended with ${code} after SIGTERM`)
  console.log(
    `attacks: ${Object.entries(counts)
      .map(([name, times]) => `${name} ${times}`)
      .join(', ')}`,
  )
  for (const kind of ['pull', 'push', 'list'] as const) {
    const [alone = [], beside = []] = [idle.get(kind), besieged.get(kind)]
    console.log(
      `${kind}: p99 ${p99(alone).toFixed(1)} ms alone (${alone.length}), ${p99(beside).toFixed(1)} ms besieged (${beside.length}): ${(p99(beside) / p99(alone)).toFixed(2)} times`,
    )
  }
  console.log(
    `memory: ${before.resident.toFixed(0)} MiB before, ${most.resident.toFixed(0)} at the most (shared pages counted once: ${before.proportional.toFixed(0)} and ${most.proportional.toFixed(0)}), ${left.resident.toFixed(0)} afterwards; descriptors: ${before.descriptors}, ${most.descriptors}, ${left.descriptors}`,
  )
  if (violations.length === 0) rmSync(folder, { recursive: true, force: true })
  else console.log(`siege: the data folder is kept in ${folder}`)
  console.log(violations.length === 0 ? '1 passed, 0 failed' : '0 passed, 1 failed')
  return violations.length === 0
}

/** What is held when the attackers have gone, as soon as it is no more than before, or after a minute. */
async function leftAfter(server: RunningServer, before: Held): Promise<Held> {
  for (let second = 0; second < 60; second++) {
    if (heldBy(server).descriptors <= before.descriptors) break
    await delay(1000)
  }
  return heldBy(server)
}

function mergeWaits(all: readonly Waits[]): Waits {
  const merged: Waits = new Map()
  for (const waits of all) {
    for (const [kind, times] of waits) merged.set(kind, [...(merged.get(kind) ?? []), ...times])
  }
  return merged
}

for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const) {
  process.once(signal, () => process.exit(code))
}
try {
  const options = parseCommandLine(process.argv.slice(2))
  if (options === undefined) console.log(help)
  else if (!(await besiege(options))) process.exitCode = 1
} catch (error) {
  console.error(error instanceof Error ? error.message : error)
  process.exitCode = 2
}
