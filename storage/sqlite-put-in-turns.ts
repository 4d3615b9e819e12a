import type { Digest } from '../src/oci/digest.js'
import type { NewManifest, PutManifestResult } from './metadata-store.js'
import type { DraftedManifest } from './sqlite-drafts.js'
import type { Writer } from './sqlite-writer-client.js'

/** Missing children of which a refusal tells at least, where there are as many. */
const mostMissing = 100

/**
 * Stores a manifest, however many children it has. Many would keep the writer for a second, and everybody's pushes
 * with it. So their edges are written before their manifest, some at a time, and others have their turns in between.
 * Edges without a manifest show nowhere; they keep what they name from being unlinked, so that what was found to be
 * there still is when the manifest comes.
 */
export async function putInTurns<R>(
  writer: Writer,
  manifest: NewManifest,
  put: (manifest: DraftedManifest) => Promise<R>,
): Promise<R | PutManifestResult> {
  const { packed = [], repository, sparse, now } = manifest
  if (packed.length === 0) return put(manifest)
  const draft = await writer.run('openDraft', repository, now)
  try {
    const missing = new Set<Digest>()
    for (const piece of packed) {
      const refusal = await writer.run('draftChildren', draft, piece, sparse)
      if (refusal?.outcome !== 'missing' && refusal !== undefined) return refusal
      for (const digest of refusal?.digests ?? []) missing.add(digest)
      if (missing.size >= mostMissing) break
    }
    if (missing.size > 0) return { outcome: 'missing', digests: [...missing] }
    return await put({ ...manifest, packed: [], draft })
  } finally {
    // Nothing is left to drop of a draft that has become a manifest.
    while (await writer.run('dropDraft', draft).catch(() => false));
  }
}
