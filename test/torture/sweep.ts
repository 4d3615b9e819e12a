import { randomInt } from 'node:crypto'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { noTracing } from '../stores/processes.js'
import { readWhole } from './options.js'
import { type Mode, modes } from './sweep-modes.js'
import { operationNames, operationsCalled, upstream } from './sweep-operations.js'
import { Sweep, type SweepReport } from './sweep-run.js'

const help = `Usage: node dist/test/torture/sweep.js [options]

Kills the server before each system call of an operation that changes files, or lets each of these calls fail,
and checks that nothing acknowledged is lost, that the client is told, and that the same operation can be done again.

  --operation NAME one of ${operationNames.join(', ')};
                   several with commas (default: all)
  --mode MODE      ${modes.join(', ')}; several with commas (default: all)
  --at N           only the N-th call
  --each           the same call on each of the 256 leaves, not on five that stand for all
  --most N         at most N calls of each operation and mode, chosen by the seed (default: all)
  --quick          a few calls of the most important operations, about a minute
  --seed N         repeats the bytes and the sample of a run; every run prints its seed
  --lanes N        how many are tried at once (default 2)
  --dir DIR        put the folders below DIR (default: the system's temporary folder)
  --server FILE    the server's compiled main.js (default: the one this was compiled with)
`

/** What a quick run does. */
const quick = {
  operations: ['push', 'chunked-push', 'delete', 'collect', 'migration'],
  modes: ['kill', 'EIO'],
  most: 2,
}

interface CommandLine {
  readonly help: boolean
  readonly operations: readonly string[]
  readonly modes: readonly Mode[]
  readonly at: number | undefined
  readonly isEach: boolean
  readonly most: number | undefined
  readonly seed: number
  readonly lanes: number
  readonly dir: string
  readonly server: string
}

/** @throws Error with a sentence for the user */
function parseCommandLine(args: readonly string[]): CommandLine {
  const { values } = parseArgs({
    args: [...args],
    options: {
      help: { type: 'boolean', default: false },
      operation: { type: 'string' },
      mode: { type: 'string' },
      at: { type: 'string' },
      each: { type: 'boolean', default: false },
      most: { type: 'string' },
      quick: { type: 'boolean', default: false },
      seed: { type: 'string', default: String(randomInt(1, 2 ** 31)) },
      lanes: { type: 'string', default: '2' },
      dir: { type: 'string', default: tmpdir() },
      server: { type: 'string', default: fileURLToPath(new URL('../../src/main.js', import.meta.url)) },
    },
  })
  if (!existsSync(values.server)) throw new Error(`there is no server at ${values.server}`)
  return {
    ...values,
    operations: (values.operation?.split(',') ?? (values.quick ? quick.operations : operationNames)).map(
      (name) => known('operation', name, operationNames),
    ),
    modes: (values.mode?.split(',') ?? (values.quick ? quick.modes : modes)).map((name) =>
      known('mode', name, modes),
    ),
    at: values.at === undefined ? undefined : readWhole('at', values.at),
    isEach: values.each,
    most:
      values.most === undefined ? (values.quick ? quick.most : undefined) : readWhole('most', values.most),
    seed: readWhole('seed', values.seed),
    lanes: readWhole('lanes', values.lanes),
  }
}

function known<T extends string>(option: string, text: string, all: readonly T[]): T {
  const found = all.find((one) => one === text)
  if (found === undefined) throw new Error(`--${option} knows ${all.join(', ')}, not "${text}"`)
  return found
}

/** @returns whether all is well */
async function run(options: CommandLine): Promise<boolean> {
  const obstacle = process.getuid?.() === 0 ? noTracing() : 'only root can trace what it did not start'
  if (obstacle !== undefined) {
    console.log(`sweep: skipped: ${obstacle}`)
    console.log('0 passed, 0 failed')
    return true
  }
  const begin = performance.now()
  const folder = mkdtempSync(join(options.dir, 'boathouse-sweep-'))
  console.log(`sweep: seed ${options.seed}`)
  const sweep = new Sweep({ ...options, main: options.server, folder })
  let passed = 0
  let failed = 0
  const reports: SweepReport[] = []
  await upstream.start()
  for await (const report of sweep.run(operationsCalled(options.operations), options.modes)) {
    reports.push(report)
    passed += report.tried - report.failed
    failed += report.failed + report.missed
    console.log(describe(report))
  }
  const isRight = failed === 0
  if (isRight) rmSync(folder, { recursive: true, force: true })
  else console.log(`sweep: replay with --seed ${options.seed}; what is left is in ${folder}`)
  const seconds = ((performance.now() - begin) / 1000).toFixed(0)
  const count = reports.reduce((sum, { tried }) => sum + tried, 0)
  console.log(`sweep: ${count} calls tried in ${seconds} s, seed ${options.seed}`)
  console.log(`${passed} passed, ${failed} failed`)
  return isRight
}

function describe(report: SweepReport): string {
  const { operation, mode, tried, points, distinct, missed, failed, seconds } = report
  const isFull = tried === points || tried === distinct
  const share = isFull ? '100 %' : `${((100 * tried) / distinct).toFixed(1)} %`
  const stand =
    tried === distinct && points > distinct ? `, standing for ${points} with the same on other leaves` : ''
  const lines = `${operation} ${mode}: ${tried} of ${isFull ? tried : distinct} calls (${share}${stand}), violations in ${failed}`
  return `${lines}${missed > 0 ? `, ${missed} never met` : ''}, ${seconds.toFixed(0)} s`
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
  else if (!(await run(options))) process.exitCode = 1
} catch (error) {
  console.error(error instanceof Error ? error.message : error)
  process.exitCode = 2
} finally {
  await upstream.stop()
}
