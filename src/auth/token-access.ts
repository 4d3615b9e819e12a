import { RegistryError } from '../oci/errors.js'
import type { RepositoryName } from '../oci/reference.js'
import type { AccessPolicy, Action, Caller, Credentials, Identity, Mount, Resource } from './access.js'
import { ChallengeError } from './access.js'
import type { Account, Accounts } from './accounts.js'
import { LeastRecentlyUsed } from './lru.js'
import { formatScope, type RegistryScopeName, type Scope } from './scopes.js'
import { type Claims, isCurrent, type Tokens } from './tokens.js'

/** Longest Authorization header that is read. */
const longestHeader = 16 * 1024

/** Callers that are known again by their header. */
const mostSeen = 5000

interface Seen {
  readonly caller: TokenCaller
  /** Of the rights that the caller was given. */
  readonly version: number
  readonly claims: Claims
}

/** How a caller said who he is; `rejected` when he did and it does not hold. */
type Proof =
  | { readonly via: 'nothing' | 'password' }
  | { readonly via: 'token'; readonly scopes: readonly Scope[] }
  | { readonly via: 'rejected'; readonly problem: 'invalid_token' | undefined; readonly message: string }

/** Who an account is. */
export function identityOf({ name, accessToken }: Account): Identity {
  return accessToken === undefined
    ? { name }
    : { name, accessToken: { id: accessToken.id, name: accessToken.name } }
}

class TokenCaller implements Caller {
  readonly identity: Identity
  readonly proof: Proof
  readonly #account: Account

  constructor(account: Account, proof: Proof) {
    this.identity = identityOf(account)
    this.proof = proof
    this.#account = account
  }

  may(action: Action, repository: RepositoryName): boolean {
    return this.#isFor(action, repository) && this.#account.may(action, repository)
  }

  maySee(repository: RepositoryName): boolean {
    return this.#mayPull('catalog', repository)
  }

  mayMountFrom(repository: RepositoryName): boolean {
    return this.#mayPull('mount', repository)
  }

  mayAdminister(repository: RepositoryName): boolean {
    // No scope says so: it goes with the greatest that there is.
    return this.#isFor('delete', repository) && this.#account.mayAdminister(repository)
  }

  reach(): readonly string[] {
    return this.#account.reach()
  }

  intentOf(repository: RepositoryName): 'push' | 'pull' | 'unknown' {
    if (this.proof.via === 'nothing') return 'unknown'
    if (!this.may('push', repository)) return 'pull'
    return this.proof.via === 'token' ? 'push' : 'unknown'
  }

  /** Whether the token in hand was got for this part of the registry; who sends a password needs none. */
  isForRegistry(name: RegistryScopeName): boolean {
    if (this.proof.via !== 'token') return true
    return this.proof.scopes.some((scope) => scope.type === 'registry' && scope.name === name)
  }

  /** Whether the account may pull, and the token is for that or for this use of it. */
  #mayPull(use: RegistryScopeName, repository: RepositoryName): boolean {
    return (
      this.#account.may('pull', repository) && (this.isForRegistry(use) || this.#isFor('pull', repository))
    )
  }

  #isFor(action: Action, repository: RepositoryName): boolean {
    if (this.proof.via !== 'token') return true
    return this.proof.scopes.some(
      (scope) => scope.type === 'repository' && scope.name === repository && scope.actions.includes(action),
    )
  }
}

/**
 * Token authentication as Docker defines it (protocol section 9): bearer tokens from the token endpoint, Basic
 * accepted without being announced, and what `anonymous` may do for those who send nothing.
 */
export class TokenAccess implements AccessPolicy {
  readonly #accounts: Accounts
  readonly #tokens: Tokens
  readonly #seen = new LeastRecentlyUsed<string, Seen>(mostSeen)

  constructor(accounts: Accounts, tokens: Tokens) {
    this.#accounts = accounts
    this.#tokens = tokens
  }

  /** One that was seen a moment ago is known again without a look at anything: pulls come in bursts. */
  authenticate(credentials: Credentials): TokenCaller | Promise<TokenCaller> {
    const { authorization } = credentials
    const known = authorization === undefined ? undefined : this.#seen.get(authorization)
    if (known !== undefined && known.version === this.#accounts.recentVersion && isCurrent(known.claims)) {
      return known.caller
    }
    return this.#authenticate(credentials)
  }

  async #authenticate(credentials: Credentials): Promise<TokenCaller> {
    const { authorization } = credentials
    const anonymous = await this.#accounts.anonymous()
    if (authorization === undefined) return new TokenCaller(anonymous, { via: 'nothing' })
    if (authorization.length > longestHeader) return this.#rejected(anonymous, 'the credentials are too long')
    const [, scheme = '', value = ''] = /^([A-Za-z]+) +(.*)$/.exec(authorization) ?? []
    switch (scheme.toLowerCase()) {
      case 'bearer':
        return this.#bearer(authorization, value.trim(), anonymous)
      case 'basic':
        return this.#basic(value.trim(), credentials.address, anonymous)
      default:
        return this.#rejected(anonymous, 'this kind of authorization is not supported')
    }
  }

  #rejected(anonymous: Account, message: string, problem?: 'invalid_token'): TokenCaller {
    return new TokenCaller(anonymous, { via: 'rejected', problem, message })
  }

  async #bearer(authorization: string, token: string, anonymous: Account): Promise<TokenCaller> {
    const claims = await this.#tokens.verify(token)
    const account =
      claims === undefined
        ? undefined
        : await this.#accounts.recall(claims.sub, claims.epoch, claims.accessToken)
    if (claims === undefined || account === undefined) {
      return this.#rejected(anonymous, 'the token is not valid (any more): log in again', 'invalid_token')
    }
    const caller = new TokenCaller(account, { via: 'token', scopes: claims.scopes })
    // Access tokens end by the clock as well, and their uses are noted: they are looked up each time.
    if (account.accessToken === undefined) {
      this.#seen.set(authorization, { caller, version: account.version, claims })
    }
    return caller
  }

  async #basic(value: string, address: string, anonymous: Account): Promise<TokenCaller> {
    const account = await loginBasic(this.#accounts, value, address)
    if (account === undefined) return this.#rejected(anonymous, wrongPassword)
    return new TokenCaller(account, { via: account.name === '' ? 'nothing' : 'password' })
  }

  /**
   * The order makes forbidden and missing repositories look the same: nothing is looked up before.
   * AU-07 would have 403 for a token that names the repository without the action; 401 with
   * `insufficient_scope` works with every client, so it is given always (docs/decisions).
   */
  authorize(caller: Caller, action: Action, resource: Resource, mount: Mount | undefined): void {
    if (!(caller instanceof TokenCaller)) throw new Error('a caller of another policy')
    if (isPermitted(caller, action, resource)) return
    const { proof } = caller
    const scope = neededScope(action, resource, mount)
    if (proof.via === 'rejected') throw new ChallengeError(scope, proof.problem, proof.message)
    switch (proof.via) {
      case 'token':
        throw new ChallengeError(scope, 'insufficient_scope', 'requested access to the resource is denied')
      case 'nothing':
        throw new ChallengeError(scope, undefined)
      case 'password':
        throw new RegistryError('DENIED', 'requested access to the resource is denied')
    }
  }

  permits(caller: Caller, action: Action, name: RepositoryName): boolean {
    return caller instanceof TokenCaller && isPermitted(caller, action, { type: 'repository', name })
  }
}

function isPermitted(caller: TokenCaller, action: Action, resource: Resource): boolean {
  return caller.proof.via !== 'rejected' && isAllowed(caller, action, resource)
}

function isAllowed(caller: TokenCaller, action: Action, resource: Resource): boolean {
  switch (resource.type) {
    case 'repository':
      return caller.may(action, resource.name)
    case 'public':
      return true
    case 'catalog':
      return caller.proof.via !== 'nothing' && caller.isForRegistry('catalog')
    case 'registry':
      return caller.proof.via !== 'nothing' // there is something to log in for: see protocol BASE-02
  }
}

/** The same words whether the user or the password is the wrong one. */
export const wrongPassword = 'the user name or the password is wrong'

/**
 * Proves a Basic value; the empty name and password are anonymous (protocol AU-13).
 * @returns undefined when they are wrong
 * @throws RegistryError TOOMANYREQUESTS
 */
export async function loginBasic(
  accounts: Accounts,
  value: string,
  address: string,
): Promise<Account | undefined> {
  const sent = readBasic(value)
  if (sent === undefined) return undefined
  const { name, password } = sent
  if (name === '' && password === '') return accounts.anonymous()
  return accounts.login(name, password, address)
}

/** The name and the password of a Basic value; undefined for one that has none. */
export function readBasic(value: string): { readonly name: string; readonly password: string } | undefined {
  const text = Buffer.from(value, 'base64').toString('utf8')
  const colon = text.indexOf(':')
  return colon < 0 ? undefined : { name: text.slice(0, colon), password: text.slice(colon + 1) }
}

const mountScope: Scope = { type: 'registry', name: 'mount', actions: ['*'] }

/** The scope that clients ask a token for (protocol AU-05); `/v2/` needs none. */
function neededScope(action: Action, resource: Resource, mount: Mount | undefined): string | undefined {
  switch (resource.type) {
    case 'registry':
    case 'public':
      return undefined
    case 'catalog':
      return formatScope({ type: 'registry', name: 'catalog', actions: ['*'] })
    case 'repository': {
      const actions: readonly Action[] = action === 'pull' ? ['pull'] : ['pull', action]
      const own = formatScope({ type: 'repository', name: resource.asked ?? resource.name, actions })
      if (mount === undefined) return own
      const { from } = mount
      return `${own} ${from === undefined ? formatScope(mountScope) : `repository:${from}:pull`}`
    }
  }
}
