/** A path that cannot name anything: bad escapes, empty or dot segments, an escaped slash or NUL. */
export const invalidPath = '/!invalid-path'

const lastKeywords = new Set(['manifests', 'blobs', 'referrers'])

/**
 * Folds a repository's name, which may have slashes, into one path segment, so that the router's patterns fit:
 * `/v2/team/app/manifests/v1` → `/v2/team%2Fapp/manifests/v1`. The name ends at the last keyword, so that a
 * repository may be called `a/blobs` (protocol G-01). Each segment is decoded once (protocol G-06).
 * @returns the URL to route by, with its query as it was; {@link invalidPath} for what must be refused
 */
export function foldPath(target: string): string {
  const url = target.startsWith('/') ? target : target.replace(/^https?:\/\/[^/?#]*/i, '') // RFC 9112, 3.2.2
  const mark = url.indexOf('?')
  const path = mark < 0 ? url : url.slice(0, mark)
  if (!path.startsWith('/v2/')) return path === '/v2' ? url.replace('/v2', '/v2/') : url
  const segments = path.slice('/v2/'.length).split('/')
  const decoded = path.includes('%') ? decodeSegments(segments) : segments
  if (decoded === undefined || !decoded.every(isAllowed)) return invalidPath
  const folded = fold(decoded)
  return mark < 0 ? folded : folded + url.slice(mark)
}

function decodeSegments(segments: readonly string[]): string[] | undefined {
  try {
    return segments.map(decodeURIComponent)
  } catch {
    return undefined
  }
}

/** An empty segment can only be the last one: the slash behind `/v2/` or `uploads/`. */
function isAllowed(segment: string, at: number, all: readonly string[]): boolean {
  if (segment === '') return at === all.length - 1
  return segment !== '.' && segment !== '..' && !segment.includes('/') && !segment.includes('\0')
}

function fold(segments: readonly string[]): string {
  const count = segments.length
  const last = segments[count - 1] ?? ''
  const beforeLast = segments[count - 2] ?? ''
  if (beforeLast === 'uploads' && segments[count - 3] === 'blobs') {
    return named(segments.slice(0, -3), `blobs/uploads/${escapeSegment(last)}`)
  }
  if (beforeLast === 'tags' && last === 'list') return named(segments.slice(0, -2), 'tags/list')
  if (lastKeywords.has(beforeLast) && last !== '') {
    return named(segments.slice(0, -2), `${beforeLast}/${escapeSegment(last)}`)
  }
  return `/v2/${segments.map(escapeSegment).join('/')}`
}

function named(name: readonly string[], rest: string): string {
  return name.length === 0 ? invalidPath : `/v2/${name.map(escapeSegment).join('%2F')}/${rest}`
}

/** Escapes a segment for the router. The colon of a digest may stand: it keeps the logs readable. */
function escapeSegment(segment: string): string {
  return plain.test(segment) ? segment : encodeURIComponent(segment)
}

const plain = /^[\w.:-]*$/
