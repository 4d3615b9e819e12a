import { createHash } from 'node:crypto'
import { MANIFEST_TYPE } from './image.js'
import { digestOf } from './payload.js'

/*
 * What a large registry looks like in the rows about scale: 10,000 repositories with 90 tags, 20 manifests and 10 blobs
 * each, and one repository with 100,000 tags. Everything follows from numbers, so that whoever loads it and whoever asks
 * for it need not tell each other anything.
 */

export const REPOSITORIES = 10_000
export const TAGS_EACH = 90
export const MANIFESTS_EACH = 20
export const BLOBS_EACH = 10
export const LARGE_REPOSITORY = 'large/app'
export const LARGE_TAGS = 100_000
const APPS_PER_TEAM = 100
const LARGE_MANIFESTS = 1000

/** A blob's bytes; few, so that the disk holds many of them. */
export interface SeedBlob {
  readonly digest: string
  readonly bytes: Buffer
}

/** An image's manifest and the tags that point at it. */
export interface SeedManifest {
  readonly digest: string
  readonly bytes: Buffer
  readonly children: readonly SeedBlob[]
  readonly tags: readonly string[]
}

export interface SeedRepository {
  readonly name: string
  readonly blobs: readonly SeedBlob[]
  readonly manifests: readonly SeedManifest[]
}

const padded = (n: number, length: number) => String(n).padStart(length, '0')

/** The n-th of the 10,000 names; their order is the order of the numbers. */
export function repositoryName(n: number): string {
  return `team-${padded(Math.floor(n / APPS_PER_TEAM), 3)}/app-${padded(n % APPS_PER_TEAM, 3)}`
}

/** The n-th tag of a repository; their order is the order of the numbers. */
export function seedTag(n: number): string {
  return `v1.${padded(n, 6)}`
}

/** The n-th blob of the n-th repository. */
export function seedBlob(repository: string, n: number): SeedBlob {
  const bytes = createHash('sha256').update(`${repository} ${n}`).digest()
  return { digest: digestOf(bytes), bytes }
}

/** A repository with so many manifests, which share so many tags. */
export function makeRepository(name: string, manifests: number, tags: number): SeedRepository {
  const blobs = Array.from({ length: BLOBS_EACH }, (_, n) => seedBlob(name, n))
  const perManifest = tags / manifests
  const made = Array.from({ length: manifests }, (_, n) => {
    const children = [blobs[n % BLOBS_EACH], blobs[(n + 1) % BLOBS_EACH]].filter((one) => one !== undefined)
    const [first, last] = [Math.ceil(n * perManifest), Math.ceil((n + 1) * perManifest)]
    const own = Array.from({ length: last - first }, (_, at) => seedTag(first + at))
    return makeManifest(name, n, children, own)
  })
  return { name, blobs, manifests: made }
}

function makeManifest(
  name: string,
  n: number,
  children: readonly SeedBlob[],
  tags: readonly string[],
): SeedManifest {
  const [config, ...layers] = children.map(({ digest, bytes }, at) => ({
    mediaType: `application/vnd.oci.image.${at === 0 ? 'config.v1+json' : 'layer.v1.tar+gzip'}`,
    digest,
    size: bytes.length,
  }))
  const annotations = { 'org.opencontainers.image.ref.name': `${name}-${n}` }
  const bytes = Buffer.from(
    JSON.stringify({ schemaVersion: 2, mediaType: MANIFEST_TYPE, config, layers, annotations }),
  )
  return { digest: digestOf(bytes), bytes, children, tags }
}

/** All of it, one repository at a time. */
export function* seedRepositories(): Generator<SeedRepository> {
  for (let n = 0; n < REPOSITORIES; n += 1) yield makeRepository(repositoryName(n), MANIFESTS_EACH, TAGS_EACH)
  yield makeRepository(LARGE_REPOSITORY, LARGE_MANIFESTS, LARGE_TAGS)
}
