import { writeFile } from 'node:fs/promises'
import type { MirrorConfig } from '../../config/mirrors.js'
import type { Config } from '../../config/schema.js'
import type { Grant, User } from '../../storage/access-store.js'
import { actions, RuleSet } from '../auth/grants.js'
import { isPrivate, reachesMirror } from '../mirror-privacy.js'
import { isRepositoryName } from '../oci/reference.js'
import { type Access, currentAccess, formatAccess } from './access-file.js'
import { parseAccess } from './access-reader.js'
import { commandGroup, Misuse, note, parse, Refusal, say, sharedUsage, words } from './command.js'
import { formatGrant } from './grant.js'
import { nameOf, readInput } from './input.js'
import { formatSubject } from './names.js'
import { noteOpenness } from './openness.js'
import { type Place, unknownUser, withPlace } from './store.js'
import { formatJson, formatTable } from './table.js'

const usage = `Access: who may do what, and why

  boathouse access list [--json]
  boathouse access explain USER REPOSITORY    for pull, push and delete: yes or no, and which rule decides;
                                              USER may be anonymous
  boathouse access export [FILE]              write groups and grants as YAML
  boathouse access apply FILE [--dry-run]     make groups and grants exactly what the file says, all at once;
                                              --dry-run only shows what would change; - is stdin

  groups:
    devs: [alice, bob]
  grants:
    - to: group:devs    # or user:NAME, authenticated (all who logged in), anonymous (everybody)
      permissions: [push]
      repositories: [team/**]

${sharedUsage}`

/** `boathouse access …` */
export const access = commandGroup('access', usage, { list, explain, export: write, apply })

/** Faults of a file that are shown. */
const mostFaults = 50

async function list(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, { json: { type: 'boolean' } })
  words(positionals)
  return withPlace(values, async (place) => {
    const grants = await place.access.listGrants()
    if (values.json === true) say(formatJson(grants.map(toJson)))
    else if (grants.length === 0) say('There are no grants: admins may do everything, all others nothing.')
    else {
      const rows = grants
        .map(toJson)
        .map(({ to, permission, repositories }) => [to, permission, repositories])
      say(formatTable(['TO', 'PERMISSION', 'REPOSITORIES'], rows))
    }
    return 0
  })
}

function toJson({ subject, pattern, permission }: Grant) {
  return { to: formatSubject(subject), permission, repositories: pattern }
}

async function explain(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, {})
  const [name, repository] = words(positionals, 'USER', 'REPOSITORY')
  if (!isRepositoryName(repository)) throw new Misuse('REPOSITORY is a name such as team/app, without a tag.')
  return withPlace(values, async (place) => {
    const isAnonymous = name === 'anonymous'
    const user = isAnonymous ? undefined : await place.access.findUser(name)
    if (!isAnonymous && user === undefined) throw unknownUser(name)
    const grants = await place.access.listGrantsFor(isAnonymous ? undefined : name)
    const mirror = mirrorOf(place.config, repository)
    const isClosed = mirror !== undefined && isPrivate(mirror)
    for (const line of explanations(user, grants, repository, isClosed ? mirror.name : undefined)) say(line)
    if (mirror !== undefined) note(describeMirror(mirror, isClosed))
    if (place.config.auth === 'none')
      note('The setting auth is none: the server asks nobody, and everybody may do everything.')
    return 0
  })
}

/**
 * A line for each action.
 * @param closed the mirror that the repository belongs to, where its upstream asks for credentials
 */
function explanations(
  user: User | undefined,
  grants: readonly Grant[],
  repository: string,
  closed: string | undefined,
): string[] {
  const toRules = (some: readonly Grant[]) =>
    new RuleSet(some.map((grant) => ({ pattern: grant.pattern, permissions: [grant.permission], grant })))
  const counts = (grant: Grant) =>
    closed === undefined || grant.subject.kind !== 'anonymous' || reachesMirror(grant.pattern, closed)
  const rules = toRules(grants.filter(counts))
  const others = toRules(grants.filter((grant) => !counts(grant)))
  return actions.map((action) => {
    if (user?.isDisabled === true) return `${action}: no: user ${user.name} is disabled`
    if (user?.isAdmin === true) return `${action}: yes: user is an admin`
    const rule = rules.find(action, repository)
    if (rule !== undefined) return `${action}: yes: ${formatGrant(rule.grant)}`
    const lost = others.find(action, repository)
    if (lost === undefined) return `${action}: no: no grant fits`
    return `${action}: no: ${formatGrant(lost.grant)} does not name ${closed}, a mirror with credentials`
  })
}

function mirrorOf({ mirrors }: Config, repository: string): MirrorConfig | undefined {
  return mirrors.find(({ name }) => repository.startsWith(`${name}/`))
}

/** What holds whatever grants say. */
function describeMirror({ name }: MirrorConfig, isClosed: boolean): string {
  const changes = `What ${name} mirrors takes no pushes from anybody, and deletes only from those who have admin there.`
  if (!isClosed) return changes
  return (
    `${name} asks its upstream with credentials: what they open is for everybody only where a grant to anonymous begins ` +
    `with ${name}/, or the mirror's setting public is true. ${changes}`
  )
}

async function write(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, {})
  const [file] = positionals.length === 0 ? [undefined] : words(positionals, 'FILE')
  return withPlace(values, async (place) => {
    const text = formatAccess(await readCurrent(place))
    if (file === undefined || file === '-') process.stdout.write(text)
    else {
      await writeFile(file, text).catch((error: Error) => {
        throw new Refusal(`Cannot write ${file}: ${error.message}.`)
      })
      say(`Wrote groups and grants to ${file}.`)
    }
    return 0
  })
}

async function apply(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, { 'dry-run': { type: 'boolean' } })
  const [file] = words(positionals, 'FILE')
  const text = await readInput(file)
  return withPlace(values, async (place) => {
    const users = (await place.access.listUsers()).map(({ name }) => name)
    const { access: wanted, faults } = parseAccess(text, new Set(users))
    if (faults.length > 0) throw new Refusal(describeFaults(nameOf(file), faults))
    const changes = difference(await readCurrent(place), wanted)
    for (const change of changes) say(change)
    if (changes.length === 0) say('Groups and grants are what the file says already.')
    else if (values['dry-run'] === true) note('Nothing was changed: this was a dry run.')
    else await store(place, users, wanted, changes)
    return 0
  })
}

async function store(
  place: Place,
  users: readonly string[],
  wanted: Access,
  changes: readonly string[],
): Promise<void> {
  const groupsOf = new Map<string, string[]>(users.map((name) => [name, []]))
  for (const [group, members] of wanted.groups) {
    for (const member of members) groupsOf.get(member)?.push(group)
  }
  const unknown = await place.access.applyAccess({
    groups: Object.fromEntries(groupsOf),
    grants: wanted.grants,
  })
  if (unknown.length > 0) throw new Refusal(`Nothing was changed: ${unknown.join(', ')} is gone meanwhile.`)
  place.audit('access applied', { changes })
  note(`Changed ${changes.length} of groups and grants.`)
  await noteOpenness(place, wanted.grants.length)
}

async function readCurrent({ access: store }: Place): Promise<Access> {
  return currentAccess(await store.listUsers(), await store.listGrants())
}

/** A line for everything that goes (-) or comes (+). */
function difference(current: Access, wanted: Access): string[] {
  const before = new Set(linesOf(current))
  const after = new Set(linesOf(wanted))
  return [
    ...[...before].filter((line) => !after.has(line)).map((line) => `- ${line}`),
    ...[...after].filter((line) => !before.has(line)).map((line) => `+ ${line}`),
  ]
}

function linesOf({ groups, grants }: Access): string[] {
  const memberships = [...groups].flatMap(([group, members]) =>
    members.map((member) => `member ${member} of group:${group}`),
  )
  return [...memberships, ...grants.map(formatGrant)]
}

function describeFaults(file: string, faults: readonly string[]): string {
  const shown = faults.slice(0, mostFaults).map((fault) => `${file}: ${fault}`)
  if (faults.length > mostFaults) shown.push(`${file}: there are ${faults.length - mostFaults} more faults.`)
  return [...shown, 'Nothing was changed.'].join('\n')
}
