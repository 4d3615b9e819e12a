import type { MirrorStore } from '../../storage/mirror-store.js'
import { RegistryError } from '../oci/errors.js'
import { parseRepositoryName, type RepositoryName } from '../oci/reference.js'
import type { NameResolver, Target } from '../registry/names.js'
import type { Mirror, Mirrors } from './mirrors.js'

/**
 * Finds the repository that a request means: by the mirror's name in front of it, by `?ns=`, or, for a name
 * that nothing local has, by the mirror that bare names fall to (protocol 12.1 to 12.3).
 */
export class MirrorNames implements NameResolver {
  readonly #mirrors: Mirrors
  readonly #store: MirrorStore

  constructor(mirrors: Mirrors, store: MirrorStore) {
    this.#mirrors = mirrors
    this.#store = store
  }

  async resolve(asked: RepositoryName, isRead: boolean, namespace?: string): Promise<Target> {
    const named = namespace === undefined ? undefined : this.#mirrors.ofNamespace(namespace)
    if (named !== undefined) return this.#behind(named, asked, asked, { namespace })
    const own = this.#mirrors.of(asked)
    if (own !== undefined) return this.#byPath(own, asked, isRead)
    const bare = this.#mirrors.ofBareNames
    if (!isRead || bare === undefined) return { repository: asked, asked }
    // What was pushed here is never looked up elsewhere.
    if ((await this.#store.findRepositoryKind(asked)) !== 'absent') return { repository: asked, asked }
    // Nor is what the mirror may not fetch: clients look for a new name's layers before they push them.
    if (!bare.allows(withLibrary(bare, asked))) return { repository: asked, asked }
    return this.#behind(bare, asked, asked, { isBare: true })
  }

  async #byPath(mirror: Mirror, asked: RepositoryName, isRead: boolean): Promise<Target> {
    const remote = mirror.remoteOf(asked)
    const isShort = withLibrary(mirror, remote) !== remote
    // The cold paths of the mirror look for themselves; all others must know now.
    if ((!isRead || isShort) && (await this.#store.findRepositoryKind(asked)) === 'local') {
      return { repository: asked, asked }
    }
    return this.#behind(mirror, remote, asked, {})
  }

  async #behind(
    mirror: Mirror,
    remote: RepositoryName,
    asked: RepositoryName,
    how: { readonly namespace?: string | undefined; readonly isBare?: boolean },
  ): Promise<Target> {
    const full = withLibrary(mirror, remote)
    const path = `${mirror.name}/${full}`
    const repository = path === asked ? asked : parseRepositoryName(path)
    if (mirror.allows(full)) return { repository, asked, mirror: mirror.name, ...how }
    // What was pushed here before there was the mirror is not the mirror's to deny.
    if ((await this.#store.findRepositoryKind(repository)) === 'local') return { repository, asked, ...how }
    throw new RegistryError('DENIED', `the mirror of ${mirror.name} is set up not to fetch ${full}`)
  }
}

/** The upstream's name of a repository that may leave out `library` (protocol PX-08). */
export function withLibrary(mirror: Mirror, remote: RepositoryName): RepositoryName {
  const isShort = mirror.options.hasLibrary && !remote.includes('/')
  return isShort ? parseRepositoryName(`library/${remote}`) : remote
}
