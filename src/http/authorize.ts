import type { IncomingMessage } from 'node:http'
import type { AccessPolicy, Caller, Resource } from '../auth/access.js'
import { isRepositoryName, parseRepositoryName, type RepositoryName } from '../oci/reference.js'
import type { Route } from './routes.js'

/** What a request may go on with. */
export interface Authorized {
  readonly caller: Caller
  /** The repository that the path names, where it names one. */
  readonly repository: RepositoryName | undefined
}

/**
 * Decides about a request from its row in the endpoint table, before a byte of its body is read.
 * @param name the repository in the path, as it came
 * @param address the client's
 * @throws RegistryError NAME_INVALID, DENIED, TOOMANYREQUESTS; ChallengeError
 */
export async function authorize(
  route: Route,
  request: IncomingMessage,
  access: AccessPolicy,
  { name, address }: { readonly name: string | undefined; readonly address: string },
): Promise<Authorized> {
  const authorization = route.resource === 'open' ? undefined : request.headers.authorization
  const caller = await access.authenticate({ authorization, address })
  const repository = route.resource === 'repository' ? parseRepositoryName(name ?? '') : undefined
  const resource = toResource(route, repository)
  if (resource !== undefined) access.authorize(caller, route.action, resource, mountFrom(route, request))
  return { caller, repository }
}

function toResource(route: Route, repository: RepositoryName | undefined): Resource | undefined {
  if (repository !== undefined) return { type: 'repository', name: repository }
  switch (route.resource) {
    case 'catalog':
    case 'registry':
      return { type: route.resource }
    case 'anyone':
      return { type: 'public' }
    default:
      return undefined
  }
}

/** UP-92: one challenge names both repositories of a mount. */
function mountFrom(route: Route, request: IncomingMessage): string | undefined {
  if (route.handler !== 'startUpload') return undefined
  const query = request.url?.split('?', 2)[1]
  const from = query === undefined ? null : new URLSearchParams(query).get('from')
  return from !== null && isRepositoryName(from) ? from : undefined
}
