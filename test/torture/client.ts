import { setTimeout as delay } from 'node:timers/promises'
import { act, type Place } from './actions.js'
import { type Blob, type Image, makeBlob, makeImage } from './content.js'
import { Random } from './random.js'
import type { Session } from './sessions.js'
import { GivenUp, type Surroundings, Talk } from './talk.js'
import { cancelUpload, resumeUpload } from './uploads.js'
import { Wire } from './wire.js'

/** Left sessions that a client keeps: with more it goes on with one of them first. */
const mostLeft = 5

/** What every client of a run pushes, too, so that they meet. */
export interface SharedContent {
  readonly repository: string
  readonly images: readonly Image[]
  readonly layers: readonly Blob[]
}

/** Makes the content that is common to all clients of a run. */
export function makeSharedContent(seed: number): SharedContent {
  const random = new Random(seed, 'shared')
  const layers = Array.from({ length: 4 }, () => makeBlob(random))
  const images = Array.from({ length: 6 }, () => makeImage(random, layers))
  return { repository: 'shared/app', layers, images }
}

/** Who a client is. */
export interface ClientOptions {
  readonly seed: number
  readonly name: string
  /** The names of the others. */
  readonly others: readonly string[]
  readonly shared: SharedContent
}

/**
 * A client that pushes, retags, deletes and reads, in repositories of its own and in one that all share. How it
 * chooses is decided by the seed; what it chooses from, by what happened before.
 */
export class Client {
  readonly #options: ClientOptions
  readonly #surroundings: Surroundings
  #left: Session[] = []
  /** A session whose last request died: it is taken up again at once. */
  #interrupted: Session | undefined

  constructor(surroundings: Surroundings, options: ClientOptions) {
    this.#surroundings = surroundings
    this.#options = options
  }

  /** Whether an upload whose connection died waits to be taken up again. */
  get isInterrupted(): boolean {
    return this.#interrupted !== undefined
  }

  /** Works against the server at this port until it is over. */
  async work(round: number, port: number, isOver: () => boolean): Promise<void> {
    const { seed, name } = this.#options
    const wire = new Wire(port)
    for (let step = 0; !isOver(); step++) {
      const random = new Random(seed, round, name, step)
      const talk = new Talk(this.#surroundings, wire, `${name}, round ${round}, step ${step}`)
      await this.#step(talk, random, step)
    }
    wire.close()
  }

  /** The first steps of a round take up what the last one left. */
  async #step(talk: Talk, random: Random, step: number): Promise<void> {
    try {
      const isTime = step < 2 || this.#left.length > mostLeft
      const left = this.#interrupted ?? (isTime ? this.#left.shift() : undefined)
      if (left?.ending === 'done') this.#forget(left)
      else if (left !== undefined) await this.#goOnWith(left, talk, random)
      else if (!isTime) await act(talk, random, this.#place(random))
    } catch (error) {
      if (!(error instanceof GivenUp)) throw error
      if (error.isLost) await delay(5) // a dead server refuses at once: do not spin
    }
  }

  async #goOnWith(session: Session, talk: Talk, random: Random): Promise<void> {
    try {
      if (session === this.#interrupted || random.chance(0.8)) await resumeUpload(talk, random, session)
      else await cancelUpload(talk, session)
      this.#forget(session)
    } catch (error) {
      this.#forget(session)
      this.#keep(session, error)
      throw error
    }
  }

  #forget(session: Session): void {
    if (session === this.#interrupted) this.#interrupted = undefined
  }

  #keep(session: Session, error?: unknown): void {
    if (session.ending === 'done') return
    if (error instanceof GivenUp && error.isLost) this.#interrupted = session
    else this.#left.push(session)
  }

  #place(random: Random): Place {
    const { name, others, shared } = this.#options
    const [app, tools] = [`${name}/app`, `${name}/tools/build`]
    const isShared = random.chance(0.3)
    const repository = isShared ? shared.repository : random.chance(0.6) ? app : tools
    const sources = [app, tools, shared.repository].filter((source) => source !== repository)
    const other = random.pick(others)
    return {
      repository,
      images: isShared ? shared.images : [],
      layers: shared.layers,
      mountFrom: random.pick(sources) ?? app,
      foreign: other === undefined ? undefined : `${other}/app`,
      keep: (session, error) => this.#keep(session, error),
    }
  }
}
