import type { Config } from '../config/schema.js'
import { matchesRepository, parseRepositoryPattern } from './oci/repository-pattern.js'
import { parseTagPattern, tagPatternsFor } from './oci/tag-pattern.js'
import type { Mender } from './registry/blob-check.js'
import { BlobService } from './registry/blobs.js'
import { ManifestParser } from './registry/manifest-parser.js'
import { ManifestService } from './registry/manifests.js'
import { createDiskGuard, type Stores } from './stores.js'

/** A mender that is to be closed. */
export interface OpenMender extends Mender {
  close(): Promise<void>
}

/**
 * What fetches the lost bytes of mirrors again, hash-checked as everything that comes from an upstream. It is put
 * together when something is to be mended: that is seldom.
 * @param onError hears why an upstream did not help
 */
export function createMender(
  config: Config,
  stores: Stores,
  { processName, onError }: { processName: string; onError: (error: unknown, what: string) => void },
): OpenMender | undefined {
  if (config.mirrors.length === 0) return undefined
  let opening: ReturnType<typeof openMirrors> | undefined
  const mirrors = () => {
    opening ??= openMirrors(config, stores, processName, onError)
    return opening
  }
  const attempt = async (what: string, work: () => Promise<unknown>): Promise<boolean> => {
    try {
      await work()
      return true
    } catch (error) {
      onError(error, `${what} could not be fetched again`)
      return false
    }
  }
  return {
    async mendBlob(repositories, digest) {
      const { blobs } = await mirrors()
      for (const repository of repositories) {
        const what = `${digest} of ${repository}`
        if (await attempt(what, () => blobs.prefetchBlob(repository, digest))) return true
      }
      return false
    },
    async mendManifest(repository, digest) {
      const { manifests, isMirrored } = await mirrors()
      if (!isMirrored(repository)) return false
      const what = `manifest ${digest} of ${repository}`
      return attempt(what, () => manifests.getManifest(repository, { kind: 'digest', digest }))
    },
    async close() {
      await (await opening)?.close()
    },
  }
}

async function openMirrors(
  config: Config,
  stores: Stores,
  processName: string,
  onError: (error: unknown, what: string) => void,
) {
  const { createMirrors } = await import('./mirror-app.js')
  const parser = new ManifestParser()
  const sparse = config.manifests.sparse.map(parseRepositoryPattern)
  const immutable = config.tags.immutable.map(parseTagPattern)
  const disk = createDiskGuard(config, stores)
  const manifestOptions = {
    immutableTags: (name: string) => tagPatternsFor(immutable, name),
    isSparse: (name: string) => sparse.some((pattern) => matchesRepository(pattern, name)),
    untagged: () => config.gc.untagged,
    disk,
    pulls: { note: () => undefined }, // nobody pulls
    parse: parser.parse,
  }
  const { mirrors, blobs, manifests, close } = await createMirrors(config, {
    stores,
    blobs: new BlobService(stores, { grace: config.gc.grace, disk }),
    manifests: new ManifestService(stores.metadata, manifestOptions),
    manifestOptions,
    processName,
    onError,
  })
  return {
    blobs,
    manifests,
    isMirrored: (repository: Parameters<typeof mirrors.of>[0]) => mirrors.of(repository) !== undefined,
    async close() {
      await close()
      await parser.close()
    },
  }
}
