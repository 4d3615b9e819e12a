import { AggregatorRegistry, Counter, collectDefaultMetrics, Gauge, Histogram, register } from 'prom-client'

/** Totals of the stores, read when somebody asks for the metrics. */
export interface StoreTotals {
  readonly blobs: number
  readonly blobBytes: number
  readonly openUploads: number
  readonly metadataBytes: number
  readonly diskFreeBytes: number
  /** Bytes, by the patterns of the quotas. */
  readonly quotas: readonly {
    readonly pattern: string
    readonly limit: number
    readonly used: number
    readonly waiting: number
    readonly overhead: number
  }[]
  readonly collections: number
  readonly collectedBlobs: number
  readonly collectedBytes: number
  readonly collectedAt: number
  readonly collectionSeconds: number
  readonly damagedBlobs: number
  readonly verifiedAt: number
  readonly verificationProblems: number
}

/** What one mirror has done, holds, and knows of its upstream. Times are in seconds since 1970. */
export interface MirrorTotals {
  readonly name: string
  readonly hits: number
  readonly misses: number
  readonly bytesFetched: number
  readonly bytesSaved: number
  readonly evictedBlobs: number
  readonly evictedBytes: number
  readonly bytes: number
  /** Undefined, here and below, for what there is not. */
  readonly budget: number | undefined
  readonly isUp: boolean | undefined
  readonly isBreakerOpen: boolean
  readonly rateLimit: number | undefined
  readonly rateRemaining: number | undefined
  readonly syncedAt: number | undefined
  readonly syncFailures: number | undefined
}

/** One answered request. Its labels come from short fixed lists, so that the series stay few. */
export interface Observation {
  /** Name of the endpoint's handler; `none` for paths that nothing serves. */
  readonly route: string
  readonly method: string
  readonly status: number
  readonly seconds: number
  /** On the wire, headers included. */
  readonly bytesIn: number
  readonly bytesOut: number
}

/** Gauges of the client library that are called as counters are: Prometheus complains. Their sums by kind are there. */
const misnamed = [
  'nodejs_active_handles_total',
  'nodejs_active_requests_total',
  'nodejs_active_resources_total',
]

/** Bounds that clients can meet; what happens then is in docs/OPERATIONS.md. */
export const bounds = [
  'connections',
  'connections_per_address',
  'requests_per_client',
  'waiting_requests',
  'answer_memory',
  'body_memory',
  'standstill',
] as const

/** The name of a bound, for the metrics. */
export type Bound = (typeof bounds)[number]

/** What the wire of one process holds now. */
export interface WireState {
  readonly connections: number
  readonly answerBytes: number
  readonly bodyBytes: number
}

const knownMethods = new Set(['GET', 'HEAD', 'POST', 'PATCH', 'PUT', 'DELETE', 'OPTIONS'])

/** The Prometheus metrics of one process. */
export class Metrics {
  readonly #requests = new Counter({
    name: 'boathouse_http_requests_total',
    help: 'Requests answered, by route, method and status',
    labelNames: ['route', 'method', 'status'] as const,
  })
  readonly #durations = new Histogram({
    name: 'boathouse_http_request_duration_seconds',
    help: 'Time from a request to the end of its answer, by route',
    labelNames: ['route'] as const,
    buckets: [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60, 600],
  })
  readonly #bytesIn = new Counter({ name: 'boathouse_http_received_bytes_total', help: 'Bytes received' })
  readonly #bytesOut = new Counter({ name: 'boathouse_http_sent_bytes_total', help: 'Bytes sent' })
  readonly #bounds = new Counter({
    name: 'boathouse_bounds_met_total',
    help: 'Times that a bound was met, by its name',
    labelNames: ['bound'] as const,
  })
  /** Looking up a label set costs more than counting: each is looked up once. */
  readonly #children = new Map<string, { count: () => void; observe: (seconds: number) => void }>()

  /** @param mirrors of the configuration, which bounds their number; undefined when there are none */
  constructor(totals: () => Promise<StoreTotals>, mirrors?: () => Promise<readonly MirrorTotals[]>) {
    collectDefaultMetrics()
    for (const name of misnamed) register.removeSingleMetric(name)
    for (const bound of bounds) this.#bounds.labels(bound).inc(0)
    const gauge = (name: string, help: string, read: (totals: StoreTotals) => number) =>
      new Gauge({
        name,
        help,
        aggregator: 'first', // every worker sees the same stores
        async collect() {
          this.set(read(await totals()))
        },
      })
    gauge('boathouse_blobs', 'Blobs stored', (all) => all.blobs)
    gauge('boathouse_blob_bytes', 'Bytes of the blobs stored', (all) => all.blobBytes)
    gauge('boathouse_open_uploads', 'Upload sessions that are open', (all) => all.openUploads)
    const counter = (name: string, help: string, read: (totals: StoreTotals) => number) =>
      new Counter({
        name,
        help,
        aggregator: 'first',
        async collect() {
          const value = read(await totals())
          this.reset()
          this.inc(value)
        },
      })
    counter('boathouse_gc_runs_total', 'Garbage collections that have ended', (all) => all.collections)
    counter('boathouse_gc_blobs_total', 'Blobs that they have removed', (all) => all.collectedBlobs)
    counter('boathouse_gc_bytes_total', 'Bytes of these blobs', (all) => all.collectedBytes)
    const end = 'When the last garbage collection ended, in seconds since 1970; 0 when there was none'
    gauge('boathouse_gc_last_end_seconds', end, (all) => all.collectedAt)
    gauge('boathouse_gc_last_duration_seconds', 'How long that one took', (all) => all.collectionSeconds)
    gauge(
      'boathouse_damaged_blobs',
      'Blobs whose bytes were found altered or missing',
      (all) => all.damagedBlobs,
    )
    const verified = 'When everything stored was last verified, in seconds since 1970; 0 when it never was'
    gauge('boathouse_verify_last_end_seconds', verified, (all) => all.verifiedAt)
    const problems = 'What that verification found and could not mend'
    gauge('boathouse_verify_last_problems', problems, (all) => all.verificationProblems)
    const free = 'Bytes that can still be written to the disk of the data folder'
    gauge('boathouse_disk_free_bytes', free, (all) => all.diskFreeBytes)
    type Quota = StoreTotals['quotas'][number]
    const quotaGauge = (name: string, help: string, read: (quota: Quota) => number) =>
      new Gauge({
        name,
        help,
        labelNames: ['quota'] as const,
        aggregator: 'first',
        async collect() {
          this.reset()
          for (const quota of (await totals()).quotas) this.set({ quota: quota.pattern }, read(quota))
        },
      })
    quotaGauge('boathouse_quota_limit_bytes', 'Bytes that a quota allows', ({ limit }) => limit)
    quotaGauge('boathouse_quota_used_bytes', 'Bytes that count against a quota', ({ used }) => used)
    const deleted = 'Bytes of these that were deleted and are on the disk still'
    quotaGauge('boathouse_quota_deleted_bytes', deleted, ({ waiting }) => waiting)
    const entries = 'Bytes at which entries of the index and files count beside them'
    quotaGauge('boathouse_quota_overhead_bytes', entries, ({ overhead }) => overhead)
    gauge('boathouse_metadata_bytes', 'Bytes of the index on disk', (all) => all.metadataBytes)
    if (mirrors !== undefined) describeMirrors(mirrors)
  }

  observe(observation: Observation): void {
    const { route, status, seconds, bytesIn, bytesOut } = observation
    const method = knownMethods.has(observation.method) ? observation.method : 'other'
    const key = `${route} ${method} ${status}`
    let child = this.#children.get(key)
    if (child === undefined) {
      const counter = this.#requests.labels(route, method, String(status))
      const histogram = this.#durations.labels(route)
      child = { count: () => counter.inc(), observe: (value) => histogram.observe(value) }
      this.#children.set(key, child)
    }
    child.count()
    child.observe(seconds)
    this.#bytesIn.inc(bytesIn)
    this.#bytesOut.inc(bytesOut)
  }

  /** Counts that a bound was met. */
  readonly met = (bound: Bound): void => {
    this.#bounds.labels(bound).inc()
  }

  /** Shows when the certificate ends. @param expiry seconds since 1970; undefined where there is none */
  describeCertificate(expiry: () => number | undefined): void {
    new Gauge({
      name: 'boathouse_tls_certificate_expiry_seconds',
      help: 'When the certificate expires, in seconds since 1970',
      aggregator: 'min',
      collect() {
        const at = expiry()
        if (at === undefined) this.remove()
        else this.set(at)
      },
    })
  }

  /** Shows what the wire holds. */
  describeWire(state: () => WireState): void {
    const gauge = (name: string, help: string, read: (state: WireState) => number) =>
      new Gauge({
        name,
        help,
        collect() {
          this.set(read(state()))
        },
      })
    gauge('boathouse_connections', 'Connections that are open', (now) => now.connections)
    const answers = 'Bytes of large answers that their readers have not taken yet'
    gauge('boathouse_answer_memory_bytes', answers, (now) => now.answerBytes)
    const bodies = 'Bytes of memory that are lent to manifests and forms that come in'
    gauge('boathouse_body_memory_bytes', bodies, (now) => now.bodyBytes)
  }

  /** All metrics of this process alone. */
  async text(): Promise<{ contentType: string; text: string }> {
    return { contentType: register.contentType, text: await register.metrics() }
  }
}

/** A series for each mirror, of what the store knows: every worker sees the same. */
function describeMirrors(mirrors: () => Promise<readonly MirrorTotals[]>): void {
  type Read = (mirror: MirrorTotals) => number | undefined
  const labelNames = ['mirror'] as const
  const aggregator = 'first'
  const counter = (name: string, help: string, read: Read) =>
    new Counter({
      name: `boathouse_mirror_${name}`,
      help,
      labelNames,
      aggregator,
      async collect() {
        const all = await mirrors()
        this.reset()
        for (const mirror of all) this.inc({ mirror: mirror.name }, read(mirror))
      },
    })
  const gauge = (name: string, help: string, read: Read) =>
    new Gauge({
      name: `boathouse_mirror_${name}`,
      help,
      labelNames,
      aggregator,
      async collect() {
        const all = await mirrors()
        this.reset()
        for (const mirror of all) {
          const value = read(mirror)
          if (value !== undefined) this.set({ mirror: mirror.name }, value)
        }
      },
    })
  counter('hits_total', 'Requests that a mirror answered from here', (one) => one.hits)
  counter('misses_total', 'Requests for which it had to ask upstream', (one) => one.misses)
  counter('fetched_bytes_total', 'Bytes that came from upstream', (one) => one.bytesFetched)
  counter('saved_bytes_total', 'Bytes that were sent without fetching them', (one) => one.bytesSaved)
  counter('evicted_blobs_total', 'Blobs that made room for others', (one) => one.evictedBlobs)
  counter('evicted_bytes_total', 'Bytes of these blobs', (one) => one.evictedBytes)
  gauge('held_bytes', 'Bytes of the blobs that it holds', (one) => one.bytes)
  gauge('budget_bytes', 'Bytes that it may hold, where that is bounded', (one) => one.budget)
  gauge('upstream_up', '1 when its upstream answered the last request, 0 when not', (one) =>
    toNumber(one.isUp),
  )
  const open = '1 while its upstream is not asked, since it failed again and again'
  gauge('breaker_open', open, (one) => toNumber(one.isBreakerOpen))
  gauge('ratelimit_limit', 'Requests that its upstream allows', (one) => one.rateLimit)
  gauge('ratelimit_remaining', 'Requests of these that are left', (one) => one.rateRemaining)
  gauge('last_sync_seconds', 'When its last sync ended, in seconds since 1970', (one) => one.syncedAt)
  gauge('last_sync_failures', 'Images that were not whole after it', (one) => one.syncFailures)
}

function toNumber(value: boolean | undefined): number | undefined {
  return value === undefined ? undefined : Number(value)
}

/** Answers the primary process when it collects the metrics of all workers. */
export function shareMetrics(): void {
  new AggregatorRegistry()
}
