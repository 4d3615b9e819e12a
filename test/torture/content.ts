import { createHash } from 'node:crypto'
import type { Random } from './random.js'

/** A config or a layer. */
export interface Blob {
  readonly digest: string
  readonly bytes: Buffer
}

/** A manifest, and what must be in its repository before it can be pushed. */
export interface Manifest {
  readonly digest: string
  readonly mediaType: string
  readonly bytes: Buffer
  /** Blobs that it names and that must be there. */
  readonly blobs: readonly string[]
  /** Manifests that it names. */
  readonly manifests: readonly string[]
  readonly subject: string | undefined
}

/** An image as a client holds it: what it pushes before the manifest, and the manifest. */
export interface Image {
  readonly blobs: readonly Blob[]
  readonly manifest: Manifest
}

const imageType = 'application/vnd.oci.image.manifest.v1+json'
const indexType = 'application/vnd.oci.image.index.v1+json'
const layerType = 'application/vnd.oci.image.layer.v1.tar'
const foreignType = 'application/vnd.docker.image.rootfs.foreign.diff.tar.gzip'

/** The digest of these bytes, as the registry writes it. */
export function digestOf(bytes: Uint8Array, algorithm = 'sha256'): string {
  return `${algorithm}:${createHash(algorithm).update(bytes).digest('hex')}`
}

/** Lengths around which a store may do things differently, most of them small. */
const sizes = {
  tiny: [2, 4096],
  small: [4097, 32_768],
  medium: [32_769, 131_072],
  large: [131_073, 400_000],
  overBatch: [1_048_570, 1_200_000],
} as const
const sizeWeights = { tiny: 540, small: 300, medium: 100, large: 40, overBatch: 20 }

/** A blob of random bytes. */
export function makeBlob(random: Random): Blob {
  const [least, most] = sizes[random.weighted(sizeWeights)]
  const bytes = random.bytes(random.int(least, most))
  return { bytes, digest: digestOf(bytes, random.chance(0.1) ? 'sha512' : 'sha256') }
}

/** An image over some layers of its own and some that others have, too. */
export function makeImage(random: Random, sharedLayers: readonly Blob[], subject?: string): Image {
  const config = Buffer.from(
    JSON.stringify({ architecture: 'amd64', os: 'linux', salt: random.int(0, 2 ** 32) }),
  )
  const layers = Array.from(
    { length: random.int(1, 3) },
    () => (random.chance(0.4) ? random.pick(sharedLayers) : undefined) ?? makeBlob(random),
  )
  const blobs = [{ bytes: config, digest: digestOf(config) }, ...layers]
  const body = {
    schemaVersion: 2,
    mediaType: imageType,
    config: describeBlob('application/vnd.oci.image.config.v1+json', blobs[0]),
    layers: [
      ...layers.map((layer) => describeBlob(layerType, layer)),
      ...(random.chance(0.1) ? [foreignLayer(random)] : []),
    ],
    ...(subject === undefined
      ? {}
      : { subject: { mediaType: imageType, digest: subject, size: 2 }, annotations: { about: 'torture' } }),
  }
  return {
    blobs,
    manifest: toManifest(random, body, imageType, { blobs: unique(blobs), manifests: [], subject }),
  }
}

/** An index over manifests. */
export function makeIndex(random: Random, children: readonly Manifest[]): Manifest {
  const body = {
    schemaVersion: 2,
    mediaType: indexType,
    manifests: children.map(({ mediaType, digest, bytes }) => ({ mediaType, digest, size: bytes.length })),
    annotations: { salt: String(random.int(0, 2 ** 32)) },
  }
  const manifests = [...new Set(children.map((child) => child.digest))]
  return toManifest(random, body, indexType, { blobs: [], manifests, subject: undefined })
}

function toManifest(
  random: Random,
  body: object,
  mediaType: string,
  parts: Pick<Manifest, 'blobs' | 'manifests' | 'subject'>,
): Manifest {
  // Space around tokens must come back byte for byte.
  const bytes = Buffer.from(JSON.stringify(body, undefined, random.int(0, 2)))
  return { ...parts, bytes, mediaType, digest: digestOf(bytes, random.chance(0.05) ? 'sha512' : 'sha256') }
}

function describeBlob(mediaType: string, blob: Blob | undefined): object {
  return { mediaType, digest: blob?.digest, size: blob?.bytes.length }
}

/** A layer that lies elsewhere: no registry must hold it. */
function foreignLayer(random: Random): object {
  return {
    mediaType: foreignType,
    digest: digestOf(random.bytes(16)),
    size: random.int(1, 10_000),
    urls: ['https://layers.example.com/base'],
  }
}

function unique(blobs: readonly Blob[]): string[] {
  return [...new Set(blobs.map((blob) => blob.digest))]
}
