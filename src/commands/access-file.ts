import { stringify } from 'yaml'
import type { Grant, User } from '../../storage/access-store.js'
import { type Permission, permissions } from '../auth/grants.js'
import { formatSubject } from './names.js'

/** Groups and grants, as the file has them. */
export interface Access {
  /** Names of groups with the names of their members. */
  readonly groups: ReadonlyMap<string, readonly string[]>
  readonly grants: readonly Grant[]
}

/** What the index holds; a group without members is one when grants name it. */
export function currentAccess(users: readonly User[], grants: readonly Grant[]): Access {
  const groups = new Map<string, string[]>()
  for (const { subject } of grants) if (subject.kind === 'group') groups.set(subject.name, [])
  for (const user of users) {
    for (const group of user.groups) groups.set(group, [...(groups.get(group) ?? []), user.name])
  }
  return { groups: new Map([...groups].sort(([a], [b]) => (a < b ? -1 : 1))), grants }
}

/** The file's text, a line for everything that may change. The same permissions of a subject share an entry. */
export function formatAccess({ groups, grants }: Access): string {
  const held = new Map<string, Map<string, Permission[]>>()
  for (const { subject, pattern, permission } of grants) {
    const to = formatSubject(subject)
    const patterns = held.get(to) ?? new Map<string, Permission[]>()
    patterns.set(pattern, [...(patterns.get(pattern) ?? []), permission])
    held.set(to, patterns)
  }
  const entries = [...held].flatMap(([to, patterns]) => {
    const byPermissions = new Map<string, string[]>()
    for (const [pattern, list] of patterns) {
      const sorted = permissions.filter((permission) => list.includes(permission)).join()
      byPermissions.set(sorted, [...(byPermissions.get(sorted) ?? []), pattern])
    }
    return [...byPermissions].map(([list, repositories]) => ({
      to,
      permissions: list.split(','),
      repositories,
    }))
  })
  return stringify({ groups, grants: entries })
}
