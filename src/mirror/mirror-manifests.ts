import type {
  ManifestHead,
  MetadataStore,
  Page,
  ReferrerLimits,
  ReferrerPage,
  StoredManifest,
} from '../../storage/metadata-store.js'
import type { MirroredManifest, MirrorStore } from '../../storage/mirror-store.js'
import { type Digest, isDigest } from '../oci/digest.js'
import { RegistryError } from '../oci/errors.js'
import type { PackedManifest } from '../oci/packed-manifest.js'
import type { Reference, RepositoryName, Tag } from '../oci/reference.js'
import {
  isIntact,
  type ManifestService,
  type Manifests,
  type Notice,
  type Push,
  type Pushed,
} from '../registry/manifests.js'
import type { PullLog } from '../registry/pulls.js'
import { joined } from './joining.js'
import { Lending, type LendingBlobs } from './lending.js'
import type { Mirror, Mirrors } from './mirrors.js'
import { Misses } from './misses.js'
import { pageOf, Referrers } from './referrers.js'
import { toRefusal } from './refusals.js'
import type { Sharing } from './sharing.js'
import { UpstreamError, type UpstreamManifest } from './upstream.js'

/** Milliseconds that somebody waits for news of what is here already. */
const patience = 800

/** What the service is told. */
export interface MirrorManifestOptions {
  readonly blobs: LendingBlobs
  readonly local: ManifestService
  readonly metadata: MetadataStore
  readonly store: MirrorStore
  readonly mirrors: Mirrors
  readonly sharing: Sharing
  readonly parse: (bytes: Uint8Array, contentType: string | undefined) => Promise<PackedManifest>
  readonly pulls: Pick<PullLog, 'note'>
  /** Patterns of the repository's tags that nobody moves, a mirror as little as a user (protocol MF-13). */
  readonly immutableTags: (repository: RepositoryName) => readonly string[]
}

type Served = StoredManifest & Notice

/**
 * Manifests, of which those in a mirror's repositories come from its upstream when they are asked for
 * (protocol 12.4). All others are the registry's own.
 */
export class MirrorManifests implements Manifests {
  readonly #options: MirrorManifestOptions
  readonly #local: ManifestService
  readonly #store: MirrorStore
  readonly #misses = new Misses()
  readonly #referrers = new Referrers()
  readonly #lending: Lending

  constructor(options: MirrorManifestOptions) {
    this.#options = options
    this.#local = options.local
    this.#store = options.store
    this.#lending = new Lending(options)
  }

  /**
   * @throws RegistryError MANIFEST_UNKNOWN, NAME_UNKNOWN, TOOMANYREQUESTS, UPSTREAM_UNAVAILABLE, UPSTREAM_INVALID
   */
  async getManifest(repository: RepositoryName, reference: Reference): Promise<Served> {
    const mirror = this.#options.mirrors.of(repository)
    if (mirror === undefined) return this.#local.getManifest(repository, reference)
    try {
      const manifest =
        reference.kind === 'digest'
          ? await this.#byDigest(mirror, repository, reference.digest)
          : await this.#byTag(mirror, repository, reference.tag)
      this.#options.pulls.note(repository, reference, manifest.digest)
      return manifest
    } catch (error) {
      throw toRefusal(error, 'MANIFEST_UNKNOWN')
    }
  }

  /** As {@link getManifest}: who asks for the head of a manifest is about to ask for the rest. */
  async headManifest(repository: RepositoryName, reference: Reference): Promise<ManifestHead & Notice> {
    const mirror = this.#options.mirrors.of(repository)
    return mirror === undefined
      ? this.#local.headManifest(repository, reference)
      : this.getManifest(repository, reference)
  }

  /** What is here and has not been altered: the rest comes from the upstream again, which mends it. */
  async #find(repository: RepositoryName, digest: Digest): Promise<StoredManifest | undefined> {
    const found = await this.#options.metadata.findManifest(repository, { kind: 'digest', digest })
    return found !== undefined && isIntact(found) ? found : undefined
  }

  /** The same by tag. What was pushed here is nobody else's: it is given as it is. */
  async #findTagged(repository: RepositoryName, tag: Tag): Promise<MirroredManifest | undefined> {
    const found = await this.#store.findTagged(repository, tag)
    return found === undefined || found.kind === 'local' || isIntact(found) ? found : undefined
  }

  /**
   * What a tag leads to upstream at this moment, however lately somebody looked, or the manifest of a digest; it is
   * stored, and counts as nobody's pull. Never what may be stale.
   * @throws as {@link getManifest}, and DENIED for what was pushed here
   */
  async prefetchManifest(repository: RepositoryName, reference: Tag | Digest): Promise<StoredManifest> {
    const mirror = this.#options.mirrors.of(repository)
    if (mirror === undefined || (await this.#store.findRepositoryKind(repository)) === 'local') {
      throw new RegistryError(
        'DENIED',
        `${repository} holds what was pushed here, so no upstream is asked for it`,
      )
    }
    try {
      if (!isDigest(reference)) return await this.#refresh(mirror, repository, reference, Date.now())
      const find = () => this.#find(repository, reference)
      return (
        (await find()) ??
        (await this.#options.sharing.share(`manifest:${repository}@${reference}`, find, () =>
          this.#fetch(mirror, repository, reference, []),
        ))
      )
    } catch (error) {
      throw toRefusal(error, 'MANIFEST_UNKNOWN')
    }
  }

  /** PX-02: what is here is never asked for again. */
  async #byDigest(mirror: Mirror, repository: RepositoryName, digest: Digest): Promise<Served> {
    const find = () => this.#find(repository, digest)
    const found = await find()
    if (found !== undefined) {
      mirror.hit(found.size)
      return found
    }
    await this.#refuseLocal(repository, { kind: 'digest', digest })
    mirror.refuseLoop()
    mirror.miss()
    const fetch = () => this.#fetch(mirror, repository, digest, [])
    return joined(this.#options.sharing.share(`manifest:${repository}@${digest}`, find, fetch), fetch)
  }

  /** PX-01: a tag that was checked a moment ago is current; an older one is, if the upstream says so or is silent. */
  async #byTag(mirror: Mirror, repository: RepositoryName, tag: Tag): Promise<Served> {
    const askedAt = Date.now()
    const cached = await this.#findTagged(repository, tag)
    if (cached === undefined) {
      await this.#refuseLocal(repository, { kind: 'tag', tag })
      mirror.refuseLoop()
      mirror.miss()
      return this.#refresh(mirror, repository, tag, askedAt)
    }
    if (cached.kind === 'local') return this.#local.getManifest(repository, { kind: 'tag', tag })
    if (isCurrent(cached, askedAt - mirror.options.freshness)) {
      mirror.hit(cached.size)
      return cached
    }
    try {
      mirror.refuseLoop()
      const current = await within(patience, this.#refresh(mirror, repository, tag, askedAt))
      if (current.digest === cached.digest) mirror.hit(cached.size)
      else mirror.miss()
      return current
    } catch (error) {
      if (!(error instanceof UpstreamError)) throw error
      if (error.failure === 'not-found' && mirror.dropsDeleted) throw error
      mirror.hit(cached.size)
      return { ...cached, warning: describeStale(mirror, error, cached) }
    }
  }

  /** Asks the upstream what the tag points at now; whoever asks meanwhile shares the answer. */
  #refresh(mirror: Mirror, repository: RepositoryName, tag: Tag, askedAt: number): Promise<Served> {
    const find = async (): Promise<Served | undefined> => {
      const tagged = await this.#findTagged(repository, tag)
      return tagged !== undefined && isCurrent(tagged, askedAt) ? tagged : undefined
    }
    const revalidate = () => this.#revalidate(mirror, repository, tag)
    return joined(this.#options.sharing.share(`tag:${repository}:${tag}`, find, revalidate), revalidate)
  }

  async #revalidate(mirror: Mirror, repository: RepositoryName, tag: Tag): Promise<Served> {
    const key = `${repository}:${tag}`
    this.#misses.check(key)
    const cached = await this.#findTagged(repository, tag)
    try {
      if (cached === undefined) return await this.#fetch(mirror, repository, tag, [tag])
      const { digest } = await mirror.upstream.headManifest(mirror.remoteOf(repository), tag)
      if (
        digest === cached.digest &&
        (await this.#store.noteTagChecked(repository, tag, digest, Date.now()))
      ) {
        return cached
      }
      const known = await this.#find(repository, digest)
      return known === undefined
        ? await this.#fetch(mirror, repository, digest, [tag])
        : await this.#keep(mirror, repository, known, [tag])
    } catch (error) {
      if (!(error instanceof UpstreamError) || error.failure !== 'not-found') throw error
      this.#misses.note(key, error)
      if (cached !== undefined && mirror.dropsDeleted) {
        const immutable = this.#options.immutableTags(repository)
        await this.#options.metadata.deleteTag(repository, tag, { immutable, now: Date.now() })
      }
      throw error
    }
  }

  async #fetch(
    mirror: Mirror,
    repository: RepositoryName,
    reference: Tag | Digest,
    tags: readonly Tag[],
  ): Promise<Served> {
    const key = `${repository}@${reference}`
    this.#misses.check(key)
    try {
      const manifest = await mirror.upstream.getManifest(mirror.remoteOf(repository), reference)
      mirror.fetched(manifest.bytes.byteLength)
      return await this.#keep(mirror, repository, manifest, tags)
    } catch (error) {
      if (error instanceof UpstreamError && error.failure === 'not-found') this.#misses.note(key, error)
      throw error
    }
  }

  /** PX-04: stored byte for byte; what it names comes when it is asked for. */
  async #keep(
    mirror: Mirror,
    repository: RepositoryName,
    {
      digest,
      mediaType,
      bytes,
    }: Omit<UpstreamManifest, 'mediaType'> & { readonly mediaType: string | undefined },
    tags: readonly Tag[],
  ): Promise<Served> {
    const parsed = await this.#parse(mirror, bytes, mediaType)
    const result = await this.#store.putMirrored(
      {
        ...parsed,
        repository,
        digest,
        bytes,
        tags,
        sparse: true,
        immutable: this.#options.immutableTags(repository),
        condition: undefined,
        now: Date.now(),
      },
      mirror.name,
    )
    switch (result.outcome) {
      case 'stored':
        return { digest, mediaType: parsed.mediaType, size: bytes.byteLength, bytes }
      case 'immutable':
        throw new UpstreamError(
          'invalid',
          `${mirror.name} has moved tag ${result.tag} of ${mirror.remoteOf(repository)}, which is immutable here`,
        )
      case 'retyped':
        // The type that it first came with stays, whatever the upstream calls it now.
        return this.#keep(mirror, repository, { digest, mediaType: result.mediaType, bytes }, tags)
      case 'local':
        throw new RegistryError('MANIFEST_UNKNOWN')
      default:
        throw new UpstreamError(
          'invalid',
          `${mirror.name} sent a manifest that does not fit its content: ${digest}`,
        )
    }
  }

  async #parse(mirror: Mirror, bytes: Uint8Array, mediaType: string | undefined): Promise<PackedManifest> {
    try {
      return await this.#options.parse(bytes, mediaType)
    } catch (error) {
      if (!(error instanceof RegistryError)) throw error
      throw new UpstreamError(
        'invalid',
        `${mirror.name} sent a manifest that cannot be used: ${error.message}`,
        {
          cause: error,
        },
      )
    }
  }

  /** A repository that holds what was pushed here is never looked up upstream. */
  async #refuseLocal(repository: RepositoryName, reference: Reference): Promise<void> {
    if ((await this.#store.findRepositoryKind(repository)) === 'local') {
      await this.#local.getManifest(repository, reference)
    }
  }

  /** The upstream's tags; those that are here while it cannot be asked. */
  async listTags(repository: RepositoryName, after: string, limit: number): Promise<Page & Notice> {
    const mirror = this.#options.mirrors.of(repository)
    if (mirror === undefined || (await this.#store.findRepositoryKind(repository)) === 'local') {
      return this.#local.listTags(repository, after, limit)
    }
    try {
      mirror.refuseLoop()
      return await within(patience * 10, mirror.upstream.listTags(mirror.remoteOf(repository), after, limit))
    } catch (error) {
      return this.#instead(error, () => this.#local.listTags(repository, after, limit))
    }
  }

  async #instead<T extends object>(error: unknown, local: () => Promise<T>): Promise<T & Notice> {
    if (!(error instanceof UpstreamError)) throw error
    try {
      return { ...(await local()), warning: `${oneLine(error.message)}: this list holds what is here` }
    } catch {
      throw toRefusal(error, 'NAME_UNKNOWN')
    }
  }

  /** PX-09: the upstream's referrers; those that are here while it cannot be asked. */
  async listReferrers(
    repository: RepositoryName,
    subject: Digest,
    artifactTypes: readonly string[],
    after: number,
    most: ReferrerLimits,
  ): Promise<ReferrerPage> {
    const mirror = this.#options.mirrors.of(repository)
    if (mirror === undefined || (await this.#store.findRepositoryKind(repository)) === 'local') {
      return this.#local.listReferrers(repository, subject, artifactTypes, after, most)
    }
    try {
      mirror.refuseLoop()
      const remote = mirror.remoteOf(repository)
      const all = await this.#referrers.list(`${repository}@${subject}`, () =>
        mirror.upstream.listReferrers(remote, subject),
      )
      return pageOf(all, artifactTypes, after, most)
    } catch (error) {
      if (!(error instanceof UpstreamError)) throw error
      return this.#local.listReferrers(repository, subject, artifactTypes, after, most)
    }
  }

  putManifest(push: Push): Promise<Pushed> {
    return this.#lending.putManifest(push)
  }

  deleteTag(...args: Parameters<Manifests['deleteTag']>): Promise<void> {
    return this.#local.deleteTag(...args)
  }

  deleteManifest(...args: Parameters<Manifests['deleteManifest']>): Promise<void> {
    return this.#local.deleteManifest(...args)
  }

  listRepositories(...args: Parameters<Manifests['listRepositories']>): Promise<Page> {
    return this.#local.listRepositories(...args)
  }

  searchRepositories(...args: Parameters<Manifests['searchRepositories']>): Promise<RepositoryName[]> {
    return this.#local.searchRepositories(...args)
  }
}

function isCurrent(manifest: MirroredManifest, since: number): boolean {
  return manifest.checkedAt !== undefined && manifest.checkedAt >= since && manifest.checkedAt <= Date.now()
}

function describeStale(mirror: Mirror, error: UpstreamError, cached: MirroredManifest): string {
  const since = cached.checkedAt === undefined ? 'an unknown time' : new Date(cached.checkedAt).toISOString()
  return `${oneLine(error.message)}: this is what ${mirror.name} had at ${since}`
}

/** Fit for a header: printable ASCII without quotes and backslashes. */
function oneLine(text: string): string {
  return text.replaceAll(/[^ !#-[\]-~]+/g, ' ').slice(0, 300)
}

/** @throws UpstreamError when the answer takes longer; it is still used when it comes */
function within<T>(milliseconds: number, answer: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(
      () => reject(new UpstreamError('unavailable', 'the upstream is slow to answer')),
      milliseconds,
    )
    answer.then(resolve, reject).finally(() => clearTimeout(timer))
  })
}
