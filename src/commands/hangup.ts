import { isatty } from 'node:tty'

/** Looked at when the process begins: later the terminal may have gone. */
const hasTerminal = [0, 1, 2].some((descriptor) => isatty(descriptor))

/**
 * Tells what SIGHUP means: that the terminal of this process has gone, or, where it never had one (systemd, a container,
 * nohup), nothing at all: Node forgets that nohup has told it to ignore the signal.
 * @returns what ends the listening
 */
export function onHangup(when: { terminalGone: () => void; otherwise?: () => void }): () => void {
  const listener = hasTerminal ? when.terminalGone : (when.otherwise ?? (() => undefined))
  process.on('SIGHUP', listener)
  return () => {
    process.off('SIGHUP', listener)
  }
}
