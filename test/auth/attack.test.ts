import { Agent } from 'node:http'
import t from 'tap'
import { createAccessToken } from '../../src/auth/access-tokens.js'
import {
  eventually,
  everyReplyKeptTheRules,
  image,
  isError,
  pause,
  push,
  type Reply,
  type Server,
} from '../harness.js'
import { as, basic, bearer, getToken, password, pool, postForm, startRegistry, tokenPath } from './fixture.js'

/*
 * Guessing is slowed, by address and by account, and nobody who knows his password is locked out by those who do
 * not. Addresses are told apart by X-Forwarded-For, which counts here since the tests are a trusted proxy.
 *
 * A guess that has the form of an access token costs no hash: where the subject is not hashing, those are sent.
 */
const registry = await startRegistry(t, { config: { trustedProxies: ['127.0.0.1'], log: { level: 'warn' } } })
const { server } = registry
for (const name of [
  'alice',
  'bob',
  'carol',
  'dave',
  'erin',
  'frank',
  'grace',
  'heidi',
  'ivan',
  'judy',
  'ken',
])
  await registry.addUser(name)
await registry.addUser('root', { admin: true })
await registry.grant('authenticated', 'team/**', 'pull')
await push(as(server, basic('root')), 'team/app', '1', image())

/** The server, as it looks from an address. */
const from = (address: string, on: Server = server): Server => ({
  ...on,
  request: (method, path, options = {}) =>
    on.request(method, path, { ...options, headers: { ...options.headers, 'X-Forwarded-For': address } }),
})

/** Attackers have connections of their own: the others must not wait for one. */
const attackers = new Agent({ keepAlive: true, maxSockets: 64 })
t.teardown(() => attackers.destroy())

const login = (address: string, name: string, secret = password, agent?: Agent) =>
  as(from(address), basic(name, secret)).request('GET', '/v2/', agent === undefined ? {} : { agent })

const cheapGuess = (address: string, name: string) =>
  login(address, name, createAccessToken().text, attackers)

/** Many times at once; the statuses, counted. */
async function countStatuses(replies: Promise<Reply>[]): Promise<Record<number, number>> {
  const counts: Record<number, number> = {}
  for (const { status } of await Promise.all(replies)) counts[status] = (counts[status] ?? 0) + 1
  return counts
}

const times = <Item>(count: number, make: (n: number) => Item): Item[] =>
  Array.from({ length: count }, (_, n) => make(n))

async function timed<Item>(work: () => Promise<Item>): Promise<{ took: number; value: Item }> {
  const started = performance.now()
  const value = await work()
  return { took: performance.now() - started, value }
}

/**
 * Logs in as a client does that is patient: it waits as long as it is told to, and tries again this many times. Not
 * for so many seconds: how long a hash takes is the machine's affair.
 */
async function loginPatiently(
  address: string,
  name: string,
  most: number,
): Promise<{ took: number; tries: number; status: number }> {
  const started = performance.now()
  for (let tries = 1; ; tries++) {
    const reply = await login(address, name)
    const took = performance.now() - started
    if (reply.status !== 429 || tries === most) return { took, tries, status: reply.status }
    await pause(Number(reply.header('retry-after')) * 1000)
  }
}

t.test('RL-02, TK-13: an address that guesses is sent away, with a time to come back', async (t) => {
  const address = '203.0.113.1'
  // The same limit by whichever door, and for other accounts, too.
  const guess = createAccessToken().text
  const guesses = times(60, () => cheapGuess(address, 'alice'))
  await Promise.any(
    guesses.map((reply) => reply.then(({ status }) => status === 429 || Promise.reject(status))),
  )
  const more = [
    as(from(address), basic('alice', guess)).request('GET', tokenPath),
    postForm(from(address), { grant_type: 'password', username: 'alice', password: guess }),
    postForm(from(address), { grant_type: 'refresh_token', refresh_token: guess }),
    cheapGuess(address, 'bob'),
    cheapGuess(address, 'nobody'),
    as(from(address), basic('alice', guess)).request('GET', '/v1/search?q=a'),
    as(from(address), basic('alice', guess)).request('GET', '/v2/team/app/manifests/1'),
  ]
  for (const reply of await Promise.all(more)) {
    isError(t, reply, 429, 'TOOMANYREQUESTS')
    t.match(reply.header('retry-after'), /^[1-9]\d?$/)
  }
  t.equal((await from(address).request('GET', tokenPath)).status, 200, 'who does not guess there is served')
  const counts = await countStatuses(guesses)
  t.same(Object.keys(counts).sort(), ['401', '429'])
  t.ok((counts[401] ?? 0) <= 35, `${counts[401]} guesses were looked at`)
  t.ok((counts[401] ?? 0) >= 10, 'a handful of mistakes is nothing')
})

t.test('attack: the owner of a guessed account logs in from his own address, not slowed', async (t) => {
  const attack = times(40, (n) => cheapGuess(`203.0.113.${10 + (n % 4)}`, 'bob'))
  await Promise.race(attack)
  const { took, value } = await timed(() => login('192.0.2.1', 'bob'))
  t.equal(value.status, 200)
  const again = await timed(() => login('192.0.2.1', 'bob'))
  t.equal(again.value.status, 200)
  await Promise.all(attack)
  const other = await timed(() => login('192.0.2.2', 'bob'))
  t.equal(other.value.status, 200, 'from another address of his, later')
  t.comment(
    `first login ${took.toFixed()} ms, again ${again.took.toFixed()} ms, elsewhere ${other.took.toFixed()} ms`,
  )
  const calm = await timed(() => login('192.0.2.3', 'ivan'))
  t.ok(took < calm.took + 1500, 'without the delay that a wrong password has then')
})

t.test('attack: a wrong password for a guessed account is answered ever later', async (t) => {
  const count = 12
  const ages: number[] = []
  for (let n = 0; n < count; n++)
    ages.push((await timed(() => cheapGuess(`203.0.113.${20 + n}`, 'carol'))).took)
  t.ok((ages[0] ?? 0) < (ages[count - 1] ?? 0), ages.map((age) => age.toFixed()).join(' '))
  t.ok((ages[count - 1] ?? 0) > 400, 'the twelfth waits')
  const unknown: number[] = []
  for (let n = 0; n < count; n++)
    unknown.push((await timed(() => cheapGuess(`203.0.113.${40 + n}`, 'nobody-at-all'))).took)
  t.ok((unknown[count - 1] ?? 0) > 400, 'an account that does not exist is slowed in the same way')
})

t.test(
  'attack: one who has logged in from an address is not shut out by others who guess there',
  async (t) => {
    const address = '203.0.113.60'
    t.equal((await login(address, 'dave')).status, 200)
    const counts = await countStatuses(times(60, () => cheapGuess(address, 'erin')))
    t.ok((counts[429] ?? 0) > 0)
    t.equal((await login(address, 'dave')).status, 200, 'the password is known')
    t.equal(
      (await login(address, 'dave', `${password}!`)).status,
      401,
      'a mistake of his own is told as such',
    )
    t.equal((await login(address, 'dave')).status, 200)
    const newcomer = await loginPatiently(address, 'frank', 8)
    t.equal(
      newcomer.status,
      200,
      `somebody new there gets in when the guessing is over (${newcomer.tries} tries)`,
    )
  },
)

t.test('attack: the mistakes of a client that tries twice do not shut its owner out', async (t) => {
  // containerd asks by POST and then by GET: each wrong password counts twice (TK-32).
  const address = '192.0.2.9'
  const wrong = createAccessToken().text
  for (let n = 0; n < 4; n++) {
    t.equal(
      (await postForm(from(address), { grant_type: 'password', username: 'grace', password: wrong })).status,
      401,
    )
    t.equal((await as(from(address), basic('grace', wrong)).request('GET', tokenPath)).status, 401)
  }
  const { took, value } = await timed(() => login(address, 'grace'))
  t.equal(value.status, 200)
  const calm = await timed(() => login('192.0.2.10', 'ken'))
  t.ok(took < calm.took + 1500, `${took} ms, and ${calm.took} ms`)
})

t.test('attack: a flood of guesses from many addresses keeps nobody out', async (t) => {
  const known = await login('192.0.2.20', 'heidi')
  t.equal(known.status, 200)
  const token = await getToken(as(server, undefined), basic('heidi'), ['repository:team/app:pull'])
  const pulls = as(server, bearer(token))

  const flooders = 40 // more than are let in to wait
  let isOver = false
  let sent = 0
  let unanswered = 0
  const answers: Record<number, number> = {}
  /** Addresses whose guess was compared and was wrong. */
  const caught = new Set<number>()
  const attack = pool(
    flooders,
    times(flooders, (n) => n),
    async (n) => {
      for (let count = 0; !isOver; count++) {
        const reply = await login(
          `198.51.${n}.1`,
          n % 2 === 0 ? 'heidi' : 'judy',
          `guess ${n} ${count}`,
          attackers,
        ).catch(() => undefined)
        sent++
        if (reply?.status === 401) caught.add(n)
        if (reply === undefined) unanswered++
        else answers[reply.status] = (answers[reply.status] ?? 0) + 1
      }
    },
  )
  await eventually('every address of the attack has guessed', () => caught.size === flooders, 120_000)

  for (let n = 0; n < 20; n++)
    t.equal((await pulls.request('GET', '/v2/team/app/manifests/1')).status, 200, 'a pull')
  const remembered = await timed(() => login('192.0.2.20', 'heidi'))
  t.equal(remembered.value.status, 200, 'who logged in a moment ago')
  t.ok(remembered.took < 1000, `${remembered.took} ms`)
  const [bySelf, byOther] = await Promise.all([
    loginPatiently('192.0.2.21', 'judy', 3),
    loginPatiently('192.0.2.22', 'alice', 3),
  ])
  isOver = true
  await attack
  t.comment(`${sent} guesses: ${JSON.stringify(answers)}`)
  t.comment(`new logins: ${JSON.stringify({ bySelf, byOther })}`)
  t.equal(bySelf.status, 200, 'the owner of a guessed account, at the first login ever')
  t.equal(byOther.status, 200, 'somebody else, from an address that is new')
  t.ok((answers[429] ?? 0) > (answers[401] ?? 0), 'most guesses are not even looked at')
  t.notOk(answers[200])
  t.equal(unanswered, 0, 'guesses are answered, too: nobody waits for ever')
  t.same(
    Object.keys(answers).filter((status) => status !== '401' && status !== '429'),
    [],
  )
})

t.test('attack: impossible passwords are answered before anything is hashed', async (t) => {
  let address = 0
  const guess = async (secret: string) => {
    address++
    return timed(() =>
      postForm(from(`198.52.1.${address}`), {
        grant_type: 'password',
        username: `n${address}`,
        password: secret,
      }),
    )
  }
  const median = (values: number[]) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0
  const usual: number[] = []
  for (let n = 0; n < 3; n++) usual.push((await guess('an ordinary wrong password')).took)
  for (const [what, secret] of [
    ['NUL inside', 'pass\0word'],
    ['60 kB', 'x'.repeat(60_000)],
    ['1,025 bytes', `${'ä'.repeat(512)}x`],
    ['nothing', ''],
  ] as const) {
    const taken: number[] = []
    for (let n = 0; n < 7; n++) {
      const { took, value } = await guess(secret)
      isError(t, value, 401, 'UNAUTHORIZED', what)
      taken.push(took)
    }
    t.ok(
      median(taken) < median(usual) / 3,
      `${what}: ${median(taken).toFixed(1)} ms, an ordinary one ${median(usual).toFixed(1)} ms`,
    )
  }
  const megabyte = await guess('y'.repeat(1024 * 1024))
  t.match(megabyte.value.status, /^(400|413)$/)
  t.ok(megabyte.took < 1000)
  t.equal((await guess('x'.repeat(1024))).value.status, 401, '1,024 bytes are a password')
})

t.test('attack: who is not a trusted proxy cannot pretend to be many', async (t) => {
  const alone = await startRegistry(t, { config: { log: { level: 'warn' } } })
  await alone.addUser('alice')
  const counts = await countStatuses(
    times(60, (n) =>
      as(from(`203.0.113.${n}`, alone.server), basic('alice', createAccessToken().text)).request(
        'GET',
        '/v2/',
      ),
    ),
  )
  t.ok((counts[401] ?? 0) <= 35 && (counts[429] ?? 0) >= 25, JSON.stringify(counts))
  await alone.server.stop()
})

t.test('attack: a network of IPv6 is one address', async (t) => {
  const counts = await countStatuses(
    times(60, (n) => cheapGuess(`2001:db8:1:2:${n.toString(16)}::${(n * 7).toString(16)}`, `user-${n % 12}`)),
  )
  t.ok((counts[429] ?? 0) >= 25, JSON.stringify(counts))
  t.equal((await cheapGuess('2001:db8:1:3::1', 'user-x')).status, 401, 'the network beside it is another one')
})

everyReplyKeptTheRules(t)
