import { setTimeout as delay } from 'node:timers/promises'
import type { BlobStore, FreeSpace } from '../../storage/blob-store.js'
import { RegistryError } from '../oci/errors.js'

/** Milliseconds for which a look at the disk counts. */
const freshness = 50

/** Free files below which nothing is pushed: this many, or a hundredth of all where that is less. */
const mostFilesKept = 1000

/** Bytes that are asked for beyond what is lacking, so that a long body does not ask for each of its pieces. */
const spare = 32 * 1024 * 1024

/**
 * Bytes that a body is promised at a time: a part of what there is, so that bodies in several processes do not promise
 * the same bytes twice, within these bounds.
 */
const promisedPart = 8
const leastPromise = 1024 * 1024
const mostPromise = 16 * 1024 * 1024

/** Free bytes above the floor with which a look that was taken a moment ago is good enough for a first promise. */
const plenty = 4 * mostPromise

/** Times that room is asked for, as long as some is given: others may take it meanwhile. */
const mostRounds = 5

/** Milliseconds between two looks: what is being written at the first may count twice. */
const breath = 5

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
  readonly #rooms = new Set<DiskRoom>()
  #makeRoom: ((bytes: number) => Promise<boolean>) | undefined
  #last: FreeSpace | undefined
  #lookedAt = Number.NEGATIVE_INFINITY
  #looking: Promise<FreeSpace> | undefined

  constructor(blobs: Pick<BlobStore, 'freeSpace'>, { floor }: DiskGuardOptions) {
    this.#blobs = blobs
    this.#floor = floor
  }

  /**
   * Names who can free bytes when they are short.
   * @param makeRoom frees so many bytes, or as many as it can; says whether asking again may free more
   */
  useRoomMaker(makeRoom: (bytes: number) => Promise<boolean>): void {
    this.#makeRoom = makeRoom
  }

  /**
   * Lets something in that takes so many bytes.
   * @throws RegistryError STORAGE_FULL when less than the floor would be left
   */
  async admit(bytes: number): Promise<void> {
    const lacking = () => bytes + this.#promised(undefined)
    if (this.#refusalOf(await this.#look(), lacking()) === undefined) return
    await this.#findRoom(lacking)
  }

  /**
   * Opens the room of a body that comes in. It is promised bytes step by step, so that all bodies together stay above
   * the floor, whatever their length; mirrors make room for each step.
   * @param position where in its file the body begins
   */
  openRoom(position: number): BodyRoom {
    const isFresh = this.#last !== undefined && performance.now() - this.#lookedAt <= freshness
    const free = isFresh && this.#last !== undefined ? this.#last.bytes - this.#floor : 0
    const first = free - this.#promised(undefined) > plenty ? mostPromise : 0
    const room: DiskRoom = new DiskRoom(position, first, {
      isShort: () => this.#isShort(),
      grant: (end) => this.#grant(room, end),
      extend: (end) => this.#extend(room, end),
      close: () => void this.#rooms.delete(room),
    })
    this.#rooms.add(room)
    return room
  }

  /** Whether the disk was below the floor a moment ago; the next look is taken beside it. */
  #isShort(): boolean {
    if (performance.now() - this.#lookedAt > freshness) this.#lookAgain().catch(() => undefined)
    return this.#last !== undefined && this.#refusalOf(this.#last, 0) !== undefined
  }

  /** @returns how far a body may go, at least to this position. @throws RegistryError STORAGE_FULL */
  async #grant(room: DiskRoom, end: number): Promise<number> {
    const lacking = () => Math.max(0, end - room.written) + this.#promised(room)
    const { space, lacked } = await this.#findRoom(lacking)
    return this.#stepFrom(end, space.bytes - this.#floor - lacked)
  }

  /** @returns how far a body may go, which may be no farther than before */
  async #extend(room: DiskRoom, end: number): Promise<number> {
    const lacked = Math.max(0, end - room.written) + this.#promised(room)
    const space = await this.#lookAgain()
    return this.#stepFrom(end, space.bytes - this.#floor - lacked)
  }

  /** @param left bytes that nobody was promised */
  #stepFrom(end: number, left: number): number {
    const step = Math.min(mostPromise, Math.max(leastPromise, left / promisedPart))
    return end + Math.floor(Math.max(0, Math.min(left, step)))
  }

  /** Bytes that bodies were promised and have not written yet. */
  #promised(except: DiskRoom | undefined): number {
    let bytes = 0
    for (const room of this.#rooms) if (room !== except) bytes += room.end - room.written
    return bytes
  }

  /**
   * Looks for room, and has it made. Nobody is refused by what was true a moment ago.
   * @param lacking how many bytes; asked before each look, so that what is written meanwhile is not left out
   * @throws RegistryError STORAGE_FULL
   */
  async #findRoom(lacking: () => number): Promise<{ space: FreeSpace; lacked: number }> {
    for (let round = 0; ; round++) {
      const lacked = lacking()
      const space = await this.#lookAgain()
      const refusal = this.#refusalOf(space, lacked)
      if (refusal === undefined) return { space, lacked }
      const short = lacked + this.#floor - space.bytes
      if (short <= 0 || round === mostRounds) throw refusal
      const isMade = (await this.#makeRoom?.(short + spare)) ?? false
      if (!isMade && round > 0) throw refusal
      if (!isMade) await delay(breath)
    }
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

/** What the room of one body does with the guard that it belongs to. */
interface RoomGuard {
  readonly isShort: () => boolean
  readonly grant: (end: number) => Promise<number>
  readonly extend: (end: number) => Promise<number>
  readonly close: () => void
}

/** The room that one body has on the disk. Positions are in its file, in bytes. */
export interface BodyRoom {
  /**
   * Lets the body go on to this position.
   * @returns undefined when it may at once; otherwise what resolves when it may, and rejects with STORAGE_FULL
   */
  pass(position: number): Promise<void> | undefined
  /** Hears how far it is on the disk. */
  reached(position: number): void
  /** What was promised and not used is free. */
  close(): void
}

class DiskRoom implements BodyRoom {
  readonly #guard: RoomGuard
  #written: number
  #end: number
  #isExtending = false

  /** @param first bytes that it is promised at once */
  constructor(position: number, first: number, guard: RoomGuard) {
    this.#guard = guard
    this.#written = position
    this.#end = position + first
  }

  /** How far it was promised. */
  get end(): number {
    return this.#end
  }

  /** How far it is on the disk. */
  get written(): number {
    return this.#written
  }

  reached(position: number): void {
    this.#written = position
  }

  pass(position: number): Promise<void> | undefined {
    if (position > this.#end || this.#guard.isShort()) return this.#claim(position)
    if (this.#end - position < leastPromise && !this.#isExtending) void this.#extend()
    return undefined
  }

  /** Makes sure that the body may go to this position. @throws RegistryError STORAGE_FULL */
  async #claim(position: number): Promise<void> {
    this.#end = Math.max(this.#end, await this.#guard.grant(Math.max(position, this.#end)))
  }

  /** So that the body rarely has to stop. What lacks is said when it is needed. */
  async #extend(): Promise<void> {
    this.#isExtending = true
    try {
      this.#end = Math.max(this.#end, await this.#guard.extend(this.#end))
    } catch {
      // Asked again where the promise ends.
    }
    this.#isExtending = false
  }

  close(): void {
    this.#guard.close()
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
