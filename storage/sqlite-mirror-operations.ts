import type { Database } from 'better-sqlite3'
import type { Digest } from '../src/oci/digest.js'
import type { RepositoryName, Tag } from '../src/oci/reference.js'
import type { NewManifest, PutManifestResult, TurnResult, Upload } from './metadata-store.js'
import type { MirrorCounts, NewFill } from './mirror-store.js'

/** What the mirrors' operations use of the others'. */
interface Base {
  putManifest(manifest: NewManifest): PutManifestResult
  takeTurn(id: string, holder: string, finishing: Digest): TurnResult
  linkBlob(repository: RepositoryName, blobId: number, now: number): void
  repositoryId(name: RepositoryName, now: number): number
}

/** The operations of mirrors that write; see {@link MirrorStore} for what each promises. */
export function prepareMirrorOperations(db: Database, base: Base) {
  const owners = prepareOwners(db)
  const claim = prepareClaim(db, base, owners.give)
  const checked = db.prepare(
    'UPDATE tag SET checked_at = ? WHERE repository_id = (SELECT id FROM repository WHERE name = ?) AND name = ?',
  )
  const checkedAt = db.prepare(
    `UPDATE tag SET checked_at = ?
     WHERE repository_id = (SELECT id FROM repository WHERE name = ?) AND name = ?
       AND manifest_id = (SELECT m.id FROM manifest m WHERE m.repository_id = tag.repository_id AND m.digest = ?)`,
  )
  const openFill = db.prepare(
    `INSERT INTO upload (id, repository, owner, algorithm, offset, started_at, used_at)
     VALUES (?, ?, ?, ?, 0, ?, ?) ON CONFLICT (id) DO NOTHING`,
  )
  const setSize = db.prepare('UPDATE upload SET size = ? WHERE id = ? AND holder = ?')
  const findLendable = db
    .prepare<{ mirror: string; digest: string }, number>(
      `SELECT b.id FROM blob b JOIN mirror_delivery d ON d.blob_id = b.id AND d.mirror = :mirror
       WHERE b.digest = :digest AND b.state = 'live' AND b.damage IS NULL`,
    )
    .pluck()
  const noteDelivery = db.prepare(
    `INSERT INTO mirror_delivery (blob_id, mirror)
     SELECT id, :mirror FROM blob WHERE digest = :digest ON CONFLICT DO NOTHING`,
  )

  return {
    ...prepareMirrorNotes(db),
    ...prepareEviction(db),
    ...owners,

    /** The mirror's upstream has delivered a blob that is stored. */
    noteDelivery(mirror: string, digest: Digest): void {
      noteDelivery.run({ mirror, digest })
    },

    putMirrored(manifest: NewManifest, mirror: string): PutManifestResult | { readonly outcome: 'local' } {
      if (!claim(manifest.repository, mirror, manifest.now)) return { outcome: 'local' }
      const result = base.putManifest(manifest)
      if (result.outcome === 'stored') {
        for (const tag of manifest.tags) checked.run(manifest.now, manifest.repository, tag)
      }
      return result
    },

    noteTagChecked(repository: RepositoryName, tag: Tag, digest: Digest, now: number): boolean {
      return checkedAt.run(now, repository, tag, digest).changes === 1
    },

    takeFill(fill: NewFill, holder: string, now: number): Upload | 'busy' | 'condemned' | 'local' {
      if (!claim(fill.repository, fill.mirror, now)) return 'local'
      openFill.run(fill.id, fill.repository, fill.owner, fill.algorithm, now, now)
      const taken = base.takeTurn(fill.id, holder, fill.digest)
      return taken === 'unknown' ? 'busy' : taken
    },

    noteFillSize(id: string, holder: string, size: number | undefined): void {
      setSize.run(size ?? null, id, holder)
    },

    linkMirrored(repository: RepositoryName, digest: Digest, mirror: string, now: number): boolean {
      const blob = findLendable.get({ mirror, digest })
      if (blob === undefined || !claim(repository, mirror, now)) return false
      base.linkBlob(repository, blob, now)
      return true
    },
  }
}

/** Makes a repository the mirror's, unless it holds what was pushed here, or what can be restored of it. */
function prepareClaim(db: Database, base: Base, give: (change: OwnerChange) => void) {
  const find = db.prepare<[string], { id: number; mirror: string | null; isUsed: number }>(
    `SELECT r.id, r.mirror, ${isRepositoryUsed} AS isUsed FROM repository r WHERE r.name = ?`,
  )
  return function claim(repository: RepositoryName, mirror: string, now: number): boolean {
    const row = find.get(repository)
    if (row?.mirror === mirror) return true
    if (row?.mirror === null && row.isUsed === 1) return false
    give({ id: base.repositoryId(repository, now), from: row?.mirror ?? null, to: mirror })
    return true
  }
}

/** Whether a repository `r` holds anything, or could have it back. */
export const isRepositoryUsed = `(EXISTS (SELECT 1 FROM manifest WHERE repository_id = r.id)
  OR EXISTS (SELECT 1 FROM blob_link WHERE repository_id = r.id)
  OR EXISTS (SELECT 1 FROM deleted_manifest WHERE repository_id = r.id))`

/** A repository goes from one mirror to another, or to those who push here (null). */
interface OwnerChange {
  readonly id: number
  readonly from: string | null
  readonly to: string | null
}

/** Repositories that {@link MirrorStore.settleRepositories} changes in one transaction. */
const settledAtOnce = 100

/** Whose the repositories are. */
function prepareOwners(db: Database) {
  const find = db.prepare<[string], { id: number; mirror: string | null }>(
    'SELECT id, mirror FROM repository WHERE name = ?',
  )
  const set = db.prepare('UPDATE repository SET mirror = ? WHERE id = ?')
  // Another upstream has never said what these tags point at.
  const uncheck = db.prepare('UPDATE tag SET checked_at = NULL WHERE repository_id = ?')
  const take = db.prepare<OwnerChange>(
    `INSERT INTO mirror_blob (mirror, blob_id, size, used_at)
     SELECT :to, m.blob_id, m.size, m.used_at FROM blob_link l
       JOIN mirror_blob m ON m.blob_id = l.blob_id AND m.mirror = :from WHERE l.repository_id = :id
     ON CONFLICT DO UPDATE SET used_at = max(used_at, excluded.used_at)`,
  )
  const drop = db.prepare<Omit<OwnerChange, 'to'>>(
    `DELETE FROM mirror_blob WHERE mirror = :from
       AND blob_id IN (SELECT blob_id FROM blob_link WHERE repository_id = :id)
       AND NOT EXISTS (
         SELECT 1 FROM blob_link l JOIN repository r ON r.id = l.repository_id
         WHERE l.blob_id = mirror_blob.blob_id AND r.mirror = :from)`,
  )
  // The names below one are a range of the index: '0' follows '/'.
  const misplaced = db.prepare<{ names: string; limit: number }, OwnerChange>(
    `SELECT r.id, r.mirror AS "from", n.value AS "to" FROM json_each(:names) n
       CROSS JOIN repository r ON r.name > n.value || '/' AND r.name < n.value || '0'
     WHERE r.mirror IS NOT NULL AND r.mirror <> n.value LIMIT :limit`,
  )

  function give({ id, from, to }: OwnerChange): void {
    set.run(to, id)
    uncheck.run(id)
    if (from === null) return
    if (to !== null) take.run({ id, from, to })
    drop.run({ id, from })
  }

  return {
    give,

    /** The mirror that a repository belongs to; undefined when it is none's. */
    mirrorOf(repository: RepositoryName): string | undefined {
      return find.get(repository)?.mirror ?? undefined
    },

    /** What a mirror has filled becomes what was pushed here: nothing of it is evicted any more. */
    disown(repository: RepositoryName): void {
      const row = find.get(repository)
      if (row !== undefined && row.mirror !== null) give({ id: row.id, from: row.mirror, to: null })
    },

    /** @returns how many repositories got another mirror; 0 when all have theirs */
    settleRepositories(mirrors: readonly string[]): number {
      const changes = misplaced.all({ names: JSON.stringify(mirrors), limit: settledAtOnce })
      for (const change of changes) give(change)
      return changes.length
    },
  }
}

function prepareMirrorNotes(db: Database) {
  const takeLease = db.prepare('INSERT INTO lease (key, holder) VALUES (?, ?) ON CONFLICT (key) DO NOTHING')
  const dropLease = db.prepare('DELETE FROM lease WHERE key = ? AND holder = ?')
  const dropLeases = db.prepare<{ prefix: string; except: string }>(
    `DELETE FROM lease WHERE holder >= :prefix AND substr(holder, 1, length(:prefix)) = :prefix
       AND (:except = '' OR substr(holder, 1, length(:except)) <> :except)`,
  )
  const use = db.prepare(
    `UPDATE mirror_blob SET used_at = max(used_at, :now)
     WHERE mirror = :mirror AND blob_id IN (
       SELECT b.id FROM blob b JOIN json_each(:digests) d ON b.digest = d.value)`,
  )
  const work = db.prepare(
    `INSERT INTO mirror (name, hits, misses, bytes_fetched, bytes_saved, health, health_at)
     VALUES (:name, :hits, :misses, :bytesFetched, :bytesSaved, :health, :healthAt)
     ON CONFLICT (name) DO UPDATE SET
       hits = hits + excluded.hits, misses = misses + excluded.misses,
       bytes_fetched = bytes_fetched + excluded.bytes_fetched,
       bytes_saved = bytes_saved + excluded.bytes_saved,
       health = CASE WHEN excluded.health_at >= coalesce(health_at, 0)
         THEN json_patch(coalesce(health, '{}'), excluded.health) ELSE health END,
       health_at = max(coalesce(health_at, 0), coalesce(excluded.health_at, health_at, 0))`,
  )
  const sync = db.prepare(
    'INSERT INTO mirror (name, sync) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET sync = excluded.sync',
  )
  return {
    takeLease(key: string, holder: string): boolean {
      return takeLease.run(key, holder).changes === 1
    },

    releaseLease(key: string, holder: string): void {
      dropLease.run(key, holder)
    },

    /**
     * Leases whose holder begins with this text.
     * @param except the beginning of holders that keep theirs; '' for none
     */
    releaseLeases(prefix: string, except: string): void {
      dropLeases.run({ prefix, except })
    },

    noteUses(mirror: string, digests: readonly Digest[], now: number): void {
      use.run({ mirror, digests: JSON.stringify(digests), now })
    },

    noteWork(
      mirror: string,
      counts: MirrorCounts,
      health: { readonly text: string; readonly at: number } | undefined,
    ): void {
      work.run({ name: mirror, ...counts, health: health?.text ?? null, healthAt: health?.at ?? null })
    },

    noteSync(mirror: string, text: string): void {
      sync.run(mirror, text)
    },
  }
}

function prepareEviction(db: Database) {
  const sizeOf = db
    .prepare<{ mirror: string; digest: Digest }, number>(
      `SELECT m.size FROM mirror_blob m JOIN blob b ON b.id = m.blob_id
       WHERE m.mirror = :mirror AND b.digest = :digest`,
    )
    .pluck()
  const count = db.prepare(
    'UPDATE mirror SET evicted_blobs = evicted_blobs + 1, evicted_bytes = evicted_bytes + ? WHERE name = ?',
  )
  const unlink = db.prepare(
    `DELETE FROM blob_link WHERE blob_id = (SELECT id FROM blob WHERE digest = :digest)
       AND repository_id IN (SELECT id FROM repository WHERE mirror = :mirror)`,
  )
  return {
    evict(mirror: string, digests: readonly Digest[]): number {
      return digests.filter((digest) => {
        const size = sizeOf.get({ mirror, digest })
        if (unlink.run({ mirror, digest }).changes === 0) return false
        count.run(size ?? 0, mirror)
        return true
      }).length
    },
  }
}
