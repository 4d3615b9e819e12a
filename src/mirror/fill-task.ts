import type { BlobStore } from '../../storage/blob-store.js'
import type { MetadataStore } from '../../storage/metadata-store.js'
import type { MirrorStore } from '../../storage/mirror-store.js'
import type { Digest } from '../oci/digest.js'
import type { RepositoryName } from '../oci/reference.js'
import type { Upstream } from './upstream.js'

/** What is to be fetched. */
export interface FillTask {
  /** The upload that the bytes go to. */
  readonly id: string
  readonly mirror: string
  readonly upstream: Upstream
  /** The repository here, and its name upstream. */
  readonly repository: RepositoryName
  readonly remote: RepositoryName
  readonly digest: Digest
}

/** What fills work with. */
export interface FillContext {
  readonly blobs: BlobStore
  readonly metadata: MetadataStore
  readonly mirrors: MirrorStore
  /** A new name for a turn. */
  readonly newHolder: () => string
  /** Bytes. */
  readonly maxBlobSize: number
  /** The most bytes that a blob may have whose size the upstream does not say. */
  readonly boundOf: (task: FillTask) => Promise<number>
  /** Notes the size of a blob if there is room for it now. */
  readonly admitAtOnce: (task: FillTask, holder: string, size: number) => Promise<boolean>
  /** Waits until a blob of this size may be written, and notes its size. @throws RegistryError STORAGE_FULL */
  readonly admit: (task: FillTask, holder: string, size: number, signal: AbortSignal) => Promise<void>
  /** Looks whether fills may go on. @throws RegistryError STORAGE_FULL */
  readonly checkFloor: () => Promise<void>
  /** Hears of bytes that came from upstream. */
  readonly onFetched: (bytes: number) => void
}
