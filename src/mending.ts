import type { Config } from '../config/schema.js'
import { syncProcess } from '../storage/mirror-store.js'
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

/** Who mends. */
export interface MendingOptions {
  /**
   * The server's process; undefined for a command, which mends as a sync does (see {@link MirrorStore.startSync}): what
   * it has taken is free when it dies, and stays its own when a server starts beside it.
   */
  readonly processName: string | undefined
  /** Hears why something could not be fetched. */
  readonly onError: (error: unknown, what: string) => void
}

/**
 * What fetches the lost bytes of mirrors again, hash-checked as everything that comes from an upstream. It is put
 * together when something is to be mended: that is seldom.
 */
export function createMender(
  config: Config,
  stores: Stores,
  { processName, onError }: MendingOptions,
): OpenMender | undefined {
  if (config.mirrors.length === 0) return undefined
  let opening: ReturnType<typeof openMirrors> | undefined
  const open = async () => {
    if (processName !== undefined) return openMirrors(config, stores, processName, onError)
    if (!(await stores.mirrors.startSync())) {
      throw new Error('a sync is at work: what clients ask for is fetched then')
    }
    try {
      return await openMirrors(config, stores, syncProcess, onError)
    } catch (error) {
      await stores.mirrors.endSync()
      throw error
    }
  }
  const mirrors = () => {
    opening ??= open().catch((error: unknown) => {
      opening = undefined // a sync ends: the next one tries again
      throw error
    })
    return opening
  }
  const attempt = async (what: string, work: () => Promise<boolean>): Promise<boolean> => {
    try {
      return await work()
    } catch (error) {
      onError(error, `${what} could not be fetched again`)
      return false
    }
  }
  return {
    async mendBlob(repositories, digest) {
      for (const repository of repositories) {
        const what = `${digest} of ${repository}`
        const isMended = await attempt(what, async () => {
          await (await mirrors()).blobs.prefetchBlob(repository, digest)
          return true
        })
        if (isMended) return true
      }
      return false
    },
    async mendManifest(repository, digest) {
      return attempt(`manifest ${digest} of ${repository}`, async () => {
        const { manifests, isMirrored } = await mirrors()
        if (!isMirrored(repository)) return false
        await manifests.getManifest(repository, { kind: 'digest', digest })
        return true
      })
    },
    async close() {
      if (opening === undefined) return
      await (await opening).close()
      if (processName === undefined) await stores.mirrors.endSync()
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
