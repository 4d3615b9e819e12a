import type { Effect, Model, Span } from './model.js'
import type { Reply, Request, Wire } from './wire.js'

/** What all clients of a run share. */
export interface Surroundings {
  readonly model: Model
  /** Takes a sentence for something that must not happen. */
  readonly report: (violation: string) => void
  /** Hears of every request that changes something, at the moment when its success is known. */
  readonly acknowledged: (method: string) => void
  /** Whether connections may die now: something of the server was killed. */
  readonly mayLose: () => boolean
}

/** The connection died, or the server did something that makes the rest of an action pointless. */
export class GivenUp extends Error {
  override readonly name = 'GivenUp'
  readonly isLost: boolean

  constructor(isLost: boolean) {
    super(isLost ? 'the connection died' : 'the server did not do what it should')
    this.isLost = isLost
  }
}

/** An answer, and when it was asked for and came, by the model's clock. */
export interface TimedReply extends Reply {
  readonly span: Span
}

/** One client's talk with the server: what it sends, what the model is told, what is held against the server. */
export class Talk {
  readonly model: Model
  readonly #surroundings: Surroundings
  readonly #wire: Wire
  readonly #name: string

  constructor(surroundings: Surroundings, wire: Wire, name: string) {
    this.model = surroundings.model
    this.#surroundings = surroundings
    this.#wire = wire
    this.#name = name
  }

  /** Takes a sentence for something that must not happen. */
  report(violation: string): void {
    this.#surroundings.report(`${violation} (${this.#name})`)
  }

  /** Holds an answer against the server. @throws GivenUp */
  refuse(request: Pick<Request, 'method' | 'path'>, reply: Reply, expected: string): never {
    const text = reply.body.toString().slice(0, 300)
    this.report(
      `${request.method} ${request.path} is answered with ${reply.status} ${text} in place of ${expected}`,
    )
    throw new GivenUp(false)
  }

  /** Sends a request that changes nothing the model keeps. @throws GivenUp when no answer comes */
  async ask(request: Request): Promise<TimedReply> {
    const start = this.model.tick()
    const reply = await this.#send(request)
    if (request.method === 'PATCH' && reply.status === 202) this.#surroundings.acknowledged('PATCH')
    return { ...reply, span: { start, end: this.model.tick() } }
  }

  /**
   * Sends a request that has these effects if it is answered with the success status.
   * @throws GivenUp when no answer comes
   */
  async change(request: Request, success: number, effects: readonly Effect[]): Promise<TimedReply> {
    const operation = this.model.begin(`${request.method} ${request.path}`, effects)
    let reply: Reply
    try {
      reply = await this.#send(request)
    } catch (error) {
      this.model.settle(operation, 'unknown')
      throw error
    }
    this.model.settle(operation, reply.status === success ? 'acknowledged' : 'refused')
    if (reply.status === success) this.#surroundings.acknowledged(request.method)
    return { ...reply, span: operation }
  }

  async #send(request: Request): Promise<Reply> {
    const answer = await this.#wire.send(request)
    if (typeof answer === 'string') {
      const isExcused =
        answer !== 'hung' && (this.#surroundings.mayLose() || request.leaveAfter !== undefined)
      if (!isExcused)
        this.report(`${request.method} ${request.path}: no answer (${answer}), and nothing was killed`)
      throw new GivenUp(true)
    }
    if (answer.reply.status >= 500) this.refuse(request, answer.reply, 'anything below 500')
    return answer.reply
  }
}
