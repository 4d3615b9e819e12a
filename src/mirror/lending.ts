import type { MetadataStore } from '../../storage/metadata-store.js'
import type { MirrorStore } from '../../storage/mirror-store.js'
import { type Digest, isDigest } from '../oci/digest.js'
import { type ErrorKind, RegistryError } from '../oci/errors.js'
import type { Reference } from '../oci/reference.js'
import type { Blobs } from '../registry/blobs.js'
import type { ManifestService, Push, Pushed } from '../registry/manifests.js'
import type { MirrorBlobs } from './mirror-blobs.js'
import type { Mirrors } from './mirrors.js'
import { behindBareName } from './names.js'

/** Indexes within indexes whose parts are lent. */
const deepest = 4

/** Then the client is told to push it. */
const cannotBeLent: ReadonlySet<ErrorKind> = new Set<ErrorKind>([
  'BLOB_UNKNOWN',
  'MANIFEST_BLOB_UNKNOWN',
  'TOOMANYREQUESTS',
  'UPSTREAM_INVALID',
  'UPSTREAM_UNAVAILABLE',
])

/** What is lent from. */
export type LendingBlobs = Pick<MirrorBlobs, 'prefetchBlob'> & Pick<Blobs, 'mountBlob'>

/** What the lending is told. */
export interface LendingOptions {
  readonly local: ManifestService
  readonly metadata: MetadataStore
  readonly store: MirrorStore
  readonly mirrors: Mirrors
  readonly blobs: LendingBlobs
}

/**
 * What a bare name finds in a mirror a client does not push: a manifest that is pushed to that name may need it all
 * the same (reliability R07).
 */
export class Lending {
  readonly #options: LendingOptions

  constructor(options: LendingOptions) {
    this.#options = options
  }

  /**
   * Stores a manifest as {@link ManifestService.putManifest} does, with what it needs and the mirror has under the
   * same name, if its sender may have been told so.
   * @throws as that
   */
  async putManifest(push: Push, depth = 0): Promise<Pushed> {
    const tried = new Set<Digest>()
    for (;;) {
      try {
        return await this.#options.local.putManifest(push)
      } catch (error) {
        // One refusal names some of what is missing: what has been lent already does not help again.
        const missing = depth < deepest ? missingContent(error).filter((digest) => !tried.has(digest)) : []
        let isLent = false
        for (const digest of missing) {
          tried.add(digest)
          isLent = (await this.#lend(push, digest, depth)) || isLent
        }
        if (!isLent) throw error
      }
    }
  }

  async #lend({ mayBorrow, ...push }: Push, digest: Digest, depth: number): Promise<boolean> {
    const { repository } = push
    const { mirrors, store, metadata, blobs } = this.#options
    const from = mayBorrow && behindBareName(mirrors, repository)
    if (mayBorrow === undefined || from === undefined || !mayBorrow(from)) return false
    if ((await store.findRepositoryKind(from)) !== 'mirrored') return false
    try {
      const reference: Reference = { kind: 'digest', digest }
      const manifest = await metadata.findManifest(from, reference)
      if (manifest === undefined) {
        await blobs.prefetchBlob(from, digest)
        return await blobs.mountBlob(repository, digest, { from: [from], mayPull: mayBorrow })
      }
      const { bytes, mediaType: contentType } = manifest
      const child = { ...push, reference, bytes, contentType, tags: [], condition: undefined, mayBorrow }
      await this.putManifest(child, depth + 1)
      return true
    } catch (error) {
      if (error instanceof RegistryError && cannotBeLent.has(error.kind)) return false
      throw error
    }
  }
}

/** The digests that a manifest was refused for; none for another error. */
function missingContent(error: unknown): Digest[] {
  if (!(error instanceof RegistryError) || error.kind !== 'MANIFEST_BLOB_UNKNOWN') return []
  return error.entries.flatMap(({ detail }) =>
    typeof detail === 'string' && isDigest(detail) ? [detail] : [],
  )
}
