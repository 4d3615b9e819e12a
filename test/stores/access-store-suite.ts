import type { Test } from 'tap'
import {
  type AccessStore,
  type AccessToken,
  type Grant,
  type Permission,
  refreshTokenPrefix,
  type Subject,
} from '../../storage/access-store.js'
import { type NewPlace, openPlace } from './place.js'

/** An access store that can be closed. */
export interface OpenAccessStore {
  readonly access: AccessStore
  close(): Promise<void>
}

const now = 1_700_000_000_000

function grant(subject: string, pattern: string, permission: Permission = 'pull'): Grant {
  return { subject: subjectOf(subject), pattern, permission }
}

function subjectOf(text: string): Subject {
  if (text === 'authenticated' || text === 'anonymous') return { kind: text }
  const [kind, name = ''] = text.split(':')
  return kind === 'group' ? { kind, name } : { kind: 'user', name }
}

/** Grants in one order, as text. */
function inShort(grants: readonly Grant[]): string[] {
  return grants
    .map(({ subject, pattern, permission }) => {
      const who = 'name' in subject ? `${subject.kind}:${subject.name}` : subject.kind
      return `${who} ${permission} ${pattern}`
    })
    .sort()
}

function token(id: string, user: string, more: Partial<AccessToken> = {}): Omit<AccessToken, 'usedAt'> {
  const scopes = [{ pattern: 'team/**', permissions: ['pull', 'push'] }] as const
  return {
    id,
    user,
    name: id,
    secretHash: `hash of ${id}`,
    scopes,
    createdAt: now,
    expiresAt: undefined,
    ...more,
  }
}

async function addUsers(store: AccessStore, ...names: string[]): Promise<void> {
  for (const name of names)
    await store.addUser({ name, passwordHash: `hash of ${name}`, isAdmin: false }, now)
}

/** Whether `change` raised the version, by which servers hear of it. */
async function raises(store: AccessStore, change: () => Promise<unknown>): Promise<boolean> {
  const before = await store.accessVersion()
  await change()
  const after = await store.accessVersion()
  if (after < before) throw new Error(`the version went from ${before} to ${after}`)
  return after > before
}

/** What every driver of AccessStore must do. */
export function testAccessStore(t: Test, newPlace: NewPlace<OpenAccessStore>): void {
  const open = async (t: Test) => {
    const place = await openPlace(t, newPlace)
    return { place, store: (await place.open()).access }
  }

  t.test('an empty store has nobody in it', async (t) => {
    const { store } = await open(t)
    t.equal(await store.countUsers(), 0)
    t.strictSame(await store.listUsers(), [])
    t.equal(await store.findUser('ann'), undefined)
    t.equal(await store.findAccessToken('id'), undefined)
    t.strictSame(await store.listAccessTokens(undefined), [])
    t.strictSame([await store.listGrants(), await store.listGrantsFor('ann')], [[], []])
    t.strictSame(await store.listGrantsFor(undefined), [])
  })

  t.test('users: added once, found, listed by name, removed', async (t) => {
    const { store } = await open(t)
    const ben = { name: 'ben', passwordHash: 'first', isAdmin: true }
    t.equal(await store.addUser(ben, now), true)
    t.equal(await store.addUser({ ...ben, passwordHash: 'second', isAdmin: false }, now + 1), false)
    await addUsers(store, 'ann')
    t.match(await store.findUser('ben'), { ...ben, isDisabled: false, groups: [], createdAt: now })
    t.strictSame(
      (await store.listUsers()).map(({ name }) => name),
      ['ann', 'ben'],
    )
    t.equal(await store.countUsers(), 2)
    t.equal(await store.findUser('Ben'), undefined, 'names are told apart by case')
    t.equal(await store.removeUser('ben'), true)
    t.equal(await store.removeUser('ben'), false)
    t.equal(await store.countUsers(), 1)
  })

  t.test('users: nothing happens to one who is not there', async (t) => {
    const { store } = await open(t)
    const changes: [string, () => Promise<unknown>][] = [
      ['setPassword', () => store.setPassword('nobody', 'x')],
      ['rehashPassword', () => store.rehashPassword('nobody', 'x', 'y')],
      ['setDisabled', () => store.setDisabled('nobody', true)],
      ['setAdmin', () => store.setAdmin('nobody', true)],
      ['setGroups', () => store.setGroups('nobody', ['devs'])],
      ['removeUser', () => store.removeUser('nobody')],
    ]
    for (const [name, change] of changes) t.equal(await change(), false, name)
    t.equal(await store.countUsers(), 0)
  })

  t.test('users: a new password and disabling end what was issued, nothing else does', async (t) => {
    const { store } = await open(t)
    await addUsers(store, 'ann')
    const epoch = async () => (await store.findUser('ann'))?.epoch ?? Number.NaN
    const raisesEpoch = async (change: () => Promise<unknown>) => {
      const before = await epoch()
      await change()
      return (await epoch()) > before
    }
    t.equal(await raisesEpoch(() => store.setPassword('ann', 'new')), true, 'password')
    t.equal(await raisesEpoch(() => store.setDisabled('ann', true)), true, 'disabling')
    t.match(await store.findUser('ann'), { passwordHash: 'new', isDisabled: true })
    t.equal(await raisesEpoch(() => store.setDisabled('ann', false)), false, 'enabling')
    t.equal(await raisesEpoch(() => store.setAdmin('ann', true)), false, 'admin')
    t.equal(await raisesEpoch(() => store.setGroups('ann', ['devs'])), false, 'groups')
    t.equal(await raisesEpoch(() => store.rehashPassword('ann', 'new', 'again')), false, 'another form')
    t.match(await store.findUser('ann'), { passwordHash: 'again', isDisabled: false, isAdmin: true })
    t.equal(await store.rehashPassword('ann', 'new', 'late'), false, 'a password that was changed meanwhile')
    t.match(await store.findUser('ann'), { passwordHash: 'again' })
  })

  t.test('users: who comes again is another one, with nothing of the first', async (t) => {
    const { store } = await open(t)
    const epochs: number[] = []
    for (let n = 0; n < 3; n++) {
      await addUsers(store, 'ann')
      const user = await store.findUser('ann')
      t.strictSame(user?.groups, [])
      t.strictSame(await store.listAccessTokens('ann'), [])
      t.strictSame(await store.listGrantsFor('ann'), [])
      epochs.push(user?.epoch ?? -1)
      await store.setPassword('ann', `${n}`)
      await store.setDisabled('ann', true)
      epochs.push((await store.findUser('ann'))?.epoch ?? -1)
      await store.setGroups('ann', ['devs'])
      await store.addAccessToken(token('t', 'ann'))
      await store.addGrant(grant('user:ann', 'team/**'))
      await store.removeUser('ann')
      t.equal(await store.findAccessToken('t'), undefined)
      t.strictSame(await store.listGrants(), [])
    }
    t.equal(new Set(epochs).size, epochs.length, `no epoch comes twice: ${epochs}`)
  })

  t.test('groups: exactly those that were set, each once, in order', async (t) => {
    const { store } = await open(t)
    await addUsers(store, 'ann', 'ben')
    await store.setGroups('ann', ['ops', 'devs', 'ops'])
    await store.setGroups('ben', ['devs'])
    t.strictSame((await store.findUser('ann'))?.groups, ['devs', 'ops'])
    await store.setGroups('ann', ['qa'])
    t.strictSame((await store.findUser('ann'))?.groups, ['qa'])
    await store.setGroups('ann', [])
    t.strictSame(
      (await store.listUsers()).map(({ groups }) => groups),
      [[], ['devs']],
    )
  })

  t.test('access tokens: names are taken once per user, ids find them', async (t) => {
    const { store } = await open(t)
    await addUsers(store, 'ann', 'ben')
    const first = token('1', 'ann', { name: 'ci', expiresAt: now + 5 })
    t.equal(await store.addAccessToken(first), 'added')
    t.equal(await store.addAccessToken(token('2', 'ann', { name: 'ci' })), 'taken')
    t.equal(await store.addAccessToken(token('2', 'ben', { name: 'ci' })), 'added')
    t.equal(await store.addAccessToken(token('3', 'nobody')), 'no-user')
    t.strictSame(await store.findAccessToken('1'), { ...first, usedAt: undefined })
    t.match(await store.findAccessToken('2'), { user: 'ben', expiresAt: undefined })
    const owners = async (user?: string) => (await store.listAccessTokens(user)).map((one) => one.user)
    t.strictSame(await owners(), ['ann', 'ben'])
    t.strictSame(await owners('ben'), ['ben'])
    t.strictSame(await owners('nobody'), [])
    t.equal(await store.removeAccessToken('ben', 'other'), false)
    t.equal(await store.removeAccessToken('nobody', 'ci'), false)
    t.equal(await store.removeAccessToken('ben', 'ci'), true)
    t.strictSame(await owners(), ['ann'], "the other user's stays")
  })

  t.test('access tokens: a new password ends refresh tokens, and those alone', async (t) => {
    const { store } = await open(t)
    await addUsers(store, 'ann', 'ben')
    for (const user of ['ann', 'ben']) {
      await store.addAccessToken(token(`${user}-login`, user, { name: `${refreshTokenPrefix}docker` }))
      await store.addAccessToken(token(`${user}-ci`, user, { name: 'login' }))
    }
    await store.setPassword('ann', 'new')
    const left = (await store.listAccessTokens(undefined)).map(({ id }) => id).sort()
    t.strictSame(left, ['ann-ci', 'ben-ci', 'ben-login'])
  })

  t.test('access tokens: uses are noted at most once a minute', async (t) => {
    const { store } = await open(t)
    await addUsers(store, 'ann')
    for (const id of ['1', '2', '3']) await store.addAccessToken(token(id, 'ann'))
    const uses = async () => (await store.listAccessTokens('ann')).map(({ usedAt }) => usedAt)
    t.equal(await raises(store, () => store.touchAccessTokens(['1', '3', 'nobody'], now)), false)
    t.strictSame(await uses(), [now, undefined, now])
    await store.touchAccessTokens(['1'], now + 59_000)
    await store.touchAccessTokens(['3'], now + 61_000)
    await store.touchAccessTokens([], now + 200_000)
    t.strictSame(await uses(), [now, undefined, now + 61_000])
  })

  t.test('grants: there once, to users who are there', async (t) => {
    const { store } = await open(t)
    await addUsers(store, 'ann')
    t.equal(await store.addGrant(grant('user:ann', 'a')), 'added')
    t.equal(await store.addGrant(grant('user:ann', 'a')), 'there')
    t.equal(await store.addGrant(grant('user:ann', 'a', 'push')), 'added')
    t.equal(await store.addGrant(grant('user:nobody', 'a')), 'no-user')
    t.equal(await store.addGrant(grant('group:empty', 'a')), 'added', 'a group is its name')
    t.equal(await store.removeGrant(grant('user:ann', 'b')), false)
    t.equal(await store.removeGrant(grant('group:ann', 'a')), false)
    t.equal(await store.removeGrant(grant('user:ann', 'a')), true)
    t.strictSame(inShort(await store.listGrants()), ['group:empty pull a', 'user:ann push a'])
  })

  t.test('grants: to a user are those to him, to his groups and to all', async (t) => {
    const { store } = await open(t)
    await addUsers(store, 'ann', 'ben', 'devs')
    await store.setGroups('ann', ['devs', 'ops'])
    const all = ['user:ann', 'user:ben', 'group:devs', 'group:ops', 'group:ann', 'authenticated', 'anonymous']
    for (const subject of all) await store.addGrant(grant(subject, 'a'))
    const subjects = async (user?: string) =>
      inShort(await store.listGrantsFor(user)).map((text) => text.replace(' pull a', ''))
    t.strictSame(await subjects('ann'), ['anonymous', 'authenticated', 'group:devs', 'group:ops', 'user:ann'])
    t.strictSame(await subjects('ben'), ['anonymous', 'authenticated', 'user:ben'])
    t.strictSame(await subjects('devs'), ['anonymous', 'authenticated'], 'a user who is called as a group is')
    t.strictSame(await subjects(), ['anonymous'])
    await store.setGroups('ann', [])
    t.strictSame(await subjects('ann'), ['anonymous', 'authenticated', 'user:ann'])
  })

  t.test('applyAccess: groups and grants are exactly these, or nothing has changed', async (t) => {
    const { store } = await open(t)
    await addUsers(store, 'ann', 'ben')
    await store.setGroups('ann', ['old'])
    await store.setGroups('ben', ['old'])
    await store.addGrant(grant('group:old', 'a'))
    const groups = { ann: ['new'] }
    const grants = [grant('user:ben', 'b', 'push'), grant('anonymous', 'c')]
    const state = async () => ({
      groups: (await store.listUsers()).map((user) => user.groups),
      grants: inShort(await store.listGrants()),
    })
    const before = await state()
    const wrong = { groups: { ...groups, zoe: [] }, grants: [...grants, grant('user:max', 'd')] }
    t.strictSame([...(await store.applyAccess(wrong))].sort(), ['max', 'zoe'])
    t.strictSame(await state(), before)
    t.strictSame(await store.applyAccess({ groups, grants }), [])
    t.strictSame(await state(), {
      groups: [['new'], []],
      grants: ['anonymous pull c', 'user:ben push b'],
    })
  })

  t.test('the version goes up with every change', async (t) => {
    const { store } = await open(t)
    const one = grant('user:ann', 'a')
    const changes: [string, () => Promise<unknown>][] = [
      ['addUser', () => addUsers(store, 'ann')],
      ['setPassword', () => store.setPassword('ann', 'x')],
      ['setAdmin', () => store.setAdmin('ann', true)],
      ['setGroups', () => store.setGroups('ann', ['devs'])],
      ['leaving a group', () => store.setGroups('ann', [])],
      ['addAccessToken', () => store.addAccessToken(token('1', 'ann'))],
      ['removeAccessToken', () => store.removeAccessToken('ann', '1')],
      ['addGrant', () => store.addGrant(one)],
      ['removeGrant', () => store.removeGrant(one)],
      ['applyAccess', () => store.applyAccess({ groups: { ann: ['devs'] }, grants: [one] })],
      ['setDisabled', () => store.setDisabled('ann', true)],
      ['removeUser', () => store.removeUser('ann')],
    ]
    for (const [name, change] of changes) t.equal(await raises(store, change), true, name)
    t.equal(await raises(store, () => store.listUsers()), false, 'reading is no change')
  })

  t.test(
    'two stores on one place see what the other wrote, and it is there after both are closed',
    async (t) => {
      const { place, store } = await open(t)
      const second = await place.open()
      await addUsers(store, 'ann')
      t.equal((await second.access.findUser('ann'))?.name, 'ann')
      await second.access.addGrant(grant('user:ann', 'a'))
      await second.access.addAccessToken(token('1', 'ann'))
      t.strictSame(inShort(await store.listGrantsFor('ann')), ['user:ann pull a'])
      t.equal(await store.accessVersion(), await second.access.accessVersion())
      await place.close(second)
      const third = await place.open()
      t.match(await third.access.findAccessToken('1'), { user: 'ann' })
    },
  )

  t.test('of many who add the same at once, one does', async (t) => {
    const { place, store } = await open(t)
    const { access } = await place.open()
    const both = [store, access, store, access, store, access]
    const user = { name: 'ann', passwordHash: 'x', isAdmin: false }
    const users = await Promise.all(both.map((one) => one.addUser(user, now)))
    t.equal(users.filter((added) => added).length, 1)
    const grants = await Promise.all(both.map((one) => one.addGrant(grant('user:ann', 'a'))))
    t.equal(grants.filter((outcome) => outcome === 'added').length, 1)
    const tokens = await Promise.all(
      both.map((one, n) => one.addAccessToken(token(`${n}`, 'ann', { name: 'ci' }))),
    )
    t.equal(tokens.filter((outcome) => outcome === 'added').length, 1)
  })

  t.test('text of every kind comes back as it was', async (t) => {
    const { store } = await open(t)
    for (const text of ["o'brien; DROP TABLE user", 'ünï☃', '__proto__', 'a%b_c*', '"quoted"']) {
      await addUsers(store, text)
      await store.setGroups(text, [text])
      await store.addGrant(grant('authenticated', text))
      t.match(await store.findUser(text), { name: text, passwordHash: `hash of ${text}`, groups: [text] })
      t.ok((await store.listGrants()).some(({ pattern }) => pattern === text))
    }
    t.equal(await store.countUsers(), 5)
  })
}
