import { readFileSync, realpathSync, statSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { commandSearchPath, loadConfigFromProcess, namedConfigFile } from '../../config/load.js'
import type { Config } from '../../config/schema.js'

/*
 * How this program is called, so that every command that it prints works as printed: messages are written with
 * "boathouse COMMAND", and become what can be typed on this machine when they are printed.
 */

/** Longest wrapper script that is looked into. */
const longestWrapper = 4096

const words =
  'serve|user|token|grant|revoke|access|mirror|tag|retention|gc|verify|backup|restore|quota|uploads|key|health|COMMAND'
/** Commands between quotes, and others that stand in a sentence; names of files and of settings are no commands. */
const quoted = new RegExp(`"boathouse ((?:(?:${words})\\b[^"]*|--help))"`, 'g')
const bare = new RegExp(`(^|[\\s"])boathouse (?=(?:${words})\\b|--help)`, 'gm')

let flags = ''
let program: string | undefined

/** Loads the settings as {@link loadConfigFromProcess} does, and remembers what names them. @throws ConfigError */
export async function loadSettings(values: {
  readonly config?: string | undefined
  readonly data?: string | undefined
  readonly listen?: string | undefined
}): Promise<Config> {
  const config = await loadConfigFromProcess(values)
  rememberSettings(namedConfigFile(values), config.data)
  return config
}

/** Makes the commands that are printed name these settings. */
export function rememberSettings(configFile: string | undefined, data: string): void {
  const file = configFile === undefined ? '' : ` --config ${quote(resolve(configFile))}`
  flags = `${file} --data ${quote(data)}`
}

/** A command that can be typed, such as `node /opt/boathouse/dist/src/main.js user list --data /srv/data`. */
export function typed(command: string): string {
  const takesFolder = flags !== '' && !/--help|--data|^(?:serve|health)\b/.test(command)
  return `${programName()} ${command}${takesFolder ? flags : ''}`
}

/** A message with its commands as they can be typed. */
export function withTyped(message: string): string {
  if (!message.includes('boathouse ')) return message
  const whole = message.replaceAll(quoted, (_, command: string) => `"${typed(command)}"`)
  return programName() === 'boathouse' ? whole : whole.replaceAll(bare, `$1${programName()} `)
}

/** What is typed for this program: `boathouse` where that leads here, else node and the script. */
export function programName(): string {
  program ??= findProgram()
  return program
}

function findProgram(): string {
  const script = join(fileURLToPath(new URL('..', import.meta.url)), 'main.js')
  const folders = commandSearchPath()
  if (folders.some((folder) => leadsTo(join(folder, 'boathouse'), script))) return 'boathouse'
  const isNode = folders.some((folder) => isSameFile(join(folder, 'node'), process.execPath))
  return `${quote(isNode ? 'node' : process.execPath)} ${quote(script)}`
}

/** Whether this is a link to the script, or a small script that starts it. */
function leadsTo(path: string, script: string): boolean {
  if (isSameFile(path, script)) return true
  try {
    const stats = statSync(path)
    return stats.isFile() && stats.size < longestWrapper && readFileSync(path, 'utf8').includes(script)
  } catch {
    return false
  }
}

function isSameFile(path: string, other: string): boolean {
  try {
    return realpathSync(path) === realpathSync(other)
  } catch {
    return false
  }
}

/** For a shell, where that is needed. */
function quote(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", String.raw`'\''`)}'`
}
