import { lookup as systemLookup } from 'node:dns/promises'
import { BlockList, isIP, isIPv4, isIPv6, type LookupFunction } from 'node:net'

/** An address that a name stands for. */
export interface ResolvedAddress {
  readonly address: string
  readonly family: number
}

/** Resolves a name to all of its addresses; rejects when it has none. */
export type Resolve = (name: string) => Promise<readonly ResolvedAddress[]>

/** A name or an address that must not be connected to: it leads into a network that nobody named. */
export class ForbiddenAddressError extends Error {
  override readonly name = 'ForbiddenAddressError'
  readonly address: string

  constructor(address: string) {
    super(`${address} is a private, local or reserved address`)
    this.address = address
  }
}

/** IPv4 that is not the public internet: special-purpose ranges (RFC 6890), multicast and what is reserved. */
const reservedIPv4 = blockList([
  '0.0.0.0/8',
  '10.0.0.0/8',
  '100.64.0.0/10',
  '127.0.0.0/8',
  '169.254.0.0/16',
  '172.16.0.0/12',
  '192.0.0.0/24',
  '192.0.2.0/24',
  '192.88.99.0/24',
  '192.168.0.0/16',
  '198.18.0.0/15',
  '198.51.100.0/24',
  '203.0.113.0/24',
  '224.0.0.0/4',
  '240.0.0.0/4',
])

/** Of IPv6 only this is the public internet: loopback, fc00::/7, fe80::/10 and ff00::/8 lie outside. */
const publicIPv6 = blockList(['2000::/3'])
/** Teredo and its neighbours, documentation, 6to4: they carry or hide other addresses. */
const reservedIPv6 = blockList(['2001::/23', '2001:db8::/32', '2002::/16', '3fff::/20'])
const loopback = blockList(['127.0.0.0/8', '::1'])

/** Ranges whose last 32 bits are an IPv4 address: mapped addresses and NAT64 (RFC 6052). */
const embeddings = ['0:0:0:0:0:ffff', '64:ff9b:0:0:0:0']

/**
 * Decides which addresses may be connected to (reliability S42). Public ones may; others only where the
 * configuration names them: in its list, or as the host of a URL, and then for that host alone.
 */
export class AddressGuard {
  readonly #allowed: BlockList
  readonly #named: ReadonlySet<string>
  readonly #resolve: Resolve

  /**
   * @param addresses addresses and CIDR ranges that are allowed although they are private
   * @param urls the configured URLs; an address or `localhost` as their host names itself
   * @throws Error when an address cannot be read
   */
  constructor(addresses: readonly string[], urls: readonly URL[], resolve: Resolve = resolveWithSystem) {
    this.#allowed = blockList(addresses)
    this.#named = new Set(urls.map(({ hostname }) => bareHost(hostname)))
    this.#resolve = resolve
  }

  /** Whether this host may be reached at this address. */
  permits(host: string, address: string): boolean {
    if (isIP(address) === 0) return false
    if (this.#named.has(host) && (host === address || (host === 'localhost' && contains(loopback, address))))
      return true
    if (contains(this.#allowed, address)) return true
    const embedded = embeddedIPv4(address)
    if (embedded !== undefined) return contains(this.#allowed, embedded) || !contains(reservedIPv4, embedded)
    if (isIPv4(address)) return !contains(reservedIPv4, address)
    return contains(publicIPv6, address) && !contains(reservedIPv6, address)
  }

  /**
   * Checks a host that is an address itself: no lookup is made for it, so {@link lookup} never sees it.
   * @throws ForbiddenAddressError
   */
  checkLiteral(host: string): void {
    if (isIP(host) !== 0 && !this.permits(host, host)) throw new ForbiddenAddressError(host)
  }

  /**
   * The lookup of a socket: gives only addresses that are permitted, and the socket connects to one of these very
   * addresses. A name that answers differently the next time is checked anew then.
   */
  readonly lookup: LookupFunction = (name, options, callback) => {
    this.#permitted(name).then(
      (found) => {
        const [first] = found
        if (options.all === true) callback(null, [...found])
        else callback(null, first.address, first.family)
      },
      (error) => callback(error, []),
    )
  }

  async #permitted(name: string): Promise<[ResolvedAddress, ...ResolvedAddress[]]> {
    const found = await this.#resolve(name)
    const [first, ...others] = found.filter(({ address }) => this.permits(name, address))
    if (first !== undefined) return [first, ...others]
    throw new ForbiddenAddressError(found[0]?.address ?? name)
  }
}

/** The host of a URL without the brackets of an IPv6 address. */
export function bareHost(hostname: string): string {
  return hostname.startsWith('[') ? hostname.slice(1, -1) : hostname
}

/**
 * A list of addresses and CIDR ranges.
 * @throws Error naming the entry that is neither
 */
export function blockList(entries: readonly string[]): BlockList {
  const list = new BlockList()
  for (const entry of entries) {
    const [address = '', bits] = entry.split('/')
    const family = isIPv4(address) ? 'ipv4' : 'ipv6'
    const longest = family === 'ipv4' ? 32 : 128
    const prefix = bits === undefined ? longest : /^\d{1,3}$/.test(bits) ? Number(bits) : -1
    if (isIP(address) === 0 || prefix < 0 || prefix > longest || entry.split('/').length > 2) {
      throw new Error(`"${entry}" is not an IP address or a CIDR range`)
    }
    list.addSubnet(address, prefix, family)
  }
  return list
}

/** Whether an address is in the list. Text that is no address is in none. */
export function contains(list: BlockList, address: string): boolean {
  const [bare = ''] = address.split('%')
  if (isIPv4(bare)) return list.check(bare, 'ipv4')
  return isIPv6(bare) && list.check(bare, 'ipv6')
}

function embeddedIPv4(address: string): string | undefined {
  if (!isIPv6(address) || address.includes('%')) return undefined
  const groups = groupsOf(address)
  if (!embeddings.includes(groups.slice(0, 6).join(':'))) return undefined
  return groups
    .slice(6)
    .map((group) => Number.parseInt(group, 16))
    .map((group) => `${group >> 8}.${group & 255}`)
    .join('.')
}

/** The eight groups of an IPv6 address, without leading zeros. */
function groupsOf(address: string): string[] {
  // The URL parser knows every way of writing one.
  const [left = '', right] = bareHost(new URL(`http://[${address}]`).hostname).split('::')
  const before = left === '' ? [] : left.split(':')
  const after = right === undefined || right === '' ? [] : right.split(':')
  return [...before, ...Array<string>(8 - before.length - after.length).fill('0'), ...after]
}

function resolveWithSystem(name: string): Promise<readonly ResolvedAddress[]> {
  return systemLookup(name, { all: true })
}
