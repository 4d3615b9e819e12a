import { statSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import type { Logger } from 'pino'
import type { Config } from '../../config/schema.js'
import { dataPaths, largestQuickLook } from '../../storage/data-folder.js'
import { IndexDamagedError } from '../../storage/errors.js'
import type { LastStop } from '../../storage/integrity-store.js'
import { createStartCheck, type Stores } from '../stores.js'
import { tellFindings } from './verifying.js'

/** Milliseconds that a start waits for its check; what is left of it is done while the server serves. */
const patience = 1000

/**
 * After a stop that was not orderly, looks at what it can have left. A server that begins is noted as not stopped, until
 * the returned function is called. A full disk does not keep it from starting: pulls go on.
 * @param onDamage hears that the index is damaged
 */
export async function checkAfterCrash(
  stores: Stores,
  config: Config,
  logger: Logger,
  onDamage: (error: Error) => void,
): Promise<() => Promise<void>> {
  const last = await begin(stores, logger)
  if (last.isOrderly) return () => end(stores, logger)
  const stop = new AbortController()
  let isDone = false

  async function check(): Promise<void> {
    try {
      const report = await createStartCheck(stores, 'primary').run(last.lastBlob, stop.signal)
      isDone = !report.isInterrupted
      tellFindings(report, logger)
      const { blobs, problems, milliseconds } = report
      const about = { blobs, problems, interrupted: report.isInterrupted, ms: Math.round(milliseconds) }
      logger.info(about, 'the last stop was not orderly: looked at the newest blobs')
    } catch (error) {
      logger.error({ err: error }, 'what the last stop has left could not be looked at')
    }
  }

  /** A smaller index was read through before the start. */
  async function checkIndex(): Promise<void> {
    const { database } = dataPaths(config.data)
    try {
      if (statSync(database).size <= largestQuickLook) return
      const [fault] = await stores.integrity.checkIndex('quick')
      if (fault !== undefined) onDamage(new IndexDamagedError(database, fault))
    } catch (error) {
      logger.error({ err: error }, 'the index could not be looked at')
    }
  }

  const checking = check()
  void checkIndex()
  await Promise.race([checking, delay(patience, undefined, { ref: false })])
  return async () => {
    stop.abort()
    await checking
    if (isDone) await end(stores, logger)
  }
}

async function begin({ integrity }: Stores, logger: Logger): Promise<LastStop> {
  try {
    return await integrity.beginService()
  } catch (error) {
    logger.warn({ err: error }, 'the start could not be noted in the index')
    return { isOrderly: false, lastBlob: 0 }
  }
}

async function end({ integrity }: Stores, logger: Logger): Promise<void> {
  try {
    await integrity.endService()
  } catch (error) {
    logger.warn(
      { err: error },
      'the stop could not be noted in the index: the next start looks at what it left',
    )
  }
}
