import { OverTime } from './load.js'
import { median } from './measure.js'
import type { Patience } from './patience.js'
import type { Row, Sample } from './rows.js'
import type { Side } from './side.js'

const ROW_LIMIT_SECONDS = 90

/** The two that are compared; without a peer ours runs alone. */
export interface Sides {
  readonly peer?: Side
  readonly ours: Side
}

/** All that a row brought. */
export interface Outcome {
  readonly row: Row
  readonly peer: readonly Sample[]
  readonly ours: readonly Sample[]
  /** How long the row took in all, preparation included. */
  readonly seconds: number
  /** Why the row is not complete. */
  readonly problem?: string
}

/** The judgement of one row: medians, how many times better ours is, and whether that reaches the goal. */
export interface Verdict {
  readonly peer: number
  readonly ours: number
  readonly ratio: number
  /** Unknown when a figure is missing. */
  readonly met: boolean | undefined
}

/**
 * Runs a row on both sides, taking turns and swapping who goes first, so that neither always follows the other.
 * A row that takes too long or fails keeps the samples it has; the failure is told, not thrown.
 */
export async function runRow(row: Row, { peer, ours }: Sides, patience: Patience): Promise<Outcome> {
  const begin = performance.now()
  const seconds = () => (performance.now() - begin) / 1000
  const samples = { peer: [] as Sample[], ours: [] as Sample[] }
  const compared =
    peer && !row.oursOnly && !row.ofOursAlone
      ? ([
          ['peer', peer],
          ['ours', ours],
        ] as const)
      : ([['ours', ours]] as const)
  try {
    for (const [, side] of compared) await row.prepare?.(side)
    const end = performance.now() + (ROW_LIMIT_SECONDS + patience.left) * 1000
    for (let repetition = 0; repetition < row.repetitions; repetition += 1) {
      for (const [name, side] of repetition % 2 === 0 ? compared : [...compared].reverse()) {
        const left = (end - performance.now()) / 1000
        if (left <= 0) throw new OverTime('stopped, because the row took too long')
        samples[name].push(await patience.sample(() => row.sample(side, left)))
      }
    }
    return { row, ...samples, seconds: seconds() }
  } catch (error) {
    const problem = error instanceof Error ? error.message : String(error)
    return { row, ...samples, seconds: seconds(), problem }
  }
}

/** Judges a row by the medians of its samples. */
export function judge({ row, peer, ours }: Outcome): Verdict {
  const values = {
    peer: median(peer.map(({ value }) => value)),
    ours: median(ours.map(({ value }) => value)),
  }
  const ratio = row.better === 'higher' ? values.ours / values.peer : values.peer / values.ours
  const { kind, value } = row.goal
  const figure = kind === 'ratio' ? ratio : values.ours
  const met = Number.isNaN(figure) ? undefined : kind === 'at-most' ? figure <= value : figure >= value
  return { ...values, ratio, met }
}
