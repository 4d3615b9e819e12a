import type { CollectionStore } from '../../storage/collection-store.js'
import type { RepositoryName } from '../oci/reference.js'
import type { GarbageCollector } from './gc.js'
import { Pace } from './pace.js'

/** Rows that one transaction changes at the most, and blobs that are removed together. */
const stepSize = 100
const roundSize = 500

/** What was given up in one repository, or in several. */
export interface GivenUp {
  /** Deleted manifests that cannot be brought back any more. */
  readonly manifests: number
  /** Changes of tags that are not there any more. */
  readonly changes: number
  /** Blobs whose bytes were removed; what somebody else needs stays. */
  readonly blobs: number
  readonly bytes: number
}

/**
 * Gives up for good what was deleted in a repository, whenever that was, and removes its bytes at once as far as nobody
 * else needs them. Pushes under way may have to send a part again.
 * @returns undefined when a collection was at work for too long: what was forgotten by then goes with the next one
 * @throws RegistryError UNAVAILABLE or STORAGE_FULL; what was done until then stays done
 */
export async function giveUpDeleted(
  collection: CollectionStore,
  collector: Pick<GarbageCollector, 'collectBlobs'>,
  repository: RepositoryName,
): Promise<GivenUp | undefined> {
  const sum = { manifests: 0, changes: 0, blobs: 0, bytes: 0 }
  const pace = new Pace()
  for (;;) {
    const { manifests, changes } = await collection.forgetDeleted(repository, stepSize)
    if (manifests + changes === 0) break
    sum.manifests += manifests
    sum.changes += changes
    await pace.rest()
  }
  for (let after = 0; ; ) {
    const waiting = await collection.listWaiting(repository, after, roundSize)
    const last = waiting.at(-1)
    if (last === undefined) return sum
    after = last.id
    const report = await collector.collectBlobs(waiting.map(({ digest }) => digest))
    if (report === undefined) return undefined
    sum.blobs += report.blobs
    sum.bytes += report.bytes
  }
}
