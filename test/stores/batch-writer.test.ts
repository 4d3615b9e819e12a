import { EventEmitter } from 'node:events'
import type { Readable } from 'node:stream'
import t from 'tap'
import { type PumpResult, pump } from '../../storage/batch-writer.js'
import { Random } from '../torture/random.js'

/** A body whose events are told one by one: `end`, `close` and `error` come to a paused one as well, as Node's do. */
class FakeBody extends EventEmitter {
  destroyed = false
  readableEnded = false
  #isPaused = true

  pause(): this {
    this.#isPaused = true
    return this
  }

  resume(): this {
    this.#isPaused = false
    return this
  }

  isPaused(): boolean {
    return this.#isPaused
  }
}

/** An answer that is given later. */
interface Answer {
  readonly promise: Promise<void>
  readonly letIn: () => void
  readonly refuse: (error: Error) => void
}

function createAnswer(): Answer {
  let answer: Omit<Answer, 'promise'> | undefined
  const promise = new Promise<void>((letIn, refuse) => {
    answer = { letIn, refuse }
  })
  if (answer === undefined) throw new Error('a promise is made at once')
  return { ...answer, promise }
}

/** Resolves when whoever waits for an answer has heard it. */
async function heard(): Promise<void> {
  for (let turn = 0; turn < 3; turn++) await undefined
}

const start = 3
const refusal = new Error('refused')
const broken = new Error('broken')
const diskError = new Error('disk')

/** One body, all that can happen to it, and what the simplest pump would have made of it. */
class Scene {
  readonly body = new FakeBody()
  readonly file: number[] = []
  readonly seen: number[] = []
  readonly steps: string[] = []
  readonly #random: Random
  readonly limit: number
  #answer: Answer | undefined
  #write: { buffer: Buffer; from: number; length: number; at: number; done: WriteDone } | undefined
  #isAnswered = false
  #isBodyOver = false
  #next = 0
  outcome: PumpResult | Error | undefined

  // The reference: chunks in the order in which they came, taken one by one.
  readonly #waiting: number[][] = []
  expected: number[] = []
  isStopped = false
  isRefused = false
  isOverLimit = false
  isBroken = false
  isDiskBroken = false

  constructor(random: Random) {
    this.#random = random
    this.limit = start + random.int(8, 200)
    const body = this.body as unknown as Readable
    const options = {
      position: start,
      limit: this.limit,
      batchSizes: { first: random.int(1, 8), next: random.int(1, 16) },
      isEager: random.chance(0.3),
      onChunk: (chunk: Buffer) => {
        this.seen.push(...chunk)
      },
      onWritten: (position: number) => {
        if (position !== start + this.file.length) throw new Error('onWritten says what is not so')
      },
      admit: (position: number) => this.#admit(position),
    }
    pump(
      body,
      (buffer, { start: from, length }, at, done) => this.#onWrite({ buffer, from, length, at, done }),
      options,
    ).then(
      (result) => {
        this.outcome = result
      },
      (error: Error) => {
        this.outcome = error
      },
    )
  }

  #admit(position: number): Error | Promise<void> | undefined {
    if (this.#answer !== undefined) throw new Error('asked before it was answered')
    const [chunk = []] = this.#waiting
    if (position !== start + this.expected.length + chunk.length)
      throw new Error('asked for the wrong position')
    if (this.#random.chance(0.05)) {
      this.#onRefused()
      return refusal
    }
    if (this.#random.chance(0.5)) {
      this.steps.push('held')
      this.#answer = createAnswer()
      return this.#answer.promise
    }
    this.#onLetIn()
    return undefined
  }

  #onLetIn(): void {
    const chunk = this.#waiting.shift() ?? []
    if (start + this.expected.length + chunk.length > this.limit) {
      this.isOverLimit = true
      this.#onStopped()
    } else this.expected.push(...chunk)
  }

  #onRefused(): void {
    this.steps.push('refused')
    this.isRefused = true
    this.#onStopped()
  }

  #onStopped(): void {
    this.isStopped = true
    this.#waiting.length = 0
  }

  #onWrite(write: NonNullable<Scene['write']>): void {
    if (this.#write !== undefined) throw new Error('two writes at once')
    if (write.at !== start + this.file.length) throw new Error('a hole or an overlap')
    if (write.length === 0) throw new Error('nothing to write')
    this.#write = write
  }

  get write() {
    return this.#write
  }

  /** Whether an answer was given since the last call. */
  takeAnswered(): boolean {
    const isAnswered = this.#isAnswered
    this.#isAnswered = false
    return isAnswered
  }

  get #isSettledEarly(): boolean {
    return this.isDiskBroken
  }

  /** Does one of the things that can happen now. @returns false when nothing can any more */
  step(mayEnd: boolean): boolean {
    const possible: (() => void)[] = []
    const write = this.#write
    const answer = this.#answer
    if (write !== undefined) possible.push(() => this.#finishWrite(write))
    if (answer !== undefined) possible.push(() => this.#giveAnswer(answer))
    if (!this.#isBodyOver && !this.isStopped && !this.#isSettledEarly) {
      // A reader that holds the body may get what was on its way all the same.
      const isFlowing = !this.body.isPaused() || this.#random.chance(0.1)
      if (isFlowing) possible.push(() => this.#sendChunk())
      if (mayEnd || possible.length === 0) possible.push(() => this.#endBody())
    } else if (this.#random.chance(0.2)) this.body.emit('close')
    const [first] = possible
    if (first === undefined) return false
    const chosen = possible[this.#random.int(0, possible.length - 1)] ?? first
    chosen()
    return true
  }

  #sendChunk(): void {
    const chunk = Array.from({ length: this.#random.int(1, 20) }, () => this.#next++ & 0xff)
    this.steps.push(`data ${chunk.length}`)
    this.#waiting.push(chunk)
    this.body.emit('data', Buffer.from(chunk))
  }

  #endBody(): void {
    this.#isBodyOver = true
    const how = this.#random.int(0, 3)
    this.steps.push(['end', 'close', 'error', 'end and error'][how] ?? '')
    if (how === 0 || how === 3) {
      this.body.readableEnded = true
      this.body.emit('end')
      if (how === 3) this.body.emit('error', broken) // all of it was here already
      return
    }
    this.isBroken = true
    this.body.destroyed = true
    if (how === 2) this.body.emit('error', broken)
    this.body.emit('close')
  }

  #giveAnswer(answer: Answer): void {
    this.#answer = undefined
    this.#isAnswered = true
    if (this.#random.chance(0.1)) {
      if (!this.#isSettledEarly) this.#onRefused()
      answer.refuse(refusal)
      return
    }
    this.steps.push('let in')
    if (!this.#isSettledEarly) this.#onLetIn()
    answer.letIn()
  }

  #finishWrite(write: NonNullable<Scene['write']>): void {
    this.#write = undefined
    if (this.#random.chance(0.02)) {
      this.steps.push('disk error')
      this.isDiskBroken = true
      write.done(diskError, 0)
      return
    }
    const written = this.#random.chance(0.3) ? this.#random.int(1, write.length) : write.length
    this.steps.push(`written ${written}`)
    this.file.push(...write.buffer.subarray(write.from, write.from + written))
    write.done(null, written)
  }

  /** What is wrong with how it ended, if anything is. */
  fault(): string | undefined {
    const { outcome } = this
    if (this.isDiskBroken) return outcome === diskError ? undefined : 'the disk failed without a word'
    if (outcome === undefined) return 'it never ends'
    if (outcome instanceof Error) return `it failed: ${outcome.message}`
    if (!this.body.isPaused()) return 'the body flows to nobody'
    if (String(this.seen) !== String(this.expected)) return 'other chunks were hashed'
    const written = String(this.file)
    if (this.isRefused) {
      if (!String(this.expected).startsWith(written)) return 'what is written did not come'
      return outcome.refusal === refusal ? undefined : 'refused without a word'
    }
    if (outcome.refusal !== undefined) return 'nobody refused'
    if (outcome.overLimit !== this.isOverLimit) return `over the limit: ${outcome.overLimit}`
    if (written !== String(this.expected))
      return `${this.file.length} of ${this.expected.length} bytes are written`
    if (outcome.position !== start + this.file.length) return 'another position'
    if (!this.isStopped && (outcome.failure !== undefined) !== this.isBroken) return 'another failure'
    return undefined
  }
}

type WriteDone = (error: Error | null, written: number) => void

t.test(
  'S75: whatever holds a body while it ends, closes, breaks or is refused, what was let in is written',
  async (t) => {
    const kinds = new Map<string, number>()
    const note = (kind: string, is: boolean) => kinds.set(kind, (kinds.get(kind) ?? 0) + (is ? 1 : 0))
    for (let order = 0; order < 100_000; order++) {
      const scene = new Scene(new Random('pump', order))
      const most = 3 + (order % 24)
      for (let at = 0; at < 1000 && scene.step(at >= most / 2); at++) if (scene.takeAnswered()) await heard()
      await heard()
      const fault = scene.fault()
      if (fault !== undefined) {
        t.fail(`order ${order}: ${fault}`, { steps: scene.steps })
        return
      }
      note('refused', scene.isRefused)
      note('over the limit', scene.isOverLimit)
      note('broken', scene.isBroken && !scene.isStopped)
      note('disk error', scene.isDiskBroken)
      note('held at its end', /held,(?:written \d+,)*(?:end|close|error)/.test(String(scene.steps)))
      note('whole', !scene.isStopped && !scene.isBroken && !scene.isDiskBroken)
    }
    for (const [kind, times] of kinds) t.ok(times > 1000, `${kind}: ${times} times`)
  },
)
