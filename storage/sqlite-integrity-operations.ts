import type { Database } from 'better-sqlite3'
import type { Digest } from '../src/oci/digest.js'
import type { Damage, LastStop, MirroredHolder, VerificationPosition } from './integrity-store.js'

/** What a verification writes; see IntegrityStore for what each of these promises. */
export function prepareIntegrity(db: Database) {
  const hold = db.prepare(
    `UPDATE blob SET holder = :holder WHERE digest = :digest AND state = 'live' AND holder IS NULL
       AND NOT EXISTS (SELECT 1 FROM upload WHERE finishing = :digest)`,
  )
  const release = db.prepare('UPDATE blob SET holder = NULL WHERE digest = ? AND holder = ?')
  const damaged = db.prepare('UPDATE blob SET damage = ? WHERE digest = ?')
  const mirrored = db.prepare<[string], MirroredHolder>(
    `SELECT r.name AS repository, r.mirror FROM blob b JOIN blob_link l ON l.blob_id = b.id
       JOIN repository r ON r.id = l.repository_id WHERE b.digest = ? AND r.mirror IS NOT NULL`,
  )
  const unlink = db.prepare(
    `DELETE FROM blob_link WHERE blob_id = (SELECT id FROM blob WHERE digest = ?)
       AND repository_id IN (SELECT id FROM repository WHERE mirror IS NOT NULL)`,
  )
  const unneeded = db.prepare(
    `DELETE FROM blob_link WHERE blob_id = (SELECT id FROM blob WHERE digest = :digest AND damage IS NOT NULL)
       AND NOT EXISTS (SELECT 1 FROM manifest_child c
         WHERE c.digest = :digest AND c.repository_id = blob_link.repository_id)
       AND NOT EXISTS (SELECT 1 FROM deleted_child c
         WHERE c.digest = :digest AND c.repository_id = blob_link.repository_id)`,
  )
  const needed = db
    .prepare<{ digest: string }, number>(
      `SELECT EXISTS (SELECT 1 FROM blob b JOIN blob_link l ON l.blob_id = b.id WHERE b.digest = :digest)
       OR EXISTS (SELECT 1 FROM blob WHERE digest = :digest AND damage IS NULL)
       OR EXISTS (SELECT 1 FROM deleted_child WHERE digest = :digest AND is_linked = 1)`,
    )
    .pluck()
  const save = db.prepare<VerificationPosition>(
    `INSERT OR REPLACE INTO verification (id, phase, position, started_at, blobs, bytes, problems)
     VALUES (1, :phase, :position, :startedAt, :blobs, :bytes, :problems)`,
  )
  const forget = db.prepare('DELETE FROM verification')
  const verified = db.prepare('UPDATE service SET verified_at = ?, problems = ?')
  const lastStop = db.prepare<[], { isOrderly: number; lastBlob: number }>(
    'SELECT is_stopped AS isOrderly, last_blob AS lastBlob FROM service',
  )
  const begin = db.prepare('UPDATE service SET is_stopped = 0')
  const end = db.prepare(
    'UPDATE service SET is_stopped = 1, last_blob = (SELECT coalesce(max(id), 0) FROM blob)',
  )

  return {
    holdBlob(digest: Digest, holder: string): boolean {
      return hold.run({ digest, holder }).changes === 1
    },

    releaseBlob(digest: Digest, holder: string): void {
      release.run(digest, holder)
    },

    noteDamage(digest: Digest, damage: Damage | undefined): void {
      damaged.run(damage ?? null, digest)
    },

    dropMirrored(digest: Digest): MirroredHolder[] {
      const holders = mirrored.all(digest)
      unlink.run(digest)
      return holders
    },

    dropUnneeded(digest: Digest): boolean {
      unneeded.run({ digest })
      return needed.get({ digest }) === 0
    },

    savePosition(position: VerificationPosition): void {
      save.run(position)
    },

    recordVerification(problems: number, now: number): void {
      forget.run()
      verified.run(now, problems)
    },

    beginService(): LastStop {
      const { isOrderly, lastBlob } = lastStop.get() ?? { isOrderly: 0, lastBlob: 0 }
      begin.run()
      return { isOrderly: isOrderly === 1, lastBlob }
    },

    endService(): void {
      end.run()
    },
  }
}
