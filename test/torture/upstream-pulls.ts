import { request as send } from 'node:http'
import type { Random } from './random.js'
import type { KnownBlob, KnownManifest, KnownRepository } from './upstream-content.js'

/** What a client got. */
export interface Got {
  readonly status: number
  readonly isWhole: boolean
  readonly body: Buffer
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
}

/** What a client asks for, and what is wrong with an answer of 200 or 206. */
export interface Pull {
  /** What it is, for the counts. */
  readonly kind: string
  readonly method: 'GET' | 'HEAD'
  /** Behind `/v2/`, as the upstream has it. */
  readonly path: string
  readonly headers?: Record<string, string>
  /** @returns what is wrong, in words; undefined when nothing is */
  readonly judge: (got: Got) => string | undefined
}

/** Milliseconds after which an answer counts as never coming. */
const patience = 30_000

/** Sends a request on a connection of its own. @param leaveAt bytes after which the client hangs up */
export function ask(
  port: number,
  { method, path, headers }: { method: string; path: string; headers?: Record<string, string> | undefined },
  leaveAt = Number.POSITIVE_INFINITY,
): Promise<Got | 'lost' | 'hung'> {
  return new Promise((resolve) => {
    const timer = setTimeout(() => {
      resolve('hung')
      request.destroy()
    }, patience)
    const end = (got: Got | 'lost') => {
      clearTimeout(timer)
      resolve(got)
    }
    const options = { host: '127.0.0.1', port, method, path, headers: headers ?? {}, agent: false }
    const request = send(options, (response) => {
      const chunks: Buffer[] = []
      let count = 0
      response.on('data', (chunk: Buffer) => {
        chunks.push(chunk)
        count += chunk.length
        if (count >= leaveAt) response.destroy()
      })
      response
        .on('error', () => undefined)
        .on('close', () => {
          const { statusCode: status = 0, complete: isWhole, headers } = response
          end({ status, isWhole, body: Buffer.concat(chunks), headers })
        })
    })
    request.on('error', () => end('lost')).end()
  })
}

/** The whole blob. */
export const blobPull = ({ repository, digest, bytes }: KnownBlob): Pull => ({
  kind: 'blob',
  method: 'GET',
  path: `${repository}/blobs/${digest}`,
  judge: ({ status, body }) => (status === 200 && body.equals(bytes) ? undefined : 'other bytes'),
})

/** @param isTrusted whether the upstream told no lies about it: what a HEAD of a cold blob says is its word */
export const blobHead = ({ repository, digest, bytes }: KnownBlob, isTrusted: () => boolean): Pull => ({
  kind: 'blob head',
  method: 'HEAD',
  path: `${repository}/blobs/${digest}`,
  judge: ({ headers }) =>
    headers['content-length'] === String(bytes.length) || !isTrusted() ? undefined : 'another size',
})

function blobPart({ repository, digest, bytes }: KnownBlob, random: Random): Pull {
  const first = random.int(0, bytes.length - 1)
  const last = random.chance(0.5) ? '' : String(random.int(first, bytes.length - 1))
  const range = random.chance(0.2) ? `-${random.int(1, bytes.length)}` : `${first}-${last}`
  return {
    kind: 'blob part',
    method: 'GET',
    path: `${repository}/blobs/${digest}`,
    headers: { range: `bytes=${range}` },
    judge: ({ headers, body }) => {
      const [, from = '', to = ''] = /^bytes (\d+)-(\d+)\//.exec(String(headers['content-range'])) ?? []
      const isAsked = range.startsWith('-') || from === String(first)
      if (!isAsked) return 'another part'
      return body.equals(bytes.subarray(Number(from), Number(to) + 1)) ? undefined : 'other bytes in a part'
    },
  }
}

function judgeManifest(expected: KnownManifest | undefined, method: string, got: Got): string | undefined {
  const { headers, body } = got
  if (expected === undefined) return `a digest that it never had: ${headers['docker-content-digest']}`
  if (headers['docker-content-digest'] !== expected.digest) return 'another digest'
  if (headers['content-type'] !== expected.mediaType) return 'another type'
  if (headers['content-length'] !== String(expected.bytes.length)) return 'another length'
  return method === 'HEAD' || body.equals(expected.bytes) ? undefined : 'other bytes in a manifest'
}

/** A manifest by its digest. */
export const digestPull = (manifest: KnownManifest, method: Pull['method'] = 'GET'): Pull => ({
  kind: method === 'GET' ? 'manifest by digest' : 'manifest head by digest',
  method,
  path: `${manifest.repository}/manifests/${manifest.digest}`,
  judge: (got) => judgeManifest(manifest, method, got),
})

/** A manifest by tag: any that the tag ever had, or, where it must be current, the one that it has now. */
export function tagPull(
  repository: KnownRepository,
  tag: string,
  method: Pull['method'] = 'GET',
  mustBeCurrent = false,
): Pull {
  return {
    kind: method === 'GET' ? 'manifest by tag' : 'manifest head by tag',
    method,
    path: `${repository.name}/manifests/${tag}`,
    judge: (got) => {
      const all = repository.tags.get(tag) ?? []
      const digest = (mustBeCurrent ? all.slice(-1) : all).find(
        (digest) => digest === got.headers['docker-content-digest'],
      )
      return judgeManifest(repository.manifests.get(digest ?? ''), method, got)
    },
  }
}

/** The tags: none that are not there; all of them, where nothing is in the way. */
export function tagsPull(repository: KnownRepository, mustBeWhole = false): Pull {
  return {
    kind: 'tags',
    method: 'GET',
    path: `${repository.name}/tags/list`,
    judge: ({ body }) => {
      const { tags } = JSON.parse(body.toString()) as { tags: string[] }
      return compare(new Set(tags), new Set(repository.tags.keys()), mustBeWhole)
    },
  }
}

/** What refers to a manifest, judged as the tags are. */
export function referrersPull(repository: KnownRepository, subject: string, mustBeWhole = false): Pull {
  return {
    kind: 'referrers',
    method: 'GET',
    path: `${repository.name}/referrers/${subject}`,
    judge: ({ body }) => {
      const { manifests } = JSON.parse(body.toString()) as { manifests: { digest: string }[] }
      const found = new Set(manifests.map(({ digest }) => digest))
      return compare(found, repository.referrers.get(subject) ?? new Set(), mustBeWhole)
    },
  }
}

function compare(
  found: ReadonlySet<string>,
  expected: ReadonlySet<string>,
  isAll: boolean,
): string | undefined {
  const odd = [...found].find((entry) => !expected.has(entry))
  if (odd !== undefined) return `a list with ${odd}`
  return isAll && found.size !== expected.size ? 'a list that is not whole' : undefined
}

const weights = {
  blob: 36,
  blobPart: 12,
  blobHead: 6,
  tag: 12,
  tagHead: 6,
  digest: 12,
  digestHead: 4,
  tags: 6,
  referrers: 6,
}

/** Something that a client might ask for. @param isTrusted as {@link blobHead} has it */
export function makePull(
  random: Random,
  repository: KnownRepository,
  isTrusted: (path: string) => boolean,
): Pull {
  const blob = random.pick(repository.blobs)
  const manifest = random.pick([...repository.manifests.values()])
  const tag = random.pick([...repository.tags.keys()]) ?? 'latest'
  if (blob === undefined || manifest === undefined) throw new Error('a repository without content')
  switch (random.weighted(weights)) {
    case 'blob':
      return blobPull(blob)
    case 'blobPart':
      return blob.bytes.length === 0 ? blobPull(blob) : blobPart(blob, random)
    case 'blobHead':
      return blobHead(blob, () => isTrusted(`${repository.name}/blobs/${blob.digest}`))
    case 'tag':
      return tagPull(repository, tag)
    case 'tagHead':
      return tagPull(repository, tag, 'HEAD')
    case 'digest':
      return digestPull(manifest)
    case 'digestHead':
      return digestPull(manifest, 'HEAD')
    case 'tags':
      return tagsPull(repository)
    case 'referrers':
      return referrersPull(repository, random.pick([...repository.referrers.keys()]) ?? manifest.digest)
  }
}
