import type { ManifestHead, MetadataStore, StoredManifest } from '../../storage/metadata-store.js'
import { type Digest, isDigest } from '../oci/digest.js'
import type { RepositoryName, Tag } from '../oci/reference.js'
import type { Mirror } from './mirrors.js'
import { toRefusal } from './refusals.js'

/** A manifest as a sync needs it. */
export type SourceManifest = Pick<StoredManifest, 'digest' | 'bytes'> & {
  readonly mediaType: ManifestHead['mediaType'] | undefined
}

/** Where a sync has its manifests from. */
export interface ManifestSource {
  /**
   * The manifest that a tag leads to upstream at this moment, or the one of a digest.
   * @throws RegistryError
   */
  load(repository: RepositoryName, reference: Tag | Digest): Promise<SourceManifest>
}

/** Looks at what is here and upstream, and stores nothing: for dry runs. */
export function lookingSource(mirror: Mirror, metadata: MetadataStore): ManifestSource {
  return {
    async load(repository, reference) {
      const remote = mirror.remoteOf(repository)
      try {
        const digest = isDigest(reference)
          ? reference
          : (await mirror.upstream.headManifest(remote, reference)).digest
        return (
          (await metadata.findManifest(repository, { kind: 'digest', digest })) ??
          (await mirror.upstream.getManifest(remote, digest))
        )
      } catch (error) {
        throw toRefusal(error, 'MANIFEST_UNKNOWN')
      }
    },
  }
}
