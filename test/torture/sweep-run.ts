import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import type { RequestOperation } from './operations.js'
import { describePoint, type Point } from './points.js'
import type { ProcessOperation } from './process-operations.js'
import { Random } from './random.js'
import { Scene } from './scene.js'
import { type Calls, callsFor, type Mode, type Numbered } from './sweep-modes.js'
import { isProcess, type Operation } from './sweep-operations.js'
import { pointsOfProcess, tryProcess } from './sweep-processes.js'
import { pointsOfRequests, Series } from './sweep-requests.js'

/** Calls that are tried on one data folder before a fresh one takes over. */
const seriesLength = 15

/** Times that a call is looked for, and how far from where it was, when it is known by its number alone. */
const shifts = [0, 0, 1, -1, 2, -2]

/** How a sweep is done. */
export interface SweepOptions {
  readonly main: string
  readonly seed: number
  /** Where the scenes go. */
  readonly folder: string
  readonly lanes: number
  /** Whether the same call on each of the leaves is tried, not on some that stand for all. */
  readonly isEach: boolean
  /** Calls of each operation that are tried in each mode, chosen by the seed; all unless given. */
  readonly most: number | undefined
  /** Only this call of each operation: 1 for the first. */
  readonly at: number | undefined
}

/** What came of one operation in one mode. */
export interface SweepReport {
  readonly operation: string
  readonly mode: Mode
  /** Calls that the operation has, that can be met like this. */
  readonly points: number
  /** Those of them that are to be tried for all of them. */
  readonly distinct: number
  readonly tried: number
  /** Calls that were to be tried and were never met. */
  readonly missed: number
  /** Calls at which something was violated. */
  readonly failed: number
  readonly seconds: number
}

interface Counts {
  tried: number
  missed: number
  failed: number
}

/** Sweeps over the calls of operations. */
export class Sweep {
  readonly #options: SweepOptions
  #scenes = 0
  /** The calls of each operation. */
  readonly #seen = new Map<string, readonly Point[]>()
  readonly #templates = new Map<string, Scene>()
  /** Scenes in which something was violated. */
  readonly #spoiled = new Set<Scene>()

  constructor(options: SweepOptions) {
    this.#options = options
  }

  async *run(operations: readonly Operation[], all: readonly Mode[]): AsyncGenerator<SweepReport> {
    for (const operation of operations) {
      for (const mode of all) {
        // To what runs by itself a quota that is used up is the full disk that it has met already.
        if (mode === 'EDQUOT' && isProcess(operation)) continue
        yield await this.#sweep(operation, mode)
      }
    }
  }

  async #sweep(operation: Operation, mode: Mode): Promise<SweepReport> {
    const begin = performance.now()
    const calls = callsFor(mode, await this.#points(operation))
    const chosen = this.#choose(operation, mode, calls)
    const counts: Counts = { tried: 0, missed: 0, failed: 0 }
    const parts: Numbered[][] = []
    for (let at = 0; at < chosen.length; at += seriesLength) parts.push(chosen.slice(at, at + seriesLength))
    const queue = parts.values()
    await Promise.all(
      Array.from({ length: this.#options.lanes }, async () => {
        for (const part of queue) await this.#tryPart(operation, mode, part, counts)
      }),
    )
    const seconds = (performance.now() - begin) / 1000
    const points = calls.all.length
    return { operation: operation.name, mode, points, distinct: calls.distinct.length, ...counts, seconds }
  }

  async #points(operation: Operation): Promise<readonly Point[]> {
    let seen = this.#seen.get(operation.name)
    if (seen === undefined) {
      const scene = await this.#scene(operation)
      seen = isProcess(operation)
        ? await pointsOfProcess(operation, scene)
        : await pointsOfRequests(operation, scene)
      const { violations } = scene
      if (violations.length > 0) throw new Error(`${operation.name} untouched: ${violations.join('; ')}`)
      await scene.remove()
      this.#seen.set(operation.name, seen)
    }
    return seen
  }

  #choose({ name }: Operation, mode: Mode, calls: Calls): readonly Numbered[] {
    const { at, most, isEach, seed } = this.#options
    if (at !== undefined) return calls.all.filter((one) => one.at === at)
    const all = isEach ? calls.all : calls.distinct
    if (most === undefined || most >= all.length) return all
    const random = new Random(seed, 'sample', name, mode)
    const left = all.map((one) => ({ one, place: random.int(0, 2 ** 30) }))
    const chosen = left.sort((a, b) => a.place - b.place).slice(0, most)
    return chosen.map(({ one }) => one).sort((a, b) => a.at - b.at)
  }

  /** Tries calls, each until it is met. */
  async #tryPart(operation: Operation, mode: Mode, part: readonly Numbered[], counts: Counts): Promise<void> {
    let left = part
    for (const shift of shifts) {
      if (left.length === 0) break
      const wanted = left.map((one) => shifted(one, shift))
      const missed = isProcess(operation)
        ? await this.#tryProcess(operation, mode, wanted, counts)
        : await this.#trySeries(operation, mode, wanted, counts)
      left = left.filter(({ at }) => missed.some((one) => one.at === at))
    }
    counts.missed += left.length
    for (const { at, point } of left) {
      console.log(`${operation.name} ${mode} --at ${at}: ${describePoint(point)} was never met`)
    }
  }

  /** @returns those that were not met */
  async #tryProcess(
    operation: ProcessOperation,
    mode: Mode,
    part: readonly Numbered[],
    counts: Counts,
  ): Promise<Numbered[]> {
    const missed: Numbered[] = []
    for (const one of part) {
      const scene = await this.#scene(operation)
      const isHit = await this.#guard(scene, () => tryProcess(operation, scene, one.point, mode))
      if (!this.#count(scene, { operation, mode, one, isHit }, counts)) missed.push(one)
      await this.#leave(scene)
    }
    return missed
  }

  /** @returns those that were not met */
  async #trySeries(
    operation: RequestOperation,
    mode: Mode,
    part: readonly Numbered[],
    counts: Counts,
  ): Promise<Numbered[]> {
    const scene = await this.#scene(operation)
    const series = new Series(operation, scene, mode)
    const missed: Numbered[] = []
    for (const one of part) {
      const isHit = await this.#guard(scene, () => series.tryAt(one.point))
      if (!this.#count(scene, { operation, mode, one, isHit }, counts)) missed.push(one)
      if (!this.#spoiled.has(scene)) continue
      await this.#leave(scene)
      return this.#goOn(operation, mode, part.slice(part.indexOf(one) + 1), missed, counts)
    }
    await this.#guard(scene, () => series.end().then(() => true))
    const range = `--at ${part[0]?.at} to ${part.at(-1)?.at}`
    if (this.#tell(scene, `${operation.name} ${mode}, after ${range}`)) counts.failed++
    await this.#leave(scene)
    return missed
  }

  /** What comes after a violation is tried on a fresh folder. */
  async #goOn(
    operation: RequestOperation,
    mode: Mode,
    rest: readonly Numbered[],
    missed: readonly Numbered[],
    counts: Counts,
  ): Promise<Numbered[]> {
    return [...missed, ...(rest.length > 0 ? await this.#trySeries(operation, mode, rest, counts) : [])]
  }

  /** @returns whether the call counts as tried */
  #count(
    scene: Scene,
    { operation, mode, one, isHit }: { operation: Operation; mode: Mode; one: Numbered; isHit: boolean },
    counts: Counts,
  ): boolean {
    const isBad = this.#tell(scene, `${operation.name} ${mode} --at ${one.at}, ${describePoint(one.point)}`)
    if (isBad) counts.failed++
    if (isHit || isBad) counts.tried++
    return isHit || isBad
  }

  /** Removes a scene where all was well. */
  async #leave(scene: Scene): Promise<void> {
    if (!this.#spoiled.has(scene)) return scene.remove()
    scene.server?.killAll()
    await scene.gone()
  }

  async #guard(scene: Scene, what: () => Promise<boolean>): Promise<boolean> {
    try {
      return await what()
    } catch (error) {
      scene.report(`I9 ${error instanceof Error ? error.message : error}`)
      return true
    }
  }

  /** @returns whether there was something to tell */
  #tell(scene: Scene, where: string): boolean {
    const found = scene.violations.splice(0)
    for (const violation of found) console.log(`${where}: ${violation} (${scene.root})`)
    if (found.length > 0) this.#spoiled.add(scene)
    return found.length > 0
  }

  /** A fresh copy of the folder that the operation begins with. */
  async #scene(operation: Operation): Promise<Scene> {
    const { folder, main, seed } = this.#options
    const name = isProcess(operation) ? operation.name : 'requests'
    let template = this.#templates.get(name)
    if (template === undefined) {
      template = new Scene(join(folder, name), { main, seed })
      mkdirSync(template.data)
      if (isProcess(operation)) await operation.prepare(template)
      else {
        await template.start()
        await template.stop()
      }
      const found = template.violations
      if (found.length > 0) throw new Error(`${name} cannot be prepared: ${found.join('; ')}`)
      this.#templates.set(name, template)
    }
    return template.copyTo(join(folder, `scene-${++this.#scenes}`))
  }
}

/** Other calls than those of the operation come between, of which there is not always the same number. */
function shifted(one: Numbered, shift: number): Numbered {
  const { at, point } = one
  return point.path === undefined ? { at, point: { ...point, nth: Math.max(1, point.nth + shift) } } : one
}
