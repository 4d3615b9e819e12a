import { algorithmOf, type Digest, digestOf, isDigest } from './digest.js'
import { RegistryError } from './errors.js'
import { isObject, parseJsonObject } from './json.js'
import {
  bareMediaType,
  canHaveSubject,
  isNonDistributable,
  isSchema1,
  type ManifestKind,
  manifestKindOf,
  mediaTypes,
} from './media-types.js'

/** The largest manifest that is stored, in bytes: what podman, oras and containerd read back (protocol MF-08). */
export const largestManifest = 4 * 1024 * 1024

/** What a manifest names: how it is named and whether it must be here. */
export interface Child {
  readonly digest: Digest
  /** Bytes, as the manifest says. */
  readonly size: number
  /**
   * `blob`: a config or layer; `manifest`: an entry of an index, which may be a blob as well (build caches are
   * indexes of layers, protocol T-11).
   */
  readonly role: 'blob' | 'manifest'
  /** False for layers that lie elsewhere (`urls`, non-distributable types) or stand inline in `data`. */
  readonly required: boolean
}

/** What the registry knows of a manifest beside its bytes. */
export interface ParsedManifest {
  /** The type it is stored and served under. */
  readonly mediaType: string
  readonly children: readonly Child[]
  readonly subject: Digest | undefined
  /** What the referrers list shows as `artifactType` (protocol RF-04). */
  readonly artifactType: string | undefined
  readonly annotations: Readonly<Record<string, string>> | undefined
}

/**
 * Reads a manifest and checks its structure, not its taste: unknown members and unknown types of layers,
 * configs and artifacts pass (protocol MF-05 … MF-12).
 * @param bytes the body, exactly as it came
 * @param contentType the request's Content-Type, if any
 * @throws RegistryError MANIFEST_INVALID with a sentence that names the member
 */
export function parseManifest(bytes: Uint8Array, contentType: string | undefined): ParsedManifest {
  const json = parseJsonObject(bytes)
  refuseLookalikes(json, 'manifest')
  const mediaType = settleMediaType(json, contentType)
  const kind = manifestKindOf(mediaType)
  if (kind === undefined) throw invalid(`manifest type ${quoted(mediaType)} is not supported`)
  if (kind !== 'artifact' && json.schemaVersion !== 2) throw invalid('schemaVersion must be 2')
  const subject = canHaveSubject(mediaType) ? readSubject(json) : undefined
  return {
    mediaType,
    children: readChildren(kind, json),
    subject,
    artifactType: subject === undefined ? undefined : readArtifactType(kind, json),
    annotations: readAnnotations(json),
  }
}

/** The type a manifest is stored under: both places where it can stand must agree (protocol MF-05). */
function settleMediaType(json: Record<string, unknown>, contentType: string | undefined): string {
  const sent = contentType === undefined ? '' : bareMediaType(contentType)
  const own = json.mediaType
  if (own !== undefined && typeof own !== 'string') throw invalid('mediaType must be a string')
  if (isSchema1(sent) || json.schemaVersion === 1) {
    throw invalid('schema version 1 is not supported: push the image with a newer client')
  }
  if (own !== undefined && sent !== '' && own !== sent) {
    throw invalid(`Content-Type is ${quoted(sent)} but the manifest's mediaType is ${quoted(own)}`)
  }
  if (own !== undefined) return own
  if (sent !== '') return sent
  return Object.hasOwn(json, 'manifests') ? mediaTypes.ociIndex : mediaTypes.ociManifest
}

function readChildren(kind: ManifestKind, json: Record<string, unknown>): Child[] {
  refuseOtherShapes(kind, json)
  switch (kind) {
    case 'image':
      return [
        toChild(readDescriptor(json.config, 'config'), 'blob'),
        ...readDescriptors(json.layers, 'layers').map((layer) => toChild(layer, 'blob')),
      ]
    case 'index':
      return readDescriptors(json.manifests, 'manifests').map((entry) => toChild(entry, 'manifest'))
    case 'artifact':
      return json.blobs === undefined
        ? []
        : readDescriptors(json.blobs, 'blobs').map((blob) => toChild(blob, 'blob'))
  }
}

/** Members that belong to another shape: with them a manifest could be read as two things (CVE-2021-41190). */
const foreignMembers: Record<ManifestKind, readonly string[]> = {
  image: ['manifests', 'fsLayers'],
  index: ['layers', 'config', 'fsLayers'],
  artifact: ['manifests', 'layers', 'config', 'fsLayers'],
}

function refuseOtherShapes(kind: ManifestKind, json: Record<string, unknown>): void {
  const foreign = foreignMembers[kind].find((member) => Object.hasOwn(json, member))
  if (foreign !== undefined) throw invalid(`a manifest of this type cannot have ${quoted(foreign)}`)
}

/** The members that say what a manifest is made of. */
const memberNames = new Map(
  [
    'schemaVersion',
    'mediaType',
    'artifactType',
    'config',
    'layers',
    'manifests',
    'blobs',
    'subject',
    'annotations',
    'digest',
    'size',
    'urls',
    'data',
  ].map((name) => [name.toLowerCase(), name]),
)

/**
 * Go's parser takes `Layers` for `layers`: a manifest with both would be one thing here and another in the
 * client (reliability S52).
 */
function refuseLookalikes(object: Record<string, unknown>, member: string): void {
  for (const name of Object.keys(object)) {
    const meant = memberNames.get(name.toLowerCase())
    if (meant !== undefined && meant !== name) {
      throw invalid(`${member} has a member ${quoted(name)}, which some programs read as ${quoted(meant)}`)
    }
  }
}

interface Descriptor {
  readonly mediaType: string
  readonly digest: Digest
  readonly size: number
  readonly hasUrls: boolean
  readonly hasData: boolean
}

function toChild(descriptor: Descriptor, role: Child['role']): Child {
  const elsewhere = role === 'blob' && (descriptor.hasUrls || isNonDistributable(descriptor.mediaType))
  return {
    digest: descriptor.digest,
    size: descriptor.size,
    role,
    required: !elsewhere && !descriptor.hasData,
  }
}

function readDescriptors(value: unknown, member: string): Descriptor[] {
  if (!Array.isArray(value)) throw invalid(`${member} must be an array of descriptors`)
  return value.map((entry, at) => readDescriptor(entry, `${member}[${at}]`))
}

function readDescriptor(value: unknown, member: string): Descriptor {
  if (!isObject(value)) throw invalid(`${member} must be a descriptor`)
  refuseLookalikes(value, member)
  const { mediaType, digest, size, urls, data } = value
  if (typeof mediaType !== 'string') throw invalid(`${member}.mediaType must be a string`)
  if (typeof digest !== 'string' || !isDigest(digest)) {
    throw invalid(`${member}.digest must be a sha256 or sha512 digest`)
  }
  if (typeof size !== 'number' || !Number.isSafeInteger(size) || size < 0) {
    throw invalid(`${member}.size must be a whole number of bytes`)
  }
  return {
    mediaType,
    digest,
    size,
    hasUrls: Array.isArray(urls) && urls.length > 0,
    hasData: checkData(data, { digest, size }, member),
  }
}

/** Inline content must be what its descriptor says it is (protocol MF-12). Returns whether there is any. */
function checkData(data: unknown, content: { digest: Digest; size: number }, member: string): boolean {
  if (data === undefined) return false
  if (typeof data !== 'string') throw invalid(`${member}.data must be base64 text`)
  const bytes = Buffer.from(data, 'base64')
  // Strictly: what Buffer forgives, other programs cannot read.
  if (bytes.toString('base64') !== data.replace(/[\r\n]/g, ''))
    throw invalid(`${member}.data must be base64 text`)
  if (bytes.length !== content.size || digestOf(bytes, algorithmOf(content.digest)) !== content.digest) {
    throw invalid(`${member}.data does not fit the descriptor's digest and size`)
  }
  return true
}

function readSubject(json: Record<string, unknown>): Digest | undefined {
  const { subject } = json
  return subject === undefined ? undefined : readDescriptor(subject, 'subject').digest
}

function readArtifactType(kind: ManifestKind, json: Record<string, unknown>): string | undefined {
  const { artifactType, config } = json
  if (typeof artifactType === 'string' && artifactType !== '') return artifactType
  if (kind === 'image' && isObject(config) && typeof config.mediaType === 'string') {
    return config.mediaType
  }
  return undefined
}

function readAnnotations(json: Record<string, unknown>): Record<string, string> | undefined {
  const { annotations } = json
  if (annotations === undefined || annotations === null) return undefined
  if (!isObject(annotations)) throw invalid('annotations must be an object of strings')
  for (const value of Object.values(annotations)) {
    if (typeof value !== 'string') throw invalid('annotations must be an object of strings')
  }
  return annotations as Record<string, string>
}

function invalid(message: string): RegistryError {
  return new RegistryError('MANIFEST_INVALID', message)
}

/** Text from the client inside a message: short and on one line. */
function quoted(text: string): string {
  return JSON.stringify(text.length > 100 ? `${text.slice(0, 100)}…` : text)
}
