/**
 * A set of repositories: `team/app` is one, `team/*` those directly below `team`, `team/**` all below it at
 * any depth (not `team` itself), `**` all there are. A `*` stands for one whole segment, anywhere.
 */
export interface RepositoryPattern {
  /** As it was written. */
  readonly text: string
  /** Segments that a name must begin with; `*` stands for any. */
  readonly segments: readonly string[]
  /** Whether more segments must follow (true) or none may (false). */
  readonly open: boolean
}

const segmentGrammar = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$/
const longestPattern = 255

/** Reads a pattern; throws a RangeError whose message is a sentence that says what is wrong with it. */
export function parseRepositoryPattern(text: string): RepositoryPattern {
  if (text.length > longestPattern) {
    throw new RangeError(
      `A repository pattern may have ${longestPattern} characters, and this one has ${text.length}.`,
    )
  }
  if (text === '*') {
    throw new RangeError('The repository pattern "*" is ambiguous: write ** to mean all repositories.')
  }
  const segments = text.split('/')
  const open = segments.at(-1) === '**'
  if (open) segments.pop()
  const wrong = segments.find((segment) => segment !== '*' && !segmentGrammar.test(segment))
  if (wrong !== undefined) {
    throw new RangeError(
      `The repository pattern ${JSON.stringify(text)} has the segment ${JSON.stringify(wrong)}, which is neither ` +
        'part of a repository name, nor *, nor ** at the end.',
    )
  }
  return { text, segments, open }
}

/** Whether a valid repository name belongs to the set; takes time in proportion to the name's length. */
export function matchesRepository(pattern: RepositoryPattern, name: string): boolean {
  const parts = name.split('/')
  const { segments, open } = pattern
  if (open ? parts.length <= segments.length : parts.length !== segments.length) return false
  return segments.every((segment, index) => segment === '*' || segment === parts[index])
}

/** What the names of all repositories of the set begin with: the whole name where there is but one, '' where nothing is known. */
export function prefixOf({ segments, open }: RepositoryPattern): string {
  const star = segments.indexOf('*')
  const known = segments.slice(0, star < 0 ? segments.length : star).join('/')
  return known === '' || (star < 0 && !open) ? known : `${known}/`
}

/** The same prefixes in the order of names, without those that another one covers. */
export function joinPrefixes(prefixes: readonly string[]): string[] {
  const joined: string[] = []
  for (const prefix of [...prefixes].sort()) {
    const last = joined.at(-1)
    if (last === undefined || !prefix.startsWith(last)) joined.push(prefix)
  }
  return joined
}
