import cluster from 'node:cluster'
import type { Config } from '../../config/schema.js'
import type { MetricsText } from '../app.js'
import { shareMetrics } from '../http/metrics.js'
import { onHangup } from './hangup.js'
import { createLogger, flushLogger, takeNodesWords } from './logger.js'
import type { FromWorker, ToWorker } from './messages.js'
import { rememberSettings } from './own-name.js'
import { startWorker } from './serve-worker.js'
import { describeStartFailure } from './start-failure.js'

/*
 * A worker process: it is told its configuration by the primary and serves until it is told to stop. When the
 * primary dies the channel breaks and the worker ends with it: the next server must find the folder free.
 */
const waiting = new Map<number, (metrics: MetricsText) => void>()
let lastId = 0
let stop: (() => Promise<void>) | undefined

function tell(message: FromWorker): void {
  process.send?.(message, undefined, undefined, () => undefined) // the primary may be gone already
}

/** Any worker may be asked for the metrics of all. */
function askMetrics(): Promise<MetricsText> {
  const id = ++lastId
  return new Promise((resolve) => {
    waiting.set(id, resolve)
    tell({ type: 'metrics', id })
  })
}

async function start(config: Config, name: string): Promise<void> {
  rememberSettings(undefined, config.data)
  const logger = await createLogger(config.log, name)
  takeNodesWords(logger)
  try {
    const worker = await startWorker(config, { logger, processName: name, collectMetrics: askMetrics })
    stop = async () => {
      await worker.stop()
      await flushLogger(logger)
      process.exit(0)
    }
  } catch (error) {
    tell({ type: 'failed', message: describeStartFailure(error, config) })
    await flushLogger(logger)
    process.disconnect?.()
    process.exit(1)
  }
}

process.on('message', (message: ToWorker) => {
  switch (message.type) {
    case 'start':
      void start(message.config, message.name)
      break
    case 'stop':
      void stop?.()
      break
    case 'metrics':
      waiting.get(message.id)?.(message)
      waiting.delete(message.id)
      break
  }
})
// What cannot be said to a primary that has just died is no failure: the end of the channel follows, and is ours.
cluster.worker?.on('error', () => undefined)
process.on('SIGINT', () => undefined) // a terminal sends it to all: the primary tells us
onHangup({ terminalGone: () => undefined }) // the same when a terminal is closed
process.on('SIGTERM', () => void stop?.())
shareMetrics()
tell({ type: 'hello' })
