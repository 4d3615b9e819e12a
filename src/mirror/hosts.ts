/** Ports that a URL leaves out. */
const defaultPorts: Readonly<Record<string, string>> = { 'http:': '80', 'https:': '443' }

/**
 * A list of hosts: `host` (on its protocol's own port), `host:port`, `*.domain` (every name below it, not itself).
 */
export class HostList {
  readonly #hosts: ReadonlySet<string>
  readonly #domains: readonly string[]

  constructor(patterns: readonly string[]) {
    const lower = patterns.map((pattern) => pattern.toLowerCase())
    this.#hosts = new Set(lower.filter((pattern) => !pattern.startsWith('*.')))
    this.#domains = lower.filter((pattern) => pattern.startsWith('*.')).map((pattern) => pattern.slice(1))
  }

  /** Whether the URL's host and port are in the list. */
  has(url: URL): boolean {
    const port = portOf(url)
    const isDefault = port === defaultPorts[url.protocol]
    if (this.#hosts.has(`${url.hostname}:${port}`) || (isDefault && this.#hosts.has(url.hostname)))
      return true
    return isDefault && this.#domains.some((domain) => url.hostname.endsWith(domain))
  }
}

/** The port of a URL, written out. */
export function portOf(url: URL): string {
  return url.port === '' ? (defaultPorts[url.protocol] ?? '') : url.port
}

/** What goes with a registry: where its tokens come from, and where it sends those who want a blob. */
export interface RegistryHosts {
  /** Hosts of its token services other than its own. */
  readonly realms: readonly string[]
  readonly redirectHosts: readonly string[]
}

const none: RegistryHosts = { realms: [], redirectHosts: [] }
const googleStorage: RegistryHosts = { realms: [], redirectHosts: ['storage.googleapis.com'] }
const dockerHub: RegistryHosts = {
  realms: ['auth.docker.io'],
  redirectHosts: [
    'production.cloudflare.docker.com',
    'production.cloudfront.docker.com',
    '*.r2.cloudflarestorage.com',
  ],
}

/** The well-known registries and their storage networks; `*.` stands for the names below a domain. */
const knownRegistries: Readonly<Record<string, RegistryHosts>> = {
  'registry-1.docker.io': dockerHub,
  'index.docker.io': dockerHub,
  'ghcr.io': { realms: [], redirectHosts: ['pkg-containers.githubusercontent.com'] },
  'lscr.io': { realms: ['ghcr.io'], redirectHosts: ['ghcr.io', 'pkg-containers.githubusercontent.com'] },
  'quay.io': { realms: [], redirectHosts: ['*.quay.io', 'quayio-production-s3.s3.amazonaws.com'] },
  'gcr.io': googleStorage,
  '*.gcr.io': googleStorage,
  '*.pkg.dev': googleStorage,
  'registry.k8s.io': {
    realms: [],
    redirectHosts: ['*.pkg.dev', '*.amazonaws.com', 'storage.googleapis.com'],
  },
  'mcr.microsoft.com': { realms: [], redirectHosts: ['*.data.mcr.microsoft.com'] },
  '*.azurecr.io': { realms: [], redirectHosts: ['*.blob.core.windows.net', '*.data.azurecr.io'] },
  'public.ecr.aws': { realms: [], redirectHosts: ['*.cloudfront.net'] },
  '*.amazonaws.com': { realms: [], redirectHosts: ['*.amazonaws.com'] },
  'registry.gitlab.com': {
    realms: ['gitlab.com'],
    redirectHosts: ['storage.googleapis.com', 'cdn.registry.gitlab-static.net'],
  },
  'nvcr.io': { realms: ['authn.nvidia.com'], redirectHosts: ['layers.nvcr.io', 'xfiles.ngc.nvidia.com'] },
  'cgr.dev': { realms: [], redirectHosts: ['*.r2.cloudflarestorage.com'] },
}

/** What goes with the registry at this URL, as far as it is well known. Asked over http, nothing is. */
export function hostsOf(url: URL): RegistryHosts {
  if (url.protocol !== 'https:' || url.port !== '') return none
  const name = Object.keys(knownRegistries).find((pattern) => new HostList([pattern]).has(url))
  return (name === undefined ? undefined : knownRegistries[name]) ?? none
}
