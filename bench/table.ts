import { judge, type Outcome } from './compare.js'
import { median } from './measure.js'
import { DISTURBANCE } from './patience.js'
import { MIB } from './payload.js'
import type { Row, Sample } from './rows.js'

function figure(value: number, unit: string): string {
  if (Number.isNaN(value)) return '–'
  const digits = value >= 100 ? 0 : value >= 10 ? 1 : 2
  return `${value.toFixed(digits)} ${unit}`
}

function goalText({ goal, unit }: Row): string {
  if (goal.kind === 'ratio') return `≥ ${goal.value}×`
  return `${goal.kind === 'at-least' ? '≥' : '≤'} ${goal.value} ${unit}`
}

function cells(outcome: Outcome): string[] {
  const { row } = outcome
  const { peer, ours, ratio, met } = judge(outcome)
  const answer = met === undefined ? '–' : met ? 'yes' : 'no'
  const times = Number.isNaN(ratio) ? '–' : `${ratio.toFixed(2)}×`
  return [row.title, figure(peer, row.unit), figure(ours, row.unit), times, goalText(row), answer]
}

/** The one table, as Markdown. A ratio above 1 always says that the right-hand side is better. */
export function formatTable(outcomes: readonly Outcome[], names: readonly [string, string]): string {
  const lines = [['Row', ...names, 'Ratio', 'Goal', 'Met'], ...outcomes.map(cells)]
  const widths = (lines[0] ?? []).map((_, i) => Math.max(...lines.map((line) => line[i]?.length ?? 0)))
  const format = (line: readonly string[]) =>
    `| ${line.map((cell, i) => (i === 0 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0))).join(' | ')} |`
  const rule = `|${widths.map((width, i) => (i === 0 ? '-'.repeat(width + 2) : `${'-'.repeat(width + 1)}:`)).join('|')}|`
  const [head = [], ...body] = lines
  return [format(head), rule, ...body.map(format)].join('\n')
}

function coresText(samples: readonly Sample[]): string {
  const cores = samples.flatMap((sample) => sample.cores ?? [])
  if (cores.length === 0) return ''
  const of = (pick: (one: (typeof cores)[number]) => number) => median(cores.map(pick)).toFixed(2)
  return `  cores: server ${of((c) => c.server)}, load ${of((c) => c.load)}, others ${of((c) => c.others)}`
}

function memoryText(sample: Sample): string {
  if (!sample.memory) return ''
  const { rss, pss, highWater } = sample.memory
  const mib = (bytes: number) => (bytes / MIB).toFixed(0)
  return `  RSS ${mib(rss)}, PSS ${mib(pss)}, sum of high-water marks ${mib(highWater)} MiB`
}

function sideText(name: string, row: Row, samples: readonly Sample[]): string[] {
  if (samples.length === 0) return []
  const values = samples.map(({ value }) => figure(value, '').trim()).join(' ')
  const line = `  ${name}: ${values} ${row.unit}${coresText(samples)}${samples.map(memoryText).join('')}`
  const notes = samples.flatMap(({ note }) => note ?? [])
  return [line, ...notes.slice(-1).map((note) => `    ${note}`)]
}

/** Every sample of a row, and what it cost: for the reader who wonders about a figure. */
export function formatDetails(outcome: Outcome, names: readonly [string, string]): string {
  const { row, peer, ours, seconds, problem } = outcome
  const lines = [
    `${row.id} (${seconds.toFixed(0)} s)`,
    ...sideText(names[0], row, peer),
    ...sideText(names[1], row, ours),
  ]
  return [...lines, ...(problem ? [`  PROBLEM: ${problem}`] : [])].join('\n')
}

/** Rows in which something else on the machine took part, so that their figures deserve less trust. */
export function disturbed(outcomes: readonly Outcome[]): string[] {
  return outcomes
    .filter(
      ({ peer, ours }) => median([...peer, ...ours].flatMap((s) => s.cores?.others ?? [])) > DISTURBANCE,
    )
    .map(({ row }) => row.id)
}
