/** Room for the paths of files, which people need whole. */
const longestShown = 200

/** A text of at most 200 characters, with its end left out when it is longer. */
function abbreviate(text: string): string {
  return text.length <= longestShown ? text : `${text.slice(0, longestShown - 1)}…`
}

/** Leaves out what stands before the @ of an address: it may hold a password. */
function withoutCredentials(json: string): string {
  return json.replaceAll(/:\/\/.*@/g, '://…@').replaceAll(/"[^\s/@"]+:[^\s/@"]*@/g, '"…@')
}

/** A value as part of a sentence: quoted, on one line, not too long, and without a password in an address. */
export function show(value: unknown): string {
  if (value === null) return 'empty'
  if (typeof value === 'number') return String(value)
  try {
    return abbreviate(withoutCredentials(JSON.stringify(value)))
  } catch {
    return 'a value that contains itself'
  }
}

/** A name as part of a sentence: quoted only where it could be mistaken for something else. */
export function showName(name: string): string {
  return /^[\w.-]+$/.test(name) ? abbreviate(name) : show(name)
}

/** The text on one line, with a full stop. */
export function sentence(text: string): string {
  return `${text.replaceAll(/\s+/g, ' ').replace(/[.:]$/, '')}.`
}

/** A name without what people mix up in names: case, `-` and `_`. */
export function plain(name: string): string {
  return name.toLowerCase().replaceAll(/[_-]/g, '')
}

/** The candidate that differs least from a name, in a quarter of its letters (or one) at most. */
export function nearest(name: string, candidates: readonly string[]): string | undefined {
  if (name.length > 80) return undefined
  const wanted = plain(name)
  let best: string | undefined
  let least = Math.max(1, Math.floor(wanted.length / 4)) + 1
  for (const candidate of candidates) {
    const distance = editDistance(wanted, plain(candidate))
    if (distance < least) [best, least] = [candidate, distance]
  }
  return best
}

/** How many letters must be added, dropped or changed to make one text of the other (Levenshtein). */
function editDistance(from: string, to: string): number {
  let above = Array.from({ length: to.length + 1 }, (_, column) => column)
  for (let row = 1; row <= from.length; row++) {
    const current = [row]
    for (let column = 1; column <= to.length; column++) {
      const changed = (above[column - 1] ?? 0) + (from[row - 1] === to[column - 1] ? 0 : 1)
      current.push(Math.min(changed, (above[column] ?? 0) + 1, (current[column - 1] ?? 0) + 1))
    }
    above = current
  }
  return above[to.length] ?? 0
}

/** Like `show`, without what may hold a secret in URLs: all that stands before an @, and the query. */
export function showUrl(value: unknown): string {
  if (Array.isArray(value)) return show(value.map(withoutSecrets))
  return show(withoutSecrets(value))
}

function withoutSecrets(value: unknown): unknown {
  if (typeof value !== 'string') return value
  return value.replace(/^(\s*[a-z][a-z\d+.-]*:\/*)?.*@/is, '$1***@').replace(/\?.*$/s, '?***')
}
