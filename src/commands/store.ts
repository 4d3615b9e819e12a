import { accessSync, constants, existsSync } from 'node:fs'
import { userInfo } from 'node:os'
import type { Config } from '../../config/schema.js'
import { showName } from '../../config/words.js'
import type { AccessStore } from '../../storage/access-store.js'
import { dataPaths, type FolderState, inspectDataFolder } from '../../storage/data-folder.js'
import { errorCode, IndexDamagedError, isIndexDamage } from '../../storage/errors.js'
import { KeyStore } from '../../storage/key-store.js'
import { RegistryError } from '../oci/errors.js'
import { openStores, type Stores } from '../stores.js'
import { Misuse, note, Refusal, type SharedValues } from './command.js'
import { describeDataFailure } from './folder-failure.js'
import { loadSettings } from './own-name.js'

/** What a command works on. */
export interface Place {
  readonly config: Config
  readonly stores: Stores
  readonly access: AccessStore
  readonly keys: KeyStore
  /** Writes down a change, where `--log json` asks for it. It must hold no secret. */
  audit(event: string, about: Readonly<Record<string, unknown>>): void
}

/**
 * Opens the data folder of a server, which may run meanwhile, and closes it after the task.
 * @throws Misuse, ConfigError, or Refusal when there is no data folder or it cannot be used
 */
export async function withPlace<T>(values: SharedValues, task: (place: Place) => Promise<T>): Promise<T> {
  const { log, ...flags } = values
  if (log !== undefined && log !== 'json') throw new Misuse('--log takes the word json.')
  const config = await loadSettings({ config: flags.config, data: flags.data })
  const paths = dataPaths(config.data)
  checkFolder(config.data, paths.database)
  const { audit, flush } = await openAudit(log)
  const stores = await open(config)
  try {
    return await task({ config, stores, access: stores.access, keys: new KeyStore(paths.keys), audit })
  } catch (error) {
    throw error instanceof RegistryError ? refusalOf(error, config.data) : error
  } finally {
    await stores.close()
    await flush()
  }
}

async function open(config: Config): Promise<Stores> {
  try {
    return await openStores(config, (error) => {
      note(`The index of ${config.data} cannot be written: ${error.message}.`)
      process.exit(1)
    })
  } catch (error) {
    throw new Refusal(`The index of ${config.data} cannot be opened (${messageOf(error)}): try again.`)
  }
}

/** The answer to a name that nobody has. */
export function unknownUser(name: string): Refusal {
  return new Refusal(`There is no user ${showName(name)}: "boathouse user list" shows who there is.`)
}

/** The answer to a name of a repository that holds no manifest. */
export function unknownRepository(name: string): Refusal {
  return new Refusal(
    `There is no repository ${showName(name)}: look at its name, which has no registry before it.`,
  )
}

/** A command must never make a folder: it would be one that no server looks at. */
function checkFolder(root: string, database: string): void {
  try {
    accessSync(database, constants.R_OK | constants.W_OK)
    accessSync(root, constants.R_OK | constants.W_OK | constants.X_OK)
  } catch (error) {
    const code = errorCode(error)
    const sentence = code === 'EACCES' ? undefined : describeDataFailure(error, root)
    throw new Refusal(
      code === 'ENOENT' || code === 'ENOTDIR'
        ? `There is no registry in ${root}: name its data folder with --data, or start the server there once.`
        : (sentence ??
            `This user may not write to ${root}: run the command as the user that the server runs as.`),
    )
  }
  if (existsSync(dataPaths(root).restoring)) {
    throw new Refusal(`A restore into ${root} was interrupted: run the same restore again first, it goes on.`)
  }
  switch (stateOf(root)) {
    case 'older':
      throw new Refusal(`The data in ${root} has an older form: start this version of the server there once.`)
    case 'newer':
      throw new Refusal(
        `The data in ${root} was written by a newer Boathouse: use the command of that version.`,
      )
  }
}

function stateOf(root: string): FolderState {
  try {
    return inspectDataFolder(root)
  } catch (error) {
    if (isIndexDamage(error))
      throw new Refusal(new IndexDamagedError(dataPaths(root).database, messageOf(error)).message)
    throw new Refusal(
      `The index in ${root} cannot be read (${messageOf(error)}): name the data folder of a Boathouse with --data.`,
    )
  }
}

function refusalOf(error: RegistryError, root: string): Refusal {
  if (error.kind === 'STORAGE_FULL') {
    return new Refusal(`There is no room left in ${root}: make some, then try again.`)
  }
  return new Refusal(
    `The index of ${root} could not be used (${messageOf(error.cause ?? error)}): try again.`,
  )
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : 'unknown error' // threads end with copies that say nothing
}

/** The audit log of commands looks like the server's: pino's JSON, `audit` and `user`, here the system's user. */
async function openAudit(log: 'json' | undefined): Promise<{
  audit: Place['audit']
  flush: () => Promise<void>
}> {
  if (log === undefined) return { audit: () => undefined, flush: async () => undefined }
  const { createLogger, flushLogger } = await import('./logger.js')
  const logger = await createLogger({ level: 'info', format: 'json' }, undefined)
  const user = systemUser()
  return {
    audit: (event, about) => logger.info({ audit: event, user, ...about }, event),
    flush: () => flushLogger(logger),
  }
}

/** The name of whoever runs the command. */
export function systemUser(): string {
  try {
    return userInfo().username
  } catch {
    return String(process.getuid?.() ?? 'unknown') // containers run with numbers that have no name
  }
}
