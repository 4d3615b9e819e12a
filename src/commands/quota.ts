import { overheadLimit } from '../../storage/quota-store.js'
import { matchesRepository, parseRepositoryPattern } from '../oci/repository-pattern.js'
import { type GivenUp, giveUpDeleted } from '../registry/gc-free.js'
import { createCollector } from '../stores.js'
import { type Command, note, parse, Refusal, say, sharedUsage, splitCommand, words } from './command.js'
import { checkPattern } from './names.js'
import { type Place, withPlace } from './store.js'
import { formatBytes, formatJson, formatTable } from './table.js'

/** Repositories that are read at once. */
const pageSize = 500

/** `boathouse quota …` */
export const quota: Command = {
  usage: `Quotas: how many bytes repositories may hold together, and how many they do

  boathouse quota                 the quotas that the server last started with, and what is used of each
  boathouse quota free PATTERN    give up for good what was deleted in these repositories, and remove it at once:
                                  images that were deleted, and tags, cannot be brought back any more

  --json          answer in JSON, in bytes
${sharedUsage}

The setting quotas says which there are. Of each repository that a pattern matches count the layers and other blobs that
it links, mounted ones too, its manifests, its unfinished uploads, and what was deleted in it as long as that is on the
disk. Beside these bytes the entries of tags, of their history, of manifests, blobs and uploads may take as much again.`,

  async run(args) {
    const { name, rest } = splitCommand(args)
    return name === 'free' ? free(rest) : list(args)
  },
}

async function list(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, { json: { type: 'boolean' } })
  words(positionals)
  return withPlace(values, async ({ stores }) => {
    const quotas = await stores.quotas.listQuotas()
    if (values.json === true) {
      const rows = quotas.map(({ waiting, ...use }) => ({
        ...use,
        deleted: waiting,
        overheadLimit: overheadLimit(use),
      }))
      say(formatJson(rows))
    } else if (quotas.length === 0) say('There are no quotas: the setting quotas makes some.')
    else {
      const rows = quotas.map(({ pattern, limit, used }) => [
        pattern,
        formatBytes(limit),
        formatBytes(used),
        formatBytes(Math.max(0, limit - used)),
      ])
      say(formatTable(['REPOSITORIES', 'QUOTA', 'USED', 'FREE'], rows))
      for (const use of quotas) {
        const { pattern, waiting, overhead } = use
        if (waiting > 0) {
          note(
            `Below ${pattern} was deleted what still counts: "boathouse quota free '${pattern}'" gives it up for good.`,
          )
        }
        if (overhead > overheadLimit(use) / 2) {
          const most = formatBytes(overheadLimit(use))
          note(`Entries below ${pattern} take ${formatBytes(overhead)} beside that, and may take ${most}.`)
        }
      }
    }
    return 0
  })
}

async function free(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, { json: { type: 'boolean' } })
  const [pattern] = words(positionals, 'PATTERN')
  checkPattern(pattern)
  return withPlace(values, async (place) => {
    const sum = await freeAll(place, pattern)
    place.audit('deleted given up', { pattern, ...sum })
    if (values.json === true) say(formatJson({ pattern, ...sum }))
    else {
      const { manifests, changes, blobs, bytes } = sum
      say(
        `Gave up ${manifests} deleted manifests and ${changes} changes of tags that are gone; ` +
          `freed ${blobs} blobs, ${formatBytes(bytes)}.`,
      )
    }
    return 0
  })
}

async function freeAll({ config, stores }: Place, pattern: string): Promise<GivenUp> {
  const only = parseRepositoryPattern(pattern)
  const collector = createCollector(config, stores, `command-${process.pid}`)
  const sum = { manifests: 0, changes: 0, blobs: 0, bytes: 0 }
  for (let after = ''; ; ) {
    const names = await stores.collection.listDeletedIn(after, pageSize)
    for (const name of names) {
      if (!matchesRepository(only, name)) continue
      const given = await giveUpDeleted(stores.collection, collector, name)
      if (given === undefined) {
        throw new Refusal('Garbage is being collected, which takes its time: run this again when it is done.')
      }
      sum.manifests += given.manifests
      sum.changes += given.changes
      sum.blobs += given.blobs
      sum.bytes += given.bytes
    }
    after = names.at(-1) ?? after
    if (names.length < pageSize) return sum
  }
}
