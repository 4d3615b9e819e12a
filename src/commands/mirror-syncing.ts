import { setTimeout as delay } from 'node:timers/promises'
import { Cron } from 'croner'
import type { Logger } from 'pino'
import type { Config } from '../../config/schema.js'
import type { SyncReport } from '../mirror-sync-app.js'
import type { Stores } from '../stores.js'

/** Milliseconds between two looks at whether a sync that a command runs has ended. */
const busyPause = 1000

/** Failures of one sync that are logged one by one. */
const mostLogged = 100

/**
 * Lets mirrors fetch ahead by their schedules, one after the other, until the returned function is called. To be called
 * in one process of a server alone.
 */
export function startSyncing(stores: Stores, config: Config, logger: Logger): () => Promise<void> {
  const stop = new AbortController()
  const waiting = new Set<string>()
  let queue: Promise<void> = Promise.resolve()

  /** A mirror whose turn comes while it waits or is at work is not put in the queue twice. */
  function enqueue(name: string): void {
    if (waiting.has(name)) {
      logger.warn({ mirror: name }, 'a mirror still fetches ahead: this turn is left out')
      return
    }
    waiting.add(name)
    queue = queue.then(() => round(name)).finally(() => waiting.delete(name))
  }

  async function round(name: string): Promise<void> {
    try {
      for (const report of await syncInTurn(name)) tell(report, logger)
    } catch (error) {
      if (!stop.signal.aborted) logger.error({ err: error, mirror: name }, 'a mirror could not fetch ahead')
    }
  }

  /** Waits for the end of a sync that a command runs. */
  async function syncInTurn(name: string): Promise<readonly SyncReport[]> {
    const { syncMirrors } = await import('../mirror-sync-app.js')
    for (let tries = 0; !stop.signal.aborted; tries++) {
      const reports = await syncMirrors(config, stores, {
        mirrors: [name],
        signal: stop.signal,
        onProgress: () => undefined,
        onError: (error, what) => logger.error({ err: error }, what),
      })
      if (reports !== undefined) return reports
      if (tries === 0)
        logger.info({ mirror: name }, 'a mirror waits for the end of a sync that a command runs')
      await delay(busyPause, undefined, { signal: stop.signal })
    }
    return []
  }

  const crons = config.mirrors.flatMap(({ name, sync }) => {
    if (sync?.schedule === undefined) return []
    return [new Cron(sync.schedule, { mode: '5-or-6-parts', unref: true }, () => enqueue(name))]
  })
  return async () => {
    for (const cron of crons) cron.stop()
    stop.abort()
    await queue
  }
}

function tell(
  { mirror, images, fetchedBytes, isInterrupted, milliseconds }: SyncReport,
  logger: Logger,
): void {
  const failed = images.filter(({ state }) => state === 'failed')
  for (const { image, reason } of failed.slice(0, mostLogged)) {
    logger.warn({ mirror, image, reason }, 'an image could not be fetched ahead')
  }
  const complete = images.filter(({ state }) => state === 'complete').length
  const counts = { images: images.length, complete, failed: failed.length, bytes: fetchedBytes }
  logger.info(
    { mirror, ...counts, interrupted: isInterrupted, ms: Math.round(milliseconds) },
    'a mirror has fetched ahead',
  )
}
