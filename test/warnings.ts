import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { isMainThread } from 'node:worker_threads'

/*
 * Loaded into every test file's process, before the file. What the runtime warns of there, or in a process that the file
 * started, makes the file fail: a file handle that the garbage collector closed, listeners that pile up, what is deprecated.
 */

const seen: string[] = []

/** The warnings of the runtime in what a Node process said on standard error, one line each. */
export function warningsIn(stderr: string): string[] {
  return stderr.match(/^\(node:\d+\) .+$/gm) ?? []
}

/** Makes the test file fail at its end for each warning in what a process that it started said. */
export function failOnWarnings(stderr: string): void {
  seen.push(...warningsIn(stderr))
}

/** Collects garbage now, so that what was forgotten is warned of before the end. */
function collectGarbage(): void {
  setFlagsFromString('--expose-gc')
  const collect: unknown = runInNewContext('gc')
  if (typeof collect === 'function') collect()
}

if (isMainThread) {
  process.on('warning', ({ name, message }) => {
    // A test sets it on purpose, to show that it opens nothing.
    if (!message.includes('NODE_TLS_REJECT_UNAUTHORIZED')) seen.push(`${name}: ${message}`)
  })
  let collected = false
  process.on('beforeExit', () => {
    if (collected) return
    collected = true
    collectGarbage()
    // The news of it comes with a later turn of the loop, which this keeps going.
    setTimeout(() => undefined, 50)
  })
  process.on('exit', () => {
    if (seen.length === 0) return
    const shown = [...new Set(seen.map((line) => line.replaceAll(/\d+/g, 'N')))].slice(0, 20)
    process.stderr.write(
      `${seen.length} warnings of the runtime, each of which is a fault:\n${shown.join('\n')}\n`,
    )
    process.exitCode = 1
  })
}
