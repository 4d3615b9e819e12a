import { readFile } from 'node:fs/promises'
import type { FastifyInstance } from 'fastify'
import type { Logger } from 'pino'
import { authMode } from '../config/load.js'
import type { Config } from '../config/schema.js'
import type { KeyFileObserver } from '../storage/key-store.js'
import { openAccess } from './auth/access.js'
import type { LoginObserver } from './auth/accounts.js'
import { redactTokens } from './auth/redact.js'
import type { Audit } from './http/audit.js'
import { blobHandlers } from './http/blobs.js'
import { healthHandlers } from './http/health.js'
import { listHandlers } from './http/lists.js'
import { manifestHandlers } from './http/manifests.js'
import { Metrics, type MirrorTotals } from './http/metrics.js'
import { noTokenHandlers } from './http/no-token.js'
import { searchHandlers } from './http/search.js'
import { createServer, describeIdentity } from './http/server.js'
import { uploadHandlers } from './http/uploads.js'
import type { MirrorAppOptions } from './mirror-app.js'
import { listMirrors, totalsOf } from './mirror-states.js'
import { matchesRepository, parseRepositoryPattern } from './oci/repository-pattern.js'
import { parseTagPattern, tagPatternsFor } from './oci/tag-pattern.js'
import { BlobService, type Blobs } from './registry/blobs.js'
import { ManifestParser } from './registry/manifest-parser.js'
import { type ManifestOptions, ManifestService, type Manifests } from './registry/manifests.js'
import { PullLog } from './registry/pulls.js'
import { createDiskGuard, createUploads, garbageOptions, openStores, type Stores } from './stores.js'
import type { Behind } from './token-app.js'

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
  const access = await createAccess(config, stores, { audit, onLogin, onKeyChange }, mirror)
  const idleTimeout = config.timeouts.idle
  let isDraining = false

  const server = createServer({
    logger: options.logger,
    metrics,
    access: access.policy,
    names: mirror?.names,
    service: access.service,
    publicUrl: config.publicUrl,
    trustedProxies: config.trustedProxies,
    tls: await readTls(config),
    handlers: {
      ...blobHandlers({ blobs, audit, idleTimeout }),
      ...uploadHandlers({ blobs, uploads, idleTimeout }),
      ...manifestHandlers({ manifests, audit, idleTimeout }),
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

  return {
    http: server.app,
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
  log: { audit: Audit; onLogin: LoginObserver; onKeyChange: KeyFileObserver },
  mirror: Behind | undefined,
) {
  if (authMode(config) === 'token') {
    const { createTokenAccess } = await import('./token-app.js')
    return createTokenAccess(config, stores.access, log, mirror)
  }
  return { policy: openAccess, service: '', handlers: noTokenHandlers, close: async () => undefined }
}

/** Reads the certificate and its key. @throws the system's error */
export async function readTls(config: Config): Promise<{ cert: string; key: string } | undefined> {
  if (config.tls === undefined) return undefined
  const [cert, key] = await Promise.all([
    readFile(config.tls.certificate, 'utf8'),
    readFile(config.tls.key, 'utf8'),
  ])
  return { cert, key }
}
