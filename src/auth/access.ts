import type { RepositoryName } from '../oci/reference.js'

/** Who asks. The empty name is anonymous. */
export interface Identity {
  readonly name: string
}

export const anonymous: Identity = { name: '' }

/** What is asked for, in the protocol's own words. */
export type Action = 'pull' | 'push' | 'delete'

/** What is acted on. */
export type Resource =
  | { readonly type: 'repository'; readonly name: RepositoryName }
  /** The list of repositories. */
  | { readonly type: 'catalog' }
  /** The registry itself: `/v2/` and what is not about a repository. */
  | { readonly type: 'registry' }

/** The one place that says yes or no. */
export interface AccessPolicy {
  /** Who sent these credentials (the Authorization header). */
  identify(authorization: string | undefined): Identity
  mayDo(identity: Identity, action: Action, resource: Resource): boolean
}

/**
 * Lets everybody do everything: what `auth: none` says, and what a server that only this machine reaches does
 * unless told otherwise.
 */
export const openAccess: AccessPolicy = {
  identify: () => anonymous,
  mayDo: () => true,
}
