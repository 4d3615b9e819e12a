import { Cron } from 'croner'
import { showName } from '../../config/words.js'
import { listMirrors, type MirrorOverview } from '../mirror-states.js'
import { Misuse, parse, Refusal, say } from './command.js'
import { withPlace } from './store.js'
import { formatBytes, formatJson, formatTime } from './table.js'

/** `boathouse mirror status` */
export async function status(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, { json: { type: 'boolean' } })
  if (positionals.length > 1) throw new Misuse('There are words after NAME.')
  const [name] = positionals
  return withPlace(values, async ({ config, stores }) => {
    const all = await listMirrors(config.mirrors, stores.mirrors)
    const chosen = name === undefined ? all : all.filter((mirror) => mirror.name === name)
    if (name !== undefined && chosen.length === 0)
      throw new Refusal(`There is no mirror ${showName(name)} in the settings of --config.`)
    if (values.json === true) say(formatJson(chosen.map(toJson)))
    else if (chosen.length === 0) {
      say('There are no mirrors in the settings: name their file with --config.')
    } else say(chosen.map(describe).join('\n\n'))
    return 0
  })
}

function toJson(mirror: MirrorOverview) {
  const { name, config, upstream, lastSync } = mirror
  return {
    name,
    isConfigured: config !== undefined,
    urls: config?.urls ?? [],
    upstream: {
      state: upstream.state,
      breaker: upstream.isBreakerOpen ? 'open' : 'closed',
      answeredAt: timeOf(upstream.answeredAt),
      failedAt: timeOf(upstream.failedAt),
      failure: upstream.failure ?? null,
      retryAt: timeOf(upstream.retryAt),
      limitedUntil: timeOf(upstream.limitedUntil),
      rateLimit: upstream.rateLimit ?? null,
    },
    hits: mirror.hits,
    misses: mirror.misses,
    bytesSaved: mirror.bytesSaved,
    bytesFetched: mirror.bytesFetched,
    blobs: mirror.blobs,
    bytes: mirror.bytes,
    budget: config?.budget ?? null,
    evictedBlobs: mirror.evictedBlobs,
    evictedBytes: mirror.evictedBytes,
    lastSync:
      lastSync === undefined
        ? null
        : { ...lastSync, startedAt: timeOf(lastSync.startedAt), endedAt: timeOf(lastSync.endedAt) },
    nextSync: timeOf(nextSync(mirror)),
  }
}

function timeOf(time: number | undefined): string | null {
  return time === undefined ? null : formatTime(time, '')
}

function describe(mirror: MirrorOverview): string {
  const { name, config } = mirror
  const lines: [string, string][] = [
    ['upstream', describeUpstream(mirror)],
    ['served', describeServed(mirror)],
    ['holds', describeHeld(mirror)],
    ['quota', describeQuota(mirror)],
    ['sync', describeSync(mirror)],
  ]
  const head = `${name}  ${config === undefined ? 'not configured any more' : config.urls.join(', ')}`
  return [head, ...lines.map(([label, text]) => `  ${label.padEnd(8)}  ${text}`)].join('\n')
}

function describeUpstream({ upstream }: MirrorOverview): string {
  const { state, answeredAt, failedAt, failure, retryAt, limitedUntil } = upstream
  switch (state) {
    case 'unknown':
      return 'not asked yet'
    case 'up':
      return `up, answered at ${formatTime(answeredAt, '')}`
    case 'limited':
      return `wants no requests until ${formatTime(limitedUntil, '')}`
    case 'down': {
      const again = retryAt === undefined ? 'by the next request' : `at ${formatTime(retryAt, '')}`
      return `down at ${formatTime(failedAt, '')}: ${failure}; last answer ${formatTime(answeredAt, 'never')}; asked again ${again}`
    }
  }
}

function describeServed({ hits, misses, bytesSaved, bytesFetched }: MirrorOverview): string {
  const all = hits + misses
  const share = all === 0 ? '' : ` (${Math.floor((100 * hits) / all)} % from here)`
  return `${hits} hits, ${misses} misses${share}; ${formatBytes(bytesSaved)} saved, ${formatBytes(bytesFetched)} fetched`
}

function describeHeld({ config, blobs, bytes, evictedBlobs, evictedBytes }: MirrorOverview): string {
  const budget = config?.budget === undefined ? '' : ` of ${formatBytes(config.budget)}`
  const gone = evictedBlobs === 0 ? '' : `; ${evictedBlobs} blobs, ${formatBytes(evictedBytes)}, made room`
  return `${blobs} blobs, ${formatBytes(bytes)}${budget}${gone}`
}

function describeQuota({ upstream }: MirrorOverview): string {
  const { limit, remaining } = upstream.rateLimit ?? {}
  if (limit === undefined && remaining === undefined) return 'the upstream names none'
  return `${remaining ?? '?'} of ${limit ?? '?'} requests left`
}

function describeSync(mirror: MirrorOverview): string {
  const { config, lastSync } = mirror
  if (config?.sync === undefined && lastSync === undefined) return 'nothing is fetched ahead'
  const next = nextSync(mirror)
  const then = next === undefined ? '' : `; next at ${formatTime(next, '')}`
  if (lastSync === undefined) return `never yet${then}`
  const { endedAt, images, complete, failed, interrupted, failures } = lastSync
  const [first] = failures
  const why = first === undefined ? '' : ` (${first.image}: ${first.reason}${failed > 1 ? '; …' : ''})`
  const trouble = `${failed === 0 ? '' : `, ${failed} failed${why}`}${interrupted ? ', interrupted' : ''}`
  return `${complete} of ${images} images at ${formatTime(endedAt, '')}${trouble}${then}`
}

/** When the schedule comes true next, in milliseconds since 1970. */
function nextSync({ config }: MirrorOverview): number | undefined {
  const schedule = config?.sync?.schedule
  if (schedule === undefined) return undefined
  return new Cron(schedule, { paused: true, mode: '5-or-6-parts' }).nextRun()?.getTime()
}
