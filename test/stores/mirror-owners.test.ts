import { join } from 'node:path'
import t, { type Test } from 'tap'
import { digestOf } from '../../src/oci/digest.js'
import { parseRepositoryName, parseTag, type RepositoryName } from '../../src/oci/reference.js'
import type { NewManifest } from '../../storage/metadata-store.js'
import { fillOwner } from '../../storage/mirror-store.js'
import { openSqliteStores, prepareSqlite } from '../../storage/sqlite-metadata-store.js'
import { OCI_MANIFEST, scratchDir } from '../harness.js'

/*
 * S79: what is pushed is its owner's from that moment, whatever mirrors come, go, and are called. Each row is an order of
 * settings, fills and pushes, and says whose the repository corp/team/app is at its end.
 */

const app = parseRepositoryName('corp/team/app')
const other = parseRepositoryName('corp/team/other')
const [own, fetched] = ['what is pushed', 'what comes from upstream'].map((text) => Buffer.from(text))
const size = (bytes: Buffer | undefined) => ({
  digest: digestOf(bytes ?? Buffer.of()),
  size: bytes?.length ?? 0,
})
const [ownBlob, fetchedBlob] = [size(own), size(fetched)]

async function openStores(t: Test) {
  const path = join(scratchDir(t), 'boathouse.db')
  prepareSqlite(path)
  const stores = await openSqliteStores({ path, onFatal: (error) => t.fail(error) })
  t.teardown(() => stores.metadata.close())
  await stores.quotas.setQuotas([{ pattern: '**', limit: 1_000_000 }])
  const { metadata, mirrors } = stores
  let count = 0

  const manifestOf = (repository: RepositoryName, tag: string, blob = ownBlob): NewManifest => {
    const bytes = Buffer.from(JSON.stringify({ tag, layers: [blob.digest] }))
    return {
      repository,
      digest: digestOf(bytes),
      mediaType: OCI_MANIFEST,
      bytes,
      children: [{ ...blob, role: 'blob', required: true }],
      subject: undefined,
      artifactType: undefined,
      annotations: undefined,
      tags: [parseTag(tag)],
      sparse: false,
      immutable: [],
      condition: undefined,
      user: { name: 'ann' },
      now: Date.now(),
    }
  }
  /** A fill as it is when it begins; the function ends it. */
  async function beginFill(mirror: string, repository = app) {
    const id = `fill-${repository}`
    const fill = {
      id,
      mirror,
      repository,
      digest: fetchedBlob.digest,
      owner: fillOwner,
      algorithm: 'sha256' as const,
    }
    const taken = await mirrors.takeFill(fill, 'worker:1', Date.now())
    return async () =>
      typeof taken === 'object' && (await metadata.finishUpload(id, 'worker:1', fetchedBlob, Date.now()))
  }
  const fill = async (mirror: string, repository = app) => (await beginFill(mirror, repository))()
  const mirrorManifest = async (mirror: string) => {
    const manifest = { ...manifestOf(app, 'up', fetchedBlob), sparse: true }
    return (await mirrors.putMirrored(manifest, mirror)).outcome
  }
  const pushBlob = async () => {
    const id = `upload-${count++}`
    const started = await metadata.startUpload(
      { id, repository: app, owner: 'ann', algorithm: 'sha256' },
      100,
      Date.now(),
    )
    if (started !== true) return false
    await metadata.takeTurn(id, 'worker:2', ownBlob.digest)
    return metadata.finishUpload(id, 'worker:2', ownBlob, Date.now())
  }
  const pushManifest = async (tag: string, blob = ownBlob) =>
    (await metadata.putManifest(manifestOf(app, tag, blob))).outcome
  const push = async () => [await pushBlob(), await pushManifest('mine')]
  const deleteAll = async () => {
    for (const tag of ['mine', 'up']) {
      const found = await metadata.findManifest(app, { kind: 'tag', tag: parseTag(tag) })
      if (found !== undefined)
        await metadata.deleteManifest(app, found.digest, { immutable: [], now: Date.now() })
    }
    for (const { digest } of [ownBlob, fetchedBlob]) await metadata.unlinkBlob(app, digest)
  }
  return { ...stores, beginFill, fill, mirrorManifest, pushBlob, pushManifest, push, deleteAll, manifestOf }
}

type Stores = Awaited<ReturnType<typeof openStores>>

/** Fills the repository through a mirror, as a pull does. */
async function pull({ fill, mirrorManifest }: Stores, mirror: string) {
  await mirrorManifest(mirror)
  await fill(mirror)
}

const settle = (names: string[]) => (stores: Stores) => stores.mirrors.settleRepositories(names)
const pullBy = (mirror: string) => (stores: Stores) => pull(stores, mirror)
const pushAll = (stores: Stores) => stores.push()

const orders: Readonly<Record<string, { steps: ((stores: Stores) => unknown)[]; owner: string }>> = {
  'nobody has pushed': { steps: [pullBy('corp')], owner: 'corp' },
  'the mirror goes, nobody pushes': { steps: [pullBy('corp'), settle([])], owner: 'corp' },
  'the mirror goes, a push': { steps: [pullBy('corp'), settle([]), pushAll], owner: 'local' },
  'the mirror goes, a push, the mirror comes back': {
    steps: [pullBy('corp'), settle([]), pushAll, settle(['corp']), pullBy('corp')],
    owner: 'local',
  },
  'the mirror is renamed, a push': { steps: [pullBy('corp'), settle(['hub']), pushAll], owner: 'local' },
  'a name that begins as the old one': {
    steps: [pullBy('corp'), settle(['corp/te', 'cor']), pushAll],
    owner: 'local',
  },
  'the mirror is split': { steps: [pullBy('corp'), settle(['corp/team', 'corp/x'])], owner: 'corp/team' },
  'the mirror is split beside a sync that is the first to come': {
    steps: [pullBy('corp'), pullBy('corp/team')],
    owner: 'corp/team',
  },
  'the mirror is split and goes, a push': {
    steps: [pullBy('corp'), settle(['corp/team']), pullBy('corp/team'), settle([]), pushAll],
    owner: 'local',
  },
  'mirrors are joined': { steps: [pullBy('corp/team'), settle(['corp'])], owner: 'corp' },
  'mirrors are joined and go, a push, one comes back': {
    steps: [
      pullBy('corp/team'),
      settle(['corp']),
      settle([]),
      pushAll,
      settle(['corp/team']),
      pullBy('corp/team'),
    ],
    owner: 'local',
  },
  'a push, then a mirror': { steps: [pushAll, settle(['corp']), pullBy('corp')], owner: 'local' },
  'a push, all of it deleted, then a mirror': {
    steps: [pushAll, (stores) => stores.deleteAll(), settle(['corp']), pullBy('corp')],
    owner: 'local',
  },
  'a push of a manifest alone, that names what a mirror fetched': {
    steps: [pullBy('corp'), settle([]), (stores) => stores.pushManifest('mine', fetchedBlob)],
    owner: 'local',
  },
  'a push of a blob alone': {
    steps: [pullBy('corp'), settle([]), (stores) => stores.pushBlob()],
    owner: 'local',
  },
  'a mount of what is there already': {
    steps: [
      pullBy('corp'),
      settle([]),
      (stores) => stores.metadata.leaseOwnBlob(app, fetchedBlob.digest, Date.now(), 1000),
    ],
    owner: 'local',
  },
  'a mount from a repository of the mirror': {
    steps: [
      (stores) => stores.fill('corp', other),
      (stores) => stores.mirrorManifest('corp'),
      settle([]),
      (stores) => stores.metadata.mountBlob(app, fetchedBlob.digest, other, Date.now()),
    ],
    owner: 'local',
  },
  'a push while a fill is under way': {
    steps: [
      (stores) => stores.mirrorManifest('corp'),
      async (stores) => {
        const endFill = await stores.beginFill('corp')
        await stores.push()
        t.equal(await endFill(), false, 'what comes from upstream does not get in')
      },
    ],
    owner: 'local',
  },
  'an upload that is begun and given up': {
    steps: [
      pullBy('corp'),
      settle([]),
      async ({ metadata }) => {
        await metadata.startUpload(
          { id: 'given-up', repository: app, owner: 'ann', algorithm: 'sha256' },
          100,
          Date.now(),
        )
        await metadata.removeUpload('given-up', undefined)
      },
    ],
    owner: 'corp',
  },
  'a push that is refused': {
    steps: [
      pullBy('corp'),
      settle([]),
      async (stores) =>
        t.equal(await stores.pushManifest('mine'), 'missing', 'it names a blob that is not there'),
    ],
    owner: 'corp',
  },
}

for (const [name, { steps, owner }] of Object.entries(orders)) {
  t.test(
    `S79: ${name}: the repository is ${owner === 'local' ? 'its owner’s' : `the mirror ${owner}’s`}`,
    async (t) => {
      const stores = await openStores(t)
      for (const step of steps) await step(stores)
      const { metadata, mirrors, quotas, tags } = stores
      const names = ['corp', 'corp/team', 'corp/te', 'cor', 'hub']
      const held = async () => {
        const found = await Promise.all(
          [ownBlob, fetchedBlob].map(({ digest }) => metadata.findBlob(app, digest)),
        )
        return found.filter((one) => one !== undefined)
      }
      const before = await held()
      t.equal(await mirrors.findRepositoryKind(app), owner === 'local' ? 'local' : 'mirrored')

      // What the sums say is what is there.
      const [all] = await quotas.listQuotas()
      await quotas.setQuotas([{ pattern: 'corp/team/app', limit: 1_000_000 }])
      if (owner === 'local')
        t.equal(all?.used, (await quotas.listQuotas())[0]?.used, 'and is counted as such')
      for (const { name: mirror, blobs, bytes } of await mirrors.listStates()) {
        const listed = await mirrors.listLeastUsed(mirror, 10)
        t.same(
          [blobs, bytes],
          [listed.length, listed.reduce((sum, blob) => sum + blob.size, 0)],
          `what ${mirror} holds`,
        )
      }

      if (owner !== 'local') {
        t.equal(await mirrors.evict(owner, [fetchedBlob.digest]), 1, 'it gives back space')
        t.strictSame(await held(), [])
        return
      }
      for (const mirror of names) {
        await mirrors.evict(mirror, [ownBlob.digest, fetchedBlob.digest])
        t.equal(await stores.mirrorManifest(mirror), 'local', `${mirror} overwrites nothing`)
        t.equal(await mirrors.linkMirrored(app, fetchedBlob.digest, mirror, Date.now()), false)
        t.equal(await stores.fill(mirror), false)
      }
      t.strictSame(await held(), before, 'nothing of it is evicted')
      const history = await tags.listHistory(app, parseTag('mine'), 10)
      const hasTag = (await metadata.findManifest(app, { kind: 'tag', tag: parseTag('mine') })) !== undefined
      if (!hasTag) return
      t.match(history, [{ how: 'push', user: 'ann' }])
      await metadata.deleteTag(app, parseTag('mine'), { immutable: [], now: Date.now() })
      const restored = await tags.restoreTag({
        repository: app,
        tag: parseTag('mine'),
        to: 'previous',
        immutable: [],
        user: { name: 'ann' },
        now: Date.now(),
      })
      t.match(restored, { outcome: 'restored' })
    },
  )
}

t.test(
  'S79: the first push into what a mirror filled is refused when that does not fit the quota',
  async (t) => {
    const { quotas, mirrors, metadata, ...stores } = await openStores(t)
    await pull({ quotas, mirrors, metadata, ...stores }, 'corp')
    await quotas.setQuotas([{ pattern: 'corp/**', limit: 10 }])
    t.match(await metadata.leaseOwnBlob(app, fetchedBlob.digest, Date.now(), 1000), { pattern: 'corp/**' })
    t.equal(await stores.pushManifest('mine', fetchedBlob), 'over-quota')
    t.equal(await mirrors.findRepositoryKind(app), 'mirrored', 'and it stays the mirror’s')
  },
)
