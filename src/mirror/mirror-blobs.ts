import { createHash } from 'node:crypto'
import type { MetadataStore } from '../../storage/metadata-store.js'
import type { Digest } from '../oci/digest.js'
import { RegistryError } from '../oci/errors.js'
import type { RepositoryName } from '../oci/reference.js'
import type { BlobService, Blobs, MountSource, OpenBlob } from '../registry/blobs.js'
import { Fill } from './fill.js'
import { dropLeftover } from './fill-leftover.js'
import { FillReader } from './fill-reader.js'
import type { FillContext } from './fill-task.js'
import { joined } from './joining.js'
import type { Mirror, Mirrors } from './mirrors.js'
import { Misses } from './misses.js'
import { toRefusal } from './refusals.js'
import { UpstreamError } from './upstream.js'

/** What the service is told. */
export interface MirrorBlobOptions {
  readonly local: BlobService
  readonly mirrors: Mirrors
  readonly context: Omit<FillContext, 'onFetched'>
  /** Called when a blob has come in. */
  readonly onFilled: (mirror: Mirror, digest: Digest, size: number | undefined) => void
}

/**
 * Blobs, of which those in a mirror's repositories come from its upstream when they are asked for: streamed to
 * whoever asks while they are stored, once for all who ask (protocol PX-03).
 */
export class MirrorBlobs implements Blobs {
  readonly #options: MirrorBlobOptions
  readonly #local: BlobService
  readonly #metadata: MetadataStore
  readonly #fills = new Map<string, Fill>()
  readonly #misses = new Misses()

  constructor(options: MirrorBlobOptions) {
    this.#options = options
    this.#local = options.local
    this.#metadata = options.context.metadata
  }

  /** @throws RegistryError BLOB_UNKNOWN, TOOMANYREQUESTS, UPSTREAM_UNAVAILABLE, UPSTREAM_INVALID */
  async statBlob(repository: RepositoryName, digest: Digest): Promise<number> {
    const mirror = this.#options.mirrors.of(repository)
    const size = mirror && (await this.#metadata.findBlob(repository, digest))
    if (mirror === undefined || size !== undefined) return size ?? this.#local.statBlob(repository, digest)
    await this.#refuseLocal(repository, digest)
    mirror.miss()
    return this.#ask(mirror, repository, digest, async (remote) => {
      const told = await mirror.upstream.headBlob(remote, digest)
      return told ?? this.#sizeOf(mirror, this.#fill(mirror, repository, digest), remote, digest)
    })
  }

  /** @throws as {@link statBlob}, and UNAVAILABLE as {@link BlobService.openBlob} */
  async openBlob(repository: RepositoryName, digest: Digest): Promise<OpenBlob> {
    const mirror = this.#options.mirrors.of(repository)
    if (mirror === undefined) return this.#local.openBlob(repository, digest)
    const stored = await this.#openStored(mirror, repository, digest)
    if (typeof stored !== 'string') {
      mirror.hit(stored.size, digest)
      return stored
    }
    mirror.miss()
    return this.#ask(mirror, repository, digest, async (remote) => {
      if (stored === 'absent' && (await this.#link(mirror, repository, digest))) {
        return this.#local.openBlob(repository, digest)
      }
      const fill = this.#fill(mirror, repository, digest)
      fill.enter()
      try {
        return new FillReader(fill, await this.#sizeOf(mirror, fill, remote, digest))
      } catch (error) {
        fill.leave()
        throw error
      }
    })
  }

  /** Stores a blob without sending it to anybody. @returns bytes that it has @throws as {@link statBlob} */
  async prefetchBlob(repository: RepositoryName, digest: Digest): Promise<number> {
    const mirror = this.#options.mirrors.of(repository)
    if (mirror === undefined) throw new RegistryError('BLOB_UNKNOWN')
    const size = await this.#metadata.findBlob(repository, digest)
    if (size !== undefined) return size
    return this.#ask(mirror, repository, digest, async () => {
      if (!(await this.#link(mirror, repository, digest))) {
        await this.#fill(mirror, repository, digest).stored()
      }
      return this.#local.statBlob(repository, digest)
    })
  }

  /** Bytes that have come of the blobs that are being fetched now. */
  get arrivingBytes(): number {
    return [...this.#fills.values()].reduce((sum, fill) => sum + fill.storedBytes, 0)
  }

  async #ask<T>(
    mirror: Mirror,
    repository: RepositoryName,
    digest: Digest,
    work: (remote: RepositoryName) => Promise<T>,
  ): Promise<T> {
    const key = `${repository}@${digest}`
    try {
      mirror.refuseLoop()
      this.#misses.check(key)
      return await work(mirror.remoteOf(repository))
    } catch (error) {
      if (error instanceof UpstreamError && error.failure === 'not-found') this.#misses.note(key, error)
      throw toRefusal(error, 'BLOB_UNKNOWN')
    }
  }

  /**
   * A blob that the upstream has delivered before need not be fetched again for another repository, if the upstream
   * has it in this one, too: a manifest alone proves nothing, anybody can name a digest in one (reliability S20). What
   * it has never delivered it does not get by saying that it has it (docs/decisions/0023).
   */
  async #link(mirror: Mirror, repository: RepositoryName, digest: Digest): Promise<boolean> {
    const { context } = this.#options
    const size = await context.mirrors.findLendable(mirror.name, digest)
    if (size === undefined) return false
    try {
      const told = await mirror.upstream.headBlob(mirror.remoteOf(repository), digest)
      if (told !== undefined && told !== size) return false // not what we have: it is to show what it has
    } catch (error) {
      if (!(error instanceof UpstreamError)) throw error
      if (error.failure === 'invalid') return false // some answer HEAD with 405: the fill asks in its own way
      const isSilent = error.failure === 'unavailable'
      if (!isSilent || !mirror.options.isOpen) throw error
      const holders = await this.#metadata.listBlobRepositories(digest, 100)
      if (!holders.some((name) => this.#options.mirrors.of(name) === mirror)) throw error
    }
    const isLinked = await context.mirrors.linkMirrored(repository, digest, mirror.name, Date.now())
    const task = { id: fillId(repository, digest), mirror: mirror.name, repository, digest }
    if (isLinked) await dropLeftover(task, context)
    return isLinked
  }

  /** A blob that a repository links. One whose bytes are lost is forgotten, and comes again. */
  async #openStored(
    mirror: Mirror,
    repository: RepositoryName,
    digest: Digest,
  ): Promise<OpenBlob | 'absent' | 'lost'> {
    const { blobs, mirrors } = this.#options.context
    try {
      return await this.#local.openBlob(repository, digest)
    } catch (error) {
      if ((await mirrors.findRepositoryKind(repository)) === 'local') throw error
      const size = await this.#metadata.findBlob(repository, digest)
      if (size === undefined) return 'absent'
      if ((await blobs.stat(digest))?.size === size) throw error
      await mirrors.evict(mirror.name, [digest])
      return 'lost'
    }
  }

  /** The size of a blob that comes in. Whoever comes through another registry looks himself while nothing does. */
  #sizeOf(mirror: Mirror, fill: Fill, remote: RepositoryName, digest: Digest): Promise<number> {
    return joined(fill.size(), async () => {
      await mirror.upstream.headBlob(remote, digest)
      return fill.size()
    })
  }

  #fill(mirror: Mirror, repository: RepositoryName, digest: Digest): Fill {
    const id = fillId(repository, digest)
    const running = this.#fills.get(id)
    if (running !== undefined) return running
    const { upstream, name } = mirror
    const remote = mirror.remoteOf(repository)
    const fill = new Fill(
      { id, mirror: name, upstream, repository, remote, digest },
      { ...this.#options.context, onFetched: (bytes) => mirror.fetched(bytes) },
    )
    this.#fills.set(id, fill)
    void fill.ended.then(() => {
      this.#fills.delete(id)
      this.#options.onFilled(mirror, digest, fill.knownSize)
    })
    return fill
  }

  /** A repository that holds what was pushed here is never looked up upstream. */
  async #refuseLocal(repository: RepositoryName, digest: Digest): Promise<void> {
    if ((await this.#options.context.mirrors.findRepositoryKind(repository)) === 'local') {
      throw new RegistryError('BLOB_UNKNOWN', undefined, { detail: { digest } })
    }
  }

  mountBlob(repository: RepositoryName, digest: Digest, source: MountSource): Promise<boolean> {
    return this.#local.mountBlob(repository, digest, source)
  }

  deleteBlob(repository: RepositoryName, digest: Digest): Promise<void> {
    return this.#local.deleteBlob(repository, digest)
  }

  /** Ends what is being fetched; it goes on from there after a restart. */
  async close(): Promise<void> {
    const fills = [...this.#fills.values()]
    for (const fill of fills) fill.cancel()
    await Promise.all(fills.map((fill) => fill.ended))
  }
}

/** The upload that a fill's bytes go to: the same on every worker. */
function fillId(repository: RepositoryName, digest: Digest): string {
  return `fill-${createHash('sha256').update(`${repository}@${digest}`).digest('hex')}`
}
