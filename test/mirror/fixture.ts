import type { Test } from 'tap'
import { HttpUpstream, type HttpUpstreamOptions } from '../../src/mirror/http-upstream.js'
import { type UpstreamBlob, UpstreamError } from '../../src/mirror/upstream.js'
import { type Digest, parseDigest } from '../../src/oci/digest.js'
import { parseRepositoryName, parseTag } from '../../src/oci/reference.js'
import { digest } from './fake-upstream.js'

export const repository = parseRepositoryName('library/nginx')
export const latest = parseTag('latest')

/** What a client waits at most, in milliseconds, where a fault is only found by waiting. */
export const hasty = { connect: 400, headers: 400, idle: 400, answer: 800 }

/** The same where nothing is found by waiting: a slow machine is not a dead upstream. */
const patient = { connect: 20_000, headers: 20_000, idle: 20_000, answer: 20_000 }

/** The user that upstreams with credentials know. */
export const user = { username: 'mirror', password: 'sesame-open-7f3a' }

/** How the user's credentials look on the wire. */
export const secrets = [user.password, Buffer.from(`${user.username}:${user.password}`).toString('base64')]

/** A client of an upstream, closed when the test ends. */
export function clientOf(t: Test, urls: URL | readonly URL[], options: Partial<HttpUpstreamOptions> = {}) {
  const upstream = new HttpUpstream({
    name: 'fake.example',
    urls: [urls].flat(),
    credentials: undefined,
    realms: [],
    redirectHosts: [],
    addresses: [],
    ca: undefined,
    proxy: {},
    timeouts: patient,
    maxConnections: 8,
    userAgent: 'boathouse/test',
    ...options,
  })
  t.teardown(() => upstream.close())
  return upstream
}

/** Reads a blob to its end. */
export async function drain({ body }: UpstreamBlob): Promise<Buffer> {
  const chunks: Buffer[] = []
  for await (const chunk of body) chunks.push(chunk)
  return Buffer.concat(chunks)
}

/** The digest of some bytes, as the client wants it. */
export const digestOf = (bytes: Buffer): Digest => parseDigest(digest(bytes))

/** The error that a promise rejects with; throws when it is none of an upstream. */
export async function failureOf(promise: Promise<unknown>): Promise<UpstreamError> {
  try {
    await promise
  } catch (error) {
    if (error instanceof UpstreamError) return error
    throw error
  }
  throw new Error('nothing failed')
}
