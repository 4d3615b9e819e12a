import type { Database } from 'better-sqlite3'
import {
  type AccessSettings,
  type AccessToken,
  type AdminGuard,
  type Grant,
  refreshTokenPrefix,
  type Subject,
} from './access-store.js'

/** A subject's name in the index; the two that stand for everybody have none. */
export function subjectName(subject: Subject): string {
  return 'name' in subject ? subject.name : ''
}

/** The operations that write users, tokens and grants; see prepareOperations. */
export function prepareAccessOperations(db: Database) {
  return { ...prepareUsers(db), ...prepareTokens(db), ...prepareGrants(db) }
}

function prepareUsers(db: Database) {
  const add = db.prepare(
    // The version only goes up, so a user who comes again never has an epoch that he had before.
    `INSERT INTO user (name, password_hash, is_admin, created_at, epoch)
     VALUES (?, ?, ?, ?, (SELECT version FROM access_state)) ON CONFLICT (name) DO NOTHING`,
  )
  const setPassword = db.prepare('UPDATE user SET password_hash = ?, epoch = epoch + 1 WHERE name = ?')
  const removeRefreshTokens = db.prepare(
    'DELETE FROM access_token WHERE user_id = (SELECT id FROM user WHERE name = ?) AND name GLOB ?',
  )
  const rehash = db.prepare('UPDATE user SET password_hash = ? WHERE name = ? AND password_hash = ?')
  const setDisabled = db.prepare('UPDATE user SET is_disabled = ?, epoch = epoch + ? WHERE name = ?')
  const setAdmin = db.prepare('UPDATE user SET is_admin = ? WHERE name = ?')
  const remove = db.prepare('DELETE FROM user WHERE name = ?')
  const removeGrants = db.prepare("DELETE FROM access_grant WHERE kind = 'user' AND name = ?")
  const setGroups = prepareSetGroups(db)
  const lastAdmin = db
    .prepare<{ name: string }, number>(
      `SELECT 1 FROM user WHERE name = :name AND is_admin = 1 AND is_disabled = 0
       AND NOT EXISTS (SELECT 1 FROM user WHERE name <> :name AND is_admin = 1 AND is_disabled = 0)`,
    )
    .pluck()
  const isKept = (name: string, guard: AdminGuard | undefined) =>
    guard !== undefined && lastAdmin.get({ name }) !== undefined

  return {
    addUser(
      user: { readonly name: string; readonly passwordHash: string; readonly isAdmin: boolean },
      now: number,
    ): boolean {
      return add.run(user.name, user.passwordHash, Number(user.isAdmin), now).changes === 1
    },

    setPassword(name: string, passwordHash: string): boolean {
      removeRefreshTokens.run(name, `${refreshTokenPrefix}*`)
      return setPassword.run(passwordHash, name).changes === 1
    },

    rehashPassword(name: string, oldHash: string, newHash: string): boolean {
      return rehash.run(newHash, name, oldHash).changes === 1
    },

    setDisabled(name: string, isDisabled: boolean, guard?: AdminGuard): boolean | 'last-admin' {
      if (isDisabled && isKept(name, guard)) return 'last-admin'
      if (isDisabled) removeRefreshTokens.run(name, `${refreshTokenPrefix}*`)
      return setDisabled.run(Number(isDisabled), Number(isDisabled), name).changes === 1
    },

    setAdmin(name: string, isAdmin: boolean, guard?: AdminGuard): boolean | 'last-admin' {
      if (!isAdmin && isKept(name, guard)) return 'last-admin'
      return setAdmin.run(Number(isAdmin), name).changes === 1
    },

    removeUser(name: string, guard?: AdminGuard): boolean | 'last-admin' {
      if (isKept(name, guard)) return 'last-admin'
      removeGrants.run(name)
      return remove.run(name).changes === 1
    },

    setGroups,
  }
}

function prepareSetGroups(db: Database) {
  const find = db.prepare<[string], number>('SELECT id FROM user WHERE name = ?').pluck()
  const clear = db.prepare('DELETE FROM user_group WHERE user_id = ?')
  const add = db.prepare('INSERT INTO user_group (user_id, name) VALUES (?, ?) ON CONFLICT DO NOTHING')
  return function setGroups(name: string, groups: readonly string[]): boolean {
    const id = find.get(name)
    if (id === undefined) return false
    clear.run(id)
    for (const group of groups) add.run(id, group)
    return true
  }
}

function prepareTokens(db: Database) {
  const findUser = db.prepare<[string], number>('SELECT id FROM user WHERE name = ?').pluck()
  const add = db.prepare(
    `INSERT INTO access_token (id, user_id, name, secret_hash, scopes, created_at, expires_at)
     VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (user_id, name) DO NOTHING`,
  )
  const remove = db.prepare(
    'DELETE FROM access_token WHERE user_id = (SELECT id FROM user WHERE name = ?) AND name = ?',
  )
  const findProven = db
    .prepare<[string, number], number>('SELECT id FROM user WHERE name = ? AND epoch = ? AND is_disabled = 0')
    .pluck()
  // The pattern stands in the text, so that the index of just these is used.
  const removeExpired = db.prepare(
    `DELETE FROM access_token WHERE name GLOB '${refreshTokenPrefix}*' AND expires_at <= ?`,
  )
  const trim = db.prepare<{ user: number; id: string; most: number }>(
    `DELETE FROM access_token WHERE id IN (
       SELECT id FROM access_token WHERE user_id = :user AND name GLOB '${refreshTokenPrefix}*'
       ORDER BY id = :id DESC, used_at IS NULL, coalesce(used_at, created_at) DESC, id LIMIT -1 OFFSET :most)`,
  )
  const touch = db.prepare(
    `UPDATE access_token SET used_at = ? WHERE id IN (SELECT value FROM json_each(?))
     AND (used_at IS NULL OR used_at < ?)`,
  )

  return {
    addAccessToken(token: Omit<AccessToken, 'usedAt'>): 'added' | 'no-user' | 'taken' {
      const user = findUser.get(token.user)
      if (user === undefined) return 'no-user'
      const { id, name, secretHash, createdAt, expiresAt } = token
      const scopes = JSON.stringify(token.scopes)
      const added = add.run(id, user, name, secretHash, scopes, createdAt, expiresAt ?? null)
      return added.changes === 1 ? 'added' : 'taken'
    },

    addRefreshToken(token: Omit<AccessToken, 'usedAt'>, epoch: number, most: number): boolean {
      const user = findProven.get(token.user, epoch)
      if (user === undefined) return false
      const { id, name, secretHash, createdAt, expiresAt } = token
      removeExpired.run(createdAt)
      add.run(id, user, name, secretHash, JSON.stringify(token.scopes), createdAt, expiresAt ?? null)
      trim.run({ user, id, most })
      return true
    },

    removeAccessToken(user: string, name: string): boolean {
      return remove.run(user, name).changes === 1
    },

    touchAccessTokens(ids: readonly string[], now: number): void {
      touch.run(now, JSON.stringify(ids), now - 60_000)
    },
  }
}

function prepareGrants(db: Database) {
  const hasUser = db.prepare('SELECT 1 FROM user WHERE name = ?').pluck()
  const insert = db.prepare(
    `INSERT INTO access_grant (kind, name, pattern, permission) VALUES (?, ?, ?, ?)
     ON CONFLICT DO NOTHING`,
  )
  const remove = db.prepare(
    'DELETE FROM access_grant WHERE kind = ? AND name = ? AND pattern = ? AND permission = ?',
  )
  const listUsers = db.prepare<[], string>('SELECT name FROM user').pluck()
  const clearGrants = db.prepare('DELETE FROM access_grant')
  const setGroups = prepareSetGroups(db)

  function isUnknownUser(grant: Grant): boolean {
    return grant.subject.kind === 'user' && hasUser.get(grant.subject.name) === undefined
  }

  function store({ subject, pattern, permission }: Grant): boolean {
    return insert.run(subject.kind, subjectName(subject), pattern, permission).changes === 1
  }

  return {
    addGrant(grant: Grant): 'added' | 'there' | 'no-user' {
      if (isUnknownUser(grant)) return 'no-user'
      return store(grant) ? 'added' : 'there'
    },

    removeGrant({ subject, pattern, permission }: Grant): boolean {
      return remove.run(subject.kind, subjectName(subject), pattern, permission).changes === 1
    },

    /** Everything is checked before anything is changed. */
    applyAccess({ groups, grants }: AccessSettings): string[] {
      const members = Object.keys(groups).filter((name) => hasUser.get(name) === undefined)
      const grantees = grants.filter(isUnknownUser).map((grant) => subjectName(grant.subject))
      const unknown = [...new Set([...members, ...grantees])]
      if (unknown.length > 0) return unknown
      for (const name of listUsers.all())
        setGroups(name, Object.hasOwn(groups, name) ? (groups[name] ?? []) : [])
      clearGrants.run()
      for (const grant of grants) store(grant)
      return []
    },
  }
}
