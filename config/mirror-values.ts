import { Cron } from 'croner'
import { z } from 'zod'

/*
 * How the single values of a mirror are written. Readers give undefined for what they do not understand.
 */

const component = '[a-z0-9]+(?:(?:\\.|_|__|-+)[a-z0-9]+)*'
const repository = new RegExp(`^${component}(?:/${component})*$`)

/** Longest name of a mirror: it must leave room for the upstream's names, as names here have 255 characters. */
const longestName = 100
const longestSecret = 1024

/** Lower-case path components by the grammar of repository names. */
export function readMirrorName(text: string): string | undefined {
  return text.length <= longestName && repository.test(text) ? text : undefined
}

/** The name of a repository. */
export function readRepository(text: string): string | undefined {
  return text.length <= 255 && repository.test(text) ? text : undefined
}

/** A tag in which `*` may stand for any text. */
export function readTagPattern(text: string): string | undefined {
  return /^[\w*][\w.*-]{0,127}$/.test(text) ? text : undefined
}

/** `os/arch` or `os/arch/variant`. */
export function platform(text: string): string | undefined {
  return /^[a-z0-9]{1,32}\/[a-z0-9_]{1,32}(?:\/[a-z0-9.]{1,32})?$/.test(text) ? text : undefined
}

/** The name of an environment variable. */
export function environmentName(text: string): string | undefined {
  return /^[A-Za-z_]\w{0,254}$/.test(text) ? text : undefined
}

/** A cron expression of 5 or 6 fields that comes true at least once. */
export function readSchedule(text: string): string | undefined {
  if (text.length > 200 || !/^\S+(?: +\S+){4,5}$/.test(text)) return undefined
  try {
    return new Cron(text, { paused: true, mode: '5-or-6-parts' }).nextRun() === null ? undefined : text
  } catch {
    return undefined
  }
}

/** Whether a text can be a user or a password: one line, not empty, of up to 1024 bytes. */
export function isOneLine(text: string): boolean {
  return text !== '' && Buffer.byteLength(text) <= longestSecret && !/\p{Cc}/u.test(text)
}

/** A text on one line; a number is refused, since it would lose its leading zeros. */
export function oneLine(hint: string, forbidden?: RegExp) {
  return z
    .string({ error: hint })
    .refine((text) => isOneLine(text) && forbidden?.test(text) !== true, { error: hint })
}

/** Whether a value is a section: names with values. */
export function isPlainObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
