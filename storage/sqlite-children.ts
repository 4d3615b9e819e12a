import type { Database } from 'better-sqlite3'
import type { Digest } from '../src/oci/digest.js'
import type { Child } from '../src/oci/manifest.js'
import type { NewManifest, PutManifestResult } from './metadata-store.js'

/** Compares a manifest's children with what the repository holds, all with one SELECT. */
export function prepareCheckChildren(db: Database) {
  const sizes = db.prepare<
    { repository: number | null; digests: string },
    { digest: Digest; blob: number | null; manifest: number | null }
  >(
    `SELECT c.value AS digest,
       (SELECT b.size FROM blob b JOIN blob_link l ON l.blob_id = b.id
        WHERE b.digest = c.value AND b.damage IS NULL AND l.repository_id = :repository) AS blob,
       (SELECT m.size FROM manifest m
        WHERE m.repository_id = :repository AND m.digest = c.value) AS manifest
     FROM json_each(:digests) c`,
  )

  return function check(
    repository: number | undefined,
    manifest: Pick<NewManifest, 'children' | 'sparse'>,
  ): PutManifestResult | undefined {
    const required = manifest.children.filter((child) => child.required)
    if (required.length === 0) return undefined
    const digests = JSON.stringify([...new Set(required.map((child) => child.digest))])
    const held = new Map(
      sizes.all({ repository: repository ?? null, digests }).map((row) => [row.digest, row]),
    )
    const missing = new Set<Digest>()
    for (const child of required) {
      const size = heldSize(child, held.get(child.digest))
      if (size === undefined) missing.add(child.digest)
      else if (size !== child.size) return { outcome: 'wrong-size', digest: child.digest, size }
    }
    if (missing.size === 0 || manifest.sparse) return undefined
    return { outcome: 'missing', digests: [...missing] }
  }
}

function heldSize(
  child: Child,
  row: { blob: number | null; manifest: number | null } | undefined,
): number | undefined {
  const size = child.role === 'manifest' ? (row?.manifest ?? row?.blob) : row?.blob
  return size ?? undefined
}
