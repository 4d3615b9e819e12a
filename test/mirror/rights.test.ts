import { randomBytes } from 'node:crypto'
import t from 'tap'
import { as, basic, startRegistry } from '../auth/fixture.js'
import { eventually, newRepository, type Reply, randomBlob, type Server, withQuery } from '../harness.js'
import { digest, startFakeUpstream } from './fake-upstream.js'
import { user } from './fixture.js'
import { mirrorOf } from './pair.js'

/*
 * Who may do what with mirrors: every route × everybody × a public mirror, one behind credentials, and one whose
 * repositories the configuration denies, compared with a table that is written by hand (reliability S30).
 */

const open = await startFakeUpstream(t)
const closed = await startFakeUpstream(t, { auth: 'basic', user })
const registry = await startRegistry(t, {
  config: {
    mirrors: [
      { ...mirrorOf(open), name: 'open.test', bareNames: true, deny: ['denied/**'] },
      { ...mirrorOf(closed), name: 'private.test', bareNames: false, ...user },
    ],
  },
})
const { server } = registry
const sharedLayer = randomBytes(3000)
const secretLayer = randomBytes(3000)
const openImage = open.addImage('team/app', 'latest', [sharedLayer])
const closedImage = closed.addImage('team/app', 'latest', [sharedLayer, secretLayer])
open.addImage('denied/app', 'latest', [sharedLayer])

await registry.addUser('root', { admin: true })
for (const name of ['stranger', 'reader', 'pusher', 'deleter', 'keeper', 'open.test', 'scanner-open.test'])
  await registry.addUser(name)
await registry.grant('anonymous', '**', 'pull')
await registry.grant('user:reader', 'private.test/**', 'pull')
for (const name of ['pusher', 'open.test', 'scanner-open.test'])
  await registry.grant(`user:${name}`, '**', 'push')
await registry.grant('user:deleter', '**', 'delete')
await registry.grant('user:keeper', '**', 'admin')
await registry.grant('user:stranger', 'mine/**', 'push')

const actors: Readonly<Record<string, Server>> = {
  anonymous: as(server, undefined),
  stranger: as(server, basic('stranger')),
  reader: as(server, basic('reader')),
  pusher: as(server, basic('pusher')),
  'named like the mirror': as(server, basic('open.test')),
  'named as if trusted': as(server, basic('scanner-open.test')),
  deleter: as(server, basic('deleter')),
  keeper: as(server, basic('keeper')),
  root: as(server, basic('root')),
}
const names = Object.keys(actors)
// Passwords are slow to check the first time, and very slow on a busy machine.
for (const me of Object.values(actors)) await me.request('GET', '/v2/', { timeout: 120_000 })

const places = {
  open: 'open.test/team/app',
  private: 'private.test/team/app',
  denied: 'open.test/denied/app',
}
type Place = keyof typeof places

const images = { open: openImage, private: closedImage, denied: openImage }
const uuid = '5f2bd0a1-9c5e-4b3f-8a51-6d3f0c9e7b12'
const blob = randomBlob(10)

const kinds = ['read', 'push', 'delete'] as const
type Kind = (typeof kinds)[number]

/** Every route of a repository. `DELETE` comes last: it takes away what the others read. */
const routes: readonly [Kind, string, (place: Place) => string, (Buffer | string)?][] = [
  ['read', 'GET', () => 'manifests/latest'],
  ['read', 'HEAD', () => 'manifests/latest'],
  ['read', 'GET', (place) => `manifests/${images[place]}`],
  ['read', 'HEAD', (place) => `manifests/${images[place]}`],
  ['read', 'GET', () => `blobs/${digest(sharedLayer)}`],
  ['read', 'HEAD', () => `blobs/${digest(sharedLayer)}`],
  ['read', 'GET', () => 'tags/list'],
  ['read', 'GET', (place) => `referrers/${images[place]}`],
  ['push', 'POST', () => 'blobs/uploads/'],
  ['push', 'POST', () => 'blobs/uploads'],
  ['push', 'POST', () => `blobs/uploads/?digest=${blob.digest}`, blob.bytes],
  ['push', 'POST', () => `blobs/uploads/?mount=${digest(sharedLayer)}&from=open.test/team/app`],
  ['push', 'POST', () => `blobs/uploads/?mount=${digest(secretLayer)}`],
  ['push', 'GET', () => `blobs/uploads/${uuid}`],
  ['push', 'PATCH', () => `blobs/uploads/${uuid}`, 'x'],
  ['push', 'PUT', () => `blobs/uploads/${uuid}?digest=${blob.digest}`, ''],
  ['push', 'DELETE', () => `blobs/uploads/${uuid}`],
  ['push', 'PUT', () => 'manifests/latest', '{}'],
  ['push', 'PUT', (place) => `manifests/${images[place]}`, '{}'],
  ['delete', 'DELETE', () => `blobs/${digest(sharedLayer)}`],
  ['delete', 'DELETE', () => 'manifests/latest'],
  ['delete', 'DELETE', (place) => `manifests/${images[place]}`],
]

/**
 * The policy. `yes` is 200; 405 is what those get who could push or delete if it were no mirror; who administers the
 * repository may throw something out, and nobody may put something in.
 */
const policy: Readonly<
  Record<Exclude<Place, 'denied'>, Readonly<Record<Kind, Readonly<Record<string, string>>>>>
> = {
  open: {
    read: everybody('yes'),
    push: {
      ...everybody('403'),
      anonymous: '401',
      ...these('405', 'pusher', 'named like the mirror', 'named as if trusted', 'keeper', 'root'),
    },
    delete: { ...everybody('403'), anonymous: '401', deleter: '405', ...these('yes', 'keeper', 'root') },
  },
  private: {
    read: {
      ...everybody('403'),
      anonymous: '401',
      ...these(
        'yes',
        'reader',
        'pusher',
        'named like the mirror',
        'named as if trusted',
        'deleter',
        'keeper',
        'root',
      ),
    },
    push: {
      ...everybody('403'),
      anonymous: '401',
      ...these('405', 'pusher', 'named like the mirror', 'named as if trusted', 'keeper', 'root'),
    },
    delete: { ...everybody('403'), anonymous: '401', deleter: '405', ...these('yes', 'keeper', 'root') },
  },
}

function everybody(answer: string): Record<string, string> {
  return these(answer, ...names)
}

function these(answer: string, ...some: string[]): Record<string, string> {
  return Object.fromEntries(some.map((name) => [name, answer]))
}

/** What the configuration denies is closed to everybody alike; who would be asked to log in is asked that first. */
function expected(place: Place, kind: Kind, name: string): string {
  const open = policy[place === 'denied' ? 'open' : place][kind][name] ?? 'nothing'
  return place === 'denied' && open !== '401' ? '403' : open
}

const said = ({ status }: Reply) => (status >= 200 && status < 300 ? 'yes' : String(status))

t.test('every route × everybody × every kind of mirror is as the policy says', async (t) => {
  let cells = 0
  const wrong: string[] = []
  for (const [kind, method, path, body] of routes) {
    for (const place of Object.keys(places) as Place[]) {
      for (const [name, me] of Object.entries(actors)) {
        const url = `/v2/${places[place]}/${path(place)}`
        const isThere = async () => (await as(server, basic('root')).request('HEAD', url)).status === 200
        // What one deletes must be there for the next: it comes again from upstream.
        if (kind === 'delete' && place !== 'denied') await eventually(`${url} is there`, isThere)
        const reply = await me.request(method, url, {
          unchecked: true,
          ...(body === undefined ? {} : { body }),
        })
        cells++
        const isRight = said(reply) === expected(place, kind, name) || isInUse(kind, path(place), reply, name)
        if (!isRight) {
          wrong.push(
            `${name}: ${method} ${url}: ${reply.status} ${reply.text.slice(0, 100)}, not ${expected(place, kind, name)}`,
          )
        }
        if (reply.status === 405 && reply.code !== 'UNSUPPORTED' && method !== 'HEAD')
          wrong.push(`${url}: ${reply.text}`)
      }
    }
  }
  t.strictSame(wrong, [])
  t.comment(`${cells} cells`)
})

/** A blob that a manifest needs, or one that is not here, is not deleted by those either who may delete. */
function isInUse(kind: Kind, path: string, { status }: Reply, name: string): boolean {
  const mayDelete = ['keeper', 'root'].includes(name)
  return kind === 'delete' && path.startsWith('blobs/') && mayDelete && [404, 405].includes(status)
}

t.test('S20, S21: what a private mirror holds is not to be had in another way', async (t) => {
  await eventually('it is here', async () => {
    const reply = await as(server, basic('root')).request(
      'GET',
      `/v2/${places.private}/blobs/${digest(secretLayer)}`,
    )
    return reply.status === 200
  })
  const me = as(server, basic('stranger'))
  for (const from of [`&from=${places.private}`, '', '&from=open.test/team/app', '&from=team/app']) {
    const mine = newRepository('mine')
    const reply = await me.request('POST', `/v2/${mine}/blobs/uploads/?mount=${digest(secretLayer)}${from}`)
    t.equal(reply.status, 202, `mount${from}: an upload, as for what nobody has`)
    const found = await as(server, basic('root')).request('HEAD', `/v2/${mine}/blobs/${digest(secretLayer)}`)
    t.equal(found.status, 404, 'nothing was mounted')
    const finished = await me.request(
      'PUT',
      withQuery(reply.header('location'), `digest=${digest(secretLayer)}`),
    )
    t.equal(finished.status, 400, 'the digest alone is no proof')
  }
  for (const path of ['open.test/team/app', 'team/app', 'library/app', 'mine/app']) {
    for (const name of ['anonymous', 'stranger']) {
      const reply = await actors[name]?.request('GET', `/v2/${path}/blobs/${digest(secretLayer)}`, {
        unchecked: true,
      })
      t.ok([401, 403, 404].includes(reply?.status ?? 0), `${name}: ${path}: ${reply?.status}`)
    }
  }
})

t.test('S26: catalog and search show the repositories of a mirror to those who may read them', async (t) => {
  const root = as(server, basic('root'))
  for (const place of [places.open, places.private]) {
    await root.request('GET', `/v2/${place}/manifests/latest`)
  }
  const seen: Record<string, string[]> = {}
  for (const [name, me] of Object.entries(actors)) {
    const catalog = await me.request('GET', '/v2/_catalog', { unchecked: true })
    const docker = { headers: { 'X-Docker-Token': 'true' }, unchecked: true }
    const search = await me.request('GET', '/v1/search?q=app&n=100', docker)
    const found = search.json<{ results: { name: string }[] }>().results.map(({ name }) => name)
    seen[name] = found.sort()
    if (name === 'anonymous') t.equal(catalog.status, 401)
    else
      t.strictSame(
        catalog.json<{ repositories: string[] }>().repositories.filter((one) => one.includes('.test/')),
        found,
      )
  }
  const all = [places.open, places.private]
  t.strictSame(seen, {
    ...Object.fromEntries(names.map((name) => [name, all])),
    anonymous: [places.open],
    stranger: [places.open],
  })
})
