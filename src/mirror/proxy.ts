import { isIP } from 'node:net'
import { bareHost, blockList, contains } from './addresses.js'
import { portOf } from './hosts.js'

/** HTTP proxies, as `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` name them. */
export interface ProxySettings {
  readonly httpProxy?: string | undefined
  readonly httpsProxy?: string | undefined
  /** Hosts that are asked directly: `host`, `.domain`, `host:port`, addresses, CIDR ranges, `*`; commas between. */
  readonly noProxy?: string | undefined
}

/** Decides for each URL whether it is asked through a proxy. */
export class ProxyChoice {
  readonly #proxies: Readonly<Record<string, URL | undefined>>
  readonly #exceptions: readonly string[]

  /** @throws Error when a proxy's URL cannot be read or is not http(s) */
  constructor({ httpProxy, httpsProxy, noProxy }: ProxySettings) {
    this.#proxies = {
      'http:': proxyUrl(httpProxy, 'HTTP_PROXY'),
      'https:': proxyUrl(httpsProxy, 'HTTPS_PROXY'),
    }
    this.#exceptions = (noProxy ?? '')
      .toLowerCase()
      .split(/[\s,]+/)
      .filter((entry) => entry !== '')
  }

  /** The proxies that can be chosen. */
  get all(): readonly URL[] {
    return Object.values(this.#proxies).filter((proxy) => proxy !== undefined)
  }

  /** The proxy for a URL; undefined when it is asked directly. */
  for(url: URL): URL | undefined {
    if (this.#exceptions.some((entry) => isException(entry, url))) return undefined
    return this.#proxies[url.protocol]
  }
}

function proxyUrl(text: string | undefined, setting: string): URL | undefined {
  if (text === undefined || text === '') return undefined
  // The habit is to leave the protocol out: `proxy.example.com:3128`.
  const full = /^[a-z][a-z0-9+.-]*:\/\//i.test(text) ? text : `http://${text}`
  // Its text may hold a password: it is in no message.
  if (!URL.canParse(full)) throw new Error(`${setting} is not a URL`)
  const url = new URL(full)
  if (url.protocol !== 'http:' && url.protocol !== 'https:') {
    throw new Error(`${setting} must begin with http:// or https://`)
  }
  return url
}

function isException(entry: string, url: URL): boolean {
  const host = bareHost(url.hostname)
  if (entry === '*' || entry === host) return true
  if (entry.endsWith(`:${portOf(url)}`) && isException(entry.slice(0, entry.lastIndexOf(':')), url))
    return true
  if (isIP(host) !== 0) return isIP(entry.split('/')[0] ?? '') !== 0 && isInRange(entry, host)
  const domain = entry.replace(/^\*?\.?/, '')
  return domain !== '' && (host === domain || host.endsWith(`.${domain}`))
}

function isInRange(range: string, address: string): boolean {
  try {
    return contains(blockList([range]), address)
  } catch {
    return false
  }
}
