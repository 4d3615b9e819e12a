import type { RepositoryName } from '../oci/reference.js'

/** The repository that a request means. */
export interface Target {
  /** What is acted on, and what rights are about. */
  readonly repository: RepositoryName
  /** What the client calls it. */
  readonly asked: RepositoryName
  /** The mirror that it belongs to: it is closed to pushes. */
  readonly mirror?: string
  /** Why the mirror fetches nothing of it; to be told to those alone who may ask for it. */
  readonly denial?: string | undefined
  /** The `ns` parameter, where it counted (protocol MI-20). */
  readonly namespace?: string | undefined
  /** Whether the name has no registry in it and fell to a mirror because nothing local has it. */
  readonly isBare?: boolean
  /** Whether such a name may be asked for because it is about to be pushed. */
  readonly isMaybePush?: boolean
}

/**
 * What a read of a repository belongs to, as far as its sender can tell: clients look for a name and for its layers
 * before they push them. `unknown` where a push and a pull look the same.
 */
export type Intent = 'push' | 'pull' | 'unknown'

/** Who asks for a name. */
export interface Asker {
  /** The same for one sender's requests, and as a rule for his alone. */
  readonly sender: string
  /** Whether he may do in a repository what he asks for, or pull from it: then it is no secret that it is there. */
  sees(repository: RepositoryName): boolean
  /** Whether he may pull from a repository. */
  mayPull(repository: RepositoryName): boolean
  intentOf(repository: RepositoryName): Intent
}

/** What is asked for. */
export interface NameRequest {
  readonly asked: RepositoryName
  /** The `ns` parameter. */
  readonly namespace?: string | undefined
  /** `change` is whatever needs more than the right to pull. */
  readonly use: 'manifest' | 'blob' | 'list' | 'change'
  readonly isHead: boolean
}

/** Finds the repository that a name means. */
export interface NameResolver {
  /**
   * What the asker may not see is for him as if it were not there: the answer does not depend on it.
   * @throws RegistryError NAME_INVALID
   */
  resolve(request: NameRequest, asker: Asker): Promise<Target>
  /** What a name may mean beside itself, whatever is there: a token for the name is good for these, too. */
  othersOf(name: RepositoryName): readonly RepositoryName[]
}
