import { RegistryError } from '../oci/errors.js'

/** Where everybody may do everything there is nothing to get a token for. */
export const noTokenHandlers = {
  async getToken(): Promise<void> {
    throw new RegistryError('NOT_FOUND')
  },
  async postToken(): Promise<void> {
    throw new RegistryError('NOT_FOUND')
  },
}
