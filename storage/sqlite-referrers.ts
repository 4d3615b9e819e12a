import type { Database } from 'better-sqlite3'
import type { Digest } from '../src/oci/digest.js'
import { Turns } from '../src/oci/turns.js'
import type { Referrer, ReferrerLimits, ReferrerPage } from './metadata-store.js'

/** Referrers that are looked at in one go: a millisecond's worth. */
const looksAtOnce = 200

/** Bytes of a type that is compared and told: more than any request could ask for. */
const longestType = 32 * 1024

/** The list of one subject's referrers. */
interface Asked {
  readonly repository: string
  readonly subject: string
  /** A JSON array of types; null for all. */
  readonly types: string | null
  readonly after: number
}

/** The queries behind {@link collectReferrers}. */
export function prepareReferrers(db: Database) {
  return {
    // Of lengths the database knows without reading what is that long.
    look: db.prepare<Asked & { limit: number }, { position: number; isAsked: number; bytes: number }>(
      `SELECT m.id AS position, coalesce(octet_length(m.annotations), 0) AS bytes,
         :types IS NULL OR coalesce(octet_length(m.artifact_type) <= ${longestType}
           AND m.artifact_type IN (SELECT value FROM json_each(:types)), FALSE) AS isAsked
       FROM repository r JOIN manifest m ON m.repository_id = r.id
       WHERE r.name = :repository AND m.subject = :subject AND m.id > :after ORDER BY m.id LIMIT :limit`,
    ),
    read: db.prepare<
      [number],
      {
        position: number
        digest: Digest
        mediaType: string
        size: number
        artifactType: string | null
        annotations: Uint8Array | null
      }
    >(
      `SELECT id AS position, digest, media_type AS mediaType, size,
         CASE WHEN octet_length(artifact_type) <= ${longestType} THEN artifact_type END AS artifactType,
         CAST(annotations AS BLOB) AS annotations
       FROM manifest WHERE id = ?`,
    ),
  }
}

/**
 * See MetadataStore.listReferrers. Sizes are compared before anything large is read, nothing is parsed, and others have
 * their turns in between.
 */
export async function collectReferrers(
  { most, ...asked }: Asked & { readonly most: ReferrerLimits },
  query: <T>(use: (queries: ReturnType<typeof prepareReferrers>) => T) => Promise<T>,
): Promise<ReferrerPage> {
  const turns = new Turns()
  const referrers: Referrer[] = []
  let left = most.bytes
  for (let after = asked.after; ; ) {
    const rows = await query(({ look }) => look.all({ ...asked, after, limit: looksAtOnce }))
    for (const { position, isAsked, bytes } of rows) {
      after = position
      if (isAsked === 0) continue
      left -= bytes
      const isFull = referrers.length === most.count || (left < 0 && referrers.length > 0)
      if (isFull) return { referrers, more: true }
      await turns.rest()
      const row = await query(({ read }) => read.get(position))
      if (row === undefined) continue // deleted meanwhile
      const { artifactType, annotations } = row
      referrers.push({
        ...row,
        artifactType: artifactType ?? undefined,
        annotations: annotations ?? undefined,
      })
    }
    if (rows.length < looksAtOnce) return { referrers, more: false }
    await turns.rest()
  }
}
