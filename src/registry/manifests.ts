import type {
  Condition,
  ManifestHead,
  MetadataStore,
  Page,
  Referrer,
  ReferrerLimits,
  ReferrerPage,
  StoredManifest,
} from '../../storage/metadata-store.js'
import type { Author } from '../../storage/tag-store.js'
import { algorithmOf, type Digest, digestOf } from '../oci/digest.js'
import { RegistryError } from '../oci/errors.js'
import type { PackedManifest } from '../oci/packed-manifest.js'
import { parseTag, type Reference, type RepositoryName, type Tag } from '../oci/reference.js'
import { Turns } from '../oci/turns.js'
import type { DiskGuard } from './disk-guard.js'
import { leaseSlack } from './leases.js'
import type { PullLog } from './pulls.js'
import { overQuota } from './quotas.js'

export type { Condition, ManifestHead, Referrer, ReferrerLimits, ReferrerPage }

/** Repositories that are read at once while a list is put together. */
const listBatch = 500

/** Matches among which a search looks for those that the caller may see. */
const mostSearched = 10_000

/** Tags that one push may set (protocol MF-21). */
const mostTags = 100

/** What the service is told. */
export interface ManifestOptions {
  /** Whether a repository takes manifests that name content it does not hold (protocol MF-10). */
  readonly isSparse: (repository: RepositoryName) => boolean
  /** Patterns of the repository's tags that nobody moves or deletes (protocol MF-13). */
  readonly immutableTags: (repository: RepositoryName) => readonly string[]
  /** Milliseconds for which manifests of a repository stay that no tag leads to; undefined for ever (see leases.ts). */
  readonly untagged?: (repository: RepositoryName) => number | undefined
  /** Has the last word on bytes. */
  readonly disk: Pick<DiskGuard, 'admit'>
  /** Hears of pulls. */
  readonly pulls: Pick<PullLog, 'note'>
  /** Reads and checks a manifest; large ones away from the event loop. */
  readonly parse: (bytes: Uint8Array, contentType: string | undefined) => Promise<PackedManifest>
}

/** A manifest as it was pushed. */
export interface Push {
  readonly repository: RepositoryName
  readonly reference: Reference
  /** Further tags to set, only with a digest as the reference (protocol MF-20). */
  readonly tags: readonly string[]
  readonly bytes: Uint8Array
  readonly contentType: string | undefined
  readonly condition: Condition | undefined
  /** Who pushes it. */
  readonly user: Author
  /**
   * Whether he may pull from a repository; given where he may have been told that content is here which a bare name
   * finds in a mirror.
   */
  readonly mayBorrow?: ((repository: RepositoryName) => boolean) | undefined
}

/** What a push has done. */
export interface Pushed {
  readonly digest: Digest
  readonly subject: Digest | undefined
  /** Tags set by `?tag=`. */
  readonly tags: readonly Tag[]
}

/** What an answer may carry beside its content. */
export interface Notice {
  /** Why the content may not be the newest (RFC 7234, 5.5, warn-code 299): one line without quotes. */
  readonly warning?: string | undefined
}

/** The repositories that somebody may see: those of these prefixes that the function says yes to. */
export interface Visible {
  /** In order, none covering another. */
  readonly prefixes: readonly string[]
  readonly includes: (repository: RepositoryName) => boolean
}

/** Manifests as handlers use them: the registry's own, or those behind a mirror. */
export type Manifests = Pick<ManifestService, keyof ManifestService>

/** Manifests, tags, referrers and the lists of them. */
export class ManifestService {
  readonly #metadata: MetadataStore
  readonly #options: ManifestOptions

  constructor(metadata: MetadataStore, options: ManifestOptions) {
    this.#metadata = metadata
    this.#options = options
  }

  /** @throws RegistryError MANIFEST_UNKNOWN or NAME_UNKNOWN, UNAVAILABLE when its bytes are damaged */
  async getManifest(repository: RepositoryName, reference: Reference): Promise<StoredManifest & Notice> {
    const manifest = await this.#metadata.findManifest(repository, reference)
    if (manifest === undefined) return this.#unknown(repository, reference)
    checkBytes(manifest)
    await this.#rely(repository, reference, manifest.digest)
    return manifest
  }

  /** @throws RegistryError MANIFEST_UNKNOWN or NAME_UNKNOWN */
  async headManifest(repository: RepositoryName, reference: Reference): Promise<ManifestHead & Notice> {
    const manifest = await this.#metadata.findManifestHead(repository, reference)
    if (manifest === undefined) return this.#unknown(repository, reference)
    await this.#rely(repository, reference, manifest.digest)
    return manifest
  }

  /**
   * Whoever was told of a manifest may rely on it. By a tag they get to it as long as the tag is there, and then
   * for a while; by its digest alone only a lease keeps it.
   */
  async #rely(repository: RepositoryName, reference: Reference, digest: Digest): Promise<void> {
    this.#options.pulls.note(repository, reference, digest)
    if (reference.kind === 'tag') return
    const untagged = this.#options.untagged?.(repository)
    if (untagged === undefined) return
    const slack = leaseSlack(untagged)
    if (!(await this.#metadata.leaseManifest(repository, digest, Date.now(), slack))) {
      await this.#unknown(repository, reference)
    }
  }

  async #unknown(repository: RepositoryName, reference: Reference): Promise<never> {
    if (!(await this.#metadata.hasRepository(repository))) {
      throw new RegistryError('NAME_UNKNOWN', undefined, { detail: { name: repository } })
    }
    throw new RegistryError('MANIFEST_UNKNOWN', undefined, { detail: describe(reference) })
  }

  /**
   * Stores a manifest byte for byte, with its tags, in one transaction.
   * @throws RegistryError MANIFEST_INVALID, MANIFEST_BLOB_UNKNOWN (an entry per missing digest), DIGEST_INVALID,
   * TAG_INVALID, TOO_MANY_TAGS, PRECONDITION_FAILED, STORAGE_FULL, DENIED for an
   * immutable tag, a quota that has no room for it, or another type than the one that something depends on
   */
  async putManifest(push: Push): Promise<Pushed> {
    const { repository, reference, bytes } = push
    await this.#options.disk.admit(bytes.byteLength)
    const extraTags = readTags(push)
    const digest = checkDigest(reference, bytes)
    const parsed = await this.#options.parse(bytes, push.contentType)
    const result = await this.#metadata.putManifest({
      ...parsed,
      repository,
      digest,
      bytes,
      tags: reference.kind === 'tag' ? [reference.tag] : extraTags,
      sparse: this.#options.isSparse(repository),
      immutable: this.#options.immutableTags(repository),
      condition: push.condition,
      user: push.user,
      now: Date.now(),
    })
    switch (result.outcome) {
      case 'stored':
        return { digest, subject: parsed.subject, tags: extraTags }
      case 'immutable':
        throw immutableTag(result.tag)
      case 'retyped':
        throw retyped(result.mediaType, result.for)
      case 'over-quota':
        throw overQuota(result.excess)
      case 'condition-failed':
        throw new RegistryError('PRECONDITION_FAILED')
      case 'missing':
        throw missingContent(result.digests)
      case 'wrong-size':
        throw new RegistryError(
          'MANIFEST_INVALID',
          `the manifest gives ${result.digest} another size than the ${result.size} bytes it has`,
        )
    }
  }

  /**
   * Removes one tag and nothing else. @param user who does it
   * @throws RegistryError MANIFEST_UNKNOWN, NAME_UNKNOWN, or DENIED when it is immutable
   */
  async deleteTag(repository: RepositoryName, tag: Tag, user: Author): Promise<void> {
    const immutable = this.#options.immutableTags(repository)
    const deletion = { immutable, user, now: Date.now() }
    const result = await this.#metadata.deleteTag(repository, tag, deletion)
    if (result.outcome === 'immutable') throw immutableTag(result.tag)
    if (result.outcome === 'unknown') await this.#unknown(repository, { kind: 'tag', tag })
  }

  /**
   * Removes a manifest and every tag on it. @param user who does it
   * @throws RegistryError MANIFEST_UNKNOWN, NAME_UNKNOWN, or DENIED when a tag on it is immutable
   */
  async deleteManifest(repository: RepositoryName, digest: Digest, user: Author): Promise<void> {
    const immutable = this.#options.immutableTags(repository)
    const deletion = { immutable, user, now: Date.now() }
    const result = await this.#metadata.deleteManifest(repository, digest, deletion)
    if (result.outcome === 'immutable') throw immutableTag(result.tag)
    if (result.outcome === 'unknown') await this.#unknown(repository, { kind: 'digest', digest })
  }

  /** Tags in byte order. @throws RegistryError NAME_UNKNOWN */
  async listTags(repository: RepositoryName, after: string, limit: number): Promise<Page & Notice> {
    const page = await this.#metadata.listTags(repository, after, limit)
    if (page.names.length === 0 && !(await this.#metadata.hasRepository(repository))) {
      throw new RegistryError('NAME_UNKNOWN', undefined, { detail: { name: repository } })
    }
    return page
  }

  /** Repositories that hold a manifest and that the caller may see, in byte order. */
  async listRepositories(after: string, limit: number, visible: Visible): Promise<Page> {
    const seen: RepositoryName[] = []
    const turns = new Turns()
    for await (const names of this.#walk(after, limit + 1, visible.prefixes)) {
      for (const name of names) {
        await turns.rest()
        if (!visible.includes(name)) continue
        if (seen.length === limit) return { names: seen, more: limit > 0 }
        seen.push(name)
      }
    }
    return { names: seen, more: false }
  }

  /** Repositories behind this name, some at a time. @param firstBatch how many are likely to be enough */
  async *#walk(
    after: string,
    firstBatch: number,
    prefixes: readonly string[],
  ): AsyncGenerator<readonly RepositoryName[]> {
    let batch = Math.min(firstBatch, listBatch)
    const turns = new Turns()
    for (const prefix of prefixes) {
      for (let last = after; ; ) {
        const { names, more } = await this.#metadata.listRepositories(prefix, last, batch)
        yield names as readonly RepositoryName[]
        batch = listBatch
        last = names.at(-1) ?? last
        await turns.rest()
        if (!more) break
      }
    }
  }

  /** Repositories whose name holds the text and that the caller may see, best match first. */
  async searchRepositories(text: string, limit: number, visible: Visible): Promise<RepositoryName[]> {
    const search = async (most: number) => {
      const found = await this.#metadata.searchRepositories(visible.prefixes, text, most)
      const seen: RepositoryName[] = []
      const turns = new Turns()
      for (const name of found) {
        await turns.rest()
        if (visible.includes(name) && seen.push(name) === limit) break
      }
      return { seen, isAll: found.length < most }
    }
    // Whoever sees most of what there is needs no more than he asked for.
    const { seen, isAll } = await search(limit)
    return isAll || seen.length === limit ? seen : (await search(mostSearched)).seen
  }

  /** Referrers of a digest, oldest first; none is no error (protocol RF-01). */
  listReferrers(
    repository: RepositoryName,
    subject: Digest,
    artifactTypes: readonly string[],
    after: number,
    most: ReferrerLimits,
  ): Promise<ReferrerPage> {
    return this.#metadata.listReferrers(repository, subject, artifactTypes, after, most)
  }
}

function immutableTag(tag: Tag): RegistryError {
  return new RegistryError('DENIED', `tag ${tag} is immutable here: push under another tag`)
}

function retyped(mediaType: string, dependent: Tag | 'referrer'): RegistryError {
  const what = dependent === 'referrer' ? 'a signature or another referrer' : `the immutable tag ${dependent}`
  return new RegistryError(
    'DENIED',
    `this manifest is here as ${mediaType}, which ${what} depends on: push it again with that Content-Type`,
  )
}

function readTags({ reference, tags }: Push): Tag[] {
  if (tags.length === 0) return []
  if (reference.kind === 'tag') {
    throw new RegistryError('TAG_INVALID', 'tag parameters go with a digest in the path, not with a tag')
  }
  if (tags.length > mostTags) {
    throw new RegistryError('TOO_MANY_TAGS', `at most ${mostTags} tags can be set in one request`)
  }
  return [...new Set(tags)].map(parseTag)
}

/** The digest the manifest is stored under: the client's own, or sha256 for a push by tag. */
function checkDigest(reference: Reference, bytes: Uint8Array): Digest {
  if (reference.kind === 'tag') return digestOf(bytes)
  const actual = digestOf(bytes, algorithmOf(reference.digest))
  if (actual !== reference.digest) {
    throw new RegistryError('DIGEST_INVALID', 'the manifest has another digest than the one in the path', {
      detail: { digest: reference.digest, received: actual },
    })
  }
  return actual
}

/** At most this many entries: a reply of 8 KiB is all that some clients read (protocol G-09). */
const mostEntries = 20

function missingContent(digests: readonly Digest[]): RegistryError {
  return new RegistryError('MANIFEST_BLOB_UNKNOWN', undefined, {
    entries: digests.slice(0, mostEntries).map((digest) => ({
      code: 'MANIFEST_BLOB_UNKNOWN',
      message: `push ${digest} to this repository first`,
      detail: digest,
    })),
  })
}

function describe(reference: Reference): unknown {
  return reference.kind === 'tag' ? { tag: reference.tag } : { digest: reference.digest }
}

/** SQLite has no checksums: a flipped bit in a manifest's bytes would go unnoticed. This costs microseconds. */
export function isIntact({ digest, bytes }: Pick<StoredManifest, 'digest' | 'bytes'>): boolean {
  return digestOf(bytes, algorithmOf(digest)) === digest
}

function checkBytes(manifest: StoredManifest): void {
  if (isIntact(manifest)) return
  const { digest } = manifest
  throw new RegistryError('UNAVAILABLE', 'the manifest is damaged: the log of the registry says more', {
    cause: new Error(
      `manifest ${digest} has other bytes in the index: "boathouse verify" tells what else is damaged`,
    ),
  })
}
