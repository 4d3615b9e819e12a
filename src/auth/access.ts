import { RegistryError } from '../oci/errors.js'
import type { RepositoryName } from '../oci/reference.js'
import type { Action } from './grants.js'

export type { Action }

/** Who asks. The empty name is anonymous. */
export interface Identity {
  readonly name: string
  /** The access token that proved it, itself or by what was got with it. Neither its name nor its id is secret. */
  readonly accessToken?: { readonly id: string; readonly name: string } | undefined
}

export const anonymous: Identity = { name: '' }

/** What is acted on. */
export type Resource =
  | {
      readonly type: 'repository'
      readonly name: RepositoryName
      /** What the client calls it, and will ask a token for, where that is another name. */
      readonly asked?: RepositoryName
    }
  /** The list of repositories. */
  | { readonly type: 'catalog' }
  /** The registry itself: `/v2/`. */
  | { readonly type: 'registry' }
  /** What shows everybody what he may see: only false credentials are refused. */
  | { readonly type: 'public' }

/** Where a blob is to be mounted from; undefined is wherever the caller may. */
export interface Mount {
  readonly from: string | undefined
}

/** What a request says about who sent it. */
export interface Credentials {
  /** The Authorization header. */
  readonly authorization: string | undefined
  /** The client's address, behind trusted proxies the one that they name. */
  readonly address: string
  /** Whether the request came through a proxy, and is not one that anybody may make. */
  readonly isForwarded: boolean
}

/** Somebody who asks, with what he may do. */
export interface Caller {
  readonly identity: Identity
  /** Whether the caller may do this in the repository, now: never more than his grants say, nor than his token is for. */
  may(action: Action, repository: RepositoryName): boolean
  /** Whether lists may show the caller this repository: a token for the catalog is for all that its owner may pull. */
  maySee(repository: RepositoryName): boolean
  /** Whether the caller may take blobs over from this repository: he may pull them, or his token is for such mounts. */
  mayMountFrom(repository: RepositoryName): boolean
  /** Whether the caller may do what only those may who look after the repository. */
  mayAdminister(repository: RepositoryName): boolean
  /**
   * What the names of all repositories begin with in which the caller may do anything, in order, none covering another:
   * so that lists need not look at the others.
   */
  reach(): readonly string[]
  /**
   * Whether a read of this repository belongs to a push, as far as he can tell: `push` when his token was got for
   * one, `pull` when he may not push there, `unknown` when he may, or has not said who he is.
   */
  intentOf(repository: RepositoryName): 'push' | 'pull' | 'unknown'
}

/** The one place that says yes or no. */
export interface AccessPolicy {
  /**
   * Finds out who asks.
   * @throws ChallengeError for credentials that are wrong, expired or revoked
   * @throws RegistryError TOOMANYREQUESTS for somebody who guesses
   */
  authenticate(credentials: Credentials): Caller | Promise<Caller>
  /** @throws ChallengeError, or RegistryError DENIED, when the caller may not do this */
  authorize(caller: Caller, action: Action, resource: Resource, mount: Mount | undefined): void
  /** Whether {@link authorize} would let him do this in the repository. */
  permits(caller: Caller, action: Action, repository: RepositoryName): boolean
}

/**
 * "Tell me who you are, or get a token for this" (401). The reply carries a challenge that tells where
 * (protocol 9.1).
 */
export class ChallengeError extends RegistryError {
  /** What a token is needed for, as clients ask for it; undefined for `/v2/`. */
  readonly scope: string | undefined
  /** Why the token that was sent does not do; undefined when none was sent (protocol AU-08). */
  readonly problem: 'invalid_token' | 'insufficient_scope' | undefined

  constructor(
    scope: string | undefined,
    problem: 'invalid_token' | 'insufficient_scope' | undefined,
    message?: string,
  ) {
    super('UNAUTHORIZED', message)
    this.scope = scope
    this.problem = problem
  }
}

const everybody: Caller = {
  identity: anonymous,
  may: () => true,
  maySee: () => true,
  mayMountFrom: () => true,
  mayAdminister: () => false,
  reach: () => [''],
  intentOf: () => 'unknown',
}

/** Whether this is the caller that {@link openAccess} makes of everybody. */
export function isEverybody(caller: Caller): boolean {
  return caller === everybody
}

/** Lets everybody do everything: what `auth: none` says. */
export const openAccess: AccessPolicy = {
  authenticate: () => everybody,
  authorize: () => undefined,
  permits: () => true,
}
