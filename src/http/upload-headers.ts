import type { OutgoingHttpHeaders } from 'node:http'

/**
 * What every answer about an upload session tells: where it goes on and how far it is. The path is relative, so
 * that it holds behind any proxy (protocol G-14), and an empty session is `0-0` (UP-03).
 * @param upload `offset` is the number of bytes stored
 */
export function uploadHeaders(upload: {
  readonly repository: string
  readonly id: string
  readonly offset: number
}): OutgoingHttpHeaders {
  return {
    Location: `/v2/${upload.repository}/blobs/uploads/${upload.id}`,
    Range: `0-${Math.max(0, upload.offset - 1)}`,
    'Docker-Upload-UUID': upload.id,
  }
}
