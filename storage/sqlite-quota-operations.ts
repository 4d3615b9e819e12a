import type { Database } from 'better-sqlite3'
import type { Digest } from '../src/oci/digest.js'
import type { RepositoryName } from '../src/oci/reference.js'
import {
  matchesRepository,
  parseRepositoryPattern,
  type RepositoryPattern,
} from '../src/oci/repository-pattern.js'
import {
  entrySizes,
  type Need,
  overheadLimit,
  type Quota,
  type QuotaExcess,
  type QuotaUse,
  type Reservation,
} from './quota-store.js'
import { heldBy } from './sqlite-quota-triggers.js'

/** The sums are kept by the triggers of sqlite-quota-triggers.ts; see {@link QuotaStore} for what each operation promises. */
export function prepareQuotas(db: Database) {
  const list = db.prepare<[], QuotaUse>(`SELECT ${quotaColumns} FROM quota`)
  const ofRepository = db.prepare<[string], QuotaUse>(quotasOfRepository)
  const turn = db.prepare<
    [string, string],
    { repository: RepositoryName; held: number; finishing: Digest | null }
  >('SELECT repository, max(offset, reserved) AS held, finishing FROM upload WHERE id = ? AND holder = ?')
  const setReserved = db.prepare('UPDATE upload SET reserved = ? WHERE id = ?')
  const held = heldBy(':repository')
  const heldByMirror = db.prepare<{ repository: string }, Need>(
    `SELECT ${held.used} AS bytes, ${held.overhead} AS overhead
     FROM repository c WHERE c.name = :repository AND c.mirror IS NOT NULL`,
  )
  const members = prepareMembers(db)
  const findMending = prepareMending(db)
  const parsed = new Map<string, RepositoryPattern>()

  function matches({ pattern }: Quota, repository: RepositoryName): boolean {
    let known = parsed.get(pattern)
    if (known === undefined) {
      known = parseRepositoryPattern(pattern)
      parsed.set(pattern, known)
    }
    return matchesRepository(known, repository)
  }

  /** @param finishing the digest of the blob that is pushed, where that is known */
  function findLack(
    quotas: readonly QuotaUse[],
    repository: RepositoryName,
    need: Need,
    finishing?: Digest,
  ): QuotaExcess | undefined {
    const isLacking = quotas.some((quota) => lackOf(quota, need, boundsOf(quota)) !== undefined)
    if (!isLacking) return undefined
    const mending = findMending(repository, finishing)
    const [first] = quotas.flatMap((quota) => lackOf(quota, need, boundsOf(quota, mending)) ?? [])
    return first
  }

  /** What counts in addition as soon as somebody pushes: all of it in a repository that a mirror has filled. */
  function mirroredIn(repository: RepositoryName): Need {
    return heldByMirror.get({ repository }) ?? { bytes: 0, overhead: 0 }
  }

  /** The quotas that a push into a repository has to fit into, with what is there. */
  function quotasFor(repository: RepositoryName): QuotaUse[] {
    const { bytes, overhead } = mirroredIn(repository)
    if (bytes === 0 && overhead === 0) return ofRepository.all(repository)
    return list
      .all()
      .filter((quota) => matches(quota, repository))
      .map((quota) => ({ ...quota, used: quota.used + bytes, overhead: quota.overhead + overhead }))
  }

  return {
    /**
     * The quota that something more would exceed; a repository that is new is counted from now on, if none is in the
     * way. What a mirror has filled counts from the first push on, and so comes on top of that.
     */
    findExcess(repository: RepositoryName, wanted: Need): QuotaExcess | undefined {
      const mirrored = mirroredIn(repository)
      const need = { bytes: wanted.bytes + mirrored.bytes, overhead: wanted.overhead + mirrored.overhead }
      if (need.bytes === 0 && need.overhead === 0) return undefined
      const matching = () => list.all().filter((quota) => matches(quota, repository))
      const quotas = matching()
      const excess = findLack(quotas, repository, need)
      if (excess !== undefined) return excess
      const added = quotas.filter(({ pattern }) => members.add(pattern, repository))
      return added.length === 0 ? undefined : findLack(matching(), repository, need)
    },

    /** Makes a repository one that its quotas count. */
    countAsMember(repository: RepositoryName): void {
      for (const quota of list.all()) if (matches(quota, repository)) members.add(quota.pattern, repository)
    },

    setQuotas(quotas: readonly Quota[]): void {
      const before = new Set(list.all().map(({ pattern }) => pattern))
      for (const pattern of before)
        if (!quotas.some((quota) => quota.pattern === pattern)) members.drop(pattern)
      for (const quota of quotas) {
        members.set(quota)
        if (before.has(quota.pattern)) continue
        for (const name of members.listNames()) if (matches(quota, name)) members.add(quota.pattern, name)
      }
    },

    reserve(id: string, holder: string, end: number): Reservation {
      const upload = turn.get(id, holder)
      if (upload === undefined || upload.held >= end) return { end, excess: undefined }
      const { repository, held, finishing } = upload
      const quotas = quotasFor(repository)
      const need = { bytes: end - held, overhead: 0 }
      if (findLack(quotas, repository, need, finishing ?? undefined) === undefined) {
        setReserved.run(end, id)
        return { end, excess: undefined }
      }
      const mending = findMending(repository, finishing ?? undefined)
      const roomOf = (quota: QuotaUse) => boundsOf(quota, mending).bytes - quota.used
      const [excess] = quotas.sort((one, other) => roomOf(one) - roomOf(other))
      const room = excess === undefined ? 0 : Math.max(0, roomOf(excess))
      setReserved.run(held + room, id)
      return { end: held + room, excess: excess === undefined ? undefined : { ...excess, lack: 'bytes' } }
    },
  }
}

export const quotaColumns = 'pattern, bytes AS "limit", used, waiting, overhead'

/** The quotas that count a repository; takes its name. */
export const quotasOfRepository = `SELECT ${quotaColumns} FROM quota_repository m JOIN quota USING (pattern)
  WHERE m.repository = ? AND NOT EXISTS (
    SELECT 1 FROM repository c WHERE c.name = m.repository AND c.mirror IS NOT NULL)`

/** What pushes into a repository may take beyond its quotas while they bring back what was lost and counts still. */
interface Mending {
  /** What the damaged blobs take that the repository links. */
  readonly lost: Need
  /** What its uploads take already. */
  readonly uploads: Need
}

/** The bounds of a quota: its own, or where something is to be mended what it holds without the uploads, and room for these. */
function boundsOf(quota: QuotaUse, mending?: Mending): Need {
  if (mending === undefined) return { bytes: quota.limit, overhead: overheadLimit(quota) }
  const { lost, uploads } = mending
  return {
    bytes: Math.max(quota.limit, quota.used - uploads.bytes) + lost.bytes,
    overhead: Math.max(overheadLimit(quota), quota.overhead - uploads.overhead) + lost.overhead,
  }
}

function lackOf(quota: QuotaUse, need: Need, bounds: Need): QuotaExcess | undefined {
  if (need.bytes > 0 && quota.used + need.bytes > bounds.bytes) return { ...quota, lack: 'bytes' }
  const isOver = need.overhead > 0 && quota.overhead + need.overhead > bounds.overhead
  return isOver ? { ...quota, lack: 'overhead' } : undefined
}

function prepareMending(db: Database) {
  const lost = db.prepare<[string], { digest: Digest; size: number }>(
    `SELECT b.digest, b.size FROM blob b JOIN repository r ON r.name = ?
     JOIN blob_link l ON l.repository_id = r.id AND l.blob_id = b.id WHERE b.damage IS NOT NULL`,
  )
  const uploads = db.prepare<[string], { bytes: number; count: number }>(
    'SELECT coalesce(sum(max(offset, reserved)), 0) AS bytes, count(*) AS count FROM upload WHERE repository = ?',
  )
  /** @param finishing the digest of the blob that is pushed, where that is known: another one mends nothing */
  return function findMending(
    repository: RepositoryName,
    finishing: Digest | undefined,
  ): Mending | undefined {
    const blobs = lost.all(repository)
    const mends = blobs.some(({ digest }) => finishing === undefined || digest === finishing)
    if (!mends) return undefined
    const { bytes = 0, count = 0 } = uploads.get(repository) ?? {}
    return {
      lost: {
        bytes: blobs.reduce((sum, { size }) => sum + size, 0),
        overhead: blobs.length * entrySizes.upload,
      },
      uploads: { bytes, overhead: count * entrySizes.upload },
    }
  }
}

/** The rows of quotas and of the repositories that they count. */
function prepareMembers(db: Database) {
  const set = db.prepare(
    `INSERT INTO quota (pattern, bytes, used) VALUES (?, ?, 0)
     ON CONFLICT (pattern) DO UPDATE SET bytes = excluded.bytes`,
  )
  const drop = db.prepare('DELETE FROM quota WHERE pattern = ?')
  const names = db
    .prepare<[], RepositoryName>(
      `SELECT name FROM repository UNION SELECT repository FROM upload
       UNION SELECT repository FROM waiting_blob`,
    )
    .pluck()
  const add = db.prepare(
    'INSERT INTO quota_repository (repository, pattern) VALUES (?, ?) ON CONFLICT DO NOTHING',
  )
  const held = heldBy(':repository')
  const count = db.prepare(
    `UPDATE quota SET used = used + ${held.used}, waiting = waiting + ${held.waiting},
       overhead = overhead + ${held.overhead}
     WHERE pattern = :pattern
       AND NOT EXISTS (SELECT 1 FROM repository c WHERE c.name = :repository AND c.mirror IS NOT NULL)`,
  )
  return {
    set: ({ pattern, limit }: Quota) => set.run(pattern, limit),
    drop: (pattern: string) => drop.run(pattern),
    /** Those of mirrors, too: they count as soon as they are no mirror's any more. */
    listNames: () => names.all(),
    /** Counts what the repository holds, once. @returns whether it was not counted before */
    add(pattern: string, repository: RepositoryName): boolean {
      if (add.run(repository, pattern).changes === 0) return false
      count.run({ repository, pattern })
      return true
    },
  }
}
