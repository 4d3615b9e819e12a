import { readFile } from 'node:fs/promises'
import type { FastifyInstance } from 'fastify'
import type { Logger } from 'pino'
import { authMode } from '../config/load.js'
import type { Config } from '../config/schema.js'
import type { AccessStore } from '../storage/access-store.js'
import type { BlobStore } from '../storage/blob-store.js'
import { dataPaths } from '../storage/data-folder.js'
import { openFsBlobStore } from '../storage/fs-blob-store.js'
import { KeyStore, parseSigningKey } from '../storage/key-store.js'
import type { MetadataStore } from '../storage/metadata-store.js'
import { openSqliteStores } from '../storage/sqlite-metadata-store.js'
import { openAccess } from './auth/access.js'
import { createAccessToken } from './auth/access-tokens.js'
import { type Account, Accounts } from './auth/accounts.js'
import { Passwords } from './auth/passwords.js'
import { Throttle } from './auth/throttle.js'
import { TokenAccess } from './auth/token-access.js'
import { type KeySource, Tokens } from './auth/tokens.js'
import type { Audit } from './http/audit.js'
import { blobHandlers } from './http/blobs.js'
import { healthHandlers } from './http/health.js'
import { listHandlers } from './http/lists.js'
import { manifestHandlers } from './http/manifests.js'
import { Metrics } from './http/metrics.js'
import { searchHandlers } from './http/search.js'
import { createServer } from './http/server.js'
import { noTokenHandlers, tokenHandlers } from './http/token.js'
import { uploadHandlers } from './http/uploads.js'
import { matchesRepository, parseRepositoryPattern } from './oci/repository-pattern.js'
import { parseTagPattern, tagPatternsFor } from './oci/tag-pattern.js'
import { BlobService } from './registry/blobs.js'
import { ManifestParser } from './registry/manifest-parser.js'
import { ManifestService } from './registry/manifests.js'
import { UploadService } from './registry/uploads.js'

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

/** The stores. */
export interface Stores {
  readonly blobs: BlobStore
  readonly metadata: MetadataStore
  readonly access: AccessStore
  close(): Promise<void>
}

/** Opens the stores of a data folder that takeDataFolder has prepared. The drivers are named here alone. */
export async function openStores(config: Config, onFatal: (error: Error) => void): Promise<Stores> {
  const { metadata, access } = await openSqliteStores({ path: dataPaths(config.data).database, onFatal })
  const blobs = openFsBlobStore(config.data)
  return {
    blobs,
    metadata,
    access,
    async close() {
      await blobs.close()
      await metadata.close()
    },
  }
}

/** The uploads of one process. */
export function createUploads(config: Config, stores: Stores, processName: string): UploadService {
  return new UploadService(stores, { holder: `${processName}:`, ...config.uploads })
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
  const blobs = new BlobService(stores)
  const uploads = createUploads(config, stores, options.processName)
  const immutable = config.tags.immutable.map(parseTagPattern)
  const manifests = new ManifestService(metadata, {
    immutableTags: (name) => tagPatternsFor(immutable, name),
    isSparse: (name) => sparse.some((pattern) => matchesRepository(pattern, name)),
    parse: parser.parse,
  })
  const metrics = new Metrics(() => metadata.totals())
  const audit: Audit = (exchange, event, about) => {
    const user = exchange.caller.identity.name
    options.logger.info({ audit: event, user, remote: exchange.address, ...about }, event)
  }
  const access = createAccess(config, stores, audit)
  const idleTimeout = config.timeouts.idle
  let isDraining = false

  const server = createServer({
    logger: options.logger,
    metrics,
    access: access.policy,
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
      await parser.close()
      await stores.close()
    },
  }
}

/** Milliseconds between two notes of which access tokens were used. */
const useInterval = 60_000

/** Days that a refresh token lasts. */
const refreshDays = 90

/** Composes who may do what: see the setting `auth`. */
function createAccess(config: Config, stores: Stores, audit: Audit) {
  const service = config.tokens.service ?? (config.publicUrl && new URL(config.publicUrl).host) ?? 'boathouse'
  if (authMode(config) === 'none') {
    return { policy: openAccess, service, handlers: noTokenHandlers, close: async () => undefined }
  }
  const passwords = new Passwords()
  const accounts = new Accounts(stores.access, passwords, new Throttle())
  const tokens = new Tokens(keySource(config), service, config.tokens.expireAfter / 1000)
  const timer = setInterval(() => void accounts.flushUses(Date.now()).catch(() => undefined), useInterval)
  return {
    policy: new TokenAccess(accounts, tokens),
    service,
    handlers: tokenHandlers({
      accounts,
      tokens,
      audit,
      idleTimeout: config.timeouts.idle,
      createRefreshToken: config.tokens.refresh
        ? (account, client) => createRefreshToken(stores.access, account, client)
        : undefined,
    }),
    async close() {
      clearInterval(timer)
      await accounts.flushUses(Date.now())
      await passwords.close()
    },
  }
}

/** A refresh token is an access token that its owner did not ask for by name: listed and revoked like the others. */
async function createRefreshToken(store: AccessStore, account: Account, client: string): Promise<string> {
  const { id, text, secretHash } = createAccessToken()
  const now = Date.now()
  await store.addAccessToken({
    id,
    user: account.name,
    name: `login ${client.replace(/[^\w.-]/g, '').slice(0, 40)} ${id.slice(0, 8)}`,
    secretHash,
    scopes: [{ pattern: '**', permissions: ['admin'] }],
    createdAt: now,
    expiresAt: now + refreshDays * 86_400_000,
  })
  return text
}

/** The configured key signs, where there is one; those of the data folder verify what they signed before. */
function keySource(config: Config): KeySource {
  const store = new KeyStore(dataPaths(config.data).keys)
  const { keyFile } = config.tokens
  return {
    async load() {
      const made = (await store.load()).map(({ key }) => key)
      return keyFile === undefined ? made : [parseSigningKey(await readFile(keyFile, 'utf8')), ...made]
    },
    state: () => store.state(),
  }
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
