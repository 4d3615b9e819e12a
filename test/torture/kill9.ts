import { randomInt } from 'node:crypto'
import { cpSync, existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { Disk, type Filesystem, filesystems, noPowerCuts } from './disk.js'
import { readWhole } from './options.js'
import { Run, type RunOptions } from './run.js'

const help = `Usage: node dist/test/torture/kill9.js [options]

Starts the server, lets clients push, retag and delete, kills it with SIGKILL at a random moment, starts it
again and checks that nothing acknowledged was lost: round after round, on the same data folder.

  --rounds N       rounds (default 100)
  --fresh N        a fresh data folder, and the next seed, after each N rounds: what lies in a folder is looked at in
                   every round, so that rounds get slower (default: one folder for all)
  --seed N         repeats the choices of a run; every run prints its seed
  --clients N      clients that work at once (default 8)
  --workers N      worker processes of the server (default: 1 to 3, another number in each round)
  --power-cut FS   cut the power of a disk in memory with this filesystem (ext4, xfs, btrfs) in place of
                   killing; needs root
  --bail           stop after the first round with a violation
  --dir DIR        put the data folder below DIR (default: the system's temporary folder)
  --server FILE    the server's compiled main.js (default: the one this was compiled with)
`

interface CommandLine extends Omit<RunOptions, 'folder' | 'data' | 'disk'> {
  readonly help: boolean
  readonly dir: string
  /** Whether the first violation ends the run. */
  readonly bail: boolean
  /** Rounds on one data folder. */
  readonly fresh: number
  readonly powerCut: Filesystem | undefined
}

/** @throws Error with a sentence for the user */
function parseCommandLine(args: readonly string[]): CommandLine {
  const { values } = parseArgs({
    args: [...args],
    options: {
      help: { type: 'boolean', default: false },
      rounds: { type: 'string', default: '100' },
      fresh: { type: 'string' },
      seed: { type: 'string', default: String(randomInt(1, 2 ** 31)) },
      clients: { type: 'string', default: '8' },
      workers: { type: 'string' },
      'power-cut': { type: 'string' },
      bail: { type: 'boolean', default: false },
      dir: { type: 'string', default: tmpdir() },
      server: { type: 'string', default: fileURLToPath(new URL('../../src/main.js', import.meta.url)) },
    },
  })
  if (!existsSync(values.server)) throw new Error(`there is no server at ${values.server}`)
  return {
    help: values.help,
    rounds: readWhole('rounds', values.rounds),
    fresh: readWhole('fresh', values.fresh ?? values.rounds),
    seed: readWhole('seed', values.seed),
    clients: readWhole('clients', values.clients),
    workers: values.workers === undefined ? undefined : readWhole('workers', values.workers),
    dir: values.dir,
    bail: values.bail,
    powerCut: readFilesystem(values['power-cut']),
    server: values.server,
  }
}

function readFilesystem(text: string | undefined): Filesystem | undefined {
  const found = filesystems.find((name) => name === text)
  if (text === undefined || found !== undefined) return found
  throw new Error(`--power-cut knows ${filesystems.join(', ')}, not "${text}"`)
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN
}

/** What came of the rounds on one data folder. */
interface Result {
  readonly done: number
  /** Rounds with a violation. */
  readonly failed: number
  readonly acknowledged: number
  readonly violations: number
}

/** @returns whether all is well */
async function torture(options: CommandLine): Promise<boolean> {
  const { rounds, fresh, seed, powerCut, bail } = options
  const obstacle = powerCut && noPowerCuts(powerCut)
  if (obstacle !== undefined) {
    console.log(`power cuts: skipped: ${obstacle}`)
    return true
  }
  const results: Result[] = []
  const sum = (field: keyof Result) => results.reduce((total, result) => total + result[field], 0)
  for (let begun = 0; begun < rounds && !(bail && sum('failed') > 0); begun += fresh) {
    const count = Math.min(fresh, rounds - begun)
    results.push(await tortureFolder(options, seed + results.length, count))
  }
  const done = sum('done')
  const failed = sum('failed')
  if (results.length > 1) {
    const seeds = `seeds ${seed} to ${seed + results.length - 1}`
    const counts = `rounds ${done}, acknowledged ${sum('acknowledged')}, violations ${sum('violations')}`
    console.log(`kill9: ${seeds}: ${counts}`)
  }
  console.log(`${done - failed} passed, ${failed} failed`)
  return sum('violations') === 0 && done === rounds
}

/** Rounds on a data folder of their own, which is kept when something was violated. */
async function tortureFolder(
  { dir, powerCut, bail, ...options }: CommandLine,
  seed: number,
  rounds: number,
): Promise<Result> {
  const disk = powerCut && new Disk(powerCut)
  const folder = mkdtempSync(join(dir, 'boathouse-kill9-'))
  const isTerminal = process.stdout.isTTY
  console.log(`kill9: seed ${seed}${powerCut === undefined ? '' : `, power cuts on ${powerCut}`}`)
  const run = new Run({ ...options, seed, rounds, folder, data: join(disk?.root ?? folder, 'data'), disk })
  let failed = 0
  for await (const { round, violations, line } of run.rounds()) {
    if (violations.length > 0) failed++
    if (isTerminal) process.stdout.write(`\r\x1b[K${line}`)
    for (const violation of violations) console.log(`${isTerminal ? '\n' : ''}round ${round}: ${violation}`)
    if (bail && failed > 0) break
  }
  const { readyTimes, acknowledged, violations, kills, done } = run.summary()
  if (isTerminal) process.stdout.write('\r\x1b[K')
  const times = `ready after ${median(readyTimes).toFixed(0)} ms (median), ${Math.max(...readyTimes).toFixed(0)} ms (longest)`
  console.log(`kill9: ${times}; killed: ${kills}`)
  if (violations === 0) rmSync(folder, { recursive: true, force: true })
  else {
    // Without any sync the power cut has taken the folder itself.
    if (disk !== undefined && existsSync(join(disk.root, 'data')))
      cpSync(join(disk.root, 'data'), join(folder, 'data'), { recursive: true })
    console.log(`kill9: replay with --seed ${seed} --rounds ${rounds}; the data folder is kept in ${folder}`)
  }
  disk?.remove()
  console.log(`kill9: rounds ${done}, acknowledged ${acknowledged}, violations ${violations}`)
  return { done, failed, acknowledged, violations }
}

for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const) {
  process.once(signal, () => process.exit(code))
}
try {
  const options = parseCommandLine(process.argv.slice(2))
  if (options.help) console.log(help)
  else if (!(await torture(options))) process.exitCode = 1
} catch (error) {
  console.error(error instanceof Error ? error.message : error)
  process.exitCode = 2
}
