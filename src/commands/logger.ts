import { type LogFn, type Logger, pino } from 'pino'
import type { Config } from '../../config/schema.js'
import { withTyped } from './own-name.js'

/** Standard error: standard output has the three lines of the start, and nothing else. */
const stderr = 2

/**
 * Bytes written at once: several processes share the stream, and a pipe takes this many without mixing them
 * with another's.
 */
const wholeWrite = 4096

/** Milliseconds that the last lines of a log have to be taken. */
const flushPatience = 2000

/** The log: JSON lines, or text for people when they look at it on a terminal. */
export async function createLogger(log: Config['log'], worker: string | undefined): Promise<Logger> {
  const isPretty = log.format === 'pretty' || (log.format === 'auto' && process.stderr.isTTY === true)
  const options = { level: log.level, base: worker === undefined ? null : { worker }, hooks: { logMethod } }
  if (isPretty) {
    const { default: pretty } = await import('pino-pretty')
    return pino(
      options,
      pretty({ destination: stderr, sync: true, ignore: 'pid,hostname', singleLine: true }),
    )
  }
  const destination = pino.destination({ dest: stderr, sync: false, maxWrite: wholeWrite })
  // Whoever read the log may have gone, as a terminal does: that must not end what is at work.
  destination.on('error', () => undefined)
  return pino(options, destination)
}

/** Commands in messages of the log can be typed, too. */
function logMethod(this: Logger, args: Parameters<LogFn>, method: LogFn): void {
  const at = args.length - 1
  const message: unknown = args[at]
  if (typeof message === 'string') args[at] = withTyped(message)
  method.apply(this, args)
}

/**
 * Puts into the log what Node says by itself, on lines of its own, otherwise: its warnings, and the error that ends the
 * process.
 */
export function takeNodesWords(logger: Logger): void {
  process.removeAllListeners('warning')
  process.on('warning', (warning) => logger.warn({ err: warning }, 'a warning of Node'))
  process.on('uncaughtException', (error) => {
    logger.fatal({ err: error }, 'a bug ends this process')
    void flushLogger(logger).then(() => process.exit(1))
  })
}

/** Writes out what a logger still holds; for the moment before the process ends. */
export function flushLogger(logger: Logger): Promise<void> {
  return new Promise((resolve) => {
    // Where nobody takes it any more, as a terminal that has gone, nothing calls back.
    const timer = setTimeout(resolve, flushPatience)
    logger.flush(() => {
      clearTimeout(timer)
      resolve()
    })
  })
}
