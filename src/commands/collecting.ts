import type { Logger } from 'pino'
import type { Config } from '../../config/schema.js'
import type { CollectionReport, GarbageCollector } from '../registry/gc.js'
import { ClockWatch } from './clock-watch.js'

/** Milliseconds between two looks for files without a row, at the most; with a short grace they come earlier. */
const longestLook = 24 * 3_600_000
const gracesPerLook = 10

/** Collects garbage now and from time to time, until the returned function is called. */
export function startCollecting(
  collector: GarbageCollector,
  config: Config,
  logger: Logger,
): () => Promise<void> {
  const { interval, grace, untagged } = config.gc
  const clock = new ClockWatch()
  const evenTime = Math.max(grace, untagged ?? 0)
  const lookEvery = Math.min(longestLook, grace * gracesPerLook)
  const stop = new AbortController()
  let lookAt = Number.NEGATIVE_INFINITY
  let timer: NodeJS.Timeout | undefined
  let running = round()

  async function round(): Promise<void> {
    const isLook = performance.now() >= lookAt
    try {
      if (clock.evenFor() < evenTime) {
        logger.warn('the system clock has jumped: nothing is collected for the time of the grace')
        return again()
      }
      const report = await collector.collect({ strangers: isLook ? 'some' : 'no', signal: stop.signal })
      if (report !== undefined && isLook) lookAt = performance.now() + lookEvery
      tell(report, logger)
    } catch (error) {
      logger.error({ err: error }, 'garbage could not be collected')
    }
    again()
  }

  function again(): void {
    if (stop.signal.aborted) return
    timer = setTimeout(() => {
      running = round()
    }, interval)
  }

  return async () => {
    stop.abort()
    clearTimeout(timer)
    await running
  }
}

function tell(report: CollectionReport | undefined, logger: Logger): void {
  if (report === undefined) {
    logger.info('garbage is being collected by a command')
    return
  }
  const { repositories, blobs, bytes, milliseconds, strangersLeft } = report
  let manifests = 0
  for (const one of repositories.values()) manifests += one.manifests
  const line = { manifests, blobs, bytes, ms: Math.round(milliseconds) }
  if (manifests + blobs > 0) logger.info(line, 'collected garbage')
  else logger.debug(line, 'collected garbage')
  if (strangersLeft > 0) {
    logger.warn(
      { files: strangersLeft },
      'there are too many files that the index does not know: is it an older index? "boathouse gc --unknown" removes them',
    )
  }
}
