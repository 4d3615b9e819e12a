import { type ChildProcess, spawn } from 'node:child_process'
import { closeSync, openSync, readdirSync, readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'
import { Wire } from './wire.js'

/** Milliseconds that a start may take before it counts as failed, unless told otherwise. */
const startPatience = 60_000

/** How a server is started. */
export interface ServerOptions {
  /** The compiled main.js. */
  readonly main: string
  readonly data: string
  /** Gets standard error, at the end of what is there. */
  readonly log: string
  readonly workers: number
  /** Seconds after which an idle upload is expired. */
  readonly expireAfter: number
  /** Milliseconds that the start may take before it counts as failed. */
  readonly patience?: number
  /** Further variables. */
  readonly env?: Readonly<Record<string, string>>
}

const living = new Set<ChildProcess>()
process.on('exit', () => {
  for (const child of living) signalGroup(child, 'SIGKILL')
})

/** A server that did not get ready, with what it said. */
export class StartError extends Error {
  override readonly name = 'StartError'
}

/** A server that runs, and its processes. */
export interface RunningServer {
  readonly port: number
  /** The primary process. */
  readonly pid: number
  readonly workers: number
  /** Milliseconds from the start of the process to its first 200 at /readyz. */
  readonly readyMs: number
  /** SIGKILL of the primary process and all workers at once. */
  killAll(): void
  /** Stops the primary process and all workers where they are: SIGKILL alone ends them. */
  freezeAll(): void
  /** SIGKILL of the primary process alone. */
  killPrimary(): void
  /** SIGTERM. */
  stop(): void
  /** Resolves when no process of it is left, with the exit code of the first one. */
  readonly gone: Promise<number | null>
  /** Process ids of the workers that run now. */
  workerIds(): number[]
}

/**
 * Starts a server on a free port and waits until it is ready.
 * @throws StartError when it ends or stays silent
 */
export async function startServer(options: ServerOptions): Promise<RunningServer> {
  const begin = performance.now()
  const child = spawnServer(options)
  const gone = new Promise<number | null>((resolve) => {
    // Workers hold the same pipe: it closes with the last of them.
    child.once('close', (code) => {
      living.delete(child)
      resolve(code)
    })
  })
  try {
    const { patience = startPatience } = options
    const port = await listening(child, patience)
    await ready(child, port, begin + patience)
    return {
      port,
      pid: child.pid ?? 0,
      workers: options.workers,
      readyMs: performance.now() - begin,
      gone,
      killAll: () => signalGroup(child, 'SIGKILL'),
      freezeAll: () => signalGroup(child, 'SIGSTOP'),
      killPrimary: () => void child.kill('SIGKILL'),
      stop: () => void child.kill('SIGTERM'),
      workerIds: () => childrenOf(child.pid ?? 0),
    }
  } catch (error) {
    signalGroup(child, 'SIGKILL')
    await gone
    const said = readFileSync(options.log, 'utf8').slice(-1000)
    const reason = error instanceof Error ? error.message : error
    throw new StartError(`the server did not start: ${reason}; its last words: ${said}`)
  }
}

/** Starts a server and kills all of it after some milliseconds, ready or not. Resolves when it is gone. */
export async function startAndKill(options: ServerOptions, after: number): Promise<void> {
  const child = spawnServer(options)
  const gone = new Promise((resolve) => child.once('close', resolve))
  child.stdout?.resume()
  await delay(after)
  signalGroup(child, 'SIGKILL')
  await gone
  living.delete(child)
}

function spawnServer(options: ServerOptions): ChildProcess {
  const log = openSync(options.log, 'a')
  const child = spawn(
    process.execPath,
    [options.main, 'serve', '--listen', '127.0.0.1:0', '--data', options.data],
    {
      detached: true, // a process group of its own, to be killed as one
      stdio: ['ignore', 'pipe', log],
      env: {
        ...(process.env.PATH === undefined ? {} : { PATH: process.env.PATH }),
        BOATHOUSE_AUTH: 'none',
        BOATHOUSE_WORKERS: String(options.workers),
        BOATHOUSE_LOG_LEVEL: 'warn',
        BOATHOUSE_LOG_FORMAT: 'json',
        BOATHOUSE_UPLOADS_EXPIRE_AFTER: `${options.expireAfter}s`,
        ...options.env,
      },
    },
  )
  closeSync(log)
  living.add(child)
  return child
}

function signalGroup(child: ChildProcess, signal: NodeJS.Signals): void {
  if (child.pid === undefined) return
  try {
    process.kill(-child.pid, signal)
  } catch {
    // all of them have ended
  }
}

/** The port that the server says it listens on. */
function listening(child: ChildProcess, patience: number): Promise<number> {
  return new Promise((resolve, reject) => {
    const { stdout } = child
    if (stdout === null) throw new Error('no pipe')
    const timer = setTimeout(() => reject(new Error('it says nothing')), patience)
    createInterface(stdout).on('line', (line) => {
      const port = /listening on http:\/\/127\.0\.0\.1:(\d+)/.exec(line)?.[1]
      if (port === undefined) return
      clearTimeout(timer)
      resolve(Number(port))
    })
    child.once('exit', (code) => {
      clearTimeout(timer)
      reject(new Error(`it ended with ${code}`))
    })
  })
}

async function ready(child: ChildProcess, port: number, deadline: number): Promise<void> {
  const wire = new Wire(port)
  try {
    for (;;) {
      const answer = await wire.send({ method: 'GET', path: '/readyz' })
      if (typeof answer !== 'string' && answer.reply.status === 200) return
      if (child.exitCode !== null || child.signalCode !== null) {
        throw new Error(`it ended with ${child.exitCode}`)
      }
      if (performance.now() > deadline) throw new Error('it does not get ready')
      await delay(5)
    }
  } finally {
    wire.close()
  }
}

/** Processes whose parent this is, where the system has /proc. */
function childrenOf(parent: number): number[] {
  const children: number[] = []
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue
    try {
      // pid (name, which may hold anything) state parent …
      const [state, owner] = readFileSync(`/proc/${name}/stat`, 'utf8').split(') ').at(-1)?.split(' ') ?? []
      if (Number(owner) === parent && state !== 'Z') children.push(Number(name))
    } catch {
      // it has ended
    }
  }
  return children
}
