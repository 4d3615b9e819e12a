/*
 * Two programs that work on the same stores, their calls let through one at a time, in every order: so each schedule
 * is the same each time, and none is left to chance.
 */

/** One of the two programs: its calls wait until it is their turn. */
class Side {
  #release: (() => void) | undefined
  #onStill: (() => void) | undefined
  #isEnded = false
  /** Name of the call that waits. */
  call = ''

  /** Waits for its turn before a call. */
  async gate(call: string): Promise<void> {
    this.call = call
    await new Promise<void>((resolve) => {
      this.#release = resolve
      this.#onStill?.()
    })
  }

  get isEnded(): boolean {
    return this.#isEnded
  }

  end(): void {
    this.#isEnded = true
    this.#onStill?.()
  }

  /** Resolves when the program waits before a call, or has ended. */
  async still(): Promise<void> {
    if (this.#isEnded || this.#release !== undefined) return
    await new Promise<void>((resolve) => {
      this.#onStill = resolve
    })
    this.#onStill = undefined
  }

  /** Lets the call that waits through, and waits until the next one does. */
  async step(): Promise<void> {
    const release = this.#release
    this.#release = undefined
    release?.()
    await this.still()
  }
}

/** Hands out a store whose calls wait for their turn, but for those that are named. */
export type Gated = <T extends object>(store: T, ...free: readonly (keyof T)[]) => T

function gated(side: Side): Gated {
  return (store, ...free) =>
    new Proxy(store, {
      get(target, name) {
        const value: unknown = Reflect.get(target, name)
        if (typeof value !== 'function') return value
        if ((free as readonly PropertyKey[]).includes(name)) return value.bind(target)
        return async (...args: unknown[]) => {
          await side.gate(String(name))
          return value.apply(target, args)
        }
      },
    })
}

/** A program, on stores whose calls it must take from `gated`. */
export type Program = (gated: Gated) => Promise<void>

/** What the first of two programs waits for again and again: then the other one goes on. */
const mostRetries = 1

async function runOnce(
  first: Program,
  second: Program,
  prefix: readonly boolean[],
): Promise<{ choices: boolean[]; free: boolean[] }> {
  const sides = [new Side(), new Side()] as const
  const ended = [first, second].map((program, at) => {
    const side = sides[at] ?? sides[0]
    return program(gated(side)).finally(() => side.end())
  })
  const failed = Promise.all(ended)
  failed.catch(() => undefined)
  const choices: boolean[] = []
  const free: boolean[] = []
  let retries = 0
  await Promise.all(sides.map((side) => side.still()))
  while (sides.some((side) => !side.isEnded)) {
    const isFree = sides.every((side) => !side.isEnded) && retries < mostRetries
    const isFirst = isFree ? (prefix[choices.length] ?? true) : sides[1].isEnded
    choices.push(isFirst)
    free.push(isFree)
    const { call } = sides[0]
    await sides[isFirst ? 0 : 1].step()
    const isRetry = isFirst && !sides[0].isEnded && sides[0].call === call
    retries = isRetry ? retries + 1 : 0
  }
  await failed
  return { choices, free }
}

/**
 * Runs two programs in every order of their calls.
 * @param begin makes the programs of one schedule, on things of its own
 * @returns after each schedule its order: `o` for a call of the first program, `c` for one of the second
 */
export async function* allSchedules(
  begin: () => Promise<readonly [Program, Program]>,
): AsyncGenerator<string> {
  let prefix: boolean[] | undefined = []
  while (prefix !== undefined) {
    const [first, second] = await begin()
    const { choices, free } = await runOnce(first, second, prefix)
    yield choices.map((isFirst) => (isFirst ? 'o' : 'c')).join('')
    const last = choices.findLastIndex((isFirst, at) => isFirst && free[at] === true)
    prefix = last < 0 ? undefined : [...choices.slice(0, last), false]
  }
}
