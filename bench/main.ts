import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, statfsSync, writeFileSync } from 'node:fs'
import { availableParallelism, totalmem } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { boathouse } from './boathouse.js'
import { judge, type Outcome, runRow, type Sides } from './compare.js'
import { killLoad, requireWrk } from './load.js'
import { HELP, type Options, parseOptions } from './options.js'
import { Patience } from './patience.js'
import { peer, peerVersion } from './peer.js'
import { makeRows, type Row } from './rows.js'
import { makeScaleRows } from './scale-rows.js'
import { killServers } from './server.js'
import { Side } from './side.js'
import { disturbed, formatDetails, formatTable } from './table.js'

const GIB = 1024 ** 3
const TMPFS = 0x01021994
/** How far a ratio may be from 1 when the peer is compared with itself. */
const SELF_CHECK_TOLERANCE = 0.15

function chooseRows(options: Options): readonly Row[] {
  const [usual, large] = [makeRows(options), makeScaleRows(options)]
  const all = options.scale ? large : options.only.length > 0 ? [...usual, ...large] : usual
  const rows = all
    .filter((row) => !(options.selfCheck && row.ofOursAlone))
    .map((row) => (options.full ? { ...row, oursOnly: false } : row))
    .map((row) => (options.against === undefined ? row : { ...row, ofOursAlone: false }))
  const unknown = options.only.filter((id) => !rows.some((row) => row.id === id))
  if (unknown.length > 0) throw new Error(`no such row: ${unknown.join(', ')} (see --list)`)
  return options.only.length === 0 ? rows : rows.filter((row) => options.only.includes(row.id))
}

function checkDisk(dir: string, rows: readonly Row[]): void {
  const { bavail, bsize, type } = statfsSync(dir)
  const kept = rows.filter((row) => !row.frees).reduce((sum, row) => sum + row.disk, 0)
  const needed = 2 * kept + Math.max(0, ...rows.filter((row) => row.frees).map((row) => row.disk))
  const free = (bavail * bsize) / GIB
  if (free < needed) {
    throw new Error(`${dir} has ${free.toFixed(1)} GiB free, the rows need up to ${needed.toFixed(1)} GiB`)
  }
  if (type === TMPFS) console.log(`Beware: ${dir} is in memory, where making data durable costs nothing.`)
}

function makeSides(options: Options, folder: string): Sides {
  if (options.selfCheck) {
    return { peer: new Side(peer, join(folder, 'first')), ours: new Side(peer, join(folder, 'second')) }
  }
  const { nodeOptions, workers } = options
  const ours = new Side(
    boathouse({ nodeOptions, ...(workers === undefined ? {} : { workers }) }),
    join(folder, 'ours'),
  )
  if (options.skipPeer) return { ours }
  const other = options.against === undefined ? peer : boathouse({ nodeOptions, folder: options.against })
  return { peer: new Side(other, join(folder, 'peer')), ours }
}

function sideNames({ peer: first, ours }: Sides): [string, string] {
  return [first?.registry.name ?? 'peer', ours.registry.name]
}

async function runRows(rows: readonly Row[], sides: Sides, patience: Patience): Promise<Outcome[]> {
  const outcomes: Outcome[] = []
  for (const row of rows) {
    const outcome = await runRow(row, sides, patience)
    outcomes.push(outcome)
    console.log(formatDetails(outcome, sideNames(sides)))
  }
  return outcomes
}

function writeResults(file: string, machine: string, outcomes: readonly Outcome[]): string {
  const path = basename(file) === file ? join('bench', 'results', file) : file
  mkdirSync(dirname(path), { recursive: true })
  const rows = outcomes.map((outcome) => {
    const { row, ...samples } = outcome
    return { id: row.id, unit: row.unit, goal: row.goal, ...judge(outcome), samples }
  })
  writeFileSync(path, `${JSON.stringify({ date: new Date().toISOString(), machine, rows }, null, 2)}\n`)
  return path
}

function fileSystem(dir: string): string {
  return execFileSync('stat', ['-f', '-c', '%T', dir], { encoding: 'utf8' }).trim()
}

function describeMachine(options: Options): string {
  const cores = `${availableParallelism()} cores, ${Math.round(totalmem() / GIB)} GiB`
  const withPeer = !options.skipPeer && options.against === undefined
  const versions = `Node ${process.version}${withPeer ? `, docker-registry ${peerVersion()}` : ''}`
  return `${cores}, ${fileSystem(options.dir)}; ${versions}`
}

/** True when everything ran, and, where that was asked for, came out as it must. */
function isGood(outcomes: readonly Outcome[], options: Options): boolean {
  if (outcomes.some(({ problem }) => problem !== undefined)) return false
  if (options.selfCheck) {
    // The others are single figures or extremes, which differ by chance alone.
    const compared = outcomes.filter(({ row }) => row.goal.kind === 'ratio').map(judge)
    return compared.every(({ ratio }) => Math.abs(ratio - 1) <= SELF_CHECK_TOLERANCE)
  }
  const verdicts = outcomes.map(judge)
  return !options.check || verdicts.every(({ met }) => met === true)
}

function report(outcomes: readonly Outcome[], sides: Sides, machine: string, options: Options): void {
  console.log(`\n${formatTable(outcomes, sideNames(sides))}\n\n${machine}`)
  const noisy = disturbed(outcomes)
  if (noisy.length > 0) console.log(`Other programs used more than a fifth of a core in: ${noisy.join(', ')}`)
  if (options.json !== undefined) console.log(`Written to ${writeResults(options.json, machine, outcomes)}`)
}

async function bench(options: Options): Promise<boolean> {
  const rows = chooseRows(options)
  if (options.list) {
    for (const row of rows) console.log(`${row.id.padEnd(16)} ${row.title}`)
    return true
  }
  requireWrk()
  const machine = describeMachine(options)
  mkdirSync(options.dir, { recursive: true })
  checkDisk(options.dir, rows)
  const folder = mkdtempSync(join(options.dir, 'boathouse-bench-'))
  const cleanUp = () => {
    killLoad()
    killServers()
    rmSync(folder, { recursive: true, force: true })
  }
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.once(signal, () => {
      cleanUp()
      process.exit(130)
    })
  }
  try {
    const sides = makeSides(options, folder)
    const outcomes = await runRows(rows, sides, new Patience(options.patience))
    await Promise.all([sides.peer?.end(), sides.ours.end()])
    report(outcomes, sides, machine, options)
    return isGood(outcomes, options)
  } finally {
    cleanUp()
  }
}

try {
  const options = parseOptions(process.argv.slice(2))
  if (options.help) console.log(HELP)
  else if (!(await bench(options))) process.exitCode = 1
} catch (error) {
  console.error(error instanceof Error ? error.message : error)
  process.exitCode = 2
}
