import type { IncomingMessage } from 'node:http'
import type { AccessPolicy, Caller, Mount, Resource } from '../auth/access.js'
import { type ErrorKind, RegistryError } from '../oci/errors.js'
import { isRepositoryName, parseRepositoryName, type RepositoryName } from '../oci/reference.js'
import type { Asker, NameRequest, NameResolver, Target } from '../registry/names.js'
import { isForwarded } from './forwarded.js'
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
  const isOpen = route.resource === 'open'
  const authorization = isOpen ? undefined : request.headers.authorization
  const caller = await access.authenticate({
    authorization,
    address,
    isForwarded: !isOpen && isForwarded(request),
  })
  onCaller(caller)
  const asker = askerOf(route, access, caller, address)
  const target =
    route.resource === 'repository' ? await findTarget(route, request, names, name, asker) : undefined
  const resource = toResource(route, target)
  if (resource !== undefined) access.authorize(caller, route.action, resource, mountOf(route, request))
  // Before this, an answer would tell strangers what the mirror is set up for (reliability S92).
  if (target?.denial !== undefined) throw new RegistryError('DENIED', target.denial)
  if (target?.mirror !== undefined) refuseChange(route, caller, target)
  return { caller, target }
}

function askerOf(route: Route, access: AccessPolicy, caller: Caller, address: string): Asker {
  const mayPull = (name: RepositoryName) => access.permits(caller, 'pull', name)
  return {
    sender: `${caller.identity.name} ${address}`,
    sees: (name) => mayPull(name) || access.permits(caller, route.action, name),
    mayPull,
    intentOf: (name) => caller.intentOf(name),
  }
}

function findTarget(
  route: Route,
  request: IncomingMessage,
  names: NameResolver | undefined,
  name: string | undefined,
  asker: Asker,
): Target | Promise<Target> {
  const asked = parseRepositoryName(name ?? '')
  if (names === undefined) return { repository: asked, asked }
  const namespace = queryOf(request).get('ns') ?? undefined
  return names.resolve({ asked, namespace, use: useOf(route), isHead: request.method === 'HEAD' }, asker)
}

function useOf({ action, handler }: Route): NameRequest['use'] {
  if (action !== 'pull') return 'change'
  if (handler === 'getBlob') return 'blob'
  return handler === 'getManifest' ? 'manifest' : 'list'
}

/** PX-07: what a mirror holds is the upstream's; only who administers it may throw something out. */
function refuseChange(route: Route, caller: Caller, { repository, mirror }: Target): void {
  if (route.action === 'pull' || (route.action === 'delete' && caller.mayAdminister(repository))) return
  throw new RegistryError('UNSUPPORTED', `${repository} is a mirror of ${mirror}: it is closed to changes`)
}

/** What the registry has not got, by what was asked for. */
const unknownOf: Partial<Record<Route['handler'], ErrorKind>> = {
  getManifest: 'MANIFEST_UNKNOWN',
  getBlob: 'BLOB_UNKNOWN',
  listTags: 'NAME_UNKNOWN',
}

/** Seconds after which an upstream that failed may be asked again, where nobody knows better. */
const shortPause = 1

/**
 * What is said of a bare name that a mirror was asked for and that was not found. Nobody may tell a repository that
 * is here and forbidden from one that neither is here nor upstream. And where it may be a push that asks, an upstream
 * that fails has nothing: clients end a push at any other answer. Then there is a `Retry-After`, which a 404 of what
 * is known not to be there has not got.
 * @returns the error to answer with
 * @throws as {@link authorize} does for the name itself
 */
export function settleUnknown(
  route: Route,
  access: AccessPolicy,
  { caller, target }: Authorized,
  error: unknown,
): unknown {
  if (target?.isBare !== true || !(error instanceof RegistryError)) return error
  const isSilent = error.kind === 'TOOMANYREQUESTS' || error.kind.startsWith('UPSTREAM_')
  const kind = isSilent && target.isMaybePush === true ? unknownOf[route.handler] : undefined
  if (kind === undefined && error.status !== 404) return error
  access.authorize(caller, 'pull', { type: 'repository', name: target.asked }, undefined)
  if (kind === undefined) return error
  const { message, retryAfter = shortPause } = error
  return new RegistryError(kind, message, { retryAfter, cause: error })
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
