import type { Database } from 'better-sqlite3'
import type { RepositoryName } from '../src/oci/reference.js'
import {
  matchesRepository,
  parseRepositoryPattern,
  type RepositoryPattern,
} from '../src/oci/repository-pattern.js'
import type { Quota, QuotaUse, Reservation } from './quota-store.js'

/** The sums are kept by the triggers of migrations.ts; see {@link QuotaStore} for what each operation promises. */
export function prepareQuotas(db: Database) {
  const list = db.prepare<[], QuotaUse>(`SELECT ${quotaColumns} FROM quota`)
  const ofRepository = db.prepare<[string], QuotaUse>(
    `SELECT ${quotaColumns} FROM quota_repository m JOIN quota USING (pattern) WHERE m.repository = ?`,
  )
  const turn = db.prepare<[string, string], { repository: RepositoryName; held: number }>(
    'SELECT repository, max(offset, reserved) AS held FROM upload WHERE id = ? AND holder = ?',
  )
  const setReserved = db.prepare('UPDATE upload SET reserved = ? WHERE id = ?')
  const members = prepareMembers(db)
  const parsed = new Map<string, RepositoryPattern>()

  function matches({ pattern }: Quota, repository: RepositoryName): boolean {
    let known = parsed.get(pattern)
    if (known === undefined) {
      known = parseRepositoryPattern(pattern)
      parsed.set(pattern, known)
    }
    return matchesRepository(known, repository)
  }

  return {
    /** The quota that so many bytes more would exceed; a repository that is new is counted from now on. */
    findExcess(repository: RepositoryName, bytes: number): QuotaUse | undefined {
      const find = () => list.all().filter((quota) => matches(quota, repository))
      const matching = find()
      const added = matching.filter(({ pattern }) => members.add(pattern, repository))
      return (added.length === 0 ? matching : find()).find(({ limit, used }) => used + bytes > limit)
    },

    /** Does what changes whose a repository is: what it holds counts as it did before, and from then on anew. */
    recount(repository: RepositoryName, change: () => void): void {
      members.leave(repository)
      change()
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
      const { repository, held } = upload
      const quotas = ofRepository.all(repository)
      const excess = quotas
        .filter(({ limit, used }) => used + end - held > limit)
        .sort((one, other) => one.limit - one.used - (other.limit - other.used))[0]
      const room = excess === undefined ? end - held : Math.max(0, excess.limit - excess.used)
      setReserved.run(held + room, id)
      return { end: held + room, excess }
    },
  }
}

export const quotaColumns = 'pattern, bytes AS "limit", used'

/** The rows of quotas and of the repositories that they count. */
function prepareMembers(db: Database) {
  const set = db.prepare(
    `INSERT INTO quota (pattern, bytes, used) VALUES (?, ?, 0)
     ON CONFLICT (pattern) DO UPDATE SET bytes = excluded.bytes`,
  )
  const drop = db.prepare('DELETE FROM quota WHERE pattern = ?')
  const names = db
    .prepare<[], RepositoryName>(
      `SELECT name FROM repository WHERE mirror IS NULL
       UNION SELECT repository FROM upload
         WHERE repository NOT IN (SELECT name FROM repository WHERE mirror IS NOT NULL)`,
    )
    .pluck()
  const add = db.prepare(
    'INSERT INTO quota_repository (repository, pattern) VALUES (?, ?) ON CONFLICT DO NOTHING',
  )
  const held = `(
       (SELECT coalesce(sum(b.size), 0) FROM repository r JOIN blob_link l ON l.repository_id = r.id
          JOIN blob b ON b.id = l.blob_id WHERE r.name = :repository)
       + (SELECT coalesce(sum(m.size), 0) FROM repository r JOIN manifest m ON m.repository_id = r.id
          WHERE r.name = :repository)
       + (SELECT coalesce(sum(max(offset, reserved)), 0) FROM upload WHERE repository = :repository))`
  const count = db.prepare(`UPDATE quota SET used = used + ${held} WHERE pattern = :pattern`)
  const discount = db.prepare(
    `UPDATE quota SET used = used - ${held}
     WHERE pattern IN (SELECT pattern FROM quota_repository WHERE repository = :repository)`,
  )
  const forget = db.prepare('DELETE FROM quota_repository WHERE repository = ?')
  return {
    set: ({ pattern, limit }: Quota) => set.run(pattern, limit),
    drop: (pattern: string) => drop.run(pattern),
    listNames: () => names.all(),
    /** Takes out of every quota what the repository holds. */
    leave(repository: RepositoryName): void {
      discount.run({ repository })
      forget.run(repository)
    },
    /** Counts what the repository holds, once. @returns whether it did so now */
    add(pattern: string, repository: RepositoryName): boolean {
      const isNew = add.run(repository, pattern).changes === 1
      if (isNew) count.run({ repository, pattern })
      return isNew
    },
  }
}
