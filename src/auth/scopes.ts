import { isRepositoryName, type RepositoryName } from '../oci/reference.js'
import { type Action, actions } from './grants.js'

/** Scopes that one request for a token may name; more are ignored (protocol TK-10). */
const mostScopes = 100
const longestScope = 1024

/**
 * What can be asked of the registry itself, and how. The catalog: protocol TK-12. A mount that names no source is for
 * whatever its sender may pull, and that no list of repositories says: docs/decisions/0021.
 */
const registryActions = { catalog: ['*', 'search'], mount: ['*'] } as const

/** What a token can be for beside repositories. */
export type RegistryScopeName = keyof typeof registryActions
export const registryScopeNames: readonly RegistryScopeName[] = ['catalog', 'mount']

/** What a scope asks for. */
export type Scope =
  | { readonly type: 'repository'; readonly name: RepositoryName; readonly actions: readonly Action[] }
  | { readonly type: 'registry'; readonly name: RegistryScopeName; readonly actions: readonly ['*'] }

/**
 * Reads the scopes of a token request: repeated parameters, and lists inside one (protocol TK-01). What is
 * malformed or of another kind is left out, as if it had not been asked for (TK-10).
 */
export function parseScopes(parameters: readonly string[]): Scope[] {
  const repositories = new Map<RepositoryName, Set<Action>>()
  const asked = new Set<RegistryScopeName>()
  for (const text of splitScopes(parameters)) {
    const { type, name, wanted } = splitScope(text)
    if (type === 'registry') {
      const part = registryScopeNames.find((one) => one === name)
      const known: readonly string[] = part === undefined ? [] : registryActions[part]
      if (part !== undefined && wanted.some((action) => known.includes(action))) asked.add(part)
    }
    if (type !== 'repository' || !isRepositoryName(name)) continue
    const known = repositories.get(name) ?? new Set<Action>()
    for (const action of actions) if (wanted.includes(action) || wanted.includes('*')) known.add(action)
    if (known.size > 0) repositories.set(name, known)
  }
  const scopes: Scope[] = [...repositories].map(([name, known]) => ({
    type: 'repository',
    name,
    actions: [...known],
  }))
  return [...scopes, ...[...asked].map((name): Scope => ({ type: 'registry', name, actions: ['*'] }))]
}

function splitScopes(parameters: readonly string[]): string[] {
  const scopes: string[] = []
  for (const parameter of parameters) {
    for (const text of parameter.slice(0, mostScopes * longestScope).split(' ')) {
      if (text !== '' && text.length <= longestScope) scopes.push(text)
      if (scopes.length === mostScopes) return scopes
    }
  }
  return scopes
}

/** `type(class):name:actions`; the name may hold colons, so the first and the last one count. */
function splitScope(text: string): { type: string; name: string; wanted: string[] } {
  const first = text.indexOf(':')
  const last = text.lastIndexOf(':')
  if (first < 0 || last === first) return { type: '', name: '', wanted: [] }
  return {
    type: text.slice(0, first).replace(/\([^)]*\)$/, ''),
    name: text.slice(first + 1, last),
    wanted: text.slice(last + 1).split(','),
  }
}

/** A scope as clients write it. */
export function formatScope(scope: Scope): string {
  return `${scope.type}:${scope.name}:${scope.actions.join(',')}`
}
