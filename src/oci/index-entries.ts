import { type Digest, isDigest } from './digest.js'
import { isObject } from './json.js'
import { manifestKindOf } from './media-types.js'

/** What an image runs on, as indexes say it. */
export interface Platform {
  readonly os: string
  readonly architecture: string
  readonly variant: string | undefined
}

/** One entry of an index, as far as it matters for choosing among them. */
export interface IndexEntry {
  readonly digest: Digest
  /** Bytes. */
  readonly size: number
  /** False for entries that are blobs: build caches are indexes of layers (protocol T-11). */
  readonly isManifest: boolean
  /** Undefined where it does not say, or says `unknown`. */
  readonly platform: Platform | undefined
  /** The manifest of the same index that this one is about: what it was built from, say. */
  readonly about: Digest | undefined
}

/**
 * The entries of an index that {@link parseManifest} accepts. What is no index has none.
 * @param bytes JSON
 */
export function readIndexEntries(bytes: Uint8Array): readonly IndexEntry[] {
  const index: unknown = JSON.parse(new TextDecoder().decode(bytes))
  const entries = isObject(index) && Array.isArray(index.manifests) ? index.manifests : []
  return entries.flatMap((entry: unknown) => readEntry(entry) ?? [])
}

function readEntry(entry: unknown): IndexEntry | undefined {
  if (!isObject(entry)) return undefined
  const { digest, size, mediaType, platform, annotations } = entry
  if (typeof digest !== 'string' || !isDigest(digest)) return undefined
  const about = isObject(annotations) ? annotations['vnd.docker.reference.digest'] : undefined
  return {
    digest,
    size: typeof size === 'number' ? size : 0,
    isManifest: typeof mediaType === 'string' && manifestKindOf(mediaType) !== undefined,
    platform: readPlatform(platform),
    about: typeof about === 'string' && isDigest(about) ? about : undefined,
  }
}

function readPlatform(value: unknown): Platform | undefined {
  if (!isObject(value)) return undefined
  const { os, architecture, variant } = value
  if (typeof os !== 'string' || typeof architecture !== 'string') return undefined
  if (os === 'unknown' && architecture === 'unknown') return undefined
  return { os, architecture, variant: typeof variant === 'string' && variant !== '' ? variant : undefined }
}
