import { isBcryptHash } from '../auth/passwords.js'
import { note, parse, say, words } from './command.js'
import { nameOf, readInput } from './input.js'
import { faultOfName } from './names.js'
import { noteOpenness } from './openness.js'
import { type Place, withPlace } from './store.js'

/** How other kinds of hashes begin, and what they are called. */
const otherKinds: readonly (readonly [RegExp, string])[] = [
  [/^\$apr1\$/, 'MD5 (apr1)'],
  [/^\{SHA\}/, 'SHA-1'],
  [/^\{SSHA\}/, 'salted SHA-1'],
  [/^\$1\$/, 'MD5 (crypt)'],
  [/^\$5\$/, 'SHA-256 (crypt)'],
  [/^\$6\$/, 'SHA-512 (crypt)'],
  [/^\$2/, 'bcrypt, but malformed or of an unusual cost'],
  [/^[./A-Za-z0-9]{13}$/, 'DES (crypt)'],
]

/** `boathouse user import`: 0 when every user of the file is there afterwards, else 1. */
export async function importUsers(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, {})
  const [file] = words(positionals, 'FILE')
  const lines = (await readInput(file)).split(/\r?\n/)
  return withPlace(values, async (place) => {
    const counts = { added: 0, there: 0, skipped: 0 }
    for (const [index, line] of lines.entries()) {
      if (line.trim() === '' || line.startsWith('#')) continue
      counts[await importLine(place, line, `${nameOf(file)}, line ${index + 1}`)]++
    }
    say(`Added ${counts.added} users, left ${counts.there} that were there, skipped ${counts.skipped} lines.`)
    if (counts.added > 0) await noteOpenness(place, counts.added)
    return counts.skipped > 0 ? 1 : 0
  })
}

/** Messages name the user and the kind of hash, never the hash. */
async function importLine(
  { access, audit }: Place,
  line: string,
  where: string,
): Promise<'added' | 'there' | 'skipped'> {
  const [name = '', passwordHash] = line.split(':')
  const fault =
    passwordHash === undefined
      ? 'there is no colon between a name and a hash.'
      : (faultOfName(name, 'user') ?? faultOfHash(name, passwordHash))
  if (passwordHash === undefined || fault !== undefined) {
    note(`Skipped ${where}: ${fault}`)
    return 'skipped'
  }
  if (!(await access.addUser({ name, passwordHash, isAdmin: false }, Date.now()))) {
    note(`Left ${name} as it was: there is such a user already.`)
    return 'there'
  }
  audit('user added', { name, admin: false, imported: true })
  return 'added'
}

function faultOfHash(name: string, text: string): string | undefined {
  if (isBcryptHash(text)) return undefined
  const [, kind = 'of an unknown kind'] = otherKinds.find(([pattern]) => pattern.test(text)) ?? []
  return `the hash of ${name} is ${kind}, and only bcrypt can be taken: give ${name} a password with "boathouse user add ${name}".`
}
