import { join } from 'node:path'
import t from 'tap'
import { Fill } from '../../src/mirror/fill.js'
import type { FillContext, FillTask } from '../../src/mirror/fill-task.js'
import { Sharing } from '../../src/mirror/sharing.js'
import { digestOf } from '../../src/oci/digest.js'
import { parseRepositoryName } from '../../src/oci/reference.js'
import { fillOwner } from '../../storage/mirror-store.js'
import { openSqliteStores, prepareSqlite } from '../../storage/sqlite-metadata-store.js'
import { scratchDir } from '../harness.js'

/*
 * Work that several workers share. What comes of it over HTTP is in mirror.test.ts and crowds.test.ts.
 */

const nothing = async () => undefined
const unused = async () => 'nothing was to be done'

t.test('who waits for a worker that cannot say that it has ended is told why', async (t) => {
  const full = new Error('no room')
  const store = { takeLease: async () => false, releaseLease: nothing }
  const check = () => Promise.reject(full)
  const sharing = new Sharing(store, () => 'me', check)
  await t.rejects(sharing.share('key', nothing, unused), full)
})

t.test('who waits for a worker that is slow is served by it', async (t) => {
  let checks = 0
  const store = { takeLease: async () => false, releaseLease: nothing }
  const check = async () => {
    checks++
  }
  const sharing = new Sharing(store, () => 'me', check)
  const find = async () => (checks >= 2 ? 'what the other has found' : undefined)
  t.equal(await sharing.share('key', find, unused), 'what the other has found')
})

t.test('what another worker wrote to its end is synced before it becomes the blob', async (t) => {
  const path = join(scratchDir(t), 'boathouse.db')
  prepareSqlite(path)
  const { metadata, mirrors } = await openSqliteStores({ path, onFatal: (error) => t.fail(error) })
  t.teardown(() => metadata.close())
  const bytes = Buffer.from('content')
  const repository = parseRepositoryName('docker.io/library/app')
  const task = { id: 'fill-1', mirror: 'docker.io', repository, digest: digestOf(bytes) }
  await mirrors.takeFill({ ...task, owner: fillOwner, algorithm: 'sha256' }, 'worker-2:1', 1000)
  await mirrors.noteFillSize('fill-1', 'worker-2:1', bytes.length)
  await metadata.releaseTurns('worker-2:')
  const calls: string[] = []
  const note = (call: string) => async () => void calls.push(call)
  const reader = { currentSize: async () => bytes.length, copyTo: nothing, close: nothing }
  const context = {
    metadata,
    mirrors,
    blobs: {
      openUpload: async () => reader,
      append: note('append'),
      commit: note('commit'),
      digestUpload: async () => task.digest,
    },
    newHolder: () => 'worker-1:1',
  }
  const fill = new Fill(task as FillTask, context as unknown as FillContext)
  await fill.stored()
  t.strictSame(calls, ['append', 'commit'], 'an append syncs, also one of nothing')
  t.equal(await metadata.findBlob(repository, task.digest), bytes.length)
})

t.test('who follows a worker that cannot say that it has ended is told why', async (t) => {
  const path = join(scratchDir(t), 'boathouse.db')
  prepareSqlite(path)
  const { metadata, mirrors } = await openSqliteStores({ path, onFatal: (error) => t.fail(error) })
  t.teardown(() => metadata.close())
  const repository = parseRepositoryName('docker.io/library/app')
  const task = { id: 'fill-1', mirror: 'docker.io', repository, digest: digestOf(Buffer.from('content')) }
  await mirrors.takeFill({ ...task, owner: fillOwner, algorithm: 'sha256' }, 'worker-2:1', 1000)
  const full = new Error('no room')
  const context = {
    metadata: { findBlob: metadata.findBlob.bind(metadata), check: () => Promise.reject(full) },
    mirrors,
    blobs: { openUpload: nothing, open: nothing },
    newHolder: () => 'worker-1:1',
  }
  const fill = new Fill(task as FillTask, context as unknown as FillContext)
  await t.rejects(fill.stored(), full)
})
