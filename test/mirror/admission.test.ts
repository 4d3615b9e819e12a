import { randomUUID } from 'node:crypto'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { Eviction } from '../../src/mirror/eviction.js'
import type { FillTask } from '../../src/mirror/fill-task.js'
import { digestOf } from '../../src/oci/digest.js'
import { RegistryError } from '../../src/oci/errors.js'
import { parseRepositoryName } from '../../src/oci/reference.js'
import { openSqliteStores, prepareSqlite } from '../../storage/sqlite-metadata-store.js'
import { scratchDir } from '../harness.js'

/*
 * Who may write how much: the decision alone, on a real index, with a disk whose free space the test sets.
 */

const repository = parseRepositoryName('docker.io/library/app')
const holder = 'worker-1:1'

interface Disk {
  free: number
  /** What asking for the free space waits for. */
  answer: () => Promise<void>
}

async function prepare(t: Test, budgets: readonly [string, number][] = []) {
  const path = join(scratchDir(t), 'boathouse.db')
  prepareSqlite(path)
  const { metadata, mirrors } = await openSqliteStores({ path, onFatal: (error) => t.fail(error) })
  t.teardown(() => metadata.close())
  const disk: Disk = { free: 1000, answer: async () => {} }
  const faults: Error[] = []
  const eviction = new Eviction({
    blobs: {
      freeSpace: async () => {
        const bytes = disk.free
        await disk.answer()
        return { bytes, files: 1000, allFiles: 2000 }
      },
      stat: async () => undefined,
    },
    store: mirrors,
    collector: { collectBlobs: async () => undefined },
    newHolder: randomUUID,
    floor: 100,
    budgets: new Map(budgets),
    check: async () => {
      for (const fault of faults) throw fault
    },
    flush: async () => {},
  })
  /** A fill under way whose size nobody knows yet. */
  const begin = async (id: string): Promise<FillTask> => {
    const digest = digestOf(Buffer.from(id))
    const owner = '/mirror'
    const fill = { id, mirror: 'docker.io', repository, digest, owner, algorithm: 'sha256' as const }
    await mirrors.takeFill(fill, holder, 1000)
    const upstream = { openBlob: () => t.fail('nothing is fetched') }
    return { ...fill, remote: repository, upstream } as unknown as FillTask
  }
  return { mirrors, disk, faults, eviction, begin }
}

/** An answer that is given to nobody before so many have asked; whoever asks later has it at once. */
function together(count: number): () => Promise<void> {
  let asked = 0
  let open = () => {}
  const opened = new Promise<void>((resolve) => {
    open = resolve
  })
  return () => {
    asked++
    if (asked === count) open()
    return opened
  }
}

for (const budgets of [[], [['docker.io', 5000]]] as [string, number][][]) {
  const name = budgets.length === 0 ? 'without a budget' : 'within a budget'
  t.test(`${name}, two fills that look at once never take the same room`, async (t) => {
    const { mirrors, disk, eviction, begin } = await prepare(t, budgets)
    const [one, two] = [await begin('one'), await begin('two')]
    disk.answer = together(2)
    const outcomes = await Promise.all([
      eviction.admitAtOnce(one, holder, 600),
      eviction.admitAtOnce(two, holder, 600),
    ])
    t.ok(outcomes.filter(Boolean).length <= 1, 'one of them at most')
    const { announced } = await mirrors.findRoom(undefined, '')
    t.equal(announced, outcomes.includes(true) ? 600 : 0, 'who was not admitted has announced nothing')
    for (const [at, task] of [one, two].entries()) {
      const size = (await mirrors.findFill(task.id))?.size
      t.equal(size, outcomes[at] === true ? 600 : undefined, 'nor said its size to those who follow')
    }
  })
}

t.test('who waits its turn and who does not never take the same room', async (t) => {
  const { mirrors, disk, eviction, begin } = await prepare(t)
  const [patient, quick] = [await begin('patient'), await begin('quick')]
  const stop = new AbortController()
  disk.answer = together(2)
  let isAdmitted = false
  const waiting = eviction.admit(patient, holder, 600, stop.signal).then(
    () => {
      isAdmitted = true
    },
    (error: unknown) => {
      if (!(error instanceof RegistryError) || error.kind !== 'UNAVAILABLE') throw error
    },
  )
  const isQuick = await eviction.admitAtOnce(quick, holder, 600)
  if (isQuick) {
    t.notOk(isAdmitted)
    stop.abort()
  }
  await waiting
  t.equal(isAdmitted, !isQuick, 'one of them')
  t.equal((await mirrors.findRoom(undefined, '')).announced, 600)
})

t.test('who waits while somebody else makes room is refused when the index cannot be written', async (t) => {
  const { mirrors, faults, eviction, begin } = await prepare(t)
  const task = await begin('one')
  t.equal(await mirrors.takeLease('evict', 'worker-2:1'), true)
  faults.push(new RegistryError('STORAGE_FULL', 'the disk is full'))
  await t.rejects(
    eviction.admit(task, holder, 600, new AbortController().signal),
    new RegistryError('STORAGE_FULL', 'the disk is full'),
  )
  faults.pop()
  const admitted = eviction.admit(task, holder, 600, new AbortController().signal)
  await mirrors.releaseLease('evict', 'worker-2:1')
  await admitted
  t.match(await mirrors.findFill('one'), { size: 600 })
})
