import { isIPv4, isIPv6 } from 'node:net'
import { networkInterfaces } from 'node:os'
import { resolve } from 'node:path'
import { z } from 'zod'
import { show } from './words.js'

/*
 * How single values are written. Each of these makes a schema for one setting; all messages of faults say what
 * to write.
 */

/** Where a server listens. Port 0 lets the system choose a free one. */
export interface ListenAddress {
  readonly host: string
  readonly port: number
}

const durationUnits = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const
const sizeUnits = {
  B: 1,
  KB: 1000,
  MB: 1000 ** 2,
  GB: 1000 ** 3,
  TB: 1000 ** 4,
  KiB: 1024,
  MiB: 1024 ** 2,
  GiB: 1024 ** 3,
  TiB: 1024 ** 4,
} as const

/**
 * A setting written as one word, be it a YAML scalar, a variable or a flag. `read` gives undefined for
 * what it does not understand; `hint` then ends the sentence that names the setting and its value.
 */
export function word<T>(hint: string, read: (text: string) => T | undefined) {
  return z.union([z.string(), z.number(), z.boolean()], { error: hint }).transform((written, context) => {
    const value = read(String(written).trim())
    if (value !== undefined) return value
    context.issues.push({ code: 'custom', message: hint, input: written })
    return z.NEVER
  })
}

/** One of these words. */
export function choice<const T extends string>(values: readonly T[], hint: string) {
  return word(hint, (text) => values.find((value) => value === text))
}

/** Yes or no. */
export function flag() {
  return word('write true or false', (text) =>
    text === 'true' ? true : text === 'false' ? false : undefined,
  )
}

function readQuantity(text: string, units: Readonly<Record<string, number>>): number | undefined {
  const [, digits, unit] = /^(\d{1,15})([A-Za-z]{1,3})$/.exec(text) ?? []
  if (digits === undefined || unit === undefined || !Object.hasOwn(units, unit)) return undefined
  return Number(digits) * (units[unit] ?? Number.NaN)
}

/** A number with a unit between two bounds; the bounds are written as a user would write them. */
function quantity(units: Readonly<Record<string, number>>, what: string, least: string, most: string) {
  const low = readQuantity(least, units) ?? Number.NaN
  const high = readQuantity(most, units) ?? Number.NaN
  return word(`write ${what} (at least ${least}, at most ${most})`, (text) => {
    const value = readQuantity(text, units)
    return value !== undefined && value >= low && value <= high ? value : undefined
  })
}

/** Milliseconds, written as `500ms`, `90s`, `15m`, `24h` or `7d`. */
export function duration(least: string, most: string) {
  return quantity(durationUnits, 'a duration such as 30m or 24h', least, most)
}

/** Milliseconds between two bounds, as {@link duration} reads them; undefined for what is none. */
export function readDuration(text: string, least: string, most: string): number | undefined {
  const value = readQuantity(text, durationUnits)
  const low = readQuantity(least, durationUnits) ?? Number.NaN
  const high = readQuantity(most, durationUnits) ?? Number.NaN
  return value !== undefined && value >= low && value <= high ? value : undefined
}

/** Bytes, written as `64MiB`, `10GB` or `1TiB`. */
export function size(least: string, most: string) {
  return quantity(sizeUnits, 'a size such as 64MiB or 10GB', least, most)
}

/** Bytes a second, or `unlimited`, which is Infinity. */
export function readRate(text: string): number | undefined {
  if (text === 'unlimited') return Number.POSITIVE_INFINITY
  const value = readQuantity(text, sizeUnits)
  return value !== undefined && value >= sizeUnits.KiB ? value : undefined
}

/** A whole number between two bounds, both included; undefined for what is none. */
export function readWhole(text: string, least: number, most: number): number | undefined {
  if (!/^\d{1,9}$/.test(text)) return undefined
  const value = Number(text)
  return value >= least && value <= most ? value : undefined
}

/** An absolute path; what is written counts from the current directory. */
export function path(hint: string) {
  return z
    .string({ error: hint })
    .refine((text) => text.trim() !== '' && !text.includes('\0'), { error: hint })
    .transform((text) => resolve(text))
}

/** The address that stands for all of this machine's, IPv6 included where the system has it. */
function everyAddress(): string {
  const addresses = Object.values(networkInterfaces()).flatMap((list) => list ?? [])
  return addresses.some((address) => address.family === 'IPv6') ? '::' : '0.0.0.0'
}

/** Whether this is a name that a resolver would look up. */
export function isHostName(host: string): boolean {
  const label = /^[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?$/
  const labels = host.split('.')
  // A last label of digits alone would make system resolvers read the name as an odd IPv4 address.
  return host.length <= 253 && labels.every((part) => label.test(part)) && !/^\d+$/.test(labels.at(-1) ?? '')
}

/** An address and a port, or either; undefined for what is neither. */
export function readListen(text: string): ListenAddress | undefined {
  const colon = text.lastIndexOf(':')
  const port = readWhole(text.slice(colon + 1), 0, 65_535)
  if (port === undefined) return undefined
  if (colon < 0) return { host: '127.0.0.1', port }
  const host = text.slice(0, colon)
  if (host === '') return { host: everyAddress(), port }
  const bracketed = /^\[(.+)\]$/.exec(host)?.[1]
  if (bracketed !== undefined) return isIPv6(bracketed) ? { host: bracketed, port } : undefined
  return isIPv4(host) || isHostName(host) ? { host, port } : undefined
}

const repositoryPattern = (() => {
  const name = '[a-z0-9]+(?:(?:\\.|_|__|-+)[a-z0-9]+)*'
  const segment = `(?:${name}|\\*)`
  return new RegExp(`^(?:\\*\\*|${segment}(?:/${segment})*(?:/\\*\\*)?)$`)
})()

const patternHint = 'write repository patterns such as team/app, team/*, team/** or ** (all repositories)'

/** Repository patterns, as a list, or as one text with commas between them. */
export function patterns() {
  return list(patternHint, (text) => {
    if (text === '*') return 'write ** to mean all repositories, or team/* to mean those directly below team'
    if (text.length <= 255 && repositoryPattern.test(text)) return undefined
    return `${show(text)} is not a repository pattern: ${patternHint}`
  })
}

/** Bytes that the repositories of a pattern may hold together. */
export interface QuotaConfig {
  readonly pattern: string
  /** Bytes. */
  readonly limit: number
}

const quotaHint = 'write a repository pattern, an equals sign and a size, such as team/**=20GiB'

/** Quotas, as a list, or as one text with commas between them; each pattern once. */
export function quotas(most: number) {
  return listOf(quotaHint, readQuota)
    .refine((all) => new Set(all.map(({ pattern }) => pattern)).size === all.length, {
      error: 'write each pattern once',
    })
    .refine((all) => all.length <= most, { error: `write ${most} quotas at most` })
}

function readQuota(text: string): QuotaConfig | undefined {
  const [pattern = '', written = '', ...more] = text.split('=').map((part) => part.trim())
  const limit = readQuantity(written, sizeUnits)
  const isPattern = pattern !== '*' && pattern.length <= 255 && repositoryPattern.test(pattern)
  const isSize = limit !== undefined && limit <= 1024 * sizeUnits.TiB
  return isPattern && isSize && more.length === 0 ? { pattern, limit } : undefined
}

const immutableHint = 'write patterns such as team/**:v* or **:release-*'

/** Patterns of tags in repositories, as a list, or as one text with commas between them. */
export function tagPatterns() {
  return list(immutableHint, (text) => {
    const colon = text.lastIndexOf(':')
    const isTag = /^[\w.*-]{1,128}$/.test(text.slice(colon + 1))
    const repositories = text.slice(0, colon)
    const isPattern =
      repositories !== '*' && repositories.length <= 255 && repositoryPattern.test(repositories)
    return colon > 0 && isTag && isPattern ? undefined : misplaced(text, immutableHint)
  })
}

const networkHint = 'write addresses or networks such as 10.0.0.1 or 10.0.0.0/8'

/** Addresses and networks, as a list, or as one text with commas between them. */
export function networks() {
  return list(networkHint, (text) => (isNetwork(text) ? undefined : misplaced(text, networkHint)))
}

/** Whether this is an address, or a network such as 10.0.0.0/8. */
export function isNetwork(text: string): boolean {
  const [address = '', bits, ...more] = text.split('/')
  const most = isIPv4(address) ? 32 : isIPv6(address) ? 128 : -1
  return most > 0 && more.length === 0 && (bits === undefined || readWhole(bits, 0, most) !== undefined)
}

function misplaced(text: string, hint: string): string {
  return `${show(text)} is wrong here: ${hint}`
}

/** `faultOf` says what is wrong with one of the texts, or undefined; `hint` is for what is no list of texts. */
function list(hint: string, faultOf: (text: string) => string | undefined) {
  const written = z.union([z.string(), z.array(z.string(), { error: hint })], { error: hint })
  return written.transform((value, context): readonly string[] => {
    const texts = (typeof value === 'string' ? value.split(',') : value).map((text) => text.trim())
    const found = typeof value === 'string' ? texts.filter((text) => text !== '') : texts
    for (const text of found) {
      const message = faultOf(text)
      if (message !== undefined) context.issues.push({ code: 'custom', message, input: text })
    }
    return found
  })
}

/**
 * A list of texts, or one text with commas between them; each is read by itself, and a fault names its place in the
 * list. `read` gives undefined for what it does not understand; `hint` then ends the sentence.
 */
export function listOf<T>(hint: string, read: (text: string) => T | undefined, separator = /,/) {
  return z.union([z.string(), z.array(z.unknown())], { error: hint }).transform((written, context) => {
    const texts =
      typeof written === 'string' ? written.split(separator).filter((text) => text.trim() !== '') : written
    return texts.flatMap((text, index) => {
      const value = typeof text === 'string' ? read(text.trim()) : undefined
      if (value !== undefined) return [value]
      const path = typeof written === 'string' ? [] : [index]
      context.issues.push({ code: 'custom', message: hint, input: text, path })
      return []
    })
  })
}

/** The origin of an http or https address that has nothing beside it; undefined for any other text. */
export function readUrl(text: string): string | undefined {
  if (!URL.canParse(text)) return undefined
  const url = new URL(text)
  const isPlain = url.pathname === '/' && url.search === '' && url.hash === '' && !text.includes('@')
  return isPlain && /^https?:$/.test(url.protocol) ? url.origin : undefined
}

/** What a JSON text holds; anything else, and what is no JSON, as it is. */
export function readJson(written: unknown): unknown {
  if (typeof written !== 'string') return written
  try {
    return JSON.parse(written)
  } catch {
    return written
  }
}
