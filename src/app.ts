import { X509Certificate } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import type { Server as TlsServer } from 'node:tls'
import type { FastifyInstance } from 'fastify'
import type { Logger } from 'pino'
import { isLoopback } from '../config/addresses.js'
import { authMode, isOpenByDefault, tokenService } from '../config/load.js'
import type { Config } from '../config/schema.js'
import type { KeyFileObserver } from '../storage/key-store.js'
import { openAccess } from './auth/access.js'
import type { LoginObserver } from './auth/accounts.js'
import { LocalAccess } from './auth/local-access.js'
import { redactTokens } from './auth/redact.js'
import type { Audit } from './http/audit.js'
import { blobHandlers } from './http/blobs.js'
import type { Exchange } from './http/exchange.js'
import { healthHandlers } from './http/health.js'
import { Intake } from './http/intake.js'
import { listHandlers } from './http/lists.js'
import { manifestHandlers } from './http/manifests.js'
import { Metrics, type MirrorTotals } from './http/metrics.js'
import { noTokenHandlers } from './http/no-token.js'
import { Outbox } from './http/outbox.js'
import { searchHandlers } from './http/search.js'
import { createServer, describeIdentity } from './http/server.js'
import { uploadHandlers } from './http/uploads.js'
import type { MirrorAppOptions } from './mirror-app.js'
import { listMirrors, totalsOf } from './mirror-states.js'
import { largestManifest } from './oci/manifest.js'
import { matchesRepository, parseRepositoryPattern } from './oci/repository-pattern.js'
import { parseTagPattern, tagPatternsFor } from './oci/tag-pattern.js'
import { BlobService, type Blobs } from './registry/blobs.js'
import { ManifestParser } from './registry/manifest-parser.js'
import { type ManifestOptions, ManifestService, type Manifests } from './registry/manifests.js'
import { PullLog } from './registry/pulls.js'
import { createDiskGuard, createUploads, garbageOptions, openStores, type Stores } from './stores.js'
import type { Behind } from './token-app.js'

/** Bytes for bodies that a process has, however many processes there are: some of the largest manifests. */
const leastBodyMemory = 4 * largestManifest

/** Metrics in the Prometheus text format. */
export type MetricsText = { readonly contentType: string; readonly text: string }

/** What an app is told beside its configuration. */
export interface AppOptions {
  readonly logger: Logger
  /** Name of this process, unlike any other's: it begins the turns that the process takes. */
  readonly processName: string
  /** Metrics of all workers, where there are several. */
  readonly collectMetrics?: () => Promise<MetricsText>
  /** Called when a store failed in a way that only a restart of the process can mend. */
  readonly onFatal: (error: Error) => void
}

/** The registry of one process, not yet listening. */
export interface App {
  readonly http: FastifyInstance
  /**
   * Takes up another certificate for the connections to come.
   * @throws when the two do not fit together: the old one stays
   */
  useCertificate(tls: TlsTexts): void
  /** Stops taking requests, lets running ones end, then closes the stores. */
  close(): Promise<void>
}

/** Composes the registry: configuration → stores → services → HTTP server. */
export async function createApp(config: Config, options: AppOptions): Promise<App> {
  const stores = await openStores(config, options.onFatal)
  const { metadata } = stores
  const parser = new ManifestParser()
  const sparse = config.manifests.sparse.map(parseRepositoryPattern)
  const disk = createDiskGuard(config, stores)
  const ownBlobs = new BlobService(stores, { grace: config.gc.grace, disk })
  const uploads = createUploads(config, stores, options.processName, disk)
  const immutable = config.tags.immutable.map(parseTagPattern)
  const pulls = new PullLog(metadata)
  const { untagged } = garbageOptions(config, options.processName)
  const manifestOptions: ManifestOptions = {
    immutableTags: (name) => tagPatternsFor(immutable, name),
    isSparse: (name) => sparse.some((pattern) => matchesRepository(pattern, name)),
    untagged: (name) => untagged?.of(name, false),
    disk,
    pulls,
    parse: parser.parse,
  }
  const ownManifests = new ManifestService(metadata, manifestOptions)
  const mirror = await createBehind(config, {
    stores,
    blobs: ownBlobs,
    manifests: ownManifests,
    manifestOptions,
    processName: options.processName,
    onError: (error, what) => options.logger.error({ err: error }, what),
  })
  if (mirror !== undefined) disk.useRoomMaker(mirror.makeRoom)
  const blobs: Blobs = mirror?.blobs ?? ownBlobs
  const manifests: Manifests = mirror?.manifests ?? ownManifests
  const metrics = new Metrics(
    async () => ({
      ...(await metadata.totals()),
      diskFreeBytes: (await stores.blobs.freeSpace()).bytes,
      quotas: await stores.quotas.listQuotas(),
    }),
    mirrorTotals(config, stores),
  )
  const audit: Audit = (exchange, event, about) => {
    const who = { user: '', ...describeIdentity(exchange.identity) }
    options.logger.info({ audit: event, ...who, remote: exchange.address, ...about }, event)
  }
  const onLogin: LoginObserver = (name, remote, account) => {
    const event = account === undefined ? 'login refused' : 'login'
    const who = { ...describeIdentity(account), user: redactTokens(name.slice(0, 128)) }
    options.logger.info({ audit: event, ...who, remote }, event)
  }
  const onKeyChange: KeyFileObserver = (trouble) => {
    if (trouble === undefined) options.logger.info('took up the new signing key')
    else options.logger.error({ err: trouble }, 'the new signing key cannot be used: the old one stays')
  }
  const onClosing = () => {
    options.logger.info(
      'there are users or grants: from now on a login is asked for (the setting auth is unset)',
    )
  }
  const idleTimeout = config.timeouts.idle
  const { limits, outbox, intake } = createBounds(config, metrics)
  const log = { audit, onLogin, onKeyChange, onClosing, intake }
  const access = await createAccess(config, stores, log, mirror)
  let isDraining = false

  const tls = await readTls(config)
  const server = createServer({
    logger: options.logger,
    metrics,
    access: access.policy,
    names: mirror?.names,
    service: access.service,
    publicUrl: config.publicUrl,
    isLocal: isLoopback(config.listen.host),
    isOpen: authMode(config) === 'none',
    trustedProxies: config.trustedProxies,
    limits,
    outbox,
    tls,
    handlers: {
      ...blobHandlers({ blobs, audit }),
      ...uploadHandlers({ blobs, uploads, idleTimeout }),
      ...manifestHandlers({ manifests, audit, intake }),
      ...listHandlers({ manifests }),
      ...searchHandlers({ manifests }),
      ...access.handlers,
      ...healthHandlers({
        check: async () => {
          await Promise.all([metadata.check(), stores.blobs.check()])
        },
        isDraining: () => isDraining,
        metrics: options.collectMetrics ?? (() => metrics.text()),
      }),
    },
  })

  let certificate = tls && new X509Certificate(tls.cert)
  metrics.describeCertificate(() => certificate && Date.parse(certificate.validTo) / 1000)
  metrics.describeWire(() => ({
    connections: server.connections(),
    answerBytes: outbox.bytes,
    bodyBytes: intake.bytes,
  }))

  return {
    http: server.app,
    useCertificate(next) {
      const read = new X509Certificate(next.cert)
      ;(server.app.server as unknown as TlsServer).setSecureContext({ ...next })
      certificate = read
    },
    async close() {
      isDraining = true
      await server.close()
      await access.close()
      await mirror?.close()
      await parser.close()
      await pulls.close()
      await stores.close()
    },
  }
}

/** What this process may hold for clients: its share of what all processes may. */
function createBounds({ limits, timeouts, workers }: Config, metrics: Metrics) {
  const share = (all: number) => Math.ceil(all / workers)
  const connections = mostConnections(share(limits.connections))
  return {
    limits: {
      connections,
      perAddress: Math.min(share(limits.perAddress), connections),
      idle: timeouts.idle,
    },
    outbox: new Outbox(share(limits.answerMemory), metrics.met),
    intake: new Intake(Math.max(share(limits.bodyMemory), leastBodyMemory), timeouts.idle, metrics.met),
  }
}

/** What the metrics tell of mirrors, where there are any. */
function mirrorTotals({ mirrors: configs }: Config, { mirrors: store }: Stores) {
  if (configs.length === 0) return undefined
  return async (): Promise<readonly MirrorTotals[]> => {
    const all = await listMirrors(configs, store)
    return all.filter(({ config }) => config !== undefined).map(totalsOf)
  }
}

/** The mirrors. What they need is loaded only where there are any. */
async function createBehind(config: Config, options: MirrorAppOptions) {
  if (config.mirrors.length === 0) return undefined
  const { createMirrors } = await import('./mirror-app.js')
  return createMirrors(config, options)
}

/** Who may do what, by the setting `auth`. What logins need is loaded only where there are any. */
async function createAccess(
  config: Config,
  stores: Stores,
  log: {
    audit: Audit
    onLogin: LoginObserver
    onKeyChange: KeyFileObserver
    onClosing: () => void
    intake: Intake
  },
  mirror: Behind | undefined,
) {
  const start = async () => {
    const { createTokenAccess } = await import('./token-app.js')
    return createTokenAccess(config, stores.access, log, mirror)
  }
  if (authMode(config) === 'token') return start()
  if (!isOpenByDefault(config)) {
    return { policy: openAccess, service: '', handlers: noTokenHandlers, close: async () => undefined }
  }
  const policy = new LocalAccess(stores.access, () => {
    log.onClosing()
    return start()
  })
  const handlers = async () => (await policy.logins())?.handlers ?? noTokenHandlers
  return {
    policy,
    service: tokenService(config),
    handlers: {
      getToken: async (exchange: Exchange) => (await handlers()).getToken(exchange),
      postToken: async (exchange: Exchange) => (await handlers()).postToken(exchange),
    },
    close: async () => (await policy.started)?.close(),
  }
}

/** A certificate with its chain, and its key: PEM texts. */
export interface TlsTexts {
  readonly cert: string
  readonly key: string
}

/** Reads the certificate and its key. @throws the system's error */
export async function readTls(config: Config): Promise<TlsTexts | undefined> {
  if (config.tls === undefined) return undefined
  const [cert, key] = await Promise.all([
    readFile(config.tls.certificate, 'utf8'),
    readFile(config.tls.key, 'utf8'),
  ])
  return { cert, key }
}

/** Descriptors that a process needs beside its connections: the index, pipes, modules, files that are written. */
const others = 128

/**
 * How many connections a process may take: each may need a file as well, and who accepts more than there are
 * descriptors for can serve none of them.
 * @param wanted what the settings allow
 */
function mostConnections(wanted: number): number {
  const descriptors = readDescriptorLimit()
  return descriptors === undefined
    ? wanted
    : Math.max(8, Math.min(wanted, Math.floor((descriptors - others) / 2)))
}

/** The soft limit, which Node has raised to the hard one; undefined where the system has none or does not say. */
function readDescriptorLimit(): number | undefined {
  try {
    const [, limit] = /^Max open files +(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8')) ?? []
    return limit === undefined ? undefined : Number(limit)
  } catch {
    return undefined // not Linux
  }
}
