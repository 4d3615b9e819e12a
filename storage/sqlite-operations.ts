import type { Database } from 'better-sqlite3'
import type { Digest } from '../src/oci/digest.js'
import type { RepositoryName } from '../src/oci/reference.js'
import type { PutManifestResult, StartResult } from './metadata-store.js'
import { fillOwner, syncHolder } from './mirror-store.js'
import { entrySizes, type Need, type QuotaExcess } from './quota-store.js'
import { prepareAccessOperations } from './sqlite-access-operations.js'
import { prepareBlobs, prepareRepositoryId } from './sqlite-blob-operations.js'
import { prepareCollection } from './sqlite-collection-operations.js'
import { type DraftedManifest, prepareDrafts } from './sqlite-drafts.js'
import { prepareEmptyRepositories } from './sqlite-empty-operations.js'
import { prepareIntegrity } from './sqlite-integrity-operations.js'
import { prepareManifests } from './sqlite-manifest-operations.js'
import { prepareMirrorOperations } from './sqlite-mirror-operations.js'
import { prepareQuotas } from './sqlite-quota-operations.js'
import { prepareTags } from './sqlite-tag-operations.js'
import { prepareUploads } from './sqlite-upload-operations.js'

/**
 * The operations that write, each run inside a transaction by the writer thread. They return refusals as
 * values; what they throw undoes the operation alone.
 */
export type Operations = ReturnType<typeof prepareOperations>

/**
 * Operations whose loss in a power cut takes nothing from anybody: they are committed without waiting for the
 * disk. The next durable commit carries them along, since the log is synced as a whole.
 */
export const volatileOperations: ReadonlySet<string> = new Set<keyof Operations>([
  'startUpload',
  'takeTurn',
  'releaseTurn',
  'releaseTurns',
  'releaseServerTurns',
  'removeUpload',
  'renewBlob',
  'renewManifest',
  'recordPulls',
  // A collection that lost these does them again. Before bytes go, it makes what it condemned durable (see
  // CollectionStore.syncCondemned).
  'removeManifests',
  'removeLinks',
  'removeRepositories',
  'forgetOld',
  // The manifest that comes after them carries them along.
  'openDraft',
  'draftChildren',
  'dropDraft',
  'endIdleUpload',
  'condemnBlobs',
  'condemnFiles',
  'claimCondemned',
  'forgetBlobs',
  'releaseCondemned',
  'recordCollection',
  'touchAccessTokens',
  'holdBlob',
  'releaseBlob',
  'savePosition',
  'recordVerification',
  'reserve',
  'takeFill',
  'noteFillSize',
  'takeLease',
  'releaseLease',
  'noteUses',
  'noteWork',
  'noteSync',
  'noteRunning',
])

/**
 * Operations that free space, or lead there: on a full disk they may use up the reserve. What is not here is refused
 * then, pushes above all.
 */
export const freeingOperations: ReadonlySet<string> = new Set<keyof Operations>([
  'deleteManifest',
  'deleteTag',
  'removeTags',
  'unlinkBlob',
  'takeTurn',
  'releaseTurn',
  'releaseTurns',
  'releaseServerTurns',
  'removeUpload',
  'expireUploads',
  'cancelUpload',
  'endIdleUpload',
  'dropDraft',
  'removeRepositories',
  'forgetOld',
  'forgetDeleted',
  'removeManifests',
  'removeLinks',
  'condemnBlobs',
  'condemnFiles',
  'claimCondemned',
  'forgetBlobs',
  'releaseCondemned',
  'recordCollection',
  'evict',
  'takeLease',
  'releaseLease',
])

/**
 * Operations that give back what others wait for: where that cannot be written now, it is done as soon as it can. They
 * name their holder, so they may come late, and more than once.
 */
export const releasingOperations: ReadonlySet<string> = new Set<keyof Operations>([
  'releaseTurn',
  'releaseLease',
])

/** An operation that was refused: it is undone, and its answer is this value. */
export class Refused {
  readonly value: unknown

  constructor(value: unknown) {
    this.value = value
  }
}

/** What is refused leaves nothing behind, not even the name of its repository (S102). */
function orNothing<Args extends readonly unknown[], R>(
  run: (...args: Args) => R,
  isDone: (value: R) => boolean,
): (...args: Args) => R {
  return (...args) => {
    const value = run(...args)
    if (isDone(value)) return value
    throw new Refused(value)
  }
}

/** What takes no room. */
const nothing: Need = { bytes: 0, overhead: 0 }

const isStored = ({ outcome }: { readonly outcome: string }) => outcome === 'stored'

export function prepareOperations(db: Database) {
  const uploads = prepareUploads(db)
  const blobs = prepareBlobs(db)
  const manifests = prepareManifests(db)
  const {
    give: _,
    disown,
    mirrorOf,
    noteDelivery,
    ...mirrors
  } = prepareMirrorOperations(db, {
    ...uploads,
    ...blobs,
    ...manifests,
    repositoryId: prepareRepositoryId(db),
  })
  const { findExcess, countAsMember, ...quotas } = prepareQuotas(db)
  const { removeRepositories, forgetMirrored } = prepareEmptyRepositories(db)

  /** What is pushed is its owner's from that moment: whatever a mirror has filled before, it is a mirror's no longer. */
  function own(repository: RepositoryName): void {
    if (mirrorOf(repository) === undefined) return
    countAsMember(repository)
    disown(repository)
  }

  // A row that is written as it is would be no write at all, and nothing would be synced.
  const probe = db.prepare('UPDATE probe SET checked_at = max(checked_at + 1, ?)')
  return {
    ...uploads,
    ...blobs,
    ...manifests,
    ...prepareAccessOperations(db),
    ...prepareCollection(db),
    ...prepareIntegrity(db),
    ...prepareTags(db),
    ...prepareDrafts(db),
    ...mirrors,
    ...quotas,
    removeRepositories,

    startUpload: orNothing(
      (...args: Parameters<typeof uploads.startUpload>): StartResult =>
        findExcess(args[0].repository, { bytes: 1, overhead: entrySizes.upload }) ??
        uploads.startUpload(...args),
      (started) => started === true,
    ),

    mountBlob: orNothing(
      (...args: Parameters<typeof blobs.mountBlob>): boolean | QuotaExcess => {
        const [repository, digest, from] = args
        const bytes = blobs.sizeToLink(repository, digest, from)
        const need = bytes === undefined ? nothing : { bytes, overhead: entrySizes.blob }
        const excess = findExcess(repository, need)
        if (excess !== undefined) return excess
        const isMounted = blobs.mountBlob(...args)
        if (isMounted) own(repository)
        return isMounted
      },
      (mounted) => mounted === true,
    ),

    ownBlob(repository: RepositoryName, digest: Digest, now: number): number | undefined | QuotaExcess {
      const excess = mirrorOf(repository) === undefined ? undefined : findExcess(repository, nothing)
      if (excess !== undefined) return excess
      const size = blobs.renewBlob(repository, digest, now)
      if (size !== undefined) own(repository)
      return size
    },

    putManifest: orNothing((manifest: DraftedManifest): PutManifestResult => {
      const excess = findExcess(manifest.repository, manifests.needOf(manifest) ?? nothing)
      if (excess !== undefined) return { outcome: 'over-quota', excess }
      return manifests.putManifest(manifest, () => own(manifest.repository))
    }, isStored),

    putMirrored: orNothing(mirrors.putMirrored, isStored),

    takeFill: orNothing(mirrors.takeFill, (taken) => typeof taken === 'object'),

    removeUpload(id: string, holder: string | undefined): boolean {
      const repository = uploads.removeUpload(id, holder)
      if (repository !== undefined) forgetMirrored(repository)
      return repository !== undefined
    },

    /** Whoever begins with this text is dead: what it held is free. */
    releaseTurns(prefix: string): void {
      uploads.releaseTurns(prefix, '')
      mirrors.releaseLeases(prefix, '')
    },

    /** The same without those who may outlive a server. */
    releaseServerTurns(prefix: string): void {
      uploads.releaseTurns(prefix, syncHolder)
      mirrors.releaseLeases(prefix, syncHolder)
    },

    finishUpload(
      id: string,
      holder: string,
      blob: { readonly digest: Digest; readonly size: number },
      now: number,
    ): boolean {
      const upload = uploads.findFinishing(id, holder, blob.digest)
      if (upload === undefined) return false
      const { repository, owner } = upload
      const mirror = owner === fillOwner ? mirrorOf(repository) : undefined
      // Somebody has pushed into it since the fill began: nothing from upstream gets in there any more.
      if (owner === fillOwner && mirror === undefined) return false
      if (!blobs.add(repository, blob, now)) return false
      if (mirror === undefined) own(repository)
      else noteDelivery(mirror, blob.digest)
      uploads.removeUpload(id, holder)
      return true
    },

    /** Proves that the database takes writes, and makes durable what was committed before. */
    check(now: number): void {
      probe.run(now)
    },
  }
}
