import { errors } from 'undici'
import { ForbiddenAddressError } from './addresses.js'
import { UpstreamError, type UpstreamFailure } from './upstream.js'

/** Why an exchange ended, where our own rules ended it. */
export class ExchangeError extends Error {
  override readonly name = 'ExchangeError'
  readonly failure: UpstreamFailure

  /** @param message what the host did, as the rest of a sentence that begins with its name */
  constructor(failure: UpstreamFailure, message: string) {
    super(message)
    this.failure = failure
  }
}

/** Codes of errors, and what the host did; to be read after its name. */
const reasons: Readonly<Record<string, string>> = {
  ECONNREFUSED: 'refused the connection',
  ECONNRESET: 'broke the connection off',
  EPIPE: 'broke the connection off',
  UND_ERR_SOCKET: 'broke the connection off',
  UND_ERR_RES_CONTENT_LENGTH_MISMATCH: 'sent fewer bytes than it said',
  ETIMEDOUT: 'did not answer in time',
  UND_ERR_CONNECT_TIMEOUT: 'did not answer in time',
  UND_ERR_HEADERS_TIMEOUT: 'did not answer in time',
  EHOSTUNREACH: 'cannot be reached',
  ENETUNREACH: 'cannot be reached',
  ENOTFOUND: 'has no address: its name is not known',
  EAI_AGAIN: 'has no address: no name server answered',
  ENODATA: 'has no address: its name is not known',
  CERT_HAS_EXPIRED: 'has a certificate that has expired',
  CERT_NOT_YET_VALID: 'has a certificate that is not valid yet',
  DEPTH_ZERO_SELF_SIGNED_CERT: 'has a self-signed certificate',
  SELF_SIGNED_CERT_IN_CHAIN: 'has a certificate of an authority that is not trusted',
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: 'has a certificate of an authority that is not trusted',
  UNABLE_TO_GET_ISSUER_CERT: 'has a certificate of an authority that is not trusted',
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: 'has a certificate of an authority that is not trusted',
  ERR_TLS_CERT_ALTNAME_INVALID: 'has a certificate for another name',
  EPROTO: 'does not speak TLS as it should',
}

/** Errors of the protocol: the upstream answered, with something that is no answer. */
const invalid: Readonly<Record<string, string>> = {
  UND_ERR_HEADERS_OVERFLOW: 'sent too many header bytes',
}

/** The error of an exchange as one of ours: names upstream and host, and no secret. */
export function toUpstreamError(upstream: string, host: string, error: unknown): UpstreamError {
  if (error instanceof UpstreamError) return error
  const say = (failure: UpstreamFailure, what: string) =>
    new UpstreamError(failure, `${upstream}: ${host} ${what}`, { cause: error })
  if (error instanceof ExchangeError) return say(error.failure, error.message)
  if (error instanceof ForbiddenAddressError) {
    const { address } = error
    return say('unavailable', `leads to ${address}, a private or reserved address that is not configured`)
  }
  const code = codeOf(error)
  const overrun = invalid[code]
  if (overrun !== undefined) return say('invalid', overrun)
  const reason = reasons[code]
  if (reason !== undefined) return say('unavailable', reason)
  if (error instanceof errors.HTTPParserError) {
    return error.message.includes('EOF')
      ? say('unavailable', 'broke the connection off in the middle of its answer')
      : say('invalid', 'does not speak HTTP as it should')
  }
  if (code.startsWith('ERR_SSL_')) return say('unavailable', 'does not speak TLS as it should')
  return say('unavailable', `could not be asked${code === '' ? '' : ` (${code})`}`)
}

function codeOf(error: unknown): string {
  if (typeof error !== 'object' || error === null) return ''
  if ('code' in error && typeof error.code === 'string') return error.code
  // Several addresses were tried: the first one's reason stands for all.
  if (error instanceof AggregateError) return codeOf(error.errors[0])
  return ''
}
