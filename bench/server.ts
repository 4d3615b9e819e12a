import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, mkdirSync, openSync, readFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { Connection } from './connection.js'
import type { Target } from './jobs.js'
import { processTree } from './measure.js'

const READY_LIMIT_MS = 20_000
const STOP_LIMIT_MS = 15_000

/** A registry that runs for the benchmark. */
export interface Server {
  readonly target: Target
  readonly pid: number
  /** Everything it writes is below this folder. */
  readonly folder: string
  /** Milliseconds from the start of the process to the first answer (200, or 401) to `GET /v2/`. */
  readonly readyMs: number
  /** Asks it to end, and makes it end when it does not. */
  stop(): Promise<void>
  /** Ends all of its processes in the middle of whatever they do. */
  kill(): Promise<void>
}

/** A server that asks for a login, with one user, who may pull and push. */
export interface GuardedServer extends Server {
  readonly user: string
  /** The user's name and password as an Authorization header. */
  readonly basic: string
  /** Asks for a token: for what a repository's pulls and pushes need. */
  token(repository: string): Promise<string>
}

/** What a guarded server may be told. */
export interface GuardedOptions {
  /** Everything on one core. */
  readonly onOneCore?: boolean
  /** What the user may pull, as patterns of repositories; when absent, `bench/**`, where he may push as well. */
  readonly pull?: readonly string[]
}

/** A make of registry: how it is started, and how a repository gets very many tags fast. */
export interface Registry {
  readonly name: string
  /**
   * Starts it over a folder, new or used before, and resolves when it answers.
   * @param settings variables for ours
   */
  start(folder: string, settings?: Readonly<Record<string, string>>): Promise<Server>
  /** The same with users and tokens of its own, where it has any. */
  startGuarded?(folder: string, options: GuardedOptions): Promise<GuardedServer>
  /** Starts a mirror of an upstream; the names of its repositories begin with `prefix`. */
  startMirror?(folder: string, upstream: Target): Promise<Server & { readonly prefix: string }>
  /** Gives one image of the repository `count` tags, named by `tagName`. */
  seedTags(server: Server, repository: string, count: number): Promise<void>
  /** Fills the folder of a server that does not run with the large registry of `scale.ts`, or as much of it as counts. */
  seedLarge(folder: string): Promise<void>
  /** Reads everything in the folder on one core, beside no server, and compares it with its digests. */
  verify?(folder: string): Promise<{ readonly bytes: number; readonly seconds: number }>
  /** Collects so many blobs that nobody needs while nothing else is done, and tells how many seconds it took. */
  collectOffline?(folder: string, blobs: number): Promise<number>
}

export interface Command {
  readonly program: string
  readonly args: readonly string[]
  readonly env?: NodeJS.ProcessEnv
}

const running = new Set<number>()

/** Ends every server that still runs, at once; for a benchmark that is being broken off. */
export function killServers(): void {
  for (const pid of running) killTree(pid)
  running.clear()
}

function killTree(pid: number): void {
  for (const member of processTree(pid)) {
    try {
      process.kill(member, 'SIGKILL')
    } catch {
      // it has ended by itself
    }
  }
}

/** A port of the loopback interface that nothing listens on just now. */
export async function freePort(): Promise<number> {
  const probe = createServer().listen(0, '127.0.0.1')
  await once(probe, 'listening')
  const address = probe.address()
  probe.close()
  await once(probe, 'close')
  if (address === null || typeof address === 'string') throw new Error('no port was given')
  return address.port
}

/**
 * Starts a server process, its output going to `output.log` in the folder, and waits until it answers.
 * Rejects with the end of that log when the process ends or stays silent.
 */
export async function startServer(command: Command, target: Target, folder: string): Promise<Server> {
  mkdirSync(folder, { recursive: true })
  const log = join(folder, 'output.log')
  const output = openSync(log, 'a')
  const begin = performance.now()
  const child = spawn(command.program, command.args, {
    stdio: ['ignore', output, output],
    env: command.env ?? process.env,
  })
  closeSync(output)
  await once(child, 'spawn')
  const pid = child.pid ?? 0
  running.add(pid)
  if (!(await answers(target, child))) {
    killTree(pid)
    running.delete(pid)
    throw new Error(`${command.program} did not become ready:\n${readFileSync(log, 'utf8').slice(-2000)}`)
  }
  const readyMs = performance.now() - begin
  const kill = () => killServer(child, pid)
  return { target, pid, folder, readyMs, stop: () => stopServer(child, pid), kill }
}

function hasEnded(child: ChildProcess): boolean {
  return child.exitCode !== null || child.signalCode !== null
}

async function answers(target: Target, child: ChildProcess): Promise<boolean> {
  const end = performance.now() + READY_LIMIT_MS
  while (performance.now() < end && !hasEnded(child)) {
    if (await answersOnce(target)) return true
    await delay(3)
  }
  return false
}

async function answersOnce(target: Target): Promise<boolean> {
  let connection: Connection | undefined
  const timer = setTimeout(() => connection?.close(), 2000)
  try {
    connection = await Connection.open(target)
    const { status } = await connection.send({ method: 'GET', path: '/v2/' })
    return status === 200 || status === 401
  } catch {
    return false
  } finally {
    clearTimeout(timer)
    connection?.close()
  }
}

async function stopServer(child: ChildProcess, pid: number): Promise<void> {
  if (!hasEnded(child)) {
    const ended = once(child, 'exit')
    child.kill('SIGTERM')
    const timer = setTimeout(() => killTree(pid), STOP_LIMIT_MS)
    await ended
    clearTimeout(timer)
  }
  running.delete(pid)
}

async function killServer(child: ChildProcess, pid: number): Promise<void> {
  const ended = hasEnded(child) ? undefined : once(child, 'exit')
  killTree(pid)
  await ended
  running.delete(pid)
}
