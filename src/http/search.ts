import { RegistryError } from '../oci/errors.js'
import type { Manifests } from '../registry/manifests.js'
import type { Exchange } from './exchange.js'
import { visibleTo } from './visible.js'

/** Results when the client names no number, and the most it gets (protocol V1-02). */
const defaultResults = 25
const mostResults = 100

/** What `docker search` and `podman search` still ask of the first registry API (protocol section 11). */
export function searchHandlers({ manifests }: { readonly manifests: Manifests }) {
  return {
    async pingV1(exchange: Exchange): Promise<void> {
      exchange.sendJson({ standalone: true }, { 'X-Docker-Registry-Standalone': 'true' })
    },

    async searchV1(exchange: Exchange): Promise<void> {
      const { headers } = exchange.request
      // V1-05: podman asks without credentials and takes any 200 for final; a 404 sends it to the catalog, where
      // it logs in. docker always sends this header.
      if (headers.authorization === undefined && headers['x-docker-token'] === undefined) {
        throw new RegistryError('NOT_FOUND', 'search with /v2/_catalog')
      }
      const text = exchange.query.get('q') ?? ''
      const limit = readLimit(exchange.query.get('n'))
      await exchange.room()
      const names = await manifests.searchRepositories(text, limit, visibleTo(exchange.caller))
      exchange.sendJson({
        query: text,
        num_results: names.length,
        results: names.map((name) => ({
          name,
          description: '',
          star_count: 0,
          is_official: false,
          is_automated: false,
          is_trusted: false,
        })),
      })
    },
  }
}

function readLimit(n: string | null): number {
  const wanted = Number(n ?? defaultResults)
  return Number.isInteger(wanted) && wanted > 0 ? Math.min(wanted, mostResults) : defaultResults
}
