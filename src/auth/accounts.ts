import { createHmac, randomBytes } from 'node:crypto'
import type { AccessStore, AccessToken, Grant, User } from '../../storage/access-store.js'
import type { RepositoryName } from '../oci/reference.js'
import { joinPrefixes } from '../oci/repository-pattern.js'
import { isSecretOf, parseAccessToken } from './access-tokens.js'
import { type Action, type RuleFilter, RuleSet } from './grants.js'
import { LeastRecentlyUsed } from './lru.js'
import type { Passwords } from './passwords.js'
import type { Throttle } from './throttle.js'

/** Milliseconds for which what was read about somebody counts as current. Revocation takes effect within it. */
const currentFor = 250

/** Accounts and credentials that are remembered. */
const mostEntries = 10_000

/** Milliseconds after which a password that was right is compared with its slow hash again. */
const rememberedFor = 600_000

/** Somebody with his rights, as they are now. */
export interface Account {
  /** '' is anonymous. */
  readonly name: string
  readonly epoch: number
  /** The access token that proved who it is, if any: it bounds the rights, and the life of what is got with it. */
  readonly accessToken: Pick<AccessToken, 'id' | 'name' | 'expiresAt'> | undefined
  /** At which the rights were read: another one means that they may have changed. */
  readonly version: number
  may(action: Action, repository: RepositoryName): boolean
  mayAdminister(repository: RepositoryName): boolean
  /** See Caller. */
  reach(): readonly string[]
}

interface Remembered {
  readonly account: string
  readonly epoch: number
  readonly accessToken: string | undefined
  readonly until: number
}

interface Rights {
  readonly version: number
  readonly user: User | undefined
  readonly rules: RuleSet
  /** Those of the rules that are not everybody's. */
  readonly own: RuleSet
}

/**
 * Hears of every password that was compared, and whose it was if it was right: one that is remembered is not compared
 * again.
 */
export type LoginObserver = (name: string, address: string, account: Account | undefined) => void

/** What accounts work with. */
export interface AccountOptions {
  readonly passwords: Passwords
  readonly throttle: Throttle
  readonly onLogin: LoginObserver
  /** Whether a grant to everybody counts in a repository that its pattern fits; unset, each does. */
  readonly anonymousRule?: RuleFilter | undefined
}

/** Who is who: passwords, access tokens, and the rights behind them, remembered as long as nothing changes. */
export class Accounts {
  readonly #store: AccessStore
  readonly #passwords: Passwords
  readonly #throttle: Throttle
  readonly #onLogin: LoginObserver
  readonly #anonymousRule: RuleFilter
  readonly #rights = new LeastRecentlyUsed<string, Rights>(mostEntries)
  readonly #tokens = new LeastRecentlyUsed<string, { version: number; token: AccessToken | undefined }>(
    mostEntries,
  )
  readonly #remembered = new LeastRecentlyUsed<string, Remembered>(mostEntries)
  /** Credentials are remembered under a keyed hash: memory holds no password. */
  readonly #memoryKey = randomBytes(32)
  readonly #used = new Set<string>()
  #version = 0
  #versionAt = Number.NEGATIVE_INFINITY

  constructor(
    store: AccessStore,
    { passwords, throttle, onLogin, anonymousRule = () => true }: AccountOptions,
  ) {
    this.#store = store
    this.#anonymousRule = anonymousRule
    this.#onLogin = onLogin
    this.#passwords = passwords
    this.#throttle = throttle
  }

  /** What everybody may do. */
  anonymous(): Promise<Account> {
    return this.#rightsOf('').then((rights) => this.#account('', rights, undefined))
  }

  /**
   * An account that was proven before, if it still stands: the user is there, enabled, of that epoch, and the
   * access token was not revoked.
   */
  async recall(name: string, epoch: number, accessToken: string | undefined): Promise<Account | undefined> {
    if (name === '') return this.anonymous()
    const rights = await this.#rightsOf(name)
    const { user } = rights
    if (user === undefined || user.isDisabled || user.epoch !== epoch) return undefined
    if (accessToken === undefined) return this.#account(name, rights, undefined)
    const token = await this.#accessToken(accessToken)
    if (token === undefined || token.user !== name) return undefined
    this.#used.add(token.id)
    return this.#account(name, rights, token)
  }

  /**
   * Proves a name and a password, or an access token in the password's place.
   * @returns undefined when they are wrong
   * @throws RegistryError TOOMANYREQUESTS for an address that guesses
   */
  async login(name: string, password: string, address: string): Promise<Account | undefined> {
    const key = createHmac('sha256', this.#memoryKey).update(`${name}\0${password}`).digest('base64')
    const known = this.#remembered.get(key)
    if (known !== undefined && known.until > performance.now()) {
      const account = await this.recall(known.account, known.epoch, known.accessToken)
      if (account !== undefined) return account
      this.#remembered.delete(key)
    }
    const weight = this.#throttle.admit(address, name)
    const account = await this.#prove(name, password, weight)
    this.#onLogin(name, address, account)
    if (account === undefined) {
      await this.#throttle.failed(address, name)
      return undefined
    }
    this.#throttle.succeeded(address, name)
    const { epoch, accessToken } = account
    const until = performance.now() + rememberedFor
    this.#remembered.set(key, { account: name, epoch, accessToken: accessToken?.id, until })
    return account
  }

  /** The account of an access token alone: it is what a refresh token is. */
  async loginWithToken(text: string, address: string): Promise<Account | undefined> {
    const parsed = parseAccessToken(text)
    const token = parsed === undefined ? undefined : await this.#accessToken(parsed.id)
    return this.login(token?.user ?? '?', text, address)
  }

  /** Writes down which access tokens were used; called from time to time. */
  async flushUses(now: number): Promise<void> {
    if (this.#used.size === 0) return
    const ids = [...this.#used]
    this.#used.clear()
    await this.#store.touchAccessTokens(ids, now)
  }

  async #prove(name: string, password: string, weight: number): Promise<Account | undefined> {
    const parsed = parseAccessToken(password)
    if (parsed !== undefined) {
      const token = await this.#accessToken(parsed.id)
      if (token === undefined || token.user !== name || !isSecretOf(parsed.secret, token.secretHash))
        return undefined
      const { user } = await this.#rightsOf(name)
      return user === undefined ? undefined : this.recall(name, user.epoch, token.id)
    }
    const { user } = await this.#rightsOf(name)
    const { isRight, isOutdated } = await this.#passwords.verify(password, user?.passwordHash, weight)
    if (!isRight || user === undefined || user.isDisabled) return undefined
    if (isOutdated) {
      await this.#store.rehashPassword(name, user.passwordHash, await this.#passwords.hash(password))
    }
    // The comparison took a while: what it proves is the user of that epoch, not one whose password was changed meanwhile.
    return this.recall(name, user.epoch, undefined)
  }

  async #account(name: string, rights: Rights, token: AccessToken | undefined): Promise<Account> {
    const { user, rules, own, version } = rights
    const limits = token === undefined ? undefined : new RuleSet(token.scopes)
    const everybody = (await this.#rightsOf('')).rules
    return {
      name,
      epoch: user?.epoch ?? 0,
      accessToken: token && { id: token.id, name: token.name, expiresAt: token.expiresAt },
      version,
      may: (action, repository) =>
        ((user?.isAdmin === true || own.allows(action, repository)) &&
          (limits === undefined || limits.allows(action, repository))) ||
        everybody.allows(action, repository, this.#anonymousRule),
      mayAdminister: (repository) =>
        (user?.isAdmin === true || rules.administers(repository)) &&
        (limits === undefined || limits.administers(repository)),
      reach: () => (user?.isAdmin === true ? [''] : joinPrefixes([...rules.prefixes, ...everybody.prefixes])),
    }
  }

  async #rightsOf(name: string): Promise<Rights> {
    const version = await this.#currentVersion()
    const known = this.#rights.get(name)
    if (known?.version === version) return known
    const [user, grants] = await Promise.all([
      name === '' ? undefined : this.#store.findUser(name),
      this.#store.listGrantsFor(name === '' ? undefined : name),
    ])
    const toRules = (some: readonly Grant[]) =>
      new RuleSet(some.map(({ pattern, permission }) => ({ pattern, permissions: [permission] })))
    const rights = {
      version,
      user,
      rules: toRules(grants),
      own: toRules(grants.filter(({ subject }) => subject.kind !== 'anonymous')),
    }
    this.#rights.set(name, rights)
    return rights
  }

  /** An access token that is there and has not expired. */
  async #accessToken(id: string): Promise<AccessToken | undefined> {
    const version = await this.#currentVersion()
    let known = this.#tokens.get(id)
    if (known?.version !== version) {
      known = { version, token: await this.#store.findAccessToken(id) }
      this.#tokens.set(id, known)
    }
    const { token } = known
    return token?.expiresAt !== undefined && token.expiresAt <= Date.now() ? undefined : token
  }

  async #currentVersion(): Promise<number> {
    return this.recentVersion ?? this.#refreshVersion()
  }

  /** The version that rights were read at, while it is recent enough to rely on. */
  get recentVersion(): number | undefined {
    return performance.now() - this.#versionAt > currentFor ? undefined : this.#version
  }

  async #refreshVersion(): Promise<number> {
    const asked = performance.now()
    const version = await this.#store.accessVersion()
    this.#version = version
    this.#versionAt = asked
    return version
  }
}
