import { rmSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { digestOf } from '../../src/oci/digest.js'
import { RegistryError } from '../../src/oci/errors.js'
import { parseRepositoryName } from '../../src/oci/reference.js'
import { openSqliteStores, prepareSqlite } from '../../storage/sqlite-metadata-store.js'
import { eventually, scratchDir } from '../harness.js'
import { fillUp, mountSmallDisk, noMounting } from './processes.js'

/*
 * What outlives a server, and what does not: the turns and leases of syncs, and what several processes say of mirrors.
 */

const cannotMount = noMounting() ?? false
const repository = parseRepositoryName('docker.io/library/app')
const digest = digestOf(Buffer.from('content'))
const counts = { hits: 1, misses: 2, bytesFetched: 3, bytesSaved: 4 }

/** Two openings of one database, as two processes have them. */
async function openTwice(t: Test) {
  const path = join(scratchDir(t), 'boathouse.db')
  prepareSqlite(path)
  const open = async () => {
    const { metadata, mirrors } = await openSqliteStores({ path, onFatal: (error) => t.fail(error) })
    t.teardown(() => metadata.close())
    return { metadata, mirrors }
  }
  return [await open(), await open()] as const
}

const fillOf = (id: string) => ({
  id,
  mirror: 'docker.io',
  repository,
  digest,
  owner: '/mirror',
  algorithm: 'sha256' as const,
})

t.test('what a living sync holds stays its own, also when a server starts', async (t) => {
  const [sync, server] = await openTwice(t)
  t.equal(await sync.mirrors.startSync(), true)
  t.equal(await sync.mirrors.startSync(), false, 'one at a time')
  t.equal(await server.mirrors.startSync(), false, 'wherever')
  await sync.mirrors.takeFill(fillOf('fill-1'), 'sync:1', 1000)
  t.equal(await sync.mirrors.takeLease('tag', 'sync:1'), true)
  await server.mirrors.takeFill(fillOf('fill-2'), 'worker-1:2', 1000)
  await server.metadata.releaseTurns('')
  await server.mirrors.releaseDeadSync()
  t.match(await server.mirrors.findFill('fill-1'), { isHeld: true })
  t.match(await server.mirrors.findFill('fill-2'), { isHeld: false }, 'what workers held is free')
  t.equal(await server.mirrors.takeLease('tag', 'worker-1:3'), false)
  await sync.mirrors.endSync()
  t.match(await server.mirrors.findFill('fill-1'), { isHeld: false })
  t.equal(await server.mirrors.takeLease('tag', 'worker-1:3'), true)
  t.equal(await server.mirrors.startSync(), true, 'the next one may begin')
})

t.test('what a sync that died held is free for who asks next', async (t) => {
  const [dead, server] = await openTwice(t)
  await dead.mirrors.takeFill(fillOf('fill-1'), 'sync:1', 1000)
  await dead.mirrors.takeFill(fillOf('fill-2'), 'sync:1', 1000)
  t.match(await server.mirrors.findFill('fill-1'), { isHeld: false })
  await dead.mirrors.takeLease('tag', 'sync:1')
  t.equal(await server.mirrors.takeLease('tag', 'worker-1:2'), false)
  t.equal(await server.mirrors.takeLease('tag', 'worker-1:2'), true, 'the second try has it')
  await dead.mirrors.takeFill(fillOf('fill-2'), 'sync:1', 1000)
  t.equal(await server.mirrors.startSync(), true)
  t.match(await server.mirrors.findFill('fill-2'), { isHeld: false }, 'nor is it left to the next sync')
})

t.test(
  'what a full disk keeps from being given back is given back with room',
  { skip: cannotMount },
  async (t) => {
    const disk = mountSmallDisk(t, 8)
    const path = join(disk, 'boathouse.db')
    prepareSqlite(path)
    const open = async () => {
      const stores = await openSqliteStores({ path, onFatal: (error) => t.fail(error) })
      t.teardown(() => stores.metadata.close())
      return stores
    }
    const [one, two] = [await open(), await open()]
    await one.mirrors.takeFill(fillOf('fill-1'), 'worker-1:1', 1000)
    t.equal(await one.mirrors.takeLease('tag', 'worker-1:1'), true)
    const filler = join(disk, 'filler')
    fillUp(filler)
    // What room the log has left within itself is used up.
    let used = 0
    while (await one.mirrors.takeLease(`other-${used}`, 'worker-1:1').catch(() => false)) used++

    await one.mirrors.releaseLease('tag', 'worker-1:1')
    await one.metadata.releaseTurn('fill-1', 'worker-1:1')
    const full = new RegistryError('STORAGE_FULL')
    await t.rejects(one.mirrors.takeLease('tag', 'worker-1:2'), full, 'nobody is told that another has it')
    await t.rejects(one.mirrors.takeFill(fillOf('fill-1'), 'worker-1:2', 1000), full)
    t.match(await two.mirrors.findFill('fill-1'), { isHeld: true }, 'it is not given back yet')

    rmSync(filler)
    t.equal(await one.mirrors.takeLease('tag', 'worker-1:2'), true, 'with room it can be had at once')
    await eventually('the other process to get the turn', async () => {
      return typeof (await two.mirrors.takeFill(fillOf('fill-1'), 'worker-2:1', 1000)) === 'object'
    })
  },
)

t.test(
  'what a dead worker held is given back on a full disk, too: out of the reserve',
  { skip: cannotMount },
  async (t) => {
    const disk = mountSmallDisk(t, 8)
    const path = join(disk, 'boathouse.db')
    const filler = join(disk, 'filler')
    let freed = 0
    prepareSqlite(path)
    const { metadata, mirrors } = await openSqliteStores({
      path,
      onFatal: (error) => t.fail(error),
      freeSome: async () => {
        freed++
        rmSync(filler, { force: true })
        return freed === 1
      },
    })
    t.teardown(() => metadata.close())
    await mirrors.takeFill(fillOf('fill-1'), 'worker-1:1', 1000)
    fillUp(filler)
    // What room the log has left within itself is used up, by what may not have the reserve.
    let used = 0
    while (freed === 0 && used < 10_000) {
      const size = 1000 + used++
      if ((await mirrors.noteFillSize('fill-1', 'worker-1:1', size).catch(() => 'full')) === 'full') break
    }
    await metadata.releaseTurns('worker-1:')
    t.equal(freed, 1)
    t.match(await mirrors.findFill('fill-1'), { isHeld: false })
  },
)

t.test('of what processes say of an upstream the newest counts, and counts add up', async (t) => {
  const [one, two] = await openTwice(t)
  const say = (mirrors: typeof one.mirrors, at: number, health: object) =>
    mirrors.noteWork('docker.io', counts, { text: JSON.stringify(health), at })
  await say(one.mirrors, 200, { answeredAt: 200, retryAt: 5, rateLimit: { limit: 100, remaining: 9 } })
  await say(two.mirrors, 100, { answeredAt: 100, retryAt: 6, rateLimit: { limit: 100, remaining: 50 } })
  await say(two.mirrors, 300, { answeredAt: 300, retryAt: null })
  await one.mirrors.noteWork('docker.io', counts, undefined)
  await two.mirrors.noteSync('docker.io', '{"images":1}')
  const [state, ...others] = await one.mirrors.listStates()
  t.same(others, [])
  t.match(state, {
    hits: 4,
    misses: 8,
    bytesFetched: 12,
    bytesSaved: 16,
    healthAt: 300,
    sync: '{"images":1}',
  })
  const known = { answeredAt: 300, rateLimit: { limit: 100, remaining: 9 } }
  t.same(JSON.parse(state?.health ?? ''), known, 'what the newest did not know of stays')
})
