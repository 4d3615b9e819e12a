import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import type { Job, JobResult } from './jobs.js'

const GENERATOR = fileURLToPath(new URL('./generator.js', import.meta.url))

/** The load tool or the generator took longer than its row allows. */
export class OverTime extends Error {
  override name = 'OverTime'
}

const running = new Set<ChildProcess>()

/** Ends every load process that still runs, at once. */
export function killLoad(): void {
  for (const child of running) child.kill('SIGKILL')
}

/** Runs a program to its end and returns what it printed; rejects when it fails or exceeds its seconds. */
async function runToEnd(
  program: string,
  args: string[],
  input: string,
  seconds: number,
  signal?: AbortSignal,
): Promise<string> {
  const child = spawn(program, args, { stdio: 'pipe' })
  running.add(child)
  const stop = () => child.kill('SIGTERM')
  signal?.addEventListener('abort', stop)
  let late = false
  const timer = setTimeout(() => {
    late = true
    child.kill('SIGKILL')
  }, seconds * 1000)
  try {
    const ended = once(child, 'close')
    child.stdin.end(input)
    const [output, errors] = await Promise.all([text(child.stdout), text(child.stderr), ended])
    if (late) throw new OverTime(`stopped after ${Math.round(seconds)} s`)
    if (child.exitCode !== 0) throw new Error(`${program} failed: ${errors.trim().slice(0, 1000)}`)
    return output
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', stop)
    running.delete(child)
  }
}

/**
 * Runs one job in a generator process of its own.
 * @param signal ends a job early that can tell what it has done until then
 */
export async function runJob(job: Job, limitSeconds: number, signal?: AbortSignal): Promise<JobResult> {
  const output = await runToEnd(process.execPath, [GENERATOR], JSON.stringify(job), limitSeconds, signal)
  return JSON.parse(output) as JobResult
}

/** What wrk is to do: one URL, kept-alive connections, for so many seconds. */
export interface WrkJob {
  readonly url: string
  readonly connections: number
  readonly threads: number
  readonly seconds: number
  readonly accept?: string
  readonly authorization?: string
}

/** Throws, saying what to install, when wrk is missing. */
export function requireWrk(): void {
  try {
    execFileSync('wrk', ['--version'], { stdio: 'ignore' })
  } catch (error) {
    // wrk answers --version with status 1, so only its absence counts.
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') return
    throw new Error('wrk is missing. On Debian: apt-get install docker-registry wrk')
  }
}

/** Runs wrk and returns answers per second; rejects when any answer was not a success. */
export async function runWrk(job: WrkJob, limitSeconds: number): Promise<number> {
  const { url, connections, threads, seconds, accept, authorization } = job
  const args = [`-t${threads}`, `-c${connections}`, `-d${seconds}s`, '--timeout', '20s']
  if (accept !== undefined) args.push('-H', `Accept: ${accept}`)
  if (authorization !== undefined) args.push('-H', `Authorization: ${authorization}`)
  const output = await runToEnd('wrk', [...args, url], '', limitSeconds)
  const failures = /Non-2xx or 3xx responses: \d+|Socket errors: .*/.exec(output)
  if (failures) throw new Error(`wrk: ${failures[0]}`)
  return Number(/Requests\/sec:\s+([\d.]+)/.exec(output)?.[1])
}
