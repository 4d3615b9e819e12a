import type Database from 'better-sqlite3'
import type { AccessStore, AccessToken, Grant, Subject, User } from './access-store.js'
import type { Writer } from './sqlite-writer-client.js'

interface UserRow {
  name: string
  passwordHash: string
  isAdmin: number
  isDisabled: number
  epoch: number
  groups: string
  createdAt: number
}

interface TokenRow {
  id: string
  user: string
  name: string
  secretHash: string
  scopes: string
  createdAt: number
  expiresAt: number | null
  usedAt: number | null
}

interface GrantRow {
  kind: Subject['kind']
  name: string
  pattern: string
  permission: Grant['permission']
}

const userColumns = `name, password_hash AS passwordHash, is_admin AS isAdmin, is_disabled AS isDisabled, epoch,
  (SELECT json_group_array(g.name) FROM user_group g WHERE g.user_id = user.id) AS groups, created_at AS createdAt`
const tokenColumns = `t.id, u.name AS user, t.name, t.secret_hash AS secretHash, t.scopes, t.created_at AS createdAt,
  t.expires_at AS expiresAt, t.used_at AS usedAt`

function prepareQueries(db: Database.Database) {
  return {
    version: db.prepare<[], number>('SELECT version FROM access_state').pluck(),
    countUsers: db.prepare<[], number>('SELECT count(*) FROM user').pluck(),
    user: db.prepare<[string], UserRow>(`SELECT ${userColumns} FROM user WHERE name = ?`),
    users: db.prepare<[], UserRow>(`SELECT ${userColumns} FROM user ORDER BY name`),
    token: db.prepare<[string], TokenRow>(
      `SELECT ${tokenColumns} FROM access_token t JOIN user u ON u.id = t.user_id WHERE t.id = ?`,
    ),
    tokens: db.prepare<[{ user: string | null }], TokenRow>(
      `SELECT ${tokenColumns} FROM access_token t JOIN user u ON u.id = t.user_id
       WHERE :user IS NULL OR u.name = :user ORDER BY u.name, t.name`,
    ),
    grants: db.prepare<[], GrantRow>(
      'SELECT kind, name, pattern, permission FROM access_grant ORDER BY kind, name, pattern, permission',
    ),
    grantsFor: db.prepare<[{ user: string | null }], GrantRow>(
      `SELECT kind, name, pattern, permission FROM access_grant
       WHERE kind = 'anonymous' OR (:user IS NOT NULL AND (
         kind = 'authenticated' OR (kind = 'user' AND name = :user)
         OR (kind = 'group' AND name IN (
           SELECT g.name FROM user_group g JOIN user u ON u.id = g.user_id WHERE u.name = :user))))
       ORDER BY kind, name, pattern, permission`,
    ),
  }
}

/** See {@link AccessStore} for what each method promises. */
export class SqliteAccessStore implements AccessStore {
  readonly #queries: ReturnType<typeof prepareQueries>
  readonly #writer: Writer

  constructor(db: Database.Database, writer: Writer) {
    this.#queries = prepareQueries(db)
    this.#writer = writer
  }

  async #read<T>(query: (queries: ReturnType<typeof prepareQueries>) => T): Promise<T> {
    try {
      return query(this.#queries)
    } catch (error) {
      throw this.#writer.failureOf(error)
    }
  }

  accessVersion(): Promise<number> {
    return this.#read((queries) => queries.version.get() ?? 0)
  }

  countUsers(): Promise<number> {
    return this.#read((queries) => queries.countUsers.get() ?? 0)
  }

  findUser(name: string): Promise<User | undefined> {
    return this.#read((queries) => {
      const row = queries.user.get(name)
      return row === undefined ? undefined : toUser(row)
    })
  }

  listUsers(): Promise<User[]> {
    return this.#read((queries) => queries.users.all().map(toUser))
  }

  addUser(...args: Parameters<AccessStore['addUser']>): Promise<boolean> {
    return this.#writer.run('addUser', ...args)
  }

  setPassword(...args: Parameters<AccessStore['setPassword']>): Promise<boolean> {
    return this.#writer.run('setPassword', ...args)
  }

  rehashPassword(...args: Parameters<AccessStore['rehashPassword']>): Promise<boolean> {
    return this.#writer.run('rehashPassword', ...args)
  }

  setDisabled(...args: Parameters<AccessStore['setDisabled']>): ReturnType<AccessStore['setDisabled']> {
    return this.#writer.run('setDisabled', ...args)
  }

  setAdmin(...args: Parameters<AccessStore['setAdmin']>): ReturnType<AccessStore['setAdmin']> {
    return this.#writer.run('setAdmin', ...args)
  }

  removeUser(...args: Parameters<AccessStore['removeUser']>): ReturnType<AccessStore['removeUser']> {
    return this.#writer.run('removeUser', ...args)
  }

  setGroups(...args: Parameters<AccessStore['setGroups']>): Promise<boolean> {
    return this.#writer.run('setGroups', ...args)
  }

  findAccessToken(id: string): Promise<AccessToken | undefined> {
    return this.#read((queries) => {
      const row = queries.token.get(id)
      return row === undefined ? undefined : toAccessToken(row)
    })
  }

  listAccessTokens(user: string | undefined): Promise<AccessToken[]> {
    return this.#read((queries) => queries.tokens.all({ user: user ?? null }).map(toAccessToken))
  }

  addAccessToken(
    ...args: Parameters<AccessStore['addAccessToken']>
  ): ReturnType<AccessStore['addAccessToken']> {
    return this.#writer.run('addAccessToken', ...args)
  }

  addRefreshToken(...args: Parameters<AccessStore['addRefreshToken']>): Promise<boolean> {
    return this.#writer.run('addRefreshToken', ...args)
  }

  removeAccessToken(...args: Parameters<AccessStore['removeAccessToken']>): Promise<boolean> {
    return this.#writer.run('removeAccessToken', ...args)
  }

  touchAccessTokens(...args: Parameters<AccessStore['touchAccessTokens']>): Promise<void> {
    return this.#writer.run('touchAccessTokens', ...args)
  }

  listGrants(): Promise<Grant[]> {
    return this.#read((queries) => queries.grants.all().map(toGrant))
  }

  listGrantsFor(user: string | undefined): Promise<Grant[]> {
    return this.#read((queries) => queries.grantsFor.all({ user: user ?? null }).map(toGrant))
  }

  addGrant(...args: Parameters<AccessStore['addGrant']>): ReturnType<AccessStore['addGrant']> {
    return this.#writer.run('addGrant', ...args)
  }

  removeGrant(...args: Parameters<AccessStore['removeGrant']>): Promise<boolean> {
    return this.#writer.run('removeGrant', ...args)
  }

  applyAccess(...args: Parameters<AccessStore['applyAccess']>): Promise<readonly string[]> {
    return this.#writer.run('applyAccess', ...args)
  }
}

function toUser(row: UserRow): User {
  return {
    ...row,
    isAdmin: row.isAdmin === 1,
    isDisabled: row.isDisabled === 1,
    groups: (JSON.parse(row.groups) as string[]).sort(),
  }
}

function toAccessToken(row: TokenRow): AccessToken {
  return {
    ...row,
    scopes: JSON.parse(row.scopes) as AccessToken['scopes'],
    expiresAt: row.expiresAt ?? undefined,
    usedAt: row.usedAt ?? undefined,
  }
}

function toGrant({ kind, name, pattern, permission }: GrantRow): Grant {
  const subject: Subject = kind === 'user' || kind === 'group' ? { kind, name } : { kind }
  return { subject, pattern, permission }
}
