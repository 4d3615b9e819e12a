import type { Database } from 'better-sqlite3'
import type { Digest } from '../src/oci/digest.js'
import type { Damage, VerificationPosition } from './integrity-store.js'

/** What a verification writes; see IntegrityStore for what each of these promises. */
export function prepareIntegrity(db: Database) {
  const hold = db.prepare(
    `UPDATE blob SET holder = :holder WHERE digest = :digest AND state = 'live' AND holder IS NULL
       AND NOT EXISTS (SELECT 1 FROM upload WHERE finishing = :digest)`,
  )
  const release = db.prepare('UPDATE blob SET holder = NULL WHERE digest = ? AND holder = ?')
  const damaged = db.prepare('UPDATE blob SET damage = ? WHERE digest = ?')
  const mirrors = db
    .prepare<[string], string>(
      'SELECT m.mirror FROM mirror_blob m JOIN blob b ON b.id = m.blob_id WHERE b.digest = ?',
    )
    .pluck()
  const unlink = db.prepare(
    `DELETE FROM blob_link WHERE blob_id = (SELECT id FROM blob WHERE digest = ?)
       AND repository_id IN (SELECT id FROM repository WHERE mirror IS NOT NULL)`,
  )
  const save = db.prepare<VerificationPosition>(
    `INSERT OR REPLACE INTO verification (id, phase, position, started_at, blobs, bytes)
     VALUES (1, :phase, :position, :startedAt, :blobs, :bytes)`,
  )
  const forget = db.prepare('DELETE FROM verification')

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

    dropMirrored(digest: Digest): string[] {
      const names = mirrors.all(digest)
      unlink.run(digest)
      return names
    },

    savePosition(position: VerificationPosition | undefined): void {
      if (position === undefined) forget.run()
      else save.run(position)
    },
  }
}
