import { Cron } from 'croner'
import type { Logger } from 'pino'
import type { Config } from '../../config/schema.js'
import type { OpenMender } from '../mending.js'
import type { Verifier } from '../registry/verify.js'
import type { VerificationReport } from '../registry/verify-report.js'
import { describeFinding } from './verify.js'

/** Findings that are logged one by one. */
const mostLogged = 100

/**
 * Verifies what is stored by the setting verify.schedule, until the returned function is called; what was interrupted
 * goes on at once, and what was missed because no server ran is made up for.
 */
export function startVerifying(
  { verifier, mender }: { verifier: Verifier; mender: OpenMender | undefined },
  config: Config,
  logger: Logger,
): () => Promise<void> {
  const { rate, schedule } = config.verify
  if (schedule === 'never') return async () => undefined
  const stop = new AbortController()
  let running: Promise<void> = Promise.resolve()

  async function round(): Promise<void> {
    try {
      const report = await verifier.verify({ rate, mender, repositories: 'all', signal: stop.signal })
      tell(report, logger)
    } catch (error) {
      logger.error({ err: error }, 'what is stored could not be verified')
    }
  }

  const cron = new Cron(schedule, { mode: '5-or-6-parts', unref: true, protect: true }, () => {
    running = round()
    return running
  })
  running = verifier
    .isOverdue(cron.previousRuns(1)[0]?.getTime())
    .catch(() => false) // the next round says what is wrong
    .then((isOverdue) => (isOverdue ? cron.trigger() : undefined))
  return async () => {
    cron.stop()
    stop.abort()
    await running
    await mender?.close()
  }
}

function tell(report: VerificationReport | undefined, logger: Logger): void {
  if (report === undefined) {
    logger.info('what is stored is being verified by a command')
    return
  }
  tellFindings(report, logger)
  for (const fault of report.indexFaults) {
    logger.error({ fault }, 'the index is damaged: stop the server, then "boathouse restore --index" helps')
  }
  const { blobs, bytes, manifests, problems, mended, healed, orphans, isInterrupted, milliseconds } = report
  logger.info(
    {
      blobs,
      bytes,
      manifests,
      problems,
      mended,
      healed,
      orphans,
      interrupted: isInterrupted,
      ms: Math.round(milliseconds),
    },
    'verified what is stored',
  )
}

/** Writes what was found to the log, a line each. */
export function tellFindings({ findings, problems }: VerificationReport, logger: Logger): void {
  for (const finding of findings.slice(0, mostLogged)) {
    const { digest, tags, isMended, isUnneeded } = finding
    const about = { digest, tags: tags.map(({ repository, tag }) => `${repository}:${tag}`) }
    if (isMended || isUnneeded) logger.warn(about, describeFinding(finding))
    else logger.error(about, describeFinding(finding))
  }
  if (problems > mostLogged) {
    logger.error({ problems }, 'there is more that is damaged: "boathouse verify" names it')
  }
}
