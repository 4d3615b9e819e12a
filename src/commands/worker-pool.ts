import cluster, { type Worker } from 'node:cluster'
import { fileURLToPath } from 'node:url'
import type { Logger } from 'pino'
import type { AggregatorRegistry, PrometheusContentType } from 'prom-client'
import { threadpoolSize } from '../../config/load.js'
import type { Config } from '../../config/schema.js'
import { exitCodes } from './exit-codes.js'
import type { FromWorker, ToWorker } from './messages.js'
import { StartError } from './start-failure.js'
import { closeUntaken } from './untaken-connections.js'

/** Threads for file operations in each process: syncs wait for the disk, and others must not wait for them. */
const fileThreads = 16

/** Milliseconds before a worker that died is replaced. */
const respawnPause = 1000

/** Who hears of workers that ended by themselves. */
export interface PoolWatcher {
  /** What the worker of this name held is free. */
  onDeath(name: string): void
  /** A worker found the index damaged, and said so in the log; all of them have been ended. */
  onDamage(): void
}

/** The worker processes: they serve one port over one data folder as one server. */
export class WorkerPool {
  readonly #config: Config
  readonly #logger: Logger
  readonly #watcher: PoolWatcher
  /** Resolves when the data folder is ready for the workers. */
  readonly #ready: Promise<void>
  #begin: () => void = () => undefined
  #aggregator: AggregatorRegistry<PrometheusContentType> | undefined
  #isStopping = false
  /** Where the workers listen: one that comes later must listen there, too. */
  #port: number | undefined
  /** Living workers that share the socket of the configured address: port 0 is another one when they have gone. */
  readonly #sharing = new Set<number>()

  /**
   * Starts the processes at once: they load while the data folder is prepared, and wait for {@link start}.
   */
  constructor(config: Config, logger: Logger, watcher: PoolWatcher) {
    this.#config = config
    this.#logger = logger
    this.#watcher = watcher
    this.#ready = new Promise((resolve) => {
      this.#begin = resolve
    })
    cluster.setupPrimary({ exec: fileURLToPath(new URL('./worker-main.js', import.meta.url)), args: [] })
    for (let count = 0; count < config.workers; count++) this.#fork()
  }

  /** Lets the workers listen. @returns the port @throws StartError when they cannot */
  async start(): Promise<number> {
    const listening = this.#running().map(whenListening)
    this.#begin()
    const [port = this.#config.listen.port] = await Promise.all(listening)
    this.#port = port
    for (const { id } of this.#running()) this.#sharing.add(id)
    cluster.on('listening', (worker, address) => this.#checkPort(worker, address.port))
    cluster.on('exit', (worker, code, signal) => this.#replace(worker, code, signal))
    return port
  }

  /** Lets running requests end within the grace time. */
  async stop(): Promise<void> {
    this.#isStopping = true
    await Promise.all(this.#running().map(stopWorker))
  }

  /** Ends the processes at once; for a start that failed. */
  kill(): void {
    this.#isStopping = true
    for (const worker of this.#running()) worker.process.kill('SIGKILL')
  }

  #running(): Worker[] {
    return Object.values(cluster.workers ?? {}).filter((worker) => worker !== undefined)
  }

  #fork(): void {
    const worker = cluster.fork({ UV_THREADPOOL_SIZE: threadpoolSize() ?? fileThreads })
    closeUntaken(worker)
    // A message to a worker that has just died: its exit says all there is to say.
    worker.on('error', (error) => this.#logger.debug({ err: error }, 'a worker could not be told'))
    worker.on('message', (message: FromWorker) => {
      if (message.type === 'hello') void this.#ready.then(() => this.#configure(worker))
      if (message.type === 'metrics') void this.#answerMetrics(worker, message.id)
      // Of the first workers the one who started the server hears in words.
      if (message.type === 'failed' && this.#port !== undefined) {
        this.#logger.error({ worker: worker.id, reason: message.message }, 'a worker could not start')
      }
    })
  }

  #configure(worker: Worker): void {
    // The socket is found by the port that was asked for: 0 leads to it as long as somebody has it.
    const isShared = this.#sharing.size > 0
    const port = isShared ? this.#config.listen.port : (this.#port ?? this.#config.listen.port)
    const config = { ...this.#config, listen: { ...this.#config.listen, port } }
    tell(worker, { type: 'start', config, name: nameOf(worker) })
  }

  /** A worker that was too late for the socket of the others listens where no client looks for it. */
  #checkPort(worker: Worker, port: number): void {
    if (port !== this.#port) {
      worker.process.kill('SIGKILL')
      return
    }
    if (this.#sharing.size > 0) this.#sharing.add(worker.id)
    this.#logger.info({ worker: worker.id }, 'a new worker serves')
  }

  #replace(worker: Worker, code: number, signal: string): void {
    this.#sharing.delete(worker.id)
    if (this.#isStopping) return
    if (code === exitCodes.indexDamaged) {
      this.kill()
      this.#watcher.onDamage()
      return
    }
    this.#logger.error({ worker: worker.id, code, signal }, 'a worker died: starting another')
    this.#watcher.onDeath(nameOf(worker))
    setTimeout(() => {
      if (!this.#isStopping) this.#fork()
    }, respawnPause)
  }

  /** Loaded when somebody asks: most starts do not need it. */
  async #answerMetrics(worker: Worker, id: number): Promise<void> {
    try {
      const { AggregatorRegistry } = await import('prom-client')
      this.#aggregator ??= new AggregatorRegistry()
      const text = await this.#aggregator.clusterMetrics()
      tell(worker, { type: 'metrics', id, contentType: this.#aggregator.contentType, text })
    } catch (error) {
      this.#logger.error({ err: error }, 'metrics could not be collected')
      tell(worker, { type: 'metrics', id, contentType: 'text/plain', text: '' })
    }
  }
}

function nameOf(worker: Worker): string {
  return `worker-${worker.id}`
}

function tell(worker: Worker, message: ToWorker): void {
  if (worker.isConnected()) worker.send(message)
}

function whenListening(worker: Worker): Promise<number> {
  return new Promise((resolve, reject) => {
    worker.once('listening', (address) => resolve(address.port))
    worker.on('message', (message: FromWorker) => {
      if (message.type === 'failed') reject(new StartError(message.message))
    })
    worker.once('exit', () => reject(new StartError('A worker ended before it could listen: see the log.')))
  })
}

function stopWorker(worker: Worker): Promise<void> {
  return new Promise((resolve) => {
    worker.once('exit', () => resolve())
    tell(worker, { type: 'stop' })
  })
}
