import { readFile } from 'node:fs/promises'
import type { Logger } from 'pino'
import type { Config } from '../../config/schema.js'
import type { AccessStore } from '../../storage/access-store.js'
import { dataPaths } from '../../storage/data-folder.js'
import { KeyStore } from '../../storage/key-store.js'
import { isTooShort, Passwords, shortestPassword } from '../auth/passwords.js'
import { StartError } from './start-failure.js'

/**
 * Makes what logins need: a signing key, and the first admin where the configuration names a password.
 * @returns whether anybody can log in
 * @throws StartError for a password that is too short; while there is such a user, nobody looks at it
 */
export async function prepareAccess(config: Config, access: AccessStore, logger: Logger): Promise<boolean> {
  await new KeyStore(dataPaths(config.data).keys).prepare(Date.now())
  const { passwordFile } = config.admin
  if (passwordFile !== undefined) await addAdmin(access, passwordFile, logger)
  if ((await access.countUsers()) > 0) return true
  logger.warn('there are no users, so nobody can log in: type "boathouse user add NAME --admin"')
  return false
}

async function addAdmin(access: AccessStore, passwordFile: string, logger: Logger): Promise<void> {
  if ((await access.findUser('admin')) !== undefined) return
  const password = (await readFile(passwordFile, 'utf8')).replace(/\r?\n$/, '')
  if (isTooShort(password)) {
    throw new StartError(
      `admin.passwordFile names a file whose password has less than ${shortestPassword} characters: write a longer one into it, and start again.`,
    )
  }
  const passwords = new Passwords()
  const passwordHash = await passwords.hash(password)
  await passwords.close()
  if (await access.addUser({ name: 'admin', passwordHash, isAdmin: true }, Date.now())) {
    logger.info({ audit: 'user added', user: 'admin' }, 'made the user admin')
  }
}
