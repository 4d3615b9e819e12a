import { type Document, parseDocument } from 'yaml'
import { sentence, show } from '../../config/words.js'
import type { Grant, Subject } from '../../storage/access-store.js'
import { isPermission, permissions } from '../auth/grants.js'
import type { Access } from './access-file.js'
import { Misuse } from './command.js'
import { faultOfName, faultOfPattern, parseSubject } from './names.js'

/**
 * Reads a file's text, with the users that there are.
 * @returns what it holds, and a sentence for everything that is wrong with it
 */
export function parseAccess(
  text: string,
  users: ReadonlySet<string>,
): { readonly access: Access; readonly faults: readonly string[] } {
  const reader = new AccessReader(users)
  // In the failsafe schema every word is text: a user may be called 1e3, null or true.
  const document = parseDocument(text, { schema: 'failsafe' })
  const trouble = document.errors[0] ?? document.warnings[0]
  const fault = trouble?.message.split('\n', 1)[0]
  if (fault !== undefined) return { access: nothing, faults: [`it is not valid YAML: ${sentence(fault)}`] }
  const value = toValue(document)
  if (value === undefined) return { access: nothing, faults: [aliasFault] }
  return { access: reader.read(value), faults: reader.faults }
}

const nothing: Access = { groups: new Map(), grants: [] }

const aliasFault =
  'it holds a YAML alias that leads nowhere or too far: put quotes round a pattern that begins with *, as in "**".'

/** Undefined when its aliases lead nowhere, or multiply. */
function toValue(document: Document): unknown {
  try {
    return document.toJS({ mapAsMap: true, maxAliasCount: 100 })
  } catch {
    return undefined
  }
}

const subjectHint = 'user:NAME, group:NAME, authenticated or anonymous'

/** Reads what the YAML parser made; goes on after a fault, so that all of them are found. */
class AccessReader {
  readonly faults: string[] = []
  readonly #users: ReadonlySet<string>

  constructor(users: ReadonlySet<string>) {
    this.#users = users
  }

  read(root: unknown): Access {
    const fields = this.#fields(root, ['groups', 'grants'], 'the file')
    const groups = this.#groups(fields.get('groups'))
    const written = fields.get('grants')
    if (written !== undefined && !Array.isArray(written)) {
      this.faults.push('grants is no list of entries: write "grants: []" when there are none.')
    }
    const entries: readonly unknown[] = Array.isArray(written) ? written : []
    return {
      groups,
      grants: entries.flatMap((entry, index) => this.#grants(entry, `grant ${index + 1}`, groups)),
    }
  }

  #groups(value: unknown): Map<string, readonly string[]> {
    const groups = new Map<string, readonly string[]>()
    if (value === undefined) return groups
    if (!(value instanceof Map)) {
      this.faults.push('groups are no names with lists of users: write "groups: {}" when there are none.')
      return groups
    }
    for (const [name, members] of value) {
      const where = `group ${show(name)}`
      this.#check(faultOfName(String(name), 'group'), where)
      const list = this.#list(members, 0, where, '[alice, bob], or [] for nobody')
      for (const member of list) this.#checkUser(member, where)
      groups.set(String(name), [...new Set(list)])
    }
    return groups
  }

  #grants(entry: unknown, where: string, groups: ReadonlyMap<string, unknown>): Grant[] {
    const fields = this.#fields(entry, ['to', 'permissions', 'repositories'], where)
    const subject = this.#subject(fields.get('to'), where, groups)
    const held = this.#list(fields.get('permissions'), 1, `${where}: permissions`, '[pull, push]')
    for (const text of held.filter((candidate) => !isPermission(candidate))) {
      this.faults.push(`${where}: ${show(text)} is none of the permissions ${permissions.join(', ')}.`)
    }
    const patterns = this.#list(fields.get('repositories'), 1, `${where}: repositories`, "['team/**']")
    for (const pattern of patterns) this.#check(faultOfPattern(pattern), where)
    if (subject === undefined) return []
    return patterns.flatMap((pattern) =>
      held.filter(isPermission).map((permission) => ({ subject, pattern, permission })),
    )
  }

  #subject(value: unknown, where: string, groups: ReadonlyMap<string, unknown>): Subject | undefined {
    if (value === undefined) return undefined
    let subject: Subject
    try {
      subject = parseSubject(typeof value === 'string' ? value : '')
    } catch (error) {
      if (!(error instanceof Misuse)) throw error
      this.faults.push(
        `${where}: to is ${typeof value === 'string' ? show(value) : 'no word'}: write ${subjectHint}.`,
      )
      return undefined
    }
    if (subject.kind === 'user') this.#checkUser(subject.name, where)
    if (subject.kind === 'group' && !groups.has(subject.name)) {
      const hint = `write "${subject.name}: []" there when it has no members`
      this.faults.push(`${where}: the group ${subject.name} is not among the groups: ${hint}.`)
    }
    return subject
  }

  /** The parts of a map that must have exactly these. */
  #fields(value: unknown, names: readonly string[], where: string): Map<unknown, unknown> {
    if (!(value instanceof Map)) {
      this.faults.push(`${where} does not have what it needs: write ${names.join(', ')}.`)
      return new Map()
    }
    for (const name of value.keys()) {
      if (!names.includes(name)) {
        this.faults.push(`${where}: ${show(name)} does not belong there: write ${names.join(', ')}.`)
      }
    }
    for (const name of names) if (!value.has(name)) this.faults.push(`${where}: ${name} is missing.`)
    return value
  }

  /** A list of words with this many at least; what is none of that is left out. */
  #list(value: unknown, least: 0 | 1, where: string, example: string): readonly string[] {
    if (value === undefined) return []
    const list: readonly unknown[] = Array.isArray(value) ? value : []
    const texts = list.filter((item) => typeof item === 'string')
    if (!Array.isArray(value) || list.length < least || texts.length < list.length) {
      this.faults.push(`${where}: write a list such as ${example}.`)
    }
    return texts
  }

  #checkUser(name: string, where: string): void {
    if (!this.#users.has(name)) this.faults.push(`${where}: there is no user ${show(name)}.`)
  }

  #check(fault: string | undefined, where: string): void {
    if (fault !== undefined) this.faults.push(`${where}: ${fault}`)
  }
}
