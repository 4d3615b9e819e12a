import { Cron } from 'croner'
import type { Logger } from 'pino'
import type { Config } from '../../config/schema.js'
import type { TagStore } from '../../storage/tag-store.js'
import { longestSilence } from '../registry/lived-time.js'
import type { Retention } from '../registry/retention.js'

/** Milliseconds between two notes that the server runs. */
const noteInterval = 3_600_000

/**
 * Removes tags by the setting retention.schedule, and notes that the server runs, until the returned function is
 * called.
 */
export function startRetaining(
  retention: Retention,
  tags: TagStore,
  config: Config,
  logger: Logger,
): () => Promise<void> {
  let isStopped = false
  const note = async () => {
    try {
      await tags.noteRunning(Date.now(), longestSilence)
    } catch (error) {
      logger.error({ err: error }, 'it could not be noted that the server runs')
    }
  }
  let running = note()
  const notes = setInterval(() => {
    running = running.then(note)
  }, noteInterval)

  async function round(): Promise<void> {
    try {
      for await (const repository of retention.repositories()) {
        if (isStopped) return
        const doomed = (await retention.judge(repository)).filter(({ isKept }) => !isKept)
        const removed = await retention.remove(
          repository,
          doomed.map(({ facts }) => facts),
        )
        if (removed.length === 0) continue
        const shown = removed.slice(0, 100)
        logger.info({ audit: 'retention', repository, count: removed.length, tags: shown }, 'removed tags')
      }
    } catch (error) {
      logger.error({ err: error }, 'tags could not be removed by the rules of retention')
    }
  }

  const { rules, schedule } = config.retention
  const stop = rules.length === 0 ? () => undefined : repeat(schedule, () => (running = running.then(round)))
  return async () => {
    isStopped = true
    clearInterval(notes)
    stop()
    await running
  }
}

/** Runs something by a cron expression, or so many milliseconds after it ended. @returns what ends it */
function repeat(schedule: number | string, run: () => Promise<void>): () => void {
  if (typeof schedule === 'string') {
    const cron = new Cron(schedule, { mode: '5-or-6-parts', unref: true, protect: true }, run)
    return () => cron.stop()
  }
  let timer: NodeJS.Timeout
  const wait = () => {
    timer = setTimeout(() => void run().then(wait), schedule)
  }
  wait()
  return () => clearTimeout(timer)
}
