import { resolve, sep } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { dataPaths } from '../../storage/data-folder.js'
import { IndexDamagedError } from '../../storage/errors.js'
import { BackupInUseError, type CopyReport, CopyStoppedError, makeBackup } from '../../storage/file-backup.js'
import { type Command, note, parse, Refusal, say, sharedUsage, words } from './command.js'
import { describeDataFailure, describeFolderFailure } from './folder-failure.js'
import { describeProgress, interruptible, showProgress } from './progress.js'
import { type Place, withPlace } from './store.js'
import { formatBytes, formatJson } from './table.js'

/** Milliseconds for which a backup waits for a collection that is at work, and between two tries. */
const collectorPatience = 600_000
const collectorPause = 20

/** What became of a backup. */
interface Outcome {
  readonly report: CopyReport
  readonly isInterrupted: boolean
}

/** `boathouse backup` */
export const backup: Command = {
  usage: `Copy everything that is stored to another folder, beside a running server too

  boathouse backup DIR    a new folder, or one of an earlier backup, which is brought up to date

  --json          answer in JSON
${sharedUsage}

Blobs are linked where DIR is on the same filesystem, and copied elsewhere; those that are there already are not copied
again. It can be interrupted: DIR is what it was, and the next backup goes on. "boathouse restore DIR" brings it back.
DIR holds the keys that sign logins and everybody's password hashes: keep it as safe as the data folder.`,

  async run(args) {
    const { values, positionals } = parse(args, { json: { type: 'boolean' } })
    const [target] = words(positionals, 'DIR')
    return withPlace(values, async (place) => {
      const { report, isInterrupted } = await run(place, resolve(target))
      const { blobs, bytes, newBlobs, newBytes, missing } = report
      if (!isInterrupted) place.audit('backed up', { blobs, bytes, newBlobs, newBytes })
      if (values.json === true) say(formatJson({ interrupted: isInterrupted, ...toJson(report) }))
      else if (!isInterrupted) tell(report, target)
      if (isInterrupted) note('Interrupted: the next backup goes on from here.')
      return isInterrupted || missing.length > 0 ? 1 : 0
    })
  },
}

async function run(place: Place, target: string): Promise<Outcome> {
  const root = place.config.data
  if (target === root || target.startsWith(`${root}${sep}`) || root.startsWith(`${target}${sep}`)) {
    throw new Refusal('A backup must lie outside of the data folder, and not around it.')
  }
  const { database, keys } = dataPaths(root)
  const progress = showProgress()
  const begin = performance.now()
  try {
    const report = await interruptible((signal) =>
      makeBackup({
        root,
        database,
        keys,
        target,
        signal,
        excludeCollectors: () => excludeCollectors(place),
        onProgress: ({ bytes, counts }) =>
          progress.show(() => describeProgress(bytes, counts.bytes, performance.now() - begin)),
      }),
    )
    return { report, isInterrupted: false }
  } catch (error) {
    if (error instanceof CopyStoppedError) return { report: error.report, isInterrupted: true }
    const isExpected = error instanceof IndexDamagedError || error instanceof BackupInUseError
    if (isExpected) throw new Refusal(error.message)
    const advice = 'name another folder, or run the command as the user whose it is'
    const sentence =
      describeFolderFailure(error, { folder: target, what: 'folder of the backup', advice }) ??
      describeDataFailure(error, root)
    throw sentence === undefined ? error : new Refusal(sentence)
  } finally {
    progress.end()
  }
}

/** What is removed while it is copied would be missing: so the collector's place is taken for that time. */
async function excludeCollectors({ stores: { collection } }: Place): Promise<() => Promise<void>> {
  const deadline = performance.now() + collectorPatience
  while (!(await collection.startCollection())) {
    if (performance.now() > deadline) throw new Refusal('Garbage collection takes too long: try again.')
    await delay(collectorPause)
  }
  return () => collection.endCollection(undefined)
}

function toJson({ counts, missing, ...report }: CopyReport) {
  const { repositories, manifests, tags } = counts
  return { repositories, manifests, tags, ...report, missing }
}

function tell(report: CopyReport, target: string): void {
  const { counts, blobs, bytes, newBlobs, newBytes, missing, damaged } = report
  for (const digest of missing) say(`missing: ${digest}`)
  say(
    `Backed up ${counts.tags} tags, ${counts.manifests} manifests and ${blobs} blobs with ${formatBytes(bytes)} to ${target}: ${newBlobs} blobs with ${formatBytes(newBytes)} are new.`,
  )
  if (missing.length > 0) {
    note(`${missing.length} blobs could not be read: "boathouse verify" says what they are needed by.`)
  }
  if (damaged > 0) {
    note(
      `Damaged blobs: ${damaged}. Of these the backup has what an earlier one had; "boathouse verify" names the images to push again.`,
    )
  }
}
