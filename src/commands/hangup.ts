import { closeSync, openSync } from 'node:fs'
import { isatty } from 'node:tty'

/** Standard input, output and error, as far as they are a terminal; looked at when the process begins: later it may have gone. */
const onTerminal = [0, 1, 2].filter((descriptor) => isatty(descriptor))

let isGone = false

/** Whether there was a terminal and it has gone: nothing more can be written to it. */
export function hasLostTerminal(): boolean {
  return isGone
}

/**
 * Puts the null device in the place of a terminal that has gone: the log could not be written for ever, and Node would crash at
 * its end when it wants to leave the terminal as it found it.
 */
function leaveTerminal(): void {
  isGone = true
  for (const descriptor of onTerminal) {
    try {
      closeSync(descriptor)
      openSync('/dev/null', 'r+') // takes the lowest number that is free
    } catch {
      // Where there is no such device nothing can be done.
    }
  }
}

/**
 * Tells what SIGHUP means: that the terminal of this process has gone, or, where it never had one (systemd, a container,
 * nohup), nothing at all: Node forgets that nohup has told it to ignore the signal.
 * @returns what ends the listening
 */
export function onHangup(when: { terminalGone: () => void; otherwise?: () => void }): () => void {
  const onTerminalGone = () => {
    if (!isGone) leaveTerminal()
    when.terminalGone()
  }
  const listener = onTerminal.length > 0 ? onTerminalGone : (when.otherwise ?? (() => undefined))
  process.on('SIGHUP', listener)
  return () => {
    process.off('SIGHUP', listener)
  }
}
