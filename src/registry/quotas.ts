import { overheadLimit, type QuotaExcess, type QuotaStore } from '../../storage/quota-store.js'
import { RegistryError } from '../oci/errors.js'

/** Bytes that a body without a length asks for at a time. */
const step = 16 * 1024 * 1024

/**
 * The refusal of what would exceed a quota: it says how to go on. Docker shows a 403 at once, with its sentence
 * (protocol MF-15).
 */
export function overQuota(quota: QuotaExcess): RegistryError {
  const { pattern, limit, used, waiting, overhead, lack } = quota
  const most = overheadLimit(quota)
  const numbers =
    lack === 'bytes'
      ? `${used} of ${limit} bytes are used or on their way`
      : `entries of tags, their history, manifests, blobs and uploads take ${overhead} of ${most} bytes`
  const free =
    waiting > 0
      ? `what was deleted counts while it can be brought back: "boathouse quota free '${pattern}'" on the server gives it up for good; or `
      : ''
  return new RegistryError(
    'DENIED',
    `quota ${pattern} is exhausted: ${numbers}, and this does not fit; ${free}delete images or raise the quota, then push again`,
    { detail: { quota: pattern, limit, used, deleted: waiting, overhead, overheadLimit: most } },
  )
}

/** The room that an append to one upload has under its quotas. */
export class QuotaRoom {
  readonly #grow: (end: number) => ReturnType<QuotaStore['reserve']>
  #end = 0

  /** @param grow asks for room up to a position of the upload */
  constructor(grow: (end: number) => ReturnType<QuotaStore['reserve']>) {
    this.#grow = grow
  }

  /** Makes sure that the upload may grow up to this position. @throws RegistryError DENIED */
  async claim(end: number): Promise<void> {
    const reserved = await this.#grow(end)
    this.#end = reserved.end
    if (reserved.end < end && reserved.excess !== undefined) throw overQuota(reserved.excess)
  }

  /** The same while a body of unknown length comes in: undefined when the room is there already. */
  pass(end: number): Promise<void> | undefined {
    return end <= this.#end ? undefined : this.#extend(end)
  }

  async #extend(end: number): Promise<void> {
    const reserved = await this.#grow(end + step)
    this.#end = reserved.end
    if (reserved.end < end && reserved.excess !== undefined) throw overQuota(reserved.excess)
  }
}
