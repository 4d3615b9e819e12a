import { RegistryError } from '../oci/errors.js'
import type { Exchange } from './exchange.js'

/** Where everybody may do everything there is nothing to get a token for. */
export const noTokenHandlers = {
  async getToken(_exchange: Exchange): Promise<void> {
    throw new RegistryError('NOT_FOUND')
  },
  async postToken(_exchange: Exchange): Promise<void> {
    throw new RegistryError('NOT_FOUND')
  },
}
