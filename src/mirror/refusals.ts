import { type ErrorKind, RegistryError } from '../oci/errors.js'
import { UpstreamError } from './upstream.js'

/**
 * What a client is told when the upstream does not give what it asked for. An upstream that refuses looks like
 * one that does not have it: most answer 401 for what does not exist, and a client of ours could do nothing with
 * the upstream's challenge.
 * @param unknown the refusal for what the upstream does not have
 */
export function toRefusal(error: unknown, unknown: ErrorKind): unknown {
  if (!(error instanceof UpstreamError)) return error
  const { message, retryAfter, failure } = error
  const options = { cause: error, ...(retryAfter === undefined ? {} : { retryAfter: Math.ceil(retryAfter) }) }
  switch (failure) {
    case 'not-found':
    case 'denied':
    case 'looped':
      return new RegistryError(unknown, message)
    case 'rate-limited':
      return new RegistryError('TOOMANYREQUESTS', message, options)
    case 'unavailable':
      return new RegistryError('UPSTREAM_UNAVAILABLE', message, options)
    case 'invalid':
      return new RegistryError('UPSTREAM_INVALID', message, options)
  }
}
