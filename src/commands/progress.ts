import { note } from './command.js'
import { onHangup } from './hangup.js'
import { formatBytes, formatDuration } from './table.js'

/** Milliseconds between two words about how far it is: on a terminal, and elsewhere. */
const terminalInterval = 200
const pipeInterval = 5000

/** How far a long command is: a line that changes on a terminal, a line now and then in a pipe. */
export interface Progress {
  /** Says it, unless something was said a moment ago. */
  show(line: () => string): void
  /** Clears the line. */
  end(): void
}

/** Tells on standard error, beside the answer. */
export function showProgress(): Progress {
  const isTerminal = process.stderr.isTTY === true
  const interval = isTerminal ? terminalInterval : pipeInterval
  let shownAt = performance.now()
  let isShown = false
  return {
    show(line) {
      if (performance.now() - shownAt < interval) return
      shownAt = performance.now()
      isShown = true
      if (isTerminal) process.stderr.write(`\r\x1b[K${line()}`)
      else note(line())
    },
    end() {
      if (isTerminal && isShown) process.stderr.write('\r\x1b[K')
    },
  }
}

/** Bytes done of all, how fast, and how long the rest takes at that. @param milliseconds since the beginning */
export function describeProgress(done: number, all: number, milliseconds: number): string {
  const rate = (done / Math.max(1, milliseconds)) * 1000
  const left = rate > 0 ? formatDuration(((all - done) / rate) * 1000) : '?'
  return `${formatBytes(done)} of ${formatBytes(all)}, ${formatBytes(rate)}/s, ${left} left`
}

/** Runs a task that Ctrl-C, SIGTERM and the end of its terminal tell to stop. */
export async function interruptible<T>(task: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const stop = new AbortController()
  const onSignal = () => stop.abort()
  process.on('SIGINT', onSignal)
  process.on('SIGTERM', onSignal)
  const endHangup = onHangup({ terminalGone: onSignal })
  try {
    return await task(stop.signal)
  } finally {
    process.off('SIGINT', onSignal)
    process.off('SIGTERM', onSignal)
    endHangup()
  }
}
