import { execFile } from 'node:child_process'
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { JobResult, Target } from './jobs.js'
import { runJob } from './load.js'
import { cpuOf, machineCpu, ownCpu, processTree } from './measure.js'
import { MIB } from './payload.js'
import type { GuardedServer, Registry, Server } from './server.js'

const run = promisify(execFile)
const PREPARE_LIMIT_SECONDS = 60

/** Processor time over a timed section, each in cores kept busy. */
export interface Cores {
  readonly server: number
  readonly load: number
  /** Everything on the machine that is neither: a figure of some size says that the row was disturbed. */
  readonly others: number
}

/** A load's result together with what it cost. */
export interface Observed<T> {
  readonly result: T
  readonly cores: Cores
}

/**
 * One of the two that are compared: a registry with a long-lived server that most rows share, and fresh servers for
 * the rows that need one to themselves.
 */
export class Side {
  readonly registry: Registry
  readonly #folder: string
  readonly #prepared = new Map<string, Promise<unknown>>()
  readonly #owned: Server[] = []
  #fresh = 0

  constructor(registry: Registry, folder: string) {
    this.registry = registry
    this.#folder = folder
  }

  /** The shared server, started when it is first asked for. */
  shared(): Promise<Server> {
    return this.once('server', () => this.registry.start(join(this.#folder, 'shared')))
  }

  /** A server of its own that asks for a login, started when it is first asked for by this name. */
  guarded(name: string, onOneCore = false): Promise<GuardedServer> {
    return this.once(`guarded ${name}`, async () => {
      if (this.registry.startGuarded === undefined) throw new Error(`${this.registry.name} has no users`)
      const server = await this.registry.startGuarded(join(this.#folder, name), { onOneCore })
      this.owns(server)
      return server
    })
  }

  /** Stops this server, too, at the end. */
  owns(server: Server): void {
    this.#owned.push(server)
  }

  /** Does a preparation the first time it is asked for by this name, and gives the same answer ever after. */
  once<T>(name: string, prepare: () => Promise<T>): Promise<T> {
    const known = this.#prepared.get(name) as Promise<T> | undefined
    if (known) return known
    const made = prepare()
    this.#prepared.set(name, made)
    return made
  }

  /** The path of the folder for a server that one sample has to itself. */
  freshFolder(): string {
    this.#fresh += 1
    return join(this.#folder, `fresh-${this.#fresh}`)
  }

  /** Stops the shared server and removes all data. */
  async end(): Promise<void> {
    const server = await this.#prepared.get('server')?.catch(() => undefined)
    await (server as Server | undefined)?.stop()
    for (const owned of this.#owned) await owned.stop()
    rmSync(this.#folder, { recursive: true, force: true })
  }
}

/** Pushes blobs to a server, untimed, and returns their digests. */
export async function pushBlobs(
  server: Server,
  repository: string,
  blobs: number,
  size: number,
): Promise<readonly string[]> {
  const job = { kind: 'push', target: server.target, repository, parallel: 2, blobs, size } as const
  const { digests = [] } = await runJob(job, PREPARE_LIMIT_SECONDS)
  return digests
}

/**
 * Pushes the image that reading rows pull, under the tag `latest`, and returns the digest of its first layer, which
 * has 1 MiB. Ten layers, as a usual image has.
 */
export async function seedImage(target: Target, repository: string): Promise<string> {
  const layers = [MIB, ...Array.from({ length: 9 }, () => 4096)]
  const job = { kind: 'seed', target, repository, tag: 'latest', layers } as const
  const { digests = [] } = await runJob(job, PREPARE_LIMIT_SECONDS)
  return digests[0] ?? ''
}

/** Waits until what was written is on disk, so that no sample pays for the one before it. */
export async function settle(folder: string): Promise<void> {
  await run('sync', ['-f', folder])
}

/** Runs a load against a server, or several, and measures the processor time of everyone. `seconds` tells its timed length. */
export async function observe<T>(
  servers: Server | readonly Server[],
  load: () => Promise<T>,
  seconds: (result: T) => number,
  loadCpu?: (result: T) => number,
): Promise<Observed<T>> {
  const pids = [servers].flat().flatMap(({ pid }) => processTree(pid))
  const before = { server: cpuOf(pids), own: ownCpu(), machine: machineCpu(), at: performance.now() }
  const result = await load()
  const wall = (performance.now() - before.at) / 1000
  const used = cpuOf(pids) - before.server
  const own = ownCpu() - before.own
  const others = Math.max(0, machineCpu() - before.machine - used - own)
  const timed = seconds(result)
  const ofLoad = loadCpu ? loadCpu(result) : own
  return { result, cores: { server: used / timed, load: ofLoad / timed, others: others / wall } }
}

/** The same for a job of the generator, which knows its own timed section. */
export function observeJob(server: Server, job: () => Promise<JobResult>): Promise<Observed<JobResult>> {
  return observe(
    server,
    job,
    (result) => result.seconds,
    (result) => result.cpuSeconds,
  )
}

/** The same for work whose servers start and end within it: their processor time arrives with their end. */
export async function observeChild<T>(work: () => Promise<T>): Promise<Observed<T>> {
  const before = { own: ownCpu(), machine: machineCpu(), at: performance.now() }
  const result = await work()
  const wall = (performance.now() - before.at) / 1000
  const own = ownCpu() - before.own
  const others = Math.max(0, machineCpu() - before.machine - own)
  return { result, cores: { server: own / wall, load: 0, others: others / wall } }
}
