import { BlockList, isIPv4, isIPv6 } from 'node:net'
import { isHostName, isNetwork, readWhole } from './values.js'

/*
 * How hosts and URLs of other servers are written. Each reader gives the form that is kept, or undefined for what it
 * does not understand.
 */

const loopback = new BlockList()
loopback.addSubnet('127.0.0.0', 8, 'ipv4')
loopback.addAddress('::1', 'ipv6')

/** Whether this machine alone can reach what listens on this host (an address without brackets, or a name). */
export function isLoopback(host: string): boolean {
  if (isIPv4(host)) return loopback.check(host, 'ipv4')
  if (isIPv6(host)) return loopback.check(host, 'ipv6')
  return host.toLowerCase() === 'localhost'
}

/** Whether a URL of a configuration leads to this machine alone. */
export function isLoopbackUrl(url: string): boolean {
  return isLoopback(new URL(url).hostname.replace(/^\[(.*)\]$/, '$1'))
}

/** A host, or a host and a port, in lower case; an IPv6 address has brackets. */
export function readHost(text: string): string | undefined {
  const [, host = '', port] = /^(\[[^\]]*\]|[^:]*)(?::(\d+))?$/.exec(text) ?? []
  if (port !== undefined && readWhole(port, 1, 65_535) === undefined) return undefined
  const isBracketed = host.startsWith('[') && isIPv6(host.slice(1, -1))
  return isBracketed || isIPv4(host) || isHostName(host) ? text.toLowerCase() : undefined
}

/** A host as for `readHost`, or `*.` and a name that stands for all names below it. */
export function readHostPattern(text: string): string | undefined {
  const host = readHost(text.replace(/^\*\./, ''))
  if (!text.startsWith('*.') || host === undefined) return host
  return /^[[\d.:\]]+$/.test(host) ? undefined : `*.${host}`
}

/** What is reached without the proxy: a host, `.name` or `*.name`, an address, a network, or `*` for everything. */
export function readException(text: string): string | undefined {
  if (text === '*' || isNetwork(text)) return text.toLowerCase()
  return readHostPattern(text.replace(/^\./, '*.'))
}

function readHttp(text: string): URL | undefined {
  const [, authority = ''] = /^https?:\/\/([^\s\\/?#]+)(?:\/[^\s\\?#]*)?$/i.exec(text) ?? []
  // The parser of URLs mends what it can, and so makes 0.1.17.112 of 70000: such hosts are refused.
  const host = readHost(authority.slice(authority.lastIndexOf('@') + 1))
  return host !== undefined && URL.canParse(text) ? new URL(text) : undefined
}

/** The http or https address of a registry, with a base path or without, but without a slash or `/v2` at its end. */
export function readRegistryUrl(text: string): string | undefined {
  const url = readHttp(text)
  if (url === undefined || text.includes('@')) return undefined
  const base = url.pathname.replace(/\/+$/, '')
  return /(?:^|\/)v2$/.test(base) ? undefined : `${url.origin}${base}`
}

/** The http or https address of a proxy, perhaps with a user and a password; `http://` may be left out. */
export function readProxy(text: string): string | undefined {
  const url = readHttp(/^[a-z][a-z\d+.-]*:\/\//i.test(text) ? text : `http://${text}`)
  return url === undefined || url.pathname !== '/' ? undefined : url.href.replace(/\/$/, '')
}
