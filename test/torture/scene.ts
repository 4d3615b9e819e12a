import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { checkFolder, checkServed, type FolderOptions } from './checker.js'
import { type Effect, type Key, Model, type Value } from './model.js'
import { type RunningServer, startServer } from './server.js'
import type { Session } from './sessions.js'
import { GivenUp } from './talk.js'
import { type Reply, type Request, Wire } from './wire.js'

/** Milliseconds that a command may take before it counts as hanging. */
const commandPatience = 120_000

/** The same for starts of servers: several lanes under strace share the machine, and hanging is what is looked for. */
const startPatience = 120_000

/** Seconds after which an idle upload expires: never, while something is tried. */
const expireAfter = 86_400

/** What may go wrong with what a scene does now: nothing, its processes die, or a call of theirs fails. */
export type Trouble = 'none' | 'death' | 'fault'

/** How a process ended. */
export interface Ended {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  /** What it wrote to standard error. */
  readonly said: string
}

/** What an answer said, and what the clients know by it. */
export interface JournalEntry {
  readonly what: string
  readonly isSuccess: boolean
  /** What the request did if it was answered with success, and may have done before. */
  readonly effects: Effect[]
  /** An upload session as it stood with this answer. */
  session?: Session
}

/** What all scenes of a run share. */
export interface SceneOptions {
  /** The compiled main.js. */
  readonly main: string
  readonly seed: number
}

const living = new Set<ChildProcess>()
process.on('exit', () => {
  for (const child of living) child.kill('SIGKILL')
})

/** A data folder, what is known of it, and the processes on it: the place where one thing is tried. */
export class Scene {
  readonly options: SceneOptions
  readonly root: string
  readonly data: string
  readonly log: string
  readonly model = new Model()
  readonly violations: string[] = []
  /** All requests that were answered, in their order. */
  readonly journal: JournalEntry[] = []
  /** Uploads whose bytes a failed sync has put in doubt: they are over, and the client begins again (R52). */
  readonly unsynced = new Set<string>()
  trouble: Trouble = 'none'
  /** Whether parts of manifests may be missing, as with mirrors. */
  isSparse = false
  server: RunningServer | undefined
  #wire: Wire | undefined

  constructor(root: string, options: SceneOptions) {
    this.root = root
    this.options = options
    this.data = join(root, 'data')
    this.log = join(root, 'server.log')
    mkdirSync(root, { recursive: true })
    this.model.sessions.expireAfter = expireAfter * 1000
  }

  /** Another scene on a copy of this one's files; what lies in the folder counts as acknowledged. */
  copyTo(root: string): Scene {
    const { status, stderr } = spawnSync('cp', ['-a', '--reflink=auto', this.root, root])
    if (status !== 0) throw new Error(`${this.root} cannot be copied: ${stderr}`)
    const copy = new Scene(root, this.options)
    if (existsSync(join(this.data, 'boathouse.db'))) copy.#believe()
    return copy
  }

  #believe(): void {
    const { index, sessions } = checkFolder(this.data)
    for (const key of index.keys()) this.learn(key, index.value(key))
    for (const { id, repository, offset, bytes } of sessions) {
      const session = this.model.sessions.open({
        id,
        repository,
        digest: '',
        bytes: bytes ?? Buffer.alloc(offset),
      })
      session.low = session.high = offset
      if (bytes === undefined) session.ending = 'unknown'
    }
  }

  /** What is there from now on. */
  learn(key: Key, value: Value): void {
    this.journal.at(-1)?.effects.push({ ...key, value })
    this.model.settle(this.model.begin('before', [{ ...key, value }]), 'acknowledged')
  }

  /** Notes in the journal how an upload stands with the last answer. */
  note(session: Session): void {
    const entry = this.journal.at(-1)
    if (entry !== undefined) entry.session = { ...session }
  }

  /** What may be there from now on, or not. */
  learnPossible(key: Key, value: Value): void {
    this.model.settle(this.model.begin('perhaps', [{ ...key, value }]), 'unknown')
  }

  /** Takes a sentence for something that must not happen. */
  report(violation: string): void {
    this.violations.push(violation)
  }

  /** Starts the server. @throws StartError */
  async start(env: Readonly<Record<string, string>> = {}): Promise<RunningServer> {
    this.server = await startServer({
      main: this.options.main,
      data: this.data,
      log: this.log,
      workers: 1,
      expireAfter,
      patience: startPatience,
      env: { BOATHOUSE_SNAPSHOTS_KEEP: '0', BOATHOUSE_GC_INTERVAL: '24h', ...env },
    })
    this.#wire = new Wire(this.server.port)
    return this.server
  }

  /** Sends a request that changes nothing. @throws GivenUp when no answer comes */
  ask(request: Request): Promise<Reply> {
    return this.#ask(request).then((answer) => {
      if (answer === undefined) throw new GivenUp(true)
      this.journal.push({ what: `${request.method} ${request.path}`, isSuccess: false, effects: [] })
      return answer
    })
  }

  async #ask(request: Request): Promise<Reply | undefined> {
    const answer = (await this.#wire?.send(request)) ?? 'unsent'
    if (typeof answer !== 'string') return answer.reply
    if (this.trouble === 'none' || answer === 'hung') {
      this.report(`${request.method} ${request.path}: no answer (${answer})`)
    }
    return undefined
  }

  /**
   * Sends a request that has these effects when it is answered with one of the statuses.
   * @throws GivenUp when it is not
   */
  async change(request: Request, successes: readonly number[], effects: readonly Effect[]): Promise<Reply> {
    const operation = this.model.begin(`${request.method} ${request.path}`, effects)
    const reply = await this.#ask(request)
    if (reply === undefined) {
      this.model.settle(operation, 'unknown')
      throw new GivenUp(true)
    }
    const isSuccess = successes.includes(reply.status)
    this.journal.push({ what: operation.what, isSuccess, effects: [...effects] })
    if (isSuccess) {
      this.model.settle(operation, 'acknowledged')
      return reply
    }
    this.model.settle(operation, reply.status >= 500 ? 'unknown' : 'refused')
    this.refuse(request, reply)
  }

  /** Holds an answer against the server unless it is a clear one to a failed call. @throws GivenUp */
  refuse({ method, path }: Request, reply: Reply): never {
    const text = reply.body.toString().slice(0, 300)
    const line = `${method} ${path} is answered with ${reply.status} ${text}`
    const isExcused = this.trouble === 'fault' && isClear(reply)
    if (!isExcused) this.report(line)
    throw new GivenUp(false)
  }

  /** Runs a command of the program to its end. */
  command(words: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<Ended> {
    const child = spawn(process.execPath, [this.options.main, ...words], {
      stdio: ['ignore', 'ignore', 'pipe'],
      env: {
        ...(process.env.PATH === undefined ? {} : { PATH: process.env.PATH }),
        BOATHOUSE_DATA: this.data,
        ...env,
      },
    })
    living.add(child)
    let said = ''
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      said += text
    })
    const timer = setTimeout(() => {
      this.report(`boathouse ${words[0]} hangs`)
      child.kill('SIGKILL')
    }, commandPatience)
    return new Promise((resolve) => {
      child.once('close', (code, signal) => {
        clearTimeout(timer)
        living.delete(child)
        resolve({ code, signal, said })
      })
    })
  }

  /** Waits until nothing of the server is left. @returns its exit code */
  async gone(): Promise<number | null> {
    const code = (await this.server?.gone) ?? null
    this.server = undefined
    this.#wire?.close()
    return code
  }

  /** I1, I2, I5, I8: whether the running server shows all that it must. */
  async checkServed(): Promise<void> {
    const { server } = this
    if (server === undefined) return
    this.violations.push(
      ...(await checkServed({ port: server.port, expectations: this.model.expectations() })),
    )
  }

  /** Looks into the folder of the server, which has ended, and goes on from what was found. */
  checkFolder(options: FolderOptions = {}): void {
    const check = checkFolder(this.data, { mayBeMissing: () => this.isSparse, ...options })
    this.violations.push(...check.violations, ...this.model.judge(check.index))
    this.violations.push(...this.model.sessions.judge(check.sessions))
  }

  /** Stops the server in order; then nothing may be half done. */
  async stop(): Promise<void> {
    await this.checkServed()
    this.server?.stop()
    const code = await this.gone()
    if (code !== 0) this.report(`I9 the server ended with ${code} when it was told to stop`)
    this.checkFolder({ isCleanStop: true })
  }

  /** Whether the server is there and answers. */
  async isAlive(): Promise<boolean> {
    const answer = await this.#wire?.send({ method: 'GET', path: '/v2/' })
    return answer !== undefined && typeof answer !== 'string'
  }

  /** Ends what runs, and removes the files. */
  async remove(): Promise<void> {
    this.server?.killAll()
    await this.gone()
    rmSync(this.root, { recursive: true, force: true })
  }
}

/** Whether an error is one that a client can show: `errors[]` with a code and a message. */
function isClear({ status, body }: Reply): boolean {
  if (status !== 503 && status !== 507 && status !== 404) return false
  try {
    const { errors } = JSON.parse(body.toString()) as { errors: { code: string; message: string }[] }
    return errors.length > 0 && errors.every(({ code, message }) => code !== 'UNKNOWN' && message !== '')
  } catch {
    return false
  }
}
