import { tokenService } from '../config/load.js'
import type { Config } from '../config/schema.js'
import { type AccessStore, refreshTokenPrefix } from '../storage/access-store.js'
import { dataPaths } from '../storage/data-folder.js'
import { KeyFile, type KeyFileObserver, KeyStore } from '../storage/key-store.js'
import { createAccessToken } from './auth/access-tokens.js'
import { type Account, Accounts, type LoginObserver } from './auth/accounts.js'
import type { RuleFilter } from './auth/grants.js'
import { Passwords } from './auth/passwords.js'
import { Throttle } from './auth/throttle.js'
import { TokenAccess } from './auth/token-access.js'
import { type KeySource, Tokens } from './auth/tokens.js'
import type { Audit } from './http/audit.js'
import type { Intake } from './http/intake.js'
import { tokenHandlers } from './http/token.js'
import type { NameResolver } from './registry/names.js'

/** Milliseconds between two notes of which access tokens were used. */
const useInterval = 60_000

/** Days that a refresh token lasts. */
const refreshDays = 90

/** Refresh tokens of one user. */
const mostRefreshTokens = 100

/** What lies behind names: mirrors may. */
export interface Behind {
  readonly names: NameResolver
  /** Whether a grant to everybody counts in a repository that its pattern fits. */
  readonly anonymousRule: RuleFilter
}

/** Composes users, tokens and grants: what `auth: token` means. */
export async function createTokenAccess(
  config: Config,
  store: AccessStore,
  log: { audit: Audit; onLogin: LoginObserver; onKeyChange: KeyFileObserver; intake: Intake },
  behind: Behind | undefined,
) {
  const service = tokenService(config)
  const passwords = new Passwords()
  const accounts = new Accounts(store, {
    passwords,
    throttle: new Throttle(),
    onLogin: log.onLogin,
    anonymousRule: behind?.anonymousRule,
  })
  const tokens = new Tokens(keySource(config, log.onKeyChange), service, config.tokens.expireAfter / 1000)
  await tokens.prepare().catch(() => undefined) // whoever asks for a token is told
  const timer = setInterval(() => void accounts.flushUses(Date.now()).catch(() => undefined), useInterval)
  return {
    policy: new TokenAccess(accounts, tokens),
    service,
    handlers: tokenHandlers({
      accounts,
      tokens,
      audit: log.audit,
      names: behind?.names,
      intake: log.intake,
      createRefreshToken: config.tokens.refresh
        ? (account, client) => createRefreshToken(store, account, client)
        : undefined,
    }),
    async close() {
      clearInterval(timer)
      await accounts.flushUses(Date.now())
      await passwords.close()
    },
  }
}

/**
 * A refresh token is an access token that its owner did not ask for by name: listed and revoked like the others. It
 * stands for a password, so none is made with anything less.
 * @returns undefined when the password was changed meanwhile, or its user disabled or removed
 */
async function createRefreshToken(
  store: AccessStore,
  account: Account,
  client: string,
): Promise<string | undefined> {
  const { id, text, secretHash } = createAccessToken()
  const now = Date.now()
  const token = {
    id,
    user: account.name,
    name: `${refreshTokenPrefix}${client.replace(/[^\w.-]/g, '').slice(0, 40)} ${id.slice(0, 8)}`,
    secretHash,
    scopes: [{ pattern: '**', permissions: ['admin'] as const }],
    createdAt: now,
    expiresAt: now + refreshDays * 86_400_000,
  }
  return (await store.addRefreshToken(token, account.epoch, mostRefreshTokens)) ? text : undefined
}

/** The configured key signs, where there is one; those of the data folder verify what they signed before. */
function keySource(config: Config, onChange: KeyFileObserver): KeySource {
  const store = new KeyStore(dataPaths(config.data).keys)
  const { keyFile } = config.tokens
  const file = keyFile === undefined ? undefined : new KeyFile(keyFile, onChange)
  return {
    async load() {
      const made = (await store.load()).map(({ key }) => key)
      return file === undefined ? made : [...(await file.load()), ...made]
    },
    async state() {
      return `${await store.state()} ${await file?.state()}`
    },
  }
}
