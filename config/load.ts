import { isLoopback } from './addresses.js'
import type { Findings, Written } from './findings.js'
import { faultsOfMirrors, faultsOfOpenness, withPasswords } from './mirror-faults.js'
import type { readYaml } from './read-yaml.js'
import { faultsOfRules } from './retention-faults.js'
import { type Config, resolveConfig, settings } from './schema.js'
import { faultsOfKeyFile, faultsOfPasswordFile } from './secret-files.js'
import { readSmallFile } from './small-file.js'
import { faultsOfTls } from './tls-files.js'
import { readListen } from './values.js'
import { nearest, sentence, show, showName, showUrl } from './words.js'

/** What the command line may say. */
export interface ConfigFlags {
  readonly config?: string | undefined
  readonly listen?: string | undefined
  readonly data?: string | undefined
}

/** Where a configuration comes from. */
export interface ConfigSources {
  readonly flags: ConfigFlags
  readonly env: NodeJS.ProcessEnv
  /** Needed where there is a file. */
  readonly readYaml?: typeof readYaml
}

/** A configuration that cannot be used: `faults` holds one sentence for everything that is wrong with it. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError'
  readonly faults: readonly string[]

  constructor(faults: readonly string[]) {
    super(faults.join('\n'))
    this.faults = faults
  }
}

const fileVariable = 'BOATHOUSE_CONFIG'
const mostFaults = 50

/** `loadConfig` with the environment of this process. The reader of YAML is loaded only where there is a file. */
export async function loadConfigFromProcess(flags: ConfigFlags): Promise<Config> {
  const sources = { flags, env: process.env }
  if (configFile(sources) === undefined) return loadConfig(sources)
  return loadConfig({ ...sources, ...(await import('./read-yaml.js')) })
}

/** The settings file that the flags or the environment of this process name. */
export function namedConfigFile(flags: ConfigFlags): string | undefined {
  return configFile({ flags, env: process.env })
}

/** Folders in which a shell looks for commands. */
export function commandSearchPath(): readonly string[] {
  return (process.env.PATH ?? '').split(':').filter((folder) => folder.startsWith('/'))
}

/** How many threads libuv was told to have (UV_THREADPOOL_SIZE), or undefined when it was not told. */
export function threadpoolSize(): number | undefined {
  const written = process.env.UV_THREADPOOL_SIZE ?? ''
  return /^[1-9]\d{0,3}$/.test(written) ? Number(written) : undefined
}

/**
 * The configuration that the YAML file, then the BOATHOUSE_* variables, then the flags make; later ones win.
 * Empty variables count as unset. Deeply frozen. Throws a ConfigError with every fault that was found, those
 * in values that a later source replaces included.
 */
export function loadConfig(sources: ConfigSources): Config {
  const { flags, env } = sources
  const findings: Findings = { written: [], faults: [], unreadable: new Set(), fileLost: false }
  readConfigFile(sources, findings)
  readVariables(env, findings)
  readFlags(flags, findings)
  findings.written.unshift(...readProxyVariables(env, findings))

  const accepted = new Map<string, Written>()
  for (const written of findings.written) {
    const faults = faultsOf(written, env)
    findings.faults.push(...faults)
    if (faults.length === 0) accepted.set(written.setting.path, settle(written, env))
    else findings.unreadable.add(written.setting.path)
  }
  if (!findings.fileLost) {
    findings.faults.push(...faultsBetween(accepted, findings.unreadable))
    findings.faults.push(...faultsOfOpenMirrors(findings, accepted))
  }
  if (findings.faults.length > 0) throw new ConfigError(shorten(findings.faults))
  return resolveConfig(assemble(accepted.values()))
}

/**
 * What `auth` comes to by the settings: everybody may do everything only where it is written, or where nothing says that
 * others reach the server (decision 0024).
 */
export function authMode(config: Config): 'none' | 'token' {
  return config.auth ?? (settingForOthers(config) === undefined ? 'none' : 'token')
}

/** Whether everybody may do everything although that is not written: then users, grants and proxies end it. */
export function isOpenByDefault(config: Config): boolean {
  return config.auth === undefined && authMode(config) === 'none'
}

/** The setting that says that others than this machine reach the server, or that somebody logs in; undefined when none does. */
export function settingForOthers(config: Config): string | undefined {
  if (!isLoopback(config.listen.host)) return 'listen'
  if (config.publicUrl !== undefined) return 'publicUrl'
  if (config.trustedProxies.length > 0) return 'trustedProxies'
  return config.admin.passwordFile === undefined ? undefined : 'admin.passwordFile'
}

/** The name that tokens are for. */
export function tokenService({ tokens, publicUrl }: Config): string {
  return tokens.service ?? (publicUrl && new URL(publicUrl).host) ?? 'boathouse'
}

/** Milliseconds for which what was deleted can be restored. */
export function undoTime({ tags, gc }: Config): number {
  return tags.undo ?? gc.grace
}

function configFile({ flags, env }: ConfigSources): string | undefined {
  const variable = env[fileVariable]
  return flags.config ?? (variable === '' ? undefined : variable)
}

function readConfigFile(sources: ConfigSources, findings: Findings): void {
  const { flags } = sources
  const file = configFile(sources)
  if (file === undefined) return
  const place = flags.config === undefined ? fileVariable : '--config'
  const { content, trouble } = readSmallFile(file)
  if (content === undefined) {
    findings.faults.push(`${place} is ${show(file)}, ${trouble}: name a YAML file.`)
    findings.fileLost = true
    return
  }
  if (sources.readYaml === undefined) throw new Error('a configuration file needs a reader of YAML')
  const fault = sources.readYaml(file, content, findings)
  if (fault === undefined) return
  findings.faults.push(fault)
  findings.fileLost = true
}

function readVariables(env: NodeJS.ProcessEnv, findings: Findings): void {
  const known = new Map(settings.map((setting) => [setting.variable, setting]))
  for (const [name, value] of Object.entries(env)) {
    if (!name.startsWith('BOATHOUSE_') || name === fileVariable || value === undefined || value === '')
      continue
    const setting = known.get(name)
    if (setting !== undefined) findings.written.push({ setting, place: name, value })
    else if (!isServiceVariable(name, value)) {
      const near = nearest(name, [...known.keys(), fileVariable])
      const hint = near === undefined ? 'boathouse serve --help lists all settings.' : `did you mean ${near}?`
      findings.faults.push(`${showName(name)} in the environment is not a setting: ${hint}`)
    }
  }
}

/**
 * Whether this is one of the variables that Kubernetes puts into every container for each Service, here for
 * a Service called `boathouse` or `boathouse-…`.
 */
function isServiceVariable(name: string, value: string): boolean {
  if (/_SERVICE_(?:HOST|PORT)$/.test(name) || name.includes('_SERVICE_PORT_')) return true
  if (/_PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?$/.test(name)) return true
  return name.endsWith('_PORT') && /^(?:tcp|udp|sctp):\/\//.test(value)
}

function readFlags(flags: ConfigFlags, findings: Findings): void {
  for (const name of ['listen', 'data'] as const) {
    const setting = settings.find((candidate) => candidate.path === name)
    const value = flags[name]
    if (setting !== undefined && value !== undefined) {
      findings.written.push({ setting, place: `--${name}`, value })
    }
  }
}

/**
 * The variables that all programs share for HTTP proxies, in lower case or else in upper case; a wrong one counts only
 * where upstreams are to be reached and no setting takes its place.
 */
function readProxyVariables(env: NodeJS.ProcessEnv, findings: Findings): readonly Written[] {
  const isMirroring = lastOf(findings, 'mirrors') !== undefined
  return ['http', 'https', 'exceptions'].flatMap((name) => {
    const shared = name === 'exceptions' ? 'no_proxy' : `${name}_proxy`
    const place = [shared, shared.toUpperCase()].find((variable) => (env[variable] ?? '') !== '')
    const setting = settings.find(({ path }) => path === `proxy.${name}`)
    if (place === undefined || setting === undefined || lastOf(findings, setting.path)) return []
    const written = { setting, place, value: env[place] }
    return isMirroring || faultsOf(written, env).length === 0 ? [written] : []
  })
}

/** What counts of a setting, right or wrong; an empty list is nothing. */
function lastOf(findings: Findings, path: string): Written | undefined {
  const last = findings.written.findLast(({ setting }) => setting.path === path)
  return Array.isArray(last?.value) && last.value.length === 0 && path === 'mirrors' ? undefined : last
}

function faultsOf(written: Written, env: NodeJS.ProcessEnv): readonly string[] {
  const { setting, place, value } = written
  if (setting.path === 'mirrors') return faultsOfMirrors(written, env)
  if (setting.path === 'retention.rules') return faultsOfRules(written)
  const issues = setting.schema.safeParse(value).error?.issues ?? []
  return issues.map((issue) => `${place} is ${showUrl(value)}: ${sentence(issue.message)}`)
}

/** The value with all that it takes from the environment. */
function settle(written: Written, env: NodeJS.ProcessEnv): Written {
  return written.setting.path === 'mirrors'
    ? { ...written, value: withPasswords(written.value, env) }
    : written
}

/** With `auth: none`, whoever reaches the server would read what the credentials of its mirrors open. */
function faultsOfOpenMirrors(findings: Findings, accepted: ReadonlyMap<string, Written>): readonly string[] {
  const mirrors = lastOf(findings, 'mirrors')
  const listen = readListen(String(accepted.get('listen')?.value ?? '').trim())
  const isOpen = String(accepted.get('auth')?.value).trim() === 'none'
  const isForOthers =
    (listen !== undefined && !isLoopback(listen.host)) ||
    accepted.has('publicUrl') ||
    String(accepted.get('trustedProxies')?.value ?? '') !== ''
  return mirrors === undefined || !isOpen || !isForOthers ? [] : faultsOfOpenness(mirrors)
}

/** What accepted settings demand of each other; settings with a fault of their own are left out. */
function faultsBetween(
  accepted: ReadonlyMap<string, Written>,
  unreadable: ReadonlySet<string>,
): readonly string[] {
  const isKnown = (path: string) => !unreadable.has(path)
  const faults: string[] = []

  const certificate = accepted.get('tls.certificate')
  const key = accepted.get('tls.key')
  if (certificate !== undefined && key === undefined && isKnown('tls.key')) {
    faults.push(`${certificate.place} is set, but tls.key is not: set both for HTTPS, or neither.`)
  }
  if (key !== undefined && certificate === undefined && isKnown('tls.certificate')) {
    faults.push(`${key.place} is set, but tls.certificate is not: set both for HTTPS, or neither.`)
  }
  faults.push(...faultsOfTls(certificate, key))
  faults.push(...faultsOfKeyFile(accepted.get('tokens.keyFile')))
  faults.push(...faultsOfPasswordFile(accepted.get('admin.passwordFile')))

  const publicUrl = accepted.get('publicUrl')
  const isPlain = publicUrl !== undefined && /^\s*http:/i.test(String(publicUrl.value))
  if (isPlain && certificate !== undefined && key !== undefined) {
    const url = show(publicUrl.value)
    faults.push(
      `${publicUrl.place} is ${url}, but the server speaks HTTPS: write an address with https, or unset tls.`,
    )
  }
  return faults
}

/** The nested form of these values, later ones in place of earlier ones. */
function assemble(accepted: Iterable<Written>): Readonly<Record<string, unknown>> {
  const root: Record<string, unknown> = {}
  for (const { setting, value } of accepted) {
    const [first = '', second] = setting.path.split('.')
    if (second === undefined) root[first] = value
    else root[first] = { ...(root[first] ?? {}), [second]: value }
  }
  return root
}

function shorten(faults: readonly string[]): readonly string[] {
  if (faults.length <= mostFaults) return faults
  return [...faults.slice(0, mostFaults), `There are ${faults.length - mostFaults} more faults like these.`]
}
