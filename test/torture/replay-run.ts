import { cpSync, mkdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { checkFolder, type FolderCheck, HashedFiles } from './checker.js'
import { DiskModel, type DiskState, nameOf } from './disk-model.js'
import { Model } from './model.js'
import type { RequestOperation } from './operations.js'
import type { ProcessOperation } from './process-operations.js'
import { Random } from './random.js'
import { type Event, eventsOf, recordedBytes } from './recording.js'
import { type JournalEntry, Scene } from './scene.js'
import { mutatingCalls, type Watch, watch } from './strace.js'
import { isProcess, type Operation } from './sweep-operations.js'
import { performTraced } from './sweep-processes.js'
import { prepare, settle, startTraced, tryIt } from './sweep-requests.js'

/** States in which a real server is started, of each operation. */
const startedStates = 2

/** States after each step, at the least. */
const fewest = 8

/** Violations of one operation that are told. */
const mostTold = 10

/** How operations are replayed. */
export interface ReplayOptions {
  readonly main: string
  readonly seed: number
  /** Where the scenes go. */
  readonly folder: string
  /** States of each operation that are looked at, about: they are spread over its steps. */
  readonly bound: number
}

/** What came of one operation. */
export interface ReplayReport {
  readonly operation: string
  /** What the operation did to files: the power goes after each of them. */
  readonly events: number
  /** Answers with success among them. */
  readonly acknowledged: number
  /** Different states that were looked at, and those that a server was started on. */
  readonly states: number
  readonly started: number
  readonly violations: readonly string[]
}

/** An operation as it was seen: the files before it, and all that happened then. */
interface Recorded {
  /** A folder as it was before. */
  readonly base: string
  /** Where the recorded server's folder was. */
  readonly root: string
  readonly events: readonly Event[]
  readonly journal: readonly JournalEntry[]
}

/** Records an operation once and looks at every state that a power cut may leave. */
export class Replay {
  readonly #options: ReplayOptions
  readonly #operation: Operation
  readonly #violations: string[] = []
  readonly #hashed = new HashedFiles()
  /** What the folder of a state showed. */
  readonly #checks = new Map<string, FolderCheck>()
  #started = 0

  constructor(operation: Operation, options: ReplayOptions) {
    this.#operation = operation
    this.#options = options
  }

  async run(): Promise<ReplayReport> {
    const recorded = await this.#record()
    const { events, journal } = recorded
    const judged = new Set<string>()
    const random = new Random(this.#options.seed, 'replay', this.#operation.name)
    const desk = new Desk(recorded.base, join(this.#options.folder, `${this.#operation.name}-desk`))
    const disk = new DiskModel((path) => join(recorded.base, path.slice(recorded.root.length)))
    const share = Math.max(fewest, Math.ceil(this.#options.bound / (events.length + 1)))
    let answers = 0
    for (let at = 0; at <= events.length; at++) {
      let left = share
      for (const state of disk.states(random, share)) {
        const name = nameOf(state)
        if (judged.has(`${name} ${answers}`)) continue
        judged.add(`${name} ${answers}`)
        await this.#look(desk, recorded, { state, name, answers, at })
        const isWhole = this.#checks.get(name)?.violations.length === 0
        if (isWhole && random.chance(0.01)) await this.#start(desk, at)
        if (--left <= 0) break
      }
      const event = events[at]
      if (event?.kind === 'answer') answers++
      else if (event !== undefined) disk.apply(event)
    }
    desk.remove()
    return {
      operation: this.#operation.name,
      events: events.length,
      acknowledged: journal.filter(({ isSuccess }) => isSuccess).length,
      states: judged.size,
      started: this.#started,
      violations: this.#violations,
    }
  }

  #record(): Promise<Recorded> {
    const operation = this.#operation
    return isProcess(operation) ? this.#recordProcess(operation) : this.#recordRequests(operation)
  }

  async #recordProcess(operation: ProcessOperation): Promise<Recorded> {
    const { folder, main, seed } = this.#options
    const scene = new Scene(join(folder, operation.name), { main, seed })
    mkdirSync(scene.data)
    await operation.prepare(scene)
    const base = join(folder, `${operation.name}-base`)
    cpSync(scene.root, base, { recursive: true, preserveTimestamps: true })
    const { outcome, attached } = await performTraced(operation, scene, 'main', async (threads) =>
      watchAll(scene, await threads.find('main')),
    )
    const events = eventsOf(await attached.end(), scene.root).filter((event) => !isOfTracer(scene, event))
    scene.server?.killAll()
    await scene.gone()
    const faults = outcome.kind === 'done' ? scene.violations : [outcome.said]
    if (faults.length > 0) throw new Error(`${operation.name}: ${faults.join('; ')}`)
    // Whoever asked a server for nothing has heard nothing.
    return { base, root: scene.root, events: events.filter(({ kind }) => kind !== 'answer'), journal: [] }
  }

  async #recordRequests(operation: RequestOperation): Promise<Recorded> {
    const { folder, main, seed } = this.#options
    const scene = new Scene(join(folder, operation.name), { main, seed })
    await startTraced(scene, operation)
    await prepare(operation, scene, 1)
    const base = join(folder, `${operation.name}-base`)
    cpSync(scene.root, base, { recursive: true, preserveTimestamps: true })
    const known = scene.journal.length
    const watched = await watchAll(scene, scene.server?.pid)
    await tryIt(operation, scene, 1, false)
    await settle(scene)
    const events = eventsOf(await watched.end(), scene.root).filter((event) => !isOfTracer(scene, event))
    scene.server?.killAll()
    await scene.gone()
    if (scene.violations.length > 0) throw new Error(`${operation.name}: ${scene.violations.join('; ')}`)
    const journal = scene.journal.slice(known)
    const answers = events.filter(({ kind }) => kind === 'answer').length
    if (operation.isMirror !== true && answers !== journal.length) {
      throw new Error(`${operation.name}: ${answers} answers were seen and ${journal.length} heard`)
    }
    return { base, root: scene.root, events, journal }
  }

  async #look(
    desk: Desk,
    recorded: Recorded,
    { state, name, answers, at }: { state: DiskState; name: string; answers: number; at: number },
  ): Promise<void> {
    desk.lay(state, recorded.root)
    const operation = this.#operation
    let check = this.#checks.get(name)
    if (check === undefined) {
      check = checkFolder(join(desk.root, 'data'), {
        hashed: this.#hashed,
        mayBeMissing: () => isMirror(operation),
      })
      this.#checks.set(name, check)
    }
    const all = [...check.violations]
    if (isProcess(operation)) {
      all.push(...(await this.#judgeProcess(operation, desk, check, at === recorded.events.length)))
    } else if (!isMirror(operation)) all.push(...this.#judge(recorded, check, answers))
    // A power cut may undo the end of an upload: then its row is back, and its file is not what it was.
    const ended = this.#endedUploads(recorded, answers)
    const found = all.filter((one) => !ended.some((id) => one.includes(`upload ${id}`)))
    if (found.length === 0) return
    const where = `${this.#operation.name}: power cut after ${at} of ${recorded.events.length} steps, ${answers} answers`
    if (this.#violations.length === 0) desk.keep(`${this.#operation.name}-violation`)
    if (this.#violations.length < mostTold) for (const one of found) console.log(`${where}: ${one}`)
    this.#violations.push(...found.map((one) => `${where}: ${one}`))
  }

  /** Uploads that were cancelled, or are being cancelled. */
  #endedUploads({ journal }: Recorded, answers: number): string[] {
    const cancelled = journal.slice(0, answers + 1).filter(({ what }) => what.startsWith('DELETE '))
    return cancelled.flatMap(({ session }) => (session?.ending === 'done' ? [session.id] : []))
  }

  /** Whether the state has all that was there, but for what may go, and what the process had made. */
  async #judgeProcess(
    operation: ProcessOperation,
    desk: Desk,
    check: FolderCheck,
    isOver: boolean,
  ): Promise<string[]> {
    const { main, seed } = this.#options
    const scene = new Scene(desk.root, { main, seed })
    const { index } = this.#before(desk.base)
    for (const key of index.keys()) scene.learn(key, index.value(key))
    operation.foresee?.(scene, index)
    await operation.check?.(scene, isOver && operation.isDurable === true)
    return [...scene.violations, ...scene.model.judge(check.index)]
  }

  /** Whether the state has what was acknowledged before it, and nothing by half. */
  #judge({ base, journal }: Recorded, check: FolderCheck, answers: number): string[] {
    const model = new Model()
    const before = this.#before(base)
    for (const key of before.index.keys()) {
      model.settle(model.begin('before', [{ ...key, value: before.index.value(key) }]), 'acknowledged')
    }
    // At the time only one request is under way.
    for (const [at, { what, effects, isSuccess }] of journal.slice(0, answers + 1).entries()) {
      const operation = model.begin(what, effects)
      model.settle(operation, at >= answers ? 'unknown' : isSuccess ? 'acknowledged' : 'refused')
    }
    model.sessions.losesVolatile = true
    for (const { id, repository, offset, bytes } of before.sessions) {
      if (bytes === undefined) continue
      const session = model.sessions.open({ id, repository, digest: '', bytes })
      session.low = session.high = offset
      if (journal[answers] !== undefined) session.ending = 'unknown'
    }
    this.#openSessions(model, journal, answers)
    return [...model.judge(check.index), ...model.sessions.judge(check.sessions)]
  }

  /** Each session as its last answer left it, and with what may be under way now. */
  #openSessions(model: Model, journal: readonly JournalEntry[], answers: number): void {
    const last = new Map<string, JournalEntry['session']>()
    for (const { session } of journal.slice(0, answers))
      if (session !== undefined) last.set(session.id, session)
    const next = journal[answers]?.session
    for (const session of last.values()) {
      if (session === undefined) continue
      const opened = model.sessions.open(session)
      opened.low = session.low
      opened.high = session.bytes.length
      opened.ending = next?.id === session.id && next.ending === 'done' ? 'unknown' : session.ending
    }
  }

  #known: FolderCheck | undefined

  #before(base: string): FolderCheck {
    this.#known ??= checkFolder(join(base, 'data'))
    return this.#known
  }

  /** A real server starts on what is there, shows it, and leaves nothing half done. */
  async #start(desk: Desk, at: number): Promise<void> {
    if (this.#started >= startedStates) return
    this.#started++
    const { folder, main, seed } = this.#options
    const name = `${this.#operation.name}-start-${this.#started}`
    const scene = new Scene(desk.root, { main, seed }).copyTo(join(folder, name))
    scene.isSparse = isMirror(this.#operation)
    scene.model.sessions.losesVolatile = true
    if (isProcess(this.#operation)) this.#operation.foresee?.(scene)
    try {
      await scene.start(this.#operation.env)
      await scene.stop()
    } catch (error) {
      scene.report(`I9 ${error instanceof Error ? error.message : error}`)
    }
    for (const one of scene.violations) {
      console.log(`${this.#operation.name}: started after ${at} steps: ${one}`)
      this.#violations.push(one)
    }
    if (scene.violations.length === 0) await scene.remove()
  }
}

function isMirror(operation: Operation): boolean {
  return !isProcess(operation) && operation.isMirror === true
}

/** Records all that a process and its threads do, with the bytes that they write. */
function watchAll(scene: Scene, id: number | undefined): Promise<Watch> {
  return watch({
    id: id ?? 0,
    all: true,
    log: join(scene.root, 'threads.record'),
    calls: mutatingCalls,
    bytes: recordedBytes,
  })
}

function isOfTracer(scene: Scene, event: Event): boolean {
  if (event.kind === 'answer') return false
  // SQLite's shared memory is rebuilt after a power cut.
  return event.path === scene.log || event.path.includes('/threads') || event.path.endsWith('-shm')
}

/** A folder on which one state after the other is laid. */
class Desk {
  readonly root: string
  readonly base: string
  #laid = new Map<string, Buffer | 'folder' | undefined>()

  constructor(base: string, root: string) {
    this.base = base
    this.root = root
    cpSync(base, root, { recursive: true, preserveTimestamps: true })
    rmSync(join(root, 'data/boathouse.db-shm'), { force: true })
  }

  lay(state: DiskState, from: string): void {
    for (const [path, content] of [...state].sort(([one], [other]) => (one < other ? -1 : 1))) {
      const target = join(this.root, path.slice(from.length))
      if (this.#laid.has(target) && this.#laid.get(target) === content) continue
      const isFolder = statSync(target, { throwIfNoEntry: false })?.isDirectory() === true
      if (content === 'folder') mkdirSync(target, { recursive: true })
      else {
        if (content === undefined || isFolder) rmSync(target, { recursive: true, force: true })
        if (content !== undefined && statSync(dirname(target), { throwIfNoEntry: false }) !== undefined) {
          writeFileSync(target, content)
        }
      }
      this.#laid.set(target, content)
    }
  }

  /** Keeps a copy of what lies here now. */
  keep(name: string): void {
    cpSync(this.root, join(dirname(this.root), name), { recursive: true })
  }

  remove(): void {
    rmSync(this.root, { recursive: true, force: true })
    rmSync(this.base, { recursive: true, force: true })
  }
}
