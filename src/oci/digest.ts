import { createHash, type Hash } from 'node:crypto'
import { RegistryError } from './errors.js'

declare const digestBrand: unique symbol

/** A digest that was checked against the grammar and whose algorithm this registry can compute. */
export type Digest = string & { readonly [digestBrand]: true }

/** Hexadecimal characters of each registered algorithm's encoded part (image-spec, descriptor.md). */
const encodedLength = { sha256: 64, sha512: 128 } as const

/** The algorithms that this registry computes. */
export type Algorithm = keyof typeof encodedLength

/** The algorithm of a digest that nobody asked for by name. */
export const canonicalAlgorithm: Algorithm = 'sha256'

/** Longest digest: `sha512:` and 128 characters. Longer text is refused before any pattern sees it. */
const longestDigest = 7 + 128
const shortestDigest = 7 + 64
const lowerHex = /^[0-9a-f]+$/

/** Whether the text names an algorithm that this registry computes. */
export function isAlgorithm(text: string): text is Algorithm {
  return text === 'sha256' || text === 'sha512'
}

/**
 * Checks a digest (protocol G-04).
 * @throws RegistryError DIGEST_INVALID for bad syntax, a wrong length or an unsupported algorithm
 */
export function parseDigest(text: string): Digest {
  if (!isDigest(text)) {
    throw new RegistryError(
      'DIGEST_INVALID',
      'digest must be sha256:<64 lower-case hexadecimal digits> or sha512:<128>',
    )
  }
  return text
}

/** Whether the text is a digest that {@link parseDigest} accepts. */
export function isDigest(text: string): text is Digest {
  if (text.length < shortestDigest || text.length > longestDigest) return false
  const colon = text.indexOf(':')
  const algorithm = text.slice(0, colon)
  if (!isAlgorithm(algorithm)) return false
  const encoded = text.slice(colon + 1)
  return encoded.length === encodedLength[algorithm] && lowerHex.test(encoded)
}

/** The algorithm of a digest. */
export function algorithmOf(digest: Digest): Algorithm {
  return digest.startsWith('sha512:') ? 'sha512' : 'sha256'
}

/** The part of a digest behind the colon: lower-case hexadecimal. */
export function encodedOf(digest: Digest): string {
  return digest.slice(digest.indexOf(':') + 1)
}

/** The digest that a running hash stands at; the hash can go on afterwards. */
export function digestSoFar(hash: Hash, algorithm: Algorithm): Digest {
  return `${algorithm}:${hash.copy().digest('hex')}` as Digest
}

/** The digest of some bytes. */
export function digestOf(bytes: Uint8Array, algorithm: Algorithm = canonicalAlgorithm): Digest {
  return `${algorithm}:${createHash(algorithm).update(bytes).digest('hex')}` as Digest
}
