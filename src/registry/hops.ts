import { AsyncLocalStorage } from 'node:async_hooks'

/** Names that are looked at: a request that has come further comes no further. */
export const mostHops = 20

/** How an installation of this program is called in `Via`; what other proxies write there is nobody's business. */
const hopName = /\bboathouse-[0-9a-f]{32}\b/g

const hops = new AsyncLocalStorage<readonly string[]>()

/**
 * Does the work of a request, which knows through which installations it has come.
 * @param via the request's header `Via` (RFC 9110, 7.6.3)
 */
export function withHops<T>(via: string | undefined, work: () => T): T {
  const names = via?.match(hopName) ?? []
  // Clients and other proxies cost nothing.
  return names.length === 0 ? work() : hops.run(names.slice(0, mostHops), work)
}

/** The installations through which the request has come that is being worked for, the first one first. */
export function currentHops(): readonly string[] {
  return hops.getStore() ?? []
}
