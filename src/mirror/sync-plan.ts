import { setImmediate as turn } from 'node:timers/promises'
import type { MetadataStore } from '../../storage/metadata-store.js'
import type { MirrorStore } from '../../storage/mirror-store.js'
import type { Digest } from '../oci/digest.js'
import type { RepositoryName } from '../oci/reference.js'

/** Lookups between which other things get their turn. */
const lookupsPerTurn = 50

/** An image that a sync is about: one tag. */
export interface PlannedImage {
  /** As clients name it here, without the host. */
  readonly name: string
  readonly repository: RepositoryName
  /** Of the manifest that the tag leads to; undefined when that could not be found out. */
  digest: Digest | undefined
  /** Bytes of the distinct blobs of the wanted platforms. */
  bytes: number
  /** Bytes of those that are to be fetched. */
  missingBytes: number
  /** Blobs that its repository has not got yet. */
  missingBlobs: number
  /** Why it is not whole, and will not be by this sync. */
  failure: string | undefined
}

/** A blob that is wanted. */
export interface PlannedBlob {
  readonly digest: Digest
  readonly size: number
  /** The images that need it. */
  readonly images: Set<PlannedImage>
  /** Whether the upstream has delivered it before: then it need not be fetched, but at most be linked. */
  isStored: boolean
  /** Repositories of the mirror that have not got it yet. */
  readonly missingIn: Set<RepositoryName>
}

/** Distinct blobs of some images, each of them once. */
export class SyncPlan {
  readonly images: PlannedImage[] = []
  readonly blobs = new Map<Digest, PlannedBlob>()
  /** Bytes of all blobs. */
  #bytes = 0

  get bytes(): number {
    return this.#bytes
  }

  /** Takes up an image with its blobs and their sizes, unless all of it together would be more than `budget` bytes. */
  add(image: PlannedImage, blobs: ReadonlyMap<Digest, number>, budget: number): void {
    this.images.push(image)
    let added = 0
    for (const [digest, size] of blobs) {
      image.bytes += size
      if (!this.blobs.has(digest)) added += size
    }
    if (this.#bytes + added > budget) {
      image.failure = `does not fit into the budget of ${budget} bytes together with the images before it in the list`
      return
    }
    this.#bytes += added
    for (const [digest, size] of blobs) {
      const known = this.blobs.get(digest)
      if (known !== undefined) known.images.add(image)
      else {
        const blob = { digest, size, images: new Set([image]), isStored: false, missingIn: new Set<never>() }
        this.blobs.set(digest, blob)
      }
    }
  }

  /** Finds out what a mirror has already. @throws RegistryError UNAVAILABLE */
  async look(
    mirror: string,
    {
      metadata,
      store,
    }: { readonly metadata: MetadataStore; readonly store: Pick<MirrorStore, 'findLendable'> },
    signal: AbortSignal,
  ): Promise<void> {
    let lookups = 0
    for (const blob of this.blobs.values()) {
      for (const repository of new Set([...blob.images].map((image) => image.repository))) {
        if (++lookups % lookupsPerTurn === 0) await turn()
        if (signal.aborted) return
        if ((await metadata.findBlob(repository, blob.digest)) === undefined) blob.missingIn.add(repository)
      }
      blob.isStored =
        blob.missingIn.size === 0 || (await store.findLendable(mirror, blob.digest)) !== undefined
      if (blob.missingIn.size === 0) continue
      for (const image of blob.images) {
        if (blob.missingIn.has(image.repository)) image.missingBlobs++
        if (!blob.isStored) image.missingBytes += blob.size
      }
    }
  }

  /** The blobs that some repository has not got, and the bytes that are to be fetched. */
  get missing(): { readonly blobs: readonly PlannedBlob[]; readonly bytes: number } {
    const blobs = [...this.blobs.values()].filter(({ missingIn }) => missingIn.size > 0)
    return { blobs, bytes: blobs.reduce((sum, { isStored, size }) => sum + (isStored ? 0 : size), 0) }
  }
}
