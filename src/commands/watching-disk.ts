import type { Logger } from 'pino'
import type { Config } from '../../config/schema.js'
import type { Stores } from '../stores.js'

/** Milliseconds between two looks at the disk. */
const interval = 1000

/**
 * Looks at the disk from time to time until the returned function is called: keeps the reserve filled, and tells the
 * log when pushes are refused for want of space, and when that is over.
 */
export function watchDisk(stores: Stores, config: Config, logger: Logger): () => Promise<void> {
  const { floor, reserve } = config.disk
  let isShort = false
  let isFailing = false
  let timer: NodeJS.Timeout | undefined
  let isStopped = false
  let running = look()

  async function look(): Promise<void> {
    try {
      const { bytes } = await stores.blobs.freeSpace()
      if (bytes < floor !== isShort) tell(bytes)
      isShort = bytes < floor
      await stores.reserve.fill(reserve, floor)
      isFailing = false
    } catch (error) {
      if (!isFailing) logger.error({ err: error }, 'the reserve on the disk could not be made')
      isFailing = true
    }
    if (isStopped) return
    timer = setTimeout(() => {
      running = look()
    }, interval)
  }

  function tell(free: number): void {
    if (free >= floor) logger.info({ free }, 'the disk has room again: pushes go on')
    else logger.warn({ free, floor }, 'the disk has less free space than disk.floor: pushes are refused')
  }

  return async () => {
    isStopped = true
    clearTimeout(timer)
    await running
  }
}
