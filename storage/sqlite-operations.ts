import type { Database } from 'better-sqlite3'
import type { Digest } from '../src/oci/digest.js'
import type { NewManifest, PutManifestResult } from './metadata-store.js'
import { syncHolder } from './mirror-store.js'
import { entrySizes, type QuotaExcess } from './quota-store.js'
import { prepareAccessOperations } from './sqlite-access-operations.js'
import { prepareBlobs, prepareRepositoryId } from './sqlite-blob-operations.js'
import { prepareCollection } from './sqlite-collection-operations.js'
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
  'forgetOld',
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

export function prepareOperations(db: Database) {
  const uploads = prepareUploads(db)
  const blobs = prepareBlobs(db)
  const manifests = prepareManifests(db)
  const mirrors = prepareMirrorOperations(db, {
    ...uploads,
    ...blobs,
    ...manifests,
    repositoryId: prepareRepositoryId(db),
  })
  const { findExcess, ...quotas } = prepareQuotas(db)
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
    ...mirrors,
    ...quotas,

    startUpload(...args: Parameters<typeof uploads.startUpload>): boolean | QuotaExcess {
      return (
        findExcess(args[0].repository, { bytes: 1, overhead: entrySizes.upload }) ??
        uploads.startUpload(...args)
      )
    },

    mountBlob(...args: Parameters<typeof blobs.mountBlob>): boolean | QuotaExcess {
      const [repository, digest, from] = args
      const bytes = blobs.sizeToLink(repository, digest, from)
      const excess =
        bytes === undefined ? undefined : findExcess(repository, { bytes, overhead: entrySizes.blob })
      return excess ?? blobs.mountBlob(...args)
    },

    putManifest(manifest: NewManifest): PutManifestResult {
      const need = manifests.needOf(manifest)
      const excess = need === undefined ? undefined : findExcess(manifest.repository, need)
      return excess === undefined ? manifests.putManifest(manifest) : { outcome: 'over-quota', excess }
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
      const repository = uploads.repositoryOf(id, holder, blob.digest)
      if (repository === undefined || !blobs.add(repository, blob, now)) return false
      uploads.removeUpload(id, holder)
      return true
    },

    /** Proves that the database takes writes, and makes durable what was committed before. */
    check(now: number): void {
      probe.run(now)
    },
  }
}
