import type { FakeUpstream } from '../mirror/fake-upstream.js'
import type { Random } from './random.js'

/** A blob that the upstream has, in one of its repositories. */
export interface KnownBlob {
  readonly repository: string
  readonly digest: string
  readonly bytes: Buffer
}

/** A manifest that the upstream has. */
export interface KnownManifest extends KnownBlob {
  readonly mediaType: string
}

const imageType = 'application/vnd.oci.image.manifest.v1+json'
const indexType = 'application/vnd.oci.image.index.v1+json'
const sizes = [0, 1, 100, 50_000, 100_000, 300_000, 1_100_000]

/** One repository of the upstream, and all that it ever said. */
export class KnownRepository {
  readonly name: string
  readonly blobs: KnownBlob[] = []
  readonly manifests = new Map<string, KnownManifest>()
  /** Every digest that a tag ever had, the one that it has now last. */
  readonly tags = new Map<string, string[]>()
  /** Digests by the digest of their subject. */
  readonly referrers = new Map<string, Set<string>>()
  readonly #upstream: FakeUpstream

  constructor(upstream: FakeUpstream, name: string) {
    this.#upstream = upstream
    this.name = name
  }

  /** Adds a blob. @returns its descriptor */
  addBlob(bytes: Buffer, mediaType: string): object {
    const digest = this.#upstream.addBlob(this.name, bytes)
    this.blobs.push({ repository: this.name, digest, bytes })
    return { mediaType, digest, size: bytes.length }
  }

  /** Adds a manifest, or moves a tag to one that is there. @returns its descriptor */
  addManifest(tag: string | undefined, manifest: object, mediaType: string): object {
    const bytes = Buffer.from(JSON.stringify(manifest))
    const digest = this.#upstream.addManifest(this.name, tag, bytes, mediaType)
    this.manifests.set(digest, { repository: this.name, digest, bytes, mediaType })
    if (tag !== undefined) this.tags.set(tag, [...(this.tags.get(tag) ?? []), digest])
    return { mediaType, digest, size: bytes.length }
  }

  /** Moves a tag to another manifest. */
  moveTag(tag: string, { digest, bytes, mediaType }: KnownManifest): void {
    this.tags.set(tag, [...(this.tags.get(tag) ?? []), digest])
    this.#upstream.addManifest(this.name, tag, bytes, mediaType)
  }
}

/**
 * A repository with two images, of which `latest` is one, an index over both, and what refers to the first. Some of
 * the layers are those of other repositories, too.
 */
export function makeRepository(
  upstream: FakeUpstream,
  name: string,
  random: Random,
  shared: readonly Buffer[],
): KnownRepository {
  const repository = new KnownRepository(upstream, name)
  const layer = () =>
    (random.chance(0.3) ? random.pick(shared) : undefined) ?? random.bytes(random.pick(sizes) ?? 0)
  const image = (tag: string, more: object = {}) => {
    const config = Buffer.from(
      JSON.stringify({ architecture: tag, os: 'linux', salt: random.int(0, 2 ** 32) }),
    )
    const manifest = {
      schemaVersion: 2,
      mediaType: imageType,
      config: repository.addBlob(config, 'application/vnd.oci.image.config.v1+json'),
      layers: [layer(), layer()].map((bytes) =>
        repository.addBlob(bytes, 'application/vnd.oci.image.layer.v1.tar'),
      ),
      ...more,
    }
    return repository.addManifest(tag, manifest, imageType)
  }
  const images = ['v1', 'v2'].map((tag) => image(tag))
  const [first] = repository.manifests.values()
  if (first === undefined) throw new Error('an image has a manifest')
  repository.moveTag('latest', first)
  const platforms = images.map((descriptor, at) => ({
    ...descriptor,
    platform: { os: 'linux', architecture: `arch${at}` },
  }))
  const index = { schemaVersion: 2, mediaType: indexType, manifests: platforms }
  repository.addManifest('multi', index, indexType)
  image('about', { subject: images[0], artifactType: 'application/about' })
  repository.referrers.set(first.digest, new Set([repository.tags.get('about')?.at(-1) ?? '']))
  return repository
}

/** Layers that several repositories have. */
export const makeSharedLayers = (random: Random): Buffer[] =>
  Array.from({ length: 4 }, () => random.bytes(random.pick(sizes) ?? 0))
