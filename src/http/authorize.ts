import type { IncomingMessage } from 'node:http'
import type { AccessPolicy, Caller, Mount, Resource } from '../auth/access.js'
import { RegistryError } from '../oci/errors.js'
import { isRepositoryName, parseRepositoryName } from '../oci/reference.js'
import type { NameResolver, Target } from '../registry/names.js'
import type { Route } from './routes.js'

/** What a request may go on with. */
export interface Authorized {
  readonly caller: Caller
  /** The repository that the request means, where its path names one. */
  readonly target: Target | undefined
}

/** What decides. */
export interface Authority {
  readonly access: AccessPolicy
  /** Undefined where every name means itself. */
  readonly names: NameResolver | undefined
}

/**
 * Decides about a request from its row in the endpoint table, before a byte of its body is read.
 * @param name the repository in the path, as it came
 * @param address the client's
 * @param onCaller hears who asks as soon as that is known: the log names him also when he is refused
 * @throws RegistryError NAME_INVALID, DENIED, TOOMANYREQUESTS; ChallengeError
 */
export async function authorize(
  route: Route,
  request: IncomingMessage,
  { access, names }: Authority,
  {
    name,
    address,
    onCaller,
  }: {
    readonly name: string | undefined
    readonly address: string
    readonly onCaller: (caller: Caller) => void
  },
): Promise<Authorized> {
  const authorization = route.resource === 'open' ? undefined : request.headers.authorization
  const caller = await access.authenticate({ authorization, address })
  onCaller(caller)
  const target = route.resource === 'repository' ? await findTarget(route, request, names, name) : undefined
  const resource = toResource(route, target)
  if (resource !== undefined) access.authorize(caller, route.action, resource, mountOf(route, request))
  if (target?.mirror !== undefined) refuseChange(route, caller, target)
  return { caller, target }
}

function findTarget(
  route: Route,
  request: IncomingMessage,
  names: NameResolver | undefined,
  name: string | undefined,
): Target | Promise<Target> {
  const asked = parseRepositoryName(name ?? '')
  if (names === undefined) return { repository: asked, asked }
  return names.resolve(asked, route.action === 'pull', queryOf(request).get('ns') ?? undefined)
}

/** PX-07: what a mirror holds is the upstream's; only who administers it may throw something out. */
function refuseChange(route: Route, caller: Caller, { repository, mirror }: Target): void {
  if (route.action === 'pull' || (route.action === 'delete' && caller.mayAdminister(repository))) return
  throw new RegistryError('UNSUPPORTED', `${repository} is a mirror of ${mirror}: it is closed to changes`)
}

/**
 * What nobody may tell from each other: a repository that is here and forbidden, and one that neither is here nor
 * upstream. To be called when a bare name was found nowhere.
 * @throws as {@link authorize} does for the name itself
 */
export function hideUnknown(access: AccessPolicy, { caller, target }: Authorized): void {
  if (target?.isBare !== true) return
  access.authorize(caller, 'pull', { type: 'repository', name: target.asked }, undefined)
}

function toResource(route: Route, target: Target | undefined): Resource | undefined {
  if (target !== undefined) {
    const { repository, asked, isBare } = target
    return { type: 'repository', name: repository, ...(isBare === true ? { asked } : {}) }
  }
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
function mountOf(route: Route, request: IncomingMessage): Mount | undefined {
  if (route.handler !== 'startUpload') return undefined
  const query = queryOf(request)
  const from = query.get('from')
  if (from === null) return query.has('mount') ? { from: undefined } : undefined
  return isRepositoryName(from) ? { from } : undefined
}

function queryOf(request: IncomingMessage): URLSearchParams {
  return new URLSearchParams(request.url?.split('?', 2)[1] ?? '')
}
