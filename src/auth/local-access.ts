import { RegistryError } from '../oci/errors.js'
import type { RepositoryName } from '../oci/reference.js'
import {
  type AccessPolicy,
  type Action,
  type Caller,
  type Credentials,
  isEverybody,
  type Mount,
  openAccess,
  type Resource,
} from './access.js'

/** Milliseconds for which what was read about users and grants counts as current. */
const currentFor = 200

const forwarded =
  'this registry serves its own machine alone, and this request came through a proxy: ' +
  'whoever runs it must write "auth: token" into its settings, or "auth: none" to let everybody in'

/** What counts who may do what. */
export interface AccessFacts {
  /** A number that goes up with every change of users, tokens or grants. */
  accessVersion(): Promise<number>
  countUsers(): Promise<number>
  listGrants(): Promise<readonly unknown[]>
}

/** Whether somebody has said who may do what: then everybody else may not. */
export async function isDecided(facts: AccessFacts): Promise<boolean> {
  return (await facts.countUsers()) > 0 || (await facts.listGrants()).length > 0
}

/**
 * What a server does whose settings say nothing about `auth`, and which only its own machine reaches: everybody may do
 * everything, until there is a user or a grant; from then on `token` decides, until the process ends. What a proxy passes
 * on is refused while everybody may do everything (decision 0024).
 * @template T what logins consist of
 */
export class LocalAccess<T extends { readonly policy: AccessPolicy }> implements AccessPolicy {
  readonly #facts: AccessFacts
  readonly #start: () => Promise<T>
  #started: Promise<T> | undefined
  #policy: AccessPolicy | undefined
  #version: number | undefined
  #lookedAt = Number.NEGATIVE_INFINITY
  /** The last look: who comes meanwhile waits for it. */
  #look: Promise<void> = Promise.resolve()

  /** @param start begins to ask for logins; called when there is somebody who may log in */
  constructor(facts: AccessFacts, start: () => Promise<T>) {
    this.#facts = facts
    this.#start = start
  }

  /** What logins consist of; undefined as long as nobody has to log in. @throws RegistryError UNAVAILABLE */
  async logins(): Promise<T | undefined> {
    if (this.#started === undefined) {
      const now = performance.now()
      if (now - this.#lookedAt >= currentFor) {
        this.#lookedAt = now
        this.#look = this.#lookAgain()
      }
      await this.#look
    }
    const logins = await this.#started
    this.#policy = logins?.policy
    return logins
  }

  async #lookAgain(): Promise<void> {
    const version = await this.#facts.accessVersion()
    if (version === this.#version) return
    if (await isDecided(this.#facts)) {
      this.#started ??= this.#start()
      await this.#started.catch((error) => {
        this.#started = undefined
        throw error
      })
    }
    this.#version = version
  }

  /** What is to be closed; undefined when nobody had to log in. */
  get started(): Promise<T> | undefined {
    return this.#started
  }

  async authenticate(credentials: Credentials): Promise<Caller> {
    const logins = await this.logins()
    if (logins !== undefined) return logins.policy.authenticate(credentials)
    if (credentials.isForwarded) throw new RegistryError('DENIED', forwarded)
    return openAccess.authenticate(credentials)
  }

  /** A request that began while everybody might do everything goes on. */
  authorize(caller: Caller, action: Action, resource: Resource, mount: Mount | undefined): void {
    if (isEverybody(caller)) return
    this.#policy?.authorize(caller, action, resource, mount)
  }
  permits(caller: Caller, action: Action, repository: RepositoryName): boolean {
    return isEverybody(caller) || this.#policy?.permits(caller, action, repository) === true
  }
}
