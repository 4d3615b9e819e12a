import type { Permission } from '../../storage/access-store.js'
import {
  matchesRepository,
  parseRepositoryPattern,
  prefixOf,
  type RepositoryPattern,
} from '../oci/repository-pattern.js'

export type { Permission }

export const permissions: readonly Permission[] = ['pull', 'push', 'delete', 'admin']

/** What the protocol's scopes name. */
export type Action = 'pull' | 'push' | 'delete'

export const actions: readonly Action[] = ['pull', 'push', 'delete']

const actionsOf: Readonly<Record<Permission, readonly Action[]>> = {
  pull: ['pull'],
  push: ['pull', 'push'],
  delete: ['pull', 'delete'],
  admin: ['pull', 'push', 'delete'],
}

/** Whether the text names a permission. */
export function isPermission(text: string): text is Permission {
  return permissions.some((permission) => permission === text)
}

/** Anything that gives permissions in the repositories of a pattern. */
export interface Rule {
  readonly pattern: string
  readonly permissions: readonly Permission[]
}

/** Whether a rule with this pattern counts in a repository that the pattern fits. */
export type RuleFilter = (pattern: string, repository: string) => boolean

/** Rules, ready to be asked. They only ever add up: none takes away. */
export class RuleSet<R extends Rule = Rule> {
  readonly #rules: readonly { readonly pattern: RepositoryPattern; readonly rule: R }[]

  /** @throws RangeError for a pattern that is none */
  constructor(rules: readonly R[]) {
    this.#rules = rules.map((rule) => ({ pattern: parseRepositoryPattern(rule.pattern), rule }))
  }

  /** The first rule that lets the action be done in the repository, of those that count there. */
  find(action: Action, repository: string, counts: RuleFilter = () => true): R | undefined {
    return this.#rules.find(
      ({ pattern, rule }) =>
        rule.permissions.some((permission) => actionsOf[permission].includes(action)) &&
        matchesRepository(pattern, repository) &&
        counts(pattern.text, repository),
    )?.rule
  }

  allows(action: Action, repository: string, counts?: RuleFilter): boolean {
    return this.find(action, repository, counts) !== undefined
  }

  /** What the names of all repositories begin with in which a rule allows anything. */
  get prefixes(): readonly string[] {
    return this.#rules.map(({ pattern }) => prefixOf(pattern))
  }

  /** Whether a rule gives the permission `admin` in the repository. */
  administers(repository: string): boolean {
    return this.#rules.some(
      ({ pattern, rule }) => rule.permissions.includes('admin') && matchesRepository(pattern, repository),
    )
  }
}
