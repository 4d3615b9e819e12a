import type { MirrorStore } from '../../storage/mirror-store.js'
import { isRepositoryName, parseRepositoryName, type RepositoryName } from '../oci/reference.js'
import type { Asker, NameRequest, NameResolver, Target } from '../registry/names.js'
import type { Mirror, Mirrors } from './mirrors.js'
import { Pushes } from './pushes.js'

/**
 * Finds the repository that a request means: by the mirror's name in front of it, by `?ns=`, or, for a name
 * that nothing local has, by the mirror that bare names fall to (protocol 12.1 to 12.3). The index is asked about
 * nothing that the asker may not see, so that no answer, and no time that it takes, depends on it (reliability S88).
 */
export class MirrorNames implements NameResolver {
  readonly #mirrors: Mirrors
  readonly #store: Pick<MirrorStore, 'findRepositoryKind'>
  readonly #pushes = new Pushes()

  constructor(mirrors: Mirrors, store: Pick<MirrorStore, 'findRepositoryKind'>) {
    this.#mirrors = mirrors
    this.#store = store
  }

  async resolve(request: NameRequest, asker: Asker): Promise<Target> {
    const { asked, namespace } = request
    const named = namespace === undefined ? undefined : this.#mirrors.ofNamespace(namespace)
    if (named !== undefined)
      return { ...(await this.#ownIfDenied(behind(named, asked, asked), asker)), namespace }
    const own = this.#mirrors.of(asked)
    if (own !== undefined) return this.#byPath(own, request, asker)
    const bare = this.#mirrors.ofBareNames
    return bare === undefined ? { repository: asked, asked } : this.#byBareName(bare, request, asker)
  }

  othersOf(name: RepositoryName): readonly RepositoryName[] {
    const own = this.#mirrors.of(name)
    const mirror = own ?? this.#mirrors.ofBareNames
    if (mirror === undefined) return []
    const path = pathOf(mirror, own === undefined ? name : mirror.remoteOf(name))
    return isRepositoryName(path) && path !== name ? [path] : []
  }

  async #byPath(mirror: Mirror, { asked, use }: NameRequest, asker: Asker): Promise<Target> {
    const target = behind(mirror, mirror.remoteOf(asked), asked)
    const isShort = target.repository !== asked
    // The cold paths of the mirror look for themselves; all others must know now.
    const isLocal =
      (use === 'change' || isShort) &&
      asker.sees(asked) &&
      (await this.#store.findRepositoryKind(asked)) === 'local'
    return isLocal ? { repository: asked, asked } : this.#ownIfDenied(target, asker)
  }

  /** What was pushed here before there was the mirror is not the mirror's to deny. */
  async #ownIfDenied(target: Target, asker: Asker): Promise<Target> {
    const { repository, asked, denial } = target
    if (denial === undefined || !asker.sees(repository)) return target
    return (await this.#store.findRepositoryKind(repository)) === 'local' ? { repository, asked } : target
  }

  /** A push asks nobody, as far as it can be told from a pull (docs/decisions/0022). */
  async #byBareName(mirror: Mirror, request: NameRequest, asker: Asker): Promise<Target> {
    const { asked, use, isHead } = request
    const { sender } = asker
    const local: Target = { repository: asked, asked }
    if (use === 'change') {
      this.#pushes.note(sender, asked)
      return local
    }
    // What was pushed here is never looked up elsewhere for those who may see it.
    if (asker.sees(asked) && (await this.#store.findRepositoryKind(asked)) !== 'absent') return local
    if (!isRepositoryName(pathOf(mirror, asked))) return local // too long to lie behind a mirror
    const target = behind(mirror, asked, asked)
    if (target.denial !== undefined || !asker.mayPull(target.repository)) return local
    const intent = asker.intentOf(asked)
    if (intent === 'push') return local
    const isMaybePush = intent === 'unknown'
    // Whoever pulls begins with a manifest, and whoever pushes looks for layers first.
    if (use === 'blob' && (await this.#store.findRepositoryKind(target.repository)) !== 'mirrored') {
      if (isHead && isMaybePush) this.#pushes.note(sender, asked)
      return local
    }
    if (isHead && isMaybePush && this.#pushes.has(sender, asked)) return local
    if (!isHead && use === 'manifest') this.#pushes.forget(sender, asked)
    return { ...target, isBare: true, isMaybePush }
  }
}

/** The repository of a mirror that a bare name finds when nothing is here; undefined where there is none. */
export function behindBareName(mirrors: Mirrors, name: RepositoryName): RepositoryName | undefined {
  const bare = mirrors.of(name) === undefined ? mirrors.ofBareNames : undefined
  const path = bare === undefined ? '' : pathOf(bare, name)
  return isRepositoryName(path) ? path : undefined
}

/** A repository of a mirror, and whether the mirror is set up to fetch it. @throws RegistryError NAME_INVALID */
function behind(mirror: Mirror, remote: RepositoryName, asked: RepositoryName): Target {
  const path = pathOf(mirror, remote)
  const repository = path === asked ? asked : parseRepositoryName(path)
  const full = mirror.remoteOf(repository)
  const denial = mirror.allows(full)
    ? undefined
    : `the mirror of ${mirror.name} is set up not to fetch ${full}`
  return { repository, asked, mirror: mirror.name, denial }
}

/** Where a repository lies here whose upstream's name may leave out `library` (protocol PX-08). */
function pathOf({ name, options }: Mirror, remote: RepositoryName): string {
  return options.hasLibrary && !remote.includes('/') ? `${name}/library/${remote}` : `${name}/${remote}`
}

/** The upstream's name of a repository that may leave out `library` (protocol PX-08). */
export function withLibrary(mirror: Mirror, remote: RepositoryName): RepositoryName {
  return mirror.remoteOf(parseRepositoryName(pathOf(mirror, remote)))
}
