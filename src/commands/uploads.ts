import type { OpenUpload } from '../../storage/metadata-store.js'
import { type Command, commandGroup, Misuse, parse, Refusal, say, sharedUsage, words } from './command.js'
import { type Place, withPlace } from './store.js'
import { formatBytes, formatJson, formatTable, formatTime } from './table.js'

/** Sessions that are read at once. */
const pageSize = 500

const json = { json: { type: 'boolean' } } as const

/** `boathouse uploads` */
export const uploads: Command = commandGroup(
  'uploads',
  `Unfinished uploads: who has which, and ending them

  boathouse uploads list [REPOSITORY]              those that are open, the one that rested longest first
  boathouse uploads cancel ID...                   end these; whoever still writes to one gets an error
  boathouse uploads cancel --repository REPOSITORY  end all of a repository
  boathouse uploads cancel --user USER             end all of a user

  --json          answer in JSON
${sharedUsage}

Each has a limit by user, or by address for who did not log in (uploads.maxPerUser), and each repository one of its own
(uploads.maxPerRepository). What nobody uses for uploads.expireAfter ends by itself. No image is lost with an upload:
what it was to become can be pushed again.`,
  { list, cancel },
)

async function list(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, json)
  const [repository] = positionals.length === 0 ? [undefined] : words(positionals, 'REPOSITORY')
  return withPlace(values, async (place) => {
    const all = await read(place, (upload) => repository === undefined || upload.repository === repository)
    all.sort((one, other) => one.usedAt - other.usedAt)
    if (values.json === true) say(formatJson(all.map(toJson)))
    else if (all.length === 0) say('No upload is open.')
    else {
      const rows = all.map((upload) => [
        upload.id,
        upload.repository,
        nameOf(upload),
        formatBytes(upload.offset),
        formatTime(upload.startedAt, ''),
        upload.isBusy ? 'now' : formatTime(upload.usedAt, ''),
      ])
      say(formatTable(['ID', 'REPOSITORY', 'WHOSE', 'STORED', 'BEGAN', 'LAST USED'], rows))
    }
    return 0
  })
}

async function cancel(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, { repository: { type: 'string' }, user: { type: 'string' } })
  const { repository, user } = values
  const isByName = repository !== undefined || user !== undefined
  if (isByName === positionals.length > 0) {
    throw new Misuse('Say which uploads: their IDs, or --repository REPOSITORY or --user USER.')
  }
  return withPlace(values, async (place) => {
    const wanted = await read(place, (upload) =>
      isByName
        ? (repository === undefined || upload.repository === repository) &&
          (user === undefined || upload.owner === user)
        : positionals.includes(upload.id),
    )
    const missing = positionals.find((id) => !wanted.some((upload) => upload.id === id))
    if (missing !== undefined) {
      throw new Refusal(`There is no open upload ${quote(missing)}: "boathouse uploads list" shows them.`)
    }
    let count = 0
    for (const { id, repository, owner } of wanted) {
      if (!(await place.stores.metadata.cancelUpload(id))) continue // it ended by itself
      await place.stores.blobs.discard(id)
      place.audit('upload cancelled', { upload: id, repository, owner })
      count++
    }
    say(count === 1 ? '1 upload was cancelled.' : `${count} uploads were cancelled.`)
    return 0
  })
}

async function read({ stores }: Place, isWanted: (upload: OpenUpload) => boolean): Promise<OpenUpload[]> {
  const all: OpenUpload[] = []
  for (let after = ''; ; ) {
    const page = await stores.metadata.listUploads(after, pageSize)
    all.push(...page.filter(isWanted))
    if (page.length < pageSize) return all
    after = page.at(-1)?.id ?? after
  }
}

/** Whose it is: a user, an address, or a mirror that fetches. */
function nameOf({ owner, source }: OpenUpload): string {
  if (owner !== '') return owner
  return source === '' ? '-' : source.replace(/^address:/, '')
}

function toJson(upload: OpenUpload): object {
  const { id, repository, owner, offset, startedAt, usedAt, isBusy } = upload
  return {
    id,
    repository,
    ...(owner === '' ? { address: nameOf(upload) } : { user: owner }),
    bytes: offset,
    startedAt: new Date(startedAt).toISOString(),
    usedAt: new Date(usedAt).toISOString(),
    isBusy,
  }
}

function quote(text: string): string {
  return JSON.stringify(text.slice(0, 80))
}
