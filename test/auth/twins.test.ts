import { randomUUID } from 'node:crypto'
import t from 'tap'
import {
  descriptor,
  image,
  OCI_MANIFEST,
  pause,
  push,
  type Reply,
  randomBlob,
  type Server,
} from '../harness.js'
import { type FakeUpstream, startFakeUpstream } from '../mirror/fake-upstream.js'
import { mirrorOf } from '../mirror/pair.js'
import { as, basic, bearer, claimsOf, getToken, startRegistry } from './fixture.js'

/*
 * Twins: a repository that is here and hidden, and one that is not here at all, behind a mirror that takes bare names
 * and that everybody may pull from. Whoever may not see the first must not be able to tell it from the second, by
 * nothing that comes back, byte for byte but for the date, and by nothing that goes upstream, whatever the upstream
 * does (reliability S88). The same for what a closed mirror is set up to fetch and what it is not (S92).
 */

const open = await startFakeUpstream(t)
const closed = await startFakeUpstream(t)
const registry = await startRegistry(t, {
  config: {
    mirrors: [
      mirrorOf(open),
      mirrorOf(closed, { name: 'closed.test', bareNames: false, allow: ['**'], deny: ['deny/**'] }),
    ],
    log: { level: 'warn' },
  },
})
const { server } = registry

/** Pairs of names of the same length; the first one is asked for first. `ns` goes with both. */
const pairs: readonly { readonly names: readonly [string, string]; readonly ns?: string }[] = [
  { names: ['secret/app', 'secret/not'] },
  { names: ['solo', 'none'] },
  { names: ['closed.test/free/app', 'closed.test/deny/app'] },
  { names: ['free/app', 'deny/app'], ns: 'closed.test' },
]

const layer = randomBlob(2000)
const content = image({ layers: [layer] })
await registry.addUser('root', { admin: true })
for (const name of ['stranger', 'neighbour']) await registry.addUser(name)
await registry.grant('anonymous', 'docker.io/**', 'pull')
await registry.grant('user:neighbour', 'other/**', 'admin')
const root = as(server, basic('root'))
for (const name of ['secret/app', 'solo']) {
  await push(root, name, '1', content)
  const signature = image({ layers: [], extra: { artifactType: 'a/b', subject: descriptor(content) } })
  await push(root, name, 'about', signature)
}

const allNames = pairs.flatMap(({ names }) => names)
const scopes = (actions: string) => allNames.map((name) => `repository:${name}:${actions}`)
const tokenOf = async (authorization: string | undefined) =>
  bearer(await getToken(server, authorization, scopes('pull,push,delete')))

/** Everybody who may see none of the names, with what he logs in with and what he sends. */
const actors: Readonly<
  Record<string, { readonly login: string | undefined; readonly sends: string | undefined }>
> = {
  'nothing sent': { login: undefined, sends: undefined },
  'empty Basic': { login: 'Basic Og==', sends: 'Basic Og==' },
  'anonymous token': { login: undefined, sends: await tokenOf(undefined) },
  'stranger, password': { login: basic('stranger'), sends: basic('stranger') },
  'stranger, token': { login: basic('stranger'), sends: await tokenOf(basic('stranger')) },
  'neighbour, password': { login: basic('neighbour'), sends: basic('neighbour') },
  'neighbour, token': { login: basic('neighbour'), sends: await tokenOf(basic('neighbour')) },
  'root, token for another name': {
    login: undefined,
    sends: bearer(await getToken(server, basic('root'), ['repository:other/app:pull'])),
  },
  'access token of root for another name': await (async () => {
    const machine = basic('root', await registry.accessToken('root', ['other/**:admin']))
    return { login: machine, sends: machine }
  })(),
  'a token of nobody': { login: undefined, sends: 'Bearer nonsense' },
}

const uuid = randomUUID()
const requests: readonly (readonly [method: string, path: string, body?: Buffer])[] = [
  ['GET', 'manifests/1'],
  ['HEAD', 'manifests/1'],
  ['GET', `manifests/${content.digest}`],
  ['HEAD', `manifests/${content.digest}`],
  ['GET', 'manifests/never-there'],
  ['GET', 'manifests/='],
  ['GET', `blobs/${layer.digest}`],
  ['HEAD', `blobs/${layer.digest}`],
  ['GET', 'blobs/x'],
  ['GET', 'tags/list'],
  ['GET', 'tags/list?n=x'],
  ['GET', `referrers/${content.digest}`],
  ['GET', 'referrers/x'],
  ['POST', 'blobs/uploads/'],
  ['POST', `blobs/uploads/?mount=${layer.digest}&from=secret/app`],
  ['GET', `blobs/uploads/${uuid}`],
  ['PATCH', `blobs/uploads/${uuid}`, Buffer.from('x')],
  ['PUT', 'manifests/1', content.bytes],
  ['DELETE', 'manifests/1'],
  ['DELETE', `blobs/${layer.digest}`],
]

const states: Readonly<Record<string, (upstream: FakeUpstream) => unknown>> = {
  'has neither': () => undefined,
  'has both': (upstream) => {
    for (const name of ['secret/app', 'secret/not', 'library/solo', 'library/none']) {
      upstream.addBlob(name, layer.bytes)
      upstream.addManifest(name, 'both', content.bytes)
    }
  },
  'allows no more requests': (upstream) => {
    upstream.fault =
      () =>
      ({ send }) =>
        send({ status: 429, headers: { 'retry-after': '1' }, body: Buffer.from('{}') })
  },
  lies: (upstream) => {
    upstream.fault =
      () =>
      ({ send }) =>
        send({ status: 200, headers: { 'content-type': OCI_MANIFEST }, body: Buffer.from('{"a lie": true}') })
  },
  'is down': (upstream) => upstream.stop(),
}

/** A text in which both twins have the same name. */
const masked = (text: string, names: readonly string[]) =>
  names.reduce(
    (rest, name) => rest.replaceAll(name, 'TWIN').replaceAll(encodeURIComponent(name), 'TWIN'),
    text,
  )

function seen({ status, rawHeaders, body }: Reply, names: readonly string[]): string {
  const headers: string[] = []
  for (let at = 0; at < rawHeaders.length; at += 2) {
    if (rawHeaders[at]?.toLowerCase() !== 'date') headers.push(`${rawHeaders[at]}: ${rawHeaders[at + 1]}`)
  }
  const text = [status, ...headers, body.toString('latin1')].join('\n')
  // When the mirror fetched what it has is no secret, and differs by the moment.
  return masked(text.replaceAll(/\d{4}-\d\d-\d\dT[\d:.]+Z/g, 'THEN'), names)
}

/**
 * Asks for one twin, the other, and the first again: what changes between the first and the third time is the
 * upstream's state, and then it is asked anew. So it is when they differ: what was missing upstream, or failed, is
 * remembered for each name for a while of its own. What tells the twins apart does so each time.
 * @returns what differs each time; undefined when nothing does
 */
async function difference(names: readonly [string, string], ask: (name: string) => Promise<string>) {
  const [first, second] = names
  let found: string | undefined
  for (let tries = 0; tries < 50; tries++) {
    const [one, other, again] = [await ask(first), await ask(second), await ask(first)]
    if (one === again && one === other) return undefined
    found = one === again ? `${one}\n  but\n${other}` : (found ?? 'the answers never came to rest')
    await pause(200)
  }
  return found
}

async function askForToken(me: Server, login: string | undefined, name: string, actions: string) {
  const scope = encodeURIComponent(`repository:${name}:${actions}`)
  const headers = login === undefined ? {} : { Authorization: login }
  const reply = await me.request('GET', `/auth/token?service=boathouse&scope=${scope}`, { headers })
  const { token, scope: granted } = reply.json<{ token: string; scope: string }>()
  return `${reply.status} ${granted} ${JSON.stringify(claimsOf(token).access)} ${reply.body.length}`
}

t.test('the twins are twins: the one who may see them can tell them', async (t) => {
  for (const [one, other] of [pairs[0]?.names, pairs[1]?.names].flatMap((names) => (names ? [names] : []))) {
    t.equal((await root.request('GET', `/v2/${one}/manifests/1`)).status, 200)
    // By a tag that nobody else asks for: what is missing upstream is remembered for a while.
    t.equal((await root.request('GET', `/v2/${other}/manifests/of-the-other`)).status, 404)
  }
})

for (const [state, prepare] of Object.entries(states)) {
  t.test(`S88, S92: nobody can tell the twins while the upstream ${state}`, async (t) => {
    for (const upstream of [open, closed]) {
      await prepare(upstream)
      upstream.forget()
    }
    let cells = 0
    for (const [actor, { login, sends }] of Object.entries(actors)) {
      const me = as(server, sends)
      const differences: string[] = []
      for (const { names, ns } of pairs) {
        for (const [method, path, body] of [...requests, ['GET', 'manifests/both'] as const]) {
          const query = ns === undefined ? '' : `${path.includes('?') ? '&' : '?'}ns=${ns}`
          const options = { ...(body === undefined ? {} : { body }), unchecked: true }
          const found = await difference(names, async (name) =>
            seen(await me.request(method, `/v2/${name}/${path}${query}`, options), names),
          )
          cells++
          if (found !== undefined) differences.push(`${method} ${names[0]} ${path}: ${found}`)
        }
        for (const actions of ['pull', 'pull,push', '*']) {
          const found = await difference(names, async (name) =>
            masked(await askForToken(server, login, name, actions), names),
          )
          cells++
          if (found !== undefined) differences.push(`token for ${names[0]}:${actions}: ${found}`)
        }
      }
      t.strictSame(differences, [], actor)
    }
    // Where the upstream wants or gets a pause, the time decides who of the two is sent there.
    const isPaused = state === 'allows no more requests' || state === 'is down'
    for (const { names } of isPaused ? [] : pairs.slice(0, 2)) {
      const [one, other] = names.map((name) => {
        const about = open.requests.filter(({ path }) => path.includes(`/${name}/`))
        // Not by which method: who comes first fetches what the other one then asks about.
        return [...new Set(about.map(({ path }) => masked(path, names)))].sort()
      })
      t.strictSame(one, other, `${names[0]}: the upstream is asked the same`)
    }
    t.strictSame(closed.requests, [], 'who may not see a mirror asks its upstream nothing')
    t.comment(`${cells} cells`)
  })
}
