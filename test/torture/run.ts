import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { readMetric } from './check-served.js'
import { checkFolder, checkServed, type FolderCheck, HashedFiles, referrersOf } from './checker.js'
import { Client, makeSharedContent } from './client.js'
import type { Disk } from './disk.js'
import { isAbsent, Model } from './model.js'
import { Random } from './random.js'
import { type RunningServer, type ServerOptions, StartError, startAndKill, startServer } from './server.js'
import type { Surroundings } from './talk.js'
import { Wire } from './wire.js'

/** Seconds after which the server expires idle uploads: long enough for a round, short enough to happen. */
const expireAfter = 300

/** Milliseconds within which what a kill has broken must be whole again. */
const healingPatience = 30_000

/** Milliseconds that a kill waits for the acknowledgement that it shall follow. */
const ackPatience = 300

/** Keys that are surely absent and are asked for over HTTP all the same, in each round. */
const absentSample = 150

/** Starts that are killed before the first one that is not. */
const firstStarts = 3

/** How often which processes are killed: all at once, one worker first, or the primary alone. */
const killWeights = { all: 70, worker: 15, primary: 15 }
type Kill = keyof typeof killWeights | 'power'

/** What a run is told. */
export interface RunOptions {
  /** For the server's log. */
  readonly folder: string
  /** The data folder. */
  readonly data: string
  readonly rounds: number
  readonly seed: number
  readonly clients: number
  readonly workers: number | undefined
  /** The server's compiled main.js. */
  readonly server: string
  /** Holds the folder; its power is cut in each round, in place of kills. */
  readonly disk: Disk | undefined
}

/** One round that is over. */
export interface RoundResult {
  readonly round: number
  readonly violations: readonly string[]
  /** For a person who watches. */
  readonly line: string
}

/** A run of rounds on one data folder: start, check, work, kill, check. */
export class Run {
  readonly #options: RunOptions
  readonly #data: string
  readonly #model = new Model()
  readonly #clients: readonly Client[]
  readonly #hashed = new HashedFiles()
  readonly #readyTimes: number[] = []
  readonly #kills: Record<Kill | 'start', number> = { all: 0, worker: 0, primary: 0, power: 0, start: 0 }
  #acknowledged = 0
  #violations = 0
  #done = 0
  #mayLose = false
  /** Hears of acknowledged changes. */
  #onAcknowledged: ((method: string) => void) | undefined
  /** Violations of the round that runs. */
  #found: string[] = []
  /** Who held an upload's turn when a server died. */
  #holders: ReadonlySet<string> = new Set()
  /** What lay in the folder when the server was last down; undefined when nobody looked. */
  #lastCheck: FolderCheck | undefined

  constructor(options: RunOptions) {
    this.#options = options
    this.#data = options.data
    this.#model.sessions.expireAfter = expireAfter * 1000
    this.#model.sessions.losesVolatile = options.disk !== undefined
    const surroundings: Surroundings = {
      model: this.#model,
      report: (violation) => this.#found.push(violation),
      acknowledged: (method) => this.#acknowledge(method),
      mayLose: () => this.#mayLose,
    }
    const { seed } = options
    const shared = makeSharedContent(seed)
    const names = Array.from({ length: options.clients }, (_, at) => `client-${at + 1}`)
    this.#clients = names.map((name) => {
      const others = names.filter((other) => other !== name)
      return new Client(surroundings, { seed, name, others, shared })
    })
  }

  /** Runs the rounds one after the other; ends early when the server cannot be started any more. */
  async *rounds(): AsyncGenerator<RoundResult> {
    let starting: Promise<RunningServer> | undefined
    for (let round = 1; round <= this.#options.rounds; round++) {
      const random = new Random(this.#options.seed, 'round', round)
      let isStarted = true
      try {
        if (starting === undefined) await this.#killStarts(round, random)
        const server = await (starting ?? this.#startAfter(round - 1))
        starting = (await this.#round(round, random, server)).next
        if (round === this.#options.rounds) await this.#end(await (starting ?? this.#startAfter(round)))
      } catch (error) {
        if (!(error instanceof StartError)) throw error
        isStarted = false
        this.#found.push(`I9 ${error.message}`)
      }
      yield this.#finishRound(round)
      if (!isStarted) return
    }
  }

  #finishRound(round: number): RoundResult {
    const violations = this.#found
    this.#found = []
    this.#violations += violations.length
    this.#done = round
    const ready = (this.#readyTimes.at(-1) ?? Number.NaN).toFixed(0)
    const line = `round ${round} of ${this.#options.rounds}: ready in ${ready} ms, acknowledged ${this.#acknowledged}, violations ${this.#violations}`
    return { round, violations, line }
  }

  /** The figures of the whole run. */
  summary() {
    return {
      readyTimes: this.#readyTimes,
      acknowledged: this.#acknowledged,
      violations: this.#violations,
      done: this.#done,
      kills: Object.entries(this.#kills)
        .map(([kill, count]) => `${kill} ${count}`)
        .join(', '),
    }
  }

  /** Starts that do not get far: the first one makes the folder, later ones put in order what was left. */
  async #killStarts(round: number, random: Random): Promise<void> {
    const count = round === 1 ? firstStarts : random.chance(0.15) ? 1 : 0
    for (let left = count; left > 0; left--) {
      this.#kills.start++
      await startAndKill(this.#serverOptions(random, expireAfter), random.int(50, 800))
    }
    if (count > 0 && round > 1) this.#checkFolder(false)
  }

  async #startAfter(round: number): Promise<RunningServer> {
    const random = new Random(this.#options.seed, 'workers', round)
    const isLast = round === this.#options.rounds
    if (isLast) this.#model.sessions.expireAfter = 1000
    return startServer(this.#serverOptions(random, isLast ? 1 : expireAfter))
  }

  #serverOptions(random: Random, expireAfter: number): ServerOptions {
    const { folder, workers, server } = this.#options
    return {
      main: server,
      data: this.#data,
      log: join(folder, 'server.log'),
      workers: workers ?? random.pick([1, 2, 2, 3]) ?? 2,
      expireAfter,
    }
  }

  /** @returns the next server, when it was started before the last one was looked at */
  async #round(
    round: number,
    random: Random,
    server: RunningServer,
  ): Promise<{ readonly next: Promise<RunningServer> | undefined }> {
    this.#mayLose = false
    // A start beside a dying server waits for it: that is no measure.
    if (this.#lastCheck !== undefined || round === 1) this.#readyTimes.push(server.readyMs)
    await this.#checkServed(server, random)
    let isOver = false
    const working = this.#clients.map((client) => client.work(round, server.port, () => isOver))
    const kill = this.#chooseKill(random, server)
    this.#kills[kill]++
    await delay(random.int(100, 600))
    if (kill === 'worker') await this.#killWorker(random, server)
    const { value: next } = await this.#atMoment(random, () => this.#killServer(kill, random, round, server))
    next?.catch(() => undefined) // whoever waits for it hears of it
    isOver = true
    await Promise.all(working)
    await this.#waitUntilGone(server)
    if (kill === 'power') this.#options.disk?.restore()
    if (next === undefined) this.#checkTurns(this.#checkFolder(false))
    else this.#lastCheck = undefined
    return { next }
  }

  #chooseKill(random: Random, server: RunningServer): Kill {
    const kill = random.weighted(killWeights)
    if (this.#options.disk !== undefined) return 'power'
    return server.workers === 1 ? 'all' : kill
  }

  /** Kills one worker: the server must go on, and replace it. */
  async #killWorker(random: Random, server: RunningServer): Promise<void> {
    const victim = random.pick(server.workerIds())
    if (victim === undefined) return
    this.#mayLose = true
    process.kill(victim, 'SIGKILL')
    await delay(random.int(100, 600))
    const before = this.#acknowledged
    await this.#heal('no change was acknowledged', () => this.#acknowledged > before)
    await this.#heal('the worker was not replaced', () => {
      const workers = server.workerIds()
      return workers.length === server.workers && !workers.includes(victim)
    })
    await this.#heal('an interrupted upload cannot go on', () =>
      this.#clients.every((client) => !client.isInterrupted),
    )
  }

  async #heal(otherwise: string, isHealed: () => boolean): Promise<void> {
    const deadline = performance.now() + healingPatience
    while (!isHealed()) {
      if (performance.now() > deadline) {
        this.#found.push(`I9 within ${healingPatience} ms after a worker was killed ${otherwise}`)
        return
      }
      await delay(20)
    }
  }

  /**
   * Does something now, or at the very moment when the next change is acknowledged: what was acknowledged too
   * early has no time left then.
   */
  #atMoment<T>(random: Random, what: () => T): Promise<{ readonly value: T }> {
    const awaited = random.pick(['now', 'now', 'DELETE', 'PATCH', 'POST', 'PUT'])
    return new Promise((resolve) => {
      const happen = () => {
        clearTimeout(timer)
        this.#onAcknowledged = undefined
        resolve({ value: what() })
      }
      const timer = setTimeout(happen, awaited === 'now' ? 0 : ackPatience)
      this.#onAcknowledged = (method) => {
        if (method === awaited) happen()
      }
    })
  }

  #acknowledge(method: string): void {
    if (method !== 'PATCH') this.#acknowledged++
    this.#onAcknowledged?.(method)
  }

  /** @returns the next server, when it was started at once */
  #killServer(
    kill: Kill,
    random: Random,
    round: number,
    server: RunningServer,
  ): Promise<RunningServer> | undefined {
    this.#mayLose = true
    if (kill === 'power') {
      // Still ones only: a sync under way could be told that it succeeded.
      server.freezeAll()
      this.#options.disk?.cutPower()
    }
    if (kill !== 'primary') {
      server.killAll()
      return undefined
    }
    if (random.chance(0.5)) freeze(random.pick(server.workerIds()), random.int(1000, 3000))
    server.killPrimary()
    return this.#startBeside(round, server)
  }

  /** Without its primary the workers must end by themselves, and the next server must wait for that. */
  async #startBeside(round: number, last: RunningServer): Promise<RunningServer> {
    let isGone = false
    void last.gone.then(() => {
      isGone = true
    })
    const next = await this.#startAfter(round)
    await delay(20) // news of its end may be on the way
    if (!isGone) this.#found.push('I9 a server is ready while a worker of the last one still lives')
    return next
  }

  async #waitUntilGone(server: RunningServer): Promise<void> {
    const timer = setTimeout(() => {
      this.#found.push(`I9 processes of the server live ${healingPatience} ms after its primary was killed`)
      server.killAll()
    }, healingPatience)
    await server.gone
    clearTimeout(timer)
  }

  /** What the server shows when it has just been started. */
  async #checkServed(server: RunningServer, random?: Random): Promise<void> {
    const all = this.#model.expectations()
    const absent = all.filter(({ legal }) => isAbsent(legal))
    const share = random === undefined ? 1 : absentSample / absent.length
    const expectations = all.filter(({ legal }) => !isAbsent(legal) || random?.chance(share) !== false)
    const index = this.#lastCheck?.index
    const known = index === undefined ? {} : { totals: index.totals, referrers: referrersOf(index) }
    this.#found.push(...(await checkServed({ port: server.port, expectations, ...known })))
  }

  /** What lies in the folder while no server runs. */
  #checkFolder(isCleanStop: boolean): FolderCheck {
    const model = this.#model
    const check = checkFolder(this.#data, {
      isCleanStop,
      hashed: this.#hashed,
      mayBeOrphan: (digest) => model.mayBeOrphan(digest),
      // An index may outlive the manifests that it names: they can be deleted alone.
      mayBeMissing: (repository, name) =>
        model.manifests.has(name) && model.legal({ kind: 'manifest', repository, name }).has(undefined),
    })
    this.#found.push(
      ...check.violations,
      ...model.judge(check.index),
      ...model.sessions.judge(check.sessions),
    )
    this.#lastCheck = check
    return check
  }

  /** Each start gives back the turns that the last server's death has left taken. */
  #checkTurns({ index }: FolderCheck): void {
    const holders = new Set<string>()
    for (const { id, holder } of index.uploads) {
      if (holder === null) continue
      if (this.#holders.has(holder))
        this.#found.push(`I9 upload ${id} is held by a server that died long ago`)
      holders.add(holder)
    }
    this.#holders = holders
  }

  /** The last start: everything is looked at, all sessions expire, and the server ends in order. */
  async #end(server: RunningServer): Promise<void> {
    this.#mayLose = false
    await this.#checkServed(server)
    const wire = new Wire(server.port)
    const deadline = performance.now() + healingPatience
    while ((await readMetric(wire, 'boathouse_open_uploads')) > 0 && performance.now() < deadline)
      await delay(50)
    wire.close()
    server.stop()
    const code = await server.gone
    if (code !== 0) this.#found.push(`I9 the server ended with ${code} after SIGTERM`)
    this.#hashed.clear()
    const { sessions } = this.#checkFolder(true)
    if (sessions.length > 0) this.#found.push(`I6 ${sessions.length} uploads were not expired`)
  }
}

/** Stops a process for some milliseconds: what it does next, it does late. */
function freeze(id: number | undefined, milliseconds: number): void {
  if (id === undefined) return
  process.kill(id, 'SIGSTOP')
  setTimeout(() => {
    try {
      process.kill(id, 'SIGCONT')
    } catch {
      // it was killed meanwhile
    }
  }, milliseconds)
}
