import { setTimeout as delay } from 'node:timers/promises'
import type { Logger } from 'pino'
import { authMode, isOpenByDefault } from '../../config/load.js'
import type { Config } from '../../config/schema.js'
import { type DataFolder, dataPaths, notClosed, takeDataFolder } from '../../storage/data-folder.js'
import { IndexDamagedError } from '../../storage/errors.js'
import { closeBlobs } from '../../storage/file-owner.js'
import { KeyStore } from '../../storage/key-store.js'
import { isDecided } from '../auth/local-access.js'
import { createMender } from '../mending.js'
import type { UploadService } from '../registry/uploads.js'
import {
  createCollector,
  createRetention,
  createUploads,
  createVerifier,
  openStores,
  type Stores,
} from '../stores.js'
import { version } from '../version.js'
import { ClockWatch } from './clock-watch.js'
import { startCollecting } from './collecting.js'
import { exitCodes } from './exit-codes.js'
import { onHangup } from './hangup.js'
import { createLogger, flushLogger, takeNodesWords } from './logger.js'
import { startSyncing } from './mirror-syncing.js'
import { typed } from './own-name.js'
import { startRetaining } from './retaining.js'
import { startSnapshots } from './snapshotting.js'
import { checkAfterCrash } from './start-checking.js'
import { type StopStep, stopInOrder } from './stopping.js'
import { startVerifying } from './verifying.js'
import { watchCertificateTime } from './watching-certificate.js'
import { watchDisk } from './watching-disk.js'
import { WorkerPool } from './worker-pool.js'

/** Milliseconds between two rounds of expiry, at the most and at the least. */
const longestExpiryInterval = 600_000
const shortestExpiryInterval = 500

/** Milliseconds that what is at work at a stop has to end, beyond the time that requests have. */
const stopPatience = 60_000

/** Milliseconds that a start waits for blobs to be closed to others. */
const closingPatience = 1000

/** Milliseconds between two tries to give back what a dead worker held. */
const releasePause = 1000

/** What takes requests: the processes of a pool, or this one alone. */
interface Server {
  readonly address: { readonly host: string; readonly port: number }
  stop(): Promise<void>
}

/** What the primary process holds while the server runs. */
interface Primary {
  readonly folder: DataFolder
  readonly stores: Stores
  /** Whether anybody can push: where logins are wanted, there may be nobody yet who could. */
  readonly isOpen: boolean
}

/**
 * Runs the registry until it is told to stop (SIGTERM, SIGINT, or SIGHUP from its terminal).
 * @returns the exit code
 * @throws StartError, DataFolderInUseError, NewerSchemaError
 */
export async function serve(config: Config): Promise<number> {
  const logger = await createLogger(config.log, undefined)
  takeNodesWords(logger)
  let primary: Primary | undefined
  const pool =
    config.workers === 1
      ? undefined
      : new WorkerPool(config, logger, {
          onDeath: (name) => void releaseTurns(() => primary?.stores, `${name}:`, logger),
          onDamage: () => process.exit(exitCodes.indexDamaged),
        })
  try {
    primary = await takePrimary(config, logger)
    const { folder, stores, isOpen } = primary
    const stopCheck = await checkAfterCrash(stores, config, logger, (error) => endAtOnce(error, logger))
    const stopExpiry = startExpiry(createUploads(config, stores, 'primary'), config, logger)
    const server = await startServer(config, pool, logger)
    const stopCollecting = startCollecting(createCollector(config, stores, 'primary'), config, logger)
    const stopVerifying = startVerifying(createVerifying(config, stores, logger), config, logger)
    const stopSyncing = startSyncing(stores, config, logger)
    const stopRetaining = startRetaining(createRetention(config, stores), stores.tags, config, logger)
    const stopSnapshots = startSnapshots(config, logger, (error) => endAtOnce(error, logger))
    const stopWatching = watchDisk(stores, config, logger)
    const stopCertificate = watchCertificateTime(config, logger)
    announce(config, server.address, isOpen)
    await stopSignal(logger)
    const steps: StopStep[] = [
      ['requests', () => server.stop()],
      ['the look at the disk', stopWatching],
      ['the look at the certificate', stopCertificate],
      ['mirror sync', stopSyncing],
      ['the copy of the index', stopSnapshots],
      ['retention', stopRetaining],
      ['verification', stopVerifying],
      ['collection', stopCollecting],
      ['expiry', stopExpiry],
      ['the check of the start', stopCheck],
      ['the index', () => stores.close()],
    ]
    await stopInOrder(steps, config.timeouts.shutdown + stopPatience, (name) => endLate(name, pool, logger))
    folder.release()
    logger.info('stopped')
    await flushLogger(logger)
    return 0
  } catch (error) {
    pool?.kill()
    throw error
  }
}

/** Takes the data folder and puts in order what a server that was killed has left. */
async function takePrimary(config: Config, logger: Logger): Promise<Primary> {
  const folder = await takeDataFolder(config.data)
  for (const warning of folder.warnings) logger.warn(warning)
  await Promise.race([closeAllBlobs(config, logger), delay(closingPatience, undefined, { ref: false })])
  const stores = await openStores(config, (error) => endAtOnce(error, logger))
  const isOpen = await prepareOpenness(config, stores.access, logger)
  await stores.quotas.setQuotas(config.quotas)
  await stores.mirrors.settleRepositories(config.mirrors.map(({ name }) => name))
  // Nobody else serves this folder: whoever held a turn is dead, but for a sync that may be at work.
  await stores.metadata.releaseTurns('')
  await stores.mirrors.releaseDeadSync()
  return { folder, stores, isOpen }
}

/** What an earlier version made readable for others; of many blobs most are closed while the server serves. */
async function closeAllBlobs(config: Config, logger: Logger): Promise<void> {
  try {
    if (!(await closeBlobs(config.data))) logger.warn(notClosed)
  } catch (error) {
    logger.warn({ err: error }, notClosed)
  }
}

/** @returns whether anybody can push; where logins are wanted, there may be nobody yet who could */
async function prepareOpenness(config: Config, access: Stores['access'], logger: Logger): Promise<boolean> {
  const isClosing = isOpenByDefault(config) && (await isDecided(access))
  if (isClosing) {
    logger.info('there are users or grants: a login is asked for (the setting auth is unset)')
  }
  if (authMode(config) === 'token' || isClosing) {
    const { prepareAccess } = await import('./prepare-access.js')
    return prepareAccess(config, access, logger)
  }
  if (isOpenByDefault(config)) {
    // The first user may come while the server runs.
    await new KeyStore(dataPaths(config.data).keys).prepare(Date.now())
  } else await warnOfIgnored(config, access, logger)
  return true
}

/** With `auth: none` much is ignored that somebody may rely on. */
async function warnOfIgnored(config: Config, access: Stores['access'], logger: Logger): Promise<void> {
  const users = await access.countUsers()
  const grants = (await access.listGrants()).length
  const advice = 'everybody who reaches the server may do everything: write "auth: token" to ask for logins'
  if (users > 0 || grants > 0)
    logger.warn({ users, grants }, `users and grants are ignored, since auth is none; ${advice}`)
  const { admin, tokens } = config
  const set = {
    'admin.passwordFile': admin.passwordFile,
    'tokens.keyFile': tokens.keyFile,
    'tokens.service': tokens.service,
  }
  for (const [setting, value] of Object.entries(set)) {
    if (value !== undefined) logger.warn(`${setting} is ignored, since auth is none; ${advice}`)
  }
}

function createVerifying(config: Config, stores: Stores, logger: Logger) {
  const mender = createMender(config, stores, {
    processName: 'primary',
    onError: (error, what) => logger.error({ err: error }, what),
  })
  return { verifier: createVerifier(stores, 'primary'), mender }
}

/** Nothing more may be written: what is on the disk is all that there is to go on from. */
function endAtOnce(error: Error, logger: Logger): void {
  const isDamaged = error instanceof IndexDamagedError
  logger.fatal({ err: error }, isDamaged ? error.message : 'the index cannot be written')
  void flushLogger(logger).then(() =>
    process.exit(isDamaged ? exitCodes.indexDamaged : exitCodes.indexUnwritable),
  )
}

/** A stop that waits for ever would be ended by whoever waits for it, without a word about why. */
function endLate(name: string, pool: WorkerPool | undefined, logger: Logger): void {
  logger.fatal({ waitsFor: name }, 'stopping takes too long and ends here: nothing acknowledged is lost')
  pool?.kill()
  void flushLogger(logger).then(() => process.exit(exitCodes.stoppedLate))
}

async function startServer(config: Config, pool: WorkerPool | undefined, logger: Logger): Promise<Server> {
  if (pool !== undefined) {
    const port = await pool.start()
    return { address: { host: config.listen.host, port }, stop: () => pool.stop() }
  }
  const { startWorker } = await import('./serve-worker.js')
  return startWorker(config, { logger, processName: 'only' })
}

/** Gives back what a dead worker held, now or as soon as the index can be written: others would wait for it for ever. */
async function releaseTurns(stores: () => Stores | undefined, holder: string, logger: Logger): Promise<void> {
  for (let tries = 0; ; tries++) {
    try {
      return await stores()?.metadata.releaseTurns(holder)
    } catch (error) {
      if (tries === 0) logger.error({ err: error, holder }, 'turns could not be given back yet')
    }
    await delay(releasePause, undefined, { ref: false })
  }
}

/** The three lines that a person who starts the registry wants to see. */
function announce(config: Config, address: Server['address'], isOpen: boolean): void {
  const scheme = config.tls === undefined ? 'http' : 'https'
  // Nobody can type [::] as it is; for all addresses stands one of them.
  const isForAll = address.host === '::'
  const host = isForAll ? 'localhost' : address.host.includes(':') ? `[${address.host}]` : address.host
  const name = host === '0.0.0.0' || host === '127.0.0.1' ? 'localhost' : host
  const image = `${name}:${address.port}/hello:1`
  const next = isOpen
    ? `Push a first image: docker tag IMAGE ${image} && docker push ${image}`
    : `Add the first user: ${typed('user add NAME --admin')}`
  process.stdout.write(
    `Boathouse ${version} is listening on ${scheme}://${host}:${address.port}${isForAll ? ', on all addresses' : ''}\n` +
      `Data is in ${config.data}\n` +
      `${next}\n`,
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
    onHangup({
      // A shell and the system may both tell it: one more is no hurry.
      terminalGone: () => {
        if (!isStopping) onSignal('SIGHUP')
      },
      otherwise: () =>
        logger.info(
          { signal: 'SIGHUP' },
          'nothing to reload: certificates and keys are taken up when their files change, settings at a start',
        ),
    })
  })
}

/** Ends idle uploads from time to time. */
function startExpiry(uploads: UploadService, config: Config, logger: Logger): () => Promise<void> {
  const { expireAfter } = config.uploads
  const interval = Math.max(shortestExpiryInterval, Math.min(expireAfter / 4, longestExpiryInterval))
  const clock = new ClockWatch()
  const expire = async () => {
    if (clock.evenFor() < expireAfter) {
      logger.warn('the system clock has jumped: no upload expires for a while')
      return
    }
    try {
      const count = await uploads.expireUploads(Date.now() - expireAfter)
      if (count > 0) logger.info({ count }, 'expired idle uploads')
    } catch (error) {
      logger.error({ err: error }, 'idle uploads could not be expired')
    }
  }
  let running = expire()
  const timer = setInterval(() => {
    running = running.then(expire)
  }, interval)
  return async () => {
    clearInterval(timer)
    await running
  }
}
