import type { Database } from 'better-sqlite3'
import type { RepositoryName } from '../src/oci/reference.js'
import { Turns } from '../src/oci/turns.js'

/** Comes after every character that a repository's name may have. */
const afterNames = '~'

/** Names that are looked at in one go: a millisecond's worth. */
const namesAtOnce = 500

/** Names from here (inclusive) to there, but for one. */
interface Range {
  readonly from: string
  readonly end: string
  readonly except: string
  readonly limit: number
}

/** The names of a range, in order, each with whether the repository holds a manifest. */
export function prepareNames(db: Database) {
  return db.prepare<Range, { name: RepositoryName; isFilled: number }>(
    `SELECT name, EXISTS (SELECT 1 FROM manifest WHERE repository_id = r.id) AS isFilled
     FROM repository r WHERE name >= :from AND name < :end AND name <> :except ORDER BY name LIMIT :limit`,
  )
}

/**
 * The repositories that begin with a prefix, come after a name, and hold a manifest: in order, some at a time, with
 * turns for others in between. Those that hold none are many where somebody made them so.
 */
export async function* walkNames(
  prefix: string,
  after: string,
  read: (range: Range) => Promise<{ name: RepositoryName; isFilled: number }[]>,
): AsyncGenerator<RepositoryName[]> {
  const turns = new Turns()
  let last = after
  for (;;) {
    const from = last > prefix ? last : prefix
    const rows = await read({ from, end: `${prefix}${afterNames}`, except: last, limit: namesAtOnce })
    yield rows.filter(({ isFilled }) => isFilled === 1).map(({ name }) => name)
    if (rows.length < namesAtOnce) return
    last = rows.at(-1)?.name ?? last
    await turns.rest()
  }
}

/**
 * See MetadataStore.searchRepositories. The equal name, then those that begin with the text, then the others, each in the
 * order of the index: as soon as there are enough, the rest is not looked at.
 */
export async function searchNames(
  { prefixes, text, limit }: { prefixes: readonly string[]; text: string; limit: number },
  walk: (prefix: string) => AsyncGenerator<RepositoryName[]>,
): Promise<RepositoryName[]> {
  const found: RepositoryName[] = []
  const look = async (prefix: string, fits: (name: string) => boolean) => {
    if (found.length >= limit) return
    for await (const names of walk(prefix)) {
      found.push(...names.filter(fits))
      if (found.length >= limit) return
    }
  }
  const isWithin = prefixes.some((prefix) => text.startsWith(prefix))
  const beginning = isWithin ? [text] : prefixes.filter((prefix) => prefix.startsWith(text))
  // The equal name is the first of those that begin so.
  for (const prefix of beginning) await look(prefix, () => true)
  for (const prefix of prefixes) await look(prefix, (name) => name.indexOf(text) > 0)
  return found.slice(0, limit)
}
