import type { IdleManifest, Moments } from '../../storage/collection-store.js'
import type { RepositoryName } from '../oci/reference.js'
import { leaseSlack } from './leases.js'

/** How long manifests stay that no tag leads to. */
export interface UntaggedPolicy {
  /** The shortest of these times, in milliseconds; undefined when they stay everywhere. */
  readonly shortest: number | undefined
  /** Milliseconds in one repository; undefined when they stay there. */
  of(repository: RepositoryName, isMirrored: boolean): number | undefined
}

/** What the collector is told. All in milliseconds. */
export interface GarbageOptions {
  /** Name of this process: what it condemns is its own. */
  readonly holder: string
  /** How long what somebody relied on stays at least. */
  readonly grace: number
  /** How long a manifest can be restored that was deleted or lost its tag. */
  readonly undo: number
  /** How long changes of tags are remembered; undefined for ever. */
  readonly history?: number | undefined
  /** How long manifests without a tag stay; undefined for ever. */
  readonly untagged?: UntaggedPolicy | undefined
}

/** A policy with one time for all repositories. */
export function sameEverywhere(untagged: number | undefined): UntaggedPolicy {
  return { shortest: untagged, of: () => untagged }
}

/** The moments before which a collection that begins now takes things. */
export interface CollectionMoments {
  readonly blobs: Moments
  readonly links: Moments
  readonly undo: number
  readonly history: number
  /** The latest moment of all repositories; undefined when manifests stay everywhere. */
  readonly manifests: number | undefined
  /** The moment for one manifest; undefined when it stays. */
  manifest(manifest: Pick<IdleManifest, 'repository' | 'isMirrored'>): number | undefined
}

/**
 * @param since the moment from which so many milliseconds have passed until now; those alone count in which a server
 * ran, so that a clock that is years ahead when it starts ends no grace (see livedSince)
 */
export function momentsOf(
  options: Omit<GarbageOptions, 'holder'>,
  since: (length: number) => number,
): CollectionMoments {
  const { grace, untagged, history } = options
  const undo = since(options.undo)
  const momentOf = (length: number | undefined) =>
    length === undefined ? undefined : since(length + leaseSlack(length))
  return {
    blobs: { before: since(grace), undo },
    links: { before: since(grace + leaseSlack(grace)), undo },
    undo,
    history: history === undefined ? 0 : Math.min(undo, since(history)),
    manifests: momentOf(untagged?.shortest),
    manifest: ({ repository, isMirrored }) => momentOf(untagged?.of(repository, isMirrored)),
  }
}

/** Idle manifests that a collection may take, by the moments that hold for them. */
export function groupByMoment(
  found: readonly IdleManifest[],
  moments: CollectionMoments,
): Map<number, number[]> {
  const groups = new Map<number, number[]>()
  for (const manifest of found) {
    const before = moments.manifest(manifest)
    if (before === undefined || manifest.usedAt >= before) continue
    const known = groups.get(before)
    if (known === undefined) groups.set(before, [manifest.id])
    else known.push(manifest.id)
  }
  return groups
}
