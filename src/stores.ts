import type { Config } from '../config/schema.js'
import type { AccessStore } from '../storage/access-store.js'
import type { BlobStore } from '../storage/blob-store.js'
import { dataPaths } from '../storage/data-folder.js'
import { openFsBlobStore } from '../storage/fs-blob-store.js'
import type { MetadataStore } from '../storage/metadata-store.js'
import type { MirrorStore } from '../storage/mirror-store.js'
import { openSqliteStores } from '../storage/sqlite-metadata-store.js'
import { UploadService } from './registry/uploads.js'

/** The stores. */
export interface Stores {
  readonly blobs: BlobStore
  readonly metadata: MetadataStore
  readonly access: AccessStore
  readonly mirrors: MirrorStore
  close(): Promise<void>
}

/** Opens the stores of a data folder that takeDataFolder has prepared. The drivers are named here alone. */
export async function openStores(config: Config, onFatal: (error: Error) => void): Promise<Stores> {
  const { metadata, access, mirrors } = await openSqliteStores({
    path: dataPaths(config.data).database,
    onFatal,
  })
  const blobs = openFsBlobStore(config.data)
  return {
    blobs,
    metadata,
    access,
    mirrors,
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
