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
 * What stands for one client among addresses: an IPv4 address, or the first 64 bits of an IPv6 address, since a client has
 * the rest to choose from.
 */
export function networkOf(address: string): string {
  if (!address.includes(':')) return address
  const [head = '', tail] = (address.split('%', 1)[0] ?? '').toLowerCase().split('::', 2)
  const groups = (text: string | undefined) => (text === undefined || text === '' ? [] : text.split(':'))
  // An IPv4 address at the end stands for two groups.
  const behind = groups(tail).flatMap((group) => (group.includes('.') ? ['0', '0'] : [group]))
  const before = groups(head)
  const zeros = tail === undefined ? [] : Array(Math.max(0, 8 - before.length - behind.length)).fill('0')
  const all = [...before, ...zeros, ...behind].slice(0, 4).map((group) => group.replace(/^0+(?=.)/, ''))
  return `${all.join(':')}::/64`
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
