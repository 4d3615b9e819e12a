import { setTimeout as delay } from 'node:timers/promises'
import type { Digest } from '../oci/digest.js'
import { parseDigest } from '../oci/digest.js'
import type { CollectionReport } from '../registry/gc.js'
import { explainDigest, type Reason } from '../registry/gc-explain.js'
import type { GarbageOptions } from '../registry/gc-moments.js'
import { previewCollection } from '../registry/gc-preview.js'
import { createCollector, garbageOptions } from '../stores.js'
import { type Command, Misuse, note, parse, Refusal, say, sharedUsage, words } from './command.js'
import { interruptible, type Progress, showProgress } from './progress.js'
import { type Place, withPlace } from './store.js'
import { formatBytes, formatDuration, formatJson, formatTable, formatTime } from './table.js'

/** Milliseconds for which a command waits for a collection of the server. */
const patience = 60_000

/** `boathouse gc` */
export const gc: Command = {
  usage: `Garbage collection: what nobody needs any more is removed from the disk

  boathouse gc                    collect now, beside a running server too; Ctrl-C stops it, the next one goes on
  boathouse gc --dry-run          say what would go
  boathouse gc --explain DIGEST   say why a blob or a manifest is kept, or when it goes
  boathouse gc --unknown          remove files that the index does not know even when they are many

  --json          answer in JSON
${sharedUsage}

The server collects by itself: gc.interval says how often, gc.grace how long unused blobs stay, gc.untagged how long
manifests without a tag do.`,

  async run(args) {
    const { values, positionals } = parse(args, {
      'dry-run': { type: 'boolean' },
      json: { type: 'boolean' },
      unknown: { type: 'boolean' },
      explain: { type: 'string' },
    })
    words(positionals)
    const { explain, unknown = false, json = false, 'dry-run': isDry = false } = values
    if ([explain !== undefined, unknown, isDry].filter(Boolean).length > 1) {
      throw new Misuse('--dry-run, --explain and --unknown do not go together.')
    }
    const digest = explain === undefined ? undefined : readDigest(explain)
    return withPlace(values, async (place) => {
      if (digest !== undefined) return tellReasons(place, digest, json)
      const report = isDry
        ? await previewCollection(place.stores, optionsOf(place))
        : await collect(place, unknown)
      tellReport(report, { json, isDry })
      return report.isInterrupted ? 1 : 0
    })
  },
}

function readDigest(text: string): Digest {
  try {
    return parseDigest(text)
  } catch {
    throw new Misuse(
      '--explain takes a digest such as sha256:0123…; "boathouse tag list REPOSITORY" shows those of tags.',
    )
  }
}

function optionsOf({ config }: Place): GarbageOptions {
  return garbageOptions(config, 'command:')
}

async function collect(place: Place, unknown: boolean): Promise<CollectionReport> {
  const progress = showProgress()
  try {
    return await interruptible((signal) => collectUntil(signal, place, unknown, progress))
  } finally {
    progress.end()
  }
}

async function collectUntil(
  signal: AbortSignal,
  place: Place,
  unknown: boolean,
  progress: Progress,
): Promise<CollectionReport> {
  const collector = createCollector(place.config, place.stores, `command-${process.pid}`)
  const begin = performance.now()
  const deadline = begin + patience
  for (;;) {
    const report = await collector.collect({
      strangers: unknown ? 'all' : 'some',
      signal,
      onProgress: (report) => progress.show(() => describeCollection(report, performance.now() - begin)),
    })
    if (report !== undefined) {
      const { blobs, bytes } = report
      place.audit('garbage collected', { blobs, bytes })
      return report
    }
    if (signal.aborted || performance.now() > deadline) {
      throw new Refusal('The server is collecting garbage already: nothing is left to do here.')
    }
    await delay(200)
  }
}

/** How far it is, how fast, and how long the rest takes at that. @param milliseconds since the beginning */
function describeCollection({ blobs, bytes, blobsFound }: CollectionReport, milliseconds: number): string {
  const left =
    blobs > 0 && blobsFound > 0 ? formatDuration(((blobsFound - blobs) / blobs) * milliseconds) : '?'
  const rate = formatBytes((bytes / Math.max(1, milliseconds)) * 1000)
  return `removed ${blobs} of ${blobsFound || '?'} blobs, ${formatBytes(bytes)}, ${rate}/s, ${left} left`
}

function tellReport(report: CollectionReport, { json, isDry }: { json: boolean; isDry: boolean }): void {
  const repositories = [...report.repositories].sort(([one], [other]) => (one < other ? -1 : 1))
  if (json) {
    const { blobs, bytes, strangersLeft, isInterrupted } = report
    const list = repositories.map(([name, counts]) => ({ name, ...counts }))
    say(
      formatJson({
        dryRun: isDry,
        blobs,
        bytes,
        unknownLeft: strangersLeft,
        interrupted: isInterrupted,
        repositories: list,
      }),
    )
    return
  }
  if (repositories.length > 0) {
    const rows = repositories.map(([name, { manifests, blobs, bytes }]) => [
      name,
      String(manifests),
      String(blobs),
      formatBytes(bytes),
    ])
    say(formatTable(['REPOSITORY', 'MANIFESTS', 'BLOBS', 'BYTES'], rows))
  }
  const freed = `${report.blobs} blobs, ${formatBytes(report.bytes)}`
  say(
    isDry
      ? `Would free ${freed}.`
      : `Freed ${freed}${report.isInterrupted ? '; interrupted, the next collection goes on' : ''}.`,
  )
  if (report.strangersLeft > 0) {
    note(
      `${report.strangersLeft} files are unknown to the index and were left: is it an older index? --unknown removes them.`,
    )
  }
}

async function tellReasons(place: Place, digest: Digest, json: boolean): Promise<number> {
  const reasons = await explainDigest(place.stores.collection, optionsOf(place), digest)
  if (json) say(formatJson({ digest, reasons }))
  else if (reasons.length === 0) say(`The index does not know ${digest}.`)
  else for (const reason of reasons) say(sentence(reason))
  return reasons.length === 0 ? 1 : 0
}

function sentence({ what, isKept, until, why }: Reason): string {
  if (!isKept) return `${what}: goes with the next collection: ${why}`
  return `${what}: kept${until === undefined ? '' : ` until ${formatTime(until, '')}`}: ${why}`
}
