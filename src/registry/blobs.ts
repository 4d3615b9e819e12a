import type { BlobReader, BlobStore } from '../../storage/blob-store.js'
import type { MetadataStore } from '../../storage/metadata-store.js'
import type { Digest } from '../oci/digest.js'
import { RegistryError } from '../oci/errors.js'
import type { RepositoryName } from '../oci/reference.js'
import type { DiskGuard } from './disk-guard.js'
import { leaseSlack } from './leases.js'
import { overQuota } from './quotas.js'

/** A blob to send. */
export interface OpenBlob extends BlobReader {
  /**
   * Waits until the bytes up to `end` (inclusive) can be promised to a client; a blob that is stored needs no wait.
   * @throws what makes the promise impossible
   */
  ready?(end: number): Promise<void>
}

/** Blobs as handlers use them: the registry's own, or those behind a mirror. */
export type Blobs = Pick<BlobService, keyof BlobService>

/** Repositories that are tried for a mount without `from`. */
const mostMountSources = 100

/** Where a blob may be mounted from. */
export interface MountSource {
  /** The repositories that the client named; `any` when it leaves the choice to the registry. */
  readonly from: readonly RepositoryName[] | 'any'
  /** Whether the caller may pull from a repository: what it may not pull it may not mount either. */
  readonly mayPull: (repository: RepositoryName) => boolean
}

/** Blobs as a repository shows them: only through the repositories that link them (protocol BL-02). */
export class BlobService {
  readonly #blobs: BlobStore
  readonly #metadata: MetadataStore
  readonly #slack: number
  readonly #disk: Pick<DiskGuard, 'admit'>

  /** @param grace milliseconds for which a blob stays that somebody relies on (see leases.ts) */
  constructor(
    stores: { readonly blobs: BlobStore; readonly metadata: MetadataStore },
    { grace, disk }: { readonly grace: number; readonly disk: Pick<DiskGuard, 'admit'> },
  ) {
    this.#blobs = stores.blobs
    this.#metadata = stores.metadata
    this.#slack = leaseSlack(grace)
    this.#disk = disk
  }

  /**
   * Size of a blob in bytes; the caller may rely on it for the grace time. A blob that is known to be damaged counts
   * as not there: so whoever is about to push it sends its bytes.
   * @throws RegistryError BLOB_UNKNOWN
   */
  async statBlob(repository: RepositoryName, digest: Digest): Promise<number> {
    const size = await this.#lease(repository, digest)
    if (size === undefined) throw new RegistryError('BLOB_UNKNOWN', undefined, { detail: { digest } })
    return size
  }

  /**
   * Opens a blob for reading; the caller closes it, and may rely on it as after {@link statBlob}.
   * @throws RegistryError BLOB_UNKNOWN, BLOB_DAMAGED, or UNAVAILABLE when its file is missing or has another size
   */
  async openBlob(repository: RepositoryName, digest: Digest): Promise<OpenBlob> {
    const size = await this.#sizeForReading(repository, digest)
    const reader = await this.#blobs.open(digest)
    if (reader === undefined) throw damaged(digest, 'is missing from the store')
    if (reader.size !== size) {
      await reader.close()
      throw damaged(digest, `has ${reader.size} bytes in the store in place of ${size}`)
    }
    return reader
  }

  /** A full disk must not keep anybody from pulling: the bytes are on their way, lease or not. */
  async #sizeForReading(repository: RepositoryName, digest: Digest): Promise<number> {
    try {
      return await this.statBlob(repository, digest)
    } catch (error) {
      const size = await this.#metadata.findBlob(repository, digest)
      if (size !== undefined) return size
      if (!(await this.#metadata.isBlobDamaged(repository, digest))) throw error
      throw new RegistryError('BLOB_DAMAGED', undefined, { detail: { digest }, cause: error })
    }
  }

  #lease(repository: RepositoryName, digest: Digest): Promise<number | undefined> {
    return this.#metadata.leaseBlob(repository, digest, Date.now(), this.#slack)
  }

  /**
   * Gives the repository a blob that another one holds, without any bytes sent. False when there is nothing to
   * mount: missing and forbidden sources look the same (protocol UP-91, UP-93).
   * @throws RegistryError STORAGE_FULL, DENIED when a quota has no room for it
   */
  async mountBlob(repository: RepositoryName, digest: Digest, source: MountSource): Promise<boolean> {
    const held = await this.#metadata.leaseOwnBlob(repository, digest, Date.now(), this.#slack)
    if (typeof held === 'object') throw overQuota(held)
    if (held !== undefined) return true
    await this.#disk.admit(0)
    const candidates =
      source.from === 'any'
        ? await this.#metadata.listBlobRepositories(digest, mostMountSources)
        : source.from
    for (const from of candidates) {
      if (!source.mayPull(from)) continue
      const mounted = await this.#metadata.mountBlob(repository, digest, from, Date.now())
      if (typeof mounted === 'object') throw overQuota(mounted)
      if (mounted) return true
    }
    return false
  }

  /**
   * Takes a blob out of the repository; other repositories keep it.
   * @throws RegistryError BLOB_UNKNOWN, or UNSUPPORTED while a manifest of the repository needs it
   */
  async deleteBlob(repository: RepositoryName, digest: Digest): Promise<void> {
    switch (await this.#metadata.unlinkBlob(repository, digest)) {
      case 'unlinked':
        return
      case 'unknown':
        throw new RegistryError('BLOB_UNKNOWN', undefined, { detail: { digest } })
      case 'in-use':
        throw new RegistryError(
          'UNSUPPORTED',
          'a manifest of this repository needs the blob: delete the manifest first',
          { detail: { digest } },
        )
    }
  }
}

/** The metadata promise a blob that the store does not have: the log says which, the client may come again. */
function damaged(digest: Digest, how: string): RegistryError {
  return new RegistryError('UNAVAILABLE', 'the blob cannot be read: the log of the registry says more', {
    cause: new Error(`blob ${digest} ${how}`),
  })
}
