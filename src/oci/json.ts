import { RegistryError } from './errors.js'

/** How deep a manifest may nest. Real ones stay below ten. */
const deepest = 64

const quote = 0x22
const backslash = 0x5c
const comma = 0x2c
const colon = 0x3a
const openBrace = 0x7b
const closeBrace = 0x7d
const openBracket = 0x5b
const closeBracket = 0x5d

/**
 * Parses a manifest's bytes as one JSON object, strictly: UTF-8 without a byte order mark, at most 64 levels
 * deep, and no object with two members of one name. `JSON.parse` alone keeps the last of two, other parsers the
 * first: two programs would see two manifests under one digest (CVE-2021-41190, reliability S52 and S55).
 * @throws RegistryError MANIFEST_INVALID
 */
export function parseJsonObject(bytes: Uint8Array): Record<string, unknown> {
  let text: string
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch {
    throw new RegistryError('MANIFEST_INVALID', 'manifest is not UTF-8 text')
  }
  refuseAmbiguity(text)
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    throw new RegistryError('MANIFEST_INVALID', 'manifest is not JSON')
  }
  if (!isObject(value)) throw new RegistryError('MANIFEST_INVALID', 'manifest is not a JSON object')
  return value
}

/** Whether a parsed JSON value is an object: not null, not an array. */
export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/**
 * One pass over the text, without recursion, before the parser sees it. It need not reject bad syntax (the
 * parser does), it only must not be misled by good syntax.
 */
function refuseAmbiguity(text: string): void {
  /** For each open bracket: the member names seen so far, or undefined in an array. */
  const open: (Set<string> | undefined)[] = []
  let expectsName = false
  for (let at = 0; at < text.length; at++) {
    switch (text.charCodeAt(at)) {
      case quote: {
        const end = endOfString(text, at)
        const names = open.at(-1)
        if (expectsName && names !== undefined) addName(names, text.slice(at, end + 1))
        expectsName = false
        at = end
        break
      }
      case openBrace:
      case openBracket: {
        const isBrace = text.charCodeAt(at) === openBrace
        if (open.push(isBrace ? new Set() : undefined) > deepest) {
          throw new RegistryError('MANIFEST_INVALID', `manifest nests deeper than ${deepest} levels`)
        }
        expectsName = isBrace
        break
      }
      case closeBrace:
      case closeBracket:
        open.pop()
        expectsName = false
        break
      case comma:
        expectsName = open.at(-1) !== undefined
        break
      case colon:
        expectsName = false
        break
    }
  }
}

/** Index of the quote that closes the string which opens at `start`; the text's end when none does. */
function endOfString(text: string, start: number): number {
  let end = text.indexOf('"', start + 1)
  while (end >= 0 && isEscaped(text, start, end)) end = text.indexOf('"', end + 1)
  return end < 0 ? text.length : end
}

/** Whether an odd number of backslashes stands before the quote. */
function isEscaped(text: string, start: number, quoteAt: number): boolean {
  let at = quoteAt - 1
  while (at > start && text.charCodeAt(at) === backslash) at--
  return (quoteAt - at) % 2 === 0
}

function addName(names: Set<string>, token: string): void {
  let name = token
  if (token.includes('\\')) {
    try {
      name = `"${JSON.parse(token)}"`
    } catch {
      return // not a JSON string: the parser will say so
    }
  }
  if (names.has(name)) {
    throw new RegistryError('MANIFEST_INVALID', 'manifest has an object with two members of one name')
  }
  names.add(name)
}
