import type { IncomingMessage } from 'node:http'
import { BlockList, isIP, isIPv4, isIPv6 } from 'node:net'
import { hostname, networkInterfaces } from 'node:os'
import { RegistryError } from '../oci/errors.js'
import type { Origin } from './origin.js'

/** Whom a server answers: see docs/decisions/0019-what-clients-can-hold.md. */
export interface ForeignRules {
  /** Whether nobody logs in. */
  readonly isOpen: boolean
  /** Whether only this machine reaches the server by itself. */
  readonly isLocal: boolean
  /** The address that clients use, where it is configured. */
  readonly publicUrl: string | undefined
}

const safeMethods = new Set(['GET', 'HEAD', 'OPTIONS', 'TRACE'])

/** Endings by which a network names its machines. Others may take such a name there: this machine's own is known alone. */
const networkEndings = ['.local', '.lan', '.internal', '.home.arpa']

/** What containers call the machine around them. */
const outerNames = ['host.docker.internal', 'host.containers.internal']

/** Host headers that are remembered as known. */
const mostRemembered = 100

/** Networks whose addresses are nobody's on the Internet: those of containers, machines and offices. */
const privateNetworks = new BlockList()
for (const [network, bits] of [
  ['127.0.0.0', 8],
  ['10.0.0.0', 8],
  ['172.16.0.0', 12],
  ['192.168.0.0', 16],
  ['169.254.0.0', 16],
  ['100.64.0.0', 10],
] as const) {
  privateNetworks.addSubnet(network, bits, 'ipv4')
}
privateNetworks.addAddress('::1', 'ipv6')
privateNetworks.addSubnet('fc00::', 7, 'ipv6')
privateNetworks.addSubnet('fe80::', 10, 'ipv6')

/**
 * Tells requests that web pages of strangers make in somebody's browser. A browser sends its page's address as Origin, and
 * the name in its address bar as Host, also when a stranger's name leads to this machine (DNS rebinding).
 */
export class ForeignGuard {
  readonly #rules: ForeignRules
  readonly #publicHost: string | undefined
  readonly #known = new Set<string>()

  constructor(rules: ForeignRules) {
    this.#rules = rules
    this.#publicHost = rules.publicUrl === undefined ? undefined : new URL(rules.publicUrl).host
  }

  /** @throws RegistryError DENIED for what a page of somebody else may have sent */
  check(request: IncomingMessage, { host }: Pick<Origin, 'host'>): void {
    const { isOpen, isLocal } = this.#rules
    // Without a Host (HTTP/1.0) it is no browser.
    if (isOpen && isLocal && host !== undefined && host !== '' && !this.#isKnown(host)) {
      throw new RegistryError('DENIED', foreignHost(host))
    }
    const { origin } = request.headers
    if (origin === undefined || safeMethods.has(request.method ?? '')) return
    if (!this.#isOurs(origin, host)) {
      throw new RegistryError('DENIED', 'a web page of another address may not change anything here')
    }
  }

  /** Whether a page of this origin came from the address that its request goes to. */
  #isOurs(origin: string, host: string | undefined): boolean {
    if (!URL.canParse(origin)) return false // `null` among others
    const from = new URL(origin).host
    if (from === this.#publicHost) return true
    if (host === undefined || from !== withoutDefaultPort(host)) return false
    return !this.#rules.isOpen || this.#isKnown(host)
  }

  #isKnown(host: string): boolean {
    if (this.#known.has(host)) return true
    const name = nameOf(host)
    if (name === undefined) return false
    const isKnown = withoutDefaultPort(host) === this.#publicHost || isLocalName(name) || isLocalAddress(name)
    if (isKnown && this.#known.size < mostRemembered) this.#known.add(host)
    return isKnown
  }
}

/** The name or address in a Host header, in lower case and without brackets; undefined for what is none. */
function nameOf(host: string): string | undefined {
  const [, address, name] = /^(?:\[([0-9a-f:.]+)\]|([\w.-]+))(?::\d{1,5})?$/i.exec(host) ?? []
  return (address ?? name)?.toLowerCase().replace(/\.$/, '')
}

function withoutDefaultPort(host: string): string {
  return host.toLowerCase().replace(/:(?:80|443)$/, '')
}

/** A name without a dot leads nowhere on the Internet: it is a machine's, a container's or a service's. */
function isLocalName(name: string): boolean {
  if (isIP(name) !== 0) return false
  const own = hostname().toLowerCase()
  return (
    !name.includes('.') ||
    name.endsWith('.localhost') ||
    name === own ||
    outerNames.includes(name) ||
    networkEndings.some((ending) => name === `${own.split('.', 1)[0]}${ending}`)
  )
}

function isLocalAddress(name: string): boolean {
  if (isIPv4(name)) return privateNetworks.check(name, 'ipv4') || isOwnAddress(name)
  return isIPv6(name) && (privateNetworks.check(name, 'ipv6') || isOwnAddress(name))
}

function isOwnAddress(address: string): boolean {
  return Object.values(networkInterfaces()).some((all) => all?.some((one) => one.address === address))
}

function foreignHost(host: string): string {
  const name = nameOf(host)
  const which = name === undefined ? 'the name in its Host header' : `the name ${name.slice(0, 100)}`
  return `this registry does not answer to ${which}: if clients use it, set publicUrl to their address`
}
