import { algorithmOf, type Digest, encodedOf, isDigest } from '../oci/digest.js'
import { isObject } from '../oci/json.js'
import { mediaTypes } from '../oci/media-types.js'
import { parseTag, type Tag } from '../oci/reference.js'
import { ExchangeError } from './failures.js'
import { type Headers, single } from './rate-limit.js'
import type { UpstreamReferrer } from './upstream.js'

/** Longest name of a tag (protocol G-03). */
const longestTag = 128

/** The names in a tag list (protocol TG-01). What is no tag is left out: some registries list nulls and digests. */
export function tagsOf(bytes: Uint8Array): string[] {
  const names = jsonOf(bytes).tags ?? []
  if (!Array.isArray(names)) throw new ExchangeError('invalid', 'sent a tag list without tags')
  return names.filter(
    (name) => typeof name === 'string' && /^\w[\w.-]*$/.test(name) && name.length <= longestTag,
  )
}

/**
 * The descriptors in a referrers list (protocol RF-03, RF-04). What is no descriptor is left out.
 * @returns undefined when it is not an image index: some registries answer everything with a page
 */
export function referrersOf(bytes: Uint8Array): UpstreamReferrer[] | undefined {
  let index: Record<string, unknown>
  try {
    index = jsonOf(bytes)
  } catch {
    return undefined
  }
  if (index.mediaType !== undefined && index.mediaType !== mediaTypes.ociIndex) return undefined
  if (!Array.isArray(index.manifests)) return undefined
  return index.manifests.flatMap((entry) => referrerOf(entry) ?? [])
}

/** The tag that lists the referrers of a subject where there is no API for it (protocol RF-12). */
export function referrersTag(subject: Digest): Tag {
  return parseTag(`${algorithmOf(subject)}-${encodedOf(subject).slice(0, 64)}`)
}

/**
 * The path and query of the next page (protocol TG-07, RF-07): below the same list of the same server.
 * @throws ExchangeError `invalid` for a link that leads elsewhere
 */
export function nextPage(url: URL, headers: Headers): string | undefined {
  const link = [headers.link ?? []].flat().join(', ')
  const match = /<([^<>]{1,4096})>\s*;[^<]*\brel="?next\b/.exec(link.slice(0, 8192))
  const target = match?.[1]
  if (target === undefined) return undefined
  const next = URL.canParse(target, url.href) ? new URL(target, url.href) : undefined
  // Servers behind a proxy may be wrong about their own protocol: only what stands behind the host is used.
  if (next === undefined || next.host !== url.host || next.pathname !== url.pathname) {
    throw new ExchangeError('invalid', 'sent a list whose next page is elsewhere')
  }
  return next.search
}

/** The value of `Content-Type` without parameters. */
export function typeOf(headers: Headers): string | undefined {
  return single(headers, 'content-type')?.split(';', 1)[0]?.trim().toLowerCase()
}

function jsonOf(bytes: Uint8Array): Record<string, unknown> {
  let value: unknown
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch {
    throw new ExchangeError('invalid', 'sent a list that is not JSON')
  }
  if (!isObject(value)) throw new ExchangeError('invalid', 'sent a list that is not a JSON object')
  return value
}

function referrerOf(entry: unknown): UpstreamReferrer | undefined {
  if (!isObject(entry)) return undefined
  const { mediaType, digest, size, artifactType, annotations } = entry
  if (typeof mediaType !== 'string' || typeof digest !== 'string' || !isDigest(digest)) return undefined
  if (typeof size !== 'number' || !Number.isSafeInteger(size) || size < 0) return undefined
  const type = typeof artifactType === 'string' ? artifactType : undefined
  return { mediaType, digest, size, artifactType: type, annotations: annotationsOf(annotations) }
}

function annotationsOf(value: unknown): Uint8Array | undefined {
  if (!isObject(value)) return undefined
  const entries = Object.entries(value).filter(
    (entry): entry is [string, string] => typeof entry[1] === 'string',
  )
  return Buffer.from(JSON.stringify(Object.fromEntries(entries)))
}
