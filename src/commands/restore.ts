import { existsSync } from 'node:fs'
import { basename, join, resolve } from 'node:path'
import { DataFolderInUseError, dataPaths } from '../../storage/data-folder.js'
import { CopyStoppedError } from '../../storage/file-backup.js'
import { RestoreError, restoreBackup, restoreIndex } from '../../storage/file-restore.js'
import { listSnapshots, type Snapshot } from '../../storage/file-snapshots.js'
import { type Command, Misuse, note, parse, Refusal, say, sharedUsage, words } from './command.js'
import { describeDataFailure, describeFolderFailure } from './folder-failure.js'
import { loadSettings } from './own-name.js'
import { describeProgress, interruptible, showProgress } from './progress.js'
import { confirm } from './prompt.js'
import { formatBytes, formatJson, formatTime } from './table.js'

/** `boathouse restore` */
export const restore: Command = {
  usage: `Bring a backup back, or go back to an older copy of the index

  boathouse restore DIR                  a backup, to a data folder that is empty or not there (--data)
  boathouse restore --index [SNAPSHOT]   a copy of the index, the newest one unless named; the server must be stopped
  boathouse restore --list               the copies of the index in the data folder

  --yes           do not ask
  --json          answer in JSON
${sharedUsage}

With --index, everything since the copy was made is forgotten: pushes, deletes, users. The index that was there is kept
in damaged/, and blobs that came since stay on the disk.`,

  async run(args) {
    const { values, positionals } = parse(args, {
      index: { type: 'boolean' },
      list: { type: 'boolean' },
      yes: { type: 'boolean' },
      json: { type: 'boolean' },
    })
    const { json = false, index: isIndex = false, list = false, yes = false } = values
    if (isIndex && list) throw new Misuse('--index and --list do not go together.')
    const { data } = await loadSettings({ config: values.config, data: values.data })
    try {
      if (list) return await listAll(data, json)
      if (!isIndex) return await fromBackup(resolve(words(positionals, 'DIR')[0]), data, json)
      if (positionals.length > 1) throw new Misuse('One name of a snapshot may follow --index.')
      return await olderIndex(data, positionals[0], { yes, json })
    } catch (error) {
      const isExpected = error instanceof RestoreError || error instanceof DataFolderInUseError
      throw isExpected ? new Refusal(error.message) : described(error, positionals[0], isIndex || list, data)
    }
  },
}

/** The same error, as a sentence where it is about one of the folders. */
function described(error: unknown, source: string | undefined, isOfIndex: boolean, data: string): unknown {
  const advice = 'name another folder, or run the command as a user who may read it'
  const backup = { folder: resolve(source ?? ''), what: 'folder of the backup', advice }
  const sentence =
    (isOfIndex ? undefined : describeFolderFailure(error, backup)) ?? describeDataFailure(error, data)
  return sentence === undefined ? error : new Refusal(sentence)
}

async function listAll(data: string, json: boolean): Promise<number> {
  const { database, snapshots } = dataPaths(data)
  const all = await listSnapshots(snapshots)
  if (all.length === 0 && !existsSync(database)) {
    throw new Refusal(`There is no registry in ${data}: name its data folder with --data.`)
  }
  if (json) say(formatJson(all.map(({ name, madeAt }) => ({ name, madeAt: formatTime(madeAt, '') }))))
  else for (const { name } of all) say(name)
  if (all.length === 0) note(`There is no copy of the index in ${dataPaths(data).snapshots}.`)
  return 0
}

async function fromBackup(backup: string, data: string, json: boolean): Promise<number> {
  const { report, isInterrupted } = await bring(backup, data)
  const { counts, blobs, bytes, missing, damaged } = report
  if (json) say(formatJson({ interrupted: isInterrupted, ...counts, blobs, bytes, missing, damaged }))
  if (isInterrupted) {
    note('Interrupted: run the same command again, it goes on from here.')
    return 1
  }
  if (!json) {
    for (const digest of missing) say(`missing in the backup: ${digest}`)
    say(
      `Restored ${counts.tags} tags, ${counts.manifests} manifests and ${blobs} blobs with ${formatBytes(bytes)} to ${data}.`,
    )
    if (damaged > 0) {
      note(
        `Damaged when they were backed up: ${damaged} blobs. "boathouse verify" takes those back into service that are whole, and names the images of the others.`,
      )
    }
  }
  if (missing.length > 0) note(`${missing.length} blobs could not be read from the backup.`)
  return missing.length > 0 ? 1 : 0
}

async function bring(backup: string, data: string) {
  const progress = showProgress()
  const begin = performance.now()
  try {
    const report = await interruptible((signal) =>
      restoreBackup(backup, data, {
        signal,
        onProgress: ({ bytes, counts }) =>
          progress.show(() => describeProgress(bytes, counts.bytes, performance.now() - begin)),
      }),
    )
    return { report, isInterrupted: false }
  } catch (error) {
    if (error instanceof CopyStoppedError) return { report: error.report, isInterrupted: true }
    throw error
  } finally {
    progress.end()
  }
}

async function olderIndex(
  data: string,
  name: string | undefined,
  { yes, json }: { yes: boolean; json: boolean },
): Promise<number> {
  const snapshot = await choose(data, name)
  const time = formatTime(snapshot.madeAt, '')
  const question = `Go back to the index of ${time}? What was pushed, deleted or changed since is forgotten.`
  if (!yes && !(await confirm(question, 'add --yes'))) throw new Refusal('Nothing was changed.')
  const report = await restoreIndex(data, snapshot.path, Date.now())
  const { counts, keptIn, unknown, missing } = report
  if (json) {
    say(formatJson({ snapshot: snapshot.name, keptIn, ...counts, unknown, missing }))
    return 0
  }
  const { tags, manifests, blobs } = counts
  say(`The index is that of ${time} again: ${tags} tags, ${manifests} manifests, ${blobs} blobs.`)
  if (keptIn !== undefined) say(`The one before it is kept in ${keptIn}.`)
  say(
    `Lost: what was pushed, deleted or changed since ${time}. ${unknown} files of blobs are left that it does not know.`,
  )
  if (missing > 0)
    note(`${missing} blobs that it names are gone: "boathouse verify" says what they are needed by.`)
  return 0
}

async function choose(data: string, name: string | undefined): Promise<Snapshot> {
  const { snapshots } = dataPaths(data)
  const all = await listSnapshots(snapshots)
  const found = name === undefined ? all[0] : all.find((one) => one.name === basename(name))
  if (found !== undefined) return found
  const where = join(snapshots, name === undefined ? '' : basename(name))
  throw new Refusal(
    `There is no copy of the index ${name === undefined ? 'in' : 'called'} ${where}: "boathouse restore --list" shows what there is.`,
  )
}
