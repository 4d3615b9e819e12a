import { randomInt } from 'node:crypto'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { noTracing } from '../stores/processes.js'
import { readWhole } from './options.js'
import { Replay, type ReplayReport } from './replay-run.js'
import { operationsCalled, steadyOperationNames, upstream } from './sweep-operations.js'

const names = steadyOperationNames

const help = `Usage: node dist/test/torture/replay.js [options]

Records what the server does to its files during an operation, and looks at the states that a power cut may leave at
each moment of it, on a disk that keeps nothing but what was synced: nothing acknowledged may be lost in any of them.

  --operation NAME one of ${names.join(', ')};
                   several with commas (default: all)
  --bound N        states of each operation, about (default 1000)
  --quick          a few hundred states of a few operations
  --seed N         repeats the bytes and the choice of states; every run prints its seed
  --dir DIR        put the folders below DIR (default: the system's temporary folder)
  --server FILE    the server's compiled main.js (default: the one this was compiled with)
`

interface CommandLine {
  readonly help: boolean
  readonly names: readonly string[]
  readonly bound: number
  readonly seed: number
  readonly dir: string
  readonly server: string
}

/** What a quick run does. */
const quick = { names: ['push', 'chunked-push', 'delete'], bound: 300 }

/** @throws Error with a sentence for the user */
function parseCommandLine(args: readonly string[]): CommandLine {
  const { values } = parseArgs({
    args: [...args],
    options: {
      help: { type: 'boolean', default: false },
      operation: { type: 'string' },
      bound: { type: 'string' },
      quick: { type: 'boolean', default: false },
      seed: { type: 'string', default: String(randomInt(1, 2 ** 31)) },
      dir: { type: 'string', default: tmpdir() },
      server: { type: 'string', default: fileURLToPath(new URL('../../src/main.js', import.meta.url)) },
    },
  })
  if (!existsSync(values.server)) throw new Error(`there is no server at ${values.server}`)
  const chosen = values.operation?.split(',') ?? (values.quick ? quick.names : names)
  const unknown = chosen.find((name) => !names.includes(name))
  if (unknown !== undefined) throw new Error(`--operation knows ${names.join(', ')}, not "${unknown}"`)
  const bound = values.bound ?? String(values.quick ? quick.bound : 1000)
  return {
    ...values,
    names: chosen,
    bound: readWhole('bound', bound),
    seed: readWhole('seed', values.seed),
  }
}

/** @returns whether all is well */
async function run(options: CommandLine): Promise<boolean> {
  const obstacle = process.getuid?.() === 0 ? noTracing() : 'only root can trace what it did not start'
  if (obstacle !== undefined) {
    console.log(`replay: skipped: ${obstacle}`)
    console.log('0 passed, 0 failed')
    return true
  }
  const folder = mkdtempSync(join(options.dir, 'boathouse-replay-'))
  console.log(`replay: seed ${options.seed}`)
  const begin = performance.now()
  await upstream.start()
  let passed = 0
  let failed = 0
  for (const operation of operationsCalled(options.names)) {
    const replay = new Replay(operation, { ...options, main: options.server, folder })
    const report = await replay.run()
    if (report.violations.length === 0 && report.states > 1) passed++
    else failed++
    console.log(describe(report))
  }
  if (failed === 0) rmSync(folder, { recursive: true, force: true })
  else console.log(`replay: replay with --seed ${options.seed}; what is left is in ${folder}`)
  console.log(`replay: ${((performance.now() - begin) / 1000).toFixed(0)} s, seed ${options.seed}`)
  console.log(`${passed} passed, ${failed} failed`)
  return failed === 0
}

function describe({ operation, events, acknowledged, states, started, violations }: ReplayReport): string {
  const steps = `${events} steps, ${acknowledged} acknowledgements`
  return `${operation}: ${steps}, ${states} states (${started} with a server), violations ${violations.length}`
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
