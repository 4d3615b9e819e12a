import type { IncomingMessage } from 'node:http'

/** Headers that proxies add, by their names or by how these begin. No client of a registry sends one of them. */
const added = new Set([
  'forwarded',
  'x-real-ip',
  'x-client-ip',
  'x-cluster-client-ip',
  'x-remote-ip',
  'x-remote-addr',
  'x-original-forwarded-for',
  'x-original-host',
  'x-original-url',
  'x-proxyuser-ip',
  'true-client-ip',
  'fastly-client-ip',
  'client-ip',
  'cdn-loop',
  'x-azure-clientip',
  'x-amzn-trace-id',
  'x-cloud-trace-context',
])
const beginnings = ['x-forwarded', 'x-envoy-', 'x-arr-', 'x-appengine-', 'x-goog-iap-', 'cf-', 'tailscale-']

/** A Boathouse that mirrors this one says so; whom it serves it has decided itself. */
const otherBoathouse = /^(?:http\/)?\d\.\d\s+boathouse(?:-[\w-]+)?(?:\s+\([^)]*\))?$/i

/**
 * Whether a request says that it came through a proxy, and so perhaps from another machine: by one of the headers that
 * proxies add, by `Via` (RFC 9110, 7.6.3), or because it is HTTP/1.0 with a Host, as nginx asks unless told otherwise.
 */
export function isForwarded(request: IncomingMessage): boolean {
  const { rawHeaders } = request
  if (request.httpVersion === '1.0' && request.headers.host !== undefined) return true
  for (let at = 0; at < rawHeaders.length; at += 2) {
    const name = rawHeaders[at]?.toLowerCase() ?? ''
    if (added.has(name) || beginnings.some((start) => name.startsWith(start))) return true
    if (name === 'via' && !isFromBoathouse(rawHeaders[at + 1] ?? '')) return true
  }
  return false
}

function isFromBoathouse(via: string): boolean {
  return via.split(',').every((hop) => otherBoathouse.test(hop.trim()))
}
