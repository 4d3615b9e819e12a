import { isOpenByDefault } from '../../config/load.js'
import { note } from './command.js'
import type { Place } from './store.js'

/**
 * Says what users and grants that were just added change, where the settings do not ask for logins.
 * @param added how many there are more
 */
export async function noteOpenness({ config, access }: Place, added: number): Promise<void> {
  if (config.auth === 'none') {
    note('The setting auth is none: the server asks nobody for a login until "auth: token" is written.')
  } else if (isOpenByDefault(config)) {
    const all = (await access.countUsers()) + (await access.listGrants()).length
    if (all === added)
      note(
        'A server that only this machine reaches asks for a login from now on, unless its setting auth is none.',
      )
  }
}
