import type { Action } from '../auth/access.js'
import { tokenPath } from './challenge.js'
import type { Exchange } from './exchange.js'

/** What the routes lead to. */
export interface Handlers {
  getBase(exchange: Exchange): Promise<void>
  getBlob(exchange: Exchange): Promise<void>
  deleteBlob(exchange: Exchange): Promise<void>
  startUpload(exchange: Exchange): Promise<void>
  getUpload(exchange: Exchange): Promise<void>
  appendChunk(exchange: Exchange): Promise<void>
  finishUpload(exchange: Exchange): Promise<void>
  cancelUpload(exchange: Exchange): Promise<void>
  getManifest(exchange: Exchange): Promise<void>
  putManifest(exchange: Exchange): Promise<void>
  deleteManifest(exchange: Exchange): Promise<void>
  listTags(exchange: Exchange): Promise<void>
  listReferrers(exchange: Exchange): Promise<void>
  listRepositories(exchange: Exchange): Promise<void>
  getToken(exchange: Exchange): Promise<void>
  postToken(exchange: Exchange): Promise<void>
  pingV1(exchange: Exchange): Promise<void>
  searchV1(exchange: Exchange): Promise<void>
  getHealth(exchange: Exchange): Promise<void>
  getReadiness(exchange: Exchange): Promise<void>
  getMetrics(exchange: Exchange): Promise<void>
}

/** One row of the endpoint table. */
export interface Route {
  readonly method: 'GET' | 'POST' | 'PATCH' | 'PUT' | 'DELETE'
  /** As the router sees it: a repository's name is one segment (see foldPath). */
  readonly path: string
  /**
   * Whom the access policy is asked about: a repository that the path names, the catalog, the registry as such,
   * or nobody: `anyone` finds out who asks and shows what he may see, `open` does not even do that.
   */
  readonly resource: 'repository' | 'catalog' | 'registry' | 'anyone' | 'open'
  readonly action: Action
  /** Also the route's label in metrics and logs. */
  readonly handler: keyof Handlers
}

const blob = '/v2/:name/blobs/:digest'
const manifest = '/v2/:name/manifests/:reference'
const upload = '/v2/:name/blobs/uploads/:upload'

/**
 * Every endpoint of the registry. GET rows answer HEAD as well; another method on a path of the table is 405.
 * Cancelling an upload is part of pushing, not deleting (protocol UP-81).
 */
export const routes: readonly Route[] = [
  { method: 'GET', path: '/v2/', resource: 'registry', action: 'pull', handler: 'getBase' },
  { method: 'GET', path: '/v2/_catalog', resource: 'catalog', action: 'pull', handler: 'listRepositories' },

  {
    method: 'POST',
    path: '/v2/:name/blobs/uploads/',
    resource: 'repository',
    action: 'push',
    handler: 'startUpload',
  },
  {
    method: 'POST',
    path: '/v2/:name/blobs/uploads',
    resource: 'repository',
    action: 'push',
    handler: 'startUpload',
  },
  { method: 'GET', path: upload, resource: 'repository', action: 'push', handler: 'getUpload' },
  { method: 'PATCH', path: upload, resource: 'repository', action: 'push', handler: 'appendChunk' },
  { method: 'PUT', path: upload, resource: 'repository', action: 'push', handler: 'finishUpload' },
  { method: 'DELETE', path: upload, resource: 'repository', action: 'push', handler: 'cancelUpload' },

  { method: 'GET', path: blob, resource: 'repository', action: 'pull', handler: 'getBlob' },
  { method: 'DELETE', path: blob, resource: 'repository', action: 'delete', handler: 'deleteBlob' },

  { method: 'GET', path: manifest, resource: 'repository', action: 'pull', handler: 'getManifest' },
  { method: 'PUT', path: manifest, resource: 'repository', action: 'push', handler: 'putManifest' },
  { method: 'DELETE', path: manifest, resource: 'repository', action: 'delete', handler: 'deleteManifest' },

  { method: 'GET', path: '/v2/:name/tags/list', resource: 'repository', action: 'pull', handler: 'listTags' },
  {
    method: 'GET',
    path: '/v2/:name/referrers/:digest',
    resource: 'repository',
    action: 'pull',
    handler: 'listReferrers',
  },

  { method: 'GET', path: tokenPath, resource: 'open', action: 'pull', handler: 'getToken' },
  { method: 'POST', path: tokenPath, resource: 'open', action: 'pull', handler: 'postToken' },

  { method: 'GET', path: '/v1/_ping', resource: 'open', action: 'pull', handler: 'pingV1' },
  { method: 'GET', path: '/v1/search', resource: 'anyone', action: 'pull', handler: 'searchV1' },

  { method: 'GET', path: '/healthz', resource: 'open', action: 'pull', handler: 'getHealth' },
  { method: 'GET', path: '/readyz', resource: 'open', action: 'pull', handler: 'getReadiness' },
  { method: 'GET', path: '/metrics', resource: 'open', action: 'pull', handler: 'getMetrics' },
]

/** Methods that a path of the table takes; none when no row has such a path. */
export function allowedMethods(foldedUrl: string): string[] {
  const path = foldedUrl.split('?', 1)[0] ?? ''
  const allowed = new Set<string>()
  for (const { pattern, method } of patterns) {
    if (!pattern.test(path)) continue
    if (method === 'GET') allowed.add('HEAD')
    allowed.add(method)
  }
  return [...allowed].sort()
}

/** The uploads path fits the blob's pattern, too: its own rows come first and must be the only ones. */
const patterns = routes.map(({ method, path }) => ({
  method,
  pattern: new RegExp(
    `^${path.replace('/:digest', '/(?!uploads/?$)[^/]+').replaceAll(/:[a-z]+/g, '[^/]+')}$`,
  ),
}))
