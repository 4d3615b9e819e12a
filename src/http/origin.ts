/** Where a request comes from, as the server sees it, or as a proxy tells it that the configuration trusts. */
export interface Origin {
  /** The client's address; undefined when its connection has closed already. */
  readonly ip: string | undefined
  readonly protocol: string
  /** Host and port that the client asked for. */
  readonly host: string | undefined
}

/** What a Host header may hold: nothing that could end a quoted string. */
const hostGrammar = /^[\w.-]+(?::\d{1,5})?$|^\[[0-9a-fA-F:.]+\](?::\d{1,5})?$/

/**
 * The client's address as people write it: IPv4 also where the server listens on all addresses of both kinds. Empty
 * for somebody who has left already.
 */
export function clientAddress({ ip = '' }: Origin): string {
  return plainAddress(ip)
}

/** IPv4 as people write it, also where it came in the clothes of IPv6. */
export function plainAddress(ip: string): string {
  return ip.startsWith('::ffff:') && ip.includes('.') ? ip.slice('::ffff:'.length) : ip
}

/**
 * The address under which the client reaches this registry, without a slash at its end: the configured one, or
 * the one that the client used (protocol AU-09, T-65).
 */
export function publicAddress(origin: Origin, configured: string | undefined): string {
  if (configured !== undefined) return configured
  const host = origin.host !== undefined && hostGrammar.test(origin.host) ? origin.host : 'localhost'
  return `${origin.protocol === 'https' ? 'https' : 'http'}://${host}`
}
