import { matchesRepository, parseRepositoryPattern, type RepositoryPattern } from './repository-pattern.js'

/** Tags in repositories: `team/**:v*`. */
export interface TagPattern {
  readonly repositories: RepositoryPattern
  /** The tag, in which `*` stands for any text. */
  readonly tag: string
}

/** Reads a pattern: what stands before the last colon is a repository pattern. @throws RangeError */
export function parseTagPattern(text: string): TagPattern {
  const colon = text.lastIndexOf(':')
  const tag = text.slice(colon + 1)
  if (colon < 1 || !/^[\w.*-]{1,128}$/.test(tag)) {
    throw new RangeError(
      `The tag pattern ${JSON.stringify(text)} must be a repository pattern, a colon and a tag.`,
    )
  }
  return { repositories: parseRepositoryPattern(text.slice(0, colon)), tag }
}

/** The tag parts of the patterns whose repositories include this one. */
export function tagPatternsFor(patterns: readonly TagPattern[], repository: string): string[] {
  return patterns
    .filter((pattern) => matchesRepository(pattern.repositories, repository))
    .map((pattern) => pattern.tag)
}

/** Whether a tag fits a pattern with stars; takes time in proportion to the two lengths. */
export function matchesTag(pattern: string, tag: string): boolean {
  const [head = '', ...rest] = pattern.split('*')
  const tail = rest.pop()
  if (tail === undefined) return tag === pattern
  if (!tag.startsWith(head) || !tag.endsWith(tail) || tag.length < head.length + tail.length) return false
  let at = head.length
  const end = tag.length - tail.length
  for (const part of rest) {
    const found = tag.indexOf(part, at)
    if (found < 0 || found + part.length > end) return false
    at = found + part.length
  }
  return true
}
