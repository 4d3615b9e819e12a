import type { AdminGuard, User } from '../../storage/access-store.js'
import { Passwords } from '../auth/passwords.js'
import {
  commandGroup,
  Misuse,
  parse,
  Refusal,
  type SharedValues,
  say,
  sharedUsage,
  words,
} from './command.js'
import { checkName } from './names.js'
import { noteOpenness } from './openness.js'
import { confirm, readNewPassword } from './prompt.js'
import { type Place, unknownUser, withPlace } from './store.js'
import { formatJson, formatTable, formatTime } from './table.js'
import { importUsers } from './user-import.js'

const usage = `Users: who may log in

  boathouse user add NAME [--admin] [--group GROUP]...   make a user; an admin may do everything
  boathouse user passwd NAME                             give a new password; access tokens stay good
  boathouse user disable NAME                            end all logins and let none in, until enabled
  boathouse user enable NAME
  boathouse user admin NAME on|off                       make somebody an admin, or no longer one
  boathouse user groups NAME [GROUP... | --none]         put into these groups and no other, or show them
  boathouse user remove NAME [--yes]                     remove, with tokens and grants; --yes does not ask
  boathouse user list [--json]
  boathouse user import FILE                             add the users of an htpasswd file (bcrypt); - is stdin

Passwords are asked for on a terminal, and are the first line of standard input elsewhere. A new one has at least 8
characters. The last admin is not disabled, removed or made an ordinary user unless --last-admin says so, too.

${sharedUsage}`

/** `boathouse user …` */
export const user = commandGroup('user', usage, {
  add,
  passwd,
  disable,
  enable,
  admin,
  groups,
  remove,
  list,
  import: importUsers,
})

async function add(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, {
    admin: { type: 'boolean' },
    group: { type: 'string', multiple: true },
  })
  const [name] = words(positionals, 'NAME')
  checkName(name, 'user')
  const isAdmin = values.admin === true
  const wanted = [...new Set(values.group ?? [])]
  for (const group of wanted) checkName(group, 'group')
  return withPlace(values, async (place) => {
    const { access, audit } = place
    const taken = new Refusal(
      `There is a user ${name} already: "boathouse user passwd ${name}" changes the password.`,
    )
    if ((await access.findUser(name)) !== undefined) throw taken
    const passwordHash = await hash(await readNewPassword(name))
    if (!(await access.addUser({ name, passwordHash, isAdmin }, Date.now()))) throw taken
    if (wanted.length > 0) await access.setGroups(name, wanted)
    audit('user added', { name, admin: isAdmin, groups: wanted })
    say(
      `Added the ${isAdmin ? 'admin' : 'user'} ${name}${wanted.length > 0 ? ` to ${wanted.join(', ')}` : ''}.`,
    )
    await noteOpenness(place, 1)
    return 0
  })
}

async function passwd(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, {})
  const [name] = words(positionals, 'NAME')
  return withPlace(values, async ({ access, audit }) => {
    await mustFind(access, name)
    const passwordHash = await hash(await readNewPassword(name))
    if (!(await access.setPassword(name, passwordHash))) throw unknownUser(name)
    audit('password changed', { name })
    say(`Changed the password of ${name}: logins with the old one end, access tokens stay good.`)
    return 0
  })
}

const lastAdmin = { 'last-admin': { type: 'boolean' } } as const

/** What must be said to leave nobody who may do everything. */
function guardOf(values: { readonly 'last-admin'?: boolean | undefined }): AdminGuard | undefined {
  return values['last-admin'] === true ? undefined : 'keep-an-admin'
}

/** @throws Refusal unless the change was made */
function mustBeDone(outcome: boolean | 'last-admin', name: string): void {
  if (outcome === false) throw unknownUser(name)
  if (outcome !== 'last-admin') return
  throw new Refusal(
    `The last admin who can log in is ${name}: make another first with "boathouse user admin NAME on", or add --last-admin. Nothing was changed.`,
  )
}

function disable(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, lastAdmin)
  return setDisabled(values, words(positionals, 'NAME')[0], true, guardOf(values))
}

function enable(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, {})
  return setDisabled(values, words(positionals, 'NAME')[0], false, undefined)
}

async function setDisabled(
  values: SharedValues,
  name: string,
  isDisabled: boolean,
  guard: AdminGuard | undefined,
): Promise<number> {
  return withPlace(values, async ({ access, audit }) => {
    const { isDisabled: was } = await mustFind(access, name)
    const state = isDisabled ? 'disabled' : 'enabled'
    if (was === isDisabled) {
      say(`${name} is ${state} already.`)
      return 0
    }
    mustBeDone(await access.setDisabled(name, isDisabled, guard), name)
    audit(`user ${state}`, { name })
    say(isDisabled ? `Disabled ${name}: no login of theirs is good any more.` : `Enabled ${name}.`)
    return 0
  })
}

async function admin(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, lastAdmin)
  const [name, state] = words(positionals, 'NAME', 'on|off')
  if (state !== 'on' && state !== 'off') throw new Misuse('Write on or off after the name.')
  const isAdmin = state === 'on'
  return withPlace(values, async ({ access, audit }) => {
    mustBeDone(await access.setAdmin(name, isAdmin, guardOf(values)), name)
    audit(isAdmin ? 'admin made' : 'admin ended', { name })
    say(
      isAdmin
        ? `${name} is an admin and may do everything.`
        : `${name} is no admin: grants say what is allowed.`,
    )
    return 0
  })
}

async function groups(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, { none: { type: 'boolean' } })
  const [name, ...named] = positionals
  if (name === undefined) throw new Misuse('NAME is missing.')
  if (values.none === true && named.length > 0) throw new Misuse('Name groups, or write --none.')
  const wanted = [...new Set(named)].sort()
  for (const group of wanted) checkName(group, 'group')
  return withPlace(values, async ({ access, audit }) => {
    const { groups: current } = await mustFind(access, name)
    if (wanted.length === 0 && values.none !== true) {
      say(describeGroups(name, current))
      return 0
    }
    if (!(await access.setGroups(name, wanted))) throw unknownUser(name)
    audit('groups set', { name, groups: wanted })
    say(describeGroups(name, wanted))
    return 0
  })
}

async function remove(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, { yes: { type: 'boolean' }, ...lastAdmin })
  const [name] = words(positionals, 'NAME')
  return withPlace(values, async ({ access, audit }) => {
    await mustFind(access, name)
    if (values.yes !== true && !(await confirm(removeQuestion(name), 'add --yes'))) {
      throw new Refusal('Stopped: nothing was changed.')
    }
    mustBeDone(await access.removeUser(name, guardOf(values)), name)
    audit('user removed', { name })
    say(`Removed ${name}, with access tokens and grants. What ${name} pushed stays.`)
    return 0
  })
}

async function list(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, { json: { type: 'boolean' } })
  words(positionals)
  return withPlace(values, async ({ access }) => {
    const users = await access.listUsers()
    say(values.json === true ? formatJson(users.map(toJson)) : tableOf(users))
    return 0
  })
}

function tableOf(users: readonly User[]): string {
  if (users.length === 0) return 'There are no users: "boathouse user add NAME --admin" makes the first.'
  const rows = users.map(({ name, isAdmin, isDisabled, groups, createdAt }) => [
    name,
    [...(isAdmin ? ['admin'] : []), ...(isDisabled ? ['disabled'] : [])].join(', ') || '-',
    groups.join(', ') || '-',
    formatTime(createdAt, '-'),
  ])
  return formatTable(['NAME', 'STATE', 'GROUPS', 'CREATED'], rows)
}

function toJson({ name, isAdmin, isDisabled, groups, createdAt }: User) {
  return { name, admin: isAdmin, disabled: isDisabled, groups, created: formatTime(createdAt, '') }
}

function removeQuestion(name: string): string {
  return `Remove the user ${name} with access tokens and grants?`
}

function describeGroups(name: string, list: readonly string[]): string {
  return list.length === 0 ? `${name} is in no group.` : `${name} is in ${list.join(', ')}.`
}

/** @throws Refusal when there is no such user */
async function mustFind(access: Place['access'], name: string): Promise<User> {
  const found = await access.findUser(name)
  if (found === undefined) throw unknownUser(name)
  return found
}

async function hash(password: string): Promise<string> {
  const passwords = new Passwords()
  try {
    return await passwords.hash(password)
  } finally {
    await passwords.close()
  }
}
