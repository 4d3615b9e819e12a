import type { MirrorStore } from '../../storage/mirror-store.js'
import { childrenOf, type PackedManifest } from '../oci/packed-manifest.js'
import { Turns } from '../oci/turns.js'
import type { FillTask } from './fill-task.js'

/** Bytes that a blob may have which no manifest here names. */
const mostUnnamed = 1024 ** 3

/** Manifests that are read for a blob's size. */
const mostManifests = 10

/** What a bound is found with. */
export interface FillBoundOptions {
  readonly store: Pick<MirrorStore, 'listNaming'>
  readonly parse: (bytes: Uint8Array, contentType: string | undefined) => Promise<PackedManifest>
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
  const turns = new Turns()
  let largest: number | undefined
  for (const { bytes, mediaType } of manifests) {
    for (const children of childrenOf(await parse(bytes, mediaType))) {
      for (const child of children) if (child.digest === digest) largest = Math.max(largest ?? 0, child.size)
      await turns.rest()
    }
  }
  return largest ?? mostUnnamed
}
