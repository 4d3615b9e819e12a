import cluster, { type Worker } from 'node:cluster'
import { readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import type { Logger } from 'pino'
import { AggregatorRegistry, type PrometheusContentType } from 'prom-client'
import { authMode, threadpoolSize } from '../../config/load.js'
import type { Config } from '../../config/schema.js'
import type { AccessStore } from '../../storage/access-store.js'
import { type DataFolder, dataPaths, takeDataFolder } from '../../storage/data-folder.js'
import { KeyStore } from '../../storage/key-store.js'
import { createUploads, openStores, type Stores } from '../app.js'
import { Passwords } from '../auth/passwords.js'
import { collectMetrics } from '../http/metrics.js'
import type { UploadService } from '../registry/uploads.js'
import { version } from '../version.js'
import { createLogger, flushLogger } from './logger.js'
import type { FromWorker, ToWorker } from './messages.js'
import { startWorker } from './serve-worker.js'

/** Threads for file operations in each process: syncs wait for the disk, and others must not wait for them. */
const fileThreads = 16

/** Milliseconds before a worker that died is replaced. */
const respawnPause = 1000

/** Milliseconds between two rounds of expiry, at the most and at the least. */
const longestExpiryInterval = 600_000
const shortestExpiryInterval = 500

/** Something that stops the server from starting, in a sentence for the person who started it. */
export class StartError extends Error {
  override readonly name = 'StartError'
}

/**
 * Runs the registry until it is told to stop (SIGTERM, SIGINT).
 * @returns the exit code
 * @throws StartError, DataFolderInUseError, NewerSchemaError
 */
export async function serve(config: Config): Promise<number> {
  const logger = createLogger(config.log, undefined)
  const folder = await takeDataFolder(config.data)
  if (folder.warning !== undefined) logger.warn(folder.warning)
  const stores = await openStores(config, (error) => {
    logger.fatal({ err: error }, 'the index cannot be written')
    void flushLogger(logger).then(() => process.exit(70))
  })
  if (authMode(config) === 'token') await prepareAccess(config, stores, logger)
  // Nobody else runs on this folder: whoever held a turn is dead.
  await stores.metadata.releaseTurns('')
  const stopExpiry = startExpiry(createUploads(config, stores, 'primary'), config, logger)
  const server =
    config.workers === 1
      ? await startWorker(config, { logger, processName: 'only' })
      : await startWorkers(config, stores, logger)
  announce(config, server.address)
  await stopSignal(logger)
  await server.stop()
  return close(logger, stores, folder, stopExpiry)
}

/** Makes what logins need: a signing key, and the first admin where the configuration names a password. */
async function prepareAccess(config: Config, stores: Stores, logger: Logger): Promise<void> {
  await new KeyStore(dataPaths(config.data).keys).prepare(Date.now())
  const { passwordFile } = config.admin
  if (passwordFile !== undefined) await addAdmin(stores.access, passwordFile, logger)
  if ((await stores.access.countUsers()) === 0) {
    logger.warn('there are no users, so nobody can log in: type "boathouse user add NAME --admin"')
  }
}

async function addAdmin(access: AccessStore, passwordFile: string, logger: Logger): Promise<void> {
  if ((await access.findUser('admin')) !== undefined) return
  const password = (await readFile(passwordFile, 'utf8')).replace(/\r?\n$/, '')
  const passwords = new Passwords()
  const passwordHash = await passwords.hash(password)
  await passwords.close()
  if (await access.addUser({ name: 'admin', passwordHash, isAdmin: true }, Date.now())) {
    logger.info({ audit: 'user added', user: 'admin' }, 'made the user admin')
  }
}

async function close(
  logger: Logger,
  stores: Stores,
  folder: DataFolder,
  stopExpiry: () => Promise<void>,
): Promise<number> {
  await stopExpiry()
  await stores.close()
  folder.release()
  logger.info('stopped')
  await flushLogger(logger)
  return 0
}

/** The three lines that a person who starts the registry wants to see. */
function announce(config: Config, address: { readonly host: string; readonly port: number }): void {
  const scheme = config.tls === undefined ? 'http' : 'https'
  const host = address.host.includes(':') ? `[${address.host}]` : address.host
  const name = host === '0.0.0.0' || host === '[::]' || host === '127.0.0.1' ? 'localhost' : host
  const image = `${name}:${address.port}/hello:1`
  process.stdout.write(
    `Boathouse ${version} is listening on ${scheme}://${host}:${address.port}\n` +
      `Data is in ${config.data}\n` +
      `Push a first image: docker tag IMAGE ${image} && docker push ${image}\n`,
  )
}

/** Resolves with the first signal; a second one ends the process at once, which loses nothing acknowledged. */
function stopSignal(logger: Logger): Promise<void> {
  return new Promise((resolve) => {
    let isStopping = false
    const onSignal = (signal: NodeJS.Signals) => {
      if (isStopping) process.exit(1)
      isStopping = true
      logger.info({ signal }, 'stopping')
      resolve()
    }
    process.on('SIGTERM', onSignal)
    process.on('SIGINT', onSignal)
  })
}

/** Ends idle uploads from time to time. */
function startExpiry(uploads: UploadService, config: Config, logger: Logger): () => Promise<void> {
  const { expireAfter } = config.uploads
  const interval = Math.max(shortestExpiryInterval, Math.min(expireAfter / 4, longestExpiryInterval))
  let running: Promise<void> = Promise.resolve()
  const expire = async () => {
    try {
      const count = await uploads.expireUploads(Date.now() - expireAfter)
      if (count > 0) logger.info({ count }, 'expired idle uploads')
    } catch (error) {
      logger.error({ err: error }, 'idle uploads could not be expired')
    }
  }
  running = expire()
  const timer = setInterval(() => {
    running = running.then(expire)
  }, interval)
  return async () => {
    clearInterval(timer)
    await running
  }
}

/** Starts the worker processes; the returned address is where they all listen. */
async function startWorkers(config: Config, stores: Stores, logger: Logger) {
  const aggregator = new AggregatorRegistry<PrometheusContentType>()
  let isStopping = false
  cluster.setupPrimary({
    exec: fileURLToPath(new URL('./worker-main.js', import.meta.url)),
    args: [],
  })

  function start(): Worker {
    const worker = cluster.fork({ UV_THREADPOOL_SIZE: threadpoolSize() ?? fileThreads })
    // A message to a worker that has just died: its exit says all there is to say.
    worker.on('error', (error) => logger.debug({ err: error }, 'a worker could not be told'))
    worker.on('message', (message: FromWorker) => {
      if (message.type === 'hello') {
        worker.send({ type: 'start', config, name: processName(worker) } satisfies ToWorker)
      }
      if (message.type === 'metrics') void answerMetrics(worker, message.id)
    })
    return worker
  }

  async function answerMetrics(worker: Worker, id: number): Promise<void> {
    try {
      worker.send({ type: 'metrics', id, ...(await collectMetrics(aggregator)) } satisfies ToWorker)
    } catch (error) {
      logger.error({ err: error }, 'metrics could not be collected')
      if (worker.isConnected())
        worker.send({ type: 'metrics', id, contentType: 'text/plain', text: '' } satisfies ToWorker)
    }
  }

  const workers = Array.from({ length: config.workers }, start)
  const addresses = await Promise.all(workers.map(listening))

  cluster.on('exit', (worker, code, signal) => {
    if (isStopping) return
    logger.error({ worker: worker.id, code, signal }, 'a worker died: starting another')
    void stores.metadata
      .releaseTurns(`${processName(worker)}:`)
      .catch((error: unknown) => logger.error({ err: error }, 'turns could not be given back'))
    setTimeout(() => {
      if (!isStopping) start()
    }, respawnPause)
  })

  return {
    address: { host: config.listen.host, port: addresses[0]?.port ?? config.listen.port },
    async stop() {
      isStopping = true
      const running = Object.values(cluster.workers ?? {}).filter((worker) => worker !== undefined)
      await Promise.all(running.map(stopWorker))
    },
  }
}

function processName(worker: Worker): string {
  return `worker-${worker.id}`
}

/** @throws StartError when the worker cannot listen */
function listening(worker: Worker): Promise<{ port: number }> {
  return new Promise((resolve, reject) => {
    worker.once('listening', (address) => resolve(address))
    worker.on('message', (message: FromWorker) => {
      if (message.type === 'failed') reject(new StartError(message.message))
    })
    worker.once('exit', () => reject(new StartError('a worker ended before it could listen: see the log')))
  })
}

function stopWorker(worker: Worker): Promise<void> {
  return new Promise((resolve) => {
    worker.once('exit', () => resolve())
    if (worker.isConnected()) worker.send({ type: 'stop' } satisfies ToWorker)
  })
}
