import type { Account, Accounts } from '../auth/accounts.js'
import { formatScope, parseScopes, type Scope } from '../auth/scopes.js'
import { identityOf, loginBasic, readBasic, wrongPassword } from '../auth/token-access.js'
import type { Tokens } from '../auth/tokens.js'
import { RegistryError } from '../oci/errors.js'
import type { NameResolver } from '../registry/names.js'
import type { Audit } from './audit.js'
import { withBody } from './body.js'
import { type Exchange, hasBody } from './exchange.js'
import type { Intake } from './intake.js'

/** Characters of the rights in a token, so that the token stays below what servers and proxies take. */
const longestAccess = 4500

/** Largest form, in bytes. */
const largestForm = 64 * 1024

/** What the handlers need. */
export interface TokenHandlerOptions {
  readonly accounts: Accounts
  readonly tokens: Tokens
  /**
   * Makes a refresh token for an account that a password has proven, unless that account is not what it was any more;
   * undefined where they are switched off (protocol TK-08).
   */
  readonly createRefreshToken: ((account: Account, client: string) => Promise<string | undefined>) | undefined
  readonly audit: Audit
  /** Finds the repository that a scope's name means; undefined where every name means itself. */
  readonly names: NameResolver | undefined
  readonly intake: Intake
}

/** Who asks for a token. */
interface Applicant {
  readonly account: Account
  /** What he proved it with: his password, or an access token. */
  readonly secret: string
}

/** What a client asks a token for. */
interface TokenRequest {
  readonly service: string | null
  readonly scopes: readonly string[]
  readonly client: string
  readonly isOffline: boolean
}

/** The token endpoint: GET as Docker defined it, POST as OAuth2 (protocol 9.2 and 9.3). */
export function tokenHandlers(options: TokenHandlerOptions) {
  const { accounts, tokens, audit } = options

  async function grant(exchange: Exchange, applicant: Applicant, asked: TokenRequest) {
    const { account } = applicant
    exchange.identity = identityOf(account)
    if (asked.service !== null && asked.service !== tokens.service) {
      throw new RegistryError('REQUEST_INVALID', `this registry's service is "${tokens.service}"`)
    }
    const scopes = limit(withOthers(options.names, parseScopes(asked.scopes)), account)
    const refresh = asked.isOffline ? await offer(applicant, asked) : undefined
    const lifetime = tokens.lifetimeUntil(account.accessToken?.expiresAt)
    const claims = { sub: account.name, epoch: account.epoch, accessToken: account.accessToken?.id, scopes }
    const token = await tokens.issue(claims, lifetime)
    const scope = scopes.map(formatScope).join(' ')
    const client = asked.client.slice(0, 100)
    audit(exchange, 'token', { scope: scope.slice(0, 1000), client })
    exchange.sendJson(
      {
        token,
        access_token: token,
        expires_in: lifetime,
        scope,
        ...(refresh === undefined ? {} : { refresh_token: refresh }),
      },
      { 'Cache-Control': 'no-store' },
    )
  }

  /**
   * A refresh token, where there are any. With an access token in hand it is that one: another would have to inherit its
   * scopes, its end and its revocation, and so can do nothing more.
   */
  async function offer({ account, secret }: Applicant, asked: TokenRequest): Promise<string | undefined> {
    if (account.name === '' || options.createRefreshToken === undefined) return undefined
    if (account.accessToken !== undefined) return secret
    return (await options.createRefreshToken(account, asked.client)) ?? refuse()
  }

  function refuse(): never {
    throw new RegistryError('UNAUTHORIZED', wrongPassword)
  }

  return {
    /** TK-01 … TK-07: without credentials, or with empty ones, a token for what everybody may do. */
    async getToken(exchange: Exchange): Promise<void> {
      const { query } = exchange
      const { authorization } = exchange.request.headers
      const applicant = await identify(accounts, authorization, exchange.address)
      if (applicant === undefined) return refuse()
      await grant(exchange, applicant, {
        service: query.get('service'),
        scopes: query.getAll('scope'),
        client: query.get('client_id') ?? '',
        isOffline: query.get('offline_token') === 'true',
      })
    },

    /** TK-30 … TK-36. */
    async postToken(exchange: Exchange): Promise<void> {
      const form = await readForm(exchange, options.intake)
      const asked = {
        service: form.get('service'),
        scopes: form.getAll('scope'),
        client: form.get('client_id') ?? '',
        isOffline: form.get('access_type') === 'offline',
      }
      switch (form.get('grant_type')) {
        case 'password': {
          const secret = form.get('password') ?? ''
          const account = await accounts.login(form.get('username') ?? '', secret, exchange.address)
          if (account === undefined) return refuse()
          return grant(exchange, { account, secret }, asked)
        }
        case 'refresh_token': {
          const secret = form.get('refresh_token') ?? ''
          const account = await accounts.loginWithToken(secret, exchange.address)
          if (account === undefined) return refuse()
          return grant(exchange, { account, secret }, { ...asked, isOffline: true })
        }
        default:
          throw new RegistryError('REQUEST_INVALID', 'grant_type must be password or refresh_token')
      }
    },
  }
}

/**
 * A client names a repository as its user does, and what it means may lie behind a mirror: the right to pull is for
 * that one, too (protocol MI-02). What is there is not looked at: the answer would tell it (reliability S88). What was
 * asked for comes first, since it is the last to be left out.
 */
function withOthers(names: NameResolver | undefined, scopes: readonly Scope[]): Scope[] {
  const others = scopes.flatMap((scope): Scope[] => {
    if (names === undefined || scope.type !== 'repository' || !scope.actions.includes('pull')) return []
    return names.othersOf(scope.name).map((name) => ({ type: 'repository', name, actions: ['pull'] }))
  })
  return [...scopes, ...others]
}

/**
 * TK-05: what the account may not do is left out; that is no error. JW-05: what would make the token too long
 * for a header is left out as well.
 */
function limit(scopes: readonly Scope[], account: Account): Scope[] {
  let room = longestAccess
  return scopes.flatMap((scope): Scope[] => {
    // The catalog itself shows only what the account may pull.
    const actions =
      scope.type === 'registry'
        ? scope.actions
        : scope.actions.filter((action) => account.may(action, scope.name))
    const granted = { ...scope, actions } as Scope
    room -= JSON.stringify(granted).length
    return actions.length === 0 || room < 0 ? [] : [granted]
  })
}

async function identify(
  accounts: Accounts,
  authorization: string | undefined,
  address: string,
): Promise<Applicant | undefined> {
  if (authorization === undefined) return { account: await accounts.anonymous(), secret: '' }
  const [, value] = /^basic +(.*)$/i.exec(authorization) ?? []
  const account = value === undefined ? undefined : await loginBasic(accounts, value.trim(), address)
  if (value === undefined || account === undefined) return undefined
  return { account, secret: readBasic(value.trim())?.password ?? '' }
}

async function readForm({ request, response }: Exchange, intake: Intake): Promise<URLSearchParams> {
  if (!hasBody(request)) return new URLSearchParams()
  const tooLarge = () => new RegistryError('REQUEST_INVALID', 'the form is too large')
  const how = { intake, limit: largestForm, tooLarge }
  return withBody(request, response, how, (bytes) => new URLSearchParams(bytes.toString('utf8')))
}
