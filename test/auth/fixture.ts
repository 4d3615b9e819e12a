import { createPrivateKey, sign as cryptoSign, type KeyObject } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Test } from 'tap'
import { createAccessToken } from '../../src/auth/access-tokens.js'
import { isPermission } from '../../src/auth/grants.js'
import { Passwords } from '../../src/auth/passwords.js'
import type { AccessStore, Grant, Subject, TokenScope } from '../../storage/access-store.js'
import { dataPaths } from '../../storage/data-folder.js'
import { openSqliteStores } from '../../storage/sqlite-metadata-store.js'
import {
  image,
  push,
  type Reply,
  type RequestOptions,
  randomBlob,
  type Server,
  type ServerOptions,
  startServer,
} from '../harness.js'

/** The password of every user whose test does not care. */
export const password = 'correct horse battery staple'

/** Path of the token endpoint. */
export const tokenPath = '/auth/token'

const hashes = new Map<string, Promise<string>>()

/** A password's hash; the same one at each call, since making it is slow on purpose. */
export function hashOf(text: string): Promise<string> {
  const known = hashes.get(text)
  if (known !== undefined) return known
  const passwords = new Passwords()
  const hash = passwords.hash(text).finally(() => passwords.close())
  hashes.set(text, hash)
  return hash
}

export interface UserPlan {
  password?: string
  admin?: boolean
  groups?: string[]
  disabled?: boolean
}

/** A running server that asks for users, and the means to make them. */
export interface Registry {
  server: Server
  /** The store of the server's own data folder, open beside it as the command line's is. */
  access: AccessStore
  addUser: (name: string, plan?: UserPlan) => Promise<void>
  /** `subject` is `user:NAME`, `group:NAME`, `authenticated` or `anonymous`. */
  grant: (subject: string, pattern: string, permission: string) => Promise<void>
  revoke: (subject: string, pattern: string, permission: string) => Promise<void>
  /** Makes an access token and gives its text; scopes are written `team/**:pull,push`. */
  accessToken: (
    user: string,
    scopes: string[],
    plan?: { name?: string; expiresAt?: number },
  ) => Promise<string>
  /** Asks the token endpoint, and throws unless it gives a token. */
  token: (authorization: string | undefined, scopes?: string[]) => Promise<string>
}

/**
 * Starts a server with `auth: token`. Everything made before the first request is in effect with that request;
 * what changes later takes effect within a second.
 */
export async function startRegistry(t: Test, options: ServerOptions = {}): Promise<Registry> {
  const server = await startServer(t, { ...options, config: { auth: 'token', ...options.config } })
  const access = await openAccess(t, server.data)
  return {
    server,
    access,
    async addUser(name, plan = {}) {
      const passwordHash = await hashOf(plan.password ?? password)
      const user = { name, passwordHash, isAdmin: plan.admin ?? false }
      if (!(await access.addUser(user, Date.now()))) throw new Error(`the user ${name} is there already`)
      if (plan.groups !== undefined) await access.setGroups(name, plan.groups)
      if (plan.disabled === true) await access.setDisabled(name, true)
    },
    async grant(subject, pattern, permission) {
      const outcome = await access.addGrant(grantOf(subject, pattern, permission))
      if (outcome !== 'added') throw new Error(`grant to ${subject}: ${outcome}`)
    },
    async revoke(subject, pattern, permission) {
      if (!(await access.removeGrant(grantOf(subject, pattern, permission))))
        throw new Error(`there was no grant to ${subject}`)
    },
    async accessToken(user, scopes, plan = {}) {
      const { id, text, secretHash } = createAccessToken()
      const outcome = await access.addAccessToken({
        id,
        user,
        name: plan.name ?? `token ${id}`,
        secretHash,
        scopes: scopes.map(scopeOf),
        createdAt: Date.now(),
        expiresAt: plan.expiresAt,
      })
      if (outcome !== 'added') throw new Error(`access token of ${user}: ${outcome}`)
      return text
    },
    token: (authorization, scopes = []) => getToken(server, authorization, scopes),
  }
}

/**
 * A registry of twins, for what one tenant must not do to another: `ann` owns a/**, `ben` owns b/**, `ray` reads
 * a/**, `root` administers. Both a/app and b/app have an image under the tag 1; tags v* below frozen/, where ann may
 * do everything, too, are immutable.
 */
export async function startTwins(t: Test) {
  const registry = await startRegistry(t, {
    config: { tags: { immutable: ['frozen/**:v*'] }, trustedProxies: ['127.0.0.1'] },
  })
  const { server } = registry
  await registry.addUser('root', { admin: true })
  for (const name of ['ann', 'ben', 'ray']) await registry.addUser(name)
  await registry.grant('user:ann', 'a/**', 'admin')
  await registry.grant('user:ann', 'frozen/**', 'admin')
  await registry.grant('user:ben', 'b/**', 'admin')
  await registry.grant('user:ray', 'a/**', 'pull')
  const [root, ann, ben] = [basic('root'), basic('ann'), basic('ben')].map((sent) => as(server, sent)) as [
    Server,
    Server,
    Server,
  ]
  const layer = randomBlob(5000)
  const app = image({ layers: [layer] })
  await push(ann, 'a/app', '1', app)
  await push(ben, 'b/app', '1', image())
  return { registry, server, access: registry.access, root, ann, ben, layer, app }
}

/** Opens the access store of a data folder; closed when `t` ends. */
export async function openAccess(t: Test, data: string): Promise<AccessStore> {
  const stores = await openSqliteStores({
    path: dataPaths(data).database,
    onFatal: (error) => {
      throw error
    },
  })
  t.teardown(() => stores.metadata.close())
  return stores.access
}

function grantOf(subject: string, pattern: string, permission: string): Grant {
  if (!isPermission(permission)) throw new Error(`no permission: ${permission}`)
  return { subject: subjectOf(subject), pattern, permission }
}

function subjectOf(text: string): Subject {
  const [kind, name = ''] = text.split(/:(.*)/s)
  if (kind === 'user' || kind === 'group') return { kind, name }
  if (kind === 'authenticated' || kind === 'anonymous') return { kind }
  throw new Error(`no subject: ${text}`)
}

function scopeOf(text: string): TokenScope {
  const [pattern = '', permissions = ''] = text.split(':')
  return { pattern, permissions: permissions.split(',').filter(isPermission) }
}

/** The Authorization header of a name and a password. */
export function basic(name: string, secret = password): string {
  return `Basic ${Buffer.from(`${name}:${secret}`).toString('base64')}`
}

export const bearer = (token: string): string => `Bearer ${token}`

/** A request for a token as GET has it, whatever the answer is. */
export function askToken(
  server: Server,
  authorization: string | undefined,
  scopes: string[] = [],
  extra: Record<string, string> = {},
): Promise<Reply> {
  const query = new URLSearchParams([
    ...scopes.map((scope): [string, string] => ['scope', scope]),
    ...Object.entries(extra),
  ])
  return server.request('GET', `${tokenPath}?${query}`, withAuthorization(authorization))
}

/** A token; throws when there is none to get. */
export async function getToken(
  server: Server,
  authorization: string | undefined,
  scopes: string[] = [],
): Promise<string> {
  const reply = await askToken(server, authorization, scopes)
  if (reply.status !== 200) throw new Error(`no token: ${reply.status} ${reply.text}`)
  return reply.json<{ token: string }>().token
}

/** A request for a token as a form, whatever the answer is. */
export function postForm(
  server: Server,
  form: Record<string, string> | [string, string][],
  headers: Record<string, string> = {},
): Promise<Reply> {
  return server.request('POST', tokenPath, {
    body: new URLSearchParams(form).toString(),
    headers: { 'Content-Type': 'application/x-www-form-urlencoded', ...headers },
  })
}

/** Request options with an Authorization header, unless there is nothing to send. */
export function withAuthorization(
  authorization: string | undefined,
  options: RequestOptions = {},
): RequestOptions {
  if (authorization === undefined) return options
  return { ...options, headers: { ...options.headers, Authorization: authorization } }
}

/** The same server, as somebody who sends this with every request. */
export function as(server: Server, authorization: string | undefined): Server {
  return {
    ...server,
    request: (method, path, options) =>
      server.request(method, path, withAuthorization(authorization, options)),
  }
}

/** The parameters of a challenge; empty when there is none. Throws when it is not one line of the Bearer scheme. */
export function challengeOf(reply: Reply): Record<string, string> {
  const lines = reply.rawHeaders.filter(
    (_, at) => reply.rawHeaders[at - 1]?.toLowerCase() === 'www-authenticate',
  )
  const [line] = lines
  if (line === undefined) return {}
  if (lines.length > 1) throw new Error(`several challenges: ${lines.join(' | ')}`)
  if (!/^Bearer [a-z_]+="[^"\\]*"(,[a-z_]+="[^"\\]*")*$/.test(line))
    throw new Error(`an odd challenge: ${line}`)
  return Object.fromEntries(
    [...line.matchAll(/([a-z_]+)="([^"]*)"/g)].map(([, name, value]) => [name, value]),
  )
}

/** The claims of a token, unverified. */
export function claimsOf(token: string): Record<string, unknown> {
  return JSON.parse(Buffer.from(token.split('.')[1] ?? '', 'base64url').toString()) as Record<string, unknown>
}

/** The header of a token, unverified. */
export function headerOf(token: string): Record<string, unknown> {
  return JSON.parse(Buffer.from(token.split('.')[0] ?? '', 'base64url').toString()) as Record<string, unknown>
}

/** What a token lets do, as `team/app:pull,push`. */
export function accessOf(token: string): string[] {
  const { access } = claimsOf(token) as { access: { name: string; actions: string[] }[] }
  return access.map(({ name, actions }) => `${name}:${[...actions].sort().join(',')}`)
}

/** A token with any header and claims, signed with any Ed25519 key. */
export function signToken(header: object, claims: object, key: KeyObject): string {
  const text = [header, claims].map((part) => encode(JSON.stringify(part))).join('.')
  return `${text}.${cryptoSign(null, Buffer.from(text), key).toString('base64url')}`
}

export const encode = (text: string | Buffer): string => Buffer.from(text).toString('base64url')

/** The signing key of a data folder: the newest one. */
export function signingKeyOf(data: string): KeyObject {
  const folder = dataPaths(data).keys
  const newest = readdirSync(folder)
    .filter((name) => name.endsWith('.pem'))
    .sort((a, b) => Number.parseInt(b, 10) - Number.parseInt(a, 10))[0]
  return createPrivateKey(readFileSync(join(folder, newest ?? ''), 'utf8'))
}

/** Runs `work` on every item, `width` at a time, and gives the results in the order of the items. */
export async function pool<Item, Result>(
  width: number,
  items: readonly Item[],
  work: (item: Item, at: number) => Promise<Result>,
): Promise<Result[]> {
  const results: Result[] = []
  const entries = items.entries()
  const run = async () => {
    for (const [at, item] of entries) results[at] = await work(item, at)
  }
  await Promise.all(Array.from({ length: width }, run))
  return results
}

/** What a reply says, in short: `404 BLOB_UNKNOWN`, `401 UNAUTHORIZED insufficient_scope for repository:a:pull`. */
export function inShort(reply: Reply): string {
  const words = [String(reply.status)]
  if (reply.status >= 400 && reply.method !== 'HEAD') words.push(reply.code)
  const challenge = challengeOf(reply)
  if (challenge.error !== undefined) words.push(challenge.error)
  if (challenge.scope !== undefined) words.push(`for ${challenge.scope}`)
  if (reply.status === 401 && challenge.realm === undefined) words.push('without a challenge')
  return words.join(' ')
}
