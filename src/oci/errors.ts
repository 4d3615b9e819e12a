/**
 * The error table: every refusal the registry can give, with the code and the status that clients see.
 *
 * Keys are the registry's own names for a refusal; `code` is what stands in `errors[].code`. Most are one and
 * the same; where one code goes with two statuses (SIZE_INVALID is 400 for a wrong length and 413 for a
 * manifest over the limit) there are two keys.
 */
export const errorTable = {
  BLOB_UNKNOWN: { code: 'BLOB_UNKNOWN', status: 404, message: 'blob unknown to this repository' },
  BLOB_UPLOAD_UNKNOWN: {
    code: 'BLOB_UPLOAD_UNKNOWN',
    status: 404,
    message: 'no such upload in this repository: start a new one',
  },
  BLOB_DAMAGED: {
    code: 'UNAVAILABLE',
    status: 503,
    message: 'the bytes of this blob were found damaged and put aside: push the image again',
  },
  BLOB_TOO_LARGE: { code: 'SIZE_INVALID', status: 413, message: 'blob is larger than this registry accepts' },
  DENIED: { code: 'DENIED', status: 403, message: 'you may not do this here' },
  DIGEST_INVALID: { code: 'DIGEST_INVALID', status: 400, message: 'digest does not fit the content' },
  MANIFEST_BLOB_UNKNOWN: {
    code: 'MANIFEST_BLOB_UNKNOWN',
    status: 400,
    message: 'manifest names content that this repository does not hold',
  },
  MANIFEST_INVALID: { code: 'MANIFEST_INVALID', status: 400, message: 'manifest invalid' },
  MANIFEST_TOO_LARGE: {
    code: 'SIZE_INVALID',
    status: 413,
    message: 'manifest is larger than 4 MiB, the most that clients read back',
  },
  MANIFEST_UNKNOWN: { code: 'MANIFEST_UNKNOWN', status: 404, message: 'manifest unknown' },
  NAME_INVALID: { code: 'NAME_INVALID', status: 400, message: 'repository name invalid' },
  NAME_UNKNOWN: { code: 'NAME_UNKNOWN', status: 404, message: 'repository unknown to this registry' },
  NOT_FOUND: { code: 'NOT_FOUND', status: 404, message: 'nothing is served at this path' },
  PAGINATION_NUMBER_INVALID: {
    code: 'PAGINATION_NUMBER_INVALID',
    status: 400,
    message: 'n must be a whole number, 0 or more',
  },
  PRECONDITION_FAILED: {
    code: 'PRECONDITION_FAILED',
    status: 412,
    message: 'the manifest is not the one that the condition names',
  },
  RANGE_INVALID: { code: 'RANGE_INVALID', status: 416, message: 'range cannot be satisfied' },
  REQUEST_INVALID: { code: 'REQUEST_INVALID', status: 400, message: 'request is not valid HTTP' },
  REQUEST_TIMEOUT: { code: 'REQUEST_TIMEOUT', status: 408, message: 'no data arrived in time' },
  REQUEST_HEADERS_TOO_LARGE: {
    code: 'REQUEST_INVALID',
    status: 431,
    message: 'request headers are too large',
  },
  SIZE_INVALID: { code: 'SIZE_INVALID', status: 400, message: 'length does not fit the content' },
  STORAGE_FULL: {
    code: 'STORAGE_FULL',
    status: 507,
    message: 'no space left on device: the disk of this registry is full; make room on it, then push again',
  },
  TAG_INVALID: { code: 'TAG_INVALID', status: 400, message: 'tag invalid' },
  TOO_MANY_RANGES: { code: 'RANGE_INVALID', status: 400, message: 'too many ranges in one request' },
  TOO_MANY_TAGS: { code: 'TAG_INVALID', status: 414, message: 'too many tags in one request' },
  TOOMANYREQUESTS: { code: 'TOOMANYREQUESTS', status: 429, message: 'too many requests: try again later' },
  UNAUTHORIZED: { code: 'UNAUTHORIZED', status: 401, message: 'authentication required' },
  UNAVAILABLE: {
    code: 'UNAVAILABLE',
    status: 503,
    message: 'the storage of this registry does not answer: try again later',
  },
  UNKNOWN: { code: 'UNKNOWN', status: 500, message: 'internal error: the log of the registry says more' },
  UPSTREAM_INVALID: {
    code: 'UPSTREAM_INVALID',
    status: 502,
    message: 'the upstream registry answered what no registry may answer',
  },
  UPSTREAM_UNAVAILABLE: {
    code: 'UPSTREAM_UNAVAILABLE',
    status: 502,
    message: 'the upstream registry cannot be asked: try again later',
  },
  UNSUPPORTED: { code: 'UNSUPPORTED', status: 405, message: 'the operation is not supported' },
} as const

/** A refusal's name in the table. */
export type ErrorKind = keyof typeof errorTable

/** One entry of `errors[]`, as the protocol defines it. */
export interface ErrorEntry {
  readonly code: string
  readonly message: string
  readonly detail?: unknown
}

/** What an error may carry beside its message. */
export interface ErrorOptions {
  /** Shown to the client as `detail`: no secret, no path. */
  readonly detail?: unknown
  /** Several entries in place of one, e.g. one per missing blob. */
  readonly entries?: readonly ErrorEntry[]
  /** Seconds after which the client may try again (`Retry-After`). */
  readonly retryAfter?: number
  /** What went wrong underneath: goes to the log, never to the client. */
  readonly cause?: unknown
}

/**
 * A refusal in the protocol's own terms. Every room throws it; the wire alone turns it into a reply.
 */
export class RegistryError extends Error {
  override readonly name = 'RegistryError'
  readonly kind: ErrorKind
  readonly detail: unknown
  readonly retryAfter: number | undefined
  readonly #entries: readonly ErrorEntry[] | undefined

  constructor(kind: ErrorKind, message?: string, options: ErrorOptions = {}) {
    super(message ?? errorTable[kind].message, options.cause === undefined ? {} : { cause: options.cause })
    this.kind = kind
    this.detail = options.detail
    this.retryAfter = options.retryAfter
    this.#entries = options.entries
  }

  /** The HTTP status that goes with this refusal. */
  get status(): number {
    return errorTable[this.kind].status
  }

  /** The entries of the reply's `errors[]`: at least one. */
  get entries(): readonly ErrorEntry[] {
    if (this.#entries !== undefined && this.#entries.length > 0) return this.#entries
    const { code } = errorTable[this.kind]
    return [
      this.detail === undefined
        ? { code, message: this.message }
        : { code, message: this.message, detail: this.detail },
    ]
  }
}

/**
 * A chunk that does not start where the upload ends (416). It tells where the upload really is, so that the
 * client can go on from there (protocol UP-42).
 */
export class UploadRangeError extends RegistryError {
  readonly repository: string
  readonly id: string
  readonly offset: number

  /**
   * @param upload where the upload stands: `offset` is the number of bytes stored
   */
  constructor(
    upload: { readonly repository: string; readonly id: string; readonly offset: number },
    message: string,
  ) {
    super('RANGE_INVALID', message)
    this.repository = upload.repository
    this.id = upload.id
    this.offset = upload.offset
  }
}
