import type { AccessToken, TokenScope } from '../../storage/access-store.js'
import { createAccessToken } from '../auth/access-tokens.js'
import { commandGroup, Misuse, note, parse, Refusal, say, sharedUsage, words } from './command.js'
import { checkName, checkPattern, parsePermissions } from './names.js'
import { unknownUser, withPlace } from './store.js'
import { formatJson, formatTable, formatTime } from './table.js'

const usage = `Access tokens: passwords for machines

  boathouse token create --user USER --name NAME [--scope SCOPE]... [--expires TIME] [--json]
  boathouse token list [--user USER] [--json]
  boathouse token revoke --user USER --name NAME

  --user USER     whose token it is: a token may never do more than its owner
  --name NAME     what it is called, once per user
  --scope SCOPE   a repository pattern, a colon and permissions, such as 'team/**:pull,push';
                  without it the token may do everything that its owner may
  --expires TIME  how long it lasts, such as 12h or 90d, or never (90d unless written)

A new token is printed once, alone on standard output; only a hash of it is kept. It is used in the place of the
password: docker login --username USER --password-stdin

${sharedUsage}`

/** `boathouse token …` */
export const token = commandGroup('token', usage, { create, list, revoke })

const units: Readonly<Record<string, number>> = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }
const longestLife = 3650 * 86_400_000

async function create(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, {
    user: { type: 'string' },
    name: { type: 'string' },
    scope: { type: 'string', multiple: true },
    expires: { type: 'string' },
    json: { type: 'boolean' },
  })
  words(positionals)
  const owner = required(values.user, '--user')
  const name = required(values.name, '--name')
  checkName(name, 'token')
  const scopes = values.scope?.map(parseScope) ?? [{ pattern: '**', permissions: ['admin'] }]
  const lifetime = parseLifetime(values.expires ?? '90d')
  return withPlace(values, async ({ access, audit }) => {
    const now = Date.now()
    const expiresAt = lifetime === undefined ? undefined : now + lifetime
    const { id, text, secretHash } = createAccessToken()
    const made = { id, user: owner, name, secretHash, scopes, createdAt: now, expiresAt }
    const outcome = await access.addAccessToken(made)
    if (outcome === 'no-user') throw unknownUser(owner)
    if (outcome === 'taken') {
      throw new Refusal(`${owner} has a token ${name} already: revoke it first, or choose another name.`)
    }
    audit('token created', {
      owner,
      name,
      scopes: scopes.map(formatScope),
      expires: formatTime(expiresAt, 'never'),
    })
    const described = toJson({ ...made, usedAt: undefined })
    say(values.json === true ? formatJson({ ...described, token: text }) : text)
    note(
      `Made the token ${name} of ${owner} for ${scopes.map(formatScope).join(' ')}, good until ${described.expires ?? 'it is revoked'}: it is shown this once.`,
    )
    if ((await access.findUser(owner))?.isDisabled === true)
      note(`${owner} is disabled: the token is no good until enabled.`)
    return 0
  })
}

async function list(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, { user: { type: 'string' }, json: { type: 'boolean' } })
  words(positionals)
  const owner = values.user
  return withPlace(values, async ({ access }) => {
    if (owner !== undefined && (await access.findUser(owner)) === undefined) throw unknownUser(owner)
    const tokens = await access.listAccessTokens(owner)
    say(values.json === true ? formatJson(tokens.map(toJson)) : tableOf(tokens, Date.now()))
    return 0
  })
}

async function revoke(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, { user: { type: 'string' }, name: { type: 'string' } })
  words(positionals)
  const owner = required(values.user, '--user')
  const name = required(values.name, '--name')
  return withPlace(values, async ({ access, audit }) => {
    if (!(await access.removeAccessToken(owner, name))) {
      if ((await access.findUser(owner)) === undefined) throw unknownUser(owner)
      throw new Refusal(
        `${owner} has no such token: "boathouse token list --user ${owner}" shows which there are.`,
      )
    }
    audit('token revoked', { owner, name })
    say(`Revoked the token ${name} of ${owner}.`)
    return 0
  })
}

function required(value: string | undefined, option: string): string {
  if (value === undefined || value === '') throw new Misuse(`${option} is missing.`)
  return value
}

/** `team/**:pull,push` */
function parseScope(text: string): TokenScope {
  const colon = text.lastIndexOf(':')
  if (colon < 1)
    throw new Misuse("Write a scope as 'team/**:pull,push': a repository pattern, a colon and permissions.")
  const pattern = text.slice(0, colon)
  checkPattern(pattern)
  return { pattern, permissions: parsePermissions(text.slice(colon + 1)) }
}

function formatScope({ pattern, permissions }: TokenScope): string {
  return `${pattern}:${permissions.join(',')}`
}

/** Milliseconds; undefined is for ever. */
function parseLifetime(text: string): number | undefined {
  if (text === 'never') return undefined
  const [, digits, unit = ''] = /^([1-9]\d{0,8})([smhd])$/.exec(text) ?? []
  const lifetime = Number(digits) * (units[unit] ?? Number.NaN)
  if (lifetime <= longestLife) return lifetime
  throw new Misuse('--expires takes a time such as 12h or 90d (at most 3650d), or the word never.')
}

function toJson(token: AccessToken) {
  return {
    user: token.user,
    name: token.name,
    scopes: token.scopes.map(formatScope),
    created: formatTime(token.createdAt, ''),
    expires: token.expiresAt === undefined ? null : formatTime(token.expiresAt, ''),
    used: token.usedAt === undefined ? null : formatTime(token.usedAt, ''),
  }
}

function tableOf(tokens: readonly AccessToken[], now: number): string {
  if (tokens.length === 0) return 'There are no tokens.'
  const rows = tokens.map(({ user, name, scopes, expiresAt, usedAt }) => [
    user,
    name,
    scopes.map(formatScope).join(' '),
    `${formatTime(expiresAt, 'never')}${expiresAt !== undefined && expiresAt <= now ? ' (over)' : ''}`,
    formatTime(usedAt, 'never'),
  ])
  return formatTable(['USER', 'NAME', 'SCOPES', 'EXPIRES', 'LAST USED'], rows)
}
