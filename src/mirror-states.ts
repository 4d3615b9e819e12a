import type { MirrorConfig } from '../config/mirrors.js'
import type { MirrorCounts, MirrorState, MirrorStore } from '../storage/mirror-store.js'
import type { MirrorTotals } from './http/metrics.js'
import type { UpstreamHealth } from './mirror/upstream.js'
import type { LastSync } from './mirror-sync-app.js'

/** How a mirror does, for people and for the metrics. Times are milliseconds since 1970. */
export interface MirrorOverview extends MirrorCounts {
  readonly name: string
  /** Undefined for a mirror that holds something and is not configured any more. */
  readonly config: MirrorConfig | undefined
  readonly upstream: UpstreamState
  /** Distinct blobs that it holds, and their bytes. */
  readonly blobs: number
  readonly bytes: number
  readonly evictedBlobs: number
  readonly evictedBytes: number
  readonly lastSync: LastSync | undefined
}

/** What is known of an upstream by those who asked it last; it is not asked for this. */
export interface UpstreamState extends Partial<UpstreamHealth> {
  /**
   * `up`: it answered when it was asked last; `down`: it did not; `limited`: it wants no requests for a while;
   * `unknown`: it was never asked.
   */
  readonly state: 'up' | 'down' | 'limited' | 'unknown'
  /** Whether it is not asked at the moment because it failed again and again. */
  readonly isBreakerOpen: boolean
}

const nothing: Omit<MirrorState, 'name'> = {
  hits: 0,
  misses: 0,
  bytesFetched: 0,
  bytesSaved: 0,
  blobs: 0,
  bytes: 0,
  evictedBlobs: 0,
  evictedBytes: 0,
  health: undefined,
  healthAt: undefined,
  sync: undefined,
}

/**
 * The configured mirrors in their order, then those that were. What processes have counted reaches the store some
 * seconds later.
 * @throws RegistryError UNAVAILABLE
 */
export async function listMirrors(
  configs: readonly MirrorConfig[],
  store: Pick<MirrorStore, 'listStates'>,
): Promise<readonly MirrorOverview[]> {
  const states = await store.listStates()
  const known = new Map(states.map((state) => [state.name, state]))
  const names = new Set(configs.map(({ name }) => name))
  const others = states.filter(({ name, blobs }) => !names.has(name) && blobs > 0)
  return [
    ...configs.map((config) =>
      overviewOf(known.get(config.name) ?? { name: config.name, ...nothing }, config),
    ),
    ...others.map((state) => overviewOf(state, undefined)),
  ]
}

/** What the metrics tell of a mirror. */
export function totalsOf({ config, upstream, lastSync, ...mirror }: MirrorOverview): MirrorTotals {
  const { state, rateLimit, isBreakerOpen } = upstream
  return {
    ...mirror,
    budget: config?.budget,
    isUp: state === 'unknown' ? undefined : state !== 'down',
    isBreakerOpen,
    rateLimit: rateLimit?.limit,
    rateRemaining: rateLimit?.remaining,
    syncedAt: lastSync && lastSync.endedAt / 1000,
    syncFailures: lastSync && lastSync.images - lastSync.complete,
  }
}

function overviewOf(state: MirrorState, config: MirrorConfig | undefined): MirrorOverview {
  const { health, healthAt: _, sync, ...rest } = state
  return {
    ...rest,
    config,
    upstream: upstreamOf(health === undefined ? {} : JSON.parse(health)),
    lastSync: sync === undefined ? undefined : JSON.parse(sync),
  }
}

/** @param health as a process has written it: what is not known is missing or null */
function upstreamOf(health: Partial<UpstreamHealth>): UpstreamState {
  const { answeredAt, failedAt, breaker } = health
  const now = Date.now()
  const limitedUntil = later(health.limitedUntil, now)
  const retryAt = breaker === 'open' ? later(health.retryAt, now) : undefined
  const isDown = (failedAt ?? 0) > (answeredAt ?? 0)
  const known = answeredAt === undefined ? 'unknown' : 'up'
  const state = isDown ? 'down' : limitedUntil === undefined ? known : 'limited'
  return { ...health, limitedUntil, retryAt, state, isBreakerOpen: retryAt !== undefined }
}

function later(time: number | null | undefined, now: number): number | undefined {
  return typeof time === 'number' && time > now ? time : undefined
}
