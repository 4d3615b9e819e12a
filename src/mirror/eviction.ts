import { setTimeout as delay } from 'node:timers/promises'
import type { BlobStore } from '../../storage/blob-store.js'
import type { MirroredBlob, MirrorStore } from '../../storage/mirror-store.js'
import type { Digest } from '../oci/digest.js'
import { RegistryError } from '../oci/errors.js'
import type { GarbageCollector } from '../registry/gc.js'
import { steadyNow } from './breaker.js'
import type { FillTask } from './fill-task.js'
import { Standstill } from './standstill.js'

/** The lease of whoever makes room: one at a time in the whole data folder, so that nobody evicts for another. */
const leaseKey = 'evict'

/** Milliseconds between two tries to get the lease, or room that running fills have. */
const pause = 25

/** Tries to get the lease before a push is judged by what room there is. */
const mostTries = 80

/**
 * Milliseconds for which a disk that seems too full may still get space back: a file that was evicted keeps it until
 * its last reader closes it.
 */
const patience = 2000

/** Blobs of one mirror that are looked at together. */
const pageSize = 50

/**
 * Milliseconds for which blobs that give no space back, because a backup has them, too, are not looked at again: a
 * push onto a full disk does not wait until all of them were.
 */
const sharedFor = 10_000

/** What making room works with. */
export interface EvictionOptions {
  readonly blobs: Pick<BlobStore, 'freeSpace' | 'stat'>
  readonly store: MirrorStore
  readonly collector: Pick<GarbageCollector, 'collectBlobs'>
  readonly newHolder: () => string
  /** Bytes that stay free on the disk. */
  readonly floor: number
  /** Bytes that mirrors may hold, by their names. */
  readonly budgets: ReadonlyMap<string, number>
  /** Throws while the index cannot be written. */
  readonly check: () => Promise<void>
  /** Writes down what was used lately, so that it is not taken for old. */
  readonly flush: () => Promise<void>
}

/** The blobs of one mirror up to here, in the order of their use, give no space back. */
interface Shared {
  readonly last: MirroredBlob
  /** Monotonic milliseconds at which they are looked at anew. */
  readonly until: number
}

/**
 * Makes room for what mirrors fetch: within each one's budget, and above the floor of the disk. What was used
 * longest ago goes first; what was pushed here, or is another mirror's, too, stays on the disk.
 */
export class Eviction {
  readonly #options: EvictionOptions
  readonly #shared = new Map<string, Shared>()

  constructor(options: EvictionOptions) {
    this.#options = options
  }

  /** Notes a fill's size if there is room for it without evicting or waiting. @returns whether there is */
  async admitAtOnce(task: FillTask, holder: string, size: number): Promise<boolean> {
    const { store, budgets } = this.#options
    if ((await this.#lacking(task.id, size)) > 0) return false
    const budget = budgets.get(task.mirror)
    if (budget === undefined) return this.#noteIfRoom(task, holder, size)
    const fits = await this.#alone(async () => {
      const { held, announced, paused } = await store.findRoom(task.mirror, task.id, budget)
      return held + announced + paused + size <= budget && this.#noteIfRoom(task, holder, size)
    })
    return fits === true
  }

  /**
   * Waits until a fill may write `size` bytes, and notes them as announced. Fills that do not fit beside each
   * other come one after the other.
   * @throws RegistryError STORAGE_FULL, or UNAVAILABLE when the signal says so; what the check throws while somebody
   *   else makes room and does not end
   */
  async admit(task: FillTask, holder: string, size: number, signal: AbortSignal): Promise<void> {
    const limit = steadyNow() + patience
    const standstill = new Standstill(this.#options.check)
    for (;;) {
      if (signal.aborted) throw new RegistryError('UNAVAILABLE', 'the server is stopping')
      const outcome = await this.#alone(() => this.#tryAdmit(task, holder, size))
      if (outcome === 'admitted') return
      if (outcome === 'full' && steadyNow() > limit) throw this.#full()
      if (outcome === undefined) await standstill.look()
      else standstill.moved()
      await delay(pause)
    }
  }

  /** Makes room while the disk is below the floor. @throws RegistryError STORAGE_FULL when that is not enough */
  async checkFloor(): Promise<void> {
    const { blobs, floor } = this.#options
    const limit = steadyNow() + patience
    while ((await blobs.freeSpace()).bytes < floor) {
      const isEnough = await this.#alone(async () => {
        await this.#evictForFloor(floor - (await blobs.freeSpace()).bytes)
        return (await blobs.freeSpace()).bytes >= floor
      })
      if (isEnough !== false) return
      if (steadyNow() > limit) throw this.#full()
      await delay(pause)
    }
  }

  /**
   * Frees so many bytes, or as many as mirrors can give back. When somebody else is at it already, theirs count: this
   * waits until they have ended, and does no more.
   * @returns whether asking again may free more
   */
  async makeRoom(bytes: number): Promise<boolean> {
    const { held } = await this.#options.store.findRoom(undefined, '')
    if (held === 0) return false
    const freed = await this.#alone(() => this.#evictForFloor(bytes))
    if (freed !== undefined) return freed > 0
    for (let tries = 0; tries < mostTries; tries++) {
      await delay(pause)
      if ((await this.#alone(async () => true)) === true) return true
    }
    return false
  }

  /** Takes out at once what is larger than the whole budget; it made no room for itself. */
  async settle(mirror: string, digest: Digest, size: number | undefined): Promise<void> {
    const budget = this.#options.budgets.get(mirror)
    if (budget === undefined || size === undefined || size <= budget) return
    await this.#take(mirror, [digest])
  }

  /** Brings everything back within its bounds, unless somebody is at it. */
  async sweep(): Promise<void> {
    const { blobs, store, budgets, floor } = this.#options
    for (const [mirror, budget] of budgets) {
      if ((await store.usedBytes(mirror)) <= budget) continue
      await this.#alone(async () => this.#evictFrom(mirror, (await store.usedBytes(mirror)) - budget))
    }
    if ((await blobs.freeSpace()).bytes >= floor) return
    await this.#alone(async () => this.#evictForFloor(floor - (await blobs.freeSpace()).bytes))
  }

  async #alone<T>(work: () => Promise<T>): Promise<T | undefined> {
    const { store, newHolder } = this.#options
    const holder = newHolder()
    if (!(await store.takeLease(leaseKey, holder))) return undefined
    try {
      return await work()
    } finally {
      await store.releaseLease(leaseKey, holder)
    }
  }

  async #tryAdmit(task: FillTask, holder: string, size: number): Promise<'admitted' | 'wait' | 'full'> {
    if (!(await this.#fitsBudget(task, size))) return 'wait'
    const outcome = await this.#fitDisk(task, size)
    if (outcome !== 'admitted') return outcome
    return (await this.#noteIfRoom(task, holder, size)) ? 'admitted' : 'wait'
  }

  /**
   * Notes the size of a fill that had room a moment ago, and takes it back when others have noted theirs meanwhile:
   * of two that do so at once, one at least sees the other, and never do both take the same room.
   */
  async #noteIfRoom({ id }: FillTask, holder: string, size: number): Promise<boolean> {
    const { store } = this.#options
    await store.noteFillSize(id, holder, size)
    if ((await this.#lacking(id, size)) <= 0) return true
    await store.noteFillSize(id, holder, undefined)
    return false
  }

  /**
   * Bytes that the disk has too few of for a fill, at most. Others' are read first: what one of them stores
   * meanwhile counts twice rather than not at all.
   */
  async #lacking(id: string, size: number): Promise<number> {
    const { blobs, store, floor } = this.#options
    const { announced } = await store.findRoom(undefined, id)
    return floor + size + announced - (await blobs.freeSpace()).bytes
  }

  /** False while fills under way have the room. A fill that is alone may begin whatever there is. */
  async #fitsBudget({ mirror, id }: FillTask, size: number): Promise<boolean> {
    const { store, budgets } = this.#options
    const budget = budgets.get(mirror)
    if (budget === undefined) return true
    const room = await store.findRoom(mirror, id, budget)
    if (size > budget) return room.largeFills === 0
    const over = room.held + room.announced + room.paused + size - budget
    if (over <= 0) return true
    // What running fills are going to need is not made by evicting more than there is to be had.
    if (room.fills > 0 && over > room.held) return false
    await this.#evictFrom(mirror, over)
    return true
  }

  async #fitDisk({ id }: FillTask, size: number): Promise<'admitted' | 'wait' | 'full'> {
    const { blobs, store, floor } = this.#options
    const room = await store.findRoom(undefined, id)
    const lack = floor + size + room.announced - (await blobs.freeSpace()).bytes
    if (lack <= 0) return 'admitted'
    // Nothing is evicted for what cannot fit anyway.
    if (lack - room.announced > room.held) return 'full'
    await this.#evictForFloor(lack)
    if ((await this.#lacking(id, size)) <= 0) return 'admitted'
    return room.fills > 0 ? 'wait' : 'full'
  }

  /** Evicts from one mirror until it holds so many bytes less. */
  async #evictFrom(mirror: string, bytes: number): Promise<void> {
    const { store, flush } = this.#options
    await flush()
    let taken = 0
    while (taken < bytes) {
      const oldest = await store.listLeastUsed(mirror, pageSize)
      const digests: Digest[] = []
      for (const { digest, size } of oldest) {
        if (taken >= bytes) break
        digests.push(digest)
        taken += size
      }
      if (digests.length === 0) return
      await this.#take(mirror, digests)
    }
  }

  /**
   * Evicts from all mirrors, also those of old configurations, until the disk has so many bytes more.
   * @returns bytes that it has got back
   */
  async #evictForFloor(bytes: number): Promise<number> {
    const { store, flush } = this.#options
    await flush()
    let freed = 0
    while (freed < bytes) {
      const names = (await store.listStates()).map(({ name }) => name)
      const firsts = await Promise.all(names.map((mirror) => this.#findGiving(mirror)))
      const [oldest] = firsts.flat().sort((one, other) => one.usedAt - other.usedAt)
      if (oldest === undefined) return freed
      const gained = await this.#take(oldest.mirror, [oldest.digest])
      if (gained === undefined) return freed
      freed += gained
    }
    return freed
  }

  /** Of the blobs of a mirror that give space back, the one that was used longest ago; none, or that one. */
  async #findGiving(mirror: string): Promise<({ readonly mirror: string } & MirroredBlob)[]> {
    const { store } = this.#options
    const known = this.#shared.get(mirror)
    const until = known !== undefined && known.until > steadyNow() ? known.until : steadyNow() + sharedFor
    let last = until === known?.until ? known.last : undefined
    for (;;) {
      const page = await store.listLeastUsed(mirror, pageSize, last)
      for (const blob of page) {
        if (!(await this.#isShared(blob.digest))) return [{ mirror, ...blob }]
        last = blob
        this.#shared.set(mirror, { last, until })
      }
      if (page.length < pageSize) return []
    }
  }

  /** What cannot be looked at is taken for nobody else's. */
  async #isShared(digest: Digest): Promise<boolean> {
    try {
      return (await this.#options.blobs.stat(digest))?.isSharedOutside === true
    } catch {
      return false
    }
  }

  /** @returns bytes that the disk has got back: none of what somebody else links; undefined while nothing is collected */
  async #take(mirror: string, digests: readonly Digest[]): Promise<number | undefined> {
    const { store, collector } = this.#options
    await store.evict(mirror, digests)
    const report = await collector.collectBlobs(digests)
    return report?.bytes
  }

  #full(): RegistryError {
    const { floor } = this.#options
    return new RegistryError(
      'STORAGE_FULL',
      `the disk of this registry would have less than the ${floor} free bytes that disk.floor demands, whatever mirrors give back`,
    )
  }
}
