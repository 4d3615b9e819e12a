import { randomBytes, randomUUID } from 'node:crypto'
import t from 'tap'
import {
  artifact,
  descriptor,
  eventually,
  everyReplyKeptTheRules,
  image,
  type Manifest,
  manifestOf,
  OCI_EMPTY,
  OCI_MANIFEST,
  openUpload,
  push,
  pushBlobs,
  putManifest,
  type Reply,
  randomBlob,
  randomDigest,
  type Server,
  sha256,
  startServer,
  withQuery,
} from '../harness.js'
import {
  as,
  askToken,
  basic,
  bearer,
  claimsOf,
  getToken,
  headerOf,
  inShort,
  openAccess,
  password,
  pool,
  postForm,
  signingKeyOf,
  signToken,
  startRegistry,
} from './fixture.js'
import {
  type ActorName,
  type Area,
  actors,
  areas,
  open,
  type Policy,
  type Row,
  type RowName,
  rows,
  scopeFor,
  suffices,
} from './policy.js'

/*
 * Every route × everybody × everything: what the server answers is compared with policy.ts, which is written by
 * hand. A change that was refused must not have happened, one that was allowed must have.
 */

const registry = await startRegistry(t, {
  config: {
    tags: { immutable: ['**:v*'] },
    tokens: { refresh: true },
    uploads: { maxPerRepository: 100_000, maxPerUser: 100_000 },
    trustedProxies: ['127.0.0.1'],
    log: { level: 'warn' },
  },
})
const { server, access } = registry

const policies: [ActorName, Policy][] = (Object.keys(actors) as ActorName[]).map((name) => [
  name,
  actors[name],
])
const table: [RowName, Row][] = (Object.keys(rows) as RowName[]).map((name) => [name, rows[name]])

// ---------------------------------------------------------------------------------------------
// The objects
// ---------------------------------------------------------------------------------------------

interface Place {
  area: Area
  repository: string
  exists: boolean
}

/** What an area's repository holds. The one that does not exist is asked for the same things. */
interface Things {
  manifest: Manifest
  fixed: Manifest
  blob: ReturnType<typeof randomBlob>
  /** In no other place; to be mounted. */
  mountable: ReturnType<typeof randomBlob>
}

const places: Place[] = areas.flatMap((area) => [
  { area, repository: `${area}/app`, exists: true },
  { area, repository: `${area}/not`, exists: false },
])

/** Where the foreign things of an area are: out of reach for most. */
const foreignOf = (area: Area): Area => (area === 'secret' ? 'team' : 'secret')
const appOf = (area: Area) => `${area}/app`

/** A small manifest that needs nothing: its config is inside. */
function smallManifest(): Manifest {
  const config = { mediaType: OCI_EMPTY, digest: sha256('{}'), size: 2, data: 'e30=' }
  const annotations = { id: randomUUID() }
  return manifestOf({ schemaVersion: 2, mediaType: OCI_MANIFEST, config, layers: [], annotations })
}

await registry.addUser('keeper', { admin: true, password: 'the keeper makes what the others meet' })
await registry.addUser('root', { admin: true })
for (const name of ['stranger', 'reader', 'pusher', 'deleter', 'owner', 'neighbour', 'former'])
  await registry.addUser(name)
await registry.addUser('member', { groups: ['devs', 'others'] })
await registry.grant('anonymous', 'public/**', 'pull')
await registry.grant('authenticated', 'shared/**', 'pull')
await registry.grant('user:reader', 'team/**', 'pull')
await registry.grant('user:pusher', 'team/**', 'push')
await registry.grant('group:devs', 'team/**', 'push')
await registry.grant('user:deleter', 'team/**', 'delete')
await registry.grant('user:owner', 'team/**', 'admin')
await registry.grant('group:owners', 'team/**', 'admin')
await registry.grant('user:former', 'team/**', 'admin')
await registry.grant('user:neighbour', 'other/**', 'admin')

const keeper = as(server, basic('keeper', 'the keeper makes what the others meet'))
const things = {} as Record<Area, Things>
for (const area of areas) {
  const blob = randomBlob(3000)
  const manifest = image({ layers: [blob] })
  const fixed = smallManifest()
  const mountable = randomBlob(200)
  await push(keeper, appOf(area), '1', manifest)
  await push(keeper, appOf(area), 'v1', fixed)
  await push(keeper, appOf(area), 'about', artifact({ subject: descriptor(manifest), artifactType: 'a/b' }))
  await pushBlobs(keeper, appOf(area), mountable)
  things[area] = { manifest, fixed, blob, mountable }
}

// ---------------------------------------------------------------------------------------------
// The actors
// ---------------------------------------------------------------------------------------------

/** A repository that nobody has pushed to yet, for each actor one. */
const newRepositoryOf = (name: ActorName, area: Area) => `${area}/new-${Object.keys(actors).indexOf(name)}`

function allScopes(name: ActorName, actions: string): string[] {
  const names = areas.flatMap((area) => [`${area}/app`, `${area}/not`, newRepositoryOf(name, area)])
  return names.map((repository) => `repository:${repository}:${actions}`)
}

/** What a request says about its sender; asked anew for each request. */
type Present = () => Record<string, string>

const sends =
  (authorization: string | undefined): Present =>
  () =>
    authorization === undefined ? {} : { Authorization: authorization }

/**
 * Wrong logins are slowed, by address and by account. That is not the matter here: they come from ever new
 * addresses, for ever other users with the same rights.
 */
async function sendsWrongLogins(
  name: string,
  credentials: (user: string) => Promise<string>,
): Promise<Present> {
  const users = Array.from({ length: 8 }, (_, n) => `${name}-${n}`)
  for (const user of users) await registry.addUser(user, { groups: ['owners'] })
  const headers = await Promise.all(users.map(credentials))
  let count = 0
  return () => {
    count++
    return {
      Authorization: headers[count % headers.length] ?? '',
      'X-Forwarded-For': `198.51.${count >> 8}.${count & 255}`,
    }
  }
}

/** The server, as this actor talks to it. */
function talkingAs(name: ActorName): Server {
  const present = credentials[name]
  return {
    ...server,
    request: (method, path, options = {}) =>
      server.request(method, path, { ...options, headers: { ...options.headers, ...present() } }),
  }
}

/** Gives each actor what it presents, as the words of the policy have it. */
async function makeCredentials(): Promise<Record<ActorName, Present>> {
  const everything = (name: ActorName) => [...allScopes(name, 'pull,push,delete'), 'registry:catalog:*']
  const tokenOf = async (name: ActorName, authorization: string | undefined) =>
    bearer(await getToken(server, authorization, everything(name)))
  const rootToken = await getToken(server, basic('root'), everything('root, token'))
  const now = Math.floor(Date.now() / 1000)
  const resigned = (changes: object) =>
    sends(
      bearer(
        signToken(headerOf(rootToken), { ...claimsOf(rootToken), ...changes }, signingKeyOf(server.data)),
      ),
    )
  const machine = await registry.accessToken('root', ['team/**:pull'])
  const formerUsers = await sendsWrongLogins('former', async (user) => basic(user))
  const formerMachines = await sendsWrongLogins('machine', async (user) =>
    basic(user, await registry.accessToken(user, ['team/**:admin'])),
  )
  const teamScopes = (name: ActorName) =>
    allScopes(name, 'pull,push,delete').filter((scope) => scope.startsWith('repository:team/'))
  const made: Record<ActorName, Present> = {
    'nothing sent': sends(undefined),
    'empty Basic': sends('Basic Og=='),
    'anonymous token': sends(await tokenOf('anonymous token', undefined)),
    'stranger, token': sends(await tokenOf('stranger, token', basic('stranger'))),
    'stranger, password': sends(basic('stranger')),
    'reader, token': sends(await tokenOf('reader, token', basic('reader'))),
    'reader, password': sends(basic('reader')),
    'pusher, token': sends(await tokenOf('pusher, token', basic('pusher'))),
    'pusher, password': sends(basic('pusher')),
    'member of devs, token': sends(await tokenOf('member of devs, token', basic('member'))),
    'deleter, token': sends(await tokenOf('deleter, token', basic('deleter'))),
    'deleter, password': sends(basic('deleter')),
    'owner, token': sends(await tokenOf('owner, token', basic('owner'))),
    'neighbour, token': sends(await tokenOf('neighbour, token', basic('neighbour'))),
    'neighbour, password': sends(basic('neighbour')),
    'root, token': sends(bearer(rootToken)),
    'root, password': sends(basic('root')),
    'owner, token for pull alone': sends(
      bearer(await getToken(server, basic('owner'), allScopes('owner, token for pull alone', 'pull'))),
    ),
    'owner, token without scope': sends(bearer(await getToken(server, basic('owner')))),
    'root, token for team alone': sends(
      bearer(await getToken(server, basic('root'), teamScopes('root, token for team alone'))),
    ),
    'root, token for team and for mounts': sends(
      bearer(
        await getToken(server, basic('root'), [
          ...teamScopes('root, token for team and for mounts'),
          'registry:mount:*',
        ]),
      ),
    ),
    'access token of root for pull from team, as password': sends(basic('root', machine)),
    'access token of root for pull from team, as the refresh token it was given': sends(
      basic('root', await refreshTokenOf(basic('root', machine))),
    ),
    'access token of root for pull from team, refreshed': sends(
      bearer(
        await exchange(
          await refreshTokenOf(basic('root', machine)),
          everything('access token of root for pull from team, refreshed'),
        ),
      ),
    ),
    'refresh token of owner': sends(basic('owner', await refreshTokenOf(basic('owner')))),
    'access token of root for pull from team, exchanged': sends(
      await tokenOf('access token of root for pull from team, exchanged', basic('root', machine)),
    ),
    'access token of stranger for everything': sends(
      basic('stranger', await registry.accessToken('stranger', ['**:admin'])),
    ),
    'former, old token': sends(await tokenOf('former, old token', basic('former'))),
    'former, right password': formerUsers,
    'former, access token': formerMachines,
    'owner, wrong password': await sendsWrongLogins('clumsy', async (user) => basic(user, `${password}r`)),
    'owner, expired access token': await sendsWrongLogins('late', async (user) =>
      basic(user, await registry.accessToken(user, ['team/**:admin'], { expiresAt: Date.now() - 1000 })),
    ),
    'root, token of another server': sends(bearer(await tokenOfAnotherServer(everything('root, token')))),
    'root, token of another service': resigned({ aud: 'elsewhere.example', iss: 'elsewhere.example' }),
    'root, expired token': resigned({ iat: now - 900, nbf: now - 910, exp: now - 600 }),
  }
  const gone = (await access.listUsers()).filter(({ name }) => /^(former|machine)/.test(name))
  for (const { name } of gone) await access.setDisabled(name, true)
  await eventually('the disabled users are out', async () => {
    const old = await server.request('GET', '/v2/', { headers: made['former, old token']() })
    return old.status === 401
  })
  return made
}

async function refreshTokenOf(authorization: string): Promise<string> {
  const reply = await askToken(server, authorization, [], { offline_token: 'true' })
  return reply.json<{ refresh_token: string }>().refresh_token
}

/** A bearer token for a refresh token. */
async function exchange(refreshToken: string, scopes: string[]): Promise<string> {
  const form = { grant_type: 'refresh_token', refresh_token: refreshToken, scope: scopes.join(' ') }
  return (await postForm(server, form)).json<{ token: string }>().token
}

async function tokenOfAnotherServer(scopes: string[]): Promise<string> {
  const other = await startServer(t, { config: { auth: 'token', log: { level: 'warn' } } })
  const store = await openAccess(t, other.data)
  const root = await access.findUser('root')
  await store.addUser({ name: 'root', passwordHash: root?.passwordHash ?? '', isAdmin: true }, Date.now())
  const token = await getToken(other, basic('root'), scopes)
  const reply = await as(other, bearer(token)).request('GET', '/v2/team/app/tags/list')
  if (reply.code !== 'NAME_UNKNOWN')
    throw new Error(`the other server's token is not good there: ${reply.text}`)
  await other.stop()
  return token
}

const credentials = await makeCredentials()

// ---------------------------------------------------------------------------------------------
// The requests
// ---------------------------------------------------------------------------------------------

interface Cell {
  name: ActorName
  /** The server, as this actor talks to it. */
  me: Server
  place: Place
  /** Whether the policy allows it: then it gets a thing of its own to use up. */
  allowed: boolean
}

/** What came back, and what went wrong besides. */
interface Outcome {
  reply: Reply
  faults?: string[]
}

type Run = (cell: Cell) => Promise<Outcome>

const get =
  (method: string, path: (cell: Cell) => string, extra: Record<string, string> = {}): Run =>
  async (cell) => ({
    reply: await cell.me.request(method, `/v2/${cell.place.repository}/${path(cell)}`, { headers: extra }),
  })

/** Reads, and compares what it got with what should be there. */
const getExactly =
  (path: (things: Things) => string, digest: (things: Things) => string): Run =>
  async ({ me, place }) => {
    const own = things[place.area]
    const reply = await me.request('GET', `/v2/${place.repository}/${path(own)}`)
    const isRight = reply.status !== 200 || sha256(reply.body) === digest(own)
    return { reply, faults: isRight ? [] : ['it sent other bytes'] }
  }

const referrersOf =
  (subject: (cell: Cell) => string, expected: (cell: Cell) => number): Run =>
  async (cell) => {
    const reply = await cell.me.request('GET', `/v2/${cell.place.repository}/referrers/${subject(cell)}`)
    if (reply.status !== 200) return { reply }
    const found = reply.json<{ manifests: unknown[] }>().manifests.length
    return { reply, faults: found === expected(cell) ? [] : [`it listed ${found} referrers`] }
  }

const own = ({ place }: Cell) => things[place.area]
const foreign = ({ place }: Cell) => things[foreignOf(place.area)]

/** Whether the keeper finds it, as a fault when that is not as it should be. */
async function expectThere(path: string, should: boolean): Promise<string[]> {
  const { status } = await keeper.request('HEAD', path)
  return (status === 200) === should ? [] : [should ? `${path} is gone` : `${path} came into being`]
}

/** Whether a policy lets blobs be mounted from an area: it may pull there, or its token is for such mounts. */
function mayMount(policy: Policy, source: Area): boolean {
  return policy.mounts !== undefined || suffices[policy.may[source]].includes('pull')
}

const mount =
  (withFrom: boolean): Run =>
  async ({ me, place, name, allowed }) => {
    const source = foreignOf(place.area)
    const mayPull = mayMount(actors[name], source)
    // Whoever may mount it uses it up: it is not foreign any more then.
    const content = allowed && mayPull ? randomBlob(100) : things[source].mountable
    if (allowed && mayPull) await pushBlobs(keeper, appOf(source), content)
    const from = withFrom ? `&from=${appOf(source)}` : ''
    const reply = await me.request(
      'POST',
      `/v2/${place.repository}/blobs/uploads/?mount=${content.digest}${from}`,
    )
    return {
      reply,
      faults: await expectThere(`/v2/${place.repository}/blobs/${content.digest}`, allowed && mayPull),
    }
  }

/** A session that this actor began, or the keeper when it may not begin one. */
const ownSession =
  (use: (me: Server, location: string) => Promise<Reply>): Run =>
  async ({ me, place, allowed }) => ({
    reply: await use(me, await openUpload(allowed ? me : keeper, place.repository)),
  })

const keptSessions = new Map<string, string>()
for (const { repository } of places) keptSessions.set(repository, await openUpload(keeper, repository))

const keptSession =
  (use: (me: Server, location: string) => Promise<Reply>): Run =>
  async ({ me, place }) => ({ reply: await use(me, keptSessions.get(place.repository) ?? '') })

const finish = (me: Server, location: string) => {
  const { bytes, digest } = randomBlob(10)
  return me.request('PUT', withQuery(location, `digest=${digest}`), { body: bytes })
}

/** A manifest put under a reference that must not be there before, and must be there after a 201. */
const putNew =
  (reference: (manifest: Manifest) => string, where: (cell: Cell) => string): Run =>
  async (cell) => {
    const manifest = smallManifest()
    const path = reference(manifest)
    const reply = await putManifest(cell.me, where(cell), path, manifest)
    return { reply, faults: await expectThere(`/v2/${where(cell)}/manifests/${path}`, cell.allowed) }
  }

/** Things that the keeper made for somebody to destroy; a refused one serves again. */
const victims = new Map<string, string[]>()

const destroy =
  (kind: 'tags' | 'manifests' | 'blobs', make: (repository: string) => Promise<string>): Run =>
  async ({ me, place, allowed }) => {
    const repository = appOf(place.area)
    const key = `${kind} ${repository}`
    const waiting = victims.get(key) ?? []
    victims.set(key, waiting)
    const victim = waiting.pop() ?? (await make(repository))
    const reply = await me.request('DELETE', `/v2/${place.repository}/${victim}`)
    const shouldStay = !(allowed && place.exists)
    const faults = await expectThere(`/v2/${repository}/${victim}`, shouldStay)
    if (shouldStay && faults.length === 0) waiting.push(victim)
    return { reply, faults }
  }

/** Asks for something that must be there afterwards as it was before. */
const spare =
  (method: string, path: (cell: Cell) => string, make?: () => Manifest): Run =>
  async (cell) => {
    const manifest = make?.()
    const full = `/v2/${cell.place.repository}/${path(cell)}`
    const reply = await (manifest === undefined
      ? cell.me.request(method, full)
      : cell.me.request(method, full, {
          headers: { 'Content-Type': manifest.mediaType },
          body: manifest.bytes,
        }))
    if (!cell.place.exists) return { reply }
    const fixed = await keeper.request('HEAD', `/v2/${cell.place.repository}/manifests/v1`)
    const isSame = fixed.header('docker-content-digest') === own(cell).fixed.digest
    return { reply, faults: isSame ? [] : ['the immutable tag has changed'] }
  }

const newTag = () => `t-${randomBytes(8).toString('hex')}`

const requests: Record<RowName, Run> = {
  'GET a manifest by tag': getExactly(
    () => 'manifests/1',
    ({ manifest }) => manifest.digest,
  ),
  'HEAD a manifest by tag': get('HEAD', () => 'manifests/1'),
  'GET a manifest by digest': getExactly(
    ({ manifest }) => `manifests/${manifest.digest}`,
    ({ manifest }) => manifest.digest,
  ),
  'GET a manifest by an immutable tag': getExactly(
    () => 'manifests/v1',
    ({ fixed }) => fixed.digest,
  ),
  'GET a manifest by a missing tag': get('GET', () => 'manifests/nobody-pushed-this'),
  'GET a manifest by a missing digest': get('GET', () => `manifests/${randomDigest()}`),
  'GET a foreign manifest': get('GET', (cell) => `manifests/${foreign(cell).manifest.digest}`),

  'GET a blob': getExactly(
    ({ blob }) => `blobs/${blob.digest}`,
    ({ blob }) => blob.digest,
  ),
  'HEAD a blob': get('HEAD', (cell) => `blobs/${own(cell).blob.digest}`),
  'GET a part of a blob': get('GET', (cell) => `blobs/${own(cell).blob.digest}`, { Range: 'bytes=5-9' }),
  'GET a missing blob': get('GET', () => `blobs/${randomDigest()}`),
  'GET a foreign blob': get('GET', (cell) => `blobs/${foreign(cell).blob.digest}`),
  'HEAD a foreign blob': get('HEAD', (cell) => `blobs/${foreign(cell).blob.digest}`),
  'GET a part of a foreign blob': get('GET', (cell) => `blobs/${foreign(cell).blob.digest}`, {
    Range: 'bytes=0-0',
  }),
  'GET a foreign blob with its ETag': (cell) =>
    get('GET', () => `blobs/${foreign(cell).blob.digest}`, {
      'If-None-Match': `"${foreign(cell).blob.digest}"`,
    })(cell),
  'GET a blob by a bad digest': get('GET', () => 'blobs/sha256:abc'),

  'GET the tags': get('GET', () => 'tags/list'),
  'GET referrers': referrersOf(
    (cell) => own(cell).manifest.digest,
    ({ place }) => (place.exists ? 1 : 0),
  ),
  'GET referrers of a foreign manifest': referrersOf(
    (cell) => foreign(cell).manifest.digest,
    () => 0,
  ),

  'POST an upload': get('POST', () => 'blobs/uploads/'),
  'POST a whole blob': async ({ me, place, allowed }) => {
    const { bytes, digest } = randomBlob(50)
    const reply = await me.request('POST', `/v2/${place.repository}/blobs/uploads/?digest=${digest}`, {
      body: bytes,
    })
    return { reply, faults: await expectThere(`/v2/${place.repository}/blobs/${digest}`, allowed) }
  },
  'POST a mount of a foreign blob': mount(true),
  'POST a mount of a foreign blob from wherever': mount(false),
  'POST a mount of a missing blob': get(
    'POST',
    ({ place }) => `blobs/uploads/?mount=${randomDigest()}&from=${appOf(foreignOf(place.area))}`,
  ),
  'GET an upload': ownSession((me, location) => me.request('GET', location)),
  'PATCH an upload': ownSession((me, location) => me.request('PATCH', location, { body: 'some bytes' })),
  'PUT an upload': ownSession(finish),
  'DELETE an upload': ownSession((me, location) => me.request('DELETE', location)),
  "GET somebody else's upload": keptSession((me, location) => me.request('GET', location)),
  "PATCH somebody else's upload": keptSession((me, location) =>
    me.request('PATCH', location, { body: 'some bytes' }),
  ),
  "PUT somebody else's upload": keptSession(finish),
  "DELETE somebody else's upload": async ({ me, place }) => ({
    reply: await me.request('DELETE', await openUpload(keeper, place.repository)),
  }),
  'GET a missing upload': get('GET', () => `blobs/uploads/${randomUUID()}`),

  'PUT a manifest by a new tag': putNew(newTag, ({ place }) => place.repository),
  'PUT a manifest into a new repository': putNew(newTag, ({ name, place }) =>
    newRepositoryOf(name, place.area),
  ),
  'PUT another manifest by a tag that is there': async ({ me, place, allowed }) => {
    const tag = newTag()
    const [before, after] = [smallManifest(), smallManifest()]
    await push(keeper, place.repository, tag, before)
    const reply = await putManifest(me, place.repository, tag, after)
    const now = await keeper.request('HEAD', `/v2/${place.repository}/manifests/${tag}`)
    const isRight = now.header('docker-content-digest') === (allowed ? after : before).digest
    return { reply, faults: isRight ? [] : ['the tag names the wrong manifest'] }
  },
  'PUT a manifest by digest': putNew(
    ({ digest }) => digest,
    ({ place }) => place.repository,
  ),
  'PUT a manifest that needs a foreign blob': async (cell) => {
    const manifest = image({
      layers: [foreign(cell).blob],
      config: foreign(cell).manifest.parts[0] ?? randomBlob(),
    })
    return { reply: await putManifest(cell.me, cell.place.repository, 'stolen', manifest) }
  },
  'PUT the same manifest by an immutable tag': (cell) =>
    spare(
      'PUT',
      () => 'manifests/v1',
      () => own(cell).fixed,
    )(cell),
  'PUT another manifest by an immutable tag': spare('PUT', () => 'manifests/v1', smallManifest),
  'PUT a manifest by digest with an immutable tag among others': async (cell) => {
    const manifest = smallManifest()
    const tags = [newTag(), 'v1', newTag()]
    const path = `manifests/${manifest.digest}?${tags.map((tag) => `tag=${tag}`).join('&')}`
    const { reply, faults = [] } = await spare(
      'PUT',
      () => path,
      () => manifest,
    )(cell)
    const others = await expectThere(`/v2/${cell.place.repository}/manifests/${tags[0]}`, false)
    return { reply, faults: [...faults, ...others] }
  },

  'DELETE a tag': destroy('tags', async (repository) => {
    const tag = newTag()
    await push(keeper, repository, tag, smallManifest())
    return `manifests/${tag}`
  }),
  'DELETE a missing tag': get('DELETE', () => 'manifests/nobody-pushed-this'),
  'DELETE a manifest': destroy('manifests', async (repository) => {
    const manifest = smallManifest()
    await push(keeper, repository, manifest.digest, manifest)
    return `manifests/${manifest.digest}`
  }),
  'DELETE a foreign manifest': async (cell) => ({
    ...(await get('DELETE', () => `manifests/${foreign(cell).manifest.digest}`)(cell)),
    faults: await expectThere(`/v2/${appOf(foreignOf(cell.place.area))}/manifests/1`, true),
  }),
  'DELETE an immutable tag': spare('DELETE', () => 'manifests/v1'),
  'DELETE a manifest with an immutable tag': spare('DELETE', (cell) => `manifests/${own(cell).fixed.digest}`),
  'DELETE a blob': destroy('blobs', async (repository) => {
    const content = randomBlob(20)
    await pushBlobs(keeper, repository, content)
    return `blobs/${content.digest}`
  }),
  'DELETE a blob in use': get('DELETE', (cell) => `blobs/${own(cell).blob.digest}`),
  'DELETE a foreign blob': async (cell) => ({
    ...(await get('DELETE', () => `blobs/${foreign(cell).blob.digest}`)(cell)),
    faults: await expectThere(
      `/v2/${appOf(foreignOf(cell.place.area))}/blobs/${foreign(cell).blob.digest}`,
      true,
    ),
  }),
}

// ---------------------------------------------------------------------------------------------
// The comparison
// ---------------------------------------------------------------------------------------------

const refusals: Record<Policy['refusal'], (scope: string | undefined) => string> = {
  'log in': (scope) => ['401 UNAUTHORIZED', ...forScope(scope)].join(' '),
  'get a better token': (scope) => ['401 UNAUTHORIZED insufficient_scope', ...forScope(scope)].join(' '),
  'get a valid token': (scope) => ['401 UNAUTHORIZED invalid_token', ...forScope(scope)].join(' '),
  no: () => '403 DENIED',
}

const forScope = (scope: string | undefined) => (scope === undefined ? [] : [`for ${scope}`])

/** What the policy says about a cell; undefined where it has none. */
function expected(
  policy: Policy,
  name: RowName,
  row: Row,
  place: Place,
  repository: string,
): string | undefined {
  const ordinary = place.exists ? row.there : row.missing
  const isPrivate = place.area === 'team' || place.area === 'secret'
  if (ordinary === undefined || !(isPrivate || row.everywhere === true)) return undefined
  if (row.withAdmin !== undefined && policy.may[place.area] === 'everything') return row.withAdmin
  if (suffices[policy.may[place.area]].includes(row.needs)) {
    return mayMount(policy, foreignOf(place.area)) ? (row.withSource ?? ordinary) : ordinary
  }
  const scope = scopeFor[row.needs](repository)
  const source = name.endsWith('wherever') ? 'registry:mount:*' : scopeFor.pull(appOf(foreignOf(place.area)))
  const whole = name.startsWith('POST a mount') ? `${scope} ${source}` : scope
  const text = refusals[policy.refusal](whole)
  return name.startsWith('HEAD') ? text.replace(/ (UNAUTHORIZED|DENIED)/, '') : text
}

let cells = 0

t.test('matrix: the catalog and search show what the caller may pull, and nothing else', async (t) => {
  const app = (list: readonly Area[]) => list.map(appOf).sort()
  for (const [name, policy] of policies) {
    const me = talkingAs(name)
    const visible = areas.filter((area) => suffices[policy.may[area]].includes('pull'))
    const catalog = await me.request('GET', '/v2/_catalog')
    if (policy.catalog === 'shown') t.same(catalog.json(), { repositories: app(visible) }, `${name}: catalog`)
    else t.equal(inShort(catalog), refusals[policy.refusal]('registry:catalog:*'), `${name}: catalog`)

    const search = await me.request('GET', '/v1/search?q=app', { headers: { 'X-Docker-Token': 'true' } })
    if (policy.search === undefined) t.equal(search.status, 401, `${name}: search`)
    else {
      const { results, num_results } = search.json<{ results: { name: string }[]; num_results: number }>()
      t.same(results.map((result) => result.name).sort(), app(policy.search), `${name}: search`)
      t.equal(num_results, policy.search.length, `${name}: search counts no others`)
    }
    const paged = await me.request('GET', '/v2/_catalog?n=1&last=public/app')
    if (policy.catalog === 'shown') {
      const [first] = app(visible.filter((area) => area !== 'public'))
      t.same(
        paged.json(),
        { repositories: first === undefined ? [] : [first] },
        `${name}: a page of the catalog`,
      )
    }
    cells += 3
  }
})

t.test('matrix: /v2/ welcomes whoever proved who he is', async (t) => {
  for (const [name, policy] of policies) {
    for (const method of ['GET', 'HEAD']) {
      const reply = await talkingAs(name).request(method, '/v2/')
      const refused = refusals[policy.refusal](undefined)
      const wanted =
        policy.base === 'welcome' ? '200' : method === 'HEAD' ? refused.replace(' UNAUTHORIZED', '') : refused
      t.equal(inShort(reply), wanted, `${name}: ${method}`)
      cells++
    }
  }
})

t.test('matrix: what needs no right answers everybody alike', async (t) => {
  for (const [name] of policies) {
    const me = talkingAs(name)
    const answers: Record<string, string> = {}
    for (const line of Object.keys(open)) {
      const [method = '', path = ''] = line.split(' ')
      answers[line] = inShort(await me.request(method, path))
      cells++
    }
    t.same(answers, open, name)
  }
})

t.test('matrix: the token endpoint gives what the caller may do, and no more', async (t) => {
  for (const [name, policy] of policies) {
    if (credentials[name]().Authorization?.startsWith('Bearer') === true) continue
    const scopes = areas.map((area) => `repository:${appOf(area)}:pull,push,delete`)
    const reply = await askToken(talkingAs(name), undefined, scopes)
    cells += areas.length
    const isWorthNothing = policy.base === 'refused' && policy.search === undefined
    t.equal(reply.status, isWorthNothing ? 401 : 200, name)
    if (isWorthNothing) continue
    const given = claimsOf(reply.json<{ token: string }>().token).access
    const wanted = areas
      .map((area) => ({ type: 'repository', name: appOf(area), actions: [...suffices[policy.may[area]]] }))
      .filter(({ actions }) => actions.length > 0)
    t.same(given, wanted, name)
  }
})

/** A reply without what differs between two requests that should look the same. */
function withoutNames(reply: Reply, repository: string): string {
  const lines = reply.rawHeaders.filter((_, at) => !/^date$/i.test(reply.rawHeaders[at - (at % 2)] ?? ''))
  return `${reply.status}\n${lines.join('\n')}\n\n${reply.text}`.replaceAll(repository, 'REPOSITORY')
}

t.test(
  'matrix: every route, actor and object; forbidden and missing repositories look the same',
  async (t) => {
    const outcomes = await pool(6, policies, async ([name, policy]) => {
      const me = talkingAs(name)
      const wrong: string[] = []
      const leaks: string[] = []
      for (const [rowName, row] of table) {
        if (policy.isWrongLogin === true && row.everywhere !== true) continue
        for (const area of policy.isWrongLogin === true ? (['team'] as const) : areas) {
          const refused: string[] = []
          for (const place of places.filter((candidate) => candidate.area === area)) {
            const isNew = rowName === 'PUT a manifest into a new repository'
            const repository = isNew ? newRepositoryOf(name, area) : place.repository
            const wanted = expected(policy, rowName, row, place, repository)
            if (wanted === undefined) continue
            const allowed = suffices[policy.may[area]].includes(row.needs)
            const { reply, faults = [] } = await requests[rowName]({ name, me, place, allowed })
            const found = [inShort(reply), ...faults].join('; ')
            cells++
            if (found !== wanted) wrong.push(`${rowName} in ${repository}: ${found}, expected ${wanted}`)
            if (!allowed) refused.push(withoutNames(reply, place.repository))
          }
          if (new Set(refused).size > 1) leaks.push(`${rowName} in ${area}: ${refused.join(' <> ')}`)
        }
      }
      return { name, wrong, leaks }
    })
    for (const { name, wrong, leaks } of outcomes) {
      t.same(wrong, [], `${name}: as the policy has it`)
      t.same(leaks, [], `${name}: no telling whether a repository is there`)
    }
  },
)

t.test('matrix: nothing of what was there has been harmed', async (t) => {
  for (const area of areas) {
    const { manifest, fixed, blob, mountable } = things[area]
    for (const [reference, digest] of [
      ['1', manifest.digest],
      ['v1', fixed.digest],
    ]) {
      const reply = await keeper.request('GET', `/v2/${appOf(area)}/manifests/${reference}`)
      t.equal(reply.header('docker-content-digest'), digest, `${area}: ${reference}`)
    }
    for (const { digest, bytes } of [blob, mountable]) {
      const reply = await keeper.request('GET', `/v2/${appOf(area)}/blobs/${digest}`)
      t.ok(reply.body.equals(bytes), `${area}: a blob`)
    }
  }
  for (const [repository, location] of keptSessions) {
    const reply = await keeper.request('GET', location)
    t.equal(reply.status, 204, `${repository}: the keeper's upload is open`)
    t.equal(reply.header('range'), '0-0', `${repository}: and empty`)
  }
  t.notMatch(server.stderr(), /"level":(50|60)/, 'the server has met no error of its own')
})

t.test('matrix: at least 2,000 cells', async (t) => {
  t.comment(`${cells} cells: ${policies.length} actors, ${table.length} kinds of repository request`)
  t.ok(cells >= 2000, `${cells} cells`)
})

everyReplyKeptTheRules(t)
