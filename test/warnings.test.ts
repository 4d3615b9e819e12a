import { execFile } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { scratchDir } from './harness.js'
import { warningsIn } from './warnings.js'

/* What the runtime warns of in a test makes the test fail. */

const loaded = fileURLToPath(new URL('./warnings.js', import.meta.url))

/** How a file of this code ends that is loaded as tests are. Not by the harness, which would take its warnings for ours. */
function runFile(t: Test, code: string): Promise<{ code: number; stderr: string }> {
  const file = join(scratchDir(t), 'file.mjs')
  writeFileSync(file, code)
  return new Promise((resolve) => {
    const child = execFile(process.execPath, [`--import=${loaded}`, file], (_error, _stdout, stderr) =>
      resolve({ code: child.exitCode ?? -1, stderr }),
    )
  })
}

t.test('S104: a test file that leaves a file handle to the garbage collector fails', async (t) => {
  const opens = (then: string) =>
    `import { open } from 'node:fs/promises'\nawait (async () => { const file = await open('/dev/null'); ${then} })()\n`
  const run = await runFile(t, opens('void file'))
  t.equal(run.code, 1, run.stderr)
  t.match(
    run.stderr,
    /each of which is a fault:\n(.*\n)*Warning: Closing file descriptor N on garbage collection/,
  )

  const closes = await runFile(t, opens('await file.close()'))
  t.equal(closes.code, 0, closes.stderr)
})

t.test('S104: so does one in which listeners pile up, here or in what it started', async (t) => {
  const piles = "for (let n = 0; n < 11; n++) emitter.on('x', () => n)"
  const here = `import { EventEmitter } from 'node:events'\nconst emitter = new EventEmitter()\n${piles}\n`
  t.equal((await runFile(t, here)).code, 1)
  const there = `import { failOnWarnings } from ${JSON.stringify(loaded)}\nfailOnWarnings('{}\\n(node:7) Warning: x\\n')\n`
  t.equal((await runFile(t, there)).code, 1)
})

t.test('S104: warnings are told from lines of a log', (t) => {
  t.same(warningsIn('{"msg":"(node:1) no"}\n(node:12) MaxListenersExceededWarning: many\n'), [
    '(node:12) MaxListenersExceededWarning: many',
  ])
  t.end()
})
