import { randomBytes } from 'node:crypto'
import type { OutgoingHttpHeaders } from 'node:http'
import { type Digest, parseDigest } from '../oci/digest.js'
import type { Blobs, OpenBlob } from '../registry/blobs.js'
import type { Audit } from './audit.js'
import { etagOf, isNotModified } from './conditions.js'
import { type Exchange, sendHead } from './exchange.js'
import { type ByteRange, readRanges } from './ranges.js'

/** What the handlers need. */
export interface BlobHandlerOptions {
  readonly blobs: Blobs
  readonly audit: Audit
}

/** GET and HEAD of a blob, DELETE of a repository's right to it (protocol section 5, DL-03). */
export function blobHandlers({ blobs, audit }: BlobHandlerOptions) {
  return {
    /** BL-01: the length, the digest that was asked for, and the bytes as they are. */
    async getBlob(exchange: Exchange): Promise<void> {
      const digest = parseDigest(exchange.param('digest'))
      if (isNotModified(exchange.request, digest)) {
        await blobs.statBlob(exchange.repository, digest)
        exchange.sendEmpty(304, { ETag: etagOf(digest), 'Docker-Content-Digest': digest })
        return
      }
      if (exchange.isHead) {
        // BL-10: a Range is ignored here.
        const size = await blobs.statBlob(exchange.repository, digest)
        sendHead(exchange.response, 200, { ...blobHeaders(digest), 'Content-Length': size })
        exchange.response.end()
        return
      }
      const reader = await blobs.openBlob(exchange.repository, digest)
      try {
        await streamBlob(exchange, digest, reader)
      } finally {
        await reader.close()
      }
    },

    async deleteBlob(exchange: Exchange): Promise<void> {
      const digest = parseDigest(exchange.param('digest'))
      await blobs.deleteBlob(exchange.repository, digest)
      audit(exchange, 'delete', { repository: exchange.repository, blob: digest })
      exchange.sendEmpty(202)
    },
  }
}

function blobHeaders(digest: Digest): OutgoingHttpHeaders {
  return {
    'Content-Type': 'application/octet-stream',
    'Docker-Content-Digest': digest,
    ETag: etagOf(digest),
    'Accept-Ranges': 'bytes',
    'Cache-Control': 'private, max-age=31536000, immutable, no-transform',
  }
}

async function streamBlob(exchange: Exchange, digest: Digest, reader: OpenBlob): Promise<void> {
  const { request, response } = exchange
  const { size } = reader
  const ranges = isRangeCurrent(exchange, digest) ? readRanges(request.headers.range, size) : undefined
  const [range] = ranges ?? []
  const ends = ranges === undefined || range === undefined ? [size - 1] : ranges.map(({ end }) => end)
  await reader.ready?.(Math.min(...ends))
  if (ranges === undefined || range === undefined) {
    sendHead(response, 200, { ...blobHeaders(digest), 'Content-Length': size })
    if (size > 0) await reader.copyTo(response, 0, size - 1)
  } else if (ranges.length === 1) {
    sendHead(response, 206, {
      ...blobHeaders(digest),
      'Content-Length': range.end - range.start + 1,
      'Content-Range': contentRange(range, size),
    })
    await reader.copyTo(response, range.start, range.end)
  } else {
    await streamParts(exchange, digest, reader, ranges)
  }
  response.end()
}

/** BL-08: a Range counts only while If-Range still names the content. */
function isRangeCurrent({ request }: Exchange, digest: Digest): boolean {
  const condition = request.headers['if-range']
  return condition === undefined || condition === etagOf(digest)
}

/** BL-07: one part per range, in the order asked: podman counts them. */
async function streamParts(
  { response }: Exchange,
  digest: Digest,
  reader: OpenBlob,
  ranges: readonly ByteRange[],
): Promise<void> {
  const boundary = randomBytes(16).toString('hex')
  const heads = ranges.map((range) =>
    Buffer.from(
      `\r\n--${boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: ${contentRange(range, reader.size)}\r\n\r\n`,
    ),
  )
  const tail = Buffer.from(`\r\n--${boundary}--\r\n`)
  const contentLength = ranges.reduce(
    (sum, range, at) => sum + (heads[at]?.length ?? 0) + range.end - range.start + 1,
    tail.length,
  )
  sendHead(response, 206, {
    ...blobHeaders(digest),
    'Content-Type': `multipart/byteranges; boundary=${boundary}`,
    'Content-Length': contentLength,
  })
  for (const [at, range] of ranges.entries()) {
    response.write(heads[at] ?? '')
    await reader.copyTo(response, range.start, range.end)
  }
  response.write(tail)
}

function contentRange(range: ByteRange, size: number): string {
  return `bytes ${range.start}-${range.end}/${size}`
}
