import type { Config } from '../../config/schema.js'
import { showName } from '../../config/words.js'
import type { SyncedImage, SyncProgress, SyncReport } from '../mirror-sync-app.js'
import { Misuse, note, parse, Refusal, say } from './command.js'
import { describeProgress, interruptible, showProgress } from './progress.js'
import { type Place, withPlace } from './store.js'
import { formatBytes, formatDuration, formatJson, formatTable } from './table.js'

/** `boathouse mirror sync` */
export async function sync(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, { 'dry-run': { type: 'boolean' }, json: { type: 'boolean' } })
  if (positionals.length > 1) throw new Misuse('There are words after NAME.')
  const [name] = positionals
  const isDry = values['dry-run'] === true
  return withPlace(values, async (place) => {
    const reports = await run(place, chooseMirrors(place.config, name), isDry)
    if (!isDry) {
      for (const { mirror, fetchedBytes, images } of reports) {
        place.audit('mirror synced', { mirror, images: images.length, bytes: fetchedBytes })
      }
    }
    if (values.json === true) say(formatJson({ dryRun: isDry, mirrors: reports.map(toJson) }))
    else for (const report of reports) tell(report, isDry)
    const isInterrupted = reports.some((report) => report.isInterrupted)
    if (isInterrupted) note('Interrupted: the next sync goes on from there.')
    const isFailed = reports.some(({ images }) => images.some(({ state }) => state === 'failed'))
    return isInterrupted || isFailed ? 1 : 0
  })
}

/** The mirrors that are meant. @throws Refusal when they fetch nothing ahead */
function chooseMirrors({ mirrors }: Config, name: string | undefined): readonly string[] {
  if (mirrors.length === 0)
    throw new Refusal('There are no mirrors in the settings: name their file with --config.')
  if (name !== undefined && mirrors.every((mirror) => mirror.name !== name)) {
    throw new Refusal(
      `There is no mirror ${showName(name)}: "boathouse mirror status" shows which there are.`,
    )
  }
  const chosen = mirrors.filter((mirror) => name === undefined || mirror.name === name)
  const able = chosen.filter(({ sync }) => sync !== undefined)
  if (able.length > 0) return able.map((mirror) => mirror.name)
  const which =
    name === undefined ? 'No mirror has the setting sync' : `The mirror ${name} has no setting sync`
  throw new Refusal(`${which}, which names what to fetch: "boathouse serve --help" describes it.`)
}

async function run(place: Place, mirrors: readonly string[], isDry: boolean): Promise<readonly SyncReport[]> {
  const { previewSync, syncMirrors } = await import('../mirror-sync-app.js')
  const progress = showProgress()
  const describe = describer()
  try {
    return await interruptible(async (signal) => {
      const onProgress = (far: SyncProgress) => progress.show(() => describe(far))
      const onError = (error: unknown, what: string) =>
        note(`${what}: ${error instanceof Error ? error.message : error}`)
      const options = { mirrors, signal, onProgress, onError }
      if (isDry) return previewSync(place.config, place.stores, options)
      const reports = await syncMirrors(place.config, place.stores, options)
      if (reports === undefined) throw new Refusal('Another sync is at work: wait for its end.')
      return reports
    })
  } finally {
    progress.end()
  }
}

/** Words for how far a sync is; the rate is that of the mirror's blobs alone. */
function describer(): (progress: SyncProgress) => string {
  let begun: { readonly mirror: string; readonly at: number } | undefined
  return ({ mirror, looked, images, bytes, allBytes, failures }) => {
    const failed = failures === 0 ? '' : `, ${failures} failed`
    if (allBytes === undefined) return `${mirror}: looked at ${looked} of ${images} images${failed}`
    if (begun?.mirror !== mirror) begun = { mirror, at: performance.now() }
    return `${mirror}: ${describeProgress(bytes, allBytes, performance.now() - begun.at)}${failed}`
  }
}

function toJson(report: SyncReport) {
  const { isInterrupted, milliseconds, ...rest } = report
  return { interrupted: isInterrupted, ...rest, milliseconds: Math.round(milliseconds) }
}

function tell(report: SyncReport, isDry: boolean): void {
  const { mirror, images } = report
  if (isDry && images.length > 0) {
    const rows = images.map((image) => [
      image.image,
      formatBytes(image.bytes),
      image.state === 'failed' ? 'failed' : formatBytes(image.missingBytes),
    ])
    say(formatTable(['IMAGE', 'BYTES', 'TO FETCH'], rows))
  }
  const failed = images.filter(({ state }) => state === 'failed')
  for (const { image, reason } of failed) say(`${image}: ${reason}`)
  say(`${mirror}: ${isDry ? describePreview(report) : describeReport(report)}.`)
}

function describePreview({ images, missingBlobs, missingBytes, blobs, bytes }: SyncReport): string {
  const failed = count(images, 'failed')
  return (
    `${failed === 0 ? '' : `${failed} of ${images.length} images failed; `}would fetch ${missingBlobs} blobs, ` +
    `${formatBytes(missingBytes)}; ${blobs - missingBlobs} blobs, ${formatBytes(bytes - missingBytes)}, are here`
  )
}

function describeReport({ images, fetchedBytes, milliseconds }: SyncReport): string {
  const failed = count(images, 'failed')
  const partial = count(images, 'partial')
  return (
    `${count(images, 'complete')} of ${images.length} images are here` +
    `${failed === 0 ? '' : `, ${failed} failed`}${partial === 0 ? '' : `, ${partial} in part`}; ` +
    `fetched ${formatBytes(fetchedBytes)} in ${formatDuration(milliseconds)}`
  )
}

function count(images: readonly SyncedImage[], state: SyncedImage['state']): number {
  return images.filter((image) => image.state === state).length
}
