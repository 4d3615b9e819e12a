import type { RepositoryName } from '../oci/reference.js'

/** The repository that a request means. */
export interface Target {
  /** What is acted on, and what rights are about. */
  readonly repository: RepositoryName
  /** What the client calls it. */
  readonly asked: RepositoryName
  /** The mirror that it belongs to: it is closed to pushes. */
  readonly mirror?: string
  /** The `ns` parameter, where it counted (protocol MI-20). */
  readonly namespace?: string | undefined
  /** Whether the name has no registry in it and fell to a mirror because nothing local has it. */
  readonly isBare?: boolean
}

/** Finds the repository that a name means. */
export interface NameResolver {
  /**
   * @param isRead whether nothing will be changed
   * @param namespace the `ns` parameter
   * @throws RegistryError NAME_INVALID, or DENIED for what no mirror may fetch
   */
  resolve(asked: RepositoryName, isRead: boolean, namespace?: string): Promise<Target>
}
