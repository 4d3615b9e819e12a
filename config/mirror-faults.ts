import type { z } from 'zod'
import { isLoopbackUrl } from './addresses.js'
import type { Written } from './findings.js'
import { troubleOfFile } from './mirror-files.js'
import { isOneLine, isPlainObject } from './mirror-values.js'
import {
  defaultNamespaces,
  defaultUrl,
  imageNames,
  type MirrorDraft,
  mirrorDraft,
  mirrorFields,
  syncNames,
} from './mirrors.js'
import { describeIssue, issuesOf, type NestedSetting, placeOf } from './nested-faults.js'
import { readJson } from './values.js'
import { show } from './words.js'

type Environment = Readonly<Record<string, string | undefined>>

/** A mirror as far as it can be understood. */
interface Draft {
  /** Its place in the list, such as `mirrors[0]`. */
  readonly at: string
  /** The settings that are written, be they right or wrong. */
  readonly written: ReadonlySet<string>
  readonly fields: MirrorDraft
}

const nested: NestedSetting = {
  namesAt: (path) => [Object.keys(mirrorFields), syncNames, imageNames][Math.min(2, path.length - 1)] ?? [],
  /** People write passwords into each of them. */
  unshown: ['username', 'password', 'passwordVariable'],
}
const passwordWays = ['password', 'passwordFile', 'passwordVariable'] as const
const fileSettings = ['passwordFile', 'dockerConfig', 'ca'] as const

/** What is wrong with a list of mirrors, each by itself and between them, its files and variables included. */
export function faultsOfMirrors(written: Written, env: Environment): readonly string[] {
  const issues = issuesOf(written)
  const drafts = readDrafts(written, issues)
  const faults = [
    ...drafts.flatMap((draft) => [
      ...faultsOfCredentials(draft),
      ...faultsOfVariable(draft, env),
      ...faultsOfFiles(draft),
      ...faultsOfUrls(draft),
    ]),
    ...faultsOfNames(drafts),
    ...faultsOfNamespaces(drafts),
    ...faultsOfBareNames(drafts),
  ]
  return [
    ...issues.flatMap((issue) => describeIssue(issue, written, nested)),
    ...faults.map(({ setting, trouble }) => `${placeOf(setting, written)} ${trouble}`),
  ]
}

/** The mirrors with credentials that are not `public`: a fault where whoever reaches the server may read. */
export function faultsOfOpenness(written: Written): readonly string[] {
  return readDrafts(written, issuesOf(written))
    .filter((draft) => credentialOf(draft) !== undefined && draft.fields.public !== true)
    .map(
      ({ at }) =>
        `${placeOf(`${at}.public`, written)} is not true, but with auth set to none others would read what the ` +
        'credentials of the mirror open: set it to true, or auth to token.',
    )
}

/** The list with the passwords that environment variables hold in place of the variables' names. */
export function withPasswords(value: unknown, env: Environment): unknown {
  const list = readJson(value)
  if (!Array.isArray(list)) return list
  return list.map((mirror: unknown) => {
    if (!isPlainObject(mirror) || typeof mirror.passwordVariable !== 'string') return mirror
    const { passwordVariable, ...rest } = mirror
    return { ...rest, password: env[passwordVariable.trim()] }
  })
}

interface Fault {
  /** The path of a setting, such as `mirrors[0].url`. */
  readonly setting: string
  /** What continues the sentence. */
  readonly trouble: string
}

/** The mirrors of a list with those of their settings that are right. */
function readDrafts({ value }: Written, issues: readonly z.core.$ZodIssue[]): readonly Draft[] {
  const list = readJson(value)
  if (!Array.isArray(list) || issues.some(({ path }) => path.length === 0)) return []
  return list.flatMap((mirror: unknown, index) => {
    if (!isPlainObject(mirror)) return []
    const wrong = issues.filter(({ path }) => path[0] === index).map(({ path }) => path[1])
    const right = Object.entries(mirror).filter(([name]) => !wrong.includes(name))
    const fields = mirrorDraft.parse(Object.fromEntries(right))
    return [{ at: `mirrors[${index}]`, written: new Set(Object.keys(mirror)), fields }]
  })
}

// ---------------------------------------------------------------------------------------------
// Each mirror by itself
// ---------------------------------------------------------------------------------------------

/** The setting that makes a mirror log in. */
function credentialOf({ written }: Draft): string | undefined {
  return ['dockerConfig', ...passwordWays, 'username'].find((name) => written.has(name))
}

function faultsOfCredentials({ at, written }: Draft): readonly Fault[] {
  const [way, ...further] = passwordWays.filter((name) => written.has(name))
  const faults = further.map((name) => ({
    setting: `${at}.${name}`,
    trouble: `is set beside ${way}: keep one of them.`,
  }))
  const other = written.has('username') ? 'username' : way
  if (written.has('dockerConfig')) {
    if (other === undefined) return faults
    const trouble = `is set beside ${other}, which it replaces: keep one of them.`
    return [...faults, { setting: `${at}.dockerConfig`, trouble }]
  }
  if (way === undefined && other !== undefined) {
    const trouble = 'is set without a password: write passwordFile, passwordVariable or password below it.'
    return [...faults, { setting: `${at}.username`, trouble }]
  }
  if (way === undefined || other !== way) return faults
  return [
    ...faults,
    { setting: `${at}.${way}`, trouble: 'is set, but username is not: write both, or neither.' },
  ]
}

function faultsOfVariable({ at, fields }: Draft, env: Environment): readonly Fault[] {
  if (fields.passwordVariable === undefined) return []
  const setting = `${at}.passwordVariable`
  const password = env[fields.passwordVariable] ?? ''
  if (password === '') {
    const trouble = 'names a variable that is unset or empty: put the password into the variable.'
    return [{ setting, trouble }]
  }
  if (isOneLine(password)) return []
  const trouble = 'names a variable whose value is no password: put up to 1024 bytes on one line into it.'
  return [{ setting, trouble }]
}

function faultsOfFiles({ at, fields }: Draft): readonly Fault[] {
  return fileSettings.flatMap((name) => {
    const file = fields[name]
    const trouble = file === undefined ? undefined : troubleOfFile(name, file)
    return trouble === undefined ? [] : [{ setting: `${at}.${name}`, trouble }]
  })
}

function faultsOfUrls(draft: Draft): readonly Fault[] {
  const { at, fields, written } = draft
  const setting = `${at}.url`
  if (!written.has('url') && fields.name !== undefined && defaultUrl(fields.name) === undefined) {
    const trouble = `is missing: ${show(fields.name)} is not the name of a host, so write the address of the upstream.`
    return [{ setting, trouble }]
  }
  const credential = credentialOf(draft)
  const plain = fields.url?.find((url) => url.startsWith('http:') && !isLoopbackUrl(url))
  if (credential === undefined || plain === undefined) return []
  const trouble = `holds ${show(plain)}, where ${at}.${credential} would be sent in clear text: write an address with https, or leave out the credentials.`
  return [{ setting, trouble }]
}

// ---------------------------------------------------------------------------------------------
// Between mirrors
// ---------------------------------------------------------------------------------------------

function faultsOfNames(drafts: readonly Draft[]): readonly Fault[] {
  return drafts.flatMap(({ at, fields: { name } }, index) => {
    if (name === undefined) return []
    return drafts.slice(0, index).flatMap((earlier) => {
      const other = earlier.fields.name
      if (other === undefined || !isWithin(name, other)) return []
      const trouble =
        name === other
          ? `is ${show(name)}, as ${earlier.at}.name is: give each mirror a name of its own.`
          : `is ${show(name)} and ${earlier.at}.name is ${show(other)}: no name may lie below another.`
      return [{ setting: `${at}.name`, trouble }]
    })
  })
}

/** Whether one of two names is the other, or begins with all its components. */
function isWithin(name: string, other: string): boolean {
  return `${name}/`.startsWith(`${other}/`) || `${other}/`.startsWith(`${name}/`)
}

function faultsOfNamespaces(drafts: readonly Draft[]): readonly Fault[] {
  const owners = new Map<string, Draft>()
  return drafts.flatMap((draft) => {
    const { at, fields, written } = draft
    const own = fields.namespaces ?? (written.has('namespaces') ? [] : namespacesOf(fields.name))
    return [...new Set(own)].flatMap((namespace) => {
      const owner = owners.get(namespace)
      if (owner === undefined) owners.set(namespace, draft)
      // Of two mirrors with one name, the name alone is told.
      const isTold = fields.name !== undefined && fields.name === owner?.fields.name
      if (owner === undefined || isTold) return []
      const holds = written.has('namespaces') ? 'holds' : 'is unset, which means'
      const trouble = `${holds} ${show(namespace)}, as ${owner.at}.namespaces does: leave it to one of them.`
      return [{ setting: `${at}.namespaces`, trouble }]
    })
  })
}

function namespacesOf(name: string | undefined): readonly string[] {
  return name === undefined ? [] : defaultNamespaces(name)
}

function faultsOfBareNames(drafts: readonly Draft[]): readonly Fault[] {
  const [first, ...further] = drafts.filter(({ fields }) => fields.bareNames === true)
  return further.map(({ at }) => ({
    setting: `${at}.bareNames`,
    trouble: `is true, as ${first?.at}.bareNames is: bare names can fall to one mirror only, so write false for the others.`,
  }))
}
