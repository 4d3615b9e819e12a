import { Cron } from 'croner'
import type { Logger } from 'pino'
import type { Config } from '../../config/schema.js'
import type { VerificationReport, Verifier } from '../registry/verify.js'
import { describeFinding } from './verify.js'

/** Findings that are logged one by one. */
const mostLogged = 100

/** Verifies what is stored by the setting verify.schedule, until the returned function is called. */
export function startVerifying(verifier: Verifier, config: Config, logger: Logger): () => Promise<void> {
  const { rate, schedule } = config.verify
  if (schedule === undefined) return async () => undefined
  const stop = new AbortController()
  let running: Promise<void> = Promise.resolve()

  async function round(): Promise<void> {
    try {
      const report = await verifier.verify({ rate, repositories: 'all', signal: stop.signal })
      tell(report, logger)
    } catch (error) {
      logger.error({ err: error }, 'what is stored could not be verified')
    }
  }

  const cron = new Cron(schedule, { mode: '5-or-6-parts', unref: true, protect: true }, () => {
    running = round()
    return running
  })
  return async () => {
    cron.stop()
    stop.abort()
    await running
  }
}

function tell(report: VerificationReport | undefined, logger: Logger): void {
  if (report === undefined) {
    logger.info('what is stored is being verified by a command')
    return
  }
  for (const finding of report.findings.slice(0, mostLogged)) {
    logger.error({ digest: finding.digest }, describeFinding(finding))
  }
  for (const fault of report.indexFaults) {
    logger.error({ fault }, 'the index is damaged: stop the server, then "boathouse restore --index" helps')
  }
  const { blobs, bytes, manifests, problems, healed, orphans, isInterrupted, milliseconds } = report
  logger.info(
    {
      blobs,
      bytes,
      manifests,
      problems,
      healed,
      orphans,
      interrupted: isInterrupted,
      ms: Math.round(milliseconds),
    },
    'verified what is stored',
  )
}
