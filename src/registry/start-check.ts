import type { BlobToVerify } from '../../storage/integrity-store.js'
import { BlobCheck, VerificationStopped, type VerifiedStores } from './blob-check.js'
import { emptyVerification, type VerificationReport } from './verify-report.js'

/** Blobs that are looked at after an unclean stop: a disk that forgets loses what came last. */
const mostBlobs = 20_000

/** Blobs that are read from the index, and looked at, together. */
const pageSize = 500
const lookedAtOnce = 32

/**
 * What a crash can have left that the order of writes does not exclude: on a disk that reports syncs too early, the
 * files of blobs that came last are missing or cut. (Turns, holders, and bytes of uploads that no row knows are put in
 * order by whoever comes upon them.)
 */
export class StartCheck {
  readonly #stores: VerifiedStores
  readonly #holder: string

  /** @param holder name of this process, unlike any other's */
  constructor(stores: VerifiedStores, holder: string) {
    this.#stores = stores
    this.#holder = holder
  }

  /**
   * Whether the newest blobs have their files, of their sizes; newest first, at most 20,000, and none that was there at
   * the last orderly stop. What has not is put aside as a verification does it, so that pushing it again mends it.
   * @param lastBlob the row up to which everything was in place
   * @throws RegistryError
   */
  async run(lastBlob: number, signal: AbortSignal): Promise<VerificationReport> {
    const report = emptyVerification()
    const begin = performance.now()
    const stopWhenTold = () => {
      if (signal.aborted) throw new VerificationStopped('told to stop')
    }
    const check = new BlobCheck(this.#stores, report, {
      holder: this.#holder,
      mender: undefined,
      onRead: () => {
        stopWhenTold()
        return undefined
      },
      stopWhenTold,
    })
    try {
      await this.#walk(lastBlob, report, check, stopWhenTold)
    } catch (error) {
      if (!(error instanceof VerificationStopped)) throw error
      report.isInterrupted = true
    }
    report.milliseconds = performance.now() - begin
    return report
  }

  async #walk(
    lastBlob: number,
    report: VerificationReport,
    check: BlobCheck,
    stopWhenTold: () => void,
  ): Promise<void> {
    let before = Number.MAX_SAFE_INTEGER
    for (let looked = 0; looked < mostBlobs; ) {
      const page = await this.#stores.integrity.listNewestBlobs(before, lastBlob, pageSize)
      const last = page.at(-1)
      if (last === undefined) return
      for (let at = 0; at < page.length; at += lookedAtOnce) {
        stopWhenTold()
        const some = page.slice(at, at + lookedAtOnce)
        const inPlace = await Promise.all(some.map((blob) => this.#isInPlace(blob)))
        report.blobs += inPlace.filter(Boolean).length
        for (const blob of some.filter((_, index) => inPlace[index] === false)) await check.check(blob)
      }
      looked += page.length
      before = last.id
    }
  }

  /** Those that are known to be damaged need no second look. */
  async #isInPlace({ digest, size, damage }: BlobToVerify): Promise<boolean> {
    return damage !== undefined || (await this.#stores.blobs.stat(digest))?.size === size
  }
}
