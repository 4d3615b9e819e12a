import { existsSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { exitCodes } from '../../src/commands/exit-codes.js'
import type { Call } from '../stores/trace.js'
import { readMetric } from './check-served.js'
import type { RequestOperation } from './operations.js'
import { inject, type Point, pointsOf, record } from './points.js'
import type { Scene } from './scene.js'
import { withIndexCopy } from './stored.js'
import { Threads } from './strace.js'
import { injectionOf, isWrite, type Mode } from './sweep-modes.js'
import { GivenUp } from './talk.js'
import { Wire } from './wire.js'

/** What came of one point. */
export interface Tried {
  /** Whether the call was met. */
  readonly isHit: boolean
  readonly violations: readonly string[]
}

/** Starts a traced server, and lets it settle. */
export async function startTraced(scene: Scene, operation: RequestOperation): Promise<Threads> {
  const threads = new Threads(join(scene.root, 'threads'))
  scene.isSparse = operation.isMirror === true
  const runs = !existsSync(join(scene.data, 'boathouse.db'))
    ? 0
    : withIndexCopy(scene.data, (db) => Number(db.prepare('SELECT ended FROM collection').pluck().get()))
  const { port } = await scene.start({ ...threads.environment(), ...operation.env })
  // Its first work is a collection.
  const wire = new Wire(port)
  const deadline = performance.now() + 60_000
  while (!((await readMetric(wire, 'boathouse_gc_runs_total')) > runs)) {
    if (performance.now() > deadline) throw new Error('the server has not collected')
    await delay(20)
  }
  wire.close()
  return threads
}

/** Does it, as far as the answers let it. */
export async function tryIt(
  operation: RequestOperation,
  scene: Scene,
  variant: number,
  isAgain: boolean,
): Promise<'done' | 'refused' | 'lost'> {
  try {
    await operation.act(scene, variant, isAgain)
    return 'done'
  } catch (error) {
    if (error instanceof GivenUp) return error.isLost ? 'lost' : 'refused'
    throw error
  }
}

/** Waits until the server has done what it does behind an answer. */
export async function settle(scene: Scene): Promise<void> {
  const deadline = performance.now() + 1000
  let before: string | undefined
  do {
    await delay(40)
    const now = (await readdir(join(scene.data, 'uploads'))).join()
    // What lies there for good is the client's to take up again.
    if (now === '' || now === before) return
    before = now
  } while (performance.now() < deadline)
}

/** Which points an operation has. */
export async function pointsOfRequests(operation: RequestOperation, scene: Scene): Promise<Point[]> {
  const threads = await startTraced(scene, operation)
  await prepare(operation, scene, 0)
  const recording = await record(scene, scene.server?.pid ?? 0)
  await tryIt(operation, scene, 0, false)
  await settle(scene)
  const calls = await recording.end()
  await scene.stop()
  return pointsOf(scene, calls, { roles: threads.roles(), what: 'requests' })
}

/** Brings about what must be there before. */
export async function prepare(operation: RequestOperation, scene: Scene, variant: number): Promise<void> {
  scene.trouble = 'none'
  // What is made at first use is made now.
  await scene.ask({ method: 'GET', path: '/readyz' })
  await operation.prepare?.(scene, variant)
  await settle(scene)
}

/** A server to which it happens at one call after the other. */
export class Series {
  readonly #operation: RequestOperation
  readonly #scene: Scene
  readonly #mode: Mode
  #threads: Threads | undefined
  #variant = 0

  constructor(operation: RequestOperation, scene: Scene, mode: Mode) {
    this.#operation = operation
    this.#scene = scene
    this.#mode = mode
  }

  /**
   * Does the operation in a new place, lets it happen to one call, and looks what becomes of it and of the next try.
   * @returns whether the call was met
   */
  async tryAt(point: Point): Promise<boolean> {
    const scene = this.#scene
    const variant = ++this.#variant
    this.#threads ??= await startTraced(scene, this.#operation)
    await prepare(this.#operation, scene, variant)
    const injection = await inject(scene, this.#threads, point, injectionOf(this.#mode, point.call))
    scene.trouble = this.#mode === 'kill' ? 'death' : 'fault'
    const outcome = await tryIt(this.#operation, scene, variant, false)
    const isAlive = await scene.isAlive()
    if (isAlive) await settle(scene)
    const { hit, after, isTorn } = await injection.end()
    scene.trouble = 'none'
    if (hit === undefined) return false
    if (isTorn) return this.#beginAnew(variant)
    if (this.#mode !== 'kill') this.#judgeFault(hit, { outcome: isAlive ? outcome : 'dead', after })
    if (!(await scene.isAlive())) await this.#restart(point)
    await tryIt(this.#operation, scene, variant, true)
    if (this.#operation.isMirror !== true) await scene.checkServed()
    return true
  }

  /** A quota that ended in the middle of a failure looks like a failing disk, and proves nothing. */
  async #beginAnew(variant: number): Promise<false> {
    this.#scene.server?.killAll()
    await this.#scene.gone()
    this.#threads = await startTraced(this.#scene, this.#operation)
    await tryIt(this.#operation, this.#scene, variant, true)
    return false
  }

  /** R52: a failed sync is neither an acknowledgement nor tried again. */
  #judgeFault(
    hit: Call,
    { outcome, after }: { readonly outcome: string; readonly after: readonly Call[] },
  ): void {
    // Half an image of an upstream can be cut off: nothing else can end without an answer.
    if (outcome === 'lost' && this.#operation.isMirror !== true) this.#scene.report('there was no answer')
    if (!hit.name.endsWith('sync') || this.#operation.isMirror === true) return
    if (outcome === 'done')
      this.#scene.report(`R52 ${hit.name} failed, and everything was answered with success`)
    const upload = /\/uploads\/([0-9a-f-]+)>/.exec(hit.args)?.[1]
    if (upload === undefined) return
    this.#scene.unsynced.add(upload)
    if (after.some(({ name, args }) => name === hit.name && args === hit.args)) {
      this.#scene.report(`R52 a file whose ${hit.name} failed was synced again`)
    }
  }

  /** The server may end by itself where it says so, and nowhere else: when the index cannot be written. */
  async #restart(point: Point): Promise<void> {
    const scene = this.#scene
    const code = await scene.gone()
    if (this.#mode !== 'kill') {
      const isIndex = point.path?.startsWith('data/boathouse.db') === true
      const isFull = (this.#mode === 'ENOSPC' || this.#mode === 'EDQUOT') && isWrite(point.call)
      if (code !== exitCodes.indexUnwritable || !isIndex || isFull)
        scene.report(`the server ended with ${code}`)
    }
    const { isMirror = false } = this.#operation
    scene.checkFolder(isMirror ? {} : { mayBeOrphan: (digest) => scene.model.mayBeOrphan(digest) })
    this.#threads = await startTraced(scene, this.#operation)
    if (!isMirror) await scene.checkServed()
  }

  /** Stops the server; what was left half done is gone after the next start. */
  async end(): Promise<void> {
    if (this.#threads === undefined) return
    const scene = this.#scene
    if (this.#mode !== 'kill') {
      scene.server?.stop()
      await scene.gone()
      await scene.start(this.#operation.env)
    }
    await scene.stop()
  }
}
