import { type Digest, parseDigest } from '../oci/digest.js'
import { RegistryError } from '../oci/errors.js'
import { mediaTypes } from '../oci/media-types.js'
import type { RepositoryName } from '../oci/reference.js'
import type { Manifests, Referrer } from '../registry/manifests.js'
import type { Target } from '../registry/names.js'
import type { Exchange } from './exchange.js'
import { visibleTo } from './visible.js'

/** Entries of a page when the client names no number, and the most it gets (protocol TG-04, TG-06). */
const largestPage = 10_000

/** Bytes of a referrers page: containerd, oras and podman read about 4 MiB (protocol RF-07). */
const largestReferrersPage = 4_000_000

/** Referrers that are read from the store at once. */
const referrersBatch = 100

/** Tags, catalog and referrers over HTTP (protocol sections 6 and 7). */
export function listHandlers({ manifests }: { readonly manifests: Manifests }) {
  return {
    async listTags(exchange: Exchange): Promise<void> {
      const { repository, target } = exchange
      const { limit, after } = readPaging(exchange)
      await exchange.room()
      const page = await manifests.listTags(repository, after, limit)
      const path = `/v2/${target.asked}/tags/list`
      exchange.warn(page.warning)
      const link = nextLink(path, limit, page, target.namespace)
      exchange.sendJson({ name: target.asked, tags: page.names }, link)
    },

    async listRepositories(exchange: Exchange): Promise<void> {
      const { limit, after } = readPaging(exchange)
      await exchange.room()
      const page = await manifests.listRepositories(after, limit, visibleTo(exchange.caller))
      exchange.sendJson({ repositories: page.names }, nextLink('/v2/_catalog', limit, page))
    },

    /** RF-01: a list, if need be an empty one, never 404. */
    async listReferrers(exchange: Exchange): Promise<void> {
      const { repository, query } = exchange
      const subject = parseDigest(exchange.param('digest'))
      // RF-05: an unescaped + arrives as a space, and no media type has one.
      const types = query.getAll('artifactType').map((type) => type.replaceAll(' ', '+'))
      const after = Number(query.get('last') ?? 0)
      if (!Number.isSafeInteger(after))
        throw new RegistryError('PAGINATION_NUMBER_INVALID', 'last is not a place')
      await exchange.room()
      const page = await collectReferrers(manifests, repository, subject, types, after)
      const head = `{"schemaVersion":2,"mediaType":"${mediaTypes.ociIndex}","manifests":[`
      const body = Buffer.concat([Buffer.from(head), ...page.descriptors, Buffer.from(']}')])
      const filtered = types.length > 0 ? { 'OCI-Filters-Applied': 'artifactType' } : {}
      exchange.sendBytes(200, body, {
        'Content-Type': mediaTypes.ociIndex,
        'Cache-Control': 'no-cache',
        ...filtered,
        ...referrersLink(exchange.target, subject, types, page.next),
      })
    },
  }
}

/** TG-04, TG-05. @throws RegistryError PAGINATION_NUMBER_INVALID */
function readPaging({ query }: Exchange): { limit: number; after: string } {
  const n = query.get('n')
  if (n !== null && !/^\d+$/.test(n)) throw new RegistryError('PAGINATION_NUMBER_INVALID')
  return {
    limit: n === null ? largestPage : Math.min(Number(n), largestPage),
    after: query.get('last') ?? '',
  }
}

/** TG-07 and TG-09: relative, and only where more follows; n=0 asks for nothing and gets no link. */
function nextLink(
  path: string,
  limit: number,
  page: { names: readonly string[]; more: boolean },
  namespace?: string,
): Record<string, string> {
  const last = page.names.at(-1)
  if (!page.more || last === undefined) return {}
  const ns = namespace === undefined ? '' : `&ns=${encodeURIComponent(namespace)}`
  return { Link: `<${path}?last=${encodeURIComponent(last)}&n=${limit}${ns}>; rel="next"` }
}

/** Descriptors up to the page's size, at least one, in pieces, and where the next page starts. */
async function collectReferrers(
  manifests: Manifests,
  repository: RepositoryName,
  subject: Digest,
  types: readonly string[],
  start: number,
): Promise<{ descriptors: Uint8Array[]; next: number | undefined }> {
  const descriptors: Uint8Array[] = []
  let bytes = 0
  let after = start
  for (;;) {
    const most = { count: referrersBatch, bytes: largestReferrersPage - bytes }
    const { referrers, more } = await manifests.listReferrers(repository, subject, types, after, most)
    for (const referrer of referrers) {
      const pieces = toDescriptor(referrer, descriptors.length === 0)
      bytes += pieces.reduce((sum, piece) => sum + piece.byteLength, 0)
      if (bytes > largestReferrersPage && descriptors.length > 0) return { descriptors, next: after }
      descriptors.push(...pieces)
      after = referrer.position
    }
    if (!more) return { descriptors, next: undefined }
    if (referrers.length < referrersBatch) return { descriptors, next: after }
  }
}

/** RF-04. The annotations are text already: megabytes of them are put in as they are. */
function toDescriptor(referrer: Referrer, isFirst: boolean): Uint8Array[] {
  const { mediaType, digest, size, artifactType, annotations } = referrer
  const text = `${isFirst ? '' : ','}${JSON.stringify({ mediaType, digest, size, artifactType })}`
  if (annotations === undefined) return [Buffer.from(text)]
  return [Buffer.from(`${text.slice(0, -1)},"annotations":`), annotations, Buffer.from('}')]
}

function referrersLink(
  { asked, namespace }: Target,
  subject: Digest,
  types: readonly string[],
  next: number | undefined,
): Record<string, string> {
  if (next === undefined) return {}
  const query = new URLSearchParams([
    ...types.map((type): [string, string] => ['artifactType', type]),
    ['last', String(next)],
    ...(namespace === undefined ? [] : [['ns', namespace] satisfies [string, string]]),
  ])
  return { Link: `</v2/${asked}/referrers/${subject}?${query}>; rel="next"` }
}
