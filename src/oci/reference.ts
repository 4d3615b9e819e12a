import { type Digest, parseDigest } from './digest.js'
import { RegistryError } from './errors.js'

declare const repositoryBrand: unique symbol
declare const tagBrand: unique symbol

/** A repository's name that was checked against the grammar. */
export type RepositoryName = string & { readonly [repositoryBrand]: true }

/** A tag that was checked against the grammar. */
export type Tag = string & { readonly [tagBrand]: true }

/** What stands behind `/manifests/`: a tag or a digest. */
export type Reference =
  | { readonly kind: 'tag'; readonly tag: Tag }
  | { readonly kind: 'digest'; readonly digest: Digest }

/** Longest repository name: many clients cap host and name together near this (protocol G-02). */
const longestName = 255

/*
 * One path component. The separators are written so that no text can be split in two ways: the pattern runs in
 * linear time, and the length is checked before it runs.
 */
const component = '[a-z0-9]+(?:(?:\\.|_|__|-+)[a-z0-9]+)*'
const namePattern = new RegExp(`^${component}(?:/${component})*$`)
const tagPattern = /^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$/

/**
 * Checks a repository name (protocol G-02).
 * @throws RegistryError NAME_INVALID
 */
export function parseRepositoryName(text: string): RepositoryName {
  if (!isRepositoryName(text)) {
    throw new RegistryError(
      'NAME_INVALID',
      'a repository name has lower-case letters, digits and single separators (. _ - /), at most 255 characters',
    )
  }
  return text
}

/** Whether the text is a name that {@link parseRepositoryName} accepts. */
export function isRepositoryName(text: string): text is RepositoryName {
  return text.length > 0 && text.length <= longestName && namePattern.test(text)
}

/**
 * Checks a tag (protocol G-03).
 * @throws RegistryError TAG_INVALID
 */
export function parseTag(text: string): Tag {
  if (text.length > 128 || !tagPattern.test(text)) {
    throw new RegistryError(
      'TAG_INVALID',
      'a tag has letters, digits, _ . and -, begins with a letter, digit or _, and has at most 128 characters',
    )
  }
  return text as Tag
}

/**
 * Reads a reference: text with a colon is a digest, never a tag (protocol G-05).
 * @throws RegistryError DIGEST_INVALID or TAG_INVALID
 */
export function parseReference(text: string): Reference {
  return text.includes(':')
    ? { kind: 'digest', digest: parseDigest(text) }
    : { kind: 'tag', tag: parseTag(text) }
}
