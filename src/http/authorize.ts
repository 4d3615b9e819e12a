import type { AccessPolicy, Identity, Resource } from '../auth/access.js'
import { RegistryError } from '../oci/errors.js'
import { parseRepositoryName, type RepositoryName } from '../oci/reference.js'
import type { Route } from './routes.js'

/** What a request may go on with. */
export interface Authorized {
  readonly identity: Identity
  /** The repository that the path names, where it names one. */
  readonly repository: RepositoryName | undefined
}

/**
 * Decides about a request from its row in the endpoint table, before a byte of its body is read.
 * @throws RegistryError NAME_INVALID, DENIED
 */
export function authorize(
  route: Route,
  name: string | undefined,
  authorization: string | undefined,
  access: AccessPolicy,
): Authorized {
  const identity = access.identify(authorization)
  const repository = route.resource === 'repository' ? parseRepositoryName(name ?? '') : undefined
  const resource = toResource(route, repository)
  if (resource !== undefined && !access.mayDo(identity, route.action, resource))
    throw new RegistryError('DENIED')
  return { identity, repository }
}

function toResource(route: Route, repository: RepositoryName | undefined): Resource | undefined {
  if (repository !== undefined) return { type: 'repository', name: repository }
  return route.resource === 'catalog' || route.resource === 'registry' ? { type: route.resource } : undefined
}
