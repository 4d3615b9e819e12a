import type { Database } from 'better-sqlite3'
import type { RepositoryName } from '../src/oci/reference.js'

/** Comes after every character that a repository's name may have. */
export const afterNames = '~'

const hasManifest = 'EXISTS (SELECT 1 FROM manifest WHERE repository_id = r.id)'

/**
 * See MetadataStore.searchRepositories. The equal name, then those that begin with the text, then the others, each in the
 * order of the index: as soon as there are enough, the rest is not looked at.
 */
export function prepareSearch(db: Database) {
  const equal = db
    .prepare<[string], RepositoryName>(`SELECT name FROM repository r WHERE name = ? AND ${hasManifest}`)
    .pluck()
  const matches = db
    .prepare<{ from: string; end: string; text: string; least: number; limit: number }, RepositoryName>(
      `SELECT name FROM repository r WHERE name >= :from AND name < :end
       AND name <> :text AND instr(name, :text) >= :least AND ${hasManifest} ORDER BY name LIMIT :limit`,
    )
    .pluck()

  return function search(prefixes: readonly string[], text: string, limit: number): RepositoryName[] {
    const isWithin = prefixes.some((prefix) => text.startsWith(prefix))
    const found = isWithin ? equal.all(text) : []
    const look = (from: string, least: number) => {
      const told = { from, end: `${from}${afterNames}`, text, least, limit: limit - found.length }
      if (told.limit > 0) found.push(...matches.all(told))
    }
    const beginning = isWithin ? [text] : prefixes.filter((prefix) => prefix.startsWith(text))
    for (const from of beginning) look(from, 1)
    for (const prefix of prefixes) look(prefix, 2)
    return found.slice(0, limit)
  }
}
