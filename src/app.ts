import { readFile } from 'node:fs/promises'
import type { FastifyInstance } from 'fastify'
import type { Logger } from 'pino'
import type { Config } from '../config/schema.js'
import type { BlobStore } from '../storage/blob-store.js'
import { dataPaths } from '../storage/data-folder.js'
import { openFsBlobStore } from '../storage/fs-blob-store.js'
import type { MetadataStore } from '../storage/metadata-store.js'
import { openSqliteMetadataStore } from '../storage/sqlite-metadata-store.js'
import { openAccess } from './auth/access.js'
import { blobHandlers } from './http/blobs.js'
import { healthHandlers } from './http/health.js'
import { listHandlers } from './http/lists.js'
import { manifestHandlers } from './http/manifests.js'
import { Metrics } from './http/metrics.js'
import { searchHandlers } from './http/search.js'
import { createServer } from './http/server.js'
import { uploadHandlers } from './http/uploads.js'
import { matchesRepository, parseRepositoryPattern } from './oci/repository-pattern.js'
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

/** The two stores. */
export interface Stores {
  readonly blobs: BlobStore
  readonly metadata: MetadataStore
  close(): Promise<void>
}

/** Opens the stores of a data folder that takeDataFolder has prepared. The drivers are named here alone. */
export async function openStores(config: Config, onFatal: (error: Error) => void): Promise<Stores> {
  const metadata = await openSqliteMetadataStore({ path: dataPaths(config.data).database, onFatal })
  const blobs = openFsBlobStore(config.data)
  return {
    blobs,
    metadata,
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
  const manifests = new ManifestService(metadata, {
    isSparse: (name) => sparse.some((pattern) => matchesRepository(pattern, name)),
    parse: parser.parse,
  })
  const metrics = new Metrics(() => metadata.totals())
  const access = openAccess
  const idleTimeout = config.timeouts.idle
  let isDraining = false

  const server = createServer({
    logger: options.logger,
    metrics,
    access,
    tls: await readTls(config),
    handlers: {
      ...blobHandlers({ blobs, idleTimeout }),
      ...uploadHandlers({ blobs, uploads, idleTimeout }),
      ...manifestHandlers({ manifests, idleTimeout }),
      ...listHandlers({ manifests }),
      ...searchHandlers({ manifests }),
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
      await parser.close()
      await stores.close()
    },
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
