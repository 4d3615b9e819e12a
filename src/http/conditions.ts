import type { IncomingMessage } from 'node:http'
import type { Condition } from '../registry/manifests.js'

/** The entity tag of content: its digest, which never lies. */
export function etagOf(digest: string): string {
  return `"${digest}"`
}

/** Whether `If-None-Match` names the digest: quoted, bare, weak or `*` (protocol MF-45, BL-09). */
export function isNotModified(request: IncomingMessage, digest: string): boolean {
  const header = request.headers['if-none-match']
  if (header === undefined) return false
  const digests = readTags(header)
  return digests === 'any' || digests.includes(digest)
}

/** The condition that a PUT carries, if any (protocol MF-18). */
export function readCondition(request: IncomingMessage): Condition | undefined {
  const match = request.headers['if-match']
  if (match !== undefined) return { mode: 'match', digests: readTags(match) }
  const noneMatch = request.headers['if-none-match']
  if (noneMatch !== undefined) return { mode: 'none-match', digests: readTags(noneMatch) }
  return undefined
}

function readTags(header: string): readonly string[] | 'any' {
  if (header.trim() === '*') return 'any'
  return header.split(',').map((tag) => tag.trim().replace(/^W\//, '').replace(/^"|"$/g, ''))
}
