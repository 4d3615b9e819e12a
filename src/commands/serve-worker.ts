import { unwatchFile, watchFile } from 'node:fs'
import type { AddressInfo } from 'node:net'
import type { Logger } from 'pino'
import type { Config } from '../../config/schema.js'
import { joinDataFolder } from '../../storage/data-folder.js'
import { IndexDamagedError } from '../../storage/errors.js'
import { type App, createApp, type MetricsText, readTls } from '../app.js'
import { exitCodes } from './exit-codes.js'
import { flushLogger } from './logger.js'

/** Milliseconds between two looks at the certificate's files. */
const certificateInterval = 2000

/** A registry that listens. */
export interface RunningWorker {
  /** Lets running requests end within the grace time, cuts off the others, and closes everything. */
  stop(): Promise<void>
  readonly address: { readonly host: string; readonly port: number }
}

/** What a worker is told. */
export interface WorkerOptions {
  readonly logger: Logger
  readonly processName: string
  readonly collectMetrics?: () => Promise<MetricsText>
}

/**
 * Starts the registry of one process on the configured address.
 * @throws when it cannot listen
 */
export async function startWorker(config: Config, options: WorkerOptions): Promise<RunningWorker> {
  const { logger } = options
  const lock = joinDataFolder(config.data)
  const app = await createApp(config, {
    ...options,
    onFatal: (error) => {
      const isDamaged = error instanceof IndexDamagedError
      const again = 'the index cannot be written: this process ends, a new one will try again'
      logger.fatal({ err: error }, isDamaged ? error.message : again)
      void flushLogger(logger).then(() =>
        process.exit(isDamaged ? exitCodes.indexDamaged : exitCodes.indexUnwritable),
      )
    },
  })
  await app.http.listen({ host: config.listen.host, port: config.listen.port, backlog: 1024 })
  const stopWatching = watchCertificate(app, config, logger)
  const address = app.http.server.address()
  return {
    address: {
      host: config.listen.host,
      port: isInternetAddress(address) ? address.port : config.listen.port,
    },
    async stop() {
      stopWatching()
      const timer = setTimeout(() => app.http.server.closeAllConnections(), config.timeouts.shutdown)
      await app.close()
      clearTimeout(timer)
      lock.release()
    },
  }
}

/** Takes up a new certificate when its files change; a bad one is reported and the old one stays. */
function watchCertificate(app: App, config: Config, logger: Logger): () => void {
  if (config.tls === undefined) return () => undefined
  const files = [config.tls.certificate, config.tls.key]
  const reload = async () => {
    try {
      const tls = await readTls(config)
      if (tls !== undefined) app.useCertificate(tls)
      logger.info('took up the new certificate')
    } catch (error) {
      logger.error({ err: error }, 'the new certificate cannot be used: the old one stays')
    }
  }
  for (const file of files) {
    watchFile(file, { interval: certificateInterval, persistent: false }, () => void reload())
  }
  return () => {
    for (const file of files) unwatchFile(file)
  }
}

function isInternetAddress(address: AddressInfo | string | null): address is AddressInfo {
  return typeof address === 'object' && address !== null
}
