import type { Digest } from '../oci/digest.js'
import { RegistryError } from '../oci/errors.js'
import { readIndexEntries } from '../oci/index-entries.js'
import { manifestKindOf } from '../oci/media-types.js'
import { childrenOf, type PackedManifest } from '../oci/packed-manifest.js'
import { isRepositoryName, parseTag, type RepositoryName, type Tag } from '../oci/reference.js'
import { matchesTag } from '../oci/tag-pattern.js'
import type { Mirror } from './mirrors.js'
import { withLibrary } from './names.js'
import type { Patience } from './patience.js'
import { entriesFor } from './platforms.js'
import { toRefusal } from './refusals.js'
import type { ManifestSource, SourceManifest } from './sync-source.js'

/** Tags that are asked for at once, and that one repository may list. */
const tagsPerPage = 1000
const mostTags = 100_000

/** Manifests and blobs that one image may consist of. */
const mostManifests = 1000
const mostBlobs = 10_000

/** What is to be fetched of one repository. */
export interface SyncImages {
  /** The upstream's name. */
  readonly repository: string
  /** Tags in which `*` stands for any text. */
  readonly tags: readonly string[]
  /** Such as `linux/amd64`; empty for all there are. */
  readonly platforms: readonly string[]
}

/** What a resolver works with. */
export interface ResolverOptions {
  readonly mirror: Mirror
  readonly source: ManifestSource
  readonly parse: (bytes: Uint8Array, contentType: string | undefined) => Promise<PackedManifest>
  readonly patience: Patience
}

/** An image with what it consists of. */
export interface ResolvedImage {
  readonly digest: Digest
  /** Bytes by digest. */
  readonly blobs: ReadonlyMap<Digest, number>
}

/** Finds out which tags fit patterns, and which blobs belong to a tag. */
export class SyncResolver {
  readonly #options: ResolverOptions

  constructor(options: ResolverOptions) {
    this.#options = options
  }

  /** The repository here that stands for the upstream's. @throws RegistryError DENIED, NAME_INVALID */
  repositoryOf(remote: string): RepositoryName {
    const { mirror } = this.#options
    const name = isRepositoryName(remote) ? withLibrary(mirror, remote) : remote
    const here = `${mirror.name}/${name}`
    if (!isRepositoryName(name) || !isRepositoryName(here)) throw new RegistryError('NAME_INVALID')
    if (mirror.allows(name)) return here
    throw new RegistryError('DENIED', `the mirror of ${mirror.name} is set up not to fetch ${name}`)
  }

  /** The tags that fit, those written in full whether they exist or not; and why patterns have none. */
  async tags(
    repository: RepositoryName,
    patterns: readonly string[],
  ): Promise<{ readonly tags: readonly Tag[]; readonly failures: ReadonlyMap<string, unknown> }> {
    const isOpen = (pattern: string) => pattern.includes('*')
    const tags = new Set(patterns.filter((pattern) => !isOpen(pattern)).map(parseTag))
    const failures = new Map<string, unknown>()
    const open = patterns.filter(isOpen)
    const listed =
      open.length === 0 ? [] : await this.#listTags(repository).catch((error: unknown) => ({ error }))
    for (const pattern of open) {
      const fitting = 'error' in listed ? [] : listed.filter((tag) => matchesTag(pattern, tag))
      for (const tag of fitting) tags.add(tag)
      const nothing = () => new RegistryError('MANIFEST_UNKNOWN', `no tag there fits ${pattern}`)
      if (fitting.length === 0) failures.set(pattern, 'error' in listed ? listed.error : nothing())
    }
    return { tags: [...tags], failures }
  }

  async #listTags(repository: RepositoryName): Promise<readonly Tag[]> {
    const { mirror, patience } = this.#options
    const all: Tag[] = []
    for (let after = ''; ; ) {
      const page = await patience.attempt(async () => {
        try {
          return await mirror.upstream.listTags(mirror.remoteOf(repository), after, tagsPerPage)
        } catch (error) {
          throw toRefusal(error, 'NAME_UNKNOWN')
        }
      })
      all.push(...page.names.map(parseTag))
      after = page.names.at(-1) ?? ''
      if (!page.more) return all
      if (after === '' || all.length > mostTags) {
        throw new RegistryError('UPSTREAM_INVALID', `the list of its tags has no end within ${mostTags}`)
      }
    }
  }

  /** @throws RegistryError */
  async image(repository: RepositoryName, tag: Tag, platforms: readonly string[]): Promise<ResolvedImage> {
    const blobs = new Map<Digest, number>()
    const top = await this.#load(repository, tag)
    const waiting: SourceManifest[] = [top]
    const seen = new Set<Digest>([top.digest])
    for (let manifest = waiting.pop(); manifest !== undefined; manifest = waiting.pop()) {
      for (const digest of await this.#read(manifest, platforms, blobs)) {
        if (seen.has(digest)) continue
        seen.add(digest)
        if (seen.size > mostManifests || blobs.size > mostBlobs) {
          throw new RegistryError('UPSTREAM_INVALID', 'it has more parts than any image')
        }
        waiting.push(await this.#load(repository, digest))
      }
    }
    return { digest: top.digest, blobs }
  }

  #load(repository: RepositoryName, reference: Tag | Digest): Promise<SourceManifest> {
    const { source, patience } = this.#options
    return patience.attempt(() => source.load(repository, reference))
  }

  /** Adds a manifest's blobs. @returns the manifests that belong to it */
  async #read(
    { bytes, mediaType }: SourceManifest,
    platforms: readonly string[],
    blobs: Map<Digest, number>,
  ): Promise<readonly Digest[]> {
    const parsed = await this.#options.parse(bytes, mediaType)
    if (manifestKindOf(parsed.mediaType) !== 'index') {
      for (const children of childrenOf(parsed)) {
        for (const { digest, size, required } of children) if (required) blobs.set(digest, size)
      }
      return []
    }
    const entries = readIndexEntries(bytes)
    const chosen = entriesFor(entries, platforms)
    const isEmpty = !chosen.some(({ platform }) => platform !== undefined)
    if (isEmpty && entries.some(({ platform }) => platform !== undefined)) {
      throw new RegistryError('MANIFEST_UNKNOWN', `there is nothing of it for ${platforms.join(' or ')}`)
    }
    for (const { digest, size, isManifest } of chosen) if (!isManifest) blobs.set(digest, size)
    return chosen.filter(({ isManifest }) => isManifest).map(({ digest }) => digest)
  }
}
