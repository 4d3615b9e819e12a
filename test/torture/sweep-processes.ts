import { existsSync, readFileSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { exitCodes } from '../../src/commands/exit-codes.js'
import type { Call } from '../stores/trace.js'
import { readMetric } from './check-served.js'
import { inject, type Point, pointsOf, record } from './points.js'
import type { ProcessOperation } from './process-operations.js'
import type { Ended, Scene } from './scene.js'
import { StartError } from './server.js'
import { pathOf, Threads } from './strace.js'
import { injectionOf, isWrite, type Mode } from './sweep-modes.js'
import { Wire } from './wire.js'

/** Milliseconds for which a server that has started may still be at it. */
const workPatience = 30_000

/** Milliseconds for which it may still be at it after a line in its log. */
const complaintPatience = 1000

/** How a try ended: the process said that it is done, or that it cannot be, or it was killed. */
interface Outcome {
  readonly kind: 'done' | 'refused' | 'killed'
  /** What it said. */
  readonly said: string
  /** The code with which a server that had started ended by itself. */
  readonly ended?: number
}

/** Runs the command, or starts the server and lets it run. */
async function perform(
  operation: ProcessOperation,
  scene: Scene,
  env: Readonly<Record<string, string>>,
): Promise<Outcome> {
  const variables = { ...operation.env, ...env }
  const logged = statSync(scene.log, { throwIfNoEntry: false })?.size ?? 0
  if (operation.words !== undefined) return outcomeOf(await scene.command(operation.words(scene), variables))
  const begin = Date.now()
  try {
    await scene.start(variables)
  } catch (error) {
    if (!(error instanceof StartError)) throw error
    // It ends by a signal when it is killed, which is told as null.
    return { kind: /ended with null/.test(error.message) ? 'killed' : 'refused', said: error.message }
  }
  const wire = new Wire(scene.server?.port ?? 0)
  try {
    let deadline = performance.now() + workPatience
    while (!(await isDone(operation, scene, wire, begin))) {
      if (!(await scene.isAlive())) {
        const ended = await scene.gone()
        const said = readFileSync(scene.log, 'utf8').slice(logged)
        return ended === null ? { kind: 'killed', said } : { kind: 'refused', said, ended }
      }
      if (performance.now() > deadline)
        return { kind: 'refused', said: 'the server runs, but it was not done' }
      // A server that complains has given it up, or is about to be done.
      if (statSync(scene.log).size > logged)
        deadline = Math.min(deadline, performance.now() + complaintPatience)
      await delay(20)
    }
    return { kind: 'done', said: '' }
  } finally {
    wire.close()
  }
}

/** A start is over when the server has collected, its first work, so that each one makes the same calls. */
async function isDone(
  operation: ProcessOperation,
  scene: Scene,
  wire: Wire,
  begin: number,
): Promise<boolean> {
  if (operation.isDone?.(scene) === false) return false
  return (await readMetric(wire, 'boathouse_gc_last_end_seconds')) * 1000 >= begin
}

function outcomeOf({ code, signal, said }: Ended): Outcome {
  return { kind: signal === 'SIGKILL' ? 'killed' : code === 0 ? 'done' : 'refused', said }
}

/** Does it with one of its threads under strace, from its first moment on. */
export async function performTraced<T>(
  operation: ProcessOperation,
  scene: Scene,
  role: string,
  attach: (threads: Threads, isOver: () => boolean) => Promise<T>,
): Promise<{ readonly outcome: Outcome; readonly attached: T; readonly threads: Threads }> {
  rmSync(join(scene.root, 'threads.go'), { force: true })
  const threads = new Threads(join(scene.root, 'threads'))
  let isOver = false
  const performing = perform(operation, scene, threads.environment(role)).finally(() => {
    isOver = true
  })
  const attached = await attach(threads, () => isOver)
  threads.release()
  return { outcome: await performing, attached, threads }
}

/** Which points an operation has. */
export async function pointsOfProcess(operation: ProcessOperation, scene: Scene): Promise<Point[]> {
  operation.foresee?.(scene)
  const { outcome, attached, threads } = await performTraced(operation, scene, 'main', async (all) =>
    record(scene, (await all.find('main')) ?? 0),
  )
  const calls = await attached.end()
  if (outcome.kind !== 'done') throw new Error(`${operation.name} untouched: ${outcome.said}`)
  await finish(operation, scene)
  return pointsOf(scene, calls, { roles: threads.roles(), what: 'process' })
}

/** After an operation that ended well. */
async function finish(operation: ProcessOperation, scene: Scene): Promise<void> {
  operation.conclude?.(scene)
  await operation.check?.(scene, true)
  // What a command leaves is looked at where it lies: that servers start there is seen by those that are swept.
  if (scene.server === undefined) scene.checkFolder({ isCleanStop: true })
  else await scene.stop()
}

/**
 * Does the operation, lets it happen to one call, looks what is left, and does it again.
 * @returns whether the call was met
 */
export async function tryProcess(
  operation: ProcessOperation,
  scene: Scene,
  point: Point,
  mode: Mode,
): Promise<boolean> {
  operation.foresee?.(scene)
  const { outcome, attached } = await performTraced(operation, scene, point.role, (threads, isOver) =>
    inject(scene, threads, point, injectionOf(mode, point.call), isOver),
  )
  const { hit } = await attached.end()
  if (mode === 'kill') {
    if (hit === undefined || outcome.kind !== 'killed') return false
    await scene.gone()
  } else {
    if (hit === undefined) return false
    await judgeFault(scene, hit, { ...outcome, role: point.role, mode })
  }
  await lookAt(operation, scene)
  if (outcome.kind === 'done' && operation.isOnce === true) await finish(operation, scene)
  else await again(operation, scene)
  return true
}

/** A failed call ends in a clear refusal, or does not matter; a failed sync always matters. */
async function judgeFault(
  scene: Scene,
  hit: Call,
  { kind, said, ended, role, mode }: Outcome & { readonly role: string; readonly mode: Mode },
): Promise<void> {
  if (kind === 'killed') scene.report(`the process was ended by a signal: ${said}`)
  if (kind === 'refused' && /\n\s+at /.test(said))
    scene.report(`the refusal is no sentence: ${said.slice(0, 600)}`)
  if (kind === 'refused' && said.trim() === '') scene.report('it failed without a word')
  // A log that cannot be folded back into the index when it is closed stays where it is.
  const isIndex = pathOf(hit)?.startsWith(join(scene.data, 'boathouse.db')) === true
  if (ended !== undefined && !mayEnd({ ended, isIndex, mode, call: hit.name }))
    scene.report(`the server ended with ${ended}`)
  // SQLite does not look at what came of syncing the folder of a new log; Boathouse syncs it itself, in the pool.
  const folders = [scene.data, join(scene.data, 'snapshots'), join(scene.root, 'backup')]
  const isOfSqlite = role !== 'pool' && folders.includes(pathOf(hit) ?? '')
  // Nothing that was acknowledged lies in the reserve: that it could not be made is told in the log, and it is made anew.
  const isReserve = pathOf(hit) === join(scene.data, 'reserve')
  const isTold = isReserve && (await isLogged(scene, /"the reserve on the disk could not be made"/))
  if (kind === 'done' && hit.name.endsWith('sync') && !isIndex && !isOfSqlite && !isTold) {
    scene.report(`R52 ${hit.name} failed, and all was called well`)
  }
  if (scene.server === undefined) return
  scene.server.stop()
  await scene.gone()
}

/** Whether the server's log says it, or does so soon. */
async function isLogged(scene: Scene, words: RegExp): Promise<boolean> {
  const deadline = performance.now() + 5000
  while (performance.now() < deadline) {
    if (words.test(readFileSync(scene.log, 'utf8'))) return true
    await delay(20)
  }
  return false
}

/** A server ends by itself when its index cannot be written, and never for want of room. */
function mayEnd({
  ended,
  isIndex,
  mode,
  call,
}: {
  readonly ended: number
  readonly isIndex: boolean
  readonly mode: Mode
  readonly call: string
}): boolean {
  return ended === exitCodes.indexUnwritable && isIndex && !(mode === 'ENOSPC' && isWrite(call))
}

async function lookAt(operation: ProcessOperation, scene: Scene): Promise<void> {
  await operation.check?.(scene, false)
  const isFolder = existsSync(join(scene.data, 'uploads')) && existsSync(join(scene.data, 'boathouse.db'))
  if (isFolder && operation.isFolderOpen !== true) scene.checkFolder()
}

/** The same can be done again, and then all is well. */
async function again(operation: ProcessOperation, scene: Scene): Promise<void> {
  operation.foresee?.(scene)
  const { kind, said } = await perform(operation, scene, {})
  if (kind === 'done') await finish(operation, scene)
  else scene.report(`I9 it cannot be done again: ${said.slice(0, 600)}`)
}
