import type { Subject } from '../../storage/access-store.js'
import { isPermission, type Permission, permissions } from '../auth/grants.js'
import { parseRepositoryPattern } from '../oci/repository-pattern.js'
import { Misuse } from './command.js'

const grammar = /^[A-Za-z0-9._@+][A-Za-z0-9._@+-]{0,63}$/
const grammarText = '1 to 64 letters, digits or . _ - @ +, and does not begin with -'

/** What is wrong with a name, in a sentence that does not repeat it; undefined when it is a good one. */
export function faultOfName(text: string, what: 'user' | 'group' | 'token'): string | undefined {
  if (!grammar.test(text)) return `The name of a ${what} has ${grammarText}.`
  if (what === 'user' && text === 'anonymous') {
    return 'No user can be called anonymous: that is everybody who did not log in.'
  }
  return undefined
}

/** A subject as it is written, such as `group:devs`. */
export function formatSubject(subject: Subject): string {
  return 'name' in subject ? `${subject.kind}:${subject.name}` : subject.kind
}

/** Refuses a name that cannot be one. @throws Misuse */
export function checkName(text: string, what: 'user' | 'group' | 'token'): void {
  throwFault(faultOfName(text, what))
}

/** Reads a subject. @throws Misuse */
export function parseSubject(text: string): Subject {
  if (text === 'authenticated' || text === 'anonymous') return { kind: text }
  const [, kind, name = ''] = /^(user|group):(.*)$/s.exec(text) ?? []
  if (kind !== 'user' && kind !== 'group') {
    throw new Misuse('Write to whom: user:NAME, group:NAME, authenticated or anonymous.')
  }
  checkName(name, kind)
  return { kind, name }
}

/** Reads permissions with commas between them, without repetitions. @throws Misuse */
export function parsePermissions(text: string): readonly Permission[] {
  const list = text.split(',')
  const known = list.filter(isPermission)
  if (known.length < list.length) {
    throw new Misuse(`The permissions are ${permissions.join(', ')}, with commas between them.`)
  }
  return [...new Set(known)]
}

/** What is wrong with a repository pattern, in a sentence; undefined when it is a good one. */
export function faultOfPattern(text: string): string | undefined {
  try {
    parseRepositoryPattern(text)
    return undefined
  } catch (error) {
    if (error instanceof RangeError) return error.message
    throw error
  }
}

/** Refuses a repository pattern that is none. @throws Misuse */
export function checkPattern(text: string): void {
  throwFault(faultOfPattern(text))
}

function throwFault(fault: string | undefined): void {
  if (fault !== undefined) throw new Misuse(fault)
}
