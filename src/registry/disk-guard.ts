import type { BlobStore, FreeSpace } from '../../storage/blob-store.js'
import { RegistryError } from '../oci/errors.js'

/** Milliseconds for which a look at the disk counts. */
const freshness = 50

/** Free files below which nothing is pushed: this many, or a hundredth of all where that is less. */
const mostFilesKept = 1000

/** Bytes that are asked for beyond what is lacking, so that a long body does not ask for each of its pieces. */
const spare = 32 * 1024 * 1024

/** What the guard is told. */
export interface DiskGuardOptions {
  /** Bytes that stay free on the disk. */
  readonly floor: number
}

/**
 * Keeps pushes from using up the disk: the index and garbage collection live on it, too. Nothing is remembered but
 * the last look, so pushes go on as soon as there is room again.
 */
export class DiskGuard {
  readonly #blobs: Pick<BlobStore, 'freeSpace'>
  readonly #floor: number
  #makeRoom: ((bytes: number) => Promise<void>) | undefined
  #last: FreeSpace | undefined
  #lookedAt = Number.NEGATIVE_INFINITY
  #looking: Promise<FreeSpace> | undefined
  #isAsking = false

  constructor(blobs: Pick<BlobStore, 'freeSpace'>, { floor }: DiskGuardOptions) {
    this.#blobs = blobs
    this.#floor = floor
  }

  /**
   * Names who can free bytes when they are short.
   * @param makeRoom frees so many bytes, or as many as it can
   */
  useRoomMaker(makeRoom: (bytes: number) => Promise<void>): void {
    this.#makeRoom = makeRoom
  }

  /**
   * Lets something in that takes so many bytes.
   * @throws RegistryError STORAGE_FULL when less than the floor would be left
   */
  async admit(bytes: number): Promise<void> {
    if (this.#refusalOf(await this.#look(), bytes) === undefined) return
    // Nobody is refused by what was true a moment ago.
    let space = await this.#lookAgain()
    const lacking = bytes + this.#floor - space.bytes
    if (lacking > 0 && this.#makeRoom !== undefined) {
      await this.#makeRoom(lacking + spare)
      space = await this.#lookAgain()
    }
    const refusal = this.#refusalOf(space, bytes)
    if (refusal !== undefined) throw refusal
  }

  /**
   * What stands in the way of a body that is coming in, if anything does. It goes by a look that was taken a moment
   * ago, and takes the next one beside it.
   */
  refusal(): RegistryError | undefined {
    if (!this.#isAsking && performance.now() - this.#lookedAt > freshness) {
      this.#isAsking = true
      const asked = () => {
        this.#isAsking = false
      }
      this.admit(0).then(asked, asked) // the next piece hears of it
    }
    return this.#last === undefined ? undefined : this.#refusalOf(this.#last, 0)
  }

  async #look(): Promise<FreeSpace> {
    if (this.#last !== undefined && performance.now() - this.#lookedAt <= freshness) return this.#last
    return this.#lookAgain()
  }

  #lookAgain(): Promise<FreeSpace> {
    this.#looking ??= this.#blobs
      .freeSpace()
      .then((space) => {
        this.#last = space
        this.#lookedAt = performance.now()
        return space
      })
      .finally(() => {
        this.#looking = undefined
      })
    return this.#looking
  }

  #refusalOf(space: FreeSpace, bytes: number): RegistryError | undefined {
    const { bytes: free, files, allFiles } = space
    if (free < bytes + this.#floor) {
      const what = bytes === 0 ? 'is full' : 'has no room for this'
      return diskFull(`${what}: disk.floor keeps ${inMebibytes(this.#floor)} MiB free`)
    }
    if (allFiles > 0 && files < Math.min(mostFilesKept, allFiles / 100)) {
      return diskFull('has no room for more files')
    }
    return undefined
  }
}

/** Docker gives up at once, and shows the sentence, when it finds these first words in it. */
function diskFull(how: string): RegistryError {
  return new RegistryError(
    'STORAGE_FULL',
    `no space left on device: the disk of this registry ${how}; make room on it, then push again`,
  )
}

function inMebibytes(bytes: number): number {
  return Math.ceil(bytes / 1024 ** 2)
}
