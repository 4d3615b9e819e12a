/** The manifest media types that the registry stores (protocol MF-06), and what each of them is. */
export const mediaTypes = {
  ociManifest: 'application/vnd.oci.image.manifest.v1+json',
  ociIndex: 'application/vnd.oci.image.index.v1+json',
  ociArtifact: 'application/vnd.oci.artifact.manifest.v1+json',
  dockerManifest: 'application/vnd.docker.distribution.manifest.v2+json',
  dockerList: 'application/vnd.docker.distribution.manifest.list.v2+json',
} as const

/** The shape of a manifest: an image (config and layers), an index (manifests), an artifact (blobs). */
export type ManifestKind = 'image' | 'index' | 'artifact'

const kinds = new Map<string, ManifestKind>([
  [mediaTypes.ociManifest, 'image'],
  [mediaTypes.dockerManifest, 'image'],
  [mediaTypes.ociIndex, 'index'],
  [mediaTypes.dockerList, 'index'],
  [mediaTypes.ociArtifact, 'artifact'],
])

const schema1 = new Set([
  'application/vnd.docker.distribution.manifest.v1+json',
  'application/vnd.docker.distribution.manifest.v1+prettyjws',
])

/** Layer types whose bytes lie elsewhere and need not be pushed (protocol MF-10). */
const nonDistributable =
  /^application\/vnd\.(?:oci\.image\.layer\.nondistributable\.v1\.tar(?:\+gzip|\+zstd)?|docker\.image\.rootfs\.foreign\.diff\.tar(?:\.gzip)?)$/

/** The shape that goes with a manifest media type; undefined for a type that is not a manifest's. */
export function manifestKindOf(mediaType: string): ManifestKind | undefined {
  return kinds.get(mediaType)
}

/** Whether the type is Docker's schema 1, which is refused (protocol MF-06, T-53). */
export function isSchema1(mediaType: string): boolean {
  return schema1.has(mediaType)
}

/** Whether manifests of this type can have a `subject` (protocol MF-32). */
export function canHaveSubject(mediaType: string): boolean {
  return mediaType.startsWith('application/vnd.oci.')
}

/** Whether a layer of this type is exempt from being stored here. */
export function isNonDistributable(mediaType: string): boolean {
  return mediaType.length < 100 && nonDistributable.test(mediaType)
}

/** A media type without its parameters, in lower case: `Application/JSON; charset=utf-8` → `application/json`. */
export function bareMediaType(header: string): string {
  const semicolon = header.indexOf(';')
  return (semicolon < 0 ? header : header.slice(0, semicolon)).trim().toLowerCase()
}
