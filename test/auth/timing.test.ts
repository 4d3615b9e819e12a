import { scrypt } from 'node:crypto'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { type Account, Accounts } from '../../src/auth/accounts.js'
import { Passwords, type Verdict } from '../../src/auth/passwords.js'
import { Throttle } from '../../src/auth/throttle.js'
import type { AccessStore } from '../../storage/access-store.js'
import { takeDataFolder } from '../../storage/data-folder.js'
import { everyReplyKeptTheRules, scratchDir } from '../harness.js'
import { as, basic, hashOf, openAccess, password, startRegistry } from './fixture.js'

/*
 * Whoever guesses must not learn from the time of an answer whether a user exists (reliability S10). A wrong login
 * takes about a tenth of a second, nearly all of it hashing, so that 10,000 of them take a quarter of an hour. What
 * is shown here in seconds:
 *
 *   1. 10,000 interleaved wrong logins for known, unknown and disabled users make the very same calls, with hashes
 *      of the same cost: nothing is measured, so nothing flickers.
 *   2. The same logins with a cheap hash in the place of the real one are timed: what surrounds the hash differs by
 *      less than 50 µs; and with a real hash's duration added to each, as an attacker would meet it, the two cannot
 *      be told apart (Mann-Whitney).
 *   3. A small number of logins with everything real, over HTTP: a hash that is left out, or another one, is seen.
 *
 * By itself a test at p > 0.01 fails once in a hundred times when nothing is wrong. Each is therefore made up to
 * four times and counts when it fails each time, in the same direction: once in some ten million times.
 * With TIMING_LOGINS=10000 the third test makes as many real logins.
 */

const folder = join(scratchDir(t), 'data')
const data = await takeDataFolder(folder)
t.teardown(() => data.release())
const store = await openAccess(t, folder)

const count = 2500
const passwordHash = await hashOf(password)
const names = Array.from({ length: count }, (_, n) => n.toString().padStart(4, '0'))
await Promise.all(
  names.map((n) => store.addUser({ name: `known-${n}`, passwordHash, isAdmin: false }, Date.now())),
)
await Promise.all(
  names.slice(0, 200).map(async (n) => {
    await store.addUser({ name: `former-${n}`, passwordHash, isAdmin: false }, Date.now())
    await store.setDisabled(`former-${n}`, true)
  }),
)

// ---------------------------------------------------------------------------------------------
// Statistics
// ---------------------------------------------------------------------------------------------

const median = (values: readonly number[]) =>
  values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN

/** How far two samples are apart, in standard deviations of the rank sum: above 0 when the first is slower. */
function mannWhitney(first: readonly number[], second: readonly number[]): number {
  const all = [
    ...first.map((value) => ({ value, group: 0 })),
    ...second.map((value) => ({ value, group: 1 })),
  ]
  all.sort((a, b) => a.value - b.value)
  let rankSum = 0
  let ties = 0
  for (let at = 0; at < all.length; ) {
    let end = at
    while (end < all.length && all[end]?.value === all[at]?.value) end++
    const rank = (at + 1 + end) / 2
    for (let one = at; one < end; one++) if (all[one]?.group === 0) rankSum += rank
    ties += (end - at) ** 3 - (end - at)
    at = end
  }
  const [n, m, size] = [first.length, second.length, all.length]
  const mean = (n * (size + 1)) / 2
  const variance = ((n * m) / 12) * (size + 1 - ties / (size * (size - 1)))
  return (rankSum - mean) / Math.sqrt(variance)
}

/** Two-sided p > 0.01. */
const farthest = 2.576

interface Samples {
  known: number[]
  unknown: number[]
}

/** Passes when one of four rounds cannot tell the two apart, or they contradict each other. */
async function cannotBeToldApart(
  t: Test,
  what: string,
  measure: () => Promise<Samples>,
  limit = farthest,
): Promise<void> {
  const seen: number[] = []
  for (let round = 0; round < 4; round++) {
    const { known, unknown } = await measure()
    const apart = mannWhitney(known, unknown)
    t.comment(
      `${what}: medians ${median(known).toFixed(3)} and ${median(unknown).toFixed(3)} ms, ${apart.toFixed(2)} deviations apart (${known.length} + ${unknown.length})`,
    )
    seen.push(apart)
    const agrees = seen.every((value) => value > limit) || seen.every((value) => value < -limit)
    if (!agrees) {
      t.pass(what)
      return
    }
  }
  t.fail(`${what}: ${seen.map((value) => value.toFixed(1)).join(', ')} deviations apart`)
}

t.test('Mann-Whitney tells apart what differs, and nothing else', async (t) => {
  const noise = (seed: number) =>
    Array.from({ length: 2000 }, (_, n) => Math.abs(Math.sin(n * 12.9898 + seed) * 43758.5453) % 1)
  t.ok(Math.abs(mannWhitney(noise(1), noise(2))) < farthest)
  t.ok(
    mannWhitney(
      noise(1).map((value) => value + 0.1),
      noise(2),
    ) > farthest,
  )
  t.ok(
    mannWhitney(
      noise(1),
      noise(2).map((value) => value + 0.1),
    ) < -farthest,
  )
  t.equal(mannWhitney([1, 1, 1, 2], [1, 1, 1, 2]), 0)
})

// ---------------------------------------------------------------------------------------------
// Accounts, with a cheap hash
// ---------------------------------------------------------------------------------------------

/** Hashes as the real ones do, but a thousand times cheaper; says what it was asked for. */
class CheapPasswords extends Passwords {
  onVerify: (text: string, hash: string | undefined) => void = () => undefined

  override verify(text: string, hash: string | undefined): Promise<Verdict> {
    this.onVerify(text, hash)
    return new Promise((resolve, reject) => {
      scrypt(text, 'salt', 32, { N: 16, r: 8, p: 1 }, (error) =>
        error ? reject(error) : resolve({ isRight: false, isOutdated: false }),
      )
    })
  }
}

/** A store that writes down what is asked of it. */
function recording(store: AccessStore, note: (call: string) => void): AccessStore {
  return new Proxy(store, {
    get(target, name: string) {
      const method = Reflect.get(target, name) as (...args: unknown[]) => unknown
      return (...args: unknown[]) => {
        note(
          `${name}(${args.map((arg) => String(arg).replace(/(known|unknown|former)-\d+/, 'NAME')).join()})`,
        )
        return method.apply(target, args)
      }
    },
  })
}

let addresses = 0
/** An address that nobody has used: guesses from one address are slowed, which is not the matter here. */
function newAddress(): string {
  addresses++
  return `198.18.${addresses >> 8}.${addresses & 255}`
}

t.test('S10: 10,000 wrong logins make the same calls, whether there is such a user or not', async (t) => {
  const passwords = new CheapPasswords()
  t.teardown(() => passwords.close())
  let calls: string[] = []
  const accounts = new Accounts(
    recording(store, (call) => calls.push(call)),
    { passwords, throttle: new Throttle(), onLogin: () => calls.push('noted') },
  )
  passwords.onVerify = (text) => calls.push(`hash of ${text}`)
  const traces: Record<string, Map<string, number>> = {
    known: new Map(),
    unknown: new Map(),
    former: new Map(),
  }
  for (let round = 0; round < 2; round++) {
    for (const [at, n] of names.entries()) {
      for (const group of at < 200 ? ['known', 'unknown', 'former'] : ['known', 'unknown']) {
        calls = []
        const account: Account | undefined = await accounts.login(
          `${group}-${n}`,
          'a wrong password',
          newAddress(),
        )
        if (account !== undefined) t.fail('somebody got in')
        // How recent the rights are is looked at from time to time, whoever asks.
        const trace = calls.filter((call) => call !== 'accessVersion()').join(' ')
        traces[group]?.set(trace, (traces[group].get(trace) ?? 0) + 1)
      }
    }
  }
  const kinds = (group: string) => [...(traces[group]?.keys() ?? [])].sort()
  t.comment(kinds('known').join(' | '))
  t.ok(kinds('known').length <= 2, 'one way at the first time, one when the rights are remembered')
  t.ok(kinds('known').every((trace) => trace.includes('hash of a wrong password')))
  t.same(kinds('unknown'), kinds('known'))
  t.same(kinds('former'), kinds('known'))
  t.same([...(traces.unknown?.values() ?? [])].sort(), [...(traces.known?.values() ?? [])].sort(), 'as often')
})

// ---------------------------------------------------------------------------------------------
// Time
// ---------------------------------------------------------------------------------------------

async function timed(work: () => Promise<unknown>): Promise<number> {
  const started = performance.now()
  await work()
  return performance.now() - started
}

/** Times of the real hash, for a stored one and for the decoy in turn. */
async function hashTimes(pairs: number): Promise<Samples> {
  const passwords = new Passwords()
  const samples: Samples = { known: [], unknown: [] }
  await passwords.verify('warm', passwordHash, 0)
  for (let n = 0; n < pairs; n++) {
    const order = n % 2 === 0 ? (['known', 'unknown'] as const) : (['unknown', 'known'] as const)
    for (const group of order) {
      const hash = group === 'known' ? passwordHash : undefined
      samples[group].push(await timed(() => passwords.verify('a wrong password', hash, 0)))
    }
  }
  await passwords.close()
  return samples
}

t.test('S10: the hash of nobody takes as long as that of somebody', async (t) => {
  await cannotBeToldApart(t, 'a hash', () => hashTimes(8))
})

t.test(
  'S10: 10,000 interleaved logins for known and unknown users cannot be told apart by time',
  async (t) => {
    const passwords = new CheapPasswords()
    t.teardown(() => passwords.close())
    const real = await hashTimes(8)
    const durations = [...real.known, ...real.unknown]
    let seed = 42
    const random = () => {
      seed = (seed * 1103515245 + 12345) % 2147483648
      return seed / 2147483648
    }
    const measure = async (): Promise<Samples> => {
      const accounts = new Accounts(store, { passwords, throttle: new Throttle(), onLogin: () => undefined })
      const samples: Samples = { known: [], unknown: [] }
      for (let round = 0; round < 2; round++) {
        for (const [at, n] of names.entries()) {
          const order = at % 2 === 0 ? (['known', 'unknown'] as const) : (['unknown', 'known'] as const)
          for (const group of order)
            samples[group].push(
              await timed(() => accounts.login(`${group}-${n}`, 'a wrong password', newAddress())),
            )
        }
      }
      return samples
    }
    /** A number between the measured durations: their spread is the machine's, not ours. */
    const drawDuration = () => {
      const sorted = durations.toSorted((a, b) => a - b)
      const place = random() * (sorted.length - 1)
      const [low = 0, high = 0] = [sorted[Math.floor(place)], sorted[Math.ceil(place)]]
      return low + (high - low) * (place % 1)
    }
    let around: Samples = { known: [], unknown: [] }
    await cannotBeToldApart(t, 'a login', async () => {
      around = await measure()
      return {
        known: around.known.map((time) => time + drawDuration()),
        unknown: around.unknown.map((time) => time + drawDuration()),
      }
    })
    t.equal(around.known.length + around.unknown.length, 10_000)
    const difference = Math.abs(median(around.known) - median(around.unknown)) * 1000
    t.comment(
      `around the hash: ${(median(around.known) * 1000).toFixed(1)} and ${(median(around.unknown) * 1000).toFixed(1)} µs`,
    )
    t.ok(difference < 50, `what surrounds the hash differs by ${difference.toFixed(1)} µs`)
  },
)

t.test('S10: real logins over HTTP, known, unknown, disabled and imported', async (t) => {
  const { server, access, addUser } = await startRegistry(t, {
    config: { trustedProxies: ['127.0.0.1'], log: { level: 'warn' } },
  })
  const pairs = Math.max(8, Math.floor(Number(process.env.TIMING_LOGINS ?? 16) / 2))
  // A few wrong logins for an account are free, further ones are answered late: nobody is asked for twice in a round.
  const perGroup = Math.ceil(pairs / 2)
  const { default: bcrypt } = await import('bcryptjs')
  const imported = bcrypt.hashSync(password, 5)
  await addUser('warm')
  for (let n = 0; n < perGroup; n++) {
    await addUser(`known-${n}`)
    await addUser(`former-${n}`, { disabled: true })
    await access.addUser({ name: `import-${n}`, passwordHash: imported, isAdmin: false }, Date.now())
  }
  const login = (name: string, secret: string) =>
    timed(async () => {
      const headers = { 'X-Forwarded-For': newAddress() }
      const reply = await as(server, basic(name, secret)).request('GET', '/v2/', { headers })
      if (reply.status !== 401) throw new Error(`${name}: ${reply.status}`)
    })
  for (const name of ['known-0', 'unknown-0', 'import-0', 'unknown-1']) await login(name, 'warming up')

  for (const group of ['known', 'former', 'import']) {
    let rounds = 0
    const measure = async (): Promise<Samples> => {
      rounds++
      const samples: Samples = { known: [], unknown: [] }
      for (let n = 0; n < pairs; n++) {
        const order = n % 2 === 0 ? (['known', 'unknown'] as const) : (['unknown', 'known'] as const)
        for (const which of order) {
          const name = which === 'known' ? `${group}-${n % perGroup}` : `nobody-${group}-${n % perGroup}`
          samples[which].push(await login(name, group === 'former' ? password : `wrong ${rounds}`))
        }
      }
      return samples
    }
    await cannotBeToldApart(t, `${group} and unknown users`, measure)
  }
  await server.stop()
})

everyReplyKeptTheRules(t)
