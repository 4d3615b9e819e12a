import { writeFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { type Run, startCommand } from './commands.js'
import { scratchDir } from './harness.js'

/* The script that runs all tests for a change, held to small test files that fail as they are told to. */

const root = fileURLToPath(new URL('../..', import.meta.url))
const fails = "t.test('inside', async (t) => { t.ok(true); t.equal(1, 2, 'the numbers agree') })"
const passes = "t.test('inside', async (t) => t.ok(true))"

/** A test file that leaves a mark when it runs, and then does `first`; when the mark is there, it does `later`. */
function testFile(t: Test, name: string, first: string, later: string): string {
  const mark = join(scratchDir(t), `${name}.ran`)
  const file = join(scratchDir(t), `${name}.test.mjs`)
  writeFileSync(
    file,
    `import { existsSync, writeFileSync } from 'node:fs'
import t from 'tap'
if (existsSync(${JSON.stringify(mark)})) {
  ${later}
} else {
  writeFileSync(${JSON.stringify(mark)}, '')
  ${first}
}
`,
  )
  return relative(root, file)
}

/** What `.ci/tests` makes of these files. */
function runTests(...files: string[]): Promise<Run> {
  return startCommand([], { command: ['bash', join(root, '.ci/tests'), 'npx', 'tap', ...files] }).done
}

t.test('a test file that fails once and passes alone is named as flaky, and has passed', async (t) => {
  const once = testFile(t, 'once', fails, passes)
  const fine = testFile(t, 'fine', passes, passes)
  const run = await runTests(once, fine)
  t.equal(run.code, 0, run.stdout)
  t.match(run.stdout, `flaky: ${once}\n`)
  t.match(run.stdout, /^ +not ok \d+ - the numbers agree\n(.*\n)*.*compare: ===/m, 'with its first failure')
  t.notMatch(run.stdout, /(flaky|twice): .*fine/)
  t.match(run.stdout, /\n3 passed, 0 failed\n$/)
})

t.test('one that fails twice has failed, whatever else passes when it runs again', async (t) => {
  const once = testFile(t, 'once', fails, passes)
  const always = testFile(t, 'always', fails, fails)
  const run = await runTests(once, always)
  t.equal(run.code, 1)
  t.match(run.stdout, `flaky: ${once}\n`)
  t.match(run.stdout, `failed twice: ${always}\n`)
  t.match(run.stdout, /\n3 passed, 1 failed\n$/)
})

t.test('one that crashes is named with what it said, once or twice', async (t) => {
  const once = testFile(t, 'once', 'process.exit(3)', passes)
  const always = testFile(t, 'always', 'process.exit(3)', "throw new Error('no test at all')")
  const run = await runTests(once, always)
  t.equal(run.code, 1)
  t.match(run.stdout, new RegExp(`flaky: ${once}\n( .*\n)*    not ok \\d+ - ${once}`))
  t.match(run.stdout, new RegExp(`failed twice: ${always}\n`))
  t.match(run.stdout, /no test at all/)
  t.match(run.stdout, /, 1 failed\n$/)
})

t.test('a command that fails without a test file to blame has failed', async (t) => {
  const run = await startCommand([], {
    command: ['bash', join(root, '.ci/tests'), 'sh', '-c', 'echo no such thing; exit 2'],
  }).done
  t.equal(run.code, 1)
  t.match(run.stdout, /no such thing\n0 passed, 1 failed\n$/)
})
