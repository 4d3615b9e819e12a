import type { Logger } from 'pino'
import type { Config } from '../../config/schema.js'
import { dataPaths } from '../../storage/data-folder.js'
import { IndexDamagedError } from '../../storage/errors.js'
import { listSnapshots, removeOldSnapshots, takeSnapshot } from '../../storage/file-snapshots.js'

/**
 * Copies the index from time to time, until the returned function is called: at once when the last copy is older than
 * that, or when there is none.
 * @param onDamage hears that the index is damaged, which each copy finds out
 */
export function startSnapshots(
  config: Config,
  logger: Logger,
  onDamage: (error: Error) => void,
): () => Promise<void> {
  const { interval, keep } = config.snapshots
  if (keep === 0) return async () => undefined
  const { database, snapshots: folder } = dataPaths(config.data)
  let isStopped = false
  let timer: NodeJS.Timeout | undefined
  let running = begin()

  async function begin(): Promise<void> {
    const [last] = await listSnapshots(folder).catch(() => [])
    const age = last === undefined ? interval : Date.now() - last.madeAt
    if (age >= interval || age < 0) return round()
    schedule(interval - age)
    // A kill before the old ones were removed has left too many, or fewer are to be kept now.
    await removeOldSnapshots(folder, keep).catch((error: unknown) =>
      logger.error({ err: error }, 'old copies of the index could not be removed'),
    )
  }

  function schedule(pause: number): void {
    if (isStopped) return
    timer = setTimeout(() => {
      running = round()
    }, pause)
  }

  async function round(): Promise<void> {
    try {
      const made = await takeSnapshot({ database, folder, now: Date.now(), floor: config.disk.floor })
      if (made === undefined) logger.warn('the index was not copied: there is no room for it on the disk')
      else logger.debug({ snapshot: made.name }, 'copied the index')
      if (made !== undefined) await removeOldSnapshots(folder, keep)
    } catch (error) {
      if (error instanceof IndexDamagedError) onDamage(error)
      else logger.error({ err: error }, 'the index could not be copied')
    }
    schedule(interval)
  }

  return async () => {
    isStopped = true
    clearTimeout(timer)
    await running
    clearTimeout(timer)
  }
}
