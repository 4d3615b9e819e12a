import type { MirrorConfig } from '../config/mirrors.js'
import type { RuleFilter } from './auth/grants.js'

/** Whether what a mirror fetches is not for everybody: its upstream is asked with credentials. */
export function isPrivate(mirror: MirrorConfig): boolean {
  const { password, passwordFile, dockerConfig } = mirror
  const hasCredentials = [password, passwordFile, dockerConfig].some((one) => one !== undefined)
  return hasCredentials && !mirror.public
}

/** Whether a grant to everybody counts in the repositories of a private mirror: its pattern must name the mirror. */
export function reachesMirror(pattern: string, mirror: string): boolean {
  return pattern.startsWith(`${mirror}/`)
}

/** What needs credentials upstream is not for everybody here, unless a grant says so by name. */
export function anonymousRuleOf(mirrors: readonly MirrorConfig[]): RuleFilter {
  const closed = mirrors.filter(isPrivate).map(({ name }) => name)
  return (pattern, repository) =>
    closed.every((name) => !repository.startsWith(`${name}/`) || reachesMirror(pattern, name))
}
