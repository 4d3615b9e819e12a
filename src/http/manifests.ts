import type { OutgoingHttpHeaders } from 'node:http'
import { RegistryError } from '../oci/errors.js'
import { largestManifest } from '../oci/manifest.js'
import { parseReference, type Reference, type RepositoryName } from '../oci/reference.js'
import type { ManifestHead, Manifests } from '../registry/manifests.js'
import type { Audit } from './audit.js'
import { withBody } from './body.js'
import { etagOf, isNotModified, readCondition } from './conditions.js'
import { type Exchange, hasBody, sendHead } from './exchange.js'
import type { Intake } from './intake.js'
import { smallAnswer } from './outbox.js'

/** What the handlers need. */
export interface ManifestHandlerOptions {
  readonly manifests: Manifests
  readonly audit: Audit
  readonly intake: Intake
}

/** Manifests over HTTP (protocol sections 4 and 8). */
export function manifestHandlers({ manifests, audit, intake }: ManifestHandlerOptions) {
  const tooLarge = () => new RegistryError('MANIFEST_TOO_LARGE')
  const body = { intake, limit: largestManifest, tooLarge }
  return {
    /** MF-40 … MF-45: what is stored, as it is stored, whatever Accept says. */
    async getManifest(exchange: Exchange): Promise<void> {
      const reference = parseReference(exchange.param('reference'))
      if (exchange.isHead || exchange.request.headers['if-none-match'] !== undefined) {
        const head = await manifests.headManifest(exchange.repository, reference)
        exchange.warn(head.warning)
        if (isNotModified(exchange.request, head.digest)) {
          exchange.sendEmpty(304, { ETag: etagOf(head.digest), 'Docker-Content-Digest': head.digest })
          return
        }
        if (exchange.isHead) {
          sendHead(exchange.response, 200, manifestHeaders(head, reference))
          exchange.response.end()
          return
        }
      }
      if (exchange.isCrowded) {
        const { size } = await manifests.headManifest(exchange.repository, reference)
        if (size > smallAnswer) await exchange.room()
      }
      const manifest = await manifests.getManifest(exchange.repository, reference)
      exchange.warn(manifest.warning)
      exchange.sendBytes(200, manifest.bytes, manifestHeaders(manifest, reference))
    },

    /** MF-01 … MF-34. */
    async putManifest(exchange: Exchange): Promise<void> {
      const { request, response, repository } = exchange
      const reference = parseReference(exchange.param('reference'))
      const put = (bytes: Uint8Array) =>
        manifests.putManifest({
          repository,
          reference,
          tags: exchange.query.getAll('tag'),
          bytes,
          contentType: request.headers['content-type'],
          condition: readCondition(request),
          user: exchange.caller.identity,
          mayBorrow: mayBorrow(exchange),
        })
      const pushed = hasBody(request)
        ? await withBody(request, response, body, put)
        : await put(new Uint8Array(0))
      const headers: OutgoingHttpHeaders = {
        Location: `/v2/${repository}/manifests/${pushed.digest}`,
        'Docker-Content-Digest': pushed.digest,
      }
      if (pushed.subject !== undefined) headers['OCI-Subject'] = pushed.subject
      if (pushed.tags.length > 0) headers['OCI-Tag'] = pushed.tags.join(', ')
      exchange.sendEmpty(201, headers)
    },

    /** DL-01 and DL-02: a tag alone, or a manifest with all its tags. */
    async deleteManifest(exchange: Exchange): Promise<void> {
      const reference = parseReference(exchange.param('reference'))
      const { repository, caller } = exchange
      const user = caller.identity
      if (reference.kind === 'tag') await manifests.deleteTag(repository, reference.tag, user)
      else await manifests.deleteManifest(repository, reference.digest, user)
      audit(exchange, 'delete', { repository: exchange.repository, manifest: exchange.param('reference') })
      exchange.sendEmpty(202)
    },
  }
}

/** A token for a push was told of nothing but what the repository itself holds. */
function mayBorrow({ caller, repository }: Exchange): ((name: RepositoryName) => boolean) | undefined {
  return caller.intentOf(repository) === 'push' ? undefined : (name) => caller.may('pull', name)
}

function manifestHeaders(manifest: ManifestHead, reference: Reference): OutgoingHttpHeaders {
  return {
    'Content-Type': manifest.mediaType,
    'Content-Length': manifest.size,
    'Docker-Content-Digest': manifest.digest,
    ETag: etagOf(manifest.digest),
    'Cache-Control':
      reference.kind === 'tag'
        ? 'no-cache, no-transform'
        : 'private, max-age=31536000, immutable, no-transform',
  }
}
