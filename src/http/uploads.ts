import {
  algorithmOf,
  canonicalAlgorithm,
  type Digest,
  digestOf,
  isAlgorithm,
  isDigest,
  parseDigest,
} from '../oci/digest.js'
import { RegistryError, UploadRangeError } from '../oci/errors.js'
import { isRepositoryName } from '../oci/reference.js'
import type { Blobs } from '../registry/blobs.js'
import type { Chunk, Uploader, UploadKey, UploadService } from '../registry/uploads.js'
import { hasBytes, openBody } from './body.js'
import { MethodError } from './errors.js'
import { type Exchange, hasBody } from './exchange.js'
import { networkOf } from './origin.js'
import { readContentRange } from './ranges.js'
import { uploadHeaders } from './upload-headers.js'

/** What the handlers need. */
export interface UploadHandlerOptions {
  readonly blobs: Blobs
  readonly uploads: UploadService
  /** Milliseconds without a byte after which a body is given up. */
  readonly idleTimeout: number
}

const emptyBytes = new Uint8Array(0)
const uuid = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/

/** Upload sessions over HTTP (protocol section 3). */
export function uploadHandlers({ blobs, uploads, idleTimeout }: UploadHandlerOptions) {
  function readChunk({ request, response }: Exchange): Chunk {
    const { 'content-length': length, 'content-range': range } = request.headers
    return {
      range: readContentRange(range),
      length: length === undefined ? undefined : Number(length),
      open: hasBody(request) ? () => openBody(request, response, idleTimeout) : undefined,
    }
  }

  /** UP-90 … UP-96: whatever stands in the way of a mount, the answer is an ordinary session. */
  async function tryMount(exchange: Exchange): Promise<Digest | undefined> {
    const mount = exchange.query.get('mount')
    const from = exchange.query.get('from')
    if (mount === null || !isDigest(mount)) return undefined
    const isMounted = await blobs.mountBlob(exchange.repository, mount, {
      from: from === null ? 'any' : [from].filter(isRepositoryName),
      mayPull: (name) => exchange.caller.mayMountFrom(name),
    })
    return isMounted ? mount : undefined
  }

  return {
    /** POST: mount, the whole blob at once, or a new session. */
    async startUpload(exchange: Exchange): Promise<void> {
      const mounted = await tryMount(exchange)
      if (mounted !== undefined) return sendCreated(exchange, mounted)
      const { repository, query } = exchange
      const by = uploaderOf(exchange)
      const digestText = query.get('digest')
      if (digestText !== null) {
        const digest = parseDigest(digestText)
        // UP-22: without a body it only announces the digest, unless that is the empty blob's.
        if (
          (await hasBytes(exchange.request, idleTimeout)) ||
          digest === digestOf(emptyBytes, algorithmOf(digest))
        ) {
          await uploads.putBlob(repository, by, digest, readChunk(exchange))
          return sendCreated(exchange, digest)
        }
      }
      await hasBytes(exchange.request, idleTimeout) // an empty chunked body is read to its end: the connection can stay
      const algorithm = query.get('digest-algorithm') ?? canonicalAlgorithm
      if (!isAlgorithm(algorithm)) {
        throw new RegistryError('DIGEST_INVALID', 'digest-algorithm must be sha256 or sha512')
      }
      const id = await uploads.startUpload(repository, by, algorithm)
      exchange.sendEmpty(202, uploadHeaders({ repository, id, offset: 0 }))
    },

    /** PATCH: a chunk with its range, or a stream without. */
    async appendChunk(exchange: Exchange): Promise<void> {
      const key = uploadKey(exchange)
      const offset = await uploads.appendChunk(key, await withStatus(uploads, key, () => readChunk(exchange)))
      exchange.sendEmpty(202, uploadHeaders({ ...key, offset }))
    },

    /** PUT: the last chunk, if any, and the digest of the whole. */
    async finishUpload(exchange: Exchange): Promise<void> {
      const key = uploadKey(exchange)
      const digest = parseDigest(exchange.query.get('digest') ?? '')
      await uploads.finishUpload(key, digest, await withStatus(uploads, key, () => readChunk(exchange)))
      sendCreated(exchange, digest)
    },

    /** GET and HEAD: how far the upload is. */
    async getUpload(exchange: Exchange): Promise<void> {
      const key = uploadKey(exchange)
      const offset = await uploads.statUpload(key)
      exchange.sendEmpty(204, uploadHeaders({ ...key, offset }))
    },

    /** DELETE: UP-80. */
    async cancelUpload(exchange: Exchange): Promise<void> {
      const key = uploadKey(exchange)
      await uploads.cancelUpload(key, exchange.caller.mayAdminister(key.repository))
      exchange.sendEmpty(204)
    },
  }
}

/** Who did not log in is told from others by the address. */
function uploaderOf({ caller, address }: Exchange): Uploader {
  const { name } = caller.identity
  return { owner: name, source: name === '' ? `address:${networkOf(address)}` : `user:${name}` }
}

/** The session that the path names; what cannot be an id never reaches the store. */
function uploadKey(exchange: Exchange): UploadKey {
  const id = exchange.param('upload')
  if (id === '') throw new MethodError(['POST']) // the path that starts a session
  if (!uuid.test(id)) throw new RegistryError('BLOB_UPLOAD_UNKNOWN')
  return { repository: exchange.repository, id, owner: exchange.caller.identity.name }
}

/** UP-42: even a range that cannot be read is answered with where the upload is. */
async function withStatus<T>(uploads: UploadService, key: UploadKey, read: () => T): Promise<T> {
  try {
    return read()
  } catch (error) {
    if (!(error instanceof RegistryError)) throw error
    throw new UploadRangeError({ ...key, offset: await uploads.statUpload(key) }, error.message)
  }
}

function sendCreated(exchange: Exchange, digest: Digest): void {
  exchange.sendEmpty(201, {
    Location: `/v2/${exchange.repository}/blobs/${digest}`,
    'Docker-Content-Digest': digest,
  })
}
