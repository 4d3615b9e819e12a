import { spawn } from 'node:child_process'
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { noPowerCuts } from './disk.js'
import { type Edit, eatmydata, type Hunter, hunterOf, type Mutation, mutations } from './mutations.js'

/*
 * Whether the suites have teeth: each mistake of mutations.ts is made in a copy of the built product, and the suite
 * that is named for it must see it, in bounded time. The unmodified copy must raise no alarm.
 */

const help = `Usage: node dist/test/torture/mutants.js [options]

  --only NAME      mutants whose name holds this text
  --quick          the few that CI tries
  --seed N         goes to the suites that take one (default 1)
  --list           their names
`

const dist = fileURLToPath(new URL('../..', import.meta.url))

/** A copy of the built product, tests included, that can be changed. */
class Copy {
  readonly root = mkdtempSync(join(tmpdir(), 'boathouse-mutant-'))

  constructor() {
    cpSync(dist, join(this.root, 'dist'), { recursive: true, filter: (path) => !path.endsWith('.map') })
    cpSync(join(dist, '..', 'package.json'), join(this.root, 'package.json'))
    symlinkSync(findModules(), join(this.root, 'node_modules'))
  }

  /**
   * Changes the copy.
   * @returns what changes it back
   * @throws Error when a text is not there exactly once: the mutant is out of date
   */
  apply(edits: readonly Edit[]): () => void {
    const before = new Map<string, string>()
    for (const { file, from, to } of edits) {
      const path = join(this.root, 'dist', file)
      const text = readFileSync(path, 'utf8')
      if (!before.has(path)) before.set(path, text)
      const pieces = text.split(from)
      if (pieces.length !== 2) throw new Error(`${file} has ${pieces.length - 1} times: ${from}`)
      writeFileSync(path, pieces.join(to))
    }
    return () => {
      for (const [path, text] of before) writeFileSync(path, text)
    }
  }

  remove(): void {
    rmSync(this.root, { recursive: true, force: true })
  }
}

function findModules(): string {
  for (let folder = dist; folder !== dirname(folder); folder = dirname(folder)) {
    const path = join(folder, 'node_modules')
    if (existsSync(path)) return path
  }
  throw new Error('there are no node_modules above the built product')
}

/** What a suite made of a copy. */
interface Verdict {
  readonly code: number | 'late'
  readonly output: string
  readonly seconds: number
}

const living = new Set<number>()

function hunt({ file, args, seconds, isSeeded }: Hunter, copy: Copy, seed: string): Promise<Verdict> {
  const begin = performance.now()
  const program = join(copy.root, 'dist', 'test', file)
  const seeded = isSeeded === false ? [] : ['--seed', seed]
  const child = spawn(process.execPath, [program, ...args, ...seeded], {
    cwd: copy.root,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, TMPDIR: copy.root, TAP_TIMEOUT: String(seconds) },
  })
  const pid = child.pid ?? 0
  living.add(pid)
  let output = ''
  const keep = (chunk: Buffer) => {
    output = `${output}${chunk.toString()}`.slice(-1_000_000)
  }
  child.stdout.on('data', keep)
  child.stderr.on('data', keep)
  let isLate = false
  const timer = setTimeout(() => {
    isLate = true
    child.kill('SIGTERM')
  }, seconds * 1000)
  return new Promise((resolve) => {
    child.once('close', (code) => {
      clearTimeout(timer)
      living.delete(pid)
      resolve({ code: isLate ? 'late' : (code ?? -1), output, seconds: (performance.now() - begin) / 1000 })
    })
  })
}

/** What is wrong with the verdict on a mutant; undefined when it was caught. */
function missed({ says }: Mutation, { code, output }: Verdict): string | undefined {
  if (code === 'late') return 'the suite did not end in time'
  if (code === 0) return 'nobody noticed'
  if (code !== 1) return `the suite broke (${code}): ${output.trimEnd().slice(-300)}`
  return says.test(output) ? undefined : `the suite failed otherwise: ${output.trimEnd().slice(-300)}`
}

/** The line by which a suite noticed. */
function evidence({ says }: Mutation, output: string): string {
  return (output.split('\n').find((line) => says.test(line)) ?? '').slice(0, 110)
}

const { values } = parseArgs({
  options: {
    help: { type: 'boolean', default: false },
    only: { type: 'string' },
    quick: { type: 'boolean', default: false },
    seed: { type: 'string', default: '1' },
    list: { type: 'boolean', default: false },
  },
})

const library = [
  '/usr/lib/x86_64-linux-gnu/libeatmydata.so',
  '/usr/lib/aarch64-linux-gnu/libeatmydata.so',
].find((path) => existsSync(path))

function chosen(): Mutation[] {
  const all = library === undefined ? mutations : [...mutations, eatmydata(library)]
  const { only, quick } = values
  return all.filter(({ name, isQuick }) =>
    only === undefined ? !quick || isQuick === true : name.includes(only),
  )
}

/** @returns whether all were caught, and nothing else */
async function torture(): Promise<boolean> {
  const copy = new Copy()
  process.once('exit', () => {
    for (const pid of living) process.kill(pid, 'SIGTERM')
    copy.remove()
  })
  const obstacle = noPowerCuts('ext4')
  const counts = { passed: 0, failed: 0, skipped: 0 }
  const tell = (name: string, problem: string | undefined, about: string) => {
    if (problem === undefined) counts.passed++
    else counts.failed++
    console.log(`${problem === undefined ? 'ok    ' : 'not ok'} ${name.padEnd(52)} ${problem ?? about}`)
  }
  console.log(`mutants: seed ${values.seed}`)
  const controls = new Set<Hunter>()
  for (const mutation of chosen()) {
    const hunter = hunterOf(mutation)
    if (hunter.needsPowerCuts === true && obstacle !== undefined) {
      counts.skipped++
      console.log(`skip   ${mutation.name.padEnd(52)} ${obstacle}`)
      continue
    }
    controls.add(hunter)
    const restore = copy.apply(mutation.edits)
    const verdict = await hunt(hunter, copy, values.seed)
    restore()
    const about = `${verdict.seconds.toFixed(0).padStart(3)} s, ${hunter.file}: ${evidence(mutation, verdict.output)}`
    tell(mutation.name, missed(mutation, verdict), about)
  }
  // The quick form is a part of a run that tries the unmodified build anyway.
  for (const hunter of values.quick ? [] : controls) {
    const { code, output, seconds } = await hunt(hunter, copy, values.seed)
    const problem = code === 0 ? undefined : `false alarm (${code}): ${output.trimEnd().slice(-500)}`
    const name = `nothing is wrong: ${[hunter.file, ...hunter.args].join(' ')}`
    tell(name, problem, `${seconds.toFixed(0).padStart(3)} s`)
  }
  const skipped = counts.skipped === 0 ? '' : `, ${counts.skipped} skipped`
  console.log(`${counts.passed} passed, ${counts.failed} failed${skipped}`)
  return counts.failed === 0 && counts.passed > 0
}

for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const) {
  process.once(signal, () => process.exit(code))
}
if (values.help) console.log(help)
else if (values.list) for (const { name, hunter } of chosen()) console.log(`${name.padEnd(52)} ${hunter}`)
else process.exitCode = (await torture()) ? 0 : 1
