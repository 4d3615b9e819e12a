import type { MirrorStore } from '../../storage/mirror-store.js'
import type { ParsedManifest } from '../oci/manifest.js'
import type { FillTask } from './fill-task.js'

/** Bytes that a blob may have which no manifest here names. */
const mostUnnamed = 1024 ** 3

/** Manifests that are read for a blob's size. */
const mostManifests = 10

/** What a bound is found with. */
export interface FillBoundOptions {
  readonly store: Pick<MirrorStore, 'listNaming'>
  readonly parse: (bytes: Uint8Array, contentType: string | undefined) => Promise<ParsedManifest>
}

/**
 * The most bytes that a blob may have whose size the upstream does not say (reliability S46): what the manifests
 * say that name it, or 1 GiB where none does. An answer that never ends would fill the disk otherwise.
 */
export async function boundOf(
  { repository, digest }: Pick<FillTask, 'repository' | 'digest'>,
  { store, parse }: FillBoundOptions,
): Promise<number> {
  const manifests = await store.listNaming(repository, digest, mostManifests)
  const parsed = await Promise.all(manifests.map(({ bytes, mediaType }) => parse(bytes, mediaType)))
  const sizes = parsed
    .flatMap(({ children }) => children)
    .flatMap((child) => (child.digest === digest ? [child.size] : []))
  return sizes.length === 0 ? mostUnnamed : Math.max(...sizes)
}
