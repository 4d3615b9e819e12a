import { execFileSync, spawn } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { availableParallelism, release, tmpdir } from 'node:os'
import { parseArgs } from 'node:util'
import { readWhole } from './options.js'
import { type Extent, programOf, type Suite, suites } from './suites.js'

const help = `Usage: npm run torture -- [options]

Runs all that tries to make the registry lose something, one part after the other or two at a time.

  --quick          some minutes of it (the default)
  --full           all of it: hours
  --only A,B       these parts alone
  --seed N         repeats the choices of a run; every run prints its seed
  --jobs N         parts that run at once (default: one for each core, two at the most)
  --beyond-tests   without the parts that npm test runs, too
  --list           the parts, and the command behind each
`

/** Minutes after which a part counts as hanging. */
const patience: Readonly<Record<Extent, number>> = { quick: 20, full: 180 }

/** Lines of a part that are shown when all is well, and when not. */
const shownLines = { passed: 8, failed: 200 }

interface CommandLine {
  readonly extent: Extent
  readonly chosen: readonly Suite[]
  readonly seed: number
  readonly jobs: number
}

/** What became of one part. */
interface Outcome {
  readonly passed: number
  readonly failed: number
  /** Why it did not run. */
  readonly skipped: string | undefined
  readonly seconds: number
  readonly output: string
}

/** @throws Error with a sentence for the user */
function parseCommandLine(args: readonly string[]): CommandLine | undefined {
  const { values } = parseArgs({
    args: [...args],
    options: {
      help: { type: 'boolean', default: false },
      list: { type: 'boolean', default: false },
      quick: { type: 'boolean', default: false },
      full: { type: 'boolean', default: false },
      only: { type: 'string' },
      'beyond-tests': { type: 'boolean', default: false },
      seed: { type: 'string', default: String(randomInt(1, 2 ** 31)) },
      jobs: { type: 'string', default: String(Math.min(2, availableParallelism())) },
    },
  })
  const extent = values.full ? 'full' : 'quick'
  if (values.help) console.log(help)
  if (values.list) for (const suite of suites) console.log(describe(suite, extent))
  if (values.help || values.list) return undefined
  const names = values.only?.split(',')
  for (const name of names ?? []) {
    if (!suites.some((suite) => suite.name === name))
      throw new Error(`there is no part "${name}": see --list`)
  }
  return {
    extent,
    chosen: suites.filter(
      ({ name, file }) =>
        names?.includes(name) !== false && !(values['beyond-tests'] && file.endsWith('.test.js')),
    ),
    seed: readWhole('seed', values.seed),
    jobs: readWhole('jobs', values.jobs),
  }
}

function describe(suite: Suite, extent: Extent): string {
  return `${suite.name.padEnd(16)} ${suite.about}\n${''.padEnd(17)}node dist/test/${suite.file} ${suite[extent].join(' ')}`
}

/** Runs one part, as a process of its own. */
function runSuite(suite: Suite, extent: Extent, seed: number): Promise<Outcome> {
  const begin = performance.now()
  const seeded = suite.isSeeded === false ? [] : ['--seed', String(seed)]
  const child = spawn(process.execPath, [programOf(suite), ...suite[extent], ...seeded], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, TAP_TIMEOUT: String(patience[extent] * 60) },
  })
  living.add(child.pid ?? 0)
  let output = ''
  const keep = (chunk: Buffer) => {
    output = `${output}${chunk.toString()}`.slice(-1_000_000)
  }
  child.stdout.on('data', keep)
  child.stderr.on('data', keep)
  const timer = setTimeout(() => {
    output += `\n${suite.name} does not end`
    child.kill('SIGTERM')
  }, patience[extent] * 60_000)
  return new Promise((resolve) => {
    child.once('close', (code) => {
      clearTimeout(timer)
      living.delete(child.pid ?? 0)
      resolve({ ...readOutcome(output, code), seconds: (performance.now() - begin) / 1000, output })
    })
  })
}

const living = new Set<number>()
process.on('exit', () => {
  for (const pid of living) process.kill(pid, 'SIGTERM')
})

/** The counts that a part tells: in its last line, or as TAP. Its exit code must agree. */
function readOutcome(output: string, code: number | null): Pick<Outcome, 'passed' | 'failed' | 'skipped'> {
  const [, told, bad] = [...output.matchAll(/(\d+) passed, (\d+) failed/g)].at(-1) ?? []
  const passed = Number(told ?? output.match(/^ok /gm)?.length ?? 0)
  const failed = Number(bad ?? output.match(/^not ok /gm)?.length ?? 0)
  const skipped = passed + failed === 0 && code === 0 ? /skipped: (.*)/.exec(output)?.[1] : undefined
  if (skipped !== undefined) return { passed: 0, failed: 0, skipped }
  const isHonest = code === 0 ? passed > 0 || failed > 0 : failed > 0
  return { passed, failed: isHonest ? failed : failed + 1, skipped: undefined }
}

function show(name: string, { passed, failed, skipped, seconds, output }: Outcome): void {
  const lines = output.trimEnd().split('\n')
  const shown = lines.slice(-(failed > 0 ? shownLines.failed : shownLines.passed))
  const verdict = skipped === undefined ? `${passed} passed, ${failed} failed` : 'skipped'
  console.log(`== ${name}: ${verdict}, ${seconds.toFixed(0)} s\n${shown.join('\n')}`)
}

/** What the figures are worth anything for only together with. */
function describeMachine(): string {
  const filesystem = execFileSync('stat', ['-f', '-c', '%T', tmpdir()], { encoding: 'utf8' }).trim()
  return `${process.platform} ${release()}, Node ${process.versions.node}, ${availableParallelism()} cores, temporary files on ${filesystem}`
}

/** @returns whether all is well */
async function torture({ extent, chosen, seed, jobs }: CommandLine): Promise<boolean> {
  console.log(`torture: ${extent}, seed ${seed}, ${describeMachine()}`)
  const waiting = chosen.flatMap((suite) => {
    const pieces = extent === 'full' ? (suite.pieces ?? 1) : 1
    return Array.from({ length: pieces }, (_, at) => ({ suite, seed: seed + at }))
  })
  const rows: string[] = []
  const sums = { passed: 0, failed: 0, skipped: 0 }
  const work = async () => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      const outcome = await runSuite(next.suite, extent, next.seed)
      show(next.suite.name, outcome)
      sums.passed += outcome.passed
      sums.failed += outcome.failed
      if (outcome.skipped !== undefined) sums.skipped++
      rows.push(rowOf(next.suite, next.seed, outcome))
    }
  }
  await Promise.all(Array.from({ length: jobs }, work))
  console.log(`\n${'part'.padEnd(16)} ${'seed'.padStart(11)} ${'seconds'.padStart(8)}  result`)
  for (const row of rows.toSorted()) console.log(row)
  const skipped = sums.skipped === 0 ? '' : `, ${sums.skipped} skipped`
  console.log(`${sums.passed} passed, ${sums.failed} failed${skipped}`)
  return sums.failed === 0 && sums.passed > 0
}

function rowOf({ name, isSeeded }: Suite, seed: number, outcome: Outcome): string {
  const { passed, failed, skipped, seconds } = outcome
  const told = isSeeded === false ? '–' : String(seed)
  const result = skipped === undefined ? `${passed} passed, ${failed} failed` : `skipped: ${skipped}`
  return `${name.padEnd(16)} ${told.padStart(11)} ${seconds.toFixed(0).padStart(8)}  ${result}`
}

for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const) {
  process.once(signal, () => process.exit(code))
}
try {
  const commandLine = parseCommandLine(process.argv.slice(2))
  if (commandLine !== undefined && !(await torture(commandLine))) process.exitCode = 1
} catch (error) {
  console.error(error instanceof Error ? error.message : error)
  process.exitCode = 2
}
