import { undoTime } from '../../config/load.js'
import type { RestoreResult, TagChange, TagStore } from '../../storage/tag-store.js'
import { type Digest, parseDigest } from '../oci/digest.js'
import { parseRepositoryName, parseTag, type RepositoryName, type Tag } from '../oci/reference.js'
import { parseTagPattern, tagPatternsFor } from '../oci/tag-pattern.js'
import { commandGroup, Misuse, parse, Refusal, say, sharedUsage, words } from './command.js'
import { systemUser, unknownRepository, withPlace } from './store.js'
import { formatJson, formatTable, formatTime } from './table.js'

/** Changes that are told unless others are asked for, and rows that are read at once. */
const usualChanges = 100
const pageSize = 500

const usage = `Tags: what they point at, what they pointed at, and bringing them back

  boathouse tag list REPOSITORY [--json]
  boathouse tag history REPOSITORY[:TAG]    the last changes: when, what, how, and by whom
      --limit N       so many (default ${usualChanges})
      --json
  boathouse tag restore REPOSITORY:TAG      undo the last move or deletion; of a move, once more undoes that
      --to ENTRY      as it was after this entry of the history
      --to DIGEST     to this manifest, be it stored or deleted
      --json

What is restored comes back with all that was deleted of it: the images of an index, and what refers to it, such as
signatures. It can be restored for tags.undo (unset, as long as gc.grace) after it was deleted or lost its tag, and beyond
that as long as nothing has collected it. It holds at once, while the server runs.

${sharedUsage}`

/** `boathouse tag …` */
export const tag = commandGroup('tag', usage, { list, history, restore })

async function list(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, { json: { type: 'boolean' } })
  const [name] = words(positionals, 'REPOSITORY')
  const repository = readRepository(name)
  return withPlace(values, async ({ stores }) => {
    const rows: { tag: string; digest: string; pushed: string; by: string; pulled: string }[] = []
    for (let after = ''; ; ) {
      const page = await stores.tags.listTagFacts(repository, after, pageSize)
      for (const { tag, digest, pushedAt, pulledAt, lastChange } of page) {
        const pulled = pulledAt === 0 ? '-' : formatTime(pulledAt, '-')
        rows.push({ tag, digest, pushed: formatTime(pushedAt, '-'), by: lastChange?.user ?? '-', pulled })
      }
      after = page.at(-1)?.tag ?? ''
      if (page.length < pageSize) break
    }
    if (rows.length === 0 && !(await stores.metadata.hasRepository(repository)))
      throw unknownRepository(repository)
    if (values.json === true) say(formatJson(rows))
    else if (rows.length === 0) say(`${repository} has no tags.`)
    else {
      const head = ['TAG', 'DIGEST', 'PUSHED', 'BY', 'PULLED']
      say(
        formatTable(
          head,
          rows.map((row) => [row.tag, row.digest, row.pushed, row.by, row.pulled]),
        ),
      )
    }
    return 0
  })
}

async function history(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, { json: { type: 'boolean' }, limit: { type: 'string' } })
  const [name] = words(positionals, 'REPOSITORY:TAG')
  const { repository, tag } = readReference(name)
  const limit = values.limit === undefined ? usualChanges : readLimit(values.limit)
  return withPlace(values, async ({ stores, config }) => {
    const changes = await stores.tags.listHistory(repository, tag, limit)
    const undo = undoTime(config)
    const rows = await describeAll(stores.tags, repository, changes, undo)
    if (values.json === true) say(formatJson(rows))
    else if (rows.length === 0) say(`Nothing is remembered of ${name}.`)
    else say(tableOf(rows, tag === undefined))
    return rows.length === 0 ? 1 : 0
  })
}

/** A change as it is told. */
interface ChangeRow {
  readonly entry: number
  readonly time: string
  readonly tag: string
  readonly how: string
  readonly by: string | null
  /** The access token that it was done with: the job, where each has one of its own. */
  readonly token: { readonly id: string; readonly name: string } | null
  readonly digest: string | null
  readonly previous: string | null
  /** Whether the digest, or where there is none the one before, can be restored; a time is that until when it surely can. */
  readonly restorable: boolean
  readonly until: string | null
}

async function describeAll(
  tags: TagStore,
  repository: RepositoryName,
  changes: readonly TagChange[],
  undo: number,
): Promise<ChangeRow[]> {
  const rows: ChangeRow[] = []
  for (const { entry, at, tag, how, user, accessToken, digest, previous } of changes) {
    const meant = digest ?? previous
    const remains = meant === undefined ? undefined : await tags.findRemains(repository, meant)
    const until = remains?.state === 'deleted' ? formatTime(remains.deletedAt + undo, '') : null
    rows.push({
      entry,
      time: formatTime(at, ''),
      tag,
      how,
      by: user ?? null,
      token: accessToken ?? null,
      digest: digest ?? null,
      previous: previous ?? null,
      restorable: remains !== undefined && remains.state !== 'gone',
      until,
    })
  }
  return rows
}

function tableOf(rows: readonly ChangeRow[], hasTags: boolean): string {
  const head = ['ENTRY', 'TIME', ...(hasTags ? ['TAG'] : []), 'CHANGE', 'BY', 'DIGEST', 'RESTORABLE']
  return formatTable(
    head,
    rows.map((row) => [
      String(row.entry),
      row.time,
      ...(hasTags ? [row.tag] : []),
      row.how,
      row.token === null ? (row.by ?? '-') : `${row.by} (token ${row.token.name})`,
      row.digest ?? `none, was ${row.previous}`,
      row.restorable ? (row.until === null ? 'yes' : `until ${row.until}`) : 'no',
    ]),
  )
}

async function restore(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, { json: { type: 'boolean' }, to: { type: 'string' } })
  const [name] = words(positionals, 'REPOSITORY:TAG')
  const { repository, tag } = readReference(name)
  if (tag === undefined) throw new Misuse('Name a tag as well: REPOSITORY:TAG.')
  const to = values.to === undefined ? 'previous' : readTarget(values.to)
  return withPlace(values, async ({ stores, config, audit }) => {
    const result = await stores.tags.restoreTag({
      repository,
      tag,
      to,
      immutable: tagPatternsFor(config.tags.immutable.map(parseTagPattern), repository),
      user: { name: systemUser() },
      now: Date.now(),
    })
    if (result.outcome !== 'restored' && result.outcome !== 'unchanged') throw refusalOf(result, name)
    if (result.outcome === 'restored') {
      const { digest, previous, revived } = result
      audit('tag restored', { repository, tag, digest, previous: previous ?? null, revived })
    }
    if (values.json === true) say(formatJson({ repository, tag, ...result }))
    else say(describe(result, name))
    return 0
  })
}

function describe(result: RestoreResult & { outcome: 'restored' | 'unchanged' }, name: string): string {
  if (result.outcome === 'unchanged') return `${name} points at ${result.digest} already.`
  const { digest, previous, revived } = result
  const was = previous === undefined || previous === digest ? '' : ` in place of ${previous}`
  const back = revived === 0 ? '' : ` Deleted manifests that are back: ${revived}.`
  return `${name} points at ${digest}${was}.${back}`
}

function refusalOf(result: RestoreResult, name: string): Refusal {
  const look = `"boathouse tag history ${name}" shows what there was`
  switch (result.outcome) {
    case 'new':
      return new Refusal(
        `The last change made ${name}, and nothing was before it: delete it if it is to go; ${look}.`,
      )
    case 'no-entry':
      return new Refusal(`The history of ${name} has no such entry: ${look}.`)
    case 'removal':
      return new Refusal(`That entry removed ${name}: take the one before it; ${look}.`)
    case 'gone':
      return new Refusal(
        `The manifest ${result.digest} is not there any more, or a part of it is not: nothing was changed.`,
      )
    case 'immutable':
      return new Refusal(`The tag ${name} is immutable and points at another manifest: it does not move.`)
    case 'mirrored':
      return new Refusal(`The tag ${name} is a mirror's: its upstream says what it points at.`)
    default:
      return new Refusal(`Nothing is remembered of ${name}: ${look.replace(`${name}"`, 'REPOSITORY"')}.`)
  }
}

/** @throws Misuse */
function readRepository(text: string): RepositoryName {
  try {
    return parseRepositoryName(text)
  } catch {
    throw new Misuse('That is no repository: write its name as in team/app, without the registry.')
  }
}

/** @throws Misuse */
function readReference(text: string): { repository: RepositoryName; tag: Tag | undefined } {
  const colon = text.lastIndexOf(':')
  if (colon < 0) return { repository: readRepository(text), tag: undefined }
  try {
    return { repository: readRepository(text.slice(0, colon)), tag: parseTag(text.slice(colon + 1)) }
  } catch {
    throw new Misuse('Write a repository and a tag, such as team/app:v1, without the registry.')
  }
}

/** @throws Misuse */
function readTarget(text: string): { readonly entry: number } | { readonly digest: Digest } {
  if (/^[1-9]\d{0,14}$/.test(text)) return { entry: Number(text) }
  try {
    return { digest: parseDigest(text) }
  } catch {
    throw new Misuse('Write an entry of the history after --to, or a digest such as sha256:0123….')
  }
}

/** @throws Misuse */
function readLimit(text: string): number {
  if (/^[1-9]\d{0,5}$/.test(text)) return Number(text)
  throw new Misuse('Write a number from 1 to 999999 after --limit.')
}
