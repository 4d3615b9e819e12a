import type { z } from 'zod'
import type { Written } from './findings.js'
import { isPlainObject } from './mirror-values.js'
import { readJson } from './values.js'
import { nearest, sentence, showName, showUrl } from './words.js'

/** A setting that is a list of sections, such as `mirrors`. */
export interface NestedSetting {
  /** The settings that the section at a path within the value may have. */
  readonly namesAt: (path: readonly PropertyKey[]) => readonly string[]
  /** Settings whose values are never shown. */
  readonly unshown: readonly unknown[]
}

/** What the schema has against a value; nothing when it is right. */
export function issuesOf({ setting, value }: Written): readonly z.core.$ZodIssue[] {
  return setting.schema.safeParse(value).error?.issues ?? []
}

/** The sentences for an issue: each names the faulty part by its place in the list, and shows that part alone. */
export function describeIssue(
  issue: z.core.$ZodIssue,
  written: Written,
  nested: NestedSetting,
): readonly string[] {
  const inner = issue.path.map((key) => (typeof key === 'number' ? `[${key}]` : `.${String(key)}`)).join('')
  if (issue.code === 'unrecognized_keys') {
    const names = nested.namesAt(issue.path)
    return issue.keys.map((key) => describeUnknown(key, inner, names, written))
  }
  const place = issue.path.length === 0 ? written.place : placeOf(`${written.setting.path}${inner}`, written)
  return [`${place} ${describeValue(issue.path, written.value, nested)}: ${sentence(issue.message)}`]
}

/** A setting and where it was written, as a sentence begins. @param setting its path, such as `mirrors[0].url` */
export function placeOf(setting: string, { file, place }: Written): string {
  return `${setting} in ${file ?? place}`
}

function describeUnknown(
  key: string,
  inner: string,
  names: readonly string[],
  { setting, file, place, lines }: Written,
): string {
  const near = nearest(key, names)
  const line = lines?.get(`${inner}.${key}`)
  const where = `${file ?? place}${line === undefined ? '' : `, line ${line},`}`
  const hint =
    near === undefined
      ? 'boathouse serve --help lists all settings.'
      : `did you mean ${setting.path}${inner}.${near}?`
  return `${setting.path}${inner}.${showName(key)} in ${where} is not a setting: ${hint}`
}

/** What stands at a path, without secrets; continues "<place> ". */
function describeValue(path: readonly PropertyKey[], root: unknown, { unshown }: NestedSetting): string {
  const value = path.reduce<unknown>(
    (part, key) => (typeof part === 'object' && part !== null ? Reflect.get(part, key) : undefined),
    readJson(root),
  )
  if (value === undefined) return 'is missing'
  if (Array.isArray(value)) return `is a list of ${value.length}`
  if (isPlainObject(value)) return 'is a section'
  if (path.some((key) => unshown.includes(key))) return 'cannot be used'
  return path.length < 2 && value !== null ? 'is a single value' : `is ${showUrl(value)}`
}
