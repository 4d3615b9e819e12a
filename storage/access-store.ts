/** What a grant lets somebody do. `push` and `delete` bring `pull` along; `admin` brings everything. */
export type Permission = 'pull' | 'push' | 'delete' | 'admin'

/** Whom a grant is made to. */
export type Subject =
  | { readonly kind: 'user'; readonly name: string }
  | { readonly kind: 'group'; readonly name: string }
  /** Everybody who logged in. */
  | { readonly kind: 'authenticated' }
  /** Everybody. */
  | { readonly kind: 'anonymous' }

/** A rule: this subject may do this in the repositories of this pattern. No rule takes away. */
export interface Grant {
  readonly subject: Subject
  readonly pattern: string
  readonly permission: Permission
}

/** A user as the index has it. Times are milliseconds since 1970. */
export interface User {
  readonly name: string
  /** A password hash in the form that passwords.ts makes, or bcrypt's from an htpasswd file. */
  readonly passwordHash: string
  readonly isAdmin: boolean
  readonly isDisabled: boolean
  /** Goes up with every change that ends what was issued before: password, disabling. */
  readonly epoch: number
  readonly groups: readonly string[]
  readonly createdAt: number
}

/** One part of an access token's scope: what it may do in the repositories of a pattern. */
export interface TokenScope {
  readonly pattern: string
  readonly permissions: readonly Permission[]
}

/** An access token: a password for machines. Only a hash of its secret is kept. */
export interface AccessToken {
  readonly id: string
  readonly user: string
  /** What its owner calls it: once per user. */
  readonly name: string
  /** SHA-256 of the secret, hexadecimal: the secret has 256 random bits, nothing slower is needed. */
  readonly secretHash: string
  readonly scopes: readonly TokenScope[]
  readonly createdAt: number
  /** Undefined: never. */
  readonly expiresAt: number | undefined
  /** Last use, to the minute; undefined: never used. */
  readonly usedAt: number | undefined
}

/** Who is who, and who may do what. */
export interface AccessSettings {
  readonly groups: Readonly<Record<string, readonly string[]>>
  readonly grants: readonly Grant[]
}

/**
 * With it a change that would leave no admin who is enabled is refused as `last-admin`; where there is none before, it
 * takes none away.
 */
export type AdminGuard = 'keep-an-admin'

/**
 * Begins the names of access tokens that the token endpoint made as refresh tokens. They stand for a password that
 * somebody typed, and end with it (protocol TK-35).
 */
export const refreshTokenPrefix = 'login '

/**
 * Users, access tokens and grants. Every change raises {@link accessVersion}, by which the servers know that
 * what they remember is old.
 *
 * Each method is one transaction and may throw RegistryError UNAVAILABLE or STORAGE_FULL: then it did not happen.
 */
export interface AccessStore {
  /** A number that goes up with every change of users, tokens or grants. */
  accessVersion(): Promise<number>
  countUsers(): Promise<number>
  findUser(name: string): Promise<User | undefined>
  listUsers(): Promise<User[]>
  /** False when the name is taken. */
  addUser(
    user: { readonly name: string; readonly passwordHash: string; readonly isAdmin: boolean },
    now: number,
  ): Promise<boolean>
  /** Ends what was issued with the old password, refresh tokens too. False when there is no such user. */
  setPassword(name: string, passwordHash: string): Promise<boolean>
  /** Stores the same password's hash in another form: nothing that was issued ends. */
  rehashPassword(name: string, oldHash: string, newHash: string): Promise<boolean>
  /** Disabling ends what was issued, refresh tokens too; access tokens are good again with enabling. */
  setDisabled(name: string, isDisabled: boolean, guard?: AdminGuard): Promise<boolean | 'last-admin'>
  setAdmin(name: string, isAdmin: boolean, guard?: AdminGuard): Promise<boolean | 'last-admin'>
  /** Removes a user with its tokens, its group memberships and the grants made to it. */
  removeUser(name: string, guard?: AdminGuard): Promise<boolean | 'last-admin'>
  setGroups(name: string, groups: readonly string[]): Promise<boolean>

  findAccessToken(id: string): Promise<AccessToken | undefined>
  listAccessTokens(user: string | undefined): Promise<AccessToken[]>
  /** `no-user` when the owner does not exist, `taken` when the owner has a token of that name. */
  addAccessToken(token: Omit<AccessToken, 'usedAt'>): Promise<'added' | 'no-user' | 'taken'>
  /**
   * Adds a refresh token of a user who is enabled and of this epoch: what proved him may have ended since it was looked
   * at. Refresh tokens whose time is over go, and of more than `most` of one user those that were never used, the oldest
   * first, then those that were not used for longest.
   * @returns false when the user is not the one that was proven any more
   */
  addRefreshToken(token: Omit<AccessToken, 'usedAt'>, epoch: number, most: number): Promise<boolean>
  removeAccessToken(user: string, name: string): Promise<boolean>
  /** Records uses, at most once a minute per token. Raises no version. */
  touchAccessTokens(ids: readonly string[], now: number): Promise<void>

  listGrants(): Promise<Grant[]>
  /** Grants to a user, directly, by its groups, or as one of all. */
  listGrantsFor(user: string | undefined): Promise<Grant[]>
  /** False when it was there already. A grant to a user who does not exist: `no-user`. */
  addGrant(grant: Grant): Promise<'added' | 'there' | 'no-user'>
  removeGrant(grant: Grant): Promise<boolean>
  /** Makes groups and grants exactly these, all at once. Returns names of users who do not exist: then nothing changed. */
  applyAccess(settings: AccessSettings): Promise<readonly string[]>
}
