import type {
  CollectionStore,
  DeletedFacts,
  LinkFacts,
  ManifestFacts,
} from '../../storage/collection-store.js'
import type { Digest } from '../oci/digest.js'
import { type GarbageOptions, momentsOf } from './gc-moments.js'

/** Entries of each list that are told. */
const mostTold = 20

/** Something that holds a digest, and why it does, or until when. */
export interface Reason {
  /** What is spoken of: `blob`, or a repository's right to it or manifest of it. */
  readonly what: string
  readonly isKept: boolean
  /** When it may go, milliseconds since 1970; undefined while something else keeps it. */
  readonly until: number | undefined
  /** A sentence. */
  readonly why: string
}

/**
 * Why a digest is kept, or when it goes: one reason for each repository, and one for the bytes. Empty when the
 * index does not know it.
 * @throws RegistryError UNAVAILABLE
 */
export async function explainDigest(
  collection: CollectionStore,
  options: GarbageOptions,
  digest: Digest,
): Promise<Reason[]> {
  const now = Date.now()
  const facts = await collection.explainDigest(digest, mostTold)
  const reasons = facts.manifests.map((manifest) => explainManifest(manifest, options, now))
  reasons.push(...facts.deleted.map((manifest) => explainDeleted(manifest, options, now)))
  for (const link of facts.links) reasons.push(await explainLink(collection, link, options, now))
  if (facts.isArriving) reasons.push(kept('upload', 'an upload is about to become the blob of this digest'))
  if (facts.blob?.isCondemned) reasons.push(going('blob', now, 'nothing needs it: it is being removed'))
  else if (facts.blob !== undefined && facts.links.length === 0) {
    reasons.push(lasting('blob', facts.blob.storedAt + options.grace, now, 'no repository has it'))
  }
  return reasons
}

function explainManifest(manifest: ManifestFacts, options: GarbageOptions, now: number): Reason {
  const { repository, digest, reachedFrom } = manifest
  const what = `manifest of ${repository}`
  const use = `pushed ${ago(manifest.pushedAt, now)}${manifest.pulledAt === undefined ? '' : `, pulled ${ago(manifest.pulledAt, now)}`}`
  if (reachedFrom !== undefined) {
    const { tag } = reachedFrom
    const path =
      reachedFrom.digest === digest
        ? `tagged ${repository}:${tag}`
        : `below ${reachedFrom.digest}, which is tagged ${repository}:${tag}`
    return kept(what, `${path}, ${use}`)
  }
  const undo = explainUndo(manifest, options)
  const moment = momentsOf(options, (length) => -length).manifest({
    repository,
    isMirrored: manifest.isMirrored,
  })
  if (moment === undefined) {
    const lately = undo !== undefined && undo.until > now ? `${undo.why}; ` : ''
    return kept(what, `${lately}no tag leads to it, but gc.untagged is unset; ${use}`)
  }
  const until = Math.max(manifest.pushedAt, manifest.leasedAt ?? 0, manifest.pulledAt ?? 0) - moment
  if (undo !== undefined && undo.until > Math.max(now, until)) {
    return lasting(what, undo.until, now, `${undo.why}; ${use}`)
  }
  if (until <= now && manifest.parents.length > 0) {
    return kept(what, `no tag leads to it; it goes with ${manifest.parents.join(', ')}; ${use}`)
  }
  return lasting(what, until, now, `no tag leads to it; ${use}`)
}

/** Why a manifest without a tag can be restored, or is needed by one that can, and until when. */
function explainUndo(
  { repository, digest, former, below }: ManifestFacts,
  { undo }: GarbageOptions,
): { until: number; why: string } | undefined {
  if (below !== undefined && below.deletedAt > (former?.until ?? 0)) {
    const until = below.deletedAt + undo
    return { until, why: `part of ${below.digest}, which ${historyOf(below, until)}` }
  }
  if (former === undefined) return undefined
  const until = former.until + undo
  const tail = `${repository}:${former.tag} until ${at(former.until)}, can be restored until ${at(until)}`
  return {
    until,
    why: former.digest === digest ? `was ${tail}` : `below ${former.digest}, which was ${tail}`,
  }
}

function explainDeleted(manifest: DeletedFacts, options: GarbageOptions, now: number): Reason {
  const until = manifest.deletedAt + options.undo
  return lasting(`deleted manifest of ${manifest.repository}`, until, now, historyOf(manifest, until))
}

function historyOf({ repository, tag, deletedAt }: DeletedFacts, until: number): string {
  const was = tag === undefined ? 'was deleted' : `was ${repository}:${tag} until it was deleted`
  return `${was} at ${at(deletedAt)}, can be restored until ${at(until)}`
}

async function explainLink(
  collection: CollectionStore,
  link: LinkFacts,
  options: GarbageOptions,
  now: number,
): Promise<Reason> {
  const what = `blob of ${link.repository}`
  const [naming] = link.namedBy
  if (naming === undefined) {
    const deleted = link.namedByDeleted
    if (deleted !== undefined && deleted.deletedAt + options.undo > now) {
      const until = deleted.deletedAt + options.undo
      return lasting(what, until, now, `named by ${deleted.digest}, which ${historyOf(deleted, until)}`)
    }
    const until = link.leasedAt - momentsOf(options, (length) => -length).links.before
    return lasting(what, until, now, `no manifest names it; last used ${ago(link.leasedAt, now)}`)
  }
  const facts = await collection.explainDigest(naming, mostTold)
  const manifest = facts.manifests.find(({ repository }) => repository === link.repository)
  const more = link.namedBy.length > 1 ? ` and ${link.namedBy.length - 1} more` : ''
  const why = manifest === undefined ? '' : `: ${explainManifest(manifest, options, now).why}`
  return kept(what, `named by ${naming}${more}${why}`)
}

function kept(what: string, why: string): Reason {
  return { what, isKept: true, until: undefined, why }
}

function going(what: string, until: number, why: string): Reason {
  return { what, isKept: false, until, why }
}

function lasting(what: string, until: number, now: number, why: string): Reason {
  return { what, isKept: until > now, until, why }
}

/** A moment to the second, in UTC. */
function at(time: number): string {
  return `${new Date(time).toISOString().slice(0, 19)}Z`
}

/** A moment as people say it. */
function ago(time: number, now: number): string {
  const seconds = Math.max(0, (now - time) / 1000)
  const units = [
    ['day', 86_400],
    ['hour', 3600],
    ['minute', 60],
  ] as const
  for (const [unit, length] of units) {
    const count = Math.floor(seconds / length)
    if (count > 0) return `${count} ${unit}${count === 1 ? '' : 's'} ago`
  }
  return 'just now'
}
