import { generateKeyPairSync } from 'node:crypto'
import { renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { fakeClock } from '../fake-clock.js'
import { eventually, everyReplyKeptTheRules, scratchDir } from '../harness.js'
import {
  as,
  basic,
  bearer,
  challengeOf,
  claimsOf,
  getToken,
  type Registry,
  startRegistry,
} from './fixture.js'

/*
 * Clocks that differ, and a clock that jumps while the server runs. The server's own is moved by libfaketime; its
 * monotonic clock goes on, as it does when a machine's time is set.
 */
const library = fakeClock()
const skip = library === undefined ? 'libfaketime is missing (on Debian: apt-get install faketime)' : false

const lifetime = 60
const keyFile = join(scratchDir(t), 'signing.pem')
writeFileSync(keyFile, generateKeyPairSync('ed25519').privateKey.export({ type: 'pkcs8', format: 'pem' }))
// With one key and one service they are two servers of one registry, whose clocks may differ.
const config = { tokens: { keyFile, service: 'registry.example.com', expireAfter: `${lifetime}s` } }

const clock = join(scratchDir(t), 'clock')
function writeClock(seconds: number): void {
  writeFileSync(`${clock}.new`, `${seconds < 0 ? '' : '+'}${seconds}s\n`)
  renameSync(`${clock}.new`, clock)
}

/** A server whose clock the test moves. */
async function startMovable() {
  writeClock(0)
  const registry = await startRegistry(t, {
    config,
    env: {
      LD_PRELOAD: library ?? '',
      FAKETIME_TIMESTAMP_FILE: clock,
      FAKETIME_NO_CACHE: '1',
      FAKETIME_DONT_FAKE_MONOTONIC: '1',
      DONT_FAKE_MONOTONIC: '1',
    },
  })
  await registry.addUser('ann')
  return registry
}

/** Sets the clock so many seconds before (−) or behind (+) the true one, and waits until the server goes by it. */
async function setClock({ server }: Registry, seconds: number): Promise<void> {
  writeClock(seconds)
  await eventually(`the clock is moved by ${seconds} s`, async () => {
    const { iat } = claimsOf(await getToken(server, undefined)) as { iat: number }
    return Math.abs(iat - (Date.now() / 1000 + seconds)) < 2
  })
}

const statusOf = async ({ server }: Registry, authorization: string) =>
  (await as(server, authorization).request('GET', '/v2/')).status

const isRefused = async ({ server }: Registry, token: string) => {
  const reply = await as(server, bearer(token)).request('GET', '/v2/')
  return reply.status === 401 && challengeOf(reply).error === 'invalid_token'
}

t.test(
  'S06: a server whose clock differs by 59 s takes a token, one that is further off does not',
  { skip },
  async (t) => {
    const one = await startRegistry(t, { config })
    await one.addUser('ann')
    const other = await startMovable()
    const newToken = () => getToken(one.server, basic('ann'))
    for (const seconds of [-59, 0, 59]) {
      await setClock(other, seconds)
      t.equal(await statusOf(other, bearer(await newToken())), 200, `${seconds} s`)
    }
    // A token says that it begins 10 s before it was issued, for the servers that allow no difference at all.
    for (const [seconds, isGood] of [
      [lifetime + 57, true],
      [lifetime + 62, false],
      [-68, true],
      [-73, false],
      [86_400, false],
      [-86_400, false],
    ] as const) {
      await setClock(other, seconds)
      const token = await newToken()
      t.equal(await statusOf(other, bearer(token)), isGood ? 200 : 401, `${seconds} s`)
      if (!isGood) t.ok(await isRefused(other, token), 'the challenge says why')
      t.equal(await statusOf(other, bearer(await getToken(other.server, basic('ann')))), 200, 'its own token')
      t.equal(await statusOf(other, basic('ann')), 200, 'a password')
    }
  },
)

t.test(
  'S06, R60: a clock that goes back while the server runs makes no token last, and refuses no login',
  { skip },
  async (t) => {
    const registry = await startMovable()
    const machine = await registry.accessToken('ann', ['team/**:pull'], { expiresAt: Date.now() + 30_000 })
    const before = {
      used: await getToken(registry.server, basic('ann')),
      unused: await getToken(registry.server, basic('ann')),
      ofMachine: await getToken(registry.server, basic('ann', machine)),
    }
    for (const token of [before.used, before.ofMachine]) {
      t.equal(await statusOf(registry, bearer(token)), 200)
      t.equal(await statusOf(registry, bearer(token)), 200, 'one that is remembered')
    }
    for (const seconds of [-45, -3600, -365 * 86_400]) {
      await setClock(registry, seconds)
      const isNear = seconds > -60
      for (const token of Object.values(before)) {
        t.equal(await statusOf(registry, bearer(token)), isNear ? 200 : 401, `issued ${-seconds} s ahead`)
      }
      for (const secret of [undefined, machine]) {
        t.equal(await statusOf(registry, basic('ann', secret)), 200)
        const token = await getToken(registry.server, basic('ann', secret))
        t.equal(await statusOf(registry, bearer(token)), 200, 'whoever logs in again goes on')
        const { iat, exp } = claimsOf(token) as { iat: number; exp: number }
        t.equal(exp - iat, lifetime, 'with the usual time')
      }
    }
    await setClock(registry, 0)
    t.equal(await statusOf(registry, bearer(await getToken(registry.server, basic('ann')))), 200)
    await setClock(registry, lifetime + 62)
    t.equal(await statusOf(registry, bearer(before.used)), 401, 'a clock that goes ahead ends it')
    t.equal(await statusOf(registry, basic('ann', machine)), 401, 'and an access token whose time is over')
    t.equal(await statusOf(registry, basic('ann')), 200)
  },
)

if (skip === false) everyReplyKeptTheRules(t)
