import type { Grant, Permission, Subject } from '../../storage/access-store.js'
import { type Command, Misuse, note, parse, Refusal, type SharedValues, say, sharedUsage } from './command.js'
import { checkPattern, formatSubject, parsePermissions, parseSubject } from './names.js'
import { noteOpenness } from './openness.js'
import { type Place, unknownUser, withPlace } from './store.js'

const details = `  PERMISSION  pull, push, delete or admin, several with commas; push and delete bring pull along, admin is all three
  PATTERN     team/app is one repository, 'team/*' those directly below team, 'team/**' all below team, '**' all;
              quote it, so that the shell leaves it alone
  WHOM        user:NAME, group:NAME, authenticated (all who logged in) or anonymous (everybody)

${sharedUsage}`

/** `boathouse grant …` */
export const grant: Command = {
  usage: `Allow somebody something; it holds within a second

  boathouse grant PERMISSION[,PERMISSION]... PATTERN --to WHOM

${details}`,
  run: (args) => change(args, add),
}

/** `boathouse revoke …` */
export const revoke: Command = {
  usage: `Take a grant back; it holds within a second

  boathouse revoke PERMISSION[,PERMISSION]... PATTERN --to WHOM

${details}`,
  run: (args) => change(args, remove),
}

/** What was typed: the same permissions in one pattern for one subject. */
interface Wish {
  readonly subject: Subject
  readonly pattern: string
  readonly permissions: readonly Permission[]
  readonly values: SharedValues
}

async function change(
  args: readonly string[],
  apply: (place: Place, wish: Wish) => Promise<number>,
): Promise<number> {
  const wish = readWish(args)
  return withPlace(wish.values, (place) => apply(place, wish))
}

function readWish(args: readonly string[]): Wish {
  const { values, positionals } = parse(args, { to: { type: 'string' } })
  const [written, pattern, ...others] = positionals
  if (written === undefined) throw new Misuse('PERMISSION is missing.')
  if (pattern === undefined) throw new Misuse('PATTERN is missing.')
  if (others.length > 0) {
    throw new Misuse(
      "There are words after PATTERN: quote it, as in 'team/**', so that the shell leaves it alone.",
    )
  }
  if (values.to === undefined) throw new Misuse('--to WHOM is missing.')
  checkPattern(pattern)
  return { values, pattern, permissions: parsePermissions(written), subject: parseSubject(values.to) }
}

async function add(place: Place, { subject, pattern, permissions }: Wish): Promise<number> {
  const { access, audit } = place
  let added = 0
  for (const permission of permissions) {
    const one: Grant = { subject, pattern, permission }
    const outcome = await access.addGrant(one)
    if (outcome === 'no-user') throw unknownUser('name' in subject ? subject.name : '')
    if (outcome === 'added') {
      added++
      audit('grant added', { grant: formatGrant(one) })
    }
    say(outcome === 'added' ? `Granted ${describe(one)}.` : `${describe(one)} was granted already.`)
  }
  if (
    subject.kind === 'group' &&
    !(await access.listUsers()).some(({ groups }) => groups.includes(subject.name))
  ) {
    note(
      `Nobody is in the group ${subject.name} yet: "boathouse user groups NAME ${subject.name}" puts somebody in.`,
    )
  }
  if (added > 0) await noteOpenness(place, added)
  return 0
}

async function remove({ access, audit }: Place, { subject, pattern, permissions }: Wish): Promise<number> {
  let removed = 0
  for (const permission of permissions) {
    const one: Grant = { subject, pattern, permission }
    if (await access.removeGrant(one)) {
      removed++
      audit('grant removed', { grant: formatGrant(one) })
      say(`Revoked ${describe(one)}.`)
    } else note(`There is no grant of ${describe(one)}.`)
  }
  if (removed === 0)
    throw new Refusal('Nothing was changed: "boathouse access list" shows which grants there are.')
  return 0
}

function describe({ subject, pattern, permission }: Grant): string {
  return `${permission} ${pattern} to ${formatSubject(subject)}`
}

/** A grant in one line, as the commands write it. */
export function formatGrant(one: Grant): string {
  return `grant ${describe(one)}`
}
